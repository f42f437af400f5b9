"""Files of named tensors, safetensors or PyTorch's, as mappings that read a tensor when it is looked up. No torch."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.weights.torch_files import read_torch

SAFETENSORS = '.safetensors'
LIGHTNING = '.ckpt'
SUFFIXES = (LIGHTNING, '.pt', '.pth', '.bin', SAFETENSORS)
# Where Hugging Face's folders keep their weights.
WEIGHTS = 'model.safetensors'
TORCH_WEIGHTS = 'pytorch_model.bin'
_INDEX = 'model.safetensors.index.json'
# What safetensors' numpy side both writes and reads. Any other type is stored as bytes, and named in the metadata.
_NATIVE = {'bool', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64'}
_NATIVE |= {'float16', 'bfloat16', 'float32', 'float64', 'complex64'}
_STORED: dict[str, np.dtype] = {
    'BOOL': np.dtype(bool),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'C64': np.dtype(np.complex64),
    **{f'{kind}{8 * size}': np.dtype(f'<{kind.lower()}{size}') for kind in 'IU' for size in (1, 2, 4, 8)},
    **{f'F{8 * size}': np.dtype(f'<f{size}') for size in (2, 4, 8)},
    'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
    'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
}
_DTYPES = 'audiosep_jax.dtypes'
_CHECKSUM = 'audiosep_jax.sha256'  # of everything that a reader gets: names, types, shapes, numbers and strings
# Where a PyTorch file may keep its state dict, apart from the top level.
_STATE_KEYS = ('state_dict', 'model_state_dict', 'model', 'module')


def open_tensors(path: str | Path) -> Mapping[str, np.ndarray]:
    """Opens the tensors of a file or folder by name. Each is read when it is looked up.

    Args:
        path: a `.safetensors` file, a PyTorch file (`.pt`, `.pth`, `.ckpt`, `.bin`; the state dict inside it), or a
            folder with `model.safetensors`, `model.safetensors.index.json` or `pytorch_model.bin`, in this order.

    Raises:
        CheckpointError: the file is missing, of another kind, damaged, or without tensors.
    """
    path = Path(path)
    if path.is_dir():
        for name in (WEIGHTS, _INDEX, TORCH_WEIGHTS):
            if (path / name).is_file():
                path = path / name
                break
        else:
            raise CheckpointError(f'{path}: no {WEIGHTS} or {TORCH_WEIGHTS} in this folder')
    if not path.exists():
        raise CheckpointError(f'no such file: {path}')
    if path.name.endswith('.index.json'):
        return _open_index(path)
    if path.suffix == SAFETENSORS:
        return SafeTensors(path)
    return state_dict_of(read_torch(path), path)


def state_dict_of(tree: object, path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors by name in a PyTorch file, be it a bare state dict or a training checkpoint around one.

    Args:
        tree: what `read_torch` returned.
        path: the file, for the message.

    Raises:
        CheckpointError: there are no tensors.
    """
    return {name: value for name, value in find_state_dict(tree, path)[1].items() if isinstance(value, np.ndarray)}


def find_state_dict(tree: object, path: Path) -> tuple[str | None, dict[Any, Any]]:
    """Returns the state dict in a PyTorch file's tree, and its key; the key is None if the tree itself is one.

    Args:
        tree: what `read_torch` returned.
        path: the file, for the message.

    Raises:
        CheckpointError: there is no dict of tensors at the top, nor under any of the usual keys.
    """
    candidates = []
    if isinstance(tree, dict):
        for key in (*_STATE_KEYS, None):
            found = tree if key is None else tree.get(key)
            if isinstance(found, dict):
                candidates.append((sum(isinstance(value, np.ndarray) for value in found.values()), key, found))
    count, key, state = max(candidates, key=lambda candidate: candidate[0], default=(0, None, {}))
    if count:
        return key, state
    raise CheckpointError(f'{path}: no state dict in this file, neither at its top nor under {", ".join(_STATE_KEYS)}')


class SafeTensors(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file, as read-only views of a memory map.

    Attributes:
        metadata: the file's strings by name.
        verified: whether the file holds a checksum, which is right. Files of other programs hold none.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self._path = path
        try:
            # The library checks the header (sizes against types and shapes, gaps, overlaps, the file's length). It is
            # not used for reading, because it would copy whole tensors, and a fingerprint of weights reads only a
            # little of each.
            with safe_open(str(path), framework='np') as file:
                self.metadata: dict[str, str] = dict(file.metadata() or {})
            self._dtypes = dict(json.loads(self.metadata.pop(_DTYPES, '{}')))
            checksum = self.metadata.pop(_CHECKSUM, None)
            with open(path, 'rb') as file:
                size = int.from_bytes(file.read(8), 'little')
                self._entries = {k: v for k, v in json.loads(file.read(size)).items() if k != '__metadata__'}
            has_data = path.stat().st_size > 8 + size  # an empty range cannot be mapped
            mapped = np.memmap(path, np.uint8, 'r', offset=8 + size) if has_data else np.empty(0, np.uint8)
            self._data = np.asarray(mapped)
            self.verified = checksum is not None
            if self.verified and checksum != _checksum(self, self.metadata):
                raise CheckpointError(f'{path} is damaged: its checksum differs')
        except (SafetensorError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f'{path}: not a safetensors file, or a truncated one ({error})') from error
        except OSError as error:
            raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        begin, end = entry['data_offsets']
        try:
            stored, shape = self._dtypes.get(name, (entry['dtype'], entry['shape']))
            dtype = _STORED.get(stored) or getattr(ml_dtypes, stored, None) or np.dtype(stored)
            return self._data[begin:end].view(dtype).reshape(shape)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f'{self._path}: tensor {name!r} cannot be read: {error}') from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _checksum(tensors: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(strings.items())).encode())
    for name in sorted(tensors):
        value = np.asarray(tensors[name])
        # The type precedes the bytes, so what a name is and where one begins is never ambiguous.
        digest.update(json.dumps([name, value.dtype.name, list(value.shape)]).encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class _ShardedTensors(Mapping[str, np.ndarray]):
    """The tensors of several files, each of which holds some of them."""

    def __init__(self, folder: Path, file_of: dict[str, str]):
        self._file_of = file_of
        self._files = {name: open_tensors(folder / name) for name in sorted(set(file_of.values()))}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[self._file_of[name]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _open_index(path: Path) -> Mapping[str, np.ndarray]:
    try:
        file_of = json.loads(path.read_text())['weight_map']
        names = {str(name) for name in file_of.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{path}: not an index of safetensors files: {error}') from error
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f'{path}: names files outside its folder')
    return _ShardedTensors(path.parent, dict(file_of))


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, which appears only when it is complete.

    Args:
        path: the file to write.
        tensors: arrays of any numpy or ml_dtypes number type. `open_tensors` returns them with the same type.
        metadata: strings to store by name.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    native, dtypes = {}, {}
    for name, value in tensors.items():
        value = np.asarray(value)
        value = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        if value.dtype.hasobject:
            raise CheckpointError(f'{path}: cannot be written: {name!r} holds objects, not numbers')
        if value.dtype.name not in _NATIVE:
            dtypes[name] = [value.dtype.name, list(value.shape)]
            value = value.reshape(-1).view(np.uint8)
        native[name] = value
    strings = {name: text for name, text in (metadata or {}).items() if name != _CHECKSUM}
    checksum = _checksum(tensors, {name: text for name, text in strings.items() if name != _DTYPES})
    strings |= {_CHECKSUM: checksum} | ({_DTYPES: json.dumps(dtypes)} if dtypes else {})
    try:
        with replacing(path) as temporary:
            mode = temporary.stat().st_mode
            save_file(native, temporary, metadata=strings)
            _sort_metadata(temporary)
            os.chmod(temporary, mode)  # safetensors leaves a file that only its owner may read
    except (OSError, SafetensorError, UnicodeError) as error:
        raise CheckpointError(f'{path}: cannot be written: {getattr(error, "strerror", None) or error}') from error


def _sort_metadata(path: Path) -> None:
    """Sorts the strings in a file's header, which the library writes in another order each time."""
    with path.open('r+b') as file:
        size = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(size))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        if len(text) <= size:  # otherwise the library escapes something else than Python does
            file.seek(8)
            file.write(text.ljust(size))
