"""Where arrays lie, and that it changes nothing but who computes what."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import AudioSep, ModelConfig
from audiosep_jax.parallel.mesh import (
    MeshConfig,
    make_mesh,
    on_this_process,
    place_of_process,
    put_batch,
    replicated,
    state_shardings,
)
from audiosep_jax.training.config import check_batch_size
from audiosep_jax.training.losses import l1_waveform
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig, make_optimizer
from audiosep_jax.training.train_step import init_state, make_train_step

MODEL = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(4, 4, 4, 4, 4, 4), condition_size=16)
BATCH_SIZE = 16


def abstract_state(model, ema=True):
    optimizer = make_optimizer(OptimizerConfig(schedule='constant'), 3)
    return jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), ema=ema))


def test_mesh_of_two_axes():
    assert dict(make_mesh().shape) == {'data': 8, 'fsdp': 1}
    mesh = make_mesh(MeshConfig(fsdp=4))
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 4}
    assert [device.id for device in mesh.devices[0]] == [0, 1, 2, 3], 'neighbours share the weights'
    with pytest.raises(ConfigError, match='does not divide 8 devices: use one of 1, 2, 4, 8'):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match='at least 1'):
        MeshConfig(fsdp=0)


def test_weights_optimizer_and_average_are_split_alike():
    mesh = make_mesh(MeshConfig(fsdp=4))
    state = abstract_state(ModelConfig())
    shardings = state_shardings(state, mesh)
    kernel = ('resunet', 'encoder_block1', 'conv_block', 'conv1')

    def of(tree):
        for key in kernel:
            tree = tree[key]
        return tree.spec

    amsgrad = shardings.opt_state[1]
    for tree in (shardings.params, amsgrad.mu, amsgrad.nu_max, shardings.ema['params']):
        assert of(tree) == jax.P(None, None, None, 'fsdp')
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    mine = sum(np.prod(s.shard_shape(a.shape)) for s, a in zip(*map(jax.tree.leaves, (shardings, state)), strict=True))
    assert mine == pytest.approx(whole / 4, rel=0.01)
    # Three maps do not divide by four.
    assert shardings.params['resunet']['after_conv']['kernel'].is_fully_replicated


def test_batches_that_do_not_divide_name_the_nearest():
    mesh = make_mesh()
    check_batch_size(64, SegmentMixer(mix_group=4), mesh, accumulate=2)
    with pytest.raises(ConfigError, match=r'groups of 4 and 8 parts each: use 64 or 128'):
        check_batch_size(96, SegmentMixer(mix_group=4), mesh, accumulate=8)


def mesh_of(owners):
    devices = np.array([types.SimpleNamespace(process_index=p) for p in owners], object)
    return types.SimpleNamespace(devices=devices.reshape(-1, 1))


def test_rows_of_a_process_are_where_its_devices_stand():
    assert place_of_process(make_mesh()) == (0, 1)
    assert place_of_process(mesh_of([2, 2, 0, 0, 1, 1])) == (1, 3)
    for owners in ([0, 1, 0, 1], [0, 0, 0, 1]):
        with pytest.raises(ConfigError, match='equal, connected parts'):
            place_of_process(mesh_of(owners))


@pytest.fixture(scope='module')
def batches():
    rng = np.random.default_rng(0)
    return [
        {
            'waveforms': rng.integers(-9000, 9000, (BATCH_SIZE, 400)).astype(np.int16),
            'embeddings': rng.standard_normal((BATCH_SIZE, MODEL.condition_size)).astype(np.float32) / 5,
        }
        for _ in range(3)
    ]


@pytest.fixture(scope='module')
def trained(batches):
    """Three steps on so many devices -> (losses, weights, the compiled step)."""

    def run(devices=1, fsdp=1, accumulate=1, dtype='float32'):
        mesh = make_mesh(MeshConfig(fsdp), jax.devices()[:devices])
        model = ModelConfig(**{**MODEL.__dict__, 'dtype': dtype})
        optimizer = make_optimizer(OptimizerConfig(schedule='constant'), 3)
        shardings = state_shardings(abstract_state(model, ema=False), mesh)
        init = jax.jit(lambda key: init_state(model, optimizer, key, ema=False), out_shardings=shardings)
        step = make_train_step(model, optimizer, SegmentMixer(mix_group=2), seed=0, accumulate=accumulate, mesh=mesh)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
        state, losses = init(jax.random.key(0)), []
        compiled = jitted.lower(state, put_batch(batches[0], mesh)).compile()
        for batch in batches:
            state, metrics = compiled(state, put_batch(batch, mesh))
            losses.append(float(metrics['loss']))
        return losses, on_this_process(state.params, mesh), compiled

    return run


@pytest.fixture(scope='module')
def one_device(trained):
    return trained()


def bytes_gathered(hlo: str) -> int:
    """Of all arrays that the program gathers from other devices, exchanges with them or hands on."""
    sizes = {'f32': 4, 's16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1}
    found = re.findall(r'= (\w+)\[([\d,]*)\][^=]* (?:all-gather|all-to-all|collective-permute)\(', hlo)
    return sum(sizes.get(kind, 4) * int(np.prod([int(n) for n in shape.split(',') if n])) for kind, shape in found)


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [2, 4])
def test_split_weights_give_the_losses_of_one_device(trained, one_device, fsdp):
    losses, weights, compiled = trained(devices=8, fsdp=fsdp)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
    # Weights are gathered, the activations of other devices' clips never are.
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    assert 0 < bytes_gathered(compiled.as_text()) <= 1.05 * total


@pytest.mark.slow
def test_accumulated_parts_are_every_nth_clip_with_statistics_of_their_own(trained, batches):
    losses, _, compiled = trained(devices=2, accumulate=2)
    assert bytes_gathered(compiled.as_text()) == 0, 'no clip moves to another device'

    optimizer = make_optimizer(OptimizerConfig(schedule='constant'), 3)
    state = init_state(MODEL, optimizer, jax.random.key(0), ema=False)
    mix_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    mixtures, targets = SegmentMixer(mix_group=2)(mix_key, jnp.asarray(batches[0]['waveforms'] / 32768, jnp.float32))

    @jax.jit
    def loss_of(mixtures, targets, embeddings):
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        out, _ = AudioSep(MODEL).apply(variables, mixtures, embeddings, train=True, mutable=['batch_stats'])
        return l1_waveform(out, targets)

    parts = [loss_of(mixtures[i::2], targets[i::2], batches[0]['embeddings'][i::2]) for i in range(2)]
    np.testing.assert_allclose(losses[0], np.mean(parts), rtol=1e-5)
    assert parts[0] != parts[1]


@pytest.mark.slow
def test_bfloat16_follows_float32(trained, one_device):
    losses, weights, _ = trained(dtype='bfloat16')
    assert losses != one_device[0]
    np.testing.assert_allclose(losses, one_device[0], rtol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype('float32')}
