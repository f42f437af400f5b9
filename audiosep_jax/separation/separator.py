"""The separator: takes audio of any rate, length and number of channels, and queries of any kind.

The network takes a recording of up to `max_whole_seconds` at once and a longer one piece by piece, with the same result
(models/folded.py says why): how a recording is cut matters only to memory and speed.

Letters: Q queries, T samples, B mixtures of a batch, E embedding size.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from audiosep_jax.audio.resampling import Resampler, resample
from audiosep_jax.audio.samples import check_audio
from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.errors import AudioFileError, ConfigError, EncoderMismatchError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.models.folded import fold
from audiosep_jax.models.packing import lanes_of
from audiosep_jax.separation.cancellation import warn_of_cancellation
from audiosep_jax.separation.level import ASSUMED, LevelRule, check_level, level_bounds
from audiosep_jax.separation.network import Network, padded_frames, separate_batch, separate_whole
from audiosep_jax.separation.queries import Embedded, Query, embed, warn_of_other_networks
from audiosep_jax.separation.streaming import NetworkStream, SoundStream
from audiosep_jax.separation.strength import blended, check_strength

Queries = str | Query | Sequence[str | Query] | np.ndarray
Progress = Callable[[float, float], None]  # takes the seconds done and the seconds in all
_FRAMES_AT_ONCE = 128  # frames in a piece of a long recording, a multiple of 32; chosen by `benchmarks/separate.py`
_FRAMES_LIVE = 32  # frames in a piece of a live recording
_BLOCK = 2**17  # samples


@dataclasses.dataclass(frozen=True)
class Separation:
    """The separated targets, and what is left of the mixture.

    Attributes:
        targets: one per query, at the rate and length of the input.
        residual: the mixture less the sum of the targets.
    """

    targets: Float32[np.ndarray, 'Q channels T']
    residual: Float32[np.ndarray, 'channels T']

    @property
    def mixture(self) -> Float32[np.ndarray, 'channels T']:
        """The mixture, as the sum of its parts, unless they have been blended."""
        return self.residual + self.targets.sum(0)

    def blended(self, strength: float, mixture: Float32[np.ndarray, 'channels T'] | None = None) -> 'Separation':
        """Returns the targets and the residual, each blended with the mixture (`strength.py` says how).

        Unless the strength is 1, they no longer add up to the mixture.

        Args:
            strength: from 0 to 1.
            mixture: by default the sum of the parts, which differs from the recording by rounding.
        """
        if strength == 1:
            return self
        mixture = self.mixture if mixture is None else mixture
        return Separation(blended(self.targets, mixture, strength), blended(self.residual, mixture, strength))


class Separator:
    """A trained model that separates what queries ask for. `loading.load` makes one from a checkpoint.

    Attributes:
        config: of the model.
        encoder: turns text into embeddings; None: only embeddings are understood.
        info: facts about the checkpoint: `step`, `encoder`, `config`, `path`, and the share of its `equalizer`.
        max_whole_seconds: longer recordings go through the network in pieces.
        trained_level: of the mixtures that the network was trained on; None if it is not known.
        level: what the methods do unless they are told: `auto` lets the network hear each recording at the level that
            it was trained at (`level.py` says how), `off` as it is.
        equalizer: what is mixed into all results; None: they are the network's alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Mapping[str, Any],
        encoder: QueryEncoder | None = None,
        *,
        info: dict[str, Any] | None = None,
        max_whole_seconds: float | None = None,
        trained_level: Level | None = None,
        level: LevelRule | None = None,
        equalizer: Equalizer | None = None,
    ):
        """Folds the weights and puts them on the device.

        Args:
            config: of the model.
            variables: `params` and `batch_stats` of the model. They may be arrays of a training run's state, replicated
                over the devices of all its processes.
            encoder: the query encoder with which the model was trained.
            info: see the class.
            max_whole_seconds: longer recordings go through the network in pieces, to save memory: the article's network
                needs about 100 MB for each second that it takes at once. By default 8 on a CPU and 30 elsewhere.
            trained_level: see the class.
            level: see the class; by default `auto` if trained_level is known, otherwise `off`.
            equalizer: see the class.

        Raises:
            EncoderMismatchError: the encoder's embeddings do not have the model's size.
            ConfigError: a negative max_whole_seconds, or an unknown level.
        """
        if encoder is not None and encoder.embedding_size != config.condition_size:
            raise EncoderMismatchError(
                f'the encoder {encoder.name!r} gives {encoder.embedding_size} numbers, '
                f'the model takes {config.condition_size}'
            )
        if max_whole_seconds is None:
            max_whole_seconds = 8.0 if jax.default_backend() == 'cpu' else 30.0
        if not max_whole_seconds >= 0:
            raise ConfigError(f'max_whole_seconds {max_whole_seconds}: must not be negative')
        self.config = config
        self.encoder = encoder
        self.info = info or {}
        self.max_whole_seconds = max_whole_seconds
        self.trained_level = trained_level
        self.level: LevelRule = check_level(level or ('off' if trained_level is None else 'auto'))
        self._whole = max_whole_seconds * config.sample_rate
        local = {key: jax.tree.map(_local_copy, variables[key]) for key in ('params', 'batch_stats')}
        backend = jax.default_backend()
        folded = functools.partial(fold, config, lanes=lanes_of(backend), transformed=backend == 'cpu')
        weights = jax.jit(folded)(local)
        self.equalizer = equalizer if equalizer is not None and equalizer.share else None
        if self.equalizer is not None:
            weights['equalizer'] = jax.device_put(self.equalizer.weights())
        self._network = Network(config, weights)

    def embed(self, queries: Queries) -> Float32[np.ndarray, 'Q E']:
        """Computes the embeddings of queries. Arrays [E] or [Q, E] stay as they are.

        Raises:
            QueryError: no query, an empty text, a text without an encoder, an array that has the wrong size or is not
                finite, or a query that was learnt with another encoder.
        """
        return self.prepare(queries).queries

    def prepare(self, queries: Queries) -> Embedded:
        """Embeds queries, and the sounds that they exclude, once for many recordings. Raises the errors of `embed`.

        If a query was learnt with another checkpoint, a warning is logged.
        """
        embedded = embed(queries, self.encoder, self.config.condition_size)
        warn_of_other_networks(queries, lambda: self._network.identity)
        return embedded

    @property
    def network(self) -> Network:
        """The folded network, for gradients of what `separate_batch` computes."""
        return self._network

    @property
    def heard_level(self) -> Level | None:
        """The level at which the network hears recordings by default; None: as they are."""
        return self._heard_at(None)

    def separate(
        self,
        audio: np.ndarray,
        queries: Queries | Embedded,
        *,
        sample_rate: int,
        per_channel: bool = False,
        level: LevelRule | None = None,
        strength: float = 1.0,
        progress: Progress | None = None,
    ) -> Separation:
        """Separates the sound that each query describes.

        The network hears the mean of the channels, and its mask is applied to each channel, so that the stereo image
        stays. Frequencies above half the model's rate are never in a target; they stay in the residual. If the channels
        cancel in their mean, a warning is logged.

        Args:
            audio: float [T] or [channels, T] in ±1, T above 0.
            queries: text, a `Query`, several of them, embeddings [E] or [Q, E], or what `prepare` returned.
            sample_rate: of the audio, Hz.
            per_channel: run the network on each channel instead, as if the channels were separate recordings.
            level: `auto` or `off`, see the class; by default the separator's.
            strength: s, from 0 to 1, blends the sounds with the recording: s·sound + (1 − s)·recording, for the
                residual as well. Less than 1 hides artefacts.
            progress: called after each piece with the seconds done and the seconds in all, the last time with both
                equal. What it raises ends the separation.

        Raises:
            QueryError: see `embed`.
            ConfigError: an unknown level, or a strength that is not between 0 and 1.
            AudioFileError: audio that is empty, not float, of another shape, or not finite.
        """
        audio, heard_at = check_audio(audio, sample_rate), self._heard_at(level)
        check_strength(strength)
        if not per_channel:
            (audio,) = warn_of_cancellation([audio], sample_rate)
        embedded = queries if isinstance(queries, Embedded) else self.prepare(queries)
        length = audio.shape[-1]
        mixture = resample(audio, sample_rate, self.config.sample_rate)
        seconds = length / sample_rate

        def report(samples: int) -> None:
            if progress is not None:
                progress(min(samples / self.config.sample_rate, seconds), seconds)

        separated = self._separate_all(mixture, embedded, per_channel=per_channel, level=heard_at, report=report)
        rows = separated.reshape(len(separated) * len(audio), mixture.shape[-1])
        back = Resampler(self.config.sample_rate, sample_rate, len(rows))
        targets = np.concatenate([back.push(rows), back.finish(length)], axis=-1).reshape(-1, *audio.shape)
        if progress is not None:
            progress(seconds, seconds)
        return Separation(targets, audio - targets.sum(0)).blended(strength, audio)

    @property
    def latency(self) -> float:
        """Seconds after which a sample that enters `stream` comes out, at most.

        They cover how far ahead the network looks and one piece of 32 frames, but neither the computation nor the few
        milliseconds of resampling. Queries that exclude sounds need another piece and a window.
        """
        return NetworkStream.latency(self.config, _FRAMES_LIVE)

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        queries: Queries | Embedded,
        *,
        sample_rate: int,
        per_channel: bool = False,
        live: bool = True,
        level: LevelRule | None = None,
    ) -> Iterator[Separation]:
        """Separates a recording that comes in blocks, with memory that does not depend on its length.

        Args:
            blocks: float [n] or [channels, n] in ±1, of any lengths and with the same number of channels.
            queries: see `separate`.
            sample_rate: of the blocks, Hz.
            per_channel: see `separate`.
            live: yield pieces as soon as they are finished (see `latency`). Otherwise pieces are larger, and recordings
                of up to `max_whole_seconds` are one piece, which is faster.
            level: see `separate`. The rule never looks ahead, so it makes no piece later.

        Yields:
            Pieces which together are what `separate` returns for the whole recording, to float rounding.

        Raises:
            QueryError: see `embed`.
            ConfigError: see `separate`.
            AudioFileError: no blocks, or an invalid block (see `separate`).
        """
        embedded = queries if isinstance(queries, Embedded) else self.prepare(queries)
        blocks = _check_blocks(blocks, sample_rate)
        level = self.level if level is None else check_level(level)
        return self._stream(blocks, embedded, sample_rate, per_channel=per_channel, live=live, level=level)

    def _stream(
        self,
        blocks: Iterator[np.ndarray],
        embedded: Embedded,
        sample_rate: int,
        *,
        per_channel: bool,
        live: bool,
        level: LevelRule,
    ) -> Iterator[Separation]:
        first = list(_take(blocks, 0 if live else self._whole * sample_rate / self.config.sample_rate))
        if not live and sum(block.shape[-1] for block in first) * self.config.sample_rate <= self._whole * sample_rate:
            audio = np.concatenate(first, axis=-1)
            yield self.separate(audio, embedded, sample_rate=sample_rate, per_channel=per_channel, level=level)
            return
        stream = SoundStream(
            self._network,
            embedded,
            len(first[0]),
            sample_rate,
            per_channel=per_channel,
            frames=_FRAMES_LIVE if live else _FRAMES_AT_ONCE,
            level=self._heard_at(level),
        )
        whole = itertools.chain(first, blocks)
        for block in whole if per_channel else warn_of_cancellation(whole, sample_rate):
            yield from _separations(*stream.push(block))
        yield from _separations(*stream.finish())

    def fingerprint(self) -> str:
        """Returns a hash of the folded weights, and of the level at which they hear unless that is off.

        It does not depend on where the checkpoint is stored.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._network.weights):
            array = np.asarray(leaf)
            digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        bounds = level_bounds(self._heard_at(None))
        if bounds is not None:
            digest.update(bounds.tobytes())
        return digest.hexdigest()

    def separate_batch(
        self,
        mixtures: Sequence[np.ndarray],
        embeddings: Float[np.ndarray, 'B E'],
        *,
        batch_size: int = 8,
        level: LevelRule | None = None,
    ) -> list[Float32[np.ndarray, ' _']]:
        """Separates many mono mixtures at the model's rate, each by its own query, as evaluation does.

        A batch is split over this process's devices if it has at least as many mixtures as there are devices.

        Args:
            mixtures: float [T_i], of any lengths; mixtures of about the same length share a batch.
            embeddings: of the queries, one for each mixture.
            batch_size: mixtures at a time; rounded up to fill all devices if there are several.
            level: see `separate`.

        Returns:
            The targets [T_i], in the order of the mixtures.

        Raises:
            AudioFileError: a mixture that is empty, not float, of another shape, or not finite.
            QueryError: an embedding of the wrong size.
            ConfigError: an unknown level.
        """
        heard_at = self._heard_at(level)
        checked = [check_audio(mixture, self.config.sample_rate) for mixture in mixtures]
        results: dict[int, np.ndarray] = {}
        by_shape: dict[int, list[int]] = {}
        for i, mixture in enumerate(checked):
            if mixture.shape[-1] > self._whole:
                results[i] = self._separate_all(
                    mixture, self.prepare(embeddings[i]), per_channel=False, level=heard_at
                )[0, 0]
            else:
                by_shape.setdefault(padded_frames(mixture.shape[-1], self.config), []).append(i)
        for rows in by_shape.values():
            # Sizes are powers of two, so that few shapes are compiled for the many lengths' last batches.
            size, devices = min(batch_size, 1 << (len(rows) - 1).bit_length()), jax.local_device_count()
            if 1 < devices <= size:
                size = -(-size // devices) * devices
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                # A short last batch is filled up, because its own shape would have to be compiled.
                filled = batch + batch[:1] * (size - len(batch))
                outputs = separate_batch(
                    self._network,
                    [checked[i][0] for i in filled],
                    np.stack([embeddings[i] for i in filled]),
                    level=heard_at,
                )
                for i, output in zip(batch, outputs, strict=False):
                    results[i] = output
        return [results[i] for i in range(len(checked))]

    def _heard_at(self, level: LevelRule | None) -> Level | None:
        """Returns the level at which the network is to hear a recording; None: as it is. Raises ConfigError."""
        level = self.level if level is None else check_level(level)
        return None if level == 'off' else self.trained_level or ASSUMED

    def _separate_all(
        self,
        mixture: Float32[np.ndarray, 'channels T'],
        embedded: Embedded,
        *,
        per_channel: bool,
        level: Level | None,
        report: Callable[[int], None] = lambda samples: None,
    ) -> Float32[np.ndarray, 'Q channels T']:
        """Separates a recording at the model's rate, whole or in pieces; reports how far it is between them."""
        length = mixture.shape[-1]
        if length == 0:  # the input was shorter than one sample at the model's rate
            return np.zeros((len(embedded.queries), *mixture.shape), np.float32)
        if length <= self._whole:
            return separate_whole(self._network, mixture, embedded, per_channel=per_channel, level=level)
        stream = NetworkStream(
            self._network, embedded, len(mixture), per_channel=per_channel, frames=_FRAMES_AT_ONCE, level=level
        )
        # The stream takes blocks because it copies what it has not processed yet.
        blocks = []
        for start in range(0, length, _BLOCK):
            if start:
                report(start)
            blocks.append(stream.push(mixture[:, start : start + _BLOCK]))
        return np.concatenate([*blocks, stream.finish()], axis=-1)


def _local_copy(array: Any) -> Any:
    """Returns this process's first copy of an array that is replicated over several devices; other arrays as is."""
    several = isinstance(array, jax.Array) and len(array.sharding.device_set) > 1
    return array.addressable_data(0) if several and array.is_fully_replicated else array


def _check_blocks(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[Float32[np.ndarray, 'channels _']]:
    """Yields blocks as float32 [channels, n], and raises AudioFileError if their channels differ or there is none."""
    channels = None
    for block in blocks:
        block = check_audio(block, sample_rate)
        if channels is not None and len(block) != channels:
            raise AudioFileError(f'a block of {len(block)} channels follows blocks of {channels}')
        channels = len(block)
        yield block
    if channels is None:
        raise AudioFileError('the audio has no blocks')


def _take(blocks: Iterator[np.ndarray], length: float) -> Iterator[np.ndarray]:
    """Yields blocks until they have more than `length` samples together."""
    for block in blocks:
        yield block
        length -= block.shape[-1]
        if length < 0:
            return


def _separations(targets: np.ndarray, mixture: np.ndarray) -> Iterator[Separation]:
    """Yields what came out of a stream, unless it is empty."""
    if mixture.shape[-1]:
        yield Separation(targets, mixture - targets.sum(0))
