"""Steps of a small run as training saves them, without training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.checkpointer import Checkpointer
from audiosep_jax.training.optim import OptimizerConfig, make_optimizer
from audiosep_jax.training.train_step import TrainState, init_state

MODEL = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 2)
ENCODER = {'name': 'words', 'version': 1, 'embedding_size': 512, 'stop_weight': 0.1}


@dataclasses.dataclass(frozen=True)
class Run:
    model: ModelConfig = MODEL


@functools.cache
def initial_state() -> TrainState:
    optimizer = make_optimizer(OptimizerConfig(), 100)
    return jax.jit(lambda key: init_state(Run.model, optimizer, key, ema=True))(jax.random.key(0))


def state_at(step: int) -> TrainState:
    """A state whose weights, averages and moments all differ by the step."""
    state = initial_state()

    def mark(tree):
        return jax.tree.map(lambda a: a + step if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)

    ema = jax.tree.map(lambda a: a + 100, mark(state.ema))
    return state.replace(step=state.step + step, params=mark(state.params), opt_state=mark(state.opt_state), ema=ema)


def save_step(checkpointer: Checkpointer, step: int, *, score: float = 0.0) -> None:
    record = describe(Run(), ENCODER)
    checkpointer.save(state_at(step), data={'position': step}, record=record, score=score)
