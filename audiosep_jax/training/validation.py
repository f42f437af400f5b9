"""Scores of a run while it trains: the averaged weights on a small benchmark, and some of its mixtures to listen to."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioSepError, LeftOutError
from audiosep_jax.evaluation.loading import load_item
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import validate
from audiosep_jax.metrics import sdri
from audiosep_jax.parallel.mesh import on_this_process
from audiosep_jax.separation.separator import Separator

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from audiosep_jax.models.audiosep import ModelConfig
    from audiosep_jax.training.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one validation.

    Attributes:
        values: `SDRi` and `SI-SDR` in dB; {} where it failed.
        panels: title -> {'mixture', 'target', 'separated': float32 [T], 'sample_rate': Hz}, on the first process alone.
        problem: why there are no values.
    """

    values: dict[str, float]
    panels: dict[str, dict]
    problem: str = ''

    @property
    def sdri(self) -> float:
        """dB; -inf where there is none, which no checkpoint's is worse than."""
        value = self.values.get('SDRi', -np.inf)
        return value if np.isfinite(value) else -np.inf


class Validation:
    """The validation of one run.

    Args:
        folder: of a benchmark, in any layout of docs/evaluate.md.
        model: the run's.
        encoder: identity of the run's query encoder.
        num_panels: items, the first of the benchmark, that are also returned as sounds.

    Raises:
        DataError: no such benchmark. That its sounds can be read is seen when they are.
    """

    def __init__(self, folder: str, model: 'ModelConfig', encoder: dict, *, num_panels: int = 4):
        self._folder, self._model, self._encoder = folder, model, encoder
        self._items = read_benchmark(folder).items[:num_panels]

    def run(self, state: 'TrainState', mesh: 'Mesh') -> Scores:
        """Scores a state. All processes must call it; each does its share of the items.

        What is wrong with the folder is said in the result: it must not cost the checkpoint.
        """
        variables = on_this_process(state.ema or {'params': state.params, 'batch_stats': state.batch_stats}, mesh)
        separator = Separator(self._model, variables, load_encoder(self._encoder))
        try:
            results = validate(separator, self._folder)
        except AudioSepError as error:  # the same one on every process
            return Scores({}, {}, str(error))
        panels = self._separated(separator) if jax.process_index() == 0 else {}
        return Scores({'SDRi': results.sdri, 'SI-SDR': results.si_sdr}, panels)

    def _separated(self, separator: Separator) -> dict[str, dict]:
        panels = {}
        for item in self._items:
            try:
                sound = load_item(item, self._model.sample_rate)
            except LeftOutError:  # named among what the evaluation left out
                continue
            if sound.target is None:
                continue
            text = next(iter(item.queries.values()))
            (separated,) = separator.separate_batch([sound.mixture], separator.embed(text))
            improvement = float(sdri(sound.target, separated, sound.mixture))
            panels[f'{item.name}: {text}, SDRi {improvement:.1f} dB'] = {
                'mixture': sound.mixture,
                'target': sound.target,
                'separated': separated,
                'sample_rate': self._model.sample_rate,
            }
        return panels
