"""Pictures of sounds and of scores: spectrograms side by side, for a reader who cannot listen; bars and points."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from audiosep_jax.errors import DataError
from audiosep_jax.storage.atomic import replacing

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
    _write(figure, path, title)


def bar_chart(
    path: str | os.PathLike, values: Mapping[str, float], axis_label: str, title: str = '', *, most: int = 40
) -> None:
    """Draws a horizontal bar per name, the highest above, as a PNG.

    Args:
        path: the PNG to write, replaced when it exists.
        values: at least one; of more than `most` the highest and the lowest halves of that number are drawn.
        axis_label: what is measured, and its unit.
        title: a line above, taken literally.
        most: bars that fit a page.

    Raises:
        DataError: the picture cannot be written there.
    """
    ordered = sorted(values.items(), key=lambda item: -item[1])
    gap = None
    if len(ordered) > most:
        gap = most // 2
        ordered = ordered[:gap] + ordered[len(ordered) - (most - gap) :]
    figure = _figure(7, 0.9 + 0.21 * (len(ordered) + (gap is not None)))
    axis = figure.subplots()
    places = [i + (gap is not None and i >= gap) for i in range(len(ordered))]
    axis.barh(places, [value for _, value in ordered], height=0.75, color='#3b6ea5')
    axis.set_yticks(places, [_cut(name) for name, _ in ordered], fontsize='small', parse_math=False)
    if gap is not None:
        middle = f'… {len(values) - most} between …'
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
    """Draws points and, where there are enough, the median of y in ten parts of x with as many points each, as a PNG.

    Args:
        path: the PNG to write, replaced when it exists.
        x, y: as many of each.
        labels: of the axes, with units.
        title: a line above, taken literally.

    Raises:
        DataError: the picture cannot be written there.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    figure = _figure(6, 4.5)
    axis = figure.subplots()
    axis.scatter(x, y, s=12, alpha=max(0.15, min(0.8, 100 / max(len(x), 1))), color='#3b6ea5', linewidths=0)
    if len(x) >= 50:
        parts = np.array_split(np.argsort(x, kind='stable'), 10)
        axis.plot(
            [np.median(x[p]) for p in parts], [np.median(y[p]) for p in parts], 'o-', color='#c44e52', label='median'
        )
        axis.legend()
    axis.axhline(0, color='black', linewidth=0.8)
    axis.grid(alpha=0.3)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    _write(figure, path, title)


def _figure(width: float, height: float):
    """An empty figure, inches.

    Late: matplotlib is slow to import, and importing this package must not load it. Figure instead of pyplot keeps
    clear of the user's backend and of pyplot's list of open figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _write(figure, path: str | os.PathLike, title: str) -> None:
    if title:
        figure.suptitle(title, parse_math=False, wrap=True)
    try:
        with replacing(path) as temporary, warnings.catch_warnings():
            # A title may hold what the font lacks (emoji); it is then drawn as a box.
            warnings.filterwarnings('ignore', message='Glyph .* missing from font')
            figure.canvas.print_png(temporary)
    except OSError as error:
        raise DataError(f'{Path(path)}: the picture cannot be written: {error.strerror or error}') from error


def _cut(name: str, most: int = 48) -> str:
    return name if len(name) <= most else name[: most - 1] + '…'


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
