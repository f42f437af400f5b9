"""Images as CLIP was trained on: RGB, shortest edge resized, centre cropped, normalised. Pillow alone.

The same numbers as transformers' `CLIPImageProcessorPil` (`tests/test_clip_images.py`), in its order: transparency is
laid on white, the shortest edge is resized (bicubic, with Pillow's own anti-aliasing), the middle is cut out, bytes
become numbers of mean 0 and deviation 1. As there, a *file* is turned upright by its EXIF orientation, and an image
that the caller has opened is taken as it is. Transparent files are laid on white as well: where transformers opens the
file itself, it shows whatever colour is hidden under the transparency.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.errors import CheckpointError, QueryError, first_line

if TYPE_CHECKING:
    import PIL.Image

    Image = PIL.Image.Image | np.ndarray | str | os.PathLike

# What people have. Not all that Pillow knows: EPS runs Ghostscript, and rare decoders are where its bugs are.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
_BICUBIC = 3
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How pixels are prepared.

    Attributes:
        resize: the shortest edge in pixels, or (height, width), or None: not resized.
        crop: (height, width), or None: not cropped.
        resample: Pillow's number of the filter.
        scale: what bytes are multiplied by.
        mean, deviation: of the three colours, after scaling.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = _BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, float, float] = _MEAN
    deviation: tuple[float, float, float] = _DEVIATION


def read_image_config(folder: Path, image_size: int) -> ImageConfig:
    """The settings in a folder's `preprocessor_config.json` or `processor_config.json`; CLIP's own where it has none.

    Args:
        folder: of the weights.
        image_size: what the vision tower takes, in pixels.

    Raises:
        CheckpointError: damaged, or it makes images that the tower does not take.
    """
    path = folder / 'preprocessor_config.json'
    try:
        if path.is_file():
            settings = json.loads(path.read_text('utf-8'))
        elif (path := folder / 'processor_config.json').is_file():
            settings = json.loads(path.read_text('utf-8'))['image_processor']
        else:
            return ImageConfig(resize=image_size, crop=(image_size, image_size))
        config = _parse(settings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f'{path}: damaged, or not the settings of CLIP images: {error!r}') from error
    made = config.crop or (config.resize if isinstance(config.resize, tuple) else None)
    if made is not None and made != (image_size, image_size):
        raise CheckpointError(f'{path}: makes images of {made[0]}×{made[1]}, the model takes {image_size}×{image_size}')
    return config


def _parse(settings: Mapping[str, Any]) -> ImageConfig:
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
    normalises = settings.get('do_normalize', True)
    mean = tuple(map(float, settings.get('image_mean', _MEAN))) if normalises else (0.0, 0.0, 0.0)
    deviation = tuple(map(float, settings.get('image_std', _DEVIATION))) if normalises else (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(deviation) != 3 or not all(deviation):
        raise ValueError('image_mean and image_std are not three numbers each')
    return ImageConfig(
        resize=resize if settings.get('do_resize', True) else None,
        crop=crop if settings.get('do_center_crop', True) else None,
        resample=resample,
        scale=float(settings.get('rescale_factor', 1 / 255)) if settings.get('do_rescale', True) else 1.0,
        mean=mean,
        deviation=deviation,
    )


def prepare(image: 'Image', config: ImageConfig, where: str = 'image') -> np.ndarray:
    """float32 [H, W, 3] of one image: a Pillow image, uint8 [H, W, 3], or the path of a file.

    Raises:
        QueryError: no such file, not an image, damaged, too large, or an array of another kind.
    """
    if isinstance(image, str | os.PathLike):
        where = os.fspath(image)
    try:
        rgb = _rgb(image, where)
        rgb = _cropped(_resized(rgb, config, where), config)
    except QueryError:
        raise
    except Exception as error:  # Pillow's decoders let through whatever a damaged file makes them stumble over
        raise QueryError(f'{where}: cannot be read as an image: {first_line(error)}') from error
    pixels = (np.asarray(rgb).astype(np.float64) * config.scale).astype(np.float32)
    return (pixels - np.float32(config.mean)) / np.float32(config.deviation)


def _rgb(image: 'Image', where: str) -> 'PIL.Image.Image':
    import PIL.Image

    if isinstance(image, str | os.PathLike):
        return _open(where)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise QueryError(f'{where}: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        return PIL.Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, PIL.Image.Image):
        raise QueryError(f'{where}: expected a Pillow image, uint8 [H, W, 3] or a path, got {type(image).__name__}')
    return _opaque(image)


def _open(path: str) -> 'PIL.Image.Image':
    import PIL.Image
    import PIL.ImageOps

    if not os.path.isfile(path):
        raise QueryError(f'{path}: {"is a folder, not an image" if os.path.isdir(path) else "no such image file"}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of odd metadata
            warnings.simplefilter('error', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=_FORMATS) as file:
                return _opaque(PIL.ImageOps.exif_transpose(file))
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        raise QueryError(f'{path}: an image of more than {limit:,} pixels: make it smaller first') from error
    except PIL.UnidentifiedImageError as error:
        raise QueryError(f'{path}: not an image of a known format ({", ".join(_FORMATS)})') from error


def _opaque(image: 'PIL.Image.Image') -> 'PIL.Image.Image':
    import PIL.Image

    if 'A' in image.getbands() or image.info.get('transparency') is not None:
        image = image.convert('RGBA')
        image = PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


def _resized(image: 'PIL.Image.Image', config: ImageConfig, where: str) -> 'PIL.Image.Image':
    import PIL.Image

    if config.resize is None:
        return image
    if isinstance(config.resize, tuple):
        height, width = config.resize
    else:
        # The longer edge is cut off, not rounded.
        short, long = config.resize, int(config.resize * max(image.size) / min(image.size))
        width, height = (short, long) if image.width <= image.height else (long, short)
    if width * height > (PIL.Image.MAX_IMAGE_PIXELS or 1 << 27):
        raise QueryError(f'{where}: {image.width}×{image.height} pixels is too elongated: crop it first')
    return image.resize((width, height), PIL.Image.Resampling(config.resample))


def _cropped(image: 'PIL.Image.Image', config: ImageConfig) -> 'PIL.Image.Image':
    if config.crop is None:
        return image
    height, width = config.crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))  # black where the image does not reach
