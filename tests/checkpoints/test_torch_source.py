"""Files of the original code: which one is meant, which step it records, and which tensors belong to what."""

import numpy as np
import pytest

from audiosep_jax.checkpoints.torch_source import TorchSource, clap_tensors, find_source, group_tensors, read_source
from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import write_tensors
from audiosep_jax.weights.torch_files import write_torch

ONE = np.ones(1, np.float32)
CLAP_NAME = 'text_branch.embeddings.word_embeddings.weight'


def test_a_folder_means_its_weights(tmp_path, offline):
    (tmp_path / 'pytorch_model.bin').touch()
    assert find_source(str(tmp_path), place='there') == tmp_path / 'pytorch_model.bin'
    (tmp_path / 'model.safetensors').touch()
    assert find_source(str(tmp_path), place='there') == tmp_path / 'model.safetensors'
    assert find_source(str(tmp_path / 'pytorch_model.bin'), place='there') == tmp_path / 'pytorch_model.bin'
    for missing, message in ((tmp_path / 'x.ckpt', 'no such file'), (tmp_path.parent, 'is a folder without')):
        with pytest.raises(CheckpointError, match=message):
            find_source(str(missing), place='there')


def test_a_repository_means_its_only_weights(offline):
    snapshot = offline('some/thing', {'a.ckpt': '', 'README.md': ''})
    assert find_source('some/thing', place='there') == snapshot / 'a.ckpt'
    offline('some/thing', {'b.ckpt': ''})
    with pytest.raises(CheckpointError, match=r'several checkpoints \(a.ckpt, b.ckpt\): choose some/thing:FILE'):
        find_source('some/thing', place='there')
    assert find_source('some/thing:b.ckpt', place='there') == snapshot / 'b.ckpt'
    offline('some/thing', {'model.safetensors': ''})
    assert find_source('some/thing', place='there') == snapshot / 'model.safetensors'


@pytest.mark.parametrize(
    ('recorded', 'step'), [(12, 12), (0, 0), (-1, 0), (None, 0), ('12', 0), (1.5, 0), (1 << 62, 0)]
)
def test_the_step_of_a_training_checkpoint(tmp_path, recorded, step):
    write_torch(tmp_path / 'x.ckpt', {'global_step': recorded, 'state_dict': {'a': ONE}})
    source = read_source(tmp_path / 'x.ckpt')
    assert (source.step, source.state_key, list(source.tensors), source.metadata) == (step, 'state_dict', ['a'], {})


def test_the_step_of_a_safetensors_file(tmp_path):
    write_tensors(tmp_path / 'x.safetensors', {'a': ONE}, {'audiosep_jax.step': '12'})
    source = read_source(tmp_path / 'x.safetensors')
    assert (source.step, source.tree, source.metadata) == (12, None, {'audiosep_jax.step': '12'})


def source_of(names):
    return TorchSource('x.pt', {}, None, dict.fromkeys(names, ONE))


def grouped(names):
    return group_tensors(source_of(names))


def test_tensors_are_grouped_by_their_prefixes():
    film = 'film.encoder_block1->conv_block1->beta1.weight'
    groups = grouped(['ss_model.base.bn0.weight', f'ss_model.{film}', f'clap.{CLAP_NAME}', 'clap.logit_scale_a'])
    assert (set(groups.separator), groups.separator_prefix) == ({'base.bn0.weight', film}, 'ss_model.')
    assert (set(groups.encoder), groups.encoder_prefix) == ({CLAP_NAME, 'logit_scale_a'}, 'clap.')
    bare = grouped(['base.bn0.weight', film])
    assert (set(bare.separator), bare.separator_prefix, bare.encoder, bare.encoder_prefix) == (
        {'base.bn0.weight', film}, '', {}, '',
    )  # fmt: skip


def test_other_tensors_are_refused():
    with pytest.raises(
        CheckpointError, match=r'^x\.pt: 1 unknown tensors, neither of the separator nor of CLAP: other'
    ):
        grouped(['base.bn0.weight', 'other'])
    for names in (['other', CLAP_NAME], ['other']):
        with pytest.raises(CheckpointError, match=r'^x\.pt: not a separator of the original code'):
            grouped(names)
    assert group_tensors(source_of(['base.bn0.weight', 'other']), ignore_unknown=True).ignored == ('other',)


def test_an_encoder_is_no_separator():
    for name, kind in (('audio_branch.bn0.weight', 'CLAP'), ('vision_model.embeddings.class_embedding', 'CLIP')):
        with pytest.raises(CheckpointError, match=f'not a separator of the original code but {kind}, a query encoder'):
            grouped([name])


def test_a_moving_average_is_not_taken_for_the_separator():
    for average in ('ema_model.module.', 'ss_model_ema.'):
        names = [f'{average}base.bn0.weight', 'ss_model.base.bn0.weight']
        for ordered in (names, names[::-1]):
            groups = group_tensors(source_of(ordered), ignore_unknown=True)
            assert (groups.separator_prefix, groups.ignored) == ('ss_model.', (f'{average}base.bn0.weight',))
    assert grouped(['ema.base.bn0.weight']).separator_prefix == 'ema.'
    assert grouped(['cinema.base.bn0.weight', 'schema.base.bn0.weight'][:1]).separator_prefix == 'cinema.'


def test_clap_tensors_lose_their_prefix():
    assert set(clap_tensors({f'module.{CLAP_NAME}': ONE, 'module.x': ONE})) == {CLAP_NAME, 'x'}
    assert clap_tensors({'text_model.embeddings.word_embeddings.weight': ONE}) == {}
