"""Prepares images as in CLIP's training: RGB, shortest edge resized, center cropped, normalized. Needs only Pillow.

The pixels are equal to those of transformers' `CLIPImageProcessorPil` (`tests/encoders/clip/test_images.py`).
Transparent images are put on white, the shortest edge is resized (bicubic, with Pillow's anti-aliasing), the center is
cropped, and the bytes are scaled to mean 0 and deviation 1. As in transformers, a *file* is turned upright by its EXIF
orientation, while an image that the caller has opened is used unchanged. Unlike here, transformers does not put a
transparent *file* on white, but shows the color that the transparency hides.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.encoders.towers import read_settings
from audiosep_jax.errors import CheckpointError, QueryError, first_line

if TYPE_CHECKING:
    import PIL.Image

    Image = PIL.Image.Image | np.ndarray | str | os.PathLike

# The common formats only: Pillow runs Ghostscript for EPS, and its rarely used decoders have most of its bugs.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
_BICUBIC = 3
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How to prepare pixels.

    Attributes:
        resize: the shortest edge in pixels, or (height, width); None: images are not resized.
        crop: (height, width) in pixels; None: images are not cropped.
        resample: Pillow's number of the resampling filter.
        scale: factor by which bytes are multiplied.
        mean: mean of the three colors after scaling.
        deviation: standard deviation of the three colors after scaling.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = _BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, float, float] = _MEAN
    deviation: tuple[float, float, float] = _DEVIATION


def read_image_config(folder: Path, image_size: int) -> ImageConfig:
    """Returns the settings in `preprocessor_config.json` or `processor_config.json`, or else CLIP's defaults.

    Args:
        folder: the folder of the weights.
        image_size: the size of images that the vision tower takes, in pixels.

    Raises:
        CheckpointError: the file is damaged, or the tower does not take images of its size.
    """
    path = folder / 'preprocessor_config.json'
    settings = read_settings(path)
    if settings is None:
        path = folder / 'processor_config.json'
        both = read_settings(path)
        if both is None:
            return ImageConfig(resize=image_size, crop=(image_size, image_size))
        settings = both.get('image_processor')
    try:
        if not isinstance(settings, dict):
            raise ValueError('no object image_processor')
        config = _parse_settings(settings)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(f'{path}: damaged, or not the settings of CLIP images: {error!r}') from error
    size = config.crop or (config.resize if isinstance(config.resize, tuple) else None)
    if size is not None and size != (image_size, image_size):
        raise CheckpointError(f'{path}: makes images of {size[0]}×{size[1]}, the model takes {image_size}×{image_size}')
    return config


def _parse_settings(settings: Mapping[str, Any]) -> ImageConfig:
    resize = settings.get('size', 224)
    if isinstance(resize, Mapping):
        resize = resize['shortest_edge'] if 'shortest_edge' in resize else (resize['height'], resize['width'])
    crop = settings.get('crop_size', 224)
    crop = (crop['height'], crop['width']) if isinstance(crop, Mapping) else (crop, crop)
    for number in (*(resize if isinstance(resize, tuple) else (resize,)), *crop):
        if not isinstance(number, int) or not 0 < number <= 1 << 14:
            raise ValueError(f'{number!r} pixels')
    resample = settings.get('resample', _BICUBIC)
    if resample not in range(6):
        raise ValueError(f'resample {resample!r}')
    normalize = settings.get('do_normalize', True)
    mean = tuple(map(float, settings.get('image_mean', _MEAN))) if normalize else (0.0, 0.0, 0.0)
    deviation = tuple(map(float, settings.get('image_std', _DEVIATION))) if normalize else (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(deviation) != 3 or not all(deviation) or not all(map(math.isfinite, (*mean, *deviation))):
        raise ValueError('image_mean and image_std are not three numbers each')
    scale = float(settings.get('rescale_factor', 1 / 255)) if settings.get('do_rescale', True) else 1.0
    if not math.isfinite(scale) or not scale:
        raise ValueError(f'rescale_factor {scale}')
    return ImageConfig(
        resize=resize if settings.get('do_resize', True) else None,
        crop=crop if settings.get('do_center_crop', True) else None,
        resample=resample,
        scale=scale,
        mean=mean,
        deviation=deviation,
    )


def prepare(image: 'Image', config: ImageConfig, where: str = 'image') -> np.ndarray:
    """Returns the pixels of one image, float32 [H, W, 3].

    Args:
        image: a Pillow image, an array uint8 [H, W, 3], or the path of a file.
        config: how to prepare the pixels.
        where: how to name the image in messages.

    Raises:
        QueryError: the file is missing, damaged, too large or not an image, or the array has another shape or type.
    """
    if isinstance(image, str | os.PathLike):
        where = os.fspath(image)
    try:
        rgb = _crop(_resize(_load_rgb(image, where), config, where), config)
    except QueryError:
        raise
    except Exception as error:  # for a damaged file Pillow's decoders may raise anything
        raise QueryError(f'{where}: cannot be read as an image: {first_line(error)}') from error
    pixels = (np.asarray(rgb).astype(np.float64) * config.scale).astype(np.float32)
    return (pixels - np.array(config.mean, np.float32)) / np.array(config.deviation, np.float32)


def _load_rgb(image: 'Image', where: str) -> 'PIL.Image.Image':
    import PIL.Image

    if isinstance(image, str | os.PathLike):
        return _open_file(where)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise QueryError(f'{where}: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        return PIL.Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, PIL.Image.Image):
        raise QueryError(f'{where}: expected a Pillow image, uint8 [H, W, 3] or a path, got {type(image).__name__}')
    return _put_on_white(image)


def _open_file(path: str) -> 'PIL.Image.Image':
    import PIL.Image
    import PIL.ImageOps

    if not os.path.isfile(path):
        raise QueryError(f'{path}: {"is a folder, not an image" if os.path.isdir(path) else "no such image file"}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # odd metadata causes warnings
            warnings.simplefilter('error', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=_FORMATS) as file:
                return _put_on_white(PIL.ImageOps.exif_transpose(file))
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        raise QueryError(f'{path}: an image of more than {limit:,} pixels: make it smaller first') from error
    except PIL.UnidentifiedImageError as error:
        raise QueryError(f'{path}: not an image of a supported format ({", ".join(_FORMATS)})') from error


def _put_on_white(image: 'PIL.Image.Image') -> 'PIL.Image.Image':
    """Converts an image to RGB, and puts transparent ones on white."""
    import PIL.Image

    if 'A' in image.getbands() or image.info.get('transparency') is not None:
        image = image.convert('RGBA')
        image = PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


def _resize(image: 'PIL.Image.Image', config: ImageConfig, where: str) -> 'PIL.Image.Image':
    import PIL.Image

    if config.resize is None:
        return image
    if isinstance(config.resize, tuple):
        height, width = config.resize
    else:
        # The longer edge is rounded down, as in transformers.
        short, long = config.resize, int(config.resize * max(image.size) / min(image.size))
        width, height = (short, long) if image.width <= image.height else (long, short)
    if width * height > (PIL.Image.MAX_IMAGE_PIXELS or 1 << 27):
        raise QueryError(f'{where}: {image.width}×{image.height} pixels is too elongated: crop it first')
    return image.resize((width, height), PIL.Image.Resampling(config.resample))


def _crop(image: 'PIL.Image.Image', config: ImageConfig) -> 'PIL.Image.Image':
    if config.crop is None:
        return image
    height, width = config.crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))  # black outside the image
