"""What the encoders CLAP and CLIP share: few compiled shapes, fingerprints of weights, settings and tokenizers."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.encoders.tokenizer import Kind, Tokenizer, has_tokenizer, open_tokenizer
from audiosep_jax.errors import CheckpointError, QueryError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.json_files import read_json
from audiosep_jax.weights import hub

MAX_BATCH = 64
_SLICE = 64  # the fingerprint reads this number of values at both ends of a tensor


def padded_length(length: int, sizes: Sequence[int]) -> int:
    """Returns the first of the ascending `sizes` that is at least `length`, or else the last."""
    return next((size for size in sizes if size >= length), sizes[-1])


def in_batches(tower: Callable[..., np.ndarray], *arrays: np.ndarray, largest: int = MAX_BATCH) -> np.ndarray:
    """Applies a tower to rows in batches whose sizes are powers of two, so that few sizes are compiled.

    A batch is filled up by repeating its last row, because made-up rows could overflow or give NaN.

    Args:
        tower: arrays [b, ...] -> [b, E]; rows are independent.
        arrays: [Q, ...] each, Q ≥ 1.
        largest: the largest batch size, a power of two.

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
    """Returns 16 hex digits that depend on the weights: on their names and shapes, and on values at both ends of each.

    It reads only a slice of every tensor, which takes milliseconds for gigabytes on disk. That is enough to distinguish
    models, because training changes every value.

    Args:
        tensors: the weights.
        names: the tensors to use, under names that do not depend on the file format; None: all.
        settings: whatever else the embeddings depend on.
    """
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors if names is None else names):
        tensor = tensors[name]
        digest.update(f'{name} {tuple(tensor.shape)}\n'.encode())
        # `flat` reads views of any stride without copying the whole tensor.
        for end in (tensor.flat[:_SLICE], tensor.flat[-_SLICE:]):
            digest.update(np.asarray(end).astype('<f4').tobytes())
    return digest.hexdigest()[:16]


def check_token_ids(ids: np.ndarray, mask: np.ndarray) -> None:
    """Checks that token ids and attention mask have the same shape [Q, L], and that ids are integers.

    Raises:
        QueryError: they have another shape or type.
    """
    if ids.ndim != 2 or mask.shape != ids.shape or not np.issubdtype(ids.dtype, np.integer):
        raise QueryError(
            f'token ids and attention mask: expected integers [Q, L], got {ids.dtype} {list(ids.shape)} and '
            f'{list(mask.shape)}'
        )


def check_finite(embeddings: np.ndarray, where: str | Path) -> np.ndarray:
    """Returns the embeddings if all of them are finite.

    Args:
        embeddings: float [Q, E].
        where: the place of the weights, for the message.

    Raises:
        CheckpointError: an embedding is not finite, so the weights are damaged.
    """
    if not np.isfinite(embeddings).all():
        raise CheckpointError(f'{where}: damaged weights: their embeddings are not finite; download them again')
    return embeddings


def read_settings(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file next to the weights; None if there is no such file.

    Raises:
        CheckpointError: the file is damaged, or is not a JSON object.
    """
    if not path.exists():
        return None
    return read_json(path, dict, error=CheckpointError, remedy='not the settings of a model', strict=False)


def tokenizer_in(folder: Path, kind: Kind, repository: str) -> Tokenizer:
    """Returns the tokenizer of a folder. If it has none, fetches one from a repository of the hub into the folder.

    Args:
        folder: the folder of the weights.
        kind: the kind of tokenizer.
        repository: the repository with the tokenizer.

    Raises:
        CheckpointError: the tokenizer is damaged or of another kind.
        DownloadError: the tokenizer has to be fetched, and the hub cannot be reached.
    """
    if not has_tokenizer(folder):
        place = folder / 'tokenizer.json'
        fetched = hub.fetch(repository, 'tokenizer.json', place=place)
        tokenizer = open_tokenizer(fetched.parent, kind)  # before copying, so that a wrong one is not copied
        with contextlib.suppress(OSError), replacing(place) as temporary:  # the folder may be read-only
            shutil.copyfile(fetched, temporary)
        return tokenizer
    return open_tokenizer(folder, kind)
