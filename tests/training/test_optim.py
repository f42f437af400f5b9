"""Golden values: torch.optim.AdamW with amsgrad, float64 (tests/reference/amsgrad_reference.npz)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import REFERENCE

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.errors import ConfigError
from audiosep_jax.training.optim import OptimizerConfig, make_optimizer, make_schedule, scale_by_amsgrad

GOLDEN = REFERENCE / 'amsgrad_reference.npz'
few = settings(max_examples=10)


def run(config, gradients, start=0.0, total_steps=100):
    """The parameter, a scalar in a tree, after each of the gradients."""
    optimizer = make_optimizer(config, total_steps)
    params = {'w': jnp.float32(start)}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update({'w': gradient}, state, params)
        return optax.apply_updates(params, updates), state

    path = []
    for gradient in gradients:
        params, state = step(params, state, jnp.float32(gradient))
        path.append(float(params['w']))
    return np.array(path)


def adamw(gradients, start, rate, b1, b2, eps, decay, amsgrad):
    """torch.optim.AdamW's documented algorithm in float64."""
    w, m, v, v_max, path = float(start), 0.0, 0.0, 0.0, []
    for t, g in enumerate(map(float, gradients), 1):
        w -= rate * decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        v_max = max(v_max, v) if amsgrad else v
        w -= rate * (m / (1 - b1**t)) / (np.sqrt(v_max) / np.sqrt(1 - b2**t) + eps)
        path.append(w)
    return np.array(path)


@pytest.mark.parametrize('b2', [0.9, 0.999])
def test_amsgrad_is_pytorchs(b2):
    with np.load(GOLDEN) as golden:
        path = run(OptimizerConfig(schedule='constant', b2=b2), golden['gradients'])
        np.testing.assert_allclose(path, golden[f'parameter_after_step_beta2_{b2}'], rtol=1e-6)


@few
@given(
    gradients=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    decay=st.sampled_from([0.0, 0.1]),
    amsgrad=st.booleans(),
)
def test_steps_are_adamws_for_any_gradients(gradients, decay, amsgrad):
    config = OptimizerConfig(learning_rate=1e-2, schedule='constant', weight_decay=decay, amsgrad=amsgrad)
    expected = adamw(gradients, 2.0, 1e-2, 0.9, 0.999, 1e-8, decay, amsgrad)
    np.testing.assert_allclose(run(config, gradients, start=2.0), expected, rtol=2e-6)


def test_the_correction_for_bias_keeps_float32_precision():
    # 1 - 0.999 ** 1 as a difference in float32 has an error of 3e-5; without eps the first step is the sign.
    transform = scale_by_amsgrad(b1=0.0, b2=0.999, eps=1e-30)
    updates, state = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
    np.testing.assert_allclose(updates, 1.0, rtol=3e-7)
    assert state.count == 1


def test_zero_gradients_from_the_start_move_nothing():
    np.testing.assert_array_equal(run(OptimizerConfig(schedule='constant'), [0.0] * 3, start=0.5), 0.5)


def test_the_state_keeps_the_type_of_the_parameters():
    params = {'a': jnp.zeros([2, 3]), 'b': jnp.zeros([4])}
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = optimizer.init(params)
    _, after = optimizer.update(params, state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


def test_staircase_is_the_originals():
    schedule = make_schedule(OptimizerConfig(warmup_steps=10), 1000)
    steps = np.array([0, 9, 10, 19, 20, 29, 30, 999])
    # constant_warm_up of optimizers/lr_schedulers.py
    expected = 1e-3 * np.array([0.001, 0.001, 0.01, 0.01, 0.1, 0.1, 1, 1])
    np.testing.assert_allclose([schedule(s) for s in steps], expected, rtol=1e-6)
    np.testing.assert_allclose([jax.jit(schedule)(s) for s in steps], expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['staircase', 'constant'])
def test_without_warmup_the_rate_is_full_from_the_first_step(name):
    schedule = make_schedule(OptimizerConfig(schedule=name, warmup_steps=0), 5)
    np.testing.assert_allclose([schedule(s) for s in (0, 1, 4)], 1e-3, rtol=1e-6)


def test_constant_ignores_the_warmup():
    np.testing.assert_allclose(make_schedule(OptimizerConfig(schedule='constant'), 5)(0), 1e-3, rtol=1e-6)


@pytest.mark.parametrize('warmup', [0, 1, 8])
def test_cosine_rises_then_falls_to_nothing(warmup):
    schedule = make_schedule(OptimizerConfig(schedule='cosine', warmup_steps=warmup, learning_rate=0.5), 40)
    rates = np.array([schedule(s) for s in range(41)])
    assert np.all(np.diff(rates[: max(warmup, 1)]) > 0)
    assert np.all(np.diff(rates[warmup:]) < 0)
    np.testing.assert_allclose(rates[max(warmup - 1, 0)], 0.5, rtol=1e-6)
    np.testing.assert_allclose(rates[(40 + warmup) // 2], 0.25, atol=0.02)
    assert rates[39] > 0
    np.testing.assert_allclose(rates[40], 0, atol=1e-7)
    assert schedule(1000) == rates[40]


def test_the_schedule_counts_updates_from_zero():
    # The first stair is a thousandth of the rate, and Adam's first step is the rate times the gradient's sign.
    path = run(OptimizerConfig(learning_rate=1.0, warmup_steps=1, amsgrad=True), [1.0] * 4)
    np.testing.assert_allclose(np.diff(path, prepend=0), [-0.001, -0.01, -0.1, -1], rtol=1e-5)


def test_clipping_bounds_the_global_norm_and_spares_small_gradients():
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, b1=0.0), 10)
    params = {'a': jnp.zeros([2]), 'b': jnp.zeros([1])}

    def first_moment(gradients):
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        return optax.tree.get(state, 'mu')

    clipped = first_moment({'a': jnp.array([3.0, 0.0]), 'b': jnp.array([-4.0])})
    np.testing.assert_allclose(clipped['a'], [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped['b'], [-0.8], rtol=1e-6)
    small = {'a': jnp.array([0.3, 0.0]), 'b': jnp.array([-0.4])}
    np.testing.assert_array_equal(first_moment(small)['b'], small['b'])


def test_clipping_is_off_by_default():
    optimizer = make_optimizer(OptimizerConfig(b1=0.0), 10)
    _, state = optimizer.update(jnp.float32(1e4), optimizer.init(jnp.float32(0)), jnp.float32(0))
    assert optax.tree.get(state, 'mu') == 1e4


@pytest.mark.parametrize(
    'values',
    [
        {'learning_rate': 0.0},
        {'learning_rate': float('nan')},
        {'schedule': 'linear'},
        {'warmup_steps': -1},
        {'b1': 1.0},
        {'b2': -0.1},
        {'eps': 0.0},
        {'weight_decay': -1e-3},
        {'clip_norm': float('inf')},
    ],
)
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=next(iter(values))) as refused:
        OptimizerConfig(**values)
    assert '\n' not in str(refused.value)


def test_a_cosine_that_never_leaves_its_warmup_is_refused():
    with pytest.raises(ConfigError, match=r'lower warmup_steps \(--optimizer\.warmup-steps\)'):
        make_optimizer(OptimizerConfig(schedule='cosine', warmup_steps=10), 10)
    with pytest.raises(ConfigError, match='at least 1 step'):
        make_schedule(OptimizerConfig(), 0)


def test_configuration_survives_the_way_through_json():
    config = OptimizerConfig(schedule='cosine', warmup_steps=5, clip_norm=1.0)
    assert from_dict(OptimizerConfig, to_dict(config)) == config
