"""The compiled programs of a training run: its first state, and the step, for one mesh and one shape of batch.

Compiled ahead of time: an array of another shape, type or place is an error, and never a recompilation.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from audiosep_jax.data.segments import MAX_LABELS
from audiosep_jax.optim import make_optimizer
from audiosep_jax.parallel.mesh import batch_sharded, replicated, state_shardings
from audiosep_jax.state import TrainState, init_state, make_train_step, state_from_variables

if TYPE_CHECKING:
    from audiosep_jax.train import TrainConfig


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
