"""Scores batches of items: separates them, adds the reference rows, and computes the metrics on the device."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax import metrics
from audiosep_jax.audio.resampling import resample
from audiosep_jax.encoders.base import AudioTextEncoder
from audiosep_jax.errors import CheckpointError, QueryError
from audiosep_jax.evaluation.baselines import oracle_ratio_mask
from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.loading import Sound
from audiosep_jax.evaluation.results import (
    EXCLUDED,
    FIXED_MASK,
    HALF,
    NO_SEPARATION,
    ORACLE,
    REMAINDER,
    SEPARATED,
    TARGET,
)
from audiosep_jax.evaluation.speech import SpeechScorer
from audiosep_jax.evaluation.training_mask import TrainingMask
from audiosep_jax.separation.exclusion import exclude
from audiosep_jax.separation.queries import Query

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

# Batches are padded to a multiple of this length, so that few shapes are compiled.
_GRID = 16384

Embeddings = Mapping[str, np.ndarray]  # text -> float32 [E]
# item -> the embeddings of its query and of the sound that it excludes, float32 [E] each
Exclusions = Mapping[int, tuple[np.ndarray, np.ndarray]]
Scores = dict[str, dict[str, float]]  # row of the table -> metric -> value


class BatchScorer:
    """Separates the items of a batch once for each of their texts, and scores every row of the table.

    Use it as a context manager: leaving it ends the workers that score speech.

    Args:
        separator: the model.
        names: the names of all items.
        texts: the text for every item, by row of the table; None for an item that a row leaves out.
        sample_rate: rate of the scores, in Hz.
        batch_size: mixtures through the network at a time.
        clap: adds the cosine similarity of text and output to the scores.
        speech: whether to add the scores of speech.
        mask: adds the row of the fixed spectral mask.
        classes: its class for every item; needed with `mask`.

    Raises:
        ConfigError: speech is to be scored and the packages for it are missing.
    """

    def __init__(
        self,
        separator: 'Separator',
        names: Sequence[str],
        texts: Mapping[str, Sequence[str | None]],
        *,
        sample_rate: int,
        batch_size: int,
        clap: AudioTextEncoder | None = None,
        speech: bool = False,
        mask: TrainingMask | None = None,
        classes: Sequence[str | None] = (),
    ):
        self._separator, self._names, self._texts = separator, names, texts
        self._rate, self._batch_size, self._clap = sample_rate, batch_size, clap
        self._speech = SpeechScorer(sample_rate) if speech else None
        self._mask, self._classes = mask, classes
        separated = [row for row in texts if row.startswith(SEPARATED)]
        others = [row for row in texts if row not in separated]
        floors = [NO_SEPARATION, HALF, *([FIXED_MASK] if mask else [])]
        self.rows = [*separated, *floors, ORACLE, *others]  # in the order of the table

    def __enter__(self) -> 'BatchScorer':
        return self

    def __exit__(self, *exception: object) -> None:
        if self._speech is not None:
            self._speech.close()

    def score(
        self,
        sounds: Mapping[int, Sound],
        embeddings: Embeddings,
        clap_texts: Embeddings,
        exclusions: Exclusions | None = None,
    ) -> dict[int, Scores]:
        """Scores the items of one batch.

        Args:
            sounds: the waveforms, by the item's index.
            embeddings: the separator's embedding of every text.
            clap_texts: CLAP's embedding of every text; empty without CLAP.
            exclusions: for the items of the row `EXCLUDED`.

        Returns:
            The scores by the item's index. Rows without any score are left out.

        Raises:
            CheckpointError: the model's output is not finite.
        """
        estimates = self._separate(sounds, embeddings, exclusions or {})
        for i, sound in sounds.items():
            estimates[i][NO_SEPARATION] = sound.mixture
        targets = {i: sound.target for i, sound in sounds.items() if sound.target is not None}
        scores: dict[int, Scores] = {i: {row: {} for row in self.rows} for i in sounds}
        if self._mask is not None:
            self._apply_fixed_mask(self._mask, sounds, estimates)
        if targets:
            mixtures = [sounds[i].mixture for i in targets]
            masked = self._apply_oracle_masks(mixtures, list(targets.values()))
            for i, estimate in zip(targets, masked, strict=True):
                estimates[i][ORACLE] = estimate
            # Only SDR takes the half for something else than the mixture, so the other scores do without it.
            half = [mixture / 2 for mixture in mixtures]
            by_row = {row: half if row == HALF else [estimates[i].get(row) for i in targets] for row in self.rows}
            sdr_scores = sdr_family(list(targets.values()), mixtures, by_row, self._batch_size)
            for i, item_scores in zip(targets, sdr_scores, strict=True):
                scores[i] |= item_scores
                for row in (row for row in item_scores if row.startswith(SEPARATED)):
                    scores[i][row]['leak'] = leak(targets[i], sounds[i].mixture, estimates[i][row])
        if targets and self._speech is not None:
            for i, row, speech_scores in self._speech.scores({i: (t, estimates[i]) for i, t in targets.items()}):
                scores[i][row] |= speech_scores
        if self._clap is not None:
            self._add_similarity(self._clap, sounds, estimates, clap_texts, scores)
        return {i: {row: values for row, values in rows.items() if values} for i, rows in scores.items()}

    def _separate(
        self, sounds: Mapping[int, Sound], embeddings: Embeddings, exclusions: Exclusions
    ) -> dict[int, dict[str, np.ndarray]]:
        """Returns for each item the estimate of every row that has a text for it, float32 [T] at the scores' rate."""
        model_rate = self._separator.config.sample_rate
        mixtures = {i: resample(sound.mixture, self._rate, model_rate) for i, sound in sounds.items()}
        # Right and wrong queries go into one call, so that they share batches and compiled shapes.
        calls = [
            (row, i, text)
            for row, texts in self._texts.items()
            for i in sounds
            if (text := texts[i]) is not None and (row != EXCLUDED or i in exclusions)
        ]
        asked = [
            (i, vector)
            for row, i, text in calls
            for vector in (exclusions[i] if row == EXCLUDED else (embeddings[text],))
        ]
        outputs = iter(
            self._separator.separate_batch(
                [mixtures[i] for i, _ in asked],
                np.stack([vector for _, vector in asked]),
                batch_size=self._batch_size,
            )
        )
        estimates: dict[int, dict[str, np.ndarray]] = {i: {} for i in sounds}
        for row, i, _ in calls:
            output = next(outputs)
            if row == EXCLUDED:
                output = self._without(output, next(outputs))
            if not np.isfinite(output).all():
                raise CheckpointError(
                    f'the model gives NaN or infinite samples for {self._names[i]}: its training diverged'
                )
            estimate = resample(output, model_rate, self._rate)[: len(sounds[i].mixture)]
            estimate = np.pad(estimate, (0, len(sounds[i].mixture) - len(estimate)))
            estimates[i][row] = sounds[i].mixture - estimate if row == REMAINDER else estimate
        return estimates

    def _without(self, target: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
        """Returns a target [T] in which the unwanted sound [T] is turned down."""
        config = self._separator.config
        sizes = {'window_size': config.window_size, 'hop_size': config.hop_size}
        return exclude(target[None], unwanted[None, None], **sizes)[0]

    def _apply_oracle_masks(self, mixtures: list[np.ndarray], targets: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the oracle's estimates, float32 [T]; its window and hop are as long as the model's, in seconds."""
        window, hop = stft_sizes(self._separator, self._rate)
        padded_mixtures, counts = padded_batch(mixtures, self._batch_size)
        padded_targets, _ = padded_batch(targets, self._batch_size)
        masked = np.asarray(oracle_ratio_mask(padded_mixtures, padded_targets, window, hop))
        return [estimate[:count] for estimate, count in zip(masked, counts, strict=False)]

    def _apply_fixed_mask(
        self, mask: TrainingMask, sounds: Mapping[int, Sound], estimates: Mapping[int, dict[str, np.ndarray]]
    ) -> None:
        padded, counts = padded_batch([sound.mixture for sound in sounds.values()], self._batch_size)
        classes = [*(self._classes[i] for i in sounds), *[None] * (len(padded) - len(sounds))]
        for i, estimate, count in zip(sounds, mask.separate(padded, classes), counts, strict=False):
            estimates[i][FIXED_MASK] = estimate[:count]

    def _add_similarity(
        self,
        clap: AudioTextEncoder,
        sounds: Mapping[int, Sound],
        estimates: Mapping[int, Mapping[str, np.ndarray]],
        clap_texts: Embeddings,
        scores: Mapping[int, Scores],
    ) -> None:
        """Adds the cosine similarity of outputs and texts; a row without texts is compared with the right ones."""
        right_texts = next(iter(self._texts.values()))
        for i, of_item in estimates.items():
            target = sounds[i].target
            waveforms = dict(of_item) if target is None else {**of_item, TARGET: target}
            audio_embeddings = clap.encode_audio([*waveforms.values()], sample_rate=self._rate)
            for row, embedding in zip(waveforms, audio_embeddings, strict=True):
                text = (right_texts if row == REMAINDER else self._texts.get(row, right_texts))[i]
                if text is not None:
                    scores[i].setdefault(row, {})['CLAP'] = cosine(clap_texts[text], embedding)


def embed_exclusions(
    separator: 'Separator', texts: Mapping[int, str], items: Sequence[Item], embeddings: Embeddings
) -> Exclusions:
    """Returns the embeddings of queries without the unwanted sounds of their items.

    Queries for exactly what they exclude are left out: both clips of a mixture may have the same caption.

    Args:
        separator: the model.
        texts: of the queries, by the item's index.
        items: all items.
        embeddings: of all texts, so that none is encoded again.
    """
    if not texts:
        return {}
    asked = [Query.vector(embeddings[texts[i]]).without(Query.vector(embeddings[items[i].unwanted])) for i in texts]
    try:
        embedded = separator.prepare(asked)
    except QueryError:
        half = len(texts) // 2
        parts = [dict(list(texts.items())[part]) for part in (slice(half), slice(half, None))] if half else []
        return {i: pair for part in parts for i, pair in embed_exclusions(separator, part, items, embeddings).items()}
    rows = zip(texts, embedded.queries, embedded.excluded, strict=True)
    return {i: (query, embedded.unwanted[excluded[0]]) for i, query, excluded in rows}


def leak(target: np.ndarray, mixture: np.ndarray, estimate: np.ndarray) -> float:
    """Returns the share of the rest of the mixture in the energy of what an estimate has of target and rest, 0 to 1.

    The estimate is taken for a multiple of the target, a multiple of the rest, and something unlike both, which does
    not count. All are float [T].
    """
    parts = np.stack([target, mixture - target]).astype(np.float64)
    products = parts @ parts.T
    weights = np.linalg.lstsq(products, parts @ np.asarray(estimate, np.float64), rcond=None)[0]
    energies = np.square(weights) * np.diag(products)
    return float(energies[1] / max(energies.sum(), 1e-20))


def stft_sizes(separator: 'Separator', rate: int) -> tuple[int, int]:
    """Returns the window and the hop, in samples at `rate` Hz, that are as long as the model's in seconds."""
    config, scale = separator.config, rate / separator.config.sample_rate
    return round(config.window_size * scale), round(config.hop_size * scale)


def sdr_family(
    targets: Sequence[np.ndarray],
    mixtures: Sequence[np.ndarray],
    estimates: Mapping[str, Sequence[np.ndarray | None]],
    batch_size: int = 1,
) -> list[Scores]:
    """Returns SDR, SDRi, SI-SDR and SI-SDRi in dB for each item, by row.

    Args:
        targets: float [T_i] of each item.
        mixtures: float [T_i] of each item.
        estimates: float [T_i] of each item, by row; None for an item that a row leaves out.
        batch_size: smaller batches are padded to this size, so that few shapes are compiled.
    """
    padded_targets, counts = padded_batch(targets, batch_size)
    padded_mixtures, _ = padded_batch(mixtures, batch_size)
    rows = [
        padded_batch([m if e is None else e for m, e in zip(mixtures, row, strict=True)], batch_size)[0]
        for row in estimates.values()
    ]
    padded_counts = np.array([*counts, *[1] * (batch_size - len(counts))], np.int32)
    sdr, si_sdr = jax.device_get(_jitted_scores(padded_targets, np.stack([padded_mixtures, *rows]), padded_counts))
    results: list[Scores] = [{} for _ in targets]
    for row, (name, of_items) in enumerate(estimates.items(), start=1):
        for b, estimate in enumerate(of_items):
            if estimate is not None:
                results[b][name] = {
                    'SDR': float(sdr[row, b]),
                    'SDRi': float(sdr[row, b] - sdr[0, b]),
                    'SI-SDR': float(si_sdr[row, b]),
                    'SI-SDRi': float(si_sdr[row, b] - si_sdr[0, b]),
                }
    return results


@jax.jit
def _jitted_scores(targets: jax.Array, estimates: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns SDR and SI-SDR in dB, [R, B] each, of targets [B, S], estimates [R, B, S] and numbers of samples [B]."""
    targets = jnp.broadcast_to(targets, estimates.shape)
    return metrics.sdr(targets, estimates, num_samples=counts), metrics.si_sdr(targets, estimates)


def padded_batch(signals: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray, list[int]]:
    """Returns n arrays [T_i] as float32 [max(n, batch_size), S], followed by zeros, and their lengths."""
    counts = [len(signal) for signal in signals]
    longest = -(-max(counts, default=1) // _GRID) * _GRID
    padded = np.zeros((max(len(signals), batch_size), longest), np.float32)
    for row, signal in zip(padded, signals, strict=False):
        row[: len(signal)] = signal
    return padded, counts


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the cosine similarity of two vectors [E]."""
    return float(np.dot(a, b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-10))
