"""Pictures of sounds: spectrograms side by side, for a reader who cannot listen."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from audiosep_jax.errors import DataError
from audiosep_jax.files import replacing

_RANGE_DB = 80.0
# Enough columns for the picture's width: a longer sound takes longer hops, so that an hour costs no more than a minute.
_MOST_FRAMES = 1500


def spectrogram_panels(
    path: str | os.PathLike, panels: Mapping[str, np.ndarray], sample_rate: int, title: str = ''
) -> None:
    """Draws one spectrogram per panel, one above the other, as a PNG.

    All panels share the axes (seconds, kHz) and the scale: dB relative to the loudest bin of all panels, to -80, so
    that what is missing from an estimate is seen and not normalised away.

    Args:
        path: the PNG to write, replaced when it exists.
        panels: names to float `[T]` or `[channels, T]` (channels are averaged), all at `sample_rate`, e.g.
            `{'mixture': ..., 'target': ..., 'separated': ...}`.
        sample_rate: in Hz.
        title: a line above the panels, taken literally.

    Raises:
        DataError: the picture cannot be written there.
    """
    if not panels:
        raise ValueError('no panels to draw')
    # Late: matplotlib is slow to import, and importing this package must not load it. Figure instead of pyplot keeps
    # clear of the user's backend and of pyplot's list of open figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    window = _window_size(sample_rate)
    magnitudes = {name: _magnitude(np.asarray(sound, np.float32), window) for name, sound in panels.items()}
    loudest = max(max(float(m.max()) for m in magnitudes.values()), 1e-10)

    figure = Figure(figsize=(10, 0.6 + 2.4 * len(panels)), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (name, magnitude) in zip(axes, magnitudes.items(), strict=True):
        level = 20 * np.log10(np.maximum(magnitude / loudest, 10 ** (-_RANGE_DB / 20)))
        seconds = np.shape(panels[name])[-1] / sample_rate
        image = axis.imshow(
            level.T,
            origin='lower',
            aspect='auto',
            extent=(0, max(seconds, 1 / sample_rate), 0, sample_rate / 2000),
            vmin=-_RANGE_DB,
            vmax=0,
            cmap='magma',
            interpolation='nearest',
        )
        axis.set_title(name, loc='left', fontsize='medium', parse_math=False)
        axis.set_ylabel('kHz')
    axes[-1].set_xlabel('seconds')
    figure.colorbar(image, ax=list(axes), label='dB relative to the loudest bin', shrink=0.8)
    if title:
        figure.suptitle(title, parse_math=False, wrap=True)
    try:
        with replacing(path) as temporary, warnings.catch_warnings():
            # A title may hold what the font lacks (emoji); it is then drawn as a box.
            warnings.filterwarnings('ignore', message='Glyph .* missing from font')
            canvas.print_png(temporary)
    except OSError as error:
        raise DataError(f'{Path(path)}: the picture cannot be written: {error.strerror or error}') from error


def _window_size(sample_rate: int) -> int:
    """The power of two nearest to 64 ms: the default front end's 2048 samples at 32 kHz."""
    return max(16, 2 ** round(np.log2(0.064 * sample_rate)))


def _magnitude(sound: np.ndarray, window: int) -> np.ndarray:
    """Hann-windowed magnitudes `[N, F]` of float `[T]` or `[channels, T]`, frames centred on every hop."""
    if sound.ndim == 2:
        sound = sound.mean(axis=0)
    if sound.ndim != 1:
        raise ValueError(f'a panel must be [T] or [channels, T], got {sound.ndim} dimensions')
    hop = max(window // 4, -(-len(sound) // _MOST_FRAMES))
    padded = np.pad(sound, window // 2)
    starts = np.arange(0, max(len(padded) - window, 0) + 1, hop)
    frames = padded[starts[:, None] + np.arange(window)]
    # Periodic, as in stft.py; np.hanning is the symmetric one.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.abs(np.fft.rfft(frames * hann, axis=-1))
