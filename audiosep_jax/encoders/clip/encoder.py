"""`clip`: text and images to one space (OpenAI's and LAION's CLIP), in Flax, from Hugging Face's files. No torch.

A folder holds `config.json`, `model.safetensors` (or `pytorch_model.bin`), `tokenizer.json` and perhaps
`preprocessor_config.json`; ViT-B/32, B/16, L/14 and L/14@336 differ in their config alone.

Embeddings have length 1. CLIP is trained on the angle between text and image vectors alone, their lengths differ from
tower to tower and from input to input; AudioSep's hybrid training puts the one in the place of the other, so they have
to be alike. `normalize=False` gives the raw ones, and says so in the identity.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.encoders.base import check_texts
from audiosep_jax.encoders.clip.images import ImageConfig, prepare, read_image_config
from audiosep_jax.encoders.clip.model import (
    ClipConfig,
    TextTower,
    VisionTower,
    check_tensors,
    read_config,
    tensor_shapes,
)
from audiosep_jax.encoders.tokenizer import Tokenizer
from audiosep_jax.encoders.towers import MAX_BATCH, bucket, fingerprint, in_batches, tokenizer_in
from audiosep_jax.errors import CheckpointError, QueryError
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import open_tensors

if TYPE_CHECKING:
    from audiosep_jax.encoders.clip.images import Image

_LENGTHS = (16, 32, 64)  # of token ids, below the longest that a model takes
_TOKENIZER_SOURCE = 'openai/clip-vit-base-patch32'  # one vocabulary for all of OpenAI's and LAION's models


class ClipEncoder:
    """CLIP's text and vision towers, each loaded to the device when it is first asked. Use `ClipEncoder.open`.

    Args:
        tensors: both towers' weights in Hugging Face's names.
        config: their sizes.
        images: how pixels are prepared.
        folder: where the tokenizer is, or is put when it had to be fetched.
        source: what the identity says of the origin, such as a repository's name.
        normalize: scale embeddings to length 1.
    """

    name = 'clip'
    version = 1

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        config: ClipConfig,
        images: ImageConfig,
        folder: Path,
        *,
        source: str = '',
        normalize: bool = True,
    ):
        self.config = config
        self.images = images
        self.source = source
        self.normalize = bool(normalize)
        self.embedding_size = config.embedding_size
        self._tensors = tensors
        self._folder = folder

    @classmethod
    def open(cls, path: str | Path, *, source: str = '', normalize: bool = True) -> 'ClipEncoder':
        """The encoder of a folder, or of a file of weights with `config.json` beside it. Reads shapes, no weights.

        Raises:
            CheckpointError: nothing there, damaged, another model (CLAP, SigLIP …), or tensors that do not fit.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f'no such file or folder: {path}')
        folder = path if path.is_dir() else path.parent
        settings = folder / 'config.json'
        if not settings.is_file():
            raise CheckpointError(f'{path}: no config.json, as a CLIP in Hugging Face naming has beside its weights')
        try:
            parsed = json.loads(settings.read_text('utf-8'))
        except (OSError, ValueError) as error:
            raise CheckpointError(f'{settings}: cannot be read: {error}') from error
        if not isinstance(parsed, dict):
            raise CheckpointError(f'{settings}: not the configuration of a model')
        config = read_config(parsed, str(settings))
        images = read_image_config(folder, config.vision.image_size)
        tensors = open_tensors(path)
        check_tensors(tensors, config, str(path))
        return cls(tensors, config, images, folder, source=source, normalize=normalize)

    def identity(self) -> dict[str, Any]:
        """What caches and checkpoints record; `weights` is a fingerprint of both towers and of what they compute.

        The latter because the same weights with the other activation, say, are another encoder.
        """
        return {
            'name': self.name,
            'version': self.version,
            'embedding_size': self.embedding_size,
            'weights': self._fingerprint,
            'source': self.source,
            'normalize': self.normalize,
        }

    @functools.cached_property
    def _fingerprint(self) -> str:
        settings = [dataclasses.asdict(part) for part in (self.config, self.images)]
        return fingerprint(self._tensors, tensor_shapes(self.config), json.dumps(settings, sort_keys=True))

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """float32 [Q, E] of Q sentences; beyond 77 tokens a sentence loses its end.

        Raises:
            QueryError: an empty sentence.
            DownloadError: there is no tokenizer beside the weights, and none can be fetched.
        """
        check_texts(texts)
        if not len(texts):
            return np.zeros((0, self.embedding_size), np.float32)
        return self.encode_token_ids(*self.tokenizer.encode(list(texts), self.config.text.tokens))

    def encode_token_ids(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """float32 [Q, E] of token ids [Q, L], begin and end included.

        A text is answered at its end-of-text token and attention looks back only, so padding on the right changes
        nothing, whatever its id and with or without a mask.

        Args:
            ids: integers [Q, L], L at most the config's `max_position_embeddings` (77).
            attention_mask: [Q, L], 0 where a token must not be seen; None: all are.

        Raises:
            QueryError: other shapes, more tokens, or ids outside the vocabulary.
        """
        config = self.config.text
        try:
            ids = np.asarray(ids)
            mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        except ValueError as error:  # rows of several lengths
            raise QueryError(f'token ids and attention mask: expected integers [Q, L]: {error}') from error
        if ids.ndim != 2 or mask.shape != ids.shape or not np.issubdtype(ids.dtype, np.integer):
            raise QueryError(
                f'token ids and attention mask: expected integers [Q, L], got {ids.dtype} {list(ids.shape)} and '
                f'{list(mask.shape)}'
            )
        count, length = ids.shape
        if not 1 <= length <= config.tokens:
            raise QueryError(f'{length} tokens: CLIP takes 1 to {config.tokens}')
        if not count:
            return np.zeros((0, self.embedding_size), np.float32)
        if ids.min() < 0 or ids.max() >= config.vocabulary:
            raise QueryError(f'token ids outside the vocabulary of {config.vocabulary}')
        # transformers: configs from before 2023 say 2, which is wrong, and mean the largest id; else the first of them.
        end = np.argmax(ids if config.eos_token_id == 2 else ids == config.eos_token_id, axis=1)
        sizes = [size for size in _LENGTHS if size < config.tokens] + [config.tokens]
        size_of = np.array([bucket(position + 1, sizes) for position in end])
        embeddings = np.empty((count, self.embedding_size), np.float32)
        for size in np.unique(size_of):
            rows = size_of == size
            fill = ((0, 0), (0, max(0, size - length)))
            fitted = (np.pad(array[rows, :size].astype(np.int32), fill) for array in (ids, mask))
            embeddings[rows] = in_batches(self._text_tower, *fitted, end[rows].astype(np.int32))
        return self._checked(embeddings)

    def encode_image(self, images: 'list[Image]') -> np.ndarray:
        """float32 [Q, E] of Q images: Pillow images, uint8 [H, W, 3], or paths of files, which EXIF turns upright.

        Raises:
            QueryError: a file that is missing, damaged or not an image; more pixels than Pillow's `MAX_IMAGE_PIXELS`.
        """
        if not isinstance(images, list | tuple):
            raise QueryError(f'expected a list of images, got {type(images).__name__}: put it into a list')
        embeddings = [np.zeros((0, self.embedding_size), np.float32)]
        for start in range(0, len(images), self._image_batch):
            batch = images[start : start + self._image_batch]
            pixels = [self._prepare(image, start + i, len(images)) for i, image in enumerate(batch)]
            embeddings.append(in_batches(self._vision_tower, np.stack(pixels), largest=self._image_batch))
        return self._checked(np.concatenate(embeddings))

    @property
    def _image_batch(self) -> int:
        # The attention weights of 64 images are 0.3 GB in a layer of L/14, and 1.4 GB at 336 pixels.
        return MAX_BATCH if self.config.vision.image_size // self.config.vision.patch_size <= 16 else MAX_BATCH // 4

    def _prepare(self, image: 'Image', index: int, count: int) -> np.ndarray:
        where = f'image {index + 1} of {count}' if count > 1 else 'image'
        pixels = prepare(image, self.images, where)
        size = self.config.vision.image_size
        if pixels.shape != (size, size, 3):  # only where the settings do not crop
            raise QueryError(f'{where}: {pixels.shape[1]}×{pixels.shape[0]} pixels, this model takes {size}×{size}')
        return pixels

    def _checked(self, embeddings: np.ndarray) -> np.ndarray:
        if not np.isfinite(embeddings).all():
            raise CheckpointError(
                f'{self._folder}: these weights give embeddings that are not finite: they are damaged'
            )
        return embeddings

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        reference = hub.parse_reference(self.source)
        repository = _TOKENIZER_SOURCE if reference is None else reference.repository
        tokenizer = tokenizer_in(self._folder, 'clip', repository)
        if tokenizer.vocabulary_size > self.config.text.vocabulary:
            raise CheckpointError(
                f'{self._folder}: the tokenizer has {tokenizer.vocabulary_size} tokens, the model '
                f'{self.config.text.vocabulary}: they do not belong together'
            )
        return tokenizer

    @functools.cached_property
    def _text_tower(self) -> TextTower:
        return TextTower(self.config, self._tensors, normalize=self.normalize)

    @functools.cached_property
    def _vision_tower(self) -> VisionTower:
        return VisionTower(self.config, self._tensors, normalize=self.normalize)
