"""Compares the pixels of images with those of transformers, and tests damaged files."""

import json
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from audiosep_jax.encoders.clip.images import ImageConfig, prepare, read_image_config
from audiosep_jax.errors import CheckpointError, QueryError

SMALL = ImageConfig(resize=32, crop=(32, 32))


def colours(width: int, height: int, mode: str = 'RGB') -> PIL.Image.Image:
    """Returns smooth waves and noise, which make a wrong filter or offset visible."""
    rng = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c)) + np.cos(y / (5 + c)) for c in range(4)]
    pixels = np.stack(waves, -1) * 50 + 127 + rng.normal(0, 15, (height, width, 4))
    image = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8), 'RGBA')
    return image if mode == 'RGBA' else image.convert('RGB').convert(mode)


def palette_with_transparency() -> PIL.Image.Image:
    image = colours(60, 40).quantize(16)
    image.info['transparency'] = 3
    return image


IMAGES = {
    'odd': lambda: colours(301, 227),
    'tall': lambda: colours(33, 400),
    'wide': lambda: colours(411, 35),
    'tiny': lambda: colours(3, 2),
    'one pixel': lambda: colours(1, 1),
    'exact': lambda: colours(224, 224),
    'just above': lambda: colours(225, 226),
    'alpha': lambda: colours(120, 90, 'RGBA'),
    'grey and alpha': lambda: colours(90, 120, 'RGBA').convert('LA'),
    'palette': lambda: colours(60, 40).quantize(16),
    'palette with transparency': palette_with_transparency,
    'grey': lambda: colours(77, 99, 'L'),
    'black and white': lambda: colours(77, 99, '1'),
    'printing colours': lambda: colours(50, 70, 'CMYK'),
    'sixteen bits': lambda: PIL.Image.fromarray((np.arange(48 * 40).reshape(48, 40) * 30).astype(np.uint16)),
    'array': lambda: np.asarray(colours(64, 48)),
    'view of an array': lambda: np.asarray(colours(64, 48))[::-1, ::2],
}


@pytest.fixture(scope='module')
def processor():
    pytest.importorskip('transformers', reason='compares with transformers: pip install -e .[parity]')
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil


def of_transformers(processor, image, **settings) -> np.ndarray:
    return processor(**settings)(image, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)


@pytest.mark.parametrize('name', IMAGES)
def test_pixels_equal_those_of_transformers(processor, name):
    image = IMAGES[name]()
    np.testing.assert_array_equal(prepare(image, ImageConfig()), of_transformers(processor, image))


SETTINGS = [
    {'size': {'shortest_edge': 70}, 'crop_size': {'height': 64, 'width': 64}},
    {'size': {'shortest_edge': 51}, 'crop_size': {'height': 64, 'width': 64}},  # black at the edges
    {'size': {'height': 64, 'width': 64}, 'do_center_crop': False, 'resample': 2},
    {'size': {'shortest_edge': 64}, 'crop_size': 64, 'do_rescale': False, 'do_normalize': False},
    {'size': 64, 'crop_size': 64, 'image_mean': [0.5] * 3, 'image_std': [0.25] * 3},  # the form of files from 2021
    {'do_resize': False, 'crop_size': {'height': 64, 'width': 64}, 'rescale_factor': 1 / 128},
]


@pytest.mark.parametrize('settings', SETTINGS)
def test_settings_mean_what_they_mean_to_transformers(processor, settings, tmp_path):
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
    image = colours(90, 75)
    pixels = prepare(image, read_image_config(tmp_path, 64))
    np.testing.assert_array_equal(pixels, of_transformers(processor, image, **settings))


def test_known_pixels():
    """A gray image has the value (v / 255 - mean) / deviation everywhere."""
    pixels = prepare(np.full((50, 60, 3), 128, np.uint8), SMALL)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.float32
    expected = (128 / 255 - np.array([0.48145466, 0.4578275, 0.40821073])) / [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), rtol=1e-5)


def test_transparent_pixels_are_white():
    pixels = prepare(PIL.Image.new('RGBA', (40, 40), (10, 20, 30, 0)), SMALL)
    np.testing.assert_array_equal(pixels, prepare(PIL.Image.new('RGB', (40, 40), 'white'), SMALL))


@pytest.mark.parametrize('kind', [str, Path])
def test_a_file_gives_what_its_image_gives(tmp_path, kind):
    image = colours(70, 50, 'RGBA')
    image.save(tmp_path / 'dog.png')
    np.testing.assert_array_equal(prepare(kind(tmp_path / 'dog.png'), SMALL), prepare(image, SMALL))


def test_a_file_is_turned_upright_and_an_opened_image_is_not(tmp_path):
    upright = colours(70, 50)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    lying = upright.transpose(PIL.Image.Transpose.ROTATE_90)
    lying.save(tmp_path / 'phone.png', exif=exif)
    np.testing.assert_array_equal(prepare(tmp_path / 'phone.png', SMALL), prepare(upright, SMALL))
    with PIL.Image.open(tmp_path / 'phone.png') as opened:
        np.testing.assert_array_equal(prepare(opened, SMALL), prepare(lying, SMALL))


def test_the_first_frame_of_an_animation(tmp_path):
    first, second = PIL.Image.new('RGB', (40, 40), 'red'), PIL.Image.new('RGB', (40, 40), 'blue')
    first.save(tmp_path / 'moving.gif', save_all=True, append_images=[second])
    np.testing.assert_array_equal(prepare(tmp_path / 'moving.gif', SMALL), prepare(first, SMALL))


# ---------------------------------------------------------------------------------------------------------------------
# What is not an image.
# ---------------------------------------------------------------------------------------------------------------------


def refused(image, match: str) -> None:
    with pytest.raises(QueryError, match=match) as caught:
        prepare(image, SMALL)
    assert '\n' not in str(caught.value)
    if isinstance(image, Path):
        assert str(image) in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    refused(tmp_path / 'none.png', 'no such image')
    refused(tmp_path, 'is a folder')


def test_files_of_another_kind(tmp_path):
    (tmp_path / 'text.png').write_text('not an image')
    refused(tmp_path / 'text.png', 'not an image of a supported format')
    (tmp_path / 'empty.jpg').touch()
    refused(tmp_path / 'empty.jpg', 'not an image of a supported format')


def test_postscript_is_not_run(tmp_path):
    """Pillow would run Ghostscript for it."""
    colours(20, 20).save(tmp_path / 'print.eps')
    refused(tmp_path / 'print.eps', 'not an image of a supported format')


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'bmp', 'tiff', 'webp'])
def test_damaged_files_are_one_line_or_an_image(tmp_path, suffix):
    """A file that is cut or has changed bytes gives an image or a QueryError, without warnings."""
    whole = tmp_path / f'whole.{suffix}'
    colours(40, 30).save(whole)
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f'damaged.{suffix}'
    refusals = []
    for attempt in range(40):
        damaged = bytearray(data[: len(data) * attempt // 40] if attempt % 2 else data)
        for place in rng.integers(0, len(damaged), 5) if damaged and not attempt % 2 else ():
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert prepare(path, SMALL).shape == (32, 32, 3)
        except QueryError as error:
            refusals.append(str(error))
    assert len(refusals) >= 5
    assert all(message.startswith(f'{path}: ') and '\n' not in message for message in refusals)


def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    PIL.Image.new('1', (3000, 3000)).save(tmp_path / 'bomb.png')
    for limit in (8_000_000, 1_000_000):  # Pillow warns from its limit on, and refuses at twice that
        monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', limit)
        refused(tmp_path / 'bomb.png', f'more than {limit:,} pixels')


def test_a_line_of_pixels_would_become_a_bomb():
    refused(PIL.Image.new('L', (1, 3_000_000)), 'too elongated')


def test_metadata_that_warns_is_an_image_all_the_same(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 1
    raw = bytearray(exif.tobytes())
    raw[-8:] = b'\xff' * 8
    colours(40, 30).save(tmp_path / 'odd.jpg', exif=bytes(raw))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert prepare(tmp_path / 'odd.jpg', SMALL).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ('image', 'match'),
    [
        (np.zeros((4, 4, 3), np.float32), 'uint8'),
        (np.zeros((4, 4), np.uint8), r'\[4, 4\]'),
        (np.zeros((0, 4, 3), np.uint8), r'\[0, 4, 3\]'),
        (np.zeros((4, 4, 4), np.uint8), r'\[4, 4, 4\]'),
        (7, 'got int'),
    ],
)
def test_other_things_are_refused(image, match):
    refused(image, match)


# ---------------------------------------------------------------------------------------------------------------------
# The settings.
# ---------------------------------------------------------------------------------------------------------------------


def test_without_settings_the_model_decides(tmp_path):
    assert read_image_config(tmp_path, 336) == ImageConfig(resize=336, crop=(336, 336))


def test_settings_inside_those_of_the_whole_processor(tmp_path):
    settings = {'image_processor': {'size': {'shortest_edge': 40}, 'crop_size': {'height': 32, 'width': 32}}}
    (tmp_path / 'processor_config.json').write_text(json.dumps(settings))
    assert read_image_config(tmp_path, 32) == ImageConfig(resize=40, crop=(32, 32))


@pytest.mark.parametrize(
    'text',
    [
        '{"size": ',
        '[]',
        '{"size": {"longest_edge": 3}}',
        '{"size": -1}',
        '{"crop_size": "x"}',
        '{"resample": 99}',
        '{"image_mean": [1]}',
        '{"image_std": [0, 1, 1]}',
        '{"crop_size": 100}',
    ],
)
def test_damaged_settings_name_their_file(tmp_path, text):
    (tmp_path / 'preprocessor_config.json').write_text(text)
    with pytest.raises(CheckpointError, match=r'preprocessor_config\.json'):
        read_image_config(tmp_path, 224)
