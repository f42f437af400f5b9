"""Writes files that `torch.load(path, weights_only=True)` reads, without torch.

The format is the zip of torch >= 1.6: the tree as a pickle of protocol 2, with only the instructions and names that
torch's restricted unpickler knows, then each storage, uncompressed and at a multiple of 64 bytes, so that torch can map
it too. The bytes depend on the tree alone: they contain no dates and no identifiers.
"""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.weights.torch_files.dtypes import DTYPES, STORAGES
from audiosep_jax.weights.torch_files.inert import excerpt

_ALIGNMENT = 64
_CHUNK = 1 << 24
_MAX_DEPTH = 200
_ROOT = 'archive'
_TORCH_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STORAGE_NAMES = {name: storage for storage, name in STORAGES.items() if storage != 'UntypedStorage'}

_Place = tuple[Any, ...]  # the keys and indices from the root to a value


def write_torch(path: str | os.PathLike, tree: Any) -> None:
    """Writes a tree as `torch.save` would. The file appears only when it is complete.

    Args:
        path: the file to write.
        tree: a dict, OrderedDict, list, tuple, set, str, bytes, bytearray, int, float, complex, bool, None or numpy
            array, nested at will. Arrays become tensors, including those of ml_dtypes' bfloat16 and float8; numpy's
            scalars become numbers. Arrays are written one by one, without collecting them in memory; those that are the
            same view of the same memory share a storage, in C order.

    Raises:
        CheckpointError: the tree holds something else; the message says where.
        OSError: the folder is missing or not writable, or the disk is full.
    """
    pickler = _Pickler()
    try:
        pickled = pickler.dump(tree)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: cannot be written: {error}') from None
    with (
        replacing(path) as temporary,
        open(temporary, 'wb') as file,
        zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive,
    ):
        _write_entry(archive, file.tell(), 'data.pkl', [pickled], len(pickled))
        _write_entry(archive, file.tell(), 'byteorder', [b'little'], 6)
        for key, array in enumerate(pickler.storages):
            _write_entry(archive, file.tell(), f'data/{key}', _chunks(array), array.nbytes)
        _write_entry(archive, file.tell(), 'version', [b'3\n'], 2)


def _write_entry(
    archive: zipfile.ZipFile, offset: int, name: str, chunks: Iterable[bytes | memoryview], size: int
) -> None:
    entry = zipfile.ZipInfo(f'{_ROOT}/{name}', (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    # Decided here, because zipfile would itself choose the longer header near 2 GiB, and the padding depends on it.
    large = size > 0x70000000
    start = offset + 30 + len(entry.filename) + 4 + (20 if large else 0)
    padding = -start % _ALIGNMENT
    entry.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding  # torch calls its padding 'FB'
    entry.file_size = size
    with archive.open(entry, 'w', force_zip64=large) as target:
        for chunk in chunks:
            target.write(chunk)


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    if array.dtype.byteorder == '>':
        array = array.astype(array.dtype.newbyteorder('<'))
    # This copies an array that is not contiguous; the copy is freed when its entry is written.
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK].data


class _Pickler:
    """Pickles a tree, and collects the arrays to write as its storages."""

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []
        self._out = bytearray()
        self._memo: dict[int, int] = {}  # id of a container or array -> its number in the pickle
        self._keys: dict[tuple[Any, ...], int] = {}  # the view that an array is -> its storage
        self._open_tuples: set[int] = set()

    def dump(self, tree: Any) -> bytes:
        """Returns the pickle of a tree."""
        self._out += pickle.PROTO + b'\x02'
        self._emit(tree, ())
        return bytes(self._out + pickle.STOP)

    def _emit(self, value: Any, place: _Place) -> None:
        if len(place) > _MAX_DEPTH:
            raise CheckpointError(f'it is nested more than {_MAX_DEPTH} deep')
        if isinstance(value, np.generic):
            value = value.item()
        if id(value) in self._memo:
            self._out += pickle.LONG_BINGET + struct.pack('<I', self._memo[id(value)])
        elif isinstance(value, np.ndarray):
            self._emit_tensor(value, place)
            self._memoize(value)
        elif type(value) in (dict, OrderedDict):
            self._out += pickle.EMPTY_DICT if type(value) is dict else _call('collections', 'OrderedDict')
            self._memoize(value)  # before the items, which may refer to it
            self._out += pickle.MARK
            for key, item in value.items():
                self._emit_key(key, place)
                self._emit(item, (*place, key))
            self._out += pickle.SETITEMS
        elif type(value) is list:
            self._out += pickle.EMPTY_LIST
            self._memoize(value)
            self._emit_items(value, place)
            self._out += pickle.APPENDS
        elif isinstance(value, tuple):
            if id(value) in self._open_tuples:
                raise CheckpointError(f'{_describe(place)} is a tuple that contains itself')
            self._open_tuples.add(id(value))
            self._emit_items(value, place)
            self._out += pickle.TUPLE
            self._open_tuples.remove(id(value))
            self._memoize(value)
        else:
            self._emit_scalar(value, place)

    def _emit_items(self, items: Iterable[Any], place: _Place) -> None:
        self._out += pickle.MARK
        for i, item in enumerate(items):
            self._emit(item, (*place, i))

    def _emit_scalar(self, value: Any, place: _Place) -> None:
        out = self._out
        if value is None:
            out += pickle.NONE
        elif isinstance(value, bool):
            out += pickle.NEWTRUE if value else pickle.NEWFALSE
        elif isinstance(value, int):
            size = value.bit_length() // 8 + 1
            if -(1 << 31) <= value < 1 << 31:
                out += pickle.BININT + struct.pack('<i', value)
            elif size <= 255:
                out += pickle.LONG1 + bytes([size]) + int(value).to_bytes(size, 'little', signed=True)
            else:
                raise CheckpointError(f'{_describe(place)} is an integer of more than 255 bytes')
        elif isinstance(value, float):
            out += pickle.BINFLOAT + struct.pack('>d', value)
        elif isinstance(value, str):
            text = value.encode('utf-8', 'surrogatepass')
            out += pickle.BINUNICODE + struct.pack('<I', len(text)) + text
        elif isinstance(value, bytes | bytearray):
            # Protocol 2 has no bytes, so they are encoded from text in Latin-1.
            is_array = isinstance(value, bytearray)
            out += _global('__builtin__', 'bytearray') if is_array else _global('_codecs', 'encode')
            self._emit_scalar(bytes(value).decode('latin-1'), place)
            self._emit_scalar('latin-1', place)
            out += pickle.TUPLE2 + pickle.REDUCE
        elif isinstance(value, complex):
            out += _global('__builtin__', 'complex')
            self._emit_scalar(value.real, place)
            self._emit_scalar(value.imag, place)
            out += pickle.TUPLE2 + pickle.REDUCE
        elif type(value) is set:
            out += _global('__builtin__', 'set') + pickle.EMPTY_LIST + pickle.MARK
            # Sorted, because the order of a set of strings differs between processes.
            for item in sorted(value, key=lambda item: (type(item).__name__, repr(item))):
                self._emit_key(item, place)
            out += pickle.APPENDS + pickle.TUPLE1 + pickle.REDUCE
        else:
            raise CheckpointError(f'{_describe(place)} is of type {type(value).__name__}')

    def _emit_key(self, key: Any, place: _Place) -> None:
        if isinstance(key, set | frozenset | dict | list | np.ndarray):
            raise CheckpointError(f'{_describe(place)} has a key of type {type(key).__name__}')
        self._emit(key, (*place, key))

    def _emit_tensor(self, array: np.ndarray, place: _Place) -> None:
        dtype = array.dtype.newbyteorder('<') if array.dtype.byteorder == '>' else array.dtype
        name = _TORCH_NAMES.get(dtype)
        if name is None:
            raise CheckpointError(f'{_describe(place)} is an array of {array.dtype}, which torch does not have')
        view: tuple[Any, ...] = (
            array.__array_interface__['data'][0],
            array.dtype.str,
            array.shape,
            array.strides,
        )
        if not array.size:  # an empty array has no memory that could be shared
            view = (len(self.storages),)
        key = self._keys.setdefault(view, len(self.storages))
        if key == len(self.storages):
            self.storages.append(array)
        is_typed = name in _STORAGE_NAMES
        self._out += _global('torch._utils', '_rebuild_tensor_v2' if is_typed else '_rebuild_tensor_v3')
        self._out += pickle.MARK * 2
        self._emit_scalar('storage', place)
        self._out += _global('torch', _STORAGE_NAMES[name]) if is_typed else _global('torch.storage', 'UntypedStorage')
        self._emit_scalar(str(key), place)
        self._emit_scalar('cpu', place)
        self._emit_scalar(array.size if is_typed else array.nbytes, place)
        self._out += pickle.TUPLE + pickle.BINPERSID
        self._emit_scalar(0, place)  # the offset in the storage
        strides: list[int] = []
        step = 1
        for size in reversed(array.shape):
            strides.insert(0, step)
            step *= max(size, 1)
        for integers in (array.shape, strides):
            self._out += pickle.MARK
            for integer in integers:
                self._emit_scalar(integer, place)
            self._out += pickle.TUPLE
        self._out += pickle.NEWFALSE + _call('collections', 'OrderedDict')  # no gradient, no hooks
        if not is_typed:
            self._out += _global('torch', name)
        self._out += pickle.TUPLE + pickle.REDUCE

    def _memoize(self, value: Any) -> None:
        self._out += pickle.LONG_BINPUT + struct.pack('<I', len(self._memo))
        self._memo[id(value)] = len(self._memo)


def _global(module: str, name: str) -> bytes:
    """Returns the instruction that pushes a class or function."""
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _call(module: str, name: str) -> bytes:
    """Returns the instructions that push the result of a call without arguments."""
    return _global(module, name) + pickle.EMPTY_TUPLE + pickle.REDUCE


def _describe(place: _Place) -> str:
    if not place:
        return 'the whole tree'
    return ''.join(f'[{excerpt(key if isinstance(key, int) else repr(key))}]' for key in place)
