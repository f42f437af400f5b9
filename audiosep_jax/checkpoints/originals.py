"""The folder `original` of a converted checkpoint: what only the way back to PyTorch needs of the converted file.

original/tensors.safetensors   the tensors that neither the weights nor the encoder determine: `state/NAME` from
                               the state dict, `other/N/PATH` from the rest, such as the optimizer's
        /tree.json             the structure of the file, with names in place of the tensors
"""

import base64
import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import ml_dtypes
import numpy as np

from audiosep_jax.checkpoints.checkpoint import errors_about
from audiosep_jax.checkpoints.torch_source import TorchSource
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.checksums import check_seal, sealed
from audiosep_jax.storage.json_files import MAX_LIST_BYTES, read_json
from audiosep_jax.weights.tensor_files import SafeTensors, write_tensors

_VERSION = 1
# Overlapping views can make a small file unfold to petabytes. In real files two or three views share a storage.
_MAX_UNFOLDING = 4
_SLACK = 1 << 26  # bytes


class _Description(TypedDict):
    """What `tree.json` holds."""

    version: int
    suffix: str
    separator_prefix: str
    encoder_prefix: str
    tensors: list[list[str]]
    tree: Any
    metadata: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Original:
    """The contents of the file to write: the converted file with the present weights in their places.

    Attributes:
        suffix: of the converted file.
        tree: everything in a PyTorch file; None for a safetensors file.
        state: the tensors of the state dict, by name.
        metadata: the strings of a safetensors file.
    """

    suffix: str
    tree: Any
    state: dict[str, np.ndarray]
    metadata: dict[str, str]


def check_unfolded_size(source: TorchSource) -> None:
    """Checks that the tensors of a file, written out, would not be far larger than the file.

    Raises:
        CheckpointError: they would.
    """
    sizes: dict[tuple, int] = {}

    def add(_: tuple, value: np.ndarray) -> str:
        sizes[_view_key(value)] = value.nbytes
        return ''

    to_json({'tree': source.tree, 'tensors': dict(source.tensors)}, add)
    size, unfolded = source.path.stat().st_size, sum(sizes.values())
    if unfolded > _MAX_UNFOLDING * size + _SLACK:
        raise CheckpointError(
            f'{source.path}: refused, since its tensors would unfold to {unfolded >> 20} MiB out of {size >> 20}'
        )


def keep(
    folder: Path,
    source: TorchSource,
    restored: Mapping[str, np.ndarray],
    *,
    separator_prefix: str,
    encoder_prefix: str,
    ignored: Collection[str] = (),
) -> tuple[int, list[str]]:
    """Writes the folder `original`.

    Args:
        folder: `original`, which exists and is empty.
        source: the file that was converted.
        restored: the separator's tensors as the weights alone restore them, under their names without the prefix. Of
            those, only the ones that differ from the file's are kept.
        separator_prefix: what precedes the separator's names in the file.
        encoder_prefix: what precedes the encoder's names in the file; its tensors are stored in the folder `encoder`.
        ignored: the names of the tensors of the state dict that belong to neither; they are kept as they are.

    Returns:
        (the number of tensors kept, the places of the objects of Python classes, which are not kept).

    Raises:
        CheckpointError: the tensors cannot be written.
        OSError: the structure cannot be written.
    """
    kept: dict[str, np.ndarray] = {}
    for name, value in source.tensors.items():
        short = name.removeprefix(separator_prefix)
        is_separator = name.startswith(separator_prefix) and short in restored
        if name in ignored or (is_separator and _bits(restored[short].astype(value.dtype)) != _bits(value)):
            kept[f'state/{name}'] = value
    root = () if source.state_key is None else (source.state_key,)
    others: dict[tuple, str] = {}

    def name_of(path: tuple, value: np.ndarray) -> str:
        if path[:-1] == root and path[-1] in source.tensors:
            return f'state/{path[-1]}'
        # A tensor that the file refers to twice is stored once.
        place = '/'.join(map(str, path)).encode('ascii', 'backslashreplace').decode()
        name = others.setdefault(_view_key(value), f'other/{len(others)}/{place}')
        kept[name] = value
        return name

    tree, dropped = (None, []) if source.tree is None else to_json(source.tree, name_of)
    write_tensors(folder / 'tensors.safetensors', kept)
    description = {
        'version': _VERSION,
        'suffix': source.path.suffix,
        'separator_prefix': separator_prefix,
        'encoder_prefix': encoder_prefix,
        'tensors': [[name, value.dtype.name] for name, value in source.tensors.items()],
        'tree': tree,
        'metadata': source.metadata,
    }
    (folder / 'tree.json').write_text(json.dumps(sealed(description)))
    return len(kept), dropped


def restore(
    folder: Path, separator: Mapping[str, np.ndarray], used: set[str], encoder: Mapping[str, np.ndarray]
) -> Original:
    """Reads what `keep` wrote, and puts the present weights in their places.

    Args:
        folder: `original`.
        separator: the separator's present tensors, under their names without the prefix.
        used: the names of those that the network uses.
        encoder: the encoder's tensors, under their names without the prefix.

    Raises:
        CheckpointError: the folder is damaged, or a later version of this library wrote it.
    """
    try:
        path = folder / 'tree.json'
        # Not strict: the file was converted with whatever numbers and texts it holds.
        description = read_json(
            path,
            _Description,
            error=CheckpointError,
            remedy='convert the original file again',
            strict=False,
            max_bytes=MAX_LIST_BYTES,
        )
        with errors_about(path):
            check_seal(description)
        if description['version'] != _VERSION:
            raise CheckpointError(f'{folder} has version {description["version"]}; this version reads {_VERSION}')
        kept = SafeTensors(folder / 'tensors.safetensors')
        prefix, state = description['separator_prefix'], {}
        for name, dtype in description['tensors']:
            short, key = name.removeprefix(prefix), f'state/{name}'
            if name.startswith(prefix) and short in separator:
                present = separator[short].astype(getattr(ml_dtypes, dtype, None) or np.dtype(dtype))
                state[name] = _choose(present, kept.get(key), is_used=short in used)
            elif key in kept:
                state[name] = kept[key]
            else:
                state[name] = encoder[name.removeprefix(description['encoder_prefix'])]
        tree = from_json(
            description['tree'],
            lambda name: state[name.removeprefix('state/')] if name.startswith('state/') else kept[name],
        )
        metadata = {str(key): str(value) for key, value in description['metadata'].items()}
        return Original(description['suffix'], tree, state, metadata)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f'{folder} is damaged ({error!r}): convert the original file again') from error


def _choose(present: np.ndarray, kept: np.ndarray | None, *, is_used: bool) -> np.ndarray:
    """Returns the tensor kept from the file, unless the network uses it and its weights have changed since."""
    if kept is None:
        return present
    unchanged = not is_used or _bits(kept.astype(np.float32).astype(present.dtype)) == _bits(present)
    return kept if unchanged else present


def _bits(value: np.ndarray) -> bytes:
    return np.ascontiguousarray(value).tobytes()


def _view_key(value: np.ndarray) -> tuple:
    """Returns a key that is equal for two arrays that are the same view of the same memory."""
    return value.__array_interface__['data'][0], value.dtype, value.shape, value.strides


# ---- trees of Python values as JSON ----------------------------------------------------------------------------------

_DROPPED = object()
_KEY_TYPES = (str, int, float, bytes, type(None), tuple)  # those that `write_torch` can write
_NON_NUMERIC_KINDS = 'OSUmM'  # arrays of objects, strings and dates
_SEQUENCES: dict[str, type[list | tuple | set | frozenset]] = {
    'list': list,
    'tuple': tuple,
    'set': set,
    'frozenset': frozenset,
}


def to_json(tree: Any, name_of: Callable[[tuple, np.ndarray], str]) -> tuple[Any, list[str]]:
    """Encodes a tree of Python values as JSON.

    Args:
        tree: a dict, OrderedDict, list, tuple, set, str, bytes, number, array or None, nested at will.
        name_of: returns the name that stands for an array, given its path (keys and indices from the root) and the
            array.

    Returns:
        (JSON, places of what was dropped: objects of other classes, arrays of anything but numbers, unusual keys).
    """
    dropped: list[str] = []

    def encode(value: Any, path: tuple) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return encode(value.item(), path)
        if isinstance(value, np.ndarray) and value.dtype.kind not in _NON_NUMERIC_KINDS and value.dtype.names is None:
            return {'array': name_of(path, value)}
        if isinstance(value, bytes | bytearray):
            return {'bytes': base64.b64encode(value).decode()}
        if isinstance(value, complex):
            return {'complex': [value.real, value.imag]}
        if isinstance(value, dict):
            return {'ordered' if isinstance(value, OrderedDict) else 'dict': encode_pairs(value, path)}
        for kind, cls in _SEQUENCES.items():
            if isinstance(value, cls):
                items = [encode(item, (*path, i)) for i, item in enumerate(value)]
                # None takes the place of a dropped item, so that the others keep their indices.
                return {kind: [None if item is _DROPPED else item for item in items]}
        dropped.append('/'.join(map(str, path)) or 'everything')
        return _DROPPED

    def encode_pairs(value: dict, path: tuple) -> list[list]:
        pairs = []
        for key, item in value.items():
            if not isinstance(key, _KEY_TYPES):
                dropped.append('/'.join(map(str, (*path, key))))
                continue
            pair = [encode(key, (*path, 'key')), encode(item, (*path, key))]
            if pair[1] is not _DROPPED:
                pairs.append(pair)
        return pairs

    result = encode(tree, ())
    return (None if result is _DROPPED else result), dropped


def from_json(value: Any, array_of: Callable[[str], np.ndarray]) -> Any:
    """Decodes what `to_json` encoded.

    Args:
        value: the JSON.
        array_of: returns the array that a name stands for.

    Raises:
        ValueError: `to_json` did not write this.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError('a bare list')
        return value
    if len(value) != 1:
        raise ValueError(f'a node with the keys {sorted(value)}')
    ((kind, content),) = value.items()
    if kind == 'array':
        return array_of(content)
    if kind == 'bytes':
        return base64.b64decode(content)
    if kind == 'complex':
        return complex(*content)
    if kind in ('dict', 'ordered'):
        pairs = [(from_json(key, array_of), from_json(item, array_of)) for key, item in content]
        return OrderedDict(pairs) if kind == 'ordered' else dict(pairs)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](from_json(item, array_of) for item in content)
    raise ValueError(f'a node of the unknown kind {kind!r}')
