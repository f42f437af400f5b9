"""Measures how loud the mixtures of a run are, for the record in its checkpoints: what separation needs to know."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.config import to_dict
from audiosep_jax.parallel.mesh import replicated
from audiosep_jax.training.augmentation import Augmentation
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.train_step import mix_batch, step_keys

_ENOUGH = 256  # mixtures; their percentiles are then within a decibel or so
_SILENCE = 1e-9  # mean square below which a mixture does not count, -90 dB


class MixtureLevels:
    """The levels of the first mixtures of a run.

    They are measured beside the training step, not in it, so the step computes the same bits as without.

    Args:
        config: of the run.
        mesh: its devices.
        known: the record of the checkpoint that the run resumes from. If that says the level, and the mixtures are made
            as they were, nothing is measured again.
        record: of the run's checkpoints, without the level.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, known: Mapping[str, Any] | None, record: Mapping[str, Any]):
        self._config, self._mesh = config, mesh
        self._squares: list[Array] = []  # they stay on the devices, because fetching them would stall the steps
        same = known is not None and _how_made(known) == _how_made(record)
        self._known = {'level': known['level']} if known is not None and same and 'level' in known else None

    def push(self, step: int, batch: Mapping[str, Array]) -> None:
        """Measures the mixtures of the batch of a step, unless enough are measured. Every process calls this."""
        if self._known is None and sum(map(len, self._squares)) < _ENOUGH:
            config = self._config
            made_by = config.mixing, config.augmentation, config.model.sample_rate, self._mesh
            self._squares.append(_mean_squares(*made_by, config.seed, step, dict(batch)))

    def record(self) -> dict[str, Any]:
        """Returns the entry for the checkpoint's record: empty if all mixtures so far were silent."""
        if self._known is not None:
            return self._known
        squares = np.concatenate([np.zeros(0), *jax.device_get(self._squares)])
        heard = squares[squares > _SILENCE]
        if not len(heard):
            return {}
        low, median, high = (round(float(x), 2) for x in np.percentile(10 * np.log10(heard), [10, 50, 90]))
        return Level(low, median, high, len(heard)).record()


def _how_made(record: Mapping[str, Any]) -> tuple[Any, Any]:
    config = record['config']
    # Older versions, which did not augment, have no entry for it.
    return config.get('mixing'), config.get('augmentation', to_dict(Augmentation()))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mean_squares(
    mixer: SegmentMixer,
    augmentation: Augmentation,
    sample_rate: int,
    mesh: Mesh,
    seed: Int[Array, ''],
    step: Int[Array, ''],
    batch: dict[str, Array],
) -> Float32[Array, ' B']:
    mixtures, _ = mix_batch(mixer, augmentation, step_keys(seed, step), batch, sample_rate, mesh)
    # A copy on every device, so that every process can read all of it.
    return jax.lax.with_sharding_constraint(jnp.mean(mixtures**2, axis=-1), replicated(mesh))
