"""The original's state dict and ours: the same numbers, in both directions."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from audiosep_jax.errors import CheckpointError
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.torch_names import (
    check_tensors,
    sizes_from_torch,
    tensors_from_variables,
    torch_tensors,
    variables_from_torch,
)

SMALL = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(1, 2, 2, 3, 3, 4), condition_size=8)


@pytest.fixture(scope='module')
def small():
    variables = jax.device_get(init_variables(SMALL, jax.random.key(0)))
    keys = iter(range(10_000))
    return jax.tree.map(lambda a: np.random.default_rng(next(keys)).standard_normal(a.shape).astype('f4'), variables)


def test_names_shapes_and_order_are_the_original_s(reference):
    entries = zip(reference['state_names'], reference['state_shapes'], strict=True)
    expected = [(str(name), tuple(json.loads(str(shape)))) for name, shape in entries]
    assert [(t.name, t.shape) for t in torch_tensors(ModelConfig())] == expected
    assert len(expected) == 332


def test_every_leaf_of_ours_is_covered_once(small):
    covered = {}
    for tensor in torch_tensors(SMALL):
        if tensor.path is not None:
            covered[tensor.path] = covered.get(tensor.path, 0) + int(np.prod(tensor.shape))
    assert covered == {path: leaf.size for path, leaf in flatten_dict(small).items()}


def test_there_and_back_is_bit_exact(small):
    state = tensors_from_variables(small, SMALL, step=7)
    assert list(state) == [t.name for t in torch_tensors(SMALL)]
    again = variables_from_torch({f'ss_model.{k}': v for k, v in state.items()}, prefix='ss_model.')
    jax.tree.map(np.testing.assert_array_equal, again, small)
    assert sizes_from_torch(state) == {
        'window_size': 128,
        'widths': SMALL.widths,
        'condition_size': SMALL.condition_size,
    }


def test_what_ours_has_not_is_a_fresh_original_s(small):
    state = tensors_from_variables(small, SMALL, step=7)
    assert state['base.bn0.num_batches_tracked'] == 7
    assert state['base.bn0.num_batches_tracked'].dtype == np.int64
    np.testing.assert_array_equal(state['base.decoder_block1.bn2.running_var'], 1)
    np.testing.assert_array_equal(state['film.decoder_block1->beta2.weight'], 0)


def test_the_dft_matrices_analyse_and_synthesise(small):
    state = tensors_from_variables(small, SMALL)
    x = np.random.default_rng(0).standard_normal(128)
    window = np.hanning(129)[:-1]
    spectrum = np.fft.rfft(x * window)
    np.testing.assert_allclose(state['base.stft.conv_real.weight'][:, 0] @ x, spectrum.real, atol=1e-5)
    np.testing.assert_allclose(state['base.stft.conv_imag.weight'][:, 0] @ x, spectrum.imag, atol=1e-5)
    # The inverse: of the full spectrum, windowed once more; the imaginary matrix is subtracted.
    full = np.fft.fft(x * window)
    real, imag = (state[f'base.istft.conv_{part}.weight'][:, :, 0] for part in ('real', 'imag'))
    np.testing.assert_allclose(real @ full.real - imag @ full.imag, x * window**2, atol=1e-6)
    np.testing.assert_allclose(state['base.istft.ola_window'], window**2, atol=1e-7)


def test_half_precision_is_read(small):
    state = tensors_from_variables(small, SMALL)
    half = {k: v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v for k, v in state.items()}
    kernel = variables_from_torch(half)['params']['resunet']['film']['kernel']
    assert kernel.dtype == np.float32
    rounded = small['params']['resunet']['film']['kernel'].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(kernel, rounded)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda s: without(s, 'base.pre_conv.bias'), '1 missing (base.pre_conv.bias)'),
        (lambda s: without(s, 'base.decoder_block1.bn2.bias'), '1 missing (base.decoder_block1.bn2.bias)'),
        (lambda s: s | {'base.extra.weight': np.zeros(3)}, '1 unknown (base.extra.weight)'),
        (
            lambda s: s | {'base.pre_conv.weight': np.zeros((2, 1, 1, 1))},
            '1 misshapen (base.pre_conv.weight is [2, 1, 1, 1] and should be [1, 1, 1, 1])',
        ),
        (lambda s: {k: v for k, v in s.items() if not k.startswith('film.')}, 'and '),
    ],
)  # fmt: skip
def test_a_report_of_what_does_not_fit(small, change, says):
    state = change(tensors_from_variables(small, SMALL))
    with pytest.raises(CheckpointError) as error:
        check_tensors({name: value.shape for name, value in state.items()}, SMALL)
    assert says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'change',
    [
        lambda s: without(s, 'base.after_conv.bias'),
        lambda s: without(s, 'base.bn0.weight'),
        lambda s: s | {'base.bn0.weight': np.zeros((), 'f4')},
        lambda s: s | {'base.after_conv.bias': np.zeros(4, 'f4')},
        lambda s: s | {'base.after_conv.bias': np.zeros(3, 'i4')},
    ],
)
def test_weights_that_do_not_fit_are_one_line(small, change):
    with pytest.raises(CheckpointError, match='base'):
        variables_from_torch(change(tensors_from_variables(small, SMALL)))
