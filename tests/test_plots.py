"""Plots are drawn, show levels truthfully, and do not change matplotlib's state."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from audiosep_jax.errors import DataError
from audiosep_jax.plots import bar_chart, scatter, spectrogram_image, spectrogram_panels

RATE = 8000


def tone(hz, level=0.5, seconds=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def drawn(path):
    return matplotlib.image.imread(path)[..., :3]


def loud_pixels(picture):
    """Returns which pixels left of the color bar have the color map's top color, a pale yellow."""
    red, _, blue = np.moveaxis(picture[:, : int(0.8 * picture.shape[1])], -1, 0)
    return int(np.sum((red > 0.95) & (blue < 0.85)))


def test_three_panels(tmp_path):
    path = tmp_path / 'x.png'
    spectrogram_panels(
        path, {'mixture': tone(500) + tone(3000), 'target': tone(500), 'separated': tone(500)}, RATE, 't'
    )
    picture = drawn(path)
    assert picture.shape[0] > 500
    assert picture.shape[1] > 500
    assert picture.std() > 0.1
    assert [p.name for p in tmp_path.iterdir()] == ['x.png']


def test_an_array_has_the_pixels_of_the_file(tmp_path):
    panels = {'mixture': tone(500) + tone(3000), 'target': tone(500)}
    spectrogram_panels(tmp_path / 'x.png', panels, RATE, 'a title 🐶')
    array = spectrogram_image(panels, RATE, 'a title 🐶')
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.rint(drawn(tmp_path / 'x.png') * 255))


def test_panels_share_one_scale(tmp_path):
    """A quiet estimate must look quiet: normalizing each panel separately would hide a wrong level."""
    spectrogram_panels(tmp_path / 'same.png', {'a': tone(500), 'b': tone(500)}, RATE)
    spectrogram_panels(tmp_path / 'quiet.png', {'a': tone(500), 'b': tone(500, level=0.005)}, RATE)
    same, quiet = drawn(tmp_path / 'same.png'), drawn(tmp_path / 'quiet.png')
    half = len(same) // 2
    assert loud_pixels(quiet[:half]) == loud_pixels(same[:half]) > 0
    assert loud_pixels(same[half:]) > 0
    assert loud_pixels(quiet[half:]) == 0


@pytest.mark.parametrize(
    'sound',
    [np.zeros(4000, np.float32), np.zeros(1, np.float32), np.zeros((3, 400), np.float32), tone(100, seconds=120)],
    ids=['silence', 'one sample', 'three channels', 'two minutes'],
)
def test_any_sound_can_be_drawn(tmp_path, sound):
    spectrogram_panels(tmp_path / 'x.png', {'sound': sound}, RATE)
    assert drawn(tmp_path / 'x.png').size


def test_titles_are_literal(tmp_path):
    spectrogram_panels(tmp_path / 'x.png', {'a $\\frac{ panel': tone(500)}, RATE, 'for $5, a 🐶 barks_^{ \\ now')
    assert drawn(tmp_path / 'x.png').size


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r'missing/x\.png: the picture cannot be written'):
        spectrogram_panels(tmp_path / 'missing' / 'x.png', {'a': tone(500)}, RATE)


def test_importing_loads_no_matplotlib_and_drawing_loads_no_pyplot(tmp_path):
    code = f"""
import sys, numpy
from audiosep_jax.plots import bar_chart, scatter, spectrogram_panels
assert 'matplotlib' not in sys.modules
spectrogram_panels({str(tmp_path / 'x.png')!r}, {{'a': numpy.zeros(800)}}, 8000)
assert 'matplotlib.pyplot' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=600)


def blue_bars(picture):
    """Rows of the picture that a bar crosses."""
    red, _, blue = np.moveaxis(picture, -1, 0)
    return int(np.sum(np.any((blue - red > 0.3), axis=1)))


def test_bars(tmp_path):
    bar_chart(tmp_path / 'few.png', {'a $1': 1.0, 'b': -2.0, 'ü' * 80: 3.0}, 'dB', 'bars')
    bar_chart(tmp_path / 'many.png', {f'class {i}': float(i) for i in range(100)}, 'dB', limit=10)
    few, many = drawn(tmp_path / 'few.png'), drawn(tmp_path / 'many.png')
    # A bar takes the same height however many there are: ten of a hundred are drawn.
    assert blue_bars(many) == pytest.approx(blue_bars(few) * 10 / 3, rel=0.25)
    with pytest.raises(DataError, match='cannot be written'):
        bar_chart(tmp_path / 'no' / 'x.png', {'a': 1.0}, 'dB')


def red_pixels(picture):
    red, _, blue = np.moveaxis(picture, -1, 0)
    return int(np.sum(red - blue > 0.3))


def test_points_and_their_median(tmp_path):
    rng = np.random.default_rng(0)
    for count in (3, 200):
        scatter(tmp_path / f'{count}.png', rng.normal(size=count), rng.normal(size=count), ('x, dB', 'y, dB'), 't')
    assert red_pixels(drawn(tmp_path / '3.png')) == 0
    assert red_pixels(drawn(tmp_path / '200.png')) > 500
