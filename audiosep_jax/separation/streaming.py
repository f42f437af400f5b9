"""Separates a recording as it comes, in constant memory: blocks of any size go in, finished samples come out.

The result does not depend on how the recording is cut. The network goes over it frame by frame (models/folded.py), the
STFT and its inverse keep the part of a window that reaches into the next piece, and the resamplers (soxr) keep their
own state. So the samples are those of the whole recording, to float rounding.

Letters: Q queries, K sounds to exclude, T samples, S padded samples, N frames, F frequency bins.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from audiosep_jax.audio.framing import FrameStream
from audiosep_jax.audio.resampling import Resampler
from audiosep_jax.audio.stft import stft
from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.folded import Frame, initial_state, look_ahead
from audiosep_jax.separation.exclusion import STRENGTH, exclusion_gain, exclusion_padding, spectral_power
from audiosep_jax.separation.level import initial_level
from audiosep_jax.separation.network import Network, analyze, mask_piece, overlap_add_piece, synthesize
from audiosep_jax.separation.queries import Embedded


class NetworkStream:
    """Turns samples of a mixture at the model's rate into samples of the targets.

    Args:
        network: see `Network`.
        embedded: the queries.
        channels: number of channels of the mixture.
        per_channel: whether each channel goes through the network, instead of their mean.
        frames: how many frames go through the network at a time; a multiple of 32.
        level: at which the network hears the mixture (`level.py`); None: that of the mixture.
    """

    def __init__(
        self,
        network: Network,
        embedded: Embedded,
        channels: int,
        *,
        per_channel: bool,
        frames: int,
        level: Level | None = None,
    ):
        config = network.config
        window, hop, late = config.window_size, config.hop_size, look_ahead(network.config)
        self._network, self._per_channel = network, per_channel
        embeddings = [*embedded.queries, *embedded.unwanted]
        self._shifts = [network.shifts(embedding) for embedding in embeddings]
        # Rows go through the network one by one: on a CPU that is as fast, and needs the memory of one row only.
        rows = range(channels if per_channel else 1)
        self._level = initial_level(config, level, len(rows))
        self._states = [[initial_state(config, network.weights, 1) for _ in rows] for _ in embeddings]
        self._spectra = jnp.zeros((channels, late, window // 2 + 1), jnp.complex64)
        self._tails = [jnp.zeros((channels, window - hop), jnp.float32) for _ in embeddings]
        self._weight = jnp.zeros(window - hop, jnp.float32)
        self._framed = FrameStream(self._piece, (channels,), window, hop, frames, late=late)
        self._exclusion = ExclusionStream(config, embedded, channels, frames) if len(embedded.unwanted) else None
        self._nothing = np.zeros((len(embedded.queries), channels, 0), np.float32)

    @staticmethod
    def latency(config: ModelConfig, frames: int) -> float:
        """Returns how many seconds of mixture go in, at most, before a sample comes out."""
        return ((look_ahead(config) + frames - 1) * config.hop_size + config.window_size) / config.sample_rate

    def push(self, samples: Float32[np.ndarray, 'channels n']) -> Float32[np.ndarray, 'Q channels m']:
        """Takes the next samples, and returns the target samples that are finished by now."""
        pieces = self._framed.push(samples)
        if self._exclusion is not None:
            pieces = [out for piece in pieces for out in self._exclusion.push(piece)]
        return np.concatenate([self._nothing, *pieces], axis=-1)

    def finish(self) -> Float32[np.ndarray, 'Q channels m']:
        """Returns the rest. In total, as many samples come out as were pushed."""
        pieces = self._framed.finish()
        if self._exclusion is not None:
            pieces = [out for piece in pieces for out in self._exclusion.push(piece)]
            pieces += self._exclusion.finish()
        return np.concatenate([self._nothing, *pieces], axis=-1)

    def _piece(
        self, samples: Float32[np.ndarray, 'channels S'], start: int, count: int
    ) -> Float32[np.ndarray, 'outputs channels T']:
        """Separates a piece for the Q queries and then for the K sounds to exclude; T = N * hop."""
        config, weights = self._network.config, self._network.weights
        x, spectra, self._spectra, self._level = analyze(
            config, weights, samples, start, count, self._spectra, self._level, per_channel=self._per_channel
        )
        outputs, before = [], self._weight
        for i, (shifts, states) in enumerate(zip(self._shifts, self._states, strict=True)):
            rows = []
            for row, state in enumerate(states):
                mask, states[row] = mask_piece(config, weights, shifts, x[row : row + 1], start, count, state)
                rows.append(mask)
            first = start - look_ahead(config)
            out, self._tails[i], self._weight = synthesize(
                config, spectra, jnp.concatenate(rows), first, count, self._tails[i], before
            )
            # np.asarray waits for the result, so that only one query's activations are in memory at a time.
            outputs.append(np.asarray(out))
        return np.stack(outputs)


class ExclusionStream:
    """Does what `exclusion.exclude` does, for sounds that come in blocks.

    Args:
        config: of the model.
        embedded: the queries.
        channels: number of channels of the sounds.
        frames: how many frames are computed at a time.
    """

    def __init__(self, config: ModelConfig, embedded: Embedded, channels: int, frames: int):
        window, hop = config.window_size, config.hop_size
        queries, count = len(embedded.queries), len(embedded.queries) + len(embedded.unwanted)
        self._config, self._excluded = config, embedded.excluded
        self._framed = FrameStream(self._piece, (count, channels), window, hop, frames)
        self._tails = jnp.zeros((queries, channels, window - hop), jnp.float32)
        self._weight = jnp.zeros(window - hop, jnp.float32)
        self._shape, self._taken, self._given = (count, channels), 0, 0

    def push(self, sounds: Float32[np.ndarray, 'outputs channels n']) -> list[Float32[np.ndarray, 'Q channels _']]:
        """Takes the Q targets and then the K sounds to exclude, and returns the targets that are finished by now."""
        self._taken += sounds.shape[-1]
        return self._count(self._framed.push(sounds))

    def finish(self) -> list[Float32[np.ndarray, 'Q channels _']]:
        """Returns the rest. In total, as many samples come out as were pushed."""
        length = self._taken
        zeros = np.zeros((*self._shape, exclusion_padding(length, self._config.hop_size)), np.float32)
        pieces = self._count(self._framed.push(zeros) + self._framed.finish())
        excess = self._given - length
        while excess > 0 and pieces:
            cut = min(excess, pieces[-1].shape[-1])
            pieces[-1] = pieces[-1][..., : pieces[-1].shape[-1] - cut]
            excess -= cut
            if not pieces[-1].shape[-1]:
                pieces.pop()
        return pieces

    def _count(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        self._given += sum(piece.shape[-1] for piece in pieces)
        return pieces

    def _piece(self, sounds: np.ndarray, start: int, count: int) -> np.ndarray:
        out, self._tails, self._weight = _exclude_piece(
            self._config, self._excluded, sounds, start, count, self._tails, self._weight
        )
        return np.asarray(out)


class SoundStream:
    """Turns blocks of a recording of any rate into targets at that rate, with the mixture of the same samples.

    Args:
        network: see `Network`.
        embedded: the queries.
        channels: number of channels of the recording.
        sample_rate: of the recording, Hz.
        per_channel: see `NetworkStream`.
        frames: see `NetworkStream`.
        level: see `NetworkStream`.
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
        level: Level | None = None,
    ):
        model_rate, queries = network.config.sample_rate, len(embedded.queries)
        self._shape = queries, channels
        self._to_model = Resampler(sample_rate, model_rate, channels)
        self._from_model = Resampler(model_rate, sample_rate, queries * channels)
        self._stream = NetworkStream(network, embedded, channels, per_channel=per_channel, frames=frames, level=level)
        self._mixture: collections.deque[np.ndarray] = collections.deque()
        self._length = 0

    def push(
        self, block: Float32[np.ndarray, 'channels n']
    ) -> tuple[Float32[np.ndarray, 'Q channels m'], Float32[np.ndarray, 'channels m']]:
        """Takes the next block, and returns the targets that are finished by now and the mixture of the same time."""
        self._mixture.append(block)
        self._length += block.shape[-1]
        targets = self._stream.push(self._to_model.push(block))
        return self._with_mixture(self._from_model.push(self._as_rows(targets)))

    def finish(self) -> tuple[Float32[np.ndarray, 'Q channels m'], Float32[np.ndarray, 'channels m']]:
        """Returns the rest. In total, as many samples come out as were pushed."""
        rest = self._stream.push(self._to_model.finish()), self._stream.finish()
        pieces = [self._from_model.push(self._as_rows(targets)) for targets in rest]
        pieces.append(self._from_model.finish(self._length))
        return self._with_mixture(np.concatenate(pieces, axis=-1))

    def _as_rows(self, targets: np.ndarray) -> np.ndarray:
        queries, channels, count = targets.shape
        return targets.reshape(queries * channels, count)

    def _with_mixture(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing, pieces = targets.shape[-1], []
        while missing:
            block = self._mixture.popleft()
            pieces.append(block[:, :missing])
            if block.shape[-1] > missing:
                self._mixture.appendleft(block[:, missing:])
            missing -= pieces[-1].shape[-1]
        mixture = np.concatenate(pieces, axis=-1) if pieces else np.zeros((self._shape[1], 0), np.float32)
        return targets.reshape(*self._shape, targets.shape[-1]), mixture


@functools.partial(jax.jit, static_argnums=(0, 1))
def _exclude_piece(
    config: ModelConfig,
    excluded: tuple[tuple[int, ...], ...],
    sounds: Float32[Array, 'outputs channels S'],
    start: Frame,
    count: Frame,
    tails: Float32[Array, 'Q channels reach'],
    weight_tail: Float32[Array, ' reach'],
) -> tuple[Float32[Array, 'Q channels T'], Float32[Array, 'Q channels reach'], Float32[Array, ' reach']]:
    """Turns the unwanted sounds down in a piece of the targets.

    Args:
        config: of the model.
        excluded: see `Embedded`.
        sounds: padded samples of the Q targets and then of the K sounds to exclude.
        start: see `network.synthesize`.
        count: see `network.synthesize`.
        tails: see `network.synthesize`.
        weight_tail: see `network.synthesize`.

    Returns:
        The finished samples of the targets, and the new tails.
    """
    spectra = stft(sounds, config.window_size, config.hop_size, center=False)
    targets, powers = spectra[: len(excluded)], spectral_power(spectra)
    gains = [
        exclusion_gain(powers[i], jnp.stack([powers[len(excluded) + row] for row in rows]), STRENGTH)
        if rows
        else jnp.ones_like(powers[i])
        for i, rows in enumerate(excluded)
    ]
    return overlap_add_piece(config, targets * jnp.stack(gains)[:, None], start, count, tails, weight_tail)
