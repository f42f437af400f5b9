"""What only the way back to PyTorch needs of a converted file, kept beside the checkpoint.

original/tensors.safetensors   the tensors that are not to be had from the weights or the encoder: `state/NAME` of
                               the state dict, `other/N/PATH` of the rest, such as the optimizer's
        /tree.json             how the file was built, with names where tensors stood
"""

import base64
import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import SafeTensors, write_tensors

_VERSION = 1
# Views may unfold a file of any size into petabytes; those of real ones share storages two or three times over.
_MAX_UNFOLDED, _SLACK = 4, 1 << 26


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """A file of the original code, read.

    Attributes:
        path: where.
        tree: all of a PyTorch file; None of a safetensors file.
        place: the key of the state dict in the tree; None: the tree is one.
        tensors: of the state dict, by name.
    """

    path: Path
    tree: Any
    place: str | None
    tensors: Mapping[str, np.ndarray]

    def check_size(self) -> None:
        """Raises CheckpointError where its tensors, written out, would be far larger than the file."""
        arrays: dict[tuple, int] = {}

        def count(_: tuple, value: np.ndarray) -> str:
            arrays[_view(value)] = value.nbytes
            return ''

        to_json({'tree': self.tree, 'tensors': dict(self.tensors)}, count)
        size, unfolded = self.path.stat().st_size, sum(arrays.values())
        if unfolded > _MAX_UNFOLDED * size + _SLACK:
            raise CheckpointError(
                f'{self.path}: its tensors would unfold to {unfolded >> 20} MiB out of {size >> 20}: refused'
            )


@dataclasses.dataclass(frozen=True)
class Original:
    """The file as it is to be again, with the present weights in their places."""

    suffix: str
    tree: Any
    state: dict[str, np.ndarray]
    metadata: dict[str, str]


def keep(
    folder: Path, file: TorchFile, ours: Mapping[str, np.ndarray], *, separator_prefix: str, encoder_prefix: str
) -> tuple[int, list[str]]:
    """Writes `original/`: (how many tensors are in it, places of what is not kept, being objects of classes).

    Args:
        folder: that of `original`, there and empty.
        ours: the separator's tensors as the weights alone give them, names without prefix.
        separator_prefix: of their names in the file.
        encoder_prefix: of the encoder's, which are stored elsewhere.
    """
    kept: dict[str, np.ndarray] = {}
    for name, value in file.tensors.items():
        short = name.removeprefix(separator_prefix)
        mine = name.startswith(separator_prefix) and short in ours
        if mine and _bits(ours[short].astype(value.dtype)) != _bits(value):
            kept[f'state/{name}'] = value
    root = () if file.place is None else (file.place,)
    others: dict[tuple, str] = {}

    def name_of(path: tuple, value: np.ndarray) -> str:
        if path[:-1] == root and path[-1] in file.tensors:
            return f'state/{path[-1]}'
        # What a file names twice is stored once.
        place = '/'.join(map(str, path)).encode('ascii', 'backslashreplace').decode()
        name = others.setdefault(_view(value), f'other/{len(others)}/{place}')
        kept[name] = value
        return name

    skeleton, dropped = (None, []) if file.tree is None else to_json(file.tree, name_of)
    write_tensors(folder / 'tensors.safetensors', kept)
    description = {
        'version': _VERSION,
        'suffix': file.path.suffix,
        'separator_prefix': separator_prefix,
        'encoder_prefix': encoder_prefix,
        'tensors': [[name, value.dtype.name] for name, value in file.tensors.items()],
        'tree': skeleton,
        'metadata': file.tensors.metadata if isinstance(file.tensors, SafeTensors) else {},
    }
    (folder / 'tree.json').write_text(json.dumps(description))
    return len(kept), dropped


def restore(
    folder: Path, fresh: Mapping[str, np.ndarray], used: set[str], encoder: Mapping[str, np.ndarray]
) -> Original:
    """The file that `keep` has seen.

    Args:
        folder: that of `original`.
        fresh: the separator's present tensors, names without prefix.
        used: the names of those that the network uses.
        encoder: the encoder's tensors, names without prefix.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    try:
        description = json.loads((folder / 'tree.json').read_text())
        if description['version'] != _VERSION:
            raise CheckpointError(f'{folder} has version {description["version"]}; this one reads {_VERSION}')
        kept = SafeTensors(folder / 'tensors.safetensors')
        prefix, state = description['separator_prefix'], {}
        for name, dtype in description['tensors']:
            short = name.removeprefix(prefix)
            if name.startswith(prefix) and short in fresh:
                now = fresh[short].astype(getattr(ml_dtypes, dtype, None) or np.dtype(dtype))
                state[name] = _present(now, kept.get(f'state/{name}'), short in used)
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


def _present(now: np.ndarray, kept: np.ndarray | None, is_used: bool) -> np.ndarray:
    """A tensor to give back: the file's own bits, unless the network uses it and it has been trained since."""
    if kept is None:
        return now
    untouched = not is_used or _bits(kept.astype(np.float32).astype(now.dtype)) == _bits(now)
    return kept if untouched else now


def _bits(value: np.ndarray) -> bytes:
    return np.ascontiguousarray(value).tobytes()


def _view(value: np.ndarray) -> tuple:
    """What two arrays share that are the same view of the same bytes."""
    return value.__array_interface__['data'][0], value.dtype, value.shape, value.strides


_DROPPED = object()
_KEYS = (str, int, float, bytes, type(None), tuple)  # that a PyTorch file can be written with
_NOT_NUMBERS = 'OSUmM'  # arrays of objects, texts and dates


_SEQUENCES = {'list': list, 'tuple': tuple, 'set': set, 'frozenset': frozenset}


def to_json(tree: Any, name_of: Callable[[tuple, np.ndarray], str]) -> tuple[Any, list[str]]:
    """(JSON, places of what was left out: objects of other classes, arrays of anything but numbers, odd keys).

    Args:
        tree: dict, OrderedDict, list, tuple, set, str, bytes, numbers, None, arrays.
        name_of: called with the path of each array (its keys and indices from the root) and the array.
    """
    dropped: list[str] = []

    def visit(value: Any, path: tuple) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return visit(value.item(), path)
        if isinstance(value, np.ndarray) and value.dtype.kind not in _NOT_NUMBERS and value.dtype.names is None:
            return {'array': name_of(path, value)}
        if isinstance(value, bytes | bytearray):
            return {'bytes': base64.b64encode(value).decode()}
        if isinstance(value, complex):
            return {'complex': [value.real, value.imag]}
        if isinstance(value, dict):
            pairs = []
            for key, item in value.items():
                if not isinstance(key, _KEYS):
                    dropped.append('/'.join(map(str, (*path, key))))
                    continue
                pair = [visit(key, (*path, 'key')), visit(item, (*path, key))]
                if pair[1] is not _DROPPED:
                    pairs.append(pair)
            return {'ordered' if isinstance(value, OrderedDict) else 'dict': pairs}
        for kind, cls in _SEQUENCES.items():
            if isinstance(value, cls):
                items = [visit(v, (*path, i)) for i, v in enumerate(value)]
                # In a sequence the others keep their places.
                return {kind: [None if v is _DROPPED else v for v in items]}
        dropped.append('/'.join(map(str, path)) or 'the whole')
        return _DROPPED

    result = visit(tree, ())
    return (None if result is _DROPPED else result), dropped


def from_json(value: Any, array: Callable[[str], np.ndarray]) -> Any:
    """The inverse of `to_json`; `array` gives the array of a name. Raises ValueError for what it did not write."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError('a bare list')
        return value
    if len(value) != 1:
        raise ValueError(f'a node with the keys {sorted(value)}')
    ((kind, content),) = value.items()
    if kind == 'array':
        return array(content)
    if kind == 'bytes':
        return base64.b64decode(content)
    if kind == 'complex':
        return complex(*content)
    if kind in ('dict', 'ordered'):
        pairs = [(from_json(k, array), from_json(v, array)) for k, v in content]
        return OrderedDict(pairs) if kind == 'ordered' else dict(pairs)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](from_json(v, array) for v in content)
    raise ValueError(f'a node of the unknown kind {kind!r}')
