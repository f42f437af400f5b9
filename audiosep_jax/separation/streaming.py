"""Separating a recording as it comes, in constant memory: blocks of any size in, finished samples out.

Nothing here depends on how the recording is cut: the network goes over it frame by frame (models/folded.py), the STFT
and its inverse keep the part of a window that reaches into the next piece, resamplers (soxr) keep their own state. The
result is that of the whole recording at once, to float rounding.

Letters: Q queries, T samples, N frames, F frequency bins.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio.framing import FrameStream
from audiosep_jax.audio.resampling import Resampler
from audiosep_jax.audio.stft import WINDOW_SUM_FLOOR, hann_window, istft, num_frames, overlap_add, reflect_pad, stft
from audiosep_jax.models import folded as inference
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.resunet import TIME_DOWNSAMPLING
from audiosep_jax.parallel.mesh import batch_sharded, make_mesh, replicated
from audiosep_jax.separation.exclusion import STRENGTH, keep_out, keep_out_gain, keep_out_padding, spectral_power
from audiosep_jax.separation.queries import Embedded


@dataclasses.dataclass(frozen=True)
class Network:
    """What separates: the configuration and the folded weights, on the device. Never changed, so threads may share it.

    Attributes:
        config: of the model.
        weights: of `inference.fold`.
    """

    config: ModelConfig
    weights: dict

    @functools.cached_property
    def on_all_devices(self) -> tuple[Callable, dict]:
        """(`_separate` of rows split over all devices of this process, the weights on each of them).

        By `shard_map`: left to itself, XLA gathers all rows on every device for an FFT.
        """
        mesh = make_mesh(devices=jax.local_devices())
        rows, whole = batch_sharded(mesh).spec, replicated(mesh).spec
        split = jax.shard_map(
            functools.partial(_separate, self.config), mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows
        )
        return jax.jit(split), jax.device_put(self.weights, replicated(mesh))

    def shifts(self, embedding: np.ndarray) -> inference.Shifts:
        """Of one query [E], for one row."""
        return _shifts(self.config, self.weights, embedding[None])


class NetworkStream:
    """Mixture samples at the model's rate in, the samples of the targets out.

    Args:
        network: see `Network`.
        embedded: the queries.
        channels: of the mixture.
        per_channel: each channel through the network, instead of their mean.
        frames: how many go through the network at a time, a multiple of 32.
    """

    def __init__(self, network: Network, embedded: Embedded, channels: int, *, per_channel: bool, frames: int):
        config = network.config
        window, hop = config.window_size, config.hop_size
        self._network, self._per_channel = network, per_channel
        embeddings = [*embedded.queries, *embedded.unwanted]
        self._shifts = [network.shifts(embedding) for embedding in embeddings]
        # One row at a time: as fast on a CPU, and the memory in use is that of one.
        rows = range(channels if per_channel else 1)
        self._states = [[inference.initial_state(config, 1) for _ in rows] for _ in embeddings]
        self._spectra = jnp.zeros((channels, inference.look_ahead(), window // 2 + 1), jnp.complex64)
        self._tails = [jnp.zeros((channels, window - hop), jnp.float32) for _ in embeddings]
        self._weight = jnp.zeros(window - hop, jnp.float32)
        self._framed = FrameStream(self._piece, (channels,), window, hop, frames, late=inference.look_ahead())
        self._keeping_out = KeepOutStream(config, embedded, channels, frames) if len(embedded.unwanted) else None
        self._nothing = np.zeros((len(embedded.queries), channels, 0), np.float32)

    @staticmethod
    def latency(config: ModelConfig, frames: int) -> float:
        """Seconds of mixture that are taken in, at most, before a sample comes out."""
        return ((inference.look_ahead() + frames - 1) * config.hop_size + config.window_size) / config.sample_rate

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [channels, n] -> [Q, channels, m], what is finished by now."""
        pieces = self._framed.push(samples)
        if self._keeping_out is not None:
            pieces = [out for piece in pieces for out in self._keeping_out.push(piece)]
        return np.concatenate([self._nothing, *pieces], axis=-1)

    def finish(self) -> np.ndarray:
        """The rest: in all, as many samples as were pushed."""
        pieces = self._framed.finish()
        if self._keeping_out is not None:
            pieces = [out for piece in pieces for out in self._keeping_out.push(piece)]
            pieces += self._keeping_out.finish()
        return np.concatenate([self._nothing, *pieces], axis=-1)

    def _piece(self, samples: np.ndarray, start: int, count: int) -> np.ndarray:
        """What the network makes of the queries and of the unwanted: [Q + K, channels, N * hop]."""
        config, weights = self._network.config, self._network.weights
        x, spectra, self._spectra = _analysed(
            config, weights, samples, start, count, self._spectra, per_channel=self._per_channel
        )
        outputs, before = [], self._weight
        for i, (shifts, states) in enumerate(zip(self._shifts, self._states, strict=True)):
            rows = []
            for row, state in enumerate(states):
                mask, states[row] = _piece_mask(config, weights, shifts, x[row : row + 1], start, count, state)
                rows.append(mask)
            first = start - inference.look_ahead()
            out, self._tails[i], self._weight = _synthesised(
                config, spectra, jnp.concatenate(rows), first, count, self._tails[i], before
            )
            # Waited for: queries under way at the same time would need memory at the same time.
            outputs.append(np.asarray(out))
        return np.stack(outputs)


class KeepOutStream:
    """`queries.keep_out` of sounds that come in blocks.

    Args:
        config: of the model.
        embedded: the queries.
        channels: of the sounds.
        frames: at a time.
    """

    def __init__(self, config: ModelConfig, embedded: Embedded, channels: int, frames: int):
        window, hop = config.window_size, config.hop_size
        queries, count = len(embedded.queries), len(embedded.queries) + len(embedded.unwanted)
        self._config, self._rows = config, embedded.keep_out
        self._framed = FrameStream(self._piece, (count, channels), window, hop, frames)
        self._tails = jnp.zeros((queries, channels, window - hop), jnp.float32)
        self._weight = jnp.zeros(window - hop, jnp.float32)
        self._shape, self._taken, self._given = (count, channels), 0, 0

    def push(self, sounds: np.ndarray) -> list[np.ndarray]:
        """The targets and then the unwanted, [Q + K, channels, n] -> targets [Q, channels, m]."""
        self._taken += sounds.shape[-1]
        return self._counted(self._framed.push(sounds))

    def finish(self) -> list[np.ndarray]:
        length = self._taken
        zeros = np.zeros((*self._shape, keep_out_padding(length, self._config.hop_size)), np.float32)
        pieces = self._counted(self._framed.push(zeros) + self._framed.finish())
        excess = self._given - length
        while excess > 0 and pieces:
            cut = min(excess, pieces[-1].shape[-1])
            pieces[-1] = pieces[-1][..., : pieces[-1].shape[-1] - cut]
            excess -= cut
            if not pieces[-1].shape[-1]:
                pieces.pop()
        return pieces

    def _counted(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        self._given += sum(piece.shape[-1] for piece in pieces)
        return pieces

    def _piece(self, sounds: np.ndarray, start: int, count: int) -> np.ndarray:
        out, self._tails, self._weight = _kept_out(
            self._config, self._rows, sounds, start, count, self._tails, self._weight
        )
        return np.asarray(out)


class SoundStream:
    """Blocks of a recording of any rate in; targets and mixture of the same samples out, at that rate.

    Args:
        network: see `Network`.
        embedded: the queries.
        channels: of the recording.
        sample_rate: of the recording, Hz.
        per_channel: see `NetworkStream`.
        frames: see `NetworkStream`.
    """

    def __init__(
        self,
        network: Network,
        embedded: Embedded,
        channels: int,
        sample_rate: int,
        *,
        per_channel: bool = False,
        frames: int,
    ):
        model_rate, queries = network.config.sample_rate, len(embedded.queries)
        self._shape = queries, channels
        self._in = Resampler(sample_rate, model_rate, channels)
        self._out = Resampler(model_rate, sample_rate, queries * channels)
        self._separating = NetworkStream(network, embedded, channels, per_channel=per_channel, frames=frames)
        self._mixture: collections.deque[np.ndarray] = collections.deque()
        self._length = 0

    def push(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [channels, n] -> targets [Q, channels, m] and the mixture [channels, m] of the same time."""
        self._mixture.append(block)
        self._length += block.shape[-1]
        targets = self._separating.push(self._in.push(block))
        return self._with_mixture(self._out.push(self._rows(targets)))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The rest: in all, as many samples as were pushed."""
        targets = self._separating.push(self._in.finish())
        pieces = [self._out.push(self._rows(targets)), self._out.push(self._rows(self._separating.finish()))]
        pieces.append(self._out.finish(self._length))
        return self._with_mixture(np.concatenate(pieces, axis=-1))

    def _rows(self, targets: np.ndarray) -> np.ndarray:
        queries, channels, count = targets.shape
        return targets.reshape(queries * channels, count)

    def _with_mixture(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted, pieces = targets.shape[-1], []
        while wanted:
            block = self._mixture.popleft()
            pieces.append(block[:, :wanted])
            if block.shape[-1] > wanted:
                self._mixture.appendleft(block[:, wanted:])
            wanted -= pieces[-1].shape[-1]
        mixture = np.concatenate(pieces, axis=-1) if pieces else np.zeros((self._shape[1], 0), np.float32)
        return targets.reshape(*self._shape, targets.shape[-1]), mixture


def separate_whole(network: Network, mixture: np.ndarray, embedded: Embedded, *, per_channel: bool) -> np.ndarray:
    """A recording at once: float32 [channels, T] at the model's rate -> the targets [Q, channels, T]."""
    config, weights, length = network.config, network.weights, mixture.shape[-1]
    padded, count = _padded([mixture], config)
    x, spectra = _analysed(config, weights, padded[0], 0, count[0], None, per_channel=per_channel)[:2]
    half, outputs = config.window_size // 2, []
    for embedding in [*embedded.queries, *embedded.unwanted]:
        shifts = network.shifts(embedding)
        rows = [_whole_mask(config, weights, shifts, x[row : row + 1], count[0]) for row in range(len(x))]
        # All frames are there at once: what they reach beyond the last hop is the rest of the recording.
        output = _synthesised(config, spectra, jnp.concatenate(rows), 0, count[0], None, None)[0]
        outputs.append(np.asarray(output)[:, half : half + length])
    targets, unwanted = np.stack(outputs[: len(embedded.queries)]), outputs[len(embedded.queries) :]
    for target, kept_out in zip(targets, embedded.keep_out, strict=True):
        if kept_out:
            others = np.stack([unwanted[row] for row in kept_out])
            target[:] = keep_out(target, others, window_size=config.window_size, hop_size=config.hop_size)
    return targets


def separate_batch(network: Network, mixtures: list[np.ndarray], embeddings: np.ndarray) -> list[np.ndarray]:
    """Mono mixtures [T_i] of one padded shape (`padded_frames`), each with a query of its own -> their targets [T_i].

    Over all devices of this process, where the number of mixtures is a multiple of theirs.

    Args:
        network: see `Network`.
        mixtures: at the model's rate.
        embeddings: [B, E].
    """
    weights, inputs = network.weights, (*_padded(mixtures, network.config), np.asarray(embeddings, np.float32))
    separated = functools.partial(_separated, network.config)
    devices = jax.local_device_count()
    if devices > 1 and len(mixtures) % devices == 0:
        separated, weights = network.on_all_devices
    outputs = np.asarray(separated(weights, *inputs))
    return [output[: len(mixture)].copy() for output, mixture in zip(outputs, mixtures, strict=True)]


def padded_frames(num_samples: int, config: ModelConfig) -> int:
    """The compiled number of frames that serves a signal of this length: a multiple of the pooling grid."""
    return -(-num_frames(num_samples, config.hop_size) // TIME_DOWNSAMPLING) * TIME_DOWNSAMPLING


def _padded(mixtures: list[np.ndarray], config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """[..., T_i] of one padded shape -> [B, ..., S], reflected at both ends, and the numbers of their frames [B]."""
    window, hop = config.window_size, config.hop_size
    samples = (padded_frames(mixtures[0].shape[-1], config) - 1) * hop + window
    padded = np.zeros((len(mixtures), *mixtures[0].shape[:-1], samples), np.float32)
    counts = np.empty(len(mixtures), np.int32)
    for row, mixture in enumerate(mixtures):
        # Only as far as the last frame reaches: samples past it belong to no frame.
        reflected = reflect_pad(mixture, window)[..., :samples]
        padded[row, ..., : reflected.shape[-1]] = reflected
        counts[row] = num_frames(mixture.shape[-1], hop)
    return padded, counts


# ---- on the device ---------------------------------------------------------------------------------------------------


_shifts = functools.partial(jax.jit, static_argnums=0)(inference.query_shifts)
_piece_mask = functools.partial(jax.jit, static_argnums=0, donate_argnums=6)(inference.piece_mask)


@functools.partial(jax.jit, static_argnums=0)
def _whole_mask(config: ModelConfig, weights: dict, shifts: dict, x: jax.Array, count: jax.Array) -> jax.Array:
    return inference.whole_mask(config, weights, shifts, x, (jnp.arange(x.shape[1]) < count)[None])


@functools.partial(jax.jit, static_argnums=0, static_argnames='per_channel')
def _analysed(
    config: ModelConfig,
    weights: dict,
    samples: jax.Array,
    start: jax.Array,
    count: jax.Array,
    before: jax.Array | None,
    *,
    per_channel: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Padded samples [channels, S] from frame `start` on -> the network's input [1 or channels, N, F - 1], and the
    spectra [channels, N, F], late by those that came before and are still wanted."""
    spectra = stft(samples, config.window_size, config.hop_size, center=False)
    # The STFT is linear: the mean of the channels' spectra is the downmix's.
    heard = spectra if per_channel else spectra.mean(0, keepdims=True)
    valid = start + jnp.arange(spectra.shape[1]) < count
    x = inference.features(weights, heard, jnp.broadcast_to(valid, heard.shape[:2]))
    if before is None:
        return x, spectra, None
    spectra = jnp.concatenate([before, spectra], axis=1)
    return x, spectra[:, : x.shape[1]], spectra[:, x.shape[1] :]


@functools.partial(jax.jit, static_argnums=0)
def _synthesised(
    config: ModelConfig,
    spectra: jax.Array,
    mask: jax.Array,
    start: jax.Array,
    count: jax.Array,
    tail: jax.Array | None,
    weight_tail: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Frames `start` to `start + N` of the spectra [channels, N, F], masked, as padded samples from start * hop on.

    Args:
        config: of the model.
        spectra: complex64 [channels, N, F].
        mask: of the target, [1 or channels, N, F].
        start: int, the first frame's place in the recording; those before 0 and from `count` on count for nothing.
        count: int.
        tail: what the frames before have left for the samples of these, [channels, window - hop]. None: all frames are
            here, and all samples that they reach are asked for.
        weight_tail: likewise the sum of squared windows, [window - hop].

    Returns:
        The samples that are finished, [channels, N * hop], and the new tails.
    """
    return _overlapped(config, spectra * mask, start, count, tail, weight_tail)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _kept_out(
    config: ModelConfig,
    rows: tuple[tuple[int, ...], ...],
    sounds: jax.Array,
    start: jax.Array,
    count: jax.Array,
    tails: jax.Array,
    weight_tail: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Padded targets and unwanted sounds [Q + K, channels, S] -> finished samples of the targets and the new tails, as
    `_synthesised`. `rows` are those of the unwanted that are kept out of each target."""
    spectra = stft(sounds, config.window_size, config.hop_size, center=False)
    targets, powers = spectra[: len(rows)], spectral_power(spectra)
    gains = [
        keep_out_gain(powers[i], jnp.stack([powers[len(rows) + row] for row in out_of_it]), STRENGTH)
        if out_of_it
        else jnp.ones_like(powers[i])
        for i, out_of_it in enumerate(rows)
    ]
    return _overlapped(config, targets * jnp.stack(gains)[:, None], start, count, tails, weight_tail)


def _overlapped(
    config: ModelConfig,
    spectra: jax.Array,
    start: jax.Array,
    count: jax.Array,
    tail: jax.Array | None,
    weight_tail: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`_synthesised` of spectra [..., N, F] that are masked already."""
    window_size, hop = config.window_size, config.hop_size
    window = hann_window(window_size)
    frame = start + jnp.arange(spectra.shape[-2])
    valid = ((frame >= 0) & (frame < count))[:, None]
    frames = jnp.where(valid, jnp.fft.irfft(spectra, n=window_size, axis=-1) * window, 0)
    signal, weight = overlap_add(frames, hop), overlap_add(valid * window**2, hop)
    if tail is None:
        return signal / jnp.maximum(weight, WINDOW_SUM_FLOOR), signal, weight
    reach = window_size - hop
    signal, weight = signal.at[..., :reach].add(tail), weight.at[:reach].add(weight_tail)
    done = len(frame) * hop
    return signal[..., :done] / jnp.maximum(weight[:done], WINDOW_SUM_FLOOR), signal[..., done:], weight[done:]


def _separate(
    config: ModelConfig, weights: dict, padded: jax.Array, counts: jax.Array, embeddings: jax.Array
) -> jax.Array:
    """Padded mixtures [B, S] of `counts` [B] frames, and [B, E] -> targets [B, N * hop]."""
    window, hop = config.window_size, config.hop_size
    spectra = stft(padded, window, hop, center=False)
    valid = jnp.arange(spectra.shape[1]) < counts[:, None]
    shifts = inference.query_shifts(config, weights, embeddings)
    mask = inference.whole_mask(config, weights, shifts, inference.features(weights, spectra, valid), valid)
    return istft(spectra * mask, window, hop, length=spectra.shape[1] * hop, frame_count=counts)


_separated = jax.jit(_separate, static_argnums=0)
