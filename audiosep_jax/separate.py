"""Separating: audio of any rate, length and number of channels, and queries in words or as embeddings.

Up to `max_whole_seconds` the network sees the whole recording at once. Longer ones go through it in overlapping windows
that are cross-faded. Windows begin on the network's grid (32 frames), where its pooling sees what it would see in the
whole recording: off that grid the result is another one.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from audiosep_jax.audio import resample
from audiosep_jax.checkpoint import InferenceCheckpoint, load_for_inference
from audiosep_jax.encoders import QueryEncoder, UnavailableEncoder, encoder_names, load_encoder
from audiosep_jax.errors import (
    AudioFileError,
    CheckpointError,
    ConfigError,
    DownloadError,
    EncoderMismatchError,
)
from audiosep_jax.model import AudioSep, ModelConfig
from audiosep_jax.published import find_checkpoint
from audiosep_jax.queries import Embedded, Query, embed, keep_out
from audiosep_jax.resunet import TIME_DOWNSAMPLING
from audiosep_jax.sharding import batch_sharded, make_mesh, replicated
from audiosep_jax.stft import istft, num_frames, reflect_pad, stft

Queries = str | Query | Sequence[str | Query] | np.ndarray
_OVERLAP_SECONDS = 2.0
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
        max_whole_seconds: what is longer is separated in windows of this length.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: dict,
        encoder: QueryEncoder | None = None,
        *,
        info: dict | None = None,
        max_whole_seconds: float = 30.0,
    ):
        """
        Args:
            config: of the model.
            variables: its `params` and `batch_stats`; arrays of a training run's state, replicated over the devices
                of all its processes, will do.
            encoder: the query encoder that it was trained with.
            info: see the class.
            max_whole_seconds: longer input is separated in windows of this length; at least 5.

        Raises:
            EncoderMismatchError: the encoder's embeddings are not of the model's size.
            ConfigError: windows too short to overlap.
        """
        if encoder is not None and encoder.embedding_size != config.condition_size:
            raise EncoderMismatchError(
                f'the encoder {encoder.name!r} gives {encoder.embedding_size} numbers, '
                f'the model takes {config.condition_size}'
            )
        grid = TIME_DOWNSAMPLING * config.hop_size
        self._window = int(max_whole_seconds * config.sample_rate) // grid * grid
        self._overlap = -(-int(_OVERLAP_SECONDS * config.sample_rate) // grid) * grid
        if self._window < 2 * self._overlap:
            raise ConfigError(
                f'max_whole_seconds {max_whole_seconds} is too short: '
                f'use at least {2 * self._overlap / config.sample_rate:g}'
            )
        self.config = config
        self.encoder = encoder
        self.info = info or {}
        self.max_whole_seconds = max_whole_seconds
        self._variables = jax.device_put(
            {name: jax.tree.map(_of_one_device, variables[name]) for name in ('params', 'batch_stats')}
        )
        self._on_all_devices: tuple | None = None  # mesh and variables, once they are needed there

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
        if per_channel:
            channels = [self._separate_all(mixture[c : c + 1], embedded) for c in range(len(mixture))]
            separated = np.concatenate(channels, axis=1)
        else:
            separated = self._separate_all(mixture, embedded)
        targets = _fit(resample(separated, self.config.sample_rate, sample_rate), length)
        return Separation(targets, audio - targets.sum(0))

    def fingerprint(self) -> str:
        """Of the weights: equal for equal ones, wherever they are stored."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._variables):
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
            if mixture.shape[-1] > self._window:
                results[i] = self._separate_all(mixture, self.prepare(embeddings[i]))[0, 0]
            else:
                by_shape.setdefault(_padded_frames(mixture.shape[-1], self.config), []).append(i)
        for rows in by_shape.values():
            # Powers of two, so that the rests of many lengths have few compiled shapes.
            size, devices = min(batch_size, 1 << (len(rows) - 1).bit_length()), jax.local_device_count()
            split = 1 < devices <= size
            if split:
                size = -(-size // devices) * devices
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                # A short last batch is filled up, rather than compiled for.
                filled = batch + batch[:1] * (size - len(batch))
                outputs = self._run(
                    [mixtures[i] for i in filled], np.stack([embeddings[i] for i in filled]), split=split
                )
                for i, output in zip(batch, outputs, strict=False):
                    results[i] = output[0]
        return results

    def _separate_all(self, mixture: np.ndarray, embedded: Embedded) -> np.ndarray:
        """float32 [channels, T] at the model's rate -> the targets [Q, channels, T]; whole, or in windows."""
        length = mixture.shape[-1]
        targets = np.zeros((len(embedded.queries), *mixture.shape), np.float32)
        if length == 0:  # less than one sample at the model's rate
            return targets
        if length <= self._window:
            return self._separate_window(mixture, embedded)
        stride = self._window - self._overlap
        # Inside an overlap the later window fades in as the earlier one fades out: the two ramps sum to one.
        fade_in = ((np.arange(self._overlap) + 0.5) / self._overlap).astype(np.float32)
        # The last window begins where a rest of more than the overlap remains.
        for start in range(0, length - self._overlap, stride):
            window = mixture[:, start : start + self._window]
            pieces = self._separate_window(window, embedded, frames_for=self._window)
            if start > 0:
                pieces[..., : self._overlap] *= fade_in
            if start + self._window < length:
                pieces[..., -self._overlap :] *= fade_in[::-1]
            targets[..., start : start + self._window] += pieces
        return targets

    def _separate_window(self, mixture: np.ndarray, embedded: Embedded, *, frames_for: int | None = None) -> np.ndarray:
        """One network run per query, and per sound to keep out: [channels, T] -> [Q, channels, T]."""

        def run(embeddings: np.ndarray) -> np.ndarray:
            runs = [self._run([mixture], e[None], frames_for=frames_for)[0] for e in embeddings]
            return np.stack(runs) if runs else np.zeros((0, *mixture.shape), np.float32)

        targets, unwanted = run(embedded.queries), run(embedded.unwanted)
        for target, rows in zip(targets, embedded.keep_out, strict=True):
            if rows:
                target[:] = keep_out(
                    target,
                    unwanted[list(rows)],
                    window_size=self.config.window_size,
                    hop_size=self.config.hop_size,
                )
        return targets

    def _run(
        self,
        mixtures: list[np.ndarray],
        embeddings: np.ndarray,
        *,
        frames_for: int | None = None,
        split: bool = False,
    ) -> list[np.ndarray]:
        """Mixtures [channels, T_i] of one padded shape (that of `frames_for` samples, if given) -> their targets.

        `split`: over all devices of this process, of which the number of mixtures is then a multiple.
        """
        window, hop = self.config.window_size, self.config.hop_size
        frames = _padded_frames(frames_for or mixtures[0].shape[-1], self.config)
        samples = (frames - 1) * hop + window
        padded = np.zeros((len(mixtures), mixtures[0].shape[0], samples), np.float32)
        counts = np.empty(len(mixtures), np.int32)
        for row, mixture in enumerate(mixtures):
            # Only as far as the last frame reaches: samples past it belong to no frame.
            reflected = reflect_pad(mixture, window)[:, :samples]
            padded[row, :, : reflected.shape[-1]] = reflected
            counts[row] = num_frames(mixture.shape[-1], hop)
        variables, inputs = self._variables, (padded, counts, np.asarray(embeddings, np.float32))
        if split:
            if self._on_all_devices is None:
                mesh = make_mesh(jax.local_devices())
                self._on_all_devices = mesh, jax.device_put(self._variables, replicated(mesh))
            mesh, variables = self._on_all_devices
            inputs = jax.device_put(inputs, batch_sharded(mesh))
        outputs = np.asarray(_separate_padded(self.config, variables, *inputs))
        return [output[:, : mixture.shape[-1]].copy() for output, mixture in zip(outputs, mixtures, strict=True)]


def load(path: str | Path | None = None, *, step: int | None = None, max_whole_seconds: float = 30.0) -> Separator:
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
    checkpoint = load_for_inference(find_checkpoint(path), step=step)
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


def _padded_frames(num_samples: int, config: ModelConfig) -> int:
    """The compiled number of frames that serves a signal of this length: a multiple of the pooling grid."""
    return -(-num_frames(num_samples, config.hop_size) // TIME_DOWNSAMPLING) * TIME_DOWNSAMPLING


@functools.partial(jax.jit, static_argnums=0)
def _separate_padded(
    config: ModelConfig, variables: dict, padded: jax.Array, frame_count: jax.Array, embedding: jax.Array
) -> jax.Array:
    """Padded mixtures [B, channels, S] of `frame_count` [B] frames, and [B, E] -> targets [B, channels, N * hop]."""
    window, hop = config.window_size, config.hop_size
    spectra = stft(padded, window, hop, center=False)  # [B, channels, N, F]
    # The STFT is linear: the mean of the channels' spectra is the downmix's.
    mask = AudioSep(config).apply(variables, spectra.mean(1), embedding, frame_count, method='mask')
    length = spectra.shape[-2] * hop
    return istft(spectra * mask[:, None], window, hop, length=length, frame_count=frame_count[:, None])


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


def _fit(audio: np.ndarray, length: int) -> np.ndarray:
    """Cut, or filled with zeros, to the length: a resampler's rounding may differ by a sample on the way back."""
    audio = audio[..., :length]
    return np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, length - audio.shape[-1])])
