"""One training step: what it changes, and that splitting it over devices or parts changes nothing else."""

import dataclasses
import re
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training_runs import MIXER, MODEL, OPTIMIZER

from audiosep_jax.models.audiosep import AudioSep, ModelConfig
from audiosep_jax.parallel.mesh import (
    MeshConfig,
    make_mesh,
    on_this_process,
    put_batch,
    replicated,
    state_shardings,
)
from audiosep_jax.training.augmentation import Augmentation
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.losses import LossName, l1_waveform, mean_loss
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import make_optimizer
from audiosep_jax.training.query_augmentation import QueryAugmentation
from audiosep_jax.training.train_step import init_state, make_program, make_train_step, mix_batch, step_keys


@pytest.fixture(scope='module')
def single_step():
    """A compiled step on one device, and a state to give it."""
    optimizer = make_optimizer(OPTIMIZER, 10)
    state = init_state(MODEL, optimizer, jax.random.key(0), ema=True)
    return jax.jit(make_train_step(MODEL, optimizer, MIXER, seed=0, ema_decay=0.9)), state


def make_batch(embedding=0.05):
    waveforms = np.random.default_rng(0).integers(-9000, 9000, (2, 400)).astype(np.int16)
    return {'waveforms': waveforms, 'embeddings': np.full((2, MODEL.condition_size), embedding, np.float32)}


@pytest.mark.slow
def test_non_finite_step_changes_nothing_but_the_counts(single_step):
    step, state = single_step
    after, metrics = step(state, make_batch(np.nan))
    assert not np.isfinite(metrics['loss'])
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (1, 1, 1)
    for part in ('params', 'batch_stats', 'opt_state', 'ema'):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), getattr(after, part), getattr(state, part))
        assert jax.tree.all(same), part
    again, _ = step(after, make_batch(np.nan))
    assert (int(again.skipped), int(again.skipped_in_row)) == (2, 2)
    healthy, metrics = step(again, make_batch())
    assert np.isfinite(metrics['loss'])
    assert (int(healthy.step), int(healthy.skipped), int(healthy.skipped_in_row)) == (3, 2, 0)
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), healthy.params, state.params))


def test_silence_is_finite(single_step):
    step, state = single_step
    batch = make_batch()
    batch['waveforms'][:] = 0
    _, metrics = step(state, batch)
    assert float(metrics['loss']) == 0
    assert int(metrics['skipped']) == 0


def test_moving_average_is_between_old_and_new_weights(single_step):
    step, state = single_step
    after, _ = step(state, make_batch())
    old, new = state.params['resunet']['after_conv']['bias'], after.params['resunet']['after_conv']['bias']
    average = after.ema['params']['resunet']['after_conv']['bias']
    np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, rtol=1e-5)  # young: (1 + 0) / (10 + 0) of the old


def test_a_mixer_that_avoids_labels_needs_them():
    optimizer = make_optimizer(OPTIMIZER, 1)
    state = jax.eval_shape(lambda: init_state(MODEL, optimizer, jax.random.key(0), ema=False))
    shapes = {'waveforms': ((4, 400), np.int16), 'embeddings': ((4, 512), np.float32), 'labels': ((4, 16), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    avoiding = SegmentMixer(mix_group=2, avoid_same_label=True)
    step = make_train_step(MODEL, optimizer, avoiding, seed=0, absent=AbsentQueries())
    assert jax.eval_shape(step, state, batch)[1]['loss'].shape == ()
    del batch['labels']
    with pytest.raises(ValueError, match='avoid_same_label needs labels'):
        jax.eval_shape(step, state, batch)


@pytest.mark.slow
def test_changed_queries_depend_on_the_seed_and_the_step_alone(single_step):
    plain, state = single_step
    optimizer, query = make_optimizer(OPTIMIZER, 10), QueryAugmentation(noise=0.5, dropout=0.5)
    step = jax.jit(make_train_step(MODEL, optimizer, MIXER, seed=0, ema_decay=0.9, query=query))
    states = state, state.replace(step=state.step + 1)
    losses = [float(f(s, make_batch())[1]['loss']) for f in (step, plain) for s in states]
    assert float(step(state, make_batch())[1]['loss']) == losses[0]
    assert len(set(losses)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    'loss', [pytest.param(name, marks=[] if name == 'snr' else pytest.mark.nightly) for name in get_args(LossName)]
)
def test_a_step_with_each_loss_is_that_of_the_parts_of_the_batch(loss):
    optimizer, mixer = make_optimizer(OPTIMIZER, 10), SegmentMixer(mix_group=4)
    state = jax.jit(lambda: init_state(MODEL, optimizer, jax.random.key(0), ema=False))()
    absent = AbsentQueries(share=0.5, similarity=1.0)
    rng = np.random.default_rng(0)
    batch = {
        'waveforms': rng.integers(-9000, 9000, (8, 400)).astype(np.int16),
        'embeddings': rng.standard_normal((8, MODEL.condition_size)).astype(np.float32) / 20,
    }
    step = make_train_step(MODEL, optimizer, mixer, seed=0, absent=absent, loss=loss, accumulate=2)
    after, metrics = jax.jit(step)(state, batch)
    assert int(metrics['skipped']) == 0
    assert 0 < metrics['grad_norm'] < 1e4
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)))

    keys = step_keys(0, 0)
    mixtures, targets = mix_batch(mixer, Augmentation(), keys, batch, MODEL.sample_rate)
    embeddings, targets = absent(keys.absent, 0, mixer, jnp.asarray(batch['embeddings']), targets)
    assert 0 < np.sum(~np.any(targets, axis=1)) < 8

    @jax.jit
    def loss_of(mixtures, targets, embeddings):
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        out, _ = AudioSep(MODEL).apply(variables, mixtures, embeddings, train=True, mutable=['batch_stats'])
        return mean_loss(loss, MODEL.sample_rate)(out, targets, mixtures)

    parts = [loss_of(mixtures[i::2], targets[i::2], embeddings[i::2]) for i in range(2)]
    np.testing.assert_allclose(metrics['loss'], np.mean(parts), rtol=1e-3, atol=1e-3)


def test_state_and_batch_have_the_shapes_of_the_run():
    mixer = TrainConfig().mixing
    assert 'labels' not in make_program(TrainConfig(mixing=mixer), make_mesh()).batch
    program = make_program(TrainConfig(mixing=dataclasses.replace(mixer, avoid_same_label=True)), make_mesh())
    assert 'labels' in make_program(TrainConfig(mixing=dataclasses.replace(mixer, together='a')), make_mesh()).batch
    assert {name: array.shape for name, array in program.batch.items()} == {
        'waveforms': (96, 160000),
        'embeddings': (96, 512),
        'labels': (96, 16),
    }
    assert program.state.ema is None


# ---- On several devices ----

# Wider than that of the runs, so that its weights divide over four devices.
SPLIT_MODEL = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(4, 4), condition_size=16)
BATCH_SIZE = 16
AS_RECORDED = Augmentation()


@pytest.fixture(scope='module')
def batches():
    rng = np.random.default_rng(0)
    return [
        {
            'waveforms': rng.integers(-9000, 9000, (BATCH_SIZE, 400)).astype(np.int16),
            'embeddings': rng.standard_normal((BATCH_SIZE, SPLIT_MODEL.condition_size)).astype(np.float32) / 5,
        }
        for _ in range(3)
    ]


@pytest.fixture(scope='module')
def trained(batches):
    """Returns a function that takes three steps and returns (losses, weights, the compiled step)."""

    def run(devices=1, fsdp=1, accumulate=1, dtype='float32', augmentation=AS_RECORDED):
        mesh = make_mesh(MeshConfig(fsdp), jax.devices()[:devices])
        model = ModelConfig(**{**SPLIT_MODEL.__dict__, 'dtype': dtype})
        optimizer = make_optimizer(OPTIMIZER, 3)
        shardings = state_shardings(
            jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), ema=False)), mesh
        )
        init = jax.jit(lambda key: init_state(model, optimizer, key, ema=False), out_shardings=shardings)
        how = {'augmentation': augmentation, 'accumulate': accumulate, 'mesh': mesh}
        step = make_train_step(model, optimizer, SegmentMixer(mix_group=2), seed=0, **how)
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
    """Returns the size of all arrays that the program gathers from other devices, exchanges with them or passes on."""
    sizes = {'f32': 4, 's16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1}
    found = re.findall(r'= (\w+)\[([\d,]*)\][^=]* (?:all-gather|all-to-all|collective-permute)\(', hlo)
    return sum(sizes.get(kind, 4) * int(np.prod([int(n) for n in shape.split(',') if n])) for kind, shape in found)


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [2, pytest.param(4, marks=pytest.mark.nightly)])
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

    optimizer = make_optimizer(OPTIMIZER, 3)
    state = init_state(SPLIT_MODEL, optimizer, jax.random.key(0), ema=False)
    mix_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    mixtures, targets = SegmentMixer(mix_group=2)(mix_key, jnp.asarray(batches[0]['waveforms'] / 32768, jnp.float32))

    @jax.jit
    def loss_of(mixtures, targets, embeddings):
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        out, _ = AudioSep(SPLIT_MODEL).apply(variables, mixtures, embeddings, train=True, mutable=['batch_stats'])
        return l1_waveform(out, targets)

    parts = [loss_of(mixtures[i::2], targets[i::2], batches[0]['embeddings'][i::2]) for i in range(2)]
    np.testing.assert_allclose(losses[0], np.mean(parts), rtol=1e-5)
    assert parts[0] != parts[1]


@pytest.mark.slow
@pytest.mark.nightly
def test_augmented_clips_are_the_same_on_any_number_of_devices(trained):
    every = Augmentation((-6, 0), 0.5, equalizer_db=6, pitch_semitones=3, reverberation_ms=20, share=0.7)
    losses, _, compiled = trained(devices=4, accumulate=2, augmentation=every)
    assert bytes_gathered(compiled.as_text()) == 0, 'no clip moves to another device'
    np.testing.assert_allclose(losses, trained(accumulate=2, augmentation=every)[0], rtol=1e-4)
    assert losses[0] != pytest.approx(trained(accumulate=2)[0][0], rel=1e-3)


@pytest.mark.slow
def test_bfloat16_follows_float32(trained, one_device):
    losses, weights, _ = trained(dtype='bfloat16')
    assert losses != one_device[0]
    np.testing.assert_allclose(losses, one_device[0], rtol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype('float32')}
