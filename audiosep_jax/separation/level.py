"""Brings what the network hears to the level of the mixtures that it was trained on.

The level is measured per block of 32 frames, which every piece of a recording consists of, over that block and what
precedes it within ten seconds. So it never looks ahead, a stream is not later for it, and pieces give what the whole
gives. The gain applies to the network's input alone. Its mask is applied to the recording as it is, so the sounds need
no gain back, and are in proportion to the recording whatever the gain does.

A block's gain brings its level between the median and the 90th percentile of the training's levels, and is 1 if the
level is there already. It is 1 for silence as well, and never above 50 dB.

Letters: N frames, K blocks of 32 frames, F frequency bins.
"""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex64, Float32, Int

from audiosep_jax.audio.stft import hann_window
from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.layers import TIME_DOWNSAMPLING

LevelRule = Literal['auto', 'off']
# What `auto` assumes of a network whose checkpoint does not say its level: most recordings are about as loud.
ASSUMED = Level(low_db=-30.0, median_db=-23.0, high_db=-15.0, mixtures=0)

_SECONDS = 10.0
SILENCE = 1e-9  # mean square below which nothing is amplified, -90 dB
MAX_GAIN = 10 ** (50 / 20)


def check_level(level: LevelRule) -> LevelRule:
    """Returns the rule. Raises ConfigError if there is none of this name."""
    if level not in get_args(LevelRule):
        raise ConfigError(f'level {level!r}: use {" or ".join(map(repr, get_args(LevelRule)))}')
    return level


class LevelState(NamedTuple):
    """What `leveled` keeps from piece to piece.

    Attributes:
        bounds: the least and the greatest mean square that the network is to hear.
        sums: of the mean squares of the frames in each of the blocks before.
    """

    bounds: Float32[Array | np.ndarray, '2']
    sums: Float32[Array | np.ndarray, 'rows before']


def level_bounds(level: Level | None) -> Float32[np.ndarray, '2'] | None:
    """Returns the bounds of `LevelState`; None for None, which leaves recordings at their level."""
    if level is None:
        return None
    return np.asarray(10 ** (np.array([level.median_db, level.high_db]) / 10), np.float32)


def level_frames(config: ModelConfig) -> int:
    """Returns over how many frames the level is measured, at most: a multiple of 32."""
    block = TIME_DOWNSAMPLING * config.hop_size / config.sample_rate
    return max(1, round(_SECONDS / block)) * TIME_DOWNSAMPLING


def initial_level(config: ModelConfig, level: Level | None, rows: int) -> LevelState | None:
    """Returns the state at the beginning of `rows` recordings; None for None."""
    bounds = level_bounds(level)
    return None if bounds is None else start_level(config, bounds, rows)


def start_level(config: ModelConfig, bounds: Float32[Array | np.ndarray, '2'], rows: int) -> LevelState:
    """Returns the state at the beginning of `rows` recordings."""
    return LevelState(bounds, jnp.zeros((rows, level_frames(config) // TIME_DOWNSAMPLING - 1), jnp.float32))


def leveled(
    config: ModelConfig,
    heard: Complex64[Array, 'rows N F'],
    start: Int[Array, ''] | int,
    count: Int[Array, '#rows'] | Int[Array, ''] | int,
    state: LevelState | None,
) -> tuple[Complex64[Array, 'rows N F'], LevelState | None]:
    """Applies the gains to spectra that the network will hear. Without a state it returns them as they are.

    Args:
        config: of the model.
        heard: the spectra of a piece; N is a multiple of 32.
        start: the first frame's place in the recording; a multiple of 32.
        count: the number of frames of the recording, or of each row's.
        state: what this returned for the piece before, or `start_level`.

    Returns:
        The spectra, and the state for the next piece.
    """
    if state is None:
        return heard, None
    rows, frames, _ = heard.shape
    count = jnp.broadcast_to(jnp.asarray(count), (rows,))[:, None]
    valid = start + jnp.arange(frames) < count
    squares = jnp.where(valid, _mean_square(config, heard), 0)
    sums = jnp.concatenate([state.sums, squares.reshape(rows, -1, TIME_DOWNSAMPLING).sum(-1)], axis=1)
    before, blocks = state.sums.shape[1], frames // TIME_DOWNSAMPLING
    within = jnp.arange(blocks)[:, None] + jnp.arange(before + 1)
    total = sums[:, within].sum(-1)
    end = start + (jnp.arange(blocks) + 1) * TIME_DOWNSAMPLING
    measured = jnp.minimum(end, count) - jnp.maximum(end - (before + 1) * TIME_DOWNSAMPLING, 0)
    gains = jnp.repeat(_gain(total / jnp.maximum(measured, 1), state.bounds), TIME_DOWNSAMPLING, axis=1)
    return heard * gains[..., None], LevelState(state.bounds, sums[:, blocks:])


def _gain(mean_square: Float32[Array, 'rows K'], bounds: Float32[Array | np.ndarray, '2']) -> Float32[Array, 'rows K']:
    wanted = jnp.clip(mean_square, bounds[0], bounds[1])
    gain = jnp.minimum(jnp.sqrt(wanted / jnp.maximum(mean_square, SILENCE)), MAX_GAIN)
    return jnp.where(mean_square > SILENCE, gain, 1)


def _mean_square(config: ModelConfig, spectra: Complex64[Array, 'rows N F']) -> Float32[Array, 'rows N']:
    """Returns the mean square of the samples in each frame, weighted by the squared window (Parseval)."""
    power = jnp.real(spectra) ** 2 + jnp.imag(spectra) ** 2
    both = 2 * power.sum(-1) - power[..., 0] - power[..., -1]  # all bins but the first and the last stand for two
    return both / (config.window_size * jnp.sum(hann_window(config.window_size) ** 2))
