"""Equal to the original PyTorch separator, at its full size and with identical weights: what it separates.

The golden values are described in tests/reference/README.md. The original differs from itself by 2e-7.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.parity import relative_error

from audiosep_jax.errors import CheckpointError
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables
from audiosep_jax.models.torch_names import variables_from_torch
from audiosep_jax.separation.separator import Separator

CONFIG = ModelConfig()


@pytest.fixture(scope='module')
def variables(reference_state):
    return variables_from_torch(reference_state)


def test_weights_have_the_model_s_structure(variables):
    expected = jax.eval_shape(lambda key: init_variables(CONFIG, key), jax.random.key(0))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
    assert sum(x.size for x in jax.tree.leaves(variables['params'])) == 25_623_941


@pytest.mark.parametrize('which', ['a', 'b'])
def test_eval_output(variables, reference, which):
    wave, condition = reference[f'wave_{which}'][None], reference[f'cond_{which}']
    out = jax.jit(AudioSep(CONFIG).apply)(variables, wave, condition)
    assert relative_error(out[0], reference[f'out_{which}']) < 1e-5


def test_separator_s_padded_shapes_change_nothing(variables, reference):
    """Two lengths in one compiled shape, with masked frames: still the original's output."""
    separator = Separator(CONFIG, variables)
    out = separator.separate(reference['wave_a'], reference['cond_a'], sample_rate=CONFIG.sample_rate)
    assert relative_error(out.targets[0, 0], reference['out_a']) < 1e-5
    np.testing.assert_allclose(out.residual[0], reference['wave_a'] - out.targets[0, 0], atol=1e-7)


def test_missing_tensor_is_named(reference_state):
    state = {name: tensor for name, tensor in reference_state.items() if name != 'base.after_conv.bias'}
    with pytest.raises(CheckpointError, match=r'base\.after_conv\.bias'):
        variables_from_torch(state)


@pytest.mark.parametrize(
    'name', ['base.pre_conv.weight', 'base.decoder_block1.conv1.weight', 'film.conv_block7a->conv_block1->beta2.weight']
)
def test_misshapen_tensor_is_named(reference_state, name):
    for wrong in (reference_state[name][..., :0], np.float32(1)):
        with pytest.raises(CheckpointError, match=f'{name}.*shape'):
            variables_from_torch({**reference_state, name: wrong})


def test_prefix_of_the_lightning_checkpoint(reference_state, variables):
    prefixed = {f'ss_model.{name}': tensor for name, tensor in reference_state.items()}
    again = variables_from_torch(prefixed, prefix='ss_model.')
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, again, variables)))
