"""Tests the sizes in CLIP's settings and the check of its tensors."""

import json
import re

import numpy as np
import pytest
from support.clip_reference import clip_config, clip_tensor

from audiosep_jax.encoders.clip.encoder import ClipEncoder
from audiosep_jax.encoders.clip.model import check_tensors, read_config, tensor_shapes
from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import write_tensors


def test_sizes_of_published_models():
    """The defaults fill up config.json, also in the second block of ViT-L/14's, which replaces the first."""
    base = read_config({'model_type': 'clip', 'text_config': {}, 'vision_config': {}}, 'base')
    assert (base.text.transformer.width, base.text.transformer.heads, base.embedding_size) == (512, 8, 512)
    assert (base.vision.image_size, base.vision.patch_size, base.vision.transformer.heads) == (224, 32, 12)
    assert sum(map(np.prod, tensor_shapes(base).values())) == 151_277_312
    large = read_config(
        {
            'model_type': 'clip',
            'projection_dim': 768,
            'text_config': {'eos_token_id': 2, 'hidden_size': 64},
            'text_config_dict': {'hidden_size': 768, 'intermediate_size': 3072, 'num_attention_heads': 12},
            'vision_config': {
                'hidden_size': 1024,
                'intermediate_size': 4096,
                'num_attention_heads': 16,
                'num_hidden_layers': 24,
                'patch_size': 14,
            },
            'vision_config_dict': None,
        },
        'large',
    )
    assert (large.text.transformer.width, large.text.eos_token_id) == (768, 49407)
    assert sum(map(np.prod, tensor_shapes(large).values())) == 427_616_512


@pytest.mark.parametrize(
    ('block', 'key', 'value'),
    [
        ('text_config', 'hidden_act', 'relu'),
        ('text_config', 'hidden_act', ['gelu']),
        ('text_config', 'num_hidden_layers', 10**6),
        ('text_config', 'hidden_size', -1),
        ('text_config', 'hidden_size', 10**12),
        ('text_config', 'eos_token_id', [1, 2]),
        ('vision_config', 'num_attention_heads', 5),
        ('vision_config', 'num_channels', 4),
        ('vision_config', 'patch_size', [7, 7]),
        ('vision_config', 'patch_size', 31),
        ('vision_config', 'layer_norm_eps', 'small'),
    ],
)
def test_settings_that_are_not_supported(block, key, value):
    config = clip_config('openai')
    config[block][key] = value
    with pytest.raises(CheckpointError) as caught:
        read_config(config, 'some/config.json')
    message = str(caught.value)
    assert re.match(f'some/config.json: not a CLIP that is supported: ({key}|.* is not a multiple)', message)
    assert '\n' not in message


def test_tensors_that_do_not_fit_are_counted_and_named():
    config = read_config(clip_config('openai'), 'config.json')
    state = {name: clip_tensor(name, shape) for name, shape in tensor_shapes(config).items()}
    check_tensors(state | {'logit_scale': np.zeros((), np.float32)}, config, 'file')
    del state['text_projection.weight']
    state['vision_model.encoder.layers.2.mlp.fc1.bias'] = np.zeros(80, np.float32)
    state['visual_projection.weight'] = np.zeros((24, 47), np.float32)
    state['text_model.final_layer_norm.bias'] = np.zeros(32, np.int8)
    with pytest.raises(CheckpointError) as caught:
        check_tensors(state, config, 'file')
    assert str(caught.value) == (
        'file: not the CLIP that its config.json describes: 1 tensors missing (text_projection.weight); '
        '1 tensors unknown (vision_model.encoder.layers.2.mlp.fc1.bias); '
        '1 tensors of another shape (visual_projection.weight: (24, 47) instead of (24, 48)); '
        '1 tensors not of floats (text_model.final_layer_norm.bias: int8)'
    )


def test_weights_of_another_model_are_refused_when_they_are_opened(tmp_path):
    config = clip_config('openai')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    write_tensors(tmp_path / 'model.safetensors', {'x': np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=f'{tmp_path}.*tensors missing'):
        ClipEncoder.open(tmp_path)
