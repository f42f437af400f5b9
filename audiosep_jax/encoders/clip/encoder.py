"""`clip` embeds texts and images in the same space (OpenAI's and LAION's CLIP), without PyTorch.

It reads Hugging Face's folders: `config.json`, `model.safetensors` (or `pytorch_model.bin`), `tokenizer.json` and
optionally `preprocessor_config.json`. ViT-B/32, B/16, L/14 and L/14@336 differ only in their `config.json`.

Embeddings have length 1. CLIP is trained only on the angles between vectors of texts and images, so their lengths
differ between towers and between inputs. AudioSep's hybrid training uses both as the same condition, so they must have
the same length. `normalize=False` gives the raw embeddings, and the identity records it.
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
from audiosep_jax.encoders.towers import (
    MAX_BATCH,
    check_finite,
    check_token_ids,
    fingerprint,
    in_batches,
    padded_length,
    read_settings,
    tokenizer_in,
)
from audiosep_jax.errors import CheckpointError, QueryError
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import open_tensors

if TYPE_CHECKING:
    from audiosep_jax.encoders.clip.images import Image

_LENGTHS = (16, 32, 64)  # compiled numbers of tokens, besides the largest that the model takes
_TOKENIZER_SOURCE = 'openai/clip-vit-base-patch32'  # all of OpenAI's and LAION's models have the same vocabulary


class ClipEncoder:
    """CLIP's towers, each loaded to the device on first use. Use `ClipEncoder.open` to create an encoder.

    Args:
        tensors: the weights of both towers, by Hugging Face's names.
        config: the sizes of both towers.
        images: how to prepare pixels.
        folder: the folder of the tokenizer, into which it is fetched if it is missing.
        source: the origin of the weights, such as a repository's name, for the identity.
        normalize: whether to scale embeddings to length 1.
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
        """Opens the encoder of a folder, or of a file of weights next to its `config.json`. Reads only shapes.

        Args:
            path: the folder or file.
            source: see the class.
            normalize: see the class.

        Raises:
            CheckpointError: the path is missing or damaged, or the model is another one (CLAP, SigLIP …).
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f'no such file or folder: {path}')
        folder = path if path.is_dir() else path.parent
        settings = folder / 'config.json'
        parsed = read_settings(settings)
        if parsed is None:
            raise CheckpointError(f'{path}: no config.json next to the weights, which gives their sizes: add it')
        config = read_config(parsed, str(settings))
        images = read_image_config(folder, config.vision.image_size)
        tensors = open_tensors(path)
        check_tensors(tensors, config, str(path))
        return cls(tensors, config, images, folder, source=source, normalize=normalize)

    def identity(self) -> dict[str, Any]:
        """Returns the settings that caches and checkpoints record.

        `weights` is a fingerprint of both towers and of their configuration: the same weights with another activation,
        for example, are another encoder.
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
        """Returns the embeddings of sentences, float32 [Q, E]. Sentences are cut after 77 tokens.

        Raises:
            QueryError: a sentence is empty.
            CheckpointError: the tokenizer or the weights are damaged, or do not belong together.
            DownloadError: there is no tokenizer next to the weights, and it cannot be fetched.
        """
        check_texts(texts)
        if not len(texts):
            return np.zeros((0, self.embedding_size), np.float32)
        return self.encode_token_ids(*self.tokenizer.encode(list(texts), self.config.text.tokens))

    def encode_token_ids(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Returns the embeddings of token ids, float32 [Q, E].

        The embedding is read at the end-of-text token, and attention only looks back. Padding on the right therefore
        changes nothing, with any id, with or without a mask.

        Args:
            ids: integers [Q, L] including the begin and end tokens, L at most `max_position_embeddings` (77).
            attention_mask: [Q, L], 0 for tokens that must not be seen; None: all are seen.

        Raises:
            QueryError: the shape is wrong, there are too many tokens, or ids are outside the vocabulary.
            CheckpointError: the weights are damaged.
        """
        config = self.config.text
        try:
            ids = np.asarray(ids)
            mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        except ValueError as error:  # rows of different lengths
            raise QueryError(f'token ids and attention mask: expected integers [Q, L]: {error}') from error
        check_token_ids(ids, mask)
        count, length = ids.shape
        if not 1 <= length <= config.tokens:
            raise QueryError(f'{length} tokens: CLIP takes 1 to {config.tokens}')
        if not count:
            return np.zeros((0, self.embedding_size), np.float32)
        if ids.min() < 0 or ids.max() >= config.vocabulary:
            raise QueryError(f'token ids outside the vocabulary of {config.vocabulary}')
        # As in transformers: the first end token, or the largest id if the config wrongly says 2 (before 2023).
        end = np.argmax(ids if config.eos_token_id == 2 else ids == config.eos_token_id, axis=1)
        sizes = [size for size in _LENGTHS if size < config.tokens] + [config.tokens]
        size_of = np.array([padded_length(position + 1, sizes) for position in end])
        embeddings = np.empty((count, self.embedding_size), np.float32)
        for size in np.unique(size_of):
            rows = size_of == size
            fill = ((0, 0), (0, max(0, size - length)))
            fitted = (np.pad(array[rows, :size].astype(np.int32), fill) for array in (ids, mask))
            embeddings[rows] = in_batches(self._text_tower, *fitted, end[rows].astype(np.int32))
        return check_finite(embeddings, self._folder)

    def encode_image(self, images: 'list[Image]') -> np.ndarray:
        """Returns the embeddings of images, float32 [Q, E].

        Args:
            images: Pillow images, arrays uint8 [H, W, 3], or paths of files, which are turned upright by EXIF.

        Raises:
            QueryError: a file is missing, damaged or not an image, or has more pixels than Pillow's `MAX_IMAGE_PIXELS`.
            CheckpointError: the weights are damaged.
        """
        if not isinstance(images, list | tuple):
            raise QueryError(f'expected a list of images, got {type(images).__name__}: put it into a list')
        embeddings = [np.zeros((0, self.embedding_size), np.float32)]
        for start in range(0, len(images), self._image_batch):
            batch = images[start : start + self._image_batch]
            pixels = [self._prepare(image, start + i, len(images)) for i, image in enumerate(batch)]
            embeddings.append(in_batches(self._vision_tower, np.stack(pixels), largest=self._image_batch))
        return check_finite(np.concatenate(embeddings), self._folder)

    @property
    def _image_batch(self) -> int:
        # The attention weights of 64 images take 0.3 GB in a layer of L/14, and 1.4 GB at 336 pixels.
        return MAX_BATCH if self.config.vision.image_size // self.config.vision.patch_size <= 16 else MAX_BATCH // 4

    def _prepare(self, image: 'Image', index: int, count: int) -> np.ndarray:
        where = f'image {index + 1} of {count}' if count > 1 else 'image'
        pixels = prepare(image, self.images, where)
        size = self.config.vision.image_size
        if pixels.shape != (size, size, 3):  # possible only if the settings do not crop
            raise QueryError(f'{where}: {pixels.shape[1]}×{pixels.shape[0]} pixels, this model takes {size}×{size}')
        return pixels

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer from the folder of the weights, into which it is fetched if it is missing.

        Raises:
            CheckpointError: the tokenizer is damaged, or does not belong to the weights.
            DownloadError: the tokenizer is missing, and it cannot be fetched.
        """
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
