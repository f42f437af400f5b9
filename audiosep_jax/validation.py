"""Scores of a run while it trains: the averaged weights on a small benchmark, and some of its mixtures to listen to."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils

from audiosep_jax.audio import read_audio
from audiosep_jax.encoders import load_encoder
from audiosep_jax.errors import AudioSepError
from audiosep_jax.evaluate import evaluate_music, read_music
from audiosep_jax.hosts import wait_for_all
from audiosep_jax.metrics import sdri
from audiosep_jax.separate import Separator
from audiosep_jax.sharding import on_this_process

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from audiosep_jax.model import ModelConfig
    from audiosep_jax.state import TrainState


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
        folder: in the layout of the MUSIC benchmark.
        model: the run's.
        encoder: identity of the run's query encoder.
        num_panels: mixtures, the first of the benchmark, that are also returned as sounds.

    Raises:
        DataError: no such benchmark. That its sounds can be read is seen when they are.
    """

    def __init__(self, folder: str, model: 'ModelConfig', encoder: dict, *, num_panels: int = 4):
        self._folder, self._model, self._encoder = folder, model, encoder
        pairs, _ = read_music(folder)
        self._pairs = pairs[:num_panels]

    def run(self, state: 'TrainState', mesh: 'Mesh') -> Scores:
        """Scores a state. All processes must call it; the first one does the work, the others wait.

        What is wrong with the folder is said in the result: it must not cost the checkpoint.
        """
        variables = on_this_process(state.ema or {'params': state.params, 'batch_stats': state.batch_stats}, mesh)
        scores = self._score(variables) if jax.process_index() == 0 else Scores({}, {})
        if jax.process_count() == 1:
            return scores
        wait_for_all('validated')
        found = np.array([scores.values.get(name, np.nan) for name in ('SDRi', 'SI-SDR')], np.float32)
        found = multihost_utils.broadcast_one_to_all(found)  # which checkpoint is best, all have to know
        values = dict(zip(('SDRi', 'SI-SDR'), map(float, found), strict=True))
        return dataclasses.replace(scores, values={name: v for name, v in values.items() if np.isfinite(v)})

    def _score(self, variables: dict) -> Scores:
        try:
            separator = Separator(self._model, variables, load_encoder(self._encoder))
            results = evaluate_music(separator, self._folder)
            return Scores({'SDRi': results.sdri, 'SI-SDR': results.si_sdr}, self._separated(separator))
        except AudioSepError as error:
            return Scores({}, {}, str(error))

    def _separated(self, separator: Separator) -> dict[str, dict]:
        panels = {}
        for pair in self._pairs:
            rate = self._model.sample_rate
            try:
                mixture, target = (
                    read_audio(path, sample_rate=rate, mono=True)[0][0] for path in (pair.mixture, pair.target)
                )
            except AudioSepError:  # named among what the evaluation left out
                continue
            length = min(len(mixture), len(target))
            mixture, target = mixture[:length], target[:length]
            (separated,) = separator.separate_batch([mixture], separator.embed(pair.caption))
            improvement = float(sdri(target, separated, mixture))
            sounds = {'mixture': mixture, 'target': target, 'separated': separated, 'sample_rate': rate}
            panels[f'{pair.name}: {pair.caption}, SDRi {improvement:.1f} dB'] = sounds
        return panels
