"""Learns a query from recordings of a sound: tunes an embedding by gradient descent, with the network frozen.

The mixtures are made of random crops of the recordings and of backgrounds. What is minimized is the negative SNR of
what the network extracts (`snr_loss`), computed by the same program that separates, at the level that `separate` lets
the network hear. Some mixtures lack the sound, so that the query does not come to mean everything.

Recordings and backgrounds are each split by file, a single one by time. One part makes the mixtures to learn from; the
other makes those that decide when to stop, and others that the scores are measured on.

Letters: B mixtures, T samples of a crop, E embedding size.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Float32, Int

from audiosep_jax import metrics
from audiosep_jax.errors import ConfigError, QueryError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.folded import Weights
from audiosep_jax.query_learning.mixtures import Background, Mixer, Sound, Waveform, crops_of, read_sounds, split
from audiosep_jax.query_learning.procedural import procedural_background
from audiosep_jax.separation.level import level_bounds
from audiosep_jax.separation.network import pad_mixtures, separate_rows
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.query_files import LearntQuery, QueryScores
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.losses import snr_loss

Start = Literal['auto', 'text', 'sounds', 'both']
Embedding = Float32[np.ndarray, ' E']
_SCORED = 64  # mixtures that the scores are measured on; half as many decide when to stop
_SCORED_AT_ONCE = 8
_ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How a query is learnt. The defaults were chosen by `benchmarks/learn_query.py`.

    Attributes:
        steps: at most; learning stops earlier if the mixtures that decide on it show no progress.
        batch_size: B, mixtures per step.
        seconds: length of a mixture.
        learning_rate: of Adam: about how far a step moves the embedding, relative to its length.
        averaged: over about how many steps the embedding is averaged.
        snr_db: the least and the greatest level of the sound relative to the background.
        absent: the share of mixtures without the sound.
        check_every: steps from one look at the held-out mixtures to the next.
        patience: looks without progress after which learning stops.
        seed: of the splits, the crops and the levels.

    Raises:
        ConfigError: a value is out of range.
    """

    steps: int = 200
    batch_size: int = 8
    seconds: float = 1.0
    learning_rate: float = 0.1
    averaged: int = 10
    snr_db: tuple[float, float] = (-10.0, 10.0)
    absent: float = 0.125
    check_every: int = 10
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('steps', 'batch_size', 'averaged', 'check_every', 'patience'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} must be at least 1, got {getattr(self, name)}')
        for name in ('seconds', 'learning_rate'):
            if not 0 < getattr(self, name) < float('inf'):
                raise ConfigError(f'{name} must be above 0 and finite, got {getattr(self, name)}')
        if not 0 <= self.absent < 1:
            raise ConfigError(f'absent must be at least 0 and below 1, got {self.absent}')
        if not -100 <= self.snr_db[0] <= self.snr_db[1] <= 100:
            raise ConfigError(f'snr_db: from {self.snr_db[0]} to {self.snr_db[1]} dB is no range within ±100 dB')


def learn_query(
    separator: Separator,
    examples: Sequence[Sound],
    *,
    query: str | Query | None = None,
    backgrounds: Sequence[Sound] = (),
    sample_rate: int | None = None,
    start: Start = 'auto',
    config: LearningConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LearntQuery:
    """Learns an embedding that extracts the sound of the examples better than the start does.

    Args:
        separator: the model that the query is for. It is not changed.
        examples: recordings of the sound, as clean as possible: files, or float arrays [T] or [channels, T] in ±1.
        query: what one would ask without learning.
        backgrounds: recordings without the sound, such as those that it occurs in; procedural ones if there are none.
        sample_rate: of the arrays, in Hz.
        start: where learning starts: from the embedding of the query (`text`), that of the examples (`sounds`; models
            with a CLAP encoder), the mean of both (`both`), or the best of those that can be had (`auto`).
        config: how to learn.
        progress: is called with the number of steps done and that of all steps, now and then.

    Returns:
        The learnt query; or the start, if nothing better was found. It is never worse on the mixtures of the scores.

    Raises:
        ConfigError: arrays without a sample rate, no examples, or an unknown start.
        QueryError: there is nothing to start from, or the query cannot be used.
        AudioFileError: a recording that cannot be read, or that is silent.
    """
    config = config or LearningConfig()
    if start not in get_args(Start):
        raise ConfigError(f'start {start!r}: use {", ".join(map(repr, get_args(Start)))}')
    if isinstance(query, Query) and query.unwanted:
        raise ConfigError(f'{query}: learning starts from a query that does not exclude sounds')
    examples, backgrounds = _each_once(examples), _each_once(backgrounds)
    if not examples:
        raise ConfigError('no examples: give recordings of the sound')
    hears = callable(getattr(separator.encoder, 'encode_audio', None))
    _check_start(start, query, hears)
    rng, rate = np.random.default_rng(config.seed), separator.config.sample_rate
    parts = split(read_sounds(examples, rate, sample_rate, rng))
    mixers = _mixers(parts, split(read_sounds(backgrounds, rate, sample_rate, rng)), rate, config)
    starts = _starts(separator, query, parts[0] if hears else [], start)
    deciding, scored = (
        _HeldOut(separator, dataclasses.replace(mixers[1], absent=0), rng, count) for count in (_SCORED // 2, _SCORED)
    )
    progress(0, config.steps)
    name = max(starts, key=lambda name: deciding.sdri(starts[name])) if len(starts) > 1 else next(iter(starts))
    learnt, steps = _descend(separator, starts[name], mixers[0], deciding, config, rng, progress)
    before, after = scored.scores(starts[name]), scored.scores(learnt)
    kept = steps > 0 and after.sdri > before.sdri
    progress(config.steps, config.steps)
    return LearntQuery(
        embedding=learnt if kept else starts[name],
        encoder=None if separator.encoder is None else separator.encoder.identity(),
        network=separator.network.identity,
        checkpoint=str(separator.info.get('path', '')),
        step=separator.info.get('step'),
        start=name,
        learnt=kept,
        steps=steps if kept else 0,
        examples=_names(examples),
        backgrounds=_names(backgrounds),
        held_out_mixtures=_SCORED,
        before=before,
        after=after if kept else before,
    )


def _each_once(sounds: Sequence[Sound]) -> list[Sound]:
    """Returns the sounds without repeated files, because a file must not be learnt from and held out."""
    found = {Path(sound).resolve() if isinstance(sound, str | Path) else id(sound): sound for sound in sounds}
    return list(found.values())


def _mixers(
    examples: Sequence[list[Waveform]], backgrounds: Sequence[list[Waveform]], rate: int, config: LearningConfig
) -> list[Mixer]:
    """Returns what makes mixtures of the parts to learn from, and of those that are held out.

    Without backgrounds, they are procedural.
    """
    length = round(config.seconds * rate)

    def draw(part: list[Waveform]) -> Background:
        return crops_of(part, length) if part else lambda rng: procedural_background(rng, length, rate)

    pairs = zip(examples, backgrounds, strict=True)
    return [Mixer(crops_of(part, length), draw(others), config.snr_db, config.absent) for part, others in pairs]


def _names(sounds: Sequence[Sound]) -> tuple[str, ...]:
    return tuple(Path(sound).name if isinstance(sound, str | Path) else 'array' for sound in sounds)


# ---- where to start --------------------------------------------------------------------------------------------------


def _check_start(start: Start, query: str | Query | None, hears: bool) -> None:
    """Raises QueryError if there is nothing to start from."""
    if query is None and start in ('text', 'both'):
        raise QueryError(f'start {start!r} needs a query in words: give --query')
    if not hears and start in ('sounds', 'both'):
        raise QueryError(f"start {start!r}: this model's encoder does not hear sounds: give --query, and start 'text'")
    if query is None and not hears:
        raise QueryError(
            "nothing to start from: this model's encoder does not hear sounds, so give --query with the sound in words"
        )


def _starts(separator: Separator, query: str | Query | None, sounds: Sequence[Waveform], start: Start) -> dict:
    """Returns the embeddings that learning may start from, by what they are.

    Args:
        separator: the model.
        query: in words; None: there is none.
        sounds: the examples to learn from, none if the encoder does not hear them. Those that are held out would make
            the scores of the start too good.
        start: which ones are wanted.
    """
    found: dict[str, Embedding] = {}
    if query is not None and (start != 'sounds' or not sounds):
        found[f'the query {str(query)!r}'] = separator.embed(query)[0]
    if sounds and start != 'text':
        rate = separator.config.sample_rate
        heard = sum((Query.audio(sound, rate) for sound in sounds[1:]), start=Query.audio(sounds[0], rate))
        found['the sounds'] = separator.embed(heard)[0]
    if len(found) == 2:
        text, heard_embedding = found.values()
        unit = [Query.vector(x / max(float(np.linalg.norm(x)), 1e-12)) for x in (text, heard_embedding)]
        length = (np.linalg.norm(text) + np.linalg.norm(heard_embedding)) / 2
        both = {'the query and the sounds': separator.embed(unit[0] + unit[1])[0] * np.float32(length)}
        found = both if start == 'both' else found | both
    return found


# ---- held-out mixtures -----------------------------------------------------------------------------------------------


class _HeldOut:
    """Mixtures that are drawn once, to compare embeddings on.

    Args:
        separator: the model.
        mixer: makes the mixtures.
        rng: draws them.
        count: how many.
    """

    def __init__(self, separator: Separator, mixer: Mixer, rng: np.random.Generator, count: int):
        self._separator = separator
        self._mixtures, self._targets = map(jnp.asarray, mixer.draw(rng, count))
        self._backgrounds = jnp.asarray(dataclasses.replace(mixer, absent=1.0).draw(rng, max(count // 4, 1))[0])

    def sdri(self, embedding: Embedding) -> float:
        """Returns the mean SDR improvement."""
        estimates = self._separate(self._mixtures, embedding)
        return float(jnp.mean(metrics.sdri(self._targets, estimates, self._mixtures)))

    def scores(self, embedding: Embedding) -> QueryScores:
        """Returns all scores."""
        estimates = self._separate(self._mixtures, embedding)
        false = self._separate(self._backgrounds, embedding)
        return QueryScores(
            sdri=float(jnp.mean(metrics.sdri(self._targets, estimates, self._mixtures))),
            si_sdr=float(jnp.mean(metrics.si_sdr(self._targets, estimates))),
            background=float(-jnp.mean(metrics.sdr(self._backgrounds, self._backgrounds - false))),
        )

    def _separate(self, mixtures: Float32[Array, 'B T'], embedding: Embedding) -> Float32[Array, 'B T']:
        rows = np.tile(embedding, (len(mixtures), 1))
        estimates = self._separator.separate_batch(list(np.asarray(mixtures)), rows, batch_size=_SCORED_AT_ONCE)
        return jnp.stack(estimates)


# ---- gradient descent ------------------------------------------------------------------------------------------------


def _descend(
    separator: Separator,
    start: Embedding,
    mixer: Mixer,
    deciding: _HeldOut,
    config: LearningConfig,
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> tuple[Embedding, int]:
    """Returns the embedding that is best on the deciding mixtures, and after how many steps; 0: the start is best."""
    model, weights = separator.config, separator.network.weights
    bounds = level_bounds(separator.heard_level)
    embedding = average = jnp.asarray(start)
    state = _ADAM.init(embedding)
    best, best_step, best_sdri = start, 0, deciding.sdri(start)
    for step in range(1, config.steps + 1):
        mixtures, targets = mixer.draw(rng, config.batch_size)
        padded, counts = pad_mixtures(list(mixtures), model)
        embedding, state = _step(
            model, config.learning_rate, weights, bounds, padded, counts, mixtures, targets, embedding, state
        )
        # From the first steps on, an average over those that there are.
        average += max(1 / step, 1 / config.averaged) * (embedding - average)
        if step % config.check_every == 0 or step == config.steps:
            found = np.asarray(average * (np.linalg.norm(start) / jnp.linalg.norm(average)))
            sdri = deciding.sdri(found)
            if sdri > best_sdri:
                best, best_step, best_sdri = found, step, sdri
            elif step - best_step >= config.patience * config.check_every:
                break
            progress(step, config.steps)
    return best, best_step


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    model: ModelConfig,
    learning_rate: float,
    weights: Weights,
    bounds: Float32[Array, '2'] | None,
    padded: Float32[Array, 'B S'],
    counts: Int[Array, ' B'],
    mixtures: Float32[Array, 'B T'],
    targets: Float32[Array, 'B T'],
    embedding: Float32[Array, ' E'],
    state: optax.OptState,
) -> tuple[Float32[Array, ' E'], optax.OptState]:
    """Takes a step down the gradient of the loss, and back to the length of the embedding.

    Embeddings of most encoders have length 1. One that keeps it can be blended and excluded like all others.

    Returns:
        The embedding, and the state of the optimizer.
    """

    def loss(embedding: Float[Array, ' E']) -> Array:
        rows = jnp.broadcast_to(embedding, (len(padded), embedding.size))
        estimates = separate_rows(model, weights, bounds, padded, counts, rows)[:, : targets.shape[1]]
        return jnp.mean(snr_loss(estimates, targets, mixtures))

    update, state = _ADAM.update(jax.grad(loss)(embedding), state)
    length = jnp.linalg.norm(embedding)
    moved = embedding - learning_rate * length / np.sqrt(embedding.size) * update
    return moved * (length / jnp.linalg.norm(moved)), state
