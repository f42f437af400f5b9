"""Tests that CLAP's weights are read in both namings, and that weights that do not fit are refused."""

import numpy as np
import pytest
from support.tiny_clap import (
    AUDIO,
    CONFIG,
    TEXT,
    assert_same,
    hugging_face_tensors,
    laion_tensors,
    text_and_audio,
    write_hugging_face,
    write_laion,
    write_tokenizer,
)

from audiosep_jax.encoders.clap import htsat, roberta, weights
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import write_tensors

WIDE = np.zeros((300, 32), np.float32)
BLOCK = 'audio_branch.layers.0.blocks.0'


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    return ClapEncoder.open(write_laion(tmp_path_factory.mktemp('clap')))


@pytest.fixture(scope='module')
def expected(encoder):
    return text_and_audio(encoder)


@pytest.mark.parametrize('prefix', ['module.', 'query_encoder.model.'])
def test_names_behind_a_prefix(tmp_path, encoder, expected, prefix):
    """AudioSep's checkpoints have a prefix, and the tensors of the separator."""
    other = {'ss_model.base.bn0.weight': np.ones(3, np.float32)}
    tensors = {prefix + name: value for name, value in laion_tensors().items()}
    write_tensors(tmp_path / 'all.safetensors', tensors | other)
    write_tokenizer(tmp_path)
    again = ClapEncoder.open(tmp_path / 'all.safetensors')
    assert_same(again, expected)
    assert again.identity()['weights'] == encoder.identity()['weights']


def test_a_pytorch_file(tmp_path, expected):
    from audiosep_jax.weights.torch_files import write_torch

    state = {f'query_encoder.model.{name}': value for name, value in laion_tensors().items()}
    write_torch(tmp_path / 'audiosep.ckpt', {'epoch': 3, 'state_dict': state})
    write_tokenizer(tmp_path)
    assert_same(ClapEncoder.open(tmp_path / 'audiosep.ckpt'), expected)


def test_both_namings_are_the_same_weights(tmp_path, encoder, expected):
    """They are equal except for the epsilon of RoBERTa's layer norms, which is smaller in Hugging Face's settings."""
    same = {**CONFIG, 'text_config': {**CONFIG['text_config'], 'layer_norm_eps': 1e-5}}
    again = ClapEncoder.open(write_hugging_face(tmp_path, same))
    assert (again.text, again.audio) == (encoder.text, encoder.audio)
    assert_same(again, expected)
    assert again.identity()['weights'] == encoder.identity()['weights']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'text_branch.pooler.dense.bias': None},
            r'1 tensor of CLAP missing: text_branch\.pooler\.dense\.bias; d',
        ),
        ({f'{BLOCK}.attn.qkv.weight': None}, r'1 tensor .*blocks\.0\.attn\.qkv\.weight;'),
        ({'audio_branch.bn0.running_var': np.ones(63, np.float32)}, r'bn0\.running_var \[63\] where \[64\]'),
        ({f'{BLOCK}.attn.qkv.bias': np.ones(25, np.float32)}, r'qkv\.bias \[25\] where \[8\]'),
        ({f'{BLOCK}.attn.qkv.bias': np.float32(1)}, r'qkv\.bias \[\] where \[8\]'),
        ({'text_branch.embeddings.word_embeddings.weight': WIDE}, r' \[\d+(, \d+)?\] where .* and \d+ more$'),
        ({'text_branch.embeddings.token_type_embeddings.weight': np.ones((2, 64), np.float32)}, r'\[2, 64\] where'),
        ({'audio_branch.norm.bias': np.ones(16, int)}, 'audio_branch.norm.bias of int64'),
        ({'audio_branch.patch_embed.mel_conv2d.weight': np.ones(1, np.float32)}, 'with feature fusion'),
        ({'audio_branch.conv_block1.conv1.weight': np.ones(1, np.float32)}, 'on PANN'),
        (
            {f'{BLOCK}.attn.relative_position_bias_table': np.ones((225, 3), np.float32)},
            '3 heads',
        ),
        ({'audio_branch.layers.7.blocks.0.norm1.bias': np.ones(3, np.float32)}, '8 stages'),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, changes, message):
    folder = write_laion(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        ClapEncoder.open(folder)
    assert str(folder) in str(caught.value)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_many_missing_tensors_are_counted(tmp_path):
    tensors = {name: value for name, value in laion_tensors().items() if not name.startswith('text_')}
    write_tensors(tmp_path / 'model.safetensors', tensors)
    missing = (
        r': 203 tensors of CLAP missing: (text_branch\.[\w.]+, ){2}text_branch\.[\w.]+ and 200 more; download the file'
    )
    with pytest.raises(CheckpointError, match=missing):
        ClapEncoder.open(tmp_path)


def test_missing_tensors_have_the_names_of_the_file(tmp_path):
    name = 'audio_model.audio_encoder.layers.0.blocks.0.attention.self.key.weight'
    other = 'text_projection.linear2.bias'
    folder = write_hugging_face(tmp_path, **{name: None, other: None})
    with pytest.raises(CheckpointError, match=f'2 tensors of CLAP missing: {other}, {name};'):
        ClapEncoder.open(folder)


def test_names_are_converted_and_back():
    expected = roberta.tensor_shapes(TEXT) | htsat.tensor_shapes(AUDIO)
    hugging_face = {weights._hugging_face_name(name) for name in expected}
    assert hugging_face <= set(hugging_face_tensors())
    assert {weights._laion_name(name) for name in hugging_face} == set(expected)


def test_half_precision_weights(tmp_path, expected):
    write_tensors(tmp_path / 'model.safetensors', {n: v.astype(np.float16) for n, v in laion_tensors().items()})
    write_tokenizer(tmp_path)
    assert_same(ClapEncoder.open(tmp_path), expected, atol=0.02)
