"""Conversion of the original's checkpoints and back: files, folders, reports. test_torch_names.py tests the numbers."""

import json
import os
import shutil
from collections import OrderedDict

import jax
import ml_dtypes
import numpy as np
import pytest
from support import tiny_clap

import audiosep_jax as asj
from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.checkpoints.convert import ConvertedConfig, FrontEnd, from_torch, to_torch
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.run_folder import load_for_inference, save_for_inference
from audiosep_jax.cli.main import main
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import CheckpointError, QueryError
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.torch_names import tensors_from_variables
from audiosep_jax.weights.tensor_files import open_tensors, write_tensors
from audiosep_jax.weights.torch_files import read_torch, write_torch

MODEL = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(2,) * 6, condition_size=16)
FRONT_END = FrontEnd(8000, 128, 32)
FLAGS = ['--sample-rate', '8000', '--window-size', '128', '--hop-size', '32']
CLAP = tiny_clap.laion_tensors()


def randomized(variables, seed):
    """Random weights, scaled so that every one matters and none saturates the mask."""
    rng = np.random.default_rng(seed)
    variables = jax.device_get(variables)
    params = jax.tree.map(lambda a: rng.normal(0.1, 0.3, a.shape).astype(np.float32), variables['params'])
    stats = jax.tree.map(lambda a: rng.uniform(0.5, 1.5, a.shape).astype(np.float32), variables['batch_stats'])
    return {'params': params, 'batch_stats': stats}


@pytest.fixture(scope='module')
def variables():
    return randomized(init_variables(MODEL, jax.random.key(0)), 1)


@pytest.fixture(scope='module')
def separator(variables):
    """The separator's tensors under the original's names; those that the network does not use are random."""
    rng = np.random.default_rng(2)
    state = {}
    for name, value in tensors_from_variables(variables, MODEL, step=9).items():
        unused = 'decoder' in name and ('bn2' in name.split('.')[2] or '->beta2' in name) and 'conv_block2' not in name
        unused = unused or 'stft' in name
        state[name] = rng.standard_normal(value.shape).astype(value.dtype) if unused else value
    return state


@pytest.fixture(scope='module')
def lightning(separator):
    """A training checkpoint with mixed number types, NaN, optimizer state and a scheduler."""
    state = OrderedDict((f'ss_model.{k}', v) for k, v in separator.items())
    state |= {f'query_encoder.model.{k}': v for k, v in CLAP.items()}
    state['ss_model.base.pre_conv.weight'] = state['ss_model.base.pre_conv.weight'].astype(np.float16)
    state['ss_model.base.after_conv.weight'] = state['ss_model.base.after_conv.weight'] + np.float64(1e-12)
    state['ss_model.base.bn0.bias'] = state['ss_model.base.bn0.bias'].astype(ml_dtypes.bfloat16)
    state['ss_model.base.decoder_block1.bn2.bias'] = np.full(2, np.nan, np.float32)
    moments = {
        i: {'step': np.array(3, np.float32), 'exp_avg': np.ones(2, np.float32) * i, 'exp_avg_sq': np.ones(1)}
        for i in range(3)
    }
    return {
        'epoch': 1,
        'global_step': 123,
        'pytorch-lightning_version': '2.0.0',
        'state_dict': state,
        'optimizer_states': [{'state': moments, 'param_groups': [{'betas': (0.9, 0.999), 'params': [0, 1, 2]}]}],
        'lr_schedulers': [{'last_epoch': 5, 'lr_lambdas': [None]}],
    }


@pytest.fixture(scope='module')
def converted(lightning, tmp_path_factory):
    """The folder made from the Lightning checkpoint, with a tokenizer."""
    folder = tmp_path_factory.mktemp('converted')
    write_torch(folder / 'x.ckpt', lightning)
    from_torch(folder / 'x.ckpt', folder / 'ours', front_end=FRONT_END)
    tiny_clap.write_tokenizer(folder / 'ours' / 'encoder')
    return folder / 'ours'


def assert_same(a, b, where=''):
    """Asserts equal types of containers, order of keys, and bits of every tensor."""
    assert type(a) is type(b) or isinstance(a, np.ndarray), where
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f'{where}/{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{where}/{i}')
    else:
        assert a == b, where


# ---- there and back --------------------------------------------------------------------------------------------------


def test_a_lightning_checkpoint_comes_back_bit_for_bit(converted, lightning, tmp_path):
    to_torch(open_checkpoint(converted), tmp_path / 'back.ckpt')
    assert_same(read_torch(tmp_path / 'back.ckpt'), lightning)


def test_one_conversion_gives_separator_and_encoder(converted):
    loaded = asj.load(converted)
    assert loaded.config == MODEL
    assert loaded.info['step'] == 123
    assert loaded.encoder.name == 'clap'
    embedding = loaded.encoder.encode_text(['dog'])
    np.testing.assert_array_equal(loaded.embed('dog'), embedding)
    assert embedding.shape == (1, 16)
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, 2000).astype(np.float32)
    by_text = loaded.separate(sound, 'dog', sample_rate=8000).targets
    np.testing.assert_array_equal(by_text, loaded.separate(sound, embedding, sample_rate=8000).targets)
    other = loaded.separate(sound, 'rain', sample_rate=8000).targets
    assert np.abs(by_text - other).max() > 0


@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.safetensors'])
def test_a_state_dict_comes_back_bit_for_bit(lightning, suffix, tmp_path):
    state, source, back = lightning['state_dict'], tmp_path / f'x{suffix}', tmp_path / f'back{suffix}'
    write = write_tensors if suffix == '.safetensors' else write_torch
    write(source, state)
    from_torch(source, tmp_path / 'ours', front_end=FRONT_END)
    to_torch(open_checkpoint(tmp_path / 'ours'), back)
    found = open_tensors(back)
    assert set(found) == set(state)
    for name in state:
        assert_same(np.asarray(state[name]), found[name], name)


def test_the_suffix_decides_what_the_file_holds(converted, lightning, tmp_path):
    to_torch(open_checkpoint(converted), tmp_path / 'x.pt')
    assert_same(read_torch(tmp_path / 'x.pt'), lightning['state_dict'])
    from_torch(tmp_path / 'x.pt', tmp_path / 'ours', front_end=FRONT_END)
    to_torch(open_checkpoint(tmp_path / 'ours'), tmp_path / 'y.ckpt')
    again = read_torch(tmp_path / 'y.ckpt')
    assert_same(again['state_dict'], lightning['state_dict'])
    assert {'global_step', 'pytorch-lightning_version'} <= set(again)


def test_weights_trained_after_the_conversion_are_written(converted, lightning, tmp_path):
    """Used tensors are the new ones, in their old types; those that the network does not use are the file's."""
    shutil.copytree(converted, tmp_path / 'ours')
    before = load_for_inference(tmp_path / 'ours')
    newer = randomized(before.variables, 5)
    save_for_inference(tmp_path / 'ours' / 'checkpoints' / '200', variables=newer, record=before.record, step=200)
    to_torch(open_checkpoint(tmp_path / 'ours'), tmp_path / 'back.ckpt')
    back, expected = read_torch(tmp_path / 'back.ckpt')['state_dict'], tensors_from_variables(newer, MODEL)
    assert back['ss_model.base.pre_conv.weight'].dtype == np.float16
    assert back['ss_model.base.after_conv.weight'].dtype == np.float64
    np.testing.assert_array_equal(back['ss_model.base.after_conv.weight'], expected['base.after_conv.weight'])
    np.testing.assert_array_equal(back['ss_model.base.bn0.running_var'], expected['base.bn0.running_var'])
    for name in ('ss_model.base.decoder_block2.bn2.weight', 'query_encoder.model.text_projection.0.bias'):
        assert_same(back[name], lightning['state_dict'][name], name)


def test_a_run_goes_to_pytorch_and_comes_back(variables, tmp_path):
    """A run that was not converted gets the names of the original's Lightning module."""
    record = describe(ConvertedConfig(MODEL, ''), None)
    save_for_inference(tmp_path / 'run' / 'checkpoints' / '40', variables=variables, record=record, step=40)
    assert main(['convert', str(tmp_path / 'run'), str(tmp_path / 'run.ckpt')]) == 0
    tree = read_torch(tmp_path / 'run.ckpt')
    assert tree['global_step'] == 40
    names = list(tree['state_dict'])
    assert names == [f'ss_model.{name}' for name in tensors_from_variables(variables, MODEL)]
    assert main(['convert', str(tmp_path / 'run.ckpt'), str(tmp_path / 'again'), *FLAGS]) == 0
    again = load_for_inference(tmp_path / 'again')
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    assert again.step == 40


def test_a_run_with_the_encoder_words_comes_back_with_its_step(variables, tmp_path, capsys):
    encoder = WordsEncoder(MODEL.condition_size).identity()
    record = describe(ConvertedConfig(MODEL, ''), encoder)
    save_for_inference(tmp_path / 'run' / 'checkpoints' / '40', variables=variables, record=record, step=40)
    back, again = str(tmp_path / 'back.safetensors'), str(tmp_path / 'again')
    assert main(['convert', str(tmp_path / 'run'), back]) == 0
    assert 'to convert it back, give --encoder words --sample-rate' in capsys.readouterr().err
    assert main(['convert', back, again, '--encoder', 'words', *FLAGS]) == 0
    converted = load_for_inference(again)
    assert (converted.encoder, converted.step) == (encoder, 40)
    jax.tree.map(np.testing.assert_array_equal, converted.variables, variables)
    assert asj.load(again).embed('a dog').shape == (1, MODEL.condition_size)


@pytest.mark.parametrize('step', ['', '-1', 'x', '9' * 5000, '²'])
def test_an_unusable_step_counts_as_0(separator, step, tmp_path):
    write_tensors(tmp_path / 'x.safetensors', separator, {'audiosep_jax.step': step})
    assert from_torch(tmp_path / 'x.safetensors', tmp_path / 'ours', front_end=FRONT_END).step == 0


def test_the_full_size_separator_gives_the_original_s_output(reference, reference_state, tmp_path):
    entries = zip(reference['state_names'], reference['state_shapes'], strict=True)
    shapes = {str(name): json.loads(str(shape)) for name, shape in entries}
    state = {name: reference_state.get(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    write_tensors(tmp_path / 'x.safetensors', state)
    from_torch(tmp_path / 'x.safetensors', tmp_path / 'ours')
    loaded = asj.load(tmp_path / 'ours')
    out = loaded.separate(reference['wave_b'], reference['cond_b'], sample_rate=32000).targets[0, 0]
    assert np.abs(out - reference['out_b']).max() < 1e-5 * np.abs(reference['out_b']).max()


def test_the_state_dict_is_the_one_with_the_tensors(lightning, tmp_path):
    """A training checkpoint may have an array next to its state dict."""
    write_torch(tmp_path / 'x.ckpt', lightning | {'loss': np.float32(0.3) * np.ones(1)})
    from_torch(tmp_path / 'x.ckpt', tmp_path / 'ours', front_end=FRONT_END)
    to_torch(open_checkpoint(tmp_path / 'ours'), tmp_path / 'back.ckpt')
    assert read_torch(tmp_path / 'back.ckpt')['loss'] == np.float32(0.3)


def test_what_cannot_come_back_is_listed(separator, tmp_path):
    extras = {'texts': np.array(['ab']), 'sets': {frozenset({1}): 2}, 'global_step': 2**70}
    with open(tmp_path / 'x.ckpt', 'wb') as file:
        torch = pytest.importorskip('torch')
        torch.save({'state_dict': {k: torch.from_numpy(np.array(v)) for k, v in separator.items()}, **extras}, file)
    converted = from_torch(tmp_path / 'x.ckpt', tmp_path / 'ours', front_end=FRONT_END)
    assert converted.step == 0
    assert any('texts, sets/frozenset({1})' in note for note in converted.notes)
    to_torch(open_checkpoint(tmp_path / 'ours'), tmp_path / 'back.ckpt')
    back = torch.load(tmp_path / 'back.ckpt', weights_only=True)
    assert back['global_step'] == 2**70
    assert back['sets'] == {}
    assert all(np.array_equal(back['state_dict'][name], separator[name]) for name in separator)


def test_a_tensor_that_occurs_twice_is_stored_once(lightning, tmp_path):
    moment = np.ones((500, 500), np.float32)
    write_torch(tmp_path / 'x.ckpt', lightning | {'moments': [moment] * 20})
    from_torch(tmp_path / 'x.ckpt', tmp_path / 'ours', front_end=FRONT_END)
    assert (tmp_path / 'ours' / 'original' / 'tensors.safetensors').stat().st_size < 3e6


def test_a_file_whose_views_unfold_is_refused(separator, tmp_path):
    torch = pytest.importorskip('torch')
    state = {k: torch.from_numpy(np.array(v)) for k, v in separator.items()}
    bomb = [torch.zeros(1).expand(10_000_000 + i) for i in range(4)]
    torch.save({'state_dict': state, 'optimizer_states': bomb}, tmp_path / 'x.ckpt')
    with pytest.raises(CheckpointError, match=r'would unfold to 15\d MiB'):
        from_torch(tmp_path / 'x.ckpt', tmp_path / 'ours', front_end=FRONT_END)


# ---- query encoders for a file without one ---------------------------------------------------------------------------


def test_a_separator_without_encoder_takes_embeddings(separator, tmp_path, capsys):
    write_torch(tmp_path / 'x.pt', separator)
    assert main(['convert', str(tmp_path / 'x.pt'), str(tmp_path / 'ours'), *FLAGS]) == 0
    assert 'no query encoder' in capsys.readouterr().err
    loaded = asj.load(tmp_path / 'ours')
    assert loaded.encoder is None
    assert loaded.separate(np.zeros(500, np.float32), np.ones(16), sample_rate=8000).targets.shape == (1, 1, 500)
    with pytest.raises(QueryError, match='no encoder for text'):
        loaded.embed('dog')
    assert main(['inspect', str(tmp_path / 'ours')]) == 0
    assert 'accepts embeddings only' in capsys.readouterr().out


@pytest.mark.parametrize('naming', ['laion', 'hugging face', 'file'])
def test_an_encoder_can_be_added(separator, naming, tmp_path):
    write_torch(tmp_path / 'x.pt', separator)
    weights = tmp_path / 'weights'
    weights.mkdir()
    tiny_clap.write_tokenizer(weights)
    if naming == 'hugging face':
        write_tensors(weights / 'model.safetensors', tiny_clap.hugging_face_tensors())
        (weights / 'config.json').write_text(json.dumps(tiny_clap.CONFIG))
    elif naming == 'laion':
        write_tensors(weights / 'model.safetensors', CLAP)
    else:
        weights = weights / 'clap.pt'
        write_torch(weights, {'state_dict': {f'module.{k}': v for k, v in CLAP.items()}})
    from_torch(tmp_path / 'x.pt', tmp_path / 'ours', front_end=FRONT_END, encoder=str(weights))
    shutil.rmtree(tmp_path / 'weights')  # everything needed was copied
    loaded = asj.load(tmp_path / 'ours')
    assert loaded.embed('a dog').shape == (1, 16)
    assert loaded.encoder.identity()['weights'] == loaded.info['encoder']['weights']


def test_weights_of_another_encoder_are_refused(converted, tmp_path):
    shutil.copytree(converted, tmp_path / 'ours')
    write_tensors(tmp_path / 'ours' / 'encoder' / 'model.safetensors', tiny_clap.laion_tensors(seed=3))
    with pytest.raises(asj.AudioSepError, match='are not those that were recorded'):
        asj.load(tmp_path / 'ours')


def test_without_the_encoder_s_weights_embeddings_still_work(converted, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    shutil.copytree(converted, tmp_path / 'ours')
    shutil.rmtree(tmp_path / 'ours' / 'encoder')
    loaded = asj.load(tmp_path / 'ours')
    loaded.separate(np.zeros(500, np.float32), np.ones(16), sample_rate=8000)
    with pytest.raises(asj.AudioSepError, match=r'x\.ckpt'):
        loaded.embed('dog')


# ---- what cannot be converted ----------------------------------------------------------------------------------------


def drop(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: drop(s, 'ss_model.base.pre_conv.bias'), '1 missing (base.pre_conv.bias)'),
        (lambda s: drop(s, 'ss_model.base.bn0.weight'), "'base.bn0.weight' is missing"),
        (lambda s: s | {'ss_model.base.new': np.zeros(1)}, '1 unknown (base.new)'),
        (lambda s: s | {'other_model.x': np.zeros(1)}, 'neither of the separator nor of CLAP: other_model.x'),
        (lambda s: s | {'ss_model.base.pre_conv.bias': np.zeros(3, 'f4')}, 'bias is [3] and should be [2]'),
        (lambda s: s | {'ss_model.base.pre_conv.bias': np.zeros(2, 'i4')}, 'int32, not floating-point'),
        (lambda s: drop(s, 'query_encoder.model.text_projection.0.bias'), 'text_projection.0.bias'),
        (lambda s: s | {'query_encoder.model.text_branch.x': np.zeros(1)}, 'text_branch.x'),
        (lambda s: s | {'ss_model.base.bn0.weight': np.zeros(129, 'f4')}, 'bn0 has 129 entries, which is window 256'),
        (lambda s: {k: v for k, v in s.items() if not k.startswith('ss_model')}, 'not a separator'),
        (lambda s: {'a': 'text'}, 'no state dict'),
        (lambda s: s | {3: np.zeros(1)}, 'has the name 3'),
        (lambda s: s | {'\ud800': np.zeros(1)}, r"has the name '\ud800'"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_gives_one_line_and_exit_code_1(lightning, change, message, tmp_path, capsys):
    write_torch(tmp_path / 'x.ckpt', {'state_dict': change(dict(lightning['state_dict'])), 'epoch': 0})
    assert main(['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'ours'), *FLAGS]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f'audiosep-jax: error: {tmp_path}')
    assert message in lines[0]
    assert os.listdir(tmp_path) == ['x.ckpt']


def test_unknown_tensors_are_kept_on_request(lightning, tmp_path, capsys):
    state = lightning['state_dict']
    copies = {f'ema_model.{name}': value for name, value in state.items() if 'pre_conv' in name or 'bn0' in name}
    extra = {'ss_model.base.new': np.arange(3.0), 'query_encoder.model.text_branch.x': np.ones(2, np.float32)}
    written = {**lightning, 'state_dict': OrderedDict({**copies, **state, **extra, 'loss.scale': np.ones(1)})}
    write_torch(tmp_path / 'x.ckpt', written)
    arguments = ['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'ours'), *FLAGS]
    assert main(arguments) == 1
    assert '--ignore-unknown goes past them' in capsys.readouterr().err
    assert main([*arguments, '--ignore-unknown']) == 0
    out = capsys.readouterr()
    assert f'{len(copies) + 2} unknown tensors are not used, and kept for the way back: ema_model.' in out.err
    to_torch(open_checkpoint(tmp_path / 'ours'), tmp_path / 'back.ckpt')
    assert_same(read_torch(tmp_path / 'back.ckpt'), written)
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'y.pt'), '--ignore-unknown']) == 2
    assert '--ignore-unknown only applies to conversions from PyTorch' in capsys.readouterr().err


def test_tensors_that_can_be_computed_may_be_missing(separator, tmp_path, capsys):
    fixed = [name for name in separator if 'stft' in name or 'num_batches_tracked' in name]
    assert len(fixed) > 5
    write_torch(tmp_path / 'x.pt', {name: value for name, value in separator.items() if name not in fixed})
    write_torch(tmp_path / 'y.pt', dict(separator))
    for name in 'xy':
        assert main(['convert', str(tmp_path / f'{name}.pt'), str(tmp_path / name), *FLAGS]) == 0
        assert (f'{len(fixed)} tensors that the file lacks are computed' in capsys.readouterr().err) == (name == 'x')
    found, expected = (open_checkpoint(tmp_path / name).variables for name in 'xy')
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    to_torch(open_checkpoint(tmp_path / 'x'), tmp_path / 'back.pt')
    assert read_torch(tmp_path / 'back.pt').keys() == separator.keys() - set(fixed)


def test_separators_and_encoders_are_told_apart(separator, tmp_path, capsys):
    write_torch(tmp_path / 'x.pt', dict(separator))
    write_tensors(tmp_path / 'clap.safetensors', CLAP)
    clap = str(tmp_path / 'clap.safetensors')
    assert main(['convert', clap, str(tmp_path / 'ours'), *FLAGS]) == 1
    assert f'but CLAP, a query encoder: convert the separator, and give this with --encoder {clap}' in (
        capsys.readouterr().err
    )
    for name in ('x.pt', 'run'):
        (tmp_path / 'run' / 'checkpoints').mkdir(parents=True, exist_ok=True)
        arguments = [str(tmp_path / 'x.pt'), str(tmp_path / 'ours'), *FLAGS, '--encoder', str(tmp_path / name)]
        assert main(['convert', *arguments]) == 1
        error = capsys.readouterr().err
        assert 'this is a separator without a query encoder: give the weights of CLAP or CLIP instead' in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / 'ours').exists()


def test_the_window_must_match_the_tensors(lightning, tmp_path, capsys):
    write_torch(tmp_path / 'x.ckpt', lightning)
    assert main(['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'ours')]) == 1
    assert 'bn0 has 65 entries, which is window 128 and not 2048' in capsys.readouterr().err
    assert main(['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'ours'), '--preset', 'dcase2024-16k']) == 1
    assert not (tmp_path / 'ours').exists()


def test_nothing_is_overwritten_without_force(converted, lightning, tmp_path, capsys):
    write_torch(tmp_path / 'x.ckpt', lightning)
    arguments = ['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'ours'), *FLAGS]
    (tmp_path / 'ours').mkdir()
    assert main(arguments) == 0  # an empty folder counts as free
    first = (tmp_path / 'ours' / 'original' / 'tree.json').stat().st_mtime_ns
    assert main(arguments) == 1
    assert 'already exists: choose another name, or --force' in capsys.readouterr().err
    assert main([*arguments, '--force']) == 0
    assert (tmp_path / 'ours' / 'original' / 'tree.json').stat().st_mtime_ns != first

    # Even --force does not replace a folder that no conversion made, such as a training run.
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    assert main(['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'run'), *FLAGS, '--force']) == 1
    assert os.listdir(tmp_path / 'run') == ['checkpoints']

    back = ['convert', str(tmp_path / 'ours'), str(tmp_path / 'x.ckpt')]
    size = (tmp_path / 'x.ckpt').stat().st_size
    assert main(back) == 1
    assert (tmp_path / 'x.ckpt').stat().st_size == size
    assert main([*back, '--force']) == 0
    assert sorted(os.listdir(tmp_path)) == ['ours', 'run', 'x.ckpt']


def test_force_replaces_only_converted_checkpoints(lightning, tmp_path, capsys):
    write_torch(tmp_path / 'x.ckpt', lightning)
    for names in (['original', 'precious'], ['checkpoints', 'original', 'log.jsonl'], ['checkpoints']):
        for name in names:
            (tmp_path / 'mine' / name).mkdir(parents=True, exist_ok=True)
        assert main(['convert', str(tmp_path / 'x.ckpt'), str(tmp_path / 'mine'), *FLAGS, '--force']) == 1
        assert 'is not a converted checkpoint' in capsys.readouterr().err
        assert set(os.listdir(tmp_path / 'mine')) == set(names)
        shutil.rmtree(tmp_path / 'mine')


def test_a_failed_conversion_leaves_the_old_folder(converted, lightning, tmp_path, monkeypatch):
    shutil.copytree(converted, tmp_path / 'ours')
    write_torch(tmp_path / 'x.ckpt', lightning)
    before = sorted(str(p) for p in tmp_path.rglob('*'))
    real, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if str(target) == str(tmp_path / 'ours') and len(calls) > 1 and '.old-' not in str(source):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        from_torch(tmp_path / 'x.ckpt', tmp_path / 'ours', front_end=FRONT_END, force=True)
    assert sorted(str(p) for p in tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['nothing.ckpt', 'ours2'], 1, 'no such file: nothing.ckpt'),
        (['x.ckpt', 'y.pt'], 1, 'is for PyTorch'),
        (['ours', 'ours2'], 2, 'already'),
        (['ours', 'y.pt', '--encoder', 'e'], 2, '--encoder'),
        (['x.ckpt', 'ours2', '--encoder', 'e', *FLAGS], 2, 'already contains a query encoder: omit --encoder e'),
        (['folder', 'ours2'], 1, 'without model.safetensors'),
        (['x.ckpt', 'x.ckpt/ours', *FLAGS], 1, 'does not exist; make it first'),
        (['x.ckpt', 'ours2', '--window-size', '100'], 2, 'model.window_size'),
        (['x.ckpt', 'ours2', '--window-size', '1024'], 1, 'window 128 and not 1024'),
        (['ours', 'y.pt', '--preset', 'dcase2024-16k'], 2, '--preset'),
        (['ours', 'missing/y.pt'], 1, 'does not exist; make it first'),
        (['x.ckpt', 'ours2', *FLAGS, '--hop-size', '0'], 2, 'model.hop_size'),
        (['folder', 'y.pt'], 1, 'not a checkpoint'),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, converted, lightning, folder, capsys):
    shutil.copytree(converted, 'ours')
    write_torch('x.ckpt', lightning)
    os.mkdir('folder')
    assert main(['convert', *arguments]) == code
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert sorted(os.listdir()) == ['folder', 'ours', 'x.ckpt']


def test_a_damaged_original_is_one_line(converted, tmp_path):
    shutil.copytree(converted, tmp_path / 'ours')
    (tmp_path / 'ours' / 'original' / 'tree.json').write_text('{}')
    with pytest.raises(CheckpointError, match='convert the original file again'):
        to_torch(open_checkpoint(tmp_path / 'ours'), tmp_path / 'x.ckpt')
    assert not (tmp_path / 'x.ckpt').exists()


def test_an_encoder_of_another_size(separator, tmp_path):
    write_torch(tmp_path / 'x.pt', separator)
    smaller = {k: v[:8] if k.endswith(('projection.2.weight', 'projection.2.bias')) else v for k, v in CLAP.items()}
    write_tensors(tmp_path / 'clap.safetensors', smaller)
    encoder = str(tmp_path / 'clap.safetensors')
    with pytest.raises(CheckpointError, match='projection'):
        from_torch(tmp_path / 'x.pt', tmp_path / 'ours', front_end=FRONT_END, encoder=encoder)
    assert not (tmp_path / 'ours').exists()
