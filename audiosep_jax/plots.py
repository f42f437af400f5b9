"""Plots of sounds and scores as PNG files: spectrograms (for readers who cannot listen), bar charts, scatter plots."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.errors import DataError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.cache import give_libraries_a_cache

if TYPE_CHECKING:  # importing matplotlib is slow
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_RANGE_DB = 80.0
# Enough columns for the width of a picture. Longer sounds get longer hops, so that an hour costs no more than a minute.
_MAX_FRAMES = 1500


def spectrogram_panels(
    path: str | os.PathLike, panels: Mapping[str, np.ndarray], sample_rate: int, title: str = ''
) -> None:
    """Draws a PNG with one spectrogram per panel, one above the other.

    All panels share the axes (seconds, kHz) and the scale: dB relative to the loudest bin of all panels, down to -80.
    So what is missing from an estimate is visible and not normalized away.

    Args:
        path: the PNG to write; an existing file is replaced.
        panels: names to float `[T]` or `[channels, T]` (channels are averaged), all at `sample_rate`, e.g.
            `{'mixture': ..., 'target': ..., 'separated': ...}`.
        sample_rate: in Hz.
        title: a line above the panels, shown literally.

    Raises:
        DataError: the picture cannot be written there.
        ValueError: there is no panel, or one has another shape.
    """
    _write(_spectrogram_figure(panels, sample_rate), path, title)


def spectrogram_image(panels: Mapping[str, np.ndarray], sample_rate: int, title: str = '') -> np.ndarray:
    """Returns the picture of `spectrogram_panels` as an array, uint8 `[height, width, 3]`.

    Args:
        panels: as for `spectrogram_panels`.
        sample_rate: in Hz.
        title: as for `spectrogram_panels`.

    Raises:
        ValueError: there is no panel, or one has another shape.
    """
    with _canvas(_spectrogram_figure(panels, sample_rate), title) as canvas:
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]


def _spectrogram_figure(panels: Mapping[str, np.ndarray], sample_rate: int) -> 'Figure':
    if not panels:
        raise ValueError('no panels to draw')
    window = _window_size(sample_rate)
    magnitudes = {name: _magnitude(np.asarray(sound, np.float32), window) for name, sound in panels.items()}
    loudest = max(max(float(m.max()) for m in magnitudes.values()), 1e-10)

    figure = _figure(10, 0.6 + 2.4 * len(panels))
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
    return figure


def bar_chart(
    path: str | os.PathLike, values: Mapping[str, float], axis_label: str, title: str = '', *, limit: int = 40
) -> None:
    """Draws a PNG with one horizontal bar per name, the highest at the top.

    Args:
        path: the PNG to write; an existing file is replaced.
        values: at least one. If there are more than `limit`, only the `limit / 2` highest and lowest are drawn.
        axis_label: what is measured, and its unit.
        title: a line above the bars, shown literally.
        limit: how many bars fit on a page.

    Raises:
        DataError: the picture cannot be written there.
    """
    ordered = sorted(values.items(), key=lambda item: -item[1])
    gap = None
    if len(ordered) > limit:
        gap = limit // 2
        ordered = ordered[:gap] + ordered[len(ordered) - (limit - gap) :]
    figure = _figure(7, 0.9 + 0.21 * (len(ordered) + (gap is not None)))
    axis = figure.subplots()
    places = [i + (gap is not None and i >= gap) for i in range(len(ordered))]
    axis.barh(places, [value for _, value in ordered], height=0.75, color='#3b6ea5')
    axis.set_yticks(places, [_shortened(name) for name, _ in ordered], fontsize='small', parse_math=False)
    if gap is not None:
        middle = f'… {len(values) - limit} between …'
        axis.text(0.5, gap, middle, transform=axis.get_yaxis_transform(), ha='center', va='center', fontsize='small')
    axis.set_ylim(places[-1] + 0.7, -0.7)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.grid(axis='x', alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_xlabel(axis_label)
    _write(figure, path, title)


def scatter(
    path: str | os.PathLike,
    x: Sequence[float],
    y: Sequence[float],
    labels: tuple[str, str],
    title: str = '',
) -> None:
    """Draws a PNG of points. If there are 50 or more, adds the medians of y in ten equally large groups along x.

    Args:
        path: the PNG to write; an existing file is replaced.
        x: the points' horizontal coordinates.
        y: the points' vertical coordinates, as many as `x`.
        labels: of both axes, with units.
        title: a line above the points, shown literally.

    Raises:
        DataError: the picture cannot be written there.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    figure = _figure(6, 4.5)
    axis = figure.subplots()
    axis.scatter(xs, ys, s=12, alpha=max(0.15, min(0.8, 100 / max(len(xs), 1))), color='#3b6ea5', linewidths=0)
    if len(xs) >= 50:
        groups = np.array_split(np.argsort(xs, kind='stable'), 10)
        medians = [np.median(xs[group]) for group in groups], [np.median(ys[group]) for group in groups]
        axis.plot(*medians, 'o-', color='#c44e52', label='median')
        axis.legend()
    axis.axhline(0, color='black', linewidth=0.8)
    axis.grid(alpha=0.3)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    _write(figure, path, title)


def _figure(width: float, height: float) -> 'Figure':
    """Returns an empty figure; its size is in inches.

    matplotlib is slow to import, so it is imported only here. `Figure` instead of pyplot leaves the user's backend and
    pyplot's list of open figures alone.
    """
    give_libraries_a_cache()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout='constrained')


@contextlib.contextmanager
def _canvas(figure: 'Figure', title: str) -> Iterator['FigureCanvasAgg']:
    """Yields the canvas to draw a figure on, and ignores warnings about missing characters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if title:
        figure.suptitle(title, parse_math=False, wrap=True)
    with warnings.catch_warnings():
        # The font lacks some characters of titles (emoji) and draws them as boxes.
        warnings.filterwarnings('ignore', message='Glyph .* missing from font')
        yield FigureCanvasAgg(figure)


def _write(figure: 'Figure', path: str | os.PathLike, title: str) -> None:
    try:
        with replacing(path) as temporary, _canvas(figure, title) as canvas:
            canvas.print_png(temporary)
    except OSError as error:
        raise DataError(f'{Path(path)}: the picture cannot be written: {error.strerror or error}') from error


def _shortened(name: str, limit: int = 48) -> str:
    return name if len(name) <= limit else name[: limit - 1] + '…'


def _window_size(sample_rate: int) -> int:
    """Returns the power of two nearest to 64 ms, which at 32 kHz is the default front end's 2048 samples."""
    return max(16, 2 ** round(np.log2(0.064 * sample_rate)))


def _magnitude(sound: np.ndarray, window: int) -> np.ndarray:
    """Returns Hann-windowed magnitudes `[N, F]` of float `[T]` or `[channels, T]`, one frame centered on each hop."""
    if sound.ndim == 2:
        sound = sound.mean(axis=0)
    if sound.ndim != 1:
        raise ValueError(f'a panel must be [T] or [channels, T], got {sound.ndim} dimensions')
    hop = max(window // 4, -(-len(sound) // _MAX_FRAMES))
    padded = np.pad(sound, window // 2)
    starts = np.arange(0, max(len(padded) - window, 0) + 1, hop)
    frames = padded[starts[:, None] + np.arange(window)]
    # The periodic window, as in audio/stft.py; np.hanning is symmetric.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.abs(np.fft.rfft(frames * hann, axis=-1))
