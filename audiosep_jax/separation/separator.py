"""Separating: audio of any rate, length and number of channels, and queries in words or as embeddings.

Up to `max_whole_seconds` the network takes the whole recording at once, longer ones piece by piece with the same result
(models/folded.py says why): how a recording is cut makes no difference but to the memory.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from audiosep_jax.audio.resampling import Resampler, resample
from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.encoders.base import QueryEncoder, UnavailableEncoder
from audiosep_jax.encoders.registry import encoder_names, load_encoder
from audiosep_jax.errors import (
    AudioFileError,
    CheckpointError,
    ConfigError,
    DownloadError,
    EncoderMismatchError,
)
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.folded import fold
from audiosep_jax.separation.queries import Embedded, Query, embed
from audiosep_jax.separation.streaming import (
    Network,
    NetworkStream,
    SoundStream,
    padded_frames,
    separate_batch,
    separate_whole,
)

Queries = str | Query | Sequence[str | Query] | np.ndarray
_FRAMES_AT_ONCE = 128  # of long recordings, a multiple of 32; chosen by `benchmarks/separate.py`
_FRAMES_LIVE = 32
_BLOCK = 2**17  # samples
_MOST_CHANNELS = 1024  # as many as a WAV holds; an array with more is the wrong way round


@dataclasses.dataclass(frozen=True)
class Separation:
    """What was asked for, and what is left.

    Attributes:
        targets: float32 [Q, channels, T], one per query, at the rate and length of the input.
        residual: float32 [channels, T], the mixture less the sum of the targets.
    """

    targets: np.ndarray
    residual: np.ndarray


class Separator:
    """A trained model, ready to be asked. `load` makes one of a checkpoint.

    Attributes:
        config: of the model.
        encoder: turns text into embeddings; None: only embeddings are understood.
        info: what is known of the checkpoint: `step`, `encoder`, `config`, `path`.
        max_whole_seconds: what is longer goes through the network in pieces.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: dict,
        encoder: QueryEncoder | None = None,
        *,
        info: dict | None = None,
        max_whole_seconds: float | None = None,
    ):
        """
        Args:
            config: of the model.
            variables: its `params` and `batch_stats`; arrays of a training run's state, replicated over the devices
                of all its processes, will do.
            encoder: the query encoder that it was trained with.
            info: see the class.
            max_whole_seconds: longer input goes through the network in pieces, which takes less memory (the network of
                the article needs about 100 MB for every second at once). By default 8 on a CPU and 30 elsewhere.

        Raises:
            EncoderMismatchError: the encoder's embeddings are not of the model's size.
            ConfigError: a negative max_whole_seconds.
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
        self._whole = max_whole_seconds * config.sample_rate
        variables = {key: jax.tree.map(_of_one_device, variables[key]) for key in ('params', 'batch_stats')}
        self._network = Network(config, jax.jit(functools.partial(fold, config))(variables))

    def embed(self, queries: Queries) -> np.ndarray:
        """Queries as embeddings, float32 [Q, E]: texts through the encoder, arrays [E] or [Q, E] as they are.

        Raises:
            QueryError: no query, empty text, text without an encoder, or an array of the wrong size or not finite.
        """
        return self.prepare(queries).queries

    def prepare(self, queries: Queries) -> Embedded:
        """Queries embedded once, to be asked of many recordings; with what must stay out of them. Raises as `embed`."""
        return embed(queries, self.encoder, self.config.condition_size)

    def separate(
        self,
        audio: np.ndarray,
        queries: Queries | Embedded,
        *,
        sample_rate: int,
        per_channel: bool = False,
    ) -> Separation:
        """The sound that each query describes.

        The network hears the mean of the channels; its mask is then applied to each channel, so that the stereo image
        stays. Content above half the model's rate cannot be in a target: it stays in the residual.

        Args:
            audio: float [T] or [channels, T], ±1, any T above 0.
            queries: text, `Query` values, several of them, embeddings [E] or [Q, E], or what `prepare` made of such.
            sample_rate: of the audio, Hz.
            per_channel: run the network on each channel instead, as if they were recordings of their own.

        Raises:
            QueryError: see `embed`.
            AudioFileError: audio that is empty, not float, of another shape, or not finite.
        """
        audio = _checked(audio, sample_rate)
        embedded = queries if isinstance(queries, Embedded) else self.prepare(queries)
        length = audio.shape[-1]
        mixture = resample(audio, sample_rate, self.config.sample_rate)
        separated = self._separate_all(mixture, embedded, per_channel=per_channel)
        rows = separated.reshape(len(separated) * len(audio), mixture.shape[-1])
        back = Resampler(self.config.sample_rate, sample_rate, len(rows))
        targets = np.concatenate([back.push(rows), back.finish(length)], axis=-1).reshape(-1, *audio.shape)
        return Separation(targets, audio - targets.sum(0))

    @property
    def latency(self) -> float:
        """Seconds from a sample's entering `stream` to its coming out, at most (apart from the computing, and from
        resampling: a few milliseconds). It is how far ahead the network looks, and one piece of 32 frames; queries that
        keep something out take that piece and a window again."""
        return NetworkStream.latency(self.config, _FRAMES_LIVE)

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        queries: Queries | Embedded,
        *,
        sample_rate: int,
        per_channel: bool = False,
        live: bool = True,
    ) -> Iterator[Separation]:
        """As `separate`, of a recording that comes in blocks: the memory in use does not depend on its length.

        Args:
            blocks: float [n] or [channels, n], ±1, of any lengths; all of as many channels.
            queries: see `separate`.
            sample_rate: of the blocks, Hz.
            per_channel: see `separate`.
            live: pieces are wanted as soon as they are finished (see `latency`). Otherwise larger ones are made, and
                all at once up to `max_whole_seconds`, which is faster.

        Yields:
            Pieces. One after the other they are what `separate` makes of
            the whole recording: of the same length, equal to float rounding.

        Raises:
            QueryError: see `embed`.
            AudioFileError: a block that is none (see `separate`), or none at all.
        """
        embedded = queries if isinstance(queries, Embedded) else self.prepare(queries)
        return self._pieces(_alike(blocks, sample_rate), embedded, sample_rate, per_channel=per_channel, live=live)

    def _pieces(
        self, blocks: Iterator[np.ndarray], embedded: Embedded, sample_rate: int, *, per_channel: bool, live: bool
    ) -> Iterator[Separation]:
        first = list(_at_least(blocks, 0 if live else self._whole * sample_rate / self.config.sample_rate))
        if not live and sum(block.shape[-1] for block in first) * self.config.sample_rate <= self._whole * sample_rate:
            audio = np.concatenate(first, axis=-1)
            yield self.separate(audio, embedded, sample_rate=sample_rate, per_channel=per_channel)
            return
        stream = SoundStream(
            self._network,
            embedded,
            len(first[0]),
            sample_rate,
            per_channel=per_channel,
            frames=_FRAMES_LIVE if live else _FRAMES_AT_ONCE,
        )
        for block in itertools.chain(first, blocks):
            yield from _separation(*stream.push(block))
        yield from _separation(*stream.finish())

    def fingerprint(self) -> str:
        """Of the weights as they are used: equal for equal ones, wherever they are stored."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._network.weights):
            array = np.asarray(leaf)
            digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def separate_batch(
        self, mixtures: Sequence[np.ndarray], embeddings: np.ndarray, *, batch_size: int = 8
    ) -> list[np.ndarray]:
        """Many mono mixtures at the model's rate, each with a query of its own: what evaluation needs.

        A batch of at least as many mixtures as this process has devices is split over them.

        Args:
            mixtures: float [T_i], of any lengths; those of about the same length share a batch.
            embeddings: [B, E], one for each mixture.
            batch_size: mixtures at a time; rounded up to fill all devices where there are several.

        Returns:
            float32 [T_i], in the order of the mixtures.
        """
        mixtures = [_checked(mixture, self.config.sample_rate) for mixture in mixtures]
        results: list[np.ndarray | None] = [None] * len(mixtures)
        by_shape: dict[int, list[int]] = {}
        for i, mixture in enumerate(mixtures):
            if mixture.shape[-1] > self._whole:
                results[i] = self._separate_all(mixture, self.prepare(embeddings[i]), per_channel=False)[0, 0]
            else:
                by_shape.setdefault(padded_frames(mixture.shape[-1], self.config), []).append(i)
        for rows in by_shape.values():
            # Powers of two, so that the rests of many lengths have few compiled shapes.
            size, devices = min(batch_size, 1 << (len(rows) - 1).bit_length()), jax.local_device_count()
            if 1 < devices <= size:
                size = -(-size // devices) * devices
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                # A short last batch is filled up, rather than compiled for.
                filled = batch + batch[:1] * (size - len(batch))
                outputs = separate_batch(
                    self._network, [mixtures[i][0] for i in filled], np.stack([embeddings[i] for i in filled])
                )
                for i, output in zip(batch, outputs, strict=False):
                    results[i] = output
        return results

    def _separate_all(self, mixture: np.ndarray, embedded: Embedded, *, per_channel: bool) -> np.ndarray:
        """float32 [channels, T] at the model's rate -> the targets [Q, channels, T]; whole, or in pieces."""
        length = mixture.shape[-1]
        if length == 0:  # less than one sample at the model's rate
            return np.zeros((len(embedded.queries), *mixture.shape), np.float32)
        if length <= self._whole:
            return separate_whole(self._network, mixture, embedded, per_channel=per_channel)
        stream = NetworkStream(self._network, embedded, len(mixture), per_channel=per_channel, frames=_FRAMES_AT_ONCE)
        # Not all at once, which would only copy it.
        blocks = [stream.push(mixture[:, start : start + _BLOCK]) for start in range(0, length, _BLOCK)]
        return np.concatenate([*blocks, stream.finish()], axis=-1)


def load(
    path: str | Path | None = None, *, step: int | None = None, max_whole_seconds: float | None = None
) -> Separator:
    """A Separator from a checkpoint.

    Args:
        path: a run's workdir, its `checkpoints` folder, one step's folder, a converted checkpoint, or a repository of
            the hub; None: the official weights, fetched and converted once.
        step: which one, by default the newest.
        max_whole_seconds: see `Separator`.

    Raises:
        CheckpointError: the path is not a checkpoint, it is damaged, or its encoder is not one of this version.
        DownloadError: it is in the hub, which cannot be reached.
        EncoderMismatchError: its encoder is one of this version, but gives other embeddings now.
    """
    checkpoint = open_checkpoint(path, step=step)
    info = {
        'step': checkpoint.step,
        'encoder': checkpoint.encoder,
        'config': checkpoint.record['config'],
        'path': str(checkpoint.path),
    }
    return Separator(
        checkpoint.model,
        checkpoint.variables,
        _encoder_of(checkpoint),
        info=info,
        max_whole_seconds=max_whole_seconds,
    )


def _encoder_of(checkpoint: InferenceCheckpoint) -> QueryEncoder | None:
    if checkpoint.encoder is None:
        return None
    try:
        return load_encoder(checkpoint.encoder, folders=[checkpoint.root / 'encoder'])
    except EncoderMismatchError:
        raise
    except (ConfigError, DownloadError, CheckpointError) as error:
        if checkpoint.encoder.get('name') not in encoder_names():
            raise CheckpointError(f'{checkpoint.path}: {error}') from error
        # Embeddings can be asked all the same, and a text then says what is missing.
        place = checkpoint.root / 'encoder'
        missing = type(error)(f'the weights of its query encoder are missing: put them into {place} ({error})')
        return UnavailableEncoder(checkpoint.encoder, missing)


def _of_one_device(array):
    """An array as it is; of one that has a copy on each of several devices, the first of this process's copies."""
    several = isinstance(array, jax.Array) and len(array.sharding.device_set) > 1
    return array.addressable_data(0) if several and array.is_fully_replicated else array


def _alike(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks as float32 [channels, n], checked; at least one."""
    channels = None
    for block in blocks:
        block = _checked(block, sample_rate)
        if channels is not None and len(block) != channels:
            raise AudioFileError(f'a block of {len(block)} channels follows blocks of {channels}')
        channels = len(block)
        yield block
    if channels is None:
        raise AudioFileError('the audio has no blocks')


def _at_least(blocks: Iterator[np.ndarray], length: float) -> Iterator[np.ndarray]:
    """As many blocks as have more than `length` samples together, or all there are."""
    for block in blocks:
        yield block
        length -= block.shape[-1]
        if length < 0:
            return


def _separation(targets: np.ndarray, mixture: np.ndarray) -> Iterator[Separation]:
    """What came out of a stream, if anything did."""
    if mixture.shape[-1]:
        yield Separation(targets, mixture - targets.sum(0))


def _checked(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Audio [T] or [channels, T] as float32 [channels, T], or an AudioFileError that says what is wrong with it."""
    audio = np.asarray(audio)
    if not np.issubdtype(audio.dtype, np.floating):
        raise AudioFileError(f'audio must be float in ±1, got {audio.dtype}: divide int16 samples by 32768')
    if audio.ndim not in (1, 2) or 0 in audio.shape:
        raise AudioFileError(f'audio must have the shape [T] or [channels, T] with T > 0, got {list(audio.shape)}')
    if audio.ndim == 2 and len(audio) > _MOST_CHANNELS:
        raise AudioFileError(
            f'audio must have the shape [channels, T], got {list(audio.shape)}: transpose it '
            '(soundfile reads [T, channels])'
        )
    if not sample_rate > 0:
        raise AudioFileError(f'the sample rate must be above 0 Hz, got {sample_rate}')
    if not np.isfinite(audio).all():
        raise AudioFileError('the audio holds NaN or infinite samples')
    return np.atleast_2d(audio).astype(np.float32)
