"""Scores the averaged weights of a run on a small benchmark, and separates some of its mixtures to listen to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioSepError, LeftOutError
from audiosep_jax.evaluation.loading import load_item
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import validate
from audiosep_jax.metrics import sdri, si_sdr
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.parallel.mesh import on_this_process
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one validation.

    Attributes:
        values: `SDRi` and `SI-SDR` in dB; {} if the validation failed.
        panels: title -> {'mixture', 'target', 'separated': float32 [T], 'sample_rate': Hz}; only the first process has
            them.
        problem: why there are no values.
    """

    values: dict[str, float]
    panels: dict[str, dict[str, Any]]
    problem: str = ''

    @property
    def sdri(self) -> float:
        """The SDRi in dB, or -inf without one, so that every other checkpoint is better."""
        value = self.values.get('SDRi', -np.inf)
        return value if np.isfinite(value) else -np.inf


class Validation:
    """The validation of one run.

    Args:
        folder: the folder of a benchmark, in any layout of docs/evaluate.md.
        model: the run's network.
        encoder: the identity of the run's query encoder.
        num_panels: how many items, from the first of the benchmark, are also returned as audio.

    Raises:
        DataError: there is no such benchmark. Its audio is read only when it is evaluated.
    """

    def __init__(self, folder: str, model: ModelConfig, encoder: dict[str, Any], *, num_panels: int = 4):
        self._folder, self._model, self._encoder = folder, model, encoder
        self._items = read_benchmark(folder).items[:num_panels]

    def run(self, state: TrainState, mesh: Mesh) -> Scores:
        """Scores a state. All processes must call this; each scores its share of the items.

        A problem with the folder is reported in the result and not raised, because it must not cost the checkpoint.
        """
        variables = on_this_process(state.ema or {'params': state.params, 'batch_stats': state.batch_stats}, mesh)
        separator = Separator(self._model, variables, load_encoder(self._encoder))
        try:
            results = validate(separator, self._folder)
        except AudioSepError as error:  # every process gets the same one
            return Scores({}, {}, str(error))
        panels = self._panels(separator) if jax.process_index() == 0 else {}
        return Scores({'SDRi': results.sdri, 'SI-SDR': results.si_sdr}, panels)

    def _panels(self, separator: Separator) -> dict[str, dict[str, Any]]:
        panels = {}
        for item in self._items:
            try:
                sound = load_item(item, self._model.sample_rate)
            except LeftOutError:  # the evaluation has reported it as left out
                continue
            if sound.target is None:
                continue
            text = next(iter(item.queries.values()))
            (separated,) = separator.separate_batch([sound.mixture], separator.embed(text))
            target, estimate, mixture = (jnp.asarray(x) for x in (sound.target, separated, sound.mixture))
            scores = {'SDRi': sdri(target, estimate, mixture), 'SI-SDR': si_sdr(target, estimate)}
            decibels = ', '.join(f'{metric} {float(value):.1f} dB' for metric, value in scores.items())
            panels[f'{item.name}: {text}, {decibels}'] = {
                'mixture': sound.mixture,
                'target': sound.target,
                'separated': separated,
                'sample_rate': self._model.sample_rate,
            }
        return panels
