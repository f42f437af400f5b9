"""The network and the whole separation through `jax.export`: programs that JAX alone runs, for batches of any size.

Letters: B rows, N frames, F frequency bins, T samples, E embedding size.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jaxtyping import Float, Float32

from audiosep_jax.audio.stft import stft
from audiosep_jax.models import folded
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.folded import Weights
from audiosep_jax.models.layers import TIME_DOWNSAMPLING
from audiosep_jax.separation.level import leveled, start_level
from audiosep_jax.separation.network import overlap_add_piece

_PLATFORMS = ('cpu', 'cuda', 'tpu')


def export_mask(config: ModelConfig, weights: Weights) -> bytes:
    """Serializes the function (magnitude [B, N, F], embedding [B, E]) -> (real, imaginary), the mask [B, N, F].

    Args:
        config: of the model.
        weights: of the folded network, with nothing packed.
    """
    shapes = f'batch, frames, {config.window_size // 2 + 1}', f'batch, {config.condition_size}'
    return _serialize(functools.partial(_mask, config), weights, *shapes)


def export_separation(config: ModelConfig, weights: Weights, bounds: Float32[np.ndarray, '2'] | None) -> bytes:
    """Serializes the function (mixture [B, channels, T], embedding [B, E]) -> target [B, channels, T].

    Args:
        config: of the model.
        weights: see `export_mask`.
        bounds: of the level at which the network hears the mixtures (`separation.level`); None: at their own.
    """
    shapes = 'batch, channels, samples', f'batch, {config.condition_size}'
    return _serialize(functools.partial(_separate, config, bounds), weights, *shapes)


def _serialize(function: Callable, weights: Weights, *shapes: str) -> bytes:
    """Serializes a function of weights, which become constants, and of float32 arrays with these symbolic shapes."""
    scope = export.SymbolicScope()
    inputs = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), np.float32) for shape in shapes]
    program = jax.jit(functools.partial(function, jax.tree.map(jnp.asarray, weights)))
    return bytes(export.export(program, platforms=_PLATFORMS)(*inputs).serialize())


def _mask(
    config: ModelConfig, weights: Weights, magnitude: Float32[Array, 'B N F'], embedding: Float32[Array, 'B E']
) -> tuple[Float[Array, 'B N F'], Float[Array, 'B N F']]:
    frames = magnitude.shape[1]
    rows = jnp.arange(_padded(frames))
    # Indices are clipped, because JAX cannot prove of symbolic sizes that an amount of padding is not negative.
    spectrum = jnp.take(magnitude, rows, axis=1, mode='clip').astype(jnp.complex64)
    mask = _whole_mask(config, weights, spectrum, rows < frames, embedding)
    mask = jnp.take(mask, jnp.arange(frames), axis=1, mode='clip')
    return jnp.real(mask), jnp.imag(mask)


def _separate(
    config: ModelConfig,
    bounds: Float32[np.ndarray, '2'] | None,
    weights: Weights,
    mixture: Float32[Array, 'B channels T'],
    embedding: Float32[Array, 'B E'],
) -> Float32[Array, 'B channels T']:
    window, hop, half = config.window_size, config.hop_size, config.window_size // 2
    batch, _, length = mixture.shape
    frames, count = _padded(1 + length // hop), jnp.asarray(1 + length // hop)
    # `reflect_pad` for a size that is not known: back and forth if the signal is short.
    turn = jnp.maximum(2 * jnp.asarray(length) - 2, 1)
    place = (jnp.arange((frames - 1) * hop + window) - half) % turn
    padded = jnp.take(mixture, jnp.where(place < length, place, turn - place), axis=-1, mode='clip')
    spectra = stft(padded, window, hop, center=False)
    state = None if bounds is None else start_level(config, bounds, batch)
    heard, _ = leveled(config, spectra.mean(1), 0, count, state)
    mask = _whole_mask(config, weights, heard, jnp.arange(frames) < count, embedding)
    samples, _, _ = overlap_add_piece(config, spectra * mask[:, None], 0, count, None, None)
    return jnp.take(samples, half + jnp.arange(length), axis=-1, mode='clip')


def _padded(frames: int) -> int:
    return (frames + TIME_DOWNSAMPLING - 1) // TIME_DOWNSAMPLING * TIME_DOWNSAMPLING


def _whole_mask(config: ModelConfig, weights: Weights, heard: Array, valid: Array, embedding: Array) -> Array:
    valid = jnp.broadcast_to(valid, heard.shape[:2])
    shifts = folded.query_shifts(config, weights, embedding)
    return folded.whole_mask(config, weights, shifts, folded.features(weights, heard, valid), valid)
