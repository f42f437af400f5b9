"""The model: shapes, the properties that its users rely on, and its configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(4, 4, 6, 6, 8, 8), condition_size=16)


@pytest.fixture(scope='module')
def variables():
    """New variables with statistics and biases that are not the identity."""
    fresh = init_variables(CONFIG, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 500))
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), fresh['params'])
    return {'params': params, 'batch_stats': jax.tree.map(lambda a: a + 0.3, fresh['batch_stats'])}


# Compiled as a whole, because each new shape would cost a hundred small compilations.
separate = jax.jit(AudioSep(CONFIG).apply)


@jax.jit
def train_forward(variables, x, e):
    return AudioSep(CONFIG).apply(variables, x, e, train=True, mutable=['batch_stats'])


def mixture(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('length', [1, 31, 500, 1056])
def test_any_length_gives_that_length(variables, length):
    out = separate(variables, mixture(2, length), mixture(2, 16))
    assert out.shape == (2, length)
    assert out.dtype == jnp.float32
    assert np.isfinite(out).all()


def test_mask_never_amplifies_and_top_bin_is_silent(variables):
    spectrum = jnp.asarray(mixture(2, 40, 65) + 1j * mixture(2, 40, 65, seed=1), jnp.complex64)
    mask = jax.jit(AudioSep(CONFIG).apply, static_argnames='method')(variables, spectrum, mixture(2, 16), method='mask')
    assert mask.shape == spectrum.shape
    assert np.abs(mask).max() <= 1 + 1e-6
    assert np.abs(mask[..., :-1]).min() > 0
    assert not np.any(mask[..., -1])


def test_query_changes_the_output(variables):
    x = np.repeat(mixture(1, 800), 2, axis=0)
    one, other = separate(variables, x, mixture(2, 16) * 30)
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_rows_of_a_batch_do_not_touch_each_other_in_eval_mode(variables):
    x, e = mixture(3, 700), mixture(3, 16)
    together = separate(variables, x, e)
    alone = separate(variables, x[1:2], e[1:2])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)


@pytest.mark.parametrize('silent', ['mixture', 'weights'])
def test_gradients_are_finite_where_angles_are_undefined(variables, silent):
    params = jax.tree.map(jnp.zeros_like, variables['params']) if silent == 'weights' else variables['params']
    x = np.zeros((2, 400), np.float32) if silent == 'mixture' else mixture(2, 400)

    def loss(params):
        out, _ = train_forward({**variables, 'params': params}, x, mixture(2, 16))
        return jnp.sum(out**2)

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def test_training_updates_every_statistic_and_evaluation_none(variables):
    x, e = mixture(2, 900), mixture(2, 16)
    _, updated = train_forward(variables, x, e)
    before, after = flatten_dict(variables['batch_stats']), flatten_dict(updated['batch_stats'])
    assert before.keys() == after.keys()
    assert all(np.any(before[path] != after[path]) for path in before)
    _, untouched = jax.jit(lambda: AudioSep(CONFIG).apply(variables, x, e, mutable=['batch_stats']))()
    untouched = flatten_dict(untouched['batch_stats'])
    assert all(np.array_equal(before[path], untouched[path]) for path in before)


@pytest.mark.slow
@pytest.mark.nightly
def test_remat_changes_memory_and_nothing_else(variables):
    x, e = mixture(2, 600), mixture(2, 16)

    def gradient(remat):
        config = dataclasses.replace(CONFIG, remat=remat)

        def loss(params):
            out, _ = AudioSep(config).apply({**variables, 'params': params}, x, e, train=True, mutable=['batch_stats'])
            return jnp.sum(out**2)

        saved = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], variables['params'])
        return jax.jit(jax.grad(loss))(variables['params']), sum(array.size for array in jax.tree.leaves(saved))

    (plain, all_of_it), *others = (gradient(remat) for remat in ('none', 'norms', 'blocks'))
    norms, blocks = (kept for _, kept in others)
    # What is at the full resolution is computed again in any case.
    assert blocks < norms < 0.75 * all_of_it
    # Recomputed sums are fused and rounded differently, so the tolerance is that for the original's gradients. The
    # gradient of some biases before a norm is rounding only.
    rounding = 1e-6 * max(np.abs(g).max() for g in jax.tree.leaves(plain))
    for other, _ in others:
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=max(5e-3 * np.abs(a).max(), rounding))


def test_bfloat16_is_close_and_keeps_float32_where_it_matters(variables):
    config = ModelConfig(**{**CONFIG.__dict__, 'dtype': 'bfloat16'})
    assert {a.dtype for a in jax.tree.leaves(init_variables(config, jax.random.key(0)))} == {jnp.dtype('float32')}
    x, e = mixture(2, 800), mixture(2, 16)
    full, half = (jax.jit(AudioSep(c).apply)(variables, x, e) for c in (CONFIG, config))
    assert half.dtype == jnp.float32
    error = np.linalg.norm(full - half) / np.linalg.norm(full)
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    'settings',
    [
        {'window_size': 1000},
        {'window_size': 0},
        {'hop_size': 0},
        {'hop_size': 1025},
        {'widths': (1,)},
        {'widths': (1,) * 7},
        {'widths': (0, 1, 1, 1, 1, 1)},
        {'sample_rate': 0},
        {'dtype': 'float16'},
    ],
)
def test_impossible_configurations_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ModelConfig(**settings)
