"""Compares CLIP with recorded outputs of transformers, and tests its texts, images, files and identity."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from support import clip_reference
from support.clip_reference import BEGIN, END, clip_config, clip_tensor, token_ids
from support.paths import REFERENCE

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.clip import model as clip_model
from audiosep_jax.encoders.clip.encoder import ClipEncoder
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import CheckpointError, DownloadError, QueryError
from audiosep_jax.weights.tensor_files import write_tensors


@pytest.fixture(scope='session')
def golden():
    with np.load(REFERENCE / 'clip_reference.npz') as archive:
        return dict(archive)


@pytest.fixture(scope='session')
def states(golden):
    """The state dicts behind the recorded outputs by kind, including the logit scale."""
    return {
        kind: {
            str(name): clip_tensor(str(name), tuple(json.loads(str(shape))))
            for name, shape in zip(golden[f'{kind}_names'], golden[f'{kind}_shapes'], strict=True)
        }
        for kind in clip_reference.CONFIGS
    }


@pytest.fixture(scope='session')
def folders(states, tmp_path_factory):
    """Folders by kind, with the files that Hugging Face's repositories have."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    pieces = ['do', 'dog</w>', 'ra', 'rai', 'rain</w>', 'ca']
    tokens = [*alphabet, *(f'{c}</w>' for c in alphabet), *pieces, '<|startoftext|>', '<|endoftext|>']
    merges = '#version: 0.2\nd o\ndo g</w>\nr a\nra i\nrai n</w>\nc a\n'
    folders = {}
    for kind, state in states.items():
        folder = folders[kind] = tmp_path_factory.mktemp(f'clip_{kind}')
        (folder / 'config.json').write_text(json.dumps(clip_config(kind)))
        (folder / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / 'merges.txt').write_text(merges)
        write_tensors(folder / 'model.safetensors', state)
    return folders


@pytest.fixture(scope='session')
def encoder(folders):
    return ClipEncoder.open(folders['openai'], source='openai/tiny')


@pytest.fixture
def writable(folders, tmp_path):
    """A copy of the folder that a test may change."""
    for file in folders['openai'].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('kind', ['openai', 'laion'])
def test_embeddings_are_those_of_transformers(golden, folders, kind):
    encoder = ClipEncoder.open(folders[kind])
    text, image = golden[f'{kind}_text'], golden[f'{kind}_image']
    np.testing.assert_allclose(encoder.encode_token_ids(*token_ids()), unit(text), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_image(clip_reference.images()), unit(image), atol=1e-6)


def test_raw_embeddings_on_request(golden, folders):
    raw = ClipEncoder.open(folders['openai'], normalize=False)
    np.testing.assert_allclose(raw.encode_token_ids(*token_ids()), golden['openai_text'], atol=1e-5)
    np.testing.assert_allclose(raw.encode_image(clip_reference.images()), golden['openai_image'], atol=1e-5)
    assert raw.identity()['normalize'] is False


def test_text_and_images_are_float32_of_length_one(encoder):
    for embeddings in (encoder.encode_text(['a dog', 'rain']), encoder.encode_image(clip_reference.images()[:2])):
        assert embeddings.shape == (2, encoder.embedding_size)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


def test_padding_changes_nothing(encoder):
    """Its length, its ids and its mask do not matter, because tokens after the end are never seen."""
    ids, mask = token_ids()
    expected = encoder.encode_token_ids(ids, mask)
    np.testing.assert_array_equal(encoder.encode_token_ids(ids), expected)
    rubbish = np.where(mask == 1, ids, np.random.default_rng(3).integers(0, BEGIN, ids.shape))
    np.testing.assert_array_equal(encoder.encode_token_ids(rubbish), expected)
    for row in (0, 3):
        length = mask[row].sum()
        alone = encoder.encode_token_ids(ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(alone[0], expected[row], atol=1e-6)


def test_all_padded_lengths_give_the_same_embeddings(encoder):
    """The tower gives the same for 16 tokens and for the same tokens padded to 77."""
    ids, mask = (array[:2].astype(np.int32) for array in token_ids())
    end = np.array([1, 2], np.int32)
    tower = encoder._text_tower
    np.testing.assert_allclose(tower(ids[:, :16], mask[:, :16], end), tower(ids, mask, end), atol=1e-6)


def test_a_masked_word_is_not_seen(encoder):
    ids, mask = (array[3:4].copy() for array in token_ids())
    mask[0, 5] = 0
    hidden = encoder.encode_token_ids(ids, mask)
    assert np.abs(hidden - encoder.encode_token_ids(ids)).max() > 1e-3
    ids[0, 5] = 7
    np.testing.assert_array_equal(encoder.encode_token_ids(ids, mask), hidden)


def test_each_rule_of_where_a_text_ends(states, writable):
    """Id 2 in old files means the largest id. Any other id means its first place, even behind larger ids."""
    config = clip_config('openai')
    config['text_config']['eos_token_id'] = 300
    (writable / 'other').mkdir()
    (writable / 'other' / 'config.json').write_text(json.dumps(config))
    write_tensors(writable / 'other' / 'model.safetensors', states['openai'])
    ids = np.array([[BEGIN, 5, 300, 2, END, 300]])
    by_id, by_size = ClipEncoder.open(writable / 'other'), ClipEncoder.open(writable)
    np.testing.assert_array_equal(by_id.encode_token_ids(ids), by_id.encode_token_ids(ids[:, :3]))
    np.testing.assert_array_equal(by_size.encode_token_ids(ids), by_size.encode_token_ids(ids[:, :5]))
    assert np.abs(by_id.encode_token_ids(ids) - by_size.encode_token_ids(ids)).max() > 1e-3


def test_many_texts_are_the_same_as_each(encoder):
    rng = np.random.default_rng(5)
    ids = rng.integers(0, BEGIN, (67, 9))
    ids[:, 0], ids[:, -1] = BEGIN, END
    many = encoder.encode_token_ids(ids)
    for row in (0, 63, 64, 66):
        np.testing.assert_allclose(encoder.encode_token_ids(ids[row : row + 1])[0], many[row], atol=1e-6)


def test_text_is_tokenized_and_cut_before_its_end_token(encoder):
    from audiosep_jax.encoders.tokenizer import open_tokenizer

    dog = open_tokenizer(encoder._folder, 'clip').encode(['dog'], 77)[0][0, 1]
    expected = encoder.encode_token_ids([[BEGIN, dog, END], [BEGIN, dog, END]])
    np.testing.assert_array_equal(encoder.encode_text(['dog', '  DOG ']), expected)
    longest = encoder.encode_token_ids([[BEGIN, *[dog] * 75, END]])
    np.testing.assert_array_equal(encoder.encode_text(['dog ' * 200]), longest)


def test_all_kinds_of_images_agree(encoder, tmp_path):
    array = clip_reference.images()[1]
    image = PIL.Image.fromarray(array)
    image.save(tmp_path / 'dog.png')
    same = encoder.encode_image([array, image, tmp_path / 'dog.png', str(tmp_path / 'dog.png')])
    np.testing.assert_allclose(same, np.broadcast_to(same[0], same.shape), atol=1e-6)


def test_all_transfers_to_the_device_are_explicit(encoder):
    """Training runs under the same guard, which makes implicit transfers an error."""
    with jax.transfer_guard('disallow'):
        assert np.isfinite(encoder.encode_text(['dog'])).all()
        assert np.isfinite(encoder.encode_image(clip_reference.images()[:1])).all()


def test_no_queries_give_no_rows(encoder):
    empty = (0, encoder.embedding_size)
    assert encoder.encode_text([]).shape == empty
    assert encoder.encode_image([]).shape == empty
    assert encoder.encode_token_ids(np.zeros((0, 5), int)).shape == empty


def test_each_tower_is_loaded_on_first_use(folders, monkeypatch):
    loaded = []

    def recording(tensors, prefix, names):
        loaded.append(prefix.split('_')[0])
        return load(tensors, prefix, names)

    load = clip_model.load_parameters
    monkeypatch.setattr(clip_model, 'load_parameters', recording)
    encoder = ClipEncoder.open(folders['openai'])
    encoder.identity()
    assert loaded == []
    encoder.encode_text(['dog'])
    assert set(loaded) == {'text'}
    encoder.encode_image(clip_reference.images()[:1])
    assert set(loaded) == {'text', 'vision', 'visual'}
    count = len(loaded)
    encoder.encode_text(['rain'])
    encoder.encode_image(clip_reference.images()[:1])
    assert len(loaded) == count


def test_a_file_of_weights_is_opened_with_the_settings_beside_it(folders, encoder):
    single = ClipEncoder.open(folders['openai'] / 'model.safetensors', source='openai/tiny')
    assert single.identity() == encoder.identity()


def test_identity_has_everything_that_the_embeddings_depend_on(encoder, folders):
    identity = encoder.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert {key: identity[key] for key in ('name', 'version', 'embedding_size', 'source', 'normalize')} == {
        'name': 'clip',
        'version': 1,
        'embedding_size': 24,
        'source': 'openai/tiny',
        'normalize': True,
    }
    assert len(bytes.fromhex(identity['weights'])) == 8
    assert isinstance(encoder, QueryEncoder)


def test_identity_finds_the_encoder_again(folders):
    raw = ClipEncoder.open(folders['laion'], source=str(folders['laion']), normalize=False)
    again = load_encoder(raw.identity())
    assert again.identity() == raw.identity()
    np.testing.assert_array_equal(again.encode_text(['rain']), raw.encode_text(['rain']))


def test_the_fingerprint_depends_on_the_weights_and_not_on_their_file(states, folders, encoder, writable):
    from audiosep_jax.weights.torch_files import write_torch

    (writable / 'model.safetensors').unlink()
    state = {name: states['openai'][name] for name in reversed(states['openai'])}
    state['logit_scale'] = np.array(9, np.float32)  # not used
    state['text_model.embeddings.position_ids'] = np.arange(77)[None]
    write_torch(writable / 'pytorch_model.bin', state)
    assert ClipEncoder.open(writable).identity()['weights'] == encoder.identity()['weights']

    name = 'vision_model.encoder.layers.1.mlp.fc2.bias'
    changed = state | {name: state[name] + np.float32(1e-3)}
    write_torch(writable / 'pytorch_model.bin', changed)
    assert ClipEncoder.open(writable).identity()['weights'] != encoder.identity()['weights']


@pytest.mark.parametrize(
    ('file', 'settings'),
    [
        ('config.json', clip_config('openai') | {'text_config': clip_config('laion')['text_config']}),
        ('preprocessor_config.json', {'size': {'shortest_edge': 32}, 'crop_size': 30}),
    ],
)
def test_the_fingerprint_depends_on_the_settings(encoder, writable, file, settings):
    (writable / file).write_text(json.dumps(settings))
    assert ClipEncoder.open(writable).identity()['weights'] != encoder.identity()['weights']


def test_half_precision_files_are_computed_in_single(states, writable):
    ids, mask = token_ids()
    half = {name: value.astype(np.float16) for name, value in states['openai'].items()}
    write_tensors(writable / 'model.safetensors', half)
    from_half = ClipEncoder.open(writable).encode_token_ids(ids, mask)
    write_tensors(writable / 'model.safetensors', {name: value.astype(np.float32) for name, value in half.items()})
    np.testing.assert_array_equal(ClipEncoder.open(writable).encode_token_ids(ids, mask), from_half)


def test_a_tokenizer_that_is_missing_is_fetched_once(folders, writable, monkeypatch):
    for name in ('vocab.json', 'merges.txt'):
        (writable / name).rename(writable / f'elsewhere_{name}')
    fetched = []

    def fetch(repository, filename, *, place):
        fetched.append((repository, filename, place))
        folder = writable / 'cache'
        folder.mkdir(exist_ok=True)
        from audiosep_jax.encoders.tokenizer import open_tokenizer

        open_tokenizer(folders['openai'], 'clip')._backend.save(str(folder / filename))
        return folder / filename

    monkeypatch.setattr('audiosep_jax.weights.hub.fetch', fetch)
    expected = ClipEncoder.open(folders['openai']).encode_text(['a dog'])
    encoder = ClipEncoder.open(writable, source='organisation/own')
    np.testing.assert_array_equal(encoder.encode_text(['a dog']), expected)
    assert fetched == [('organisation/own', 'tokenizer.json', writable / 'tokenizer.json')]
    np.testing.assert_array_equal(ClipEncoder.open(writable).encode_text(['a dog']), expected)
    assert len(fetched) == 1
    (writable / 'tokenizer.json').unlink()
    ClipEncoder.open(writable).encode_text(['a dog'])
    assert fetched[1][0] == 'openai/clip-vit-base-patch32'


def test_offline_without_a_tokenizer_says_where_to_put_it(writable, monkeypatch):
    (writable / 'vocab.json').unlink()
    monkeypatch.setenv('HF_HUB_CACHE', str(writable / 'cache'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(writable / 'cache'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    encoder = ClipEncoder.open(writable)
    with pytest.raises(DownloadError, match=r'tokenizer\.json') as caught:
        encoder.encode_text(['a dog'])
    assert str(writable / 'tokenizer.json') in str(caught.value)


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        ClipEncoder.open(path)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_folder_and_no_settings(tmp_path):
    refused(tmp_path / 'none', 'no such file or folder')
    refused(tmp_path, r'no config\.json')


@pytest.mark.parametrize(
    ('config', 'match'),
    [
        ('{', 'config.json: not valid JSON: Expecting property name'),
        ('[]', 'not the settings of a model'),
        ('{"model_type": "clap", "text_config": {}, "audio_config": {}}', "type 'clap', not CLIP"),
        ('{"model_type": "siglip", "text_config": {}, "vision_config": {}}', "type 'siglip', not CLIP"),
        ('{}', 'type None, not CLIP'),
        ('{"model_type": "clip", "text_config": 3}', 'not CLIP'),
    ],
)
def test_settings_of_other_models(writable, config, match):
    (writable / 'config.json').write_text(config)
    refused(writable, match)


def test_weights_that_give_nan_are_refused(states, writable):
    state = states['openai'] | {'text_projection.weight': np.full((24, 32), np.nan, np.float32)}
    write_tensors(writable / 'model.safetensors', state)
    with pytest.raises(CheckpointError, match='not finite'):
        ClipEncoder.open(writable).encode_text(['dog'])


def test_a_tokenizer_of_another_model(writable):
    vocabulary = json.loads((writable / 'vocab.json').read_text())
    (writable / 'vocab.json').write_text(json.dumps(vocabulary | {'more': len(vocabulary)}))
    with pytest.raises(CheckpointError, match='do not belong together'):
        ClipEncoder.open(writable).encode_text(['dog'])


@pytest.mark.parametrize(
    ('ids', 'mask', 'match'),
    [
        ([BEGIN, END], None, r'\[Q, L\]'),
        ([[BEGIN, END]], [[1]], r'\[Q, L\]'),
        ([[0.5, 1.5]], None, 'float64'),
        ([[BEGIN, 5, END], [BEGIN, END]], None, 'inhomogeneous'),
        ([[BEGIN] * 78], None, '78 tokens'),
        ([[]], np.zeros((1, 0), int), r'\[Q, L\]|0 tokens'),
        ([[BEGIN, 520]], None, 'vocabulary'),
        ([[BEGIN, -1]], None, 'vocabulary'),
    ],
)
def test_wrong_token_ids_are_refused(encoder, ids, mask, match):
    with pytest.raises(QueryError, match=match):
        encoder.encode_token_ids(ids, mask)


def test_empty_queries_are_refused(encoder, tmp_path):
    with pytest.raises(QueryError, match='empty query'):
        encoder.encode_text(['dog', ' '])
    with pytest.raises(QueryError, match='put it into a list'):
        encoder.encode_image('dog.png')
    with pytest.raises(QueryError, match=str(tmp_path / 'dog.png')):
        encoder.encode_image([clip_reference.images()[0], tmp_path / 'dog.png'])
    with pytest.raises(QueryError, match='image 2 of 2: expected'):
        encoder.encode_image([clip_reference.images()[0], None])


def test_nothing_heavy_is_imported():
    code = (
        'import sys, audiosep_jax.encoders.clip.encoder\n'
        'print([m for m in ("torch", "tensorflow", "transformers", "PIL", "tokenizers") if m in sys.modules])'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'
