"""Counted operations and bytes against what JAX traces and what XLA counts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from audiosep_jax.models import cost
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables

SMALL = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(4, 4, 6, 6, 8, 8), condition_size=16)
FIVE_SECONDS = 160_000


def traced(config, num_samples, *, gradient=False):
    """The jaxpr of the network on one clip's spectrogram, or of its gradient."""
    variables = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    spectrum = jnp.zeros((1, 1 + num_samples // config.hop_size, 1 + config.window_size // 2), jnp.complex64)
    embedding = jnp.zeros((1, config.condition_size))

    def loss(params):
        weights = {'params': params, 'batch_stats': variables['batch_stats']}
        mask, _ = AudioSep(config).apply(
            weights, spectrum, embedding, train=True, mutable=['batch_stats'], method='mask'
        )
        return jnp.sum(jnp.abs(mask))

    stats = jax.tree.map(lambda a: jnp.zeros(a.shape), variables['batch_stats'])
    variables = {**variables, 'batch_stats': stats}
    return jax.make_jaxpr(jax.grad(loss) if gradient else loss)(variables['params']).jaxpr


def product_flops(jaxpr) -> int:
    """Operations of all convolutions and matrix products, those of inner jaxprs included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            ((contracted, _), _) = eqn.params['dimension_numbers']
            shape = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif eqn.primitive.name == 'conv_general_dilated':
            out_features = eqn.params['dimension_numbers'].rhs_spec[0]
            kernel = eqn.invars[1].aval
            total += 2 * eqn.outvars[0].aval.size * kernel.size // kernel.shape[out_features]
        if eqn.primitive.name == 'cond':  # a choice by platform, the CPU first
            total += product_flops(eqn.params['branches'][0].jaxpr)
        else:
            total += eqn.params.get('length', 1) * sum(product_flops(inner) for inner in _inner(eqn))
    return total


def _inner(eqn):
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def saved_by_joining_the_last_layers(config, *, gradient=False):
    """How many operations fewer the network takes, because it joins the last layers and the first is no product."""
    channels, maps = config.widths[0], 3
    flops = {convolution.name: convolution.flops for convolution in cost.convolutions(config, FIVE_SECONDS)}
    conv2, shortcut = flops['decoder_block6/conv2'], flops['decoder_block6/shortcut']
    kernels = 2 * maps * (9 * channels**2 + 2 * channels**2 + channels)
    others = flops['pre_conv'] + flops['after_conv'] - kernels
    if not gradient:
        return (conv2 + shortcut) * (channels - maps) // channels + others
    # The gradient of what the shortcut reads is written out as three multiplications, not as a product.
    return 3 * conv2 * (channels - maps) // channels + 3 * shortcut - 2 * shortcut * maps // channels + 3 * others


@pytest.mark.parametrize('config', [ModelConfig(), SMALL, dataclasses.replace(SMALL, hop_size=17)])
def test_forward_flops_are_those_of_the_traced_network(config):
    expected = cost.forward_flops(config, FIVE_SECONDS) - saved_by_joining_the_last_layers(config)
    assert product_flops(traced(config, FIVE_SECONDS)) == expected


@pytest.mark.parametrize('config', [ModelConfig(), SMALL])
def test_training_flops_are_those_of_the_traced_gradient(config):
    expected = cost.training_flops(config, FIVE_SECONDS) - saved_by_joining_the_last_layers(config, gradient=True)
    assert product_flops(traced(config, FIVE_SECONDS, gradient=True)) == expected


def test_the_figures_of_the_default_configuration():
    assert cost.forward_flops(ModelConfig(), FIVE_SECONDS) == pytest.approx(233e9, rel=0.01)
    assert cost.training_flops(ModelConfig(), FIVE_SECONDS) == pytest.approx(700e9, rel=0.01)
    assert cost.parameter_count(ModelConfig()) == 25_623_941


def test_kernels_hold_the_operations_of_the_layers():
    film = cost.forward_flops(SMALL, 900) - sum(convolution.flops for convolution in cost.convolutions(SMALL, 900))
    plain = sum(kernel.flops for kernel in cost.training_kernels(SMALL, 900))
    assert plain == cost.training_flops(SMALL, 900) - 2 * film
    in_blocks = [c for c in cost.convolutions(SMALL, 900) if c.layer.block.startswith(('encoder', 'decoder'))]
    again = sum(convolution.flops for convolution in in_blocks)
    repeated = dataclasses.replace(SMALL, remat='blocks')
    assert sum(kernel.flops for kernel in cost.training_kernels(repeated, 900)) == plain + again
    norms = dataclasses.replace(SMALL, remat='norms')
    assert sum(kernel.flops for kernel in cost.training_kernels(norms, 900)) == plain
    assert cost.training_bytes(SMALL, 900) < cost.training_bytes(norms, 900) < cost.training_bytes(repeated, 900)


def test_bytes_halve_in_bfloat16():
    half = dataclasses.replace(SMALL, dtype='bfloat16')
    assert 2 * cost.training_bytes(half, 900) == cost.training_bytes(SMALL, 900)
    full, short = cost.training_memory(SMALL, 900, 3), cost.training_memory(half, 900, 3)
    assert full.activations == 2 * short.activations
    assert (full.params, full.optimizer) == (short.params, short.optimizer)


def test_memory_of_a_clip_by_its_parts():
    one = cost.training_memory(ModelConfig(), FIVE_SECONDS, 1)
    assert one.params == one.gradients == 4 * 25_623_941
    assert one.optimizer == 3 * one.params
    assert one.ema == 0
    assert one.activations == pytest.approx(1.03e9, rel=0.01)
    assert one.total == one.params * 5 + one.activations + one.workspace
    four = cost.training_memory(ModelConfig(), FIVE_SECONDS, 4, shards=4, ema=True, amsgrad=False)
    assert four.activations == 4 * one.activations
    assert 4 * four.params == one.params
    assert four.ema == four.params
    assert four.optimizer == 2 * four.params


def test_remat_keeps_less_and_recomputes_one_block_at_a_time():
    plain, norms, blocks = (
        cost.training_memory(ModelConfig(remat=remat), FIVE_SECONDS, 8) for remat in ('none', 'norms', 'blocks')
    )
    assert blocks.activations < plain.activations / 3
    # Halved, except for the bottleneck, and for the full resolution, which is computed again in any case.
    assert 0.6 * plain.activations < norms.activations < 0.7 * plain.activations
    assert plain.workspace < blocks.workspace
    assert blocks.total < norms.total < plain.total


@pytest.mark.parametrize(
    ('kind', 'dtype', 'peak'),
    [
        ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.4e12),
        ('NVIDIA H100 80GB HBM3', 'tensorfloat32', 494.7e12),
        ('NVIDIA L4', 'float32', 30.3e12),
        ('TPU v5 lite', 'bfloat16', 197e12),
        ('TPU v5 lite', 'float32', None),
        ('cpu', 'float32', None),
        ('NVIDIA H1', 'bfloat16', None),
        ('NVIDIA L40', 'bfloat16', None),
    ],
)
def test_peaks_are_published_or_none(kind, dtype, peak):
    assert cost.peak_flops(kind, dtype) == peak


def test_every_device_is_named_once():
    names = [name for device in cost.DEVICES for name in device.names]
    assert len(names) == len(set(names))
    assert all(cost.find_device(name).bandwidth > 1e11 for name in names)


def test_bound_is_below_what_operations_or_bytes_alone_allow():
    config, kind = ModelConfig(dtype='bfloat16'), 'NVIDIA H200'
    bound = cost.clips_per_second_bound(config, FIVE_SECONDS, kind)
    by_operations = cost.peak_flops(kind, 'bfloat16') / cost.training_flops(config, FIVE_SECONDS)
    by_bytes = cost.find_device(kind).bandwidth / cost.training_bytes(config, FIVE_SECONDS)
    assert bound < min(by_operations, by_bytes)
    assert 1 / bound < 1 / by_operations + 1 / by_bytes
    assert cost.clips_per_second_bound(config, FIVE_SECONDS, 'cpu') is None
