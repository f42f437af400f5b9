"""What training carries from step to step, and one step of it as a pure function."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.data.segments import MAX_LABELS
from audiosep_jax.parallel.mesh import batch_sharded
from audiosep_jax.training.optim import make_optimizer

if TYPE_CHECKING:
    from audiosep_jax.training.config import TrainConfig

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables
from audiosep_jax.parallel.mesh import by_clip, replicated, state_shardings
from audiosep_jax.training.losses import l1_waveform
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer

_ALL_PRESENT = AbsentQueries()


@flax.struct.dataclass
class TrainState:
    """A pytree of everything that a step reads and writes.

    Attributes:
        step: int32, steps taken, skipped ones included: the clock of the data and of the random keys.
        params, batch_stats: the model's variables.
        opt_state: optax's.
        ema: exponential moving average of {'params', 'batch_stats'}, or None.
        skipped: int32, steps whose loss or gradient was not finite; they changed nothing but `step` and these counts.
        skipped_in_row: int32, how many of them were the latest ones.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array
    skipped_in_row: jax.Array


def init_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, key: jax.Array, *, ema: bool
) -> TrainState:
    """A state at step 0 with fresh weights drawn from `key`."""
    variables = init_variables(config, key)
    return state_from_variables(variables, optimizer, ema=ema)


def state_from_variables(variables: dict, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """A state at step 0 that starts from given `params` and `batch_stats`."""
    params, batch_stats = variables['params'], variables['batch_stats']
    # Arrays of their own, copies and zeros: a donated state must not hold one buffer twice.
    average = jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if ema else None
    step, skipped, skipped_in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, batch_stats, optimizer.init(params), average, skipped, skipped_in_row)


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mixer: SegmentMixer,
    *,
    seed: int,
    ema_decay: float = 0.0,
    absent: AbsentQueries = _ALL_PRESENT,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """The function (state, batch) -> (state, metrics) of one optimizer step; pure, to be jitted by the caller.

    The batch holds `waveforms` int16 [B, T], `embeddings` float [B, E] and, for a mixer that avoids pairs of the same
    label, `labels` int32 [B, L]. It is mixed on the device (clip i with its neighbours), separated, and compared with
    the clips by L1; for the queries that `absent` replaces, with silence. The keys are a function of the seed and the
    step, so that a resumed run draws what the uninterrupted one would have.

    Args:
        accumulate: so many parts of the batch go through the network one after the other, and their gradients are
            averaged: the memory of a smaller batch. Batch norm sees a part at a time.
        mesh: where the state is split over devices (`parallel.mesh.state_shardings`): weights are gathered for the
            step, and gradients are split again before the optimizer, of which each device does its part.

    Metrics: `loss`, `grad_norm`, and the counts `skipped`, `skipped_in_row`, all scalars on the device.
    """
    model = AudioSep(config) if mesh is None else AudioSep(config, by_clip(mesh))

    def loss_fn(params, batch_stats, mixtures, targets, embeddings):
        variables = {'params': params, 'batch_stats': batch_stats}
        estimates, updated = model.apply(variables, mixtures, embeddings, train=True, mutable=['batch_stats'])
        return l1_waveform(estimates, targets), updated['batch_stats']

    def loss_and_gradients(params, batch_stats, *examples):
        """-> (loss, new batch_stats, gradients), the means over the parts."""
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate == 1:
            (loss, batch_stats), grads = grad_fn(params, batch_stats, *examples)
            return loss, batch_stats, grads

        def add_part(carry, part):
            loss, batch_stats, grads = carry
            (part_loss, batch_stats), part_grads = grad_fn(params, batch_stats, *part)
            return (loss + part_loss, batch_stats, jax.tree.map(jnp.add, grads, part_grads)), None

        # Every accumulate-th row, so that each part has rows of every device.
        parts = [jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1) for x in examples]
        start = (jnp.zeros(()), batch_stats, jax.tree.map(jnp.zeros_like, params))
        (loss, batch_stats, grads), _ = jax.lax.scan(add_part, start, tuple(parts))
        return loss / accumulate, batch_stats, jax.tree.map(lambda g: g / accumulate, grads)

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        waveforms = batch['waveforms'].astype(jnp.float32) * (1 / INT16_SCALE)
        mix_key, absent_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        labels = batch.get('labels')
        mixtures, targets = mixer(mix_key, waveforms, labels)
        embeddings, targets = absent(absent_key, state.step, mixer, batch['embeddings'], targets, labels)

        weights = _gathered(state.params, mesh)
        loss, batch_stats, grads = loss_and_gradients(weights, state.batch_stats, mixtures, targets, embeddings)
        grads = _split(grads, mesh)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            # Young averages follow quickly: otherwise the first 1 / (1 - decay) steps would be mostly initial weights.
            taken = state.step - state.skipped
            decay = jnp.minimum(ema_decay, (1 + taken) / (10 + taken))
            new = {'params': params, 'batch_stats': batch_stats}
            ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, new)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        skipped = state.skipped + ~finite
        skipped_in_row = jnp.where(finite, 0, state.skipped_in_row + 1)
        metrics = {'loss': loss, 'grad_norm': grad_norm, 'skipped': skipped, 'skipped_in_row': skipped_in_row}
        return state.replace(
            step=state.step + 1,
            params=keep(params, state.params),
            batch_stats=keep(batch_stats, state.batch_stats),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema),
            skipped=skipped,
            skipped_in_row=skipped_in_row,
        ), metrics

    return train_step


def _gathered(params: Any, mesh: Mesh | None) -> Any:
    # Said, and not left to the partitioner: it might as well move the activations to where the weights are.
    return params if mesh is None else jax.lax.with_sharding_constraint(params, replicated(mesh))


def _split(grads: Any, mesh: Mesh | None) -> Any:
    return grads if mesh is None else jax.lax.with_sharding_constraint(grads, state_shardings(grads, mesh))


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run executes on its mesh. Made by `make_program`.

    Attributes:
        mesh: of all devices of all processes.
        state: a TrainState of `jax.ShapeDtypeStruct`s that say where each array lies.
        batch: the same of a batch: `waveforms` int16 [B, T], `embeddings` float32 [B, E] and, for a mixer that needs
            them, `labels` int32 [B, L].
    """

    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    _config: 'TrainConfig'

    def initial_state(self, variables: dict | None = None) -> TrainState:
        """A state at step 0, of fresh weights or of these `params` and `batch_stats` (host arrays, whole)."""
        config, optimizer = self._config, make_optimizer(self._config.optimizer, self._config.steps)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        ema = bool(config.ema_decay)
        if variables is None:
            init = jax.jit(lambda key: init_state(config.model, optimizer, key, ema=ema), out_shardings=shardings)
            return init(jax.random.key(config.seed))
        begin = jax.jit(lambda values: state_from_variables(values, optimizer, ema=ema), out_shardings=shardings)
        return begin(jax.tree.map(np.asarray, variables))

    def compile_step(self) -> jax.stages.Compiled:
        """The step, (state, batch) -> (state, metrics); the old state's memory is used again."""
        config = self._config
        step = make_train_step(
            config.model,
            make_optimizer(config.optimizer, config.steps),
            config.mixing,
            seed=config.seed,
            ema_decay=config.ema_decay,
            absent=config.absent,
            accumulate=config.accumulate,
            mesh=self.mesh,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(self.mesh)))
        return jitted.lower(self.state, self.batch).compile()


def make_program(config: 'TrainConfig', mesh: Mesh) -> Program:
    """The programs of a run, not yet compiled: this costs nothing.

    Raises:
        ConfigError: a schedule that does not fit the run.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(
        lambda key: init_state(config.model, optimizer, key, ema=bool(config.ema_decay)), jax.random.key(0)
    )
    state = jax.tree.map(_placed, shapes, state_shardings(shapes, mesh))
    num_samples = round(config.input.segment_seconds * config.model.sample_rate)
    rows: dict[str, Any] = {
        'waveforms': ((num_samples,), np.int16),
        'embeddings': ((config.model.condition_size,), np.float32),
    }
    if config.mixing.avoid_same_label:
        rows['labels'] = ((MAX_LABELS,), np.int32)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=batch_sharded(mesh))
        for name, (shape, dtype) in rows.items()
    }
    return Program(mesh, state, batch, config)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
