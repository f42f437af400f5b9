"""The state that training carries from step to step, one step as a pure function, and both compiled for a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Float32, PRNGKeyArray

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.segments import MAX_LABELS
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables
from audiosep_jax.models.packing import lanes_of
from audiosep_jax.parallel.mesh import batch_sharded, by_clip, replicated, state_shardings
from audiosep_jax.training.augmentation import Augmentation
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.losses import LossName, mean_loss
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import make_optimizer
from audiosep_jax.training.query_augmentation import QueryAugmentation

_ALL_PRESENT = AbsentQueries()
_AS_RECORDED = Augmentation()
_UNCHANGED = QueryAugmentation()

# ---- State ----


class TrainState(flax.struct.PyTreeNode):
    """A pytree of everything that a step reads and writes.

    Attributes:
        step: int32 [], the number of steps taken, including skipped ones. The positions in the data and the random keys
            are derived from it.
        params: the model's parameters.
        batch_stats: the model's batch statistics.
        opt_state: the optimizer's state.
        ema: the exponential moving average of {'params', 'batch_stats'}, or None.
        skipped: int32 [], the number of steps whose loss or gradient was not finite; these changed only the counts.
        skipped_in_row: int32 [], how many of the latest steps in a row were skipped.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped: Array
    skipped_in_row: Array


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, key: Array, *, ema: bool) -> TrainState:
    """Returns a state at step 0 with fresh weights drawn from `key`."""
    variables = init_variables(config, key)
    return state_from_variables(variables, optimizer, ema=ema)


def state_from_variables(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Returns a state at step 0 that starts from the given `params` and `batch_stats`."""
    params, batch_stats = variables['params'], variables['batch_stats']
    # The average is a copy and each count a separate array, because a donated state must not hold one buffer twice.
    average = jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if ema else None
    step, skipped, skipped_in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, batch_stats, optimizer.init(params), average, skipped, skipped_in_row)


# ---- Step ----


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mixer: SegmentMixer,
    *,
    seed: int,
    ema_decay: float = 0.0,
    augmentation: Augmentation = _AS_RECORDED,
    absent: AbsentQueries = _ALL_PRESENT,
    query: QueryAugmentation = _UNCHANGED,
    loss: LossName = 'l1',
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """Returns the function (state, batch) -> (state, metrics) of one optimizer step. It is pure; the caller jits it.

    The batch holds `waveforms` int16 [B, T], `embeddings` float [B, E] and, for a mixer that needs them, `labels` int32
    [B, L]. The step mixes it on the device (clip i with its neighbors), separates the mixtures, and compares the
    estimates with the clips, or with silence for the queries that `absent` replaces.
    The random keys are a function of the seed and the step, so a resumed run draws the same numbers as an uninterrupted
    one. The metrics are `loss`, `grad_norm` and the counts `skipped` and `skipped_in_row`, all scalars on the device.

    Args:
        config: the network.
        optimizer: what turns gradients into updates.
        mixer: makes the mixtures.
        seed: of the random keys.
        ema_decay: decay of the moving average of the weights, 0 for a state without one.
        augmentation: changes the clips at random before they are mixed.
        absent: replaces some queries with ones for absent sounds.
        query: changes the embeddings of the queries at random.
        loss: how the estimates are compared with their targets.
        accumulate: the batch goes through the network in this many parts, one after the other, and their gradients are
            averaged, which takes the memory of a smaller batch. Batch norm sees one part at a time.
        mesh: the devices over which the state is split (`parallel.mesh.state_shardings`). Weights are gathered for the
            step, and gradients are split again before the optimizer, so each device updates its own part.
    """
    lanes = lanes_of(jax.default_backend() if mesh is None else mesh.devices.flat[0].platform)
    split = by_clip(mesh)
    model = AudioSep(config, split, lanes, devices=1 if mesh is None else mesh.size)
    compare = mean_loss(loss, config.sample_rate, split)

    def loss_fn(
        params: Any,
        batch_stats: Any,
        mixtures: Float32[Array, 'B T'],
        targets: Float32[Array, 'B T'],
        embeddings: Float[Array, 'B E'],
    ) -> tuple[Float32[Array, ''], Any]:
        variables = {'params': params, 'batch_stats': batch_stats}
        estimates, updated = model.apply(variables, mixtures, embeddings, train=True, mutable=['batch_stats'])
        return compare(estimates, targets, mixtures), updated['batch_stats']

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        keys = step_keys(seed, state.step)
        labels = batch.get('labels')
        mixtures, targets = mix_batch(mixer, augmentation, keys, batch, config.sample_rate, mesh)
        embeddings, targets = absent(keys.absent, state.step, mixer, batch['embeddings'], targets, labels)
        embeddings = query(keys.query, mixer, embeddings, labels)

        weights = _gather(state.params, mesh)
        examples = mixtures, targets, embeddings
        value, batch_stats, grads = _loss_and_gradients(loss_fn, accumulate, weights, state.batch_stats, examples)
        return _update(state, optimizer, value, batch_stats, _split(grads, mesh), ema_decay)

    return train_step


class StepKeys(NamedTuple):
    """The random keys of a training step: of its mixtures, its absent queries, and the changes of queries and clips."""

    mix: PRNGKeyArray
    absent: PRNGKeyArray
    query: PRNGKeyArray
    augmentation: PRNGKeyArray


def step_keys(seed: int | Array, step: int | Array) -> StepKeys:
    """Returns the keys of a step of a run."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    mix, absent = jax.random.split(key)
    return StepKeys(mix, absent, jax.random.fold_in(key, 2), jax.random.fold_in(key, 3))


def mix_batch(
    mixer: SegmentMixer,
    augmentation: Augmentation,
    keys: StepKeys,
    batch: dict[str, Array],
    sample_rate: int,
    mesh: Mesh | None = None,
) -> tuple[Float32[Array, 'B T'], Float32[Array, 'B T']]:
    """Returns the mixtures and targets that a step trains on."""
    waveforms = batch['waveforms'].astype(jnp.float32) * (1 / INT16_SCALE)
    clips = augmentation(keys.augmentation, waveforms, sample_rate, by_clip(mesh))
    return mixer(keys.mix, clips, batch.get('labels'))


def _loss_and_gradients(
    loss_fn: Callable[..., tuple[Array, Any]],
    accumulate: int,
    params: Any,
    batch_stats: Any,
    examples: tuple[Array, ...],
) -> tuple[Array, Any, Any]:
    """Returns (loss, new batch_stats, gradients); loss and gradients are the means over the parts of the batch."""
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, batch_stats), grads = grad_fn(params, batch_stats, *examples)
        return loss, batch_stats, grads

    def add_part(carry, part):
        loss, batch_stats, grads = carry
        (part_loss, batch_stats), part_grads = grad_fn(params, batch_stats, *part)
        return (loss + part_loss, batch_stats, jax.tree.map(jnp.add, grads, part_grads)), None

    # A part takes every accumulate-th row, so that it has rows of every device.
    parts = tuple(jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1) for x in examples)
    start = (jnp.zeros(()), batch_stats, jax.tree.map(jnp.zeros_like, params))
    (loss, batch_stats, grads), _ = jax.lax.scan(add_part, start, parts)
    return loss / accumulate, batch_stats, jax.tree.map(lambda g: g / accumulate, grads)


def _gather(params: Any, mesh: Mesh | None) -> Any:
    # Without this constraint, the partitioner could move the activations to the weights instead.
    return params if mesh is None else jax.lax.with_sharding_constraint(params, replicated(mesh))


def _split(grads: Any, mesh: Mesh | None) -> Any:
    return grads if mesh is None else jax.lax.with_sharding_constraint(grads, state_shardings(grads, mesh))


def _update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loss: Float32[Array, ''],
    batch_stats: Any,
    grads: Any,
    ema_decay: float,
) -> tuple[TrainState, dict[str, Array]]:
    """Returns (next state, metrics). A loss or gradient that is not finite changes only the counts of the state."""
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        # A young average follows quickly; otherwise, for 1 / (1 - decay) steps, it would be mostly initial weights.
        taken = state.step - state.skipped
        decay = jnp.minimum(ema_decay, (1 + taken) / (10 + taken))
        new = {'params': params, 'batch_stats': batch_stats}
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, new)

    def if_finite(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    skipped = state.skipped + ~finite
    skipped_in_row = jnp.where(finite, 0, state.skipped_in_row + 1)
    metrics = {'loss': loss, 'grad_norm': grad_norm, 'skipped': skipped, 'skipped_in_row': skipped_in_row}
    return state.replace(
        step=state.step + 1,
        params=if_finite(params, state.params),
        batch_stats=if_finite(batch_stats, state.batch_stats),
        opt_state=if_finite(opt_state, state.opt_state),
        ema=if_finite(ema, state.ema),
        skipped=skipped,
        skipped_in_row=skipped_in_row,
    ), metrics


# ---- Program ----


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run executes on its mesh. `make_program` makes it.

    Attributes:
        mesh: all devices of all processes.
        state: a TrainState of `jax.ShapeDtypeStruct`s whose shardings say on which devices each array is stored.
        batch: a batch in the same form: `waveforms` int16 [B, T], `embeddings` float32 [B, E] and, for a mixer that
            needs them, `labels` int32 [B, L].
        config: the run's configuration.
    """

    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    config: TrainConfig

    def initial_state(self, variables: dict[str, Any] | None = None) -> TrainState:
        """Returns a state at step 0, with fresh weights or with the given `params` and `batch_stats`.

        Args:
            variables: complete arrays on the host.
        """
        config, optimizer = self.config, make_optimizer(self.config.optimizer, self.config.steps)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        ema = bool(config.ema_decay)
        if variables is None:
            init = jax.jit(lambda key: init_state(config.model, optimizer, key, ema=ema), out_shardings=shardings)
            return init(jax.random.key(config.seed))
        begin = jax.jit(lambda values: state_from_variables(values, optimizer, ema=ema), out_shardings=shardings)
        return begin(jax.tree.map(np.asarray, variables))

    def compile_step(self) -> jax.stages.Compiled:
        """Returns the compiled step, (state, batch) -> (state, metrics). It reuses the memory of the state it gets."""
        return self.lower_step().compile()

    def lower_step(self) -> jax.stages.Lowered:
        """Returns the step before it is compiled."""
        config = self.config
        step = make_train_step(
            config.model,
            make_optimizer(config.optimizer, config.steps),
            config.mixing,
            seed=config.seed,
            ema_decay=config.ema_decay,
            augmentation=config.augmentation,
            absent=config.absent,
            query=config.query,
            loss=config.loss,
            accumulate=config.accumulate,
            mesh=self.mesh,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(self.mesh)))
        return jitted.lower(self.state, self.batch)


def make_program(config: TrainConfig, mesh: Mesh) -> Program:
    """Returns the program of a run. Nothing is computed or compiled yet.

    Raises:
        ConfigError: the learning-rate schedule does not fit the run.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(
        lambda key: init_state(config.model, optimizer, key, ema=bool(config.ema_decay)), jax.random.key(0)
    )
    state = jax.tree.map(_with_sharding, shapes, state_shardings(shapes, mesh))
    num_samples = round(config.input.segment_seconds * config.model.sample_rate)
    rows: dict[str, tuple[tuple[int], type[np.generic]]] = {
        'waveforms': ((num_samples,), np.int16),
        'embeddings': ((config.model.condition_size,), np.float32),
    }
    if config.mixing.needs_labels:
        rows['labels'] = ((MAX_LABELS,), np.int32)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=batch_sharded(mesh))
        for name, (shape, dtype) in rows.items()
    }
    return Program(mesh, state, batch, config)


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
