"""What the towers of CLAP and CLIP share: few compiled shapes, the fingerprint of weights, a tokenizer beside them."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from audiosep_jax.encoders.tokenizer import Kind, Tokenizer, has_tokenizer, open_tokenizer
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.weights import hub

MAX_BATCH = 64
_SLICE = 64  # numbers at either end of a tensor that its fingerprint reads


def bucket(length: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending `sizes` that holds `length`; the last where none does."""
    return next((size for size in sizes if size >= length), sizes[-1])


def in_batches(tower: Callable[..., np.ndarray], *arrays: np.ndarray, largest: int = MAX_BATCH) -> np.ndarray:
    """`tower` over rows in batches of a power of two, so that it is compiled for a handful of sizes only.

    Args:
        tower: arrays [b, ...] -> [b, E], each row for itself.
        arrays: [Q, ...] each, Q ≥ 1. Filled up by repeating the last row: a real one cannot overflow or give NaN.
        largest: the largest batch, a power of two.

    Returns:
        float32 [Q, E].
    """
    count = len(arrays[0])
    outputs = []
    for start in range(0, count, largest):
        rows = min(largest, count - start)
        fill = (1 << (rows - 1).bit_length()) - rows
        chunk = [array[start : start + rows] for array in arrays]
        padded = [np.concatenate([array, np.repeat(array[-1:], fill, axis=0)]) if fill else array for array in chunk]
        outputs.append(np.asarray(tower(*padded), np.float32)[:rows])
    return np.concatenate(outputs)


def fingerprint(tensors: Mapping[str, np.ndarray], names: Iterable[str] | None = None, settings: str = '') -> str:
    """16 hex digits of weights (those of some names): shapes and the numbers at both ends of each, as float32.

    Reads a bounded slice of every tensor, so it costs milliseconds for gigabytes on disk; training moves every number,
    so that is enough to tell models apart. The caller gives the names that it would give for any file format, and
    what beside the weights decides the embeddings.
    """
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors if names is None else names):
        tensor = tensors[name]
        digest.update(f'{name} {tuple(tensor.shape)}\n'.encode())
        # `flat` walks views of any stride without a copy of the whole.
        for end in (tensor.flat[:_SLICE], tensor.flat[-_SLICE:]):
            digest.update(np.asarray(end).astype('<f4').tobytes())
    return digest.hexdigest()[:16]


def tokenizer_in(folder: Path, kind: Kind, repository: str) -> Tokenizer:
    """The tokenizer in a folder; where it has none, that of a Hugging Face repository, which is copied into it.

    Raises:
        CheckpointError: it is damaged or of another kind.
        DownloadError: it has to be fetched and cannot be.
    """
    if not has_tokenizer(folder):
        place = folder / 'tokenizer.json'
        fetched = hub.fetch(repository, 'tokenizer.json', place=place)
        tokenizer = open_tokenizer(fetched.parent, kind)  # first: a wrong one is not copied
        with contextlib.suppress(OSError), replacing(place) as temporary:  # a read-only folder does without the copy
            shutil.copyfile(fetched, temporary)
        return tokenizer
    return open_tokenizer(folder, kind)
