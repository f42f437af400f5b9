"""Writes files that `torch.load(path, weights_only=True)` reads, without torch.

The zip of torch >= 1.6: the tree as a pickle of protocol 2, in the instructions and names that torch's restricted
unpickler knows, then each storage at a multiple of 64 bytes, stored, so that torch can map it too. The bytes are a
function of the tree alone: no dates, no identifiers.
"""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.weights.torch_files.dtypes import DTYPES, STORAGES
from audiosep_jax.weights.torch_files.inert import shown

_ALIGNMENT = 64
_CHUNK = 1 << 24
_MAX_DEPTH = 200
_ROOT = 'archive'
_TORCH_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STORAGE_NAMES = {name: storage for storage, name in STORAGES.items() if storage != 'UntypedStorage'}


def write_torch(path: str | os.PathLike, tree: Any) -> None:
    """Writes a tree, as `torch.save` would, under its name when it is complete.

    Args:
        tree: dict, OrderedDict, list, tuple, set, str, bytes, bytearray, int, float, complex, bool, None and numpy
            arrays, which become tensors (ml_dtypes' bfloat16 and float8 included; numpy's scalars become numbers).
            Arrays are written one by one from where they are; those over the same memory share a storage, in C order.

    Raises:
        CheckpointError: the tree holds something else; the message says where.
        OSError: the folder is missing or not writable, or the disk is full.
    """
    emitter = _Emitter()
    try:
        pickled = emitter.pickle(tree)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: cannot be written: {error}') from None
    with (
        replacing(path) as temporary,
        open(temporary, 'wb') as file,
        zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive,
    ):
        _write_entry(archive, file.tell(), 'data.pkl', [pickled], len(pickled))
        _write_entry(archive, file.tell(), 'byteorder', [b'little'], 6)
        for key, array in enumerate(emitter.storages):
            _write_entry(archive, file.tell(), f'data/{key}', _chunks(array), array.nbytes)
        _write_entry(archive, file.tell(), 'version', [b'3\n'], 2)


def _write_entry(archive: zipfile.ZipFile, offset: int, name: str, chunks: Iterable[bytes], size: int) -> None:
    entry = zipfile.ZipInfo(f'{_ROOT}/{name}', (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    large = size > 0x70000000  # zipfile would decide by itself near 2 GiB, and its header be longer than reckoned here
    start = offset + 30 + len(entry.filename) + 4 + (20 if large else 0)
    # 'FB' is what torch calls its padding.
    padding = -start % _ALIGNMENT
    entry.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding
    entry.file_size = size
    with archive.open(entry, 'w', force_zip64=large) as target:
        for chunk in chunks:
            target.write(chunk)


def _chunks(array: np.ndarray) -> Iterable[memoryview]:
    if array.dtype.byteorder == '>':
        array = array.astype(array.dtype.newbyteorder('<'))
    # A copy where the array is not contiguous, which lives no longer than its entry takes to write.
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK].data


class _Emitter:
    """Pickles a tree, and collects its storages."""

    def __init__(self):
        self.storages: list[np.ndarray] = []
        self._out = bytearray()
        self._memo: dict[int, int] = {}  # id of a container or array -> its number in the pickle
        self._keys: dict[tuple, int] = {}  # where an array lies -> its storage
        self._open: set[int] = set()

    def pickle(self, tree: Any) -> bytes:
        self._out += pickle.PROTO + b'\x02'
        self._emit(tree, ())
        return bytes(self._out + pickle.STOP)

    def _emit(self, value: Any, place: tuple) -> None:
        if len(place) > _MAX_DEPTH:
            raise CheckpointError(f'it is nested more than {_MAX_DEPTH} deep')
        if isinstance(value, np.generic):
            value = value.item()
        if id(value) in self._memo:
            self._out += pickle.LONG_BINGET + struct.pack('<I', self._memo[id(value)])
        elif isinstance(value, np.ndarray):
            self._tensor(value, place)
            self._remember(value)
        elif type(value) in (dict, OrderedDict):
            if type(value) is dict:
                self._out += pickle.EMPTY_DICT
            else:
                self._out += _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
            self._remember(value)  # before the items, which may refer to it
            self._out += pickle.MARK
            for key, item in value.items():
                self._key(key, place)
                self._emit(item, (*place, key))
            self._out += pickle.SETITEMS
        elif type(value) is list:
            self._out += pickle.EMPTY_LIST
            self._remember(value)
            self._out += pickle.MARK
            for i, item in enumerate(value):
                self._emit(item, (*place, i))
            self._out += pickle.APPENDS
        elif isinstance(value, tuple):
            if id(value) in self._open:
                raise CheckpointError(f'{_named(place)} is a tuple that contains itself')
            self._open.add(id(value))
            self._out += pickle.MARK
            for i, item in enumerate(value):
                self._emit(item, (*place, i))
            self._out += pickle.TUPLE
            self._open.remove(id(value))
            self._remember(value)
        else:
            self._scalar(value, place)

    def _scalar(self, value: Any, place: tuple) -> None:
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
                raise CheckpointError(f'{_named(place)} is an integer of more than 255 bytes')
        elif isinstance(value, float):
            out += pickle.BINFLOAT + struct.pack('>d', value)
        elif isinstance(value, str):
            text = value.encode('utf-8', 'surrogatepass')
            out += pickle.BINUNICODE + struct.pack('<I', len(text)) + text
        elif isinstance(value, bytes | bytearray):
            # Protocol 2 has no bytes: they are text in Latin-1.
            out += _global('_codecs', 'encode')
            if isinstance(value, bytearray):
                out[-len(_global('_codecs', 'encode')) :] = _global('__builtin__', 'bytearray')
            self._scalar(bytes(value).decode('latin-1'), place)
            self._scalar('latin-1', place)
            out += pickle.TUPLE2 + pickle.REDUCE
        elif isinstance(value, complex):
            out += _global('__builtin__', 'complex')
            self._scalar(value.real, place)
            self._scalar(value.imag, place)
            out += pickle.TUPLE2 + pickle.REDUCE
        elif type(value) is set:
            out += _global('__builtin__', 'set') + pickle.EMPTY_LIST + pickle.MARK
            # In an order that is the same in every process.
            for item in sorted(value, key=lambda item: (type(item).__name__, repr(item))):
                self._key(item, place)
            out += pickle.APPENDS + pickle.TUPLE1 + pickle.REDUCE
        else:
            raise CheckpointError(f'{_named(place)} is of type {type(value).__name__}')

    def _key(self, key: Any, place: tuple) -> None:
        if isinstance(key, set | frozenset | dict | list | np.ndarray):
            raise CheckpointError(f'{_named(place)} has a key of type {type(key).__name__}')
        self._emit(key, (*place, key))

    def _tensor(self, array: np.ndarray, place: tuple) -> None:
        dtype = array.dtype.newbyteorder('<') if array.dtype.byteorder == '>' else array.dtype
        name = _TORCH_NAMES.get(dtype)
        if name is None:
            raise CheckpointError(f'{_named(place)} is an array of {array.dtype}, which torch has not')
        where = (array.__array_interface__['data'][0], array.dtype.str, array.shape, array.strides)
        if not array.size:
            where = (len(self.storages),)
        key = self._keys.setdefault(where, len(self.storages))
        if key == len(self.storages):
            self.storages.append(array)
        typed = name in _STORAGE_NAMES
        self._out += _global('torch._utils', '_rebuild_tensor_v2' if typed else '_rebuild_tensor_v3') + pickle.MARK * 2
        self._scalar('storage', place)
        self._out += _global('torch', _STORAGE_NAMES[name]) if typed else _global('torch.storage', 'UntypedStorage')
        self._scalar(str(key), place)
        self._scalar('cpu', place)
        self._scalar(array.size if typed else array.nbytes, place)
        self._out += pickle.TUPLE + pickle.BINPERSID
        self._scalar(0, place)
        strides, step = [], 1
        for size in reversed(array.shape):
            strides.insert(0, step)
            step *= max(size, 1)
        for integers in (array.shape, strides):
            self._out += pickle.MARK
            for integer in integers:
                self._scalar(integer, place)
            self._out += pickle.TUPLE
        self._out += pickle.NEWFALSE + _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
        if not typed:
            self._out += _global('torch', name)
        self._out += pickle.TUPLE + pickle.REDUCE

    def _remember(self, value: Any) -> None:
        self._out += pickle.LONG_BINPUT + struct.pack('<I', len(self._memo))
        self._memo[id(value)] = len(self._memo)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _named(place: tuple) -> str:
    return (
        'the whole' if not place else ''.join(f'[{shown(key if isinstance(key, int) else repr(key))}]' for key in place)
    )
