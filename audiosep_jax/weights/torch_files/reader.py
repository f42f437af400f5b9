"""Reads the files of `torch.save`, without torch.

Reading maps the file into memory and touches no tensor's bytes: tensors are read-only numpy views of the map. A
checkpoint is untrusted input. Its pickle is read as data (`unpickler.py` says what is rebuilt, `inert.py` what is
refused), every size in it is checked against the file, and whatever is wrong becomes a CheckpointError of one line.

Supported formats are the zip of torch >= 1.6 (stored or deflated, either byte order) and the stream of pickles before
it. Refused are the tar of torch < 0.2 and TorchScript. Quantized, sparse, nested and meta tensors, subclasses without
storage and types that numpy does not have (below 8 bits) become `Inert` with their parts as `args`; gradients and hooks
of tensors are dropped.

Sources: torch/serialization.py, torch/_utils.py, torch/_weights_only_unpickler.py of torch 2.13.
"""

import abc
import io
import itertools
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files.dtypes import DTYPES, QUANTIZED_STORAGES, STORAGES
from audiosep_jax.weights.torch_files.inert import Inert, excerpt
from audiosep_jax.weights.torch_files.unpickler import InertUnpickler

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

_STORAGE_MODULES = ('torch', 'torch.cuda', 'torch.storage')

# How many bytes may be inflated, or computed from expanded views, in addition to eight times the file's own size.
_SLACK = 1 << 26
_MAX_EXPANDED = 1 << 30
_MAX_DIRECTORY = 1 << 24


def read_torch(path: str | os.PathLike) -> Any:
    """Reads what was given to `torch.save`.

    Args:
        path: the file.

    Returns:
        The tree: dict, OrderedDict, list, tuple, set, numbers, strings, bytes and None as they were (a Counter or a
        defaultdict becomes a dict, a torch.Size a tuple). Tensors, parameters and storages are read-only numpy arrays
        of their shape and strides, with ml_dtypes for bfloat16 and float8; those that share a storage share memory. Any
        other class or function is an `Inert`, torch.dtype and torch.device included. No container contains itself or
        is nested more than 200 deep.

    Raises:
        CheckpointError: the file is missing, not a file of torch.save, damaged, or asks for what could run code.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception:  # a damaged file may raise anything: numpy, zipfile, zlib and struct each have their own errors
        reason = 'damaged, or not a file of torch.save'
    raise CheckpointError(f'{path}: {reason}')


def _read(path: str | os.PathLike) -> Any:
    with _BoundedFile(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise CheckpointError('the file is empty')
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:4] == b'PK\3\4':
            return _ZipReader(file, data).load()
        if data[257:262] == b'ustar':
            raise CheckpointError('a tar file, as torch before 0.2 wrote: load and save it with a newer torch')
        return _LegacyReader(file, data).load()


class _BoundedFile(io.FileIO):
    """A file that limits how much `zipfile` reads at once: the entries of a directory take ten times its size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None:
            size = -1
        if size > _MAX_DIRECTORY:
            raise CheckpointError('a zip with too many entries')
        return super().read(_MAX_DIRECTORY if size < 0 else size)


class _Reader(abc.ABC):
    """What both formats share: storages by key, and tensors as views of them."""

    def __init__(self, file: io.FileIO, data: mmap.mmap):
        self._file = file
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)  # read-only, because the map is
        self._is_big_endian = False
        self._charged = 0
        self._rebuilders: dict[str, Callable[..., Any]] = {
            'torch._utils._rebuild_tensor': self._tensor,
            'torch._utils._rebuild_tensor_v2': self._tensor_v2,
            'torch._utils._rebuild_tensor_v3': self._tensor_v3,
            'torch._utils._rebuild_parameter': _first_argument,
            'torch._utils._rebuild_parameter_with_state': _first_argument,
            'torch._utils._rebuild_device_tensor_from_cpu_tensor': _first_argument,
            'torch._utils._rebuild_device_tensor_from_numpy': _first_argument,
            'torch._utils._rebuild_xla_tensor': _first_argument,
            'torch.nn.parameter.Parameter': _first_argument,
            'torch.autograd.variable.Variable': _first_argument,  # torch 0.3
        }
        self._calls: dict[str, Callable[..., Any]] = {**self._rebuilders, 'torch.Size': _size}
        for module in ('_tensor', 'tensor'):
            for version in ('', '_v2'):
                self._calls[f'torch.{module}._rebuild_from_type{version}'] = self._subclass

    @abc.abstractmethod
    def load(self) -> Any:
        """Returns the tree."""

    @abc.abstractmethod
    def _load_storage(self, saved_id: Any) -> Any:
        """Returns the storage that the pickle identifies by `saved_id`."""

    def _unpickler(self, data: bytes | mmap.mmap, position: int, end: int) -> InertUnpickler:
        return InertUnpickler(data, position, end, calls=self._calls, persistent_load=self._load_storage)

    def _read_at(self, offset: int, size: int) -> bytes:
        """Reads a few bytes between the tensors. Reading them from the map would load dozens of pages around them."""
        self._file.seek(offset)
        return self._file.read(size)

    def _charge(self, size: int) -> None:
        """Charges the budget for bytes that are computed and not mapped, so that no small file fills the memory."""
        self._charged += size
        if self._charged > _SLACK + 8 * len(self._data):
            raise CheckpointError('its tensors unfold to many times its size')

    def _view_as(self, storage: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Returns the bytes of a storage as numbers in this machine's byte order."""
        if not self._is_big_endian or dtype.itemsize == 1:
            return storage.view(dtype)
        self._charge(storage.nbytes)
        part = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
        return _freeze(storage.view(f'<u{part}').byteswap().view(dtype))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
        if type(storage) is not np.ndarray or storage.ndim != 1 or not storage.flags.c_contiguous:
            raise CheckpointError('a tensor has no storage')
        # numpy allows no more than 64 dimensions, and multiplying very many sizes could take forever.
        if any(type(values) not in (tuple, list) or len(values) > 64 for values in (size, stride)):
            raise CheckpointError(f'a tensor has the sizes {excerpt(size)} and strides {excerpt(stride)}')
        size, stride = _check_integers(size), _check_integers(stride)
        (offset,) = _check_integers((offset,))
        if len(size) != len(stride):
            raise CheckpointError(f'a tensor has {len(size)} sizes and {len(stride)} strides')
        if 0 in size:
            return _freeze(np.empty(size, storage.dtype))
        elements, width = 1, storage.itemsize
        for n in size:
            elements *= n
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage):
            raise CheckpointError(
                f'a tensor of shape {excerpt(size)} reaches element {excerpt(last)} of a storage of {len(storage)}'
            )
        # An expanded view takes no memory until somebody copies it.
        if elements * width > max(_MAX_EXPANDED, len(self._data)):
            raise CheckpointError(f'a tensor of shape {excerpt(size)} unfolds to more than the file can hold')
        strides = tuple(step * width if n > 1 else width for n, step in zip(size, stride, strict=True))
        return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * width, strides)

    def _tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
    ) -> np.ndarray:
        array = self._tensor(storage, offset, size, stride)
        # torch conjugates or negates such views only when they are used.
        functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {'conj': np.conj, 'neg': np.negative}
        for bit, function in functions.items():
            if isinstance(metadata, dict) and metadata.get(bit):
                self._charge(array.nbytes)
                array = _freeze(function(array))
        return array

    def _tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
    ) -> np.ndarray | Inert:
        name = dtype.name.removeprefix('torch.') if type(dtype) is Inert else ''
        if type(storage) is not np.ndarray or storage.dtype != np.uint8 or storage.ndim != 1:
            raise CheckpointError('a tensor has no storage')
        if name not in DTYPES:
            args = (storage, offset, size, stride, grad, hooks, dtype)
            return Inert('torch._utils._rebuild_tensor_v3', args)
        return self._tensor_v2(self._view_as(storage, DTYPES[name]), offset, size, stride, grad, hooks, metadata)

    def _subclass(self, function: Any, kind: Any, args: Any, state: Any) -> Any:
        """Returns a tensor that has attributes, or is of a subclass, as a plain tensor."""
        if type(function) is not Inert or type(args) is not tuple:
            raise CheckpointError('a tensor of a subclass is not made by a function')
        if function.name not in self._rebuilders:
            return Inert('torch._tensor._rebuild_from_type_v2', (function, kind, args, state))
        return self._rebuilders[function.name](*args)


class _ZipReader(_Reader):
    """Reads a zip with ROOT/data.pkl, ROOT/data/KEY for each storage, and small entries that describe the format."""

    def __init__(self, file: io.FileIO, data: mmap.mmap):
        super().__init__(file, data)
        self._raw: dict[str | bytes, np.ndarray] = {}  # the bytes of each storage
        self._storages: dict[tuple[str | bytes, np.dtype, int], np.ndarray] = {}
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        self._entries = {entry.orig_filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise CheckpointError('two entries of the zip have the same name')
        entries.sort(key=lambda entry: entry.header_offset)
        for entry, following in itertools.pairwise(entries):
            if entry.header_offset + 30 + len(entry.orig_filename) + entry.compress_size > following.header_offset:
                raise CheckpointError(f'the entry {excerpt(entry.orig_filename)} of the zip overlaps the next one')
        roots = [name.removesuffix('data.pkl') for name in self._entries if re.fullmatch(r'[^/]+/data\.pkl', name)]
        if len(roots) != 1:
            raise CheckpointError('a zip, but not one of torch.save: it has no data.pkl')
        self._root = roots[0]
        if self._root + 'constants.pkl' in self._entries:
            raise CheckpointError('a TorchScript archive: in PyTorch, save the state_dict() of the loaded module')
        if self._root + 'byteorder' in self._entries:
            order = self._read_entry('byteorder').tobytes()
            if order not in (b'little', b'big'):
                raise CheckpointError(f'its byte order is {excerpt(order)}')
            self._is_big_endian = order == b'big'

    def load(self) -> Any:
        name = self._root + 'data.pkl'
        if self._entries[name].compress_type != zipfile.ZIP_STORED:
            pickled = self._read_entry('data.pkl').tobytes()
            return self._unpickler(pickled, 0, len(pickled)).load()
        start, end = self._extent(self._entries[name])
        return self._unpickler(self._data, start, end).load()

    def _extent(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Returns where the entry's bytes begin and end, after checking its local header against the directory."""
        name, offset = entry.orig_filename, entry.header_offset
        if entry.flag_bits & 0x2041:
            raise CheckpointError(f'the entry {excerpt(name)} of the zip is encrypted')
        header = self._read_at(max(offset, 0), 30)
        if len(header) < 30 or header[:4] != b'PK\3\4':
            raise CheckpointError(f'the entry {excerpt(name)} of the zip is not where its directory says')
        flags, method, packed, size, name_size, extra_size = struct.unpack('<6xHH8xIIHH', header)
        start = offset + 30 + name_size + extra_size
        raw = self._read_at(offset + 30, name_size)
        local_name = raw.decode('utf-8' if flags & 0x800 else 'cp437')
        sizes = ((packed, entry.compress_size), (size, entry.file_size))
        # With bit 3 set, the sizes follow the bytes; all ones mean that they are in the 64-bit extension.
        agree = flags & 8 or all(local in (0xFFFFFFFF, central) for local, central in sizes)
        if local_name != name or method != entry.compress_type or not agree:
            raise CheckpointError(f'the entry {excerpt(name)} of the zip differs from what its directory says')
        if start + entry.compress_size > len(self._data):
            raise CheckpointError(f'the file is cut off in {excerpt(name)}')
        return start, start + entry.compress_size

    def _read_entry(self, name: str) -> np.ndarray:
        """Returns the bytes of an entry, mapped or inflated, as uint8 [bytes]."""
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise CheckpointError(f'the zip has no {excerpt(name)}')
        start, end = self._extent(entry)
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.file_size != entry.compress_size:
                raise CheckpointError(f'the entry {excerpt(name)} of the zip has two sizes')
            return self._bytes[start:end]
        if entry.compress_type != zipfile.ZIP_DEFLATED:
            raise CheckpointError(f'{excerpt(name)} is compressed: unpack the zip and store it uncompressed')
        self._charge(entry.file_size)
        inflated = zlib.decompressobj(-15).decompress(self._bytes[start:end].data, entry.file_size + 1)
        if len(inflated) != entry.file_size:
            raise CheckpointError(f'the entry {excerpt(name)} of the zip inflates to another size than it says')
        return np.frombuffer(inflated, np.uint8)

    def _load_storage(self, saved_id: Any) -> np.ndarray:
        _, storage_type, key, _, elements = _check_storage_id(saved_id, 5)
        dtype = _storage_dtype(storage_type)
        (elements,) = _check_integers((elements,))
        if key not in self._raw:
            has_bytes = elements or f'{self._root}data/{key}' in self._entries
            self._raw[key] = self._read_entry(f'data/{key}') if has_bytes else self._bytes[:0]
        raw = self._raw[key]
        if elements * dtype.itemsize > len(raw):
            raise CheckpointError(
                f'storage {excerpt(key)} has {len(raw)} bytes; its pickle says {excerpt(elements)} of {dtype}'
            )
        if (key, dtype, elements) not in self._storages:
            self._storages[key, dtype, elements] = self._view_as(raw[: elements * dtype.itemsize], dtype)
        return self._storages[key, dtype, elements]


class _LegacyReader(_Reader):
    """Reads five pickles in a row, of which the fourth is the tree, then the storages, each after its length.

    How many bytes a storage has depends on its type, which only the tree tells. So the tree is read twice: first to
    collect the types, without rebuilding anything, and again when it is known where each storage is.
    """

    def __init__(self, file: io.FileIO, data: mmap.mmap):
        super().__init__(file, data)
        self._raw: dict[str | bytes, np.ndarray] = {}  # the bytes of each storage

    def load(self) -> Any:
        try:
            magic, position = self._read_pickle(0)
        except CheckpointError as error:
            if str(error).startswith('refused'):
                raise
            raise CheckpointError(f'not a file of torch.save, or a damaged one ({error})') from None
        if type(magic) is not int or magic != _MAGIC_NUMBER:
            raise CheckpointError('not a file of torch.save')
        version, position = self._read_pickle(position)
        if type(version) is not int or version != _PROTOCOL_VERSION:
            raise CheckpointError(f'has version {excerpt(version)} of the old format; {_PROTOCOL_VERSION} is known')
        _, position = self._read_pickle(position)  # byte order and sizes of C types, which torch ignores too
        types, after = self._storage_types(position)
        keys, after = self._read_pickle(after)
        self._raw = self._find_storages(keys, after, types)
        return self._unpickler(self._data, position, len(self._data)).load()

    def _read_pickle(self, position: int) -> tuple[Any, int]:
        unpickler = InertUnpickler(self._data, position)
        return unpickler.load(), unpickler.position

    def _storage_types(self, position: int) -> tuple[dict[str | bytes, tuple[np.dtype, int]], int]:
        """Returns the type and the number of elements of each storage in the tree, and where the tree ends."""
        types: dict[str | bytes, tuple[np.dtype, int]] = {}
        nothing = self._bytes[:0]

        def note(saved_id: Any) -> Any:
            if _is_module(saved_id):
                return saved_id[1]
            _, storage_type, key, _, elements, _ = _check_storage_id(saved_id, 6)
            (count,) = _check_integers((elements,))
            types.setdefault(key, (_storage_dtype(storage_type), count))
            return nothing

        calls: dict[str, Callable[..., Any]] = dict.fromkeys(self._calls, lambda *args: nothing)
        calls['torch.Size'] = _size
        unpickler = InertUnpickler(self._data, position, calls=calls, persistent_load=note)
        unpickler.load()
        return types, unpickler.position

    def _find_storages(
        self, keys: Any, position: int, types: dict[str | bytes, tuple[np.dtype, int]]
    ) -> dict[str | bytes, np.ndarray]:
        """Returns the bytes of each storage, as uint8 [bytes]."""
        if type(keys) is not list or any(type(key) not in (str, bytes) for key in keys):
            raise CheckpointError('its list of storages is damaged')
        storages: dict[str | bytes, np.ndarray] = {}
        for key in keys:
            if key not in types or key in storages:
                raise CheckpointError(f'its list of storages has an unexpected {excerpt(key)}')
            dtype, elements = types[key]
            stated = self._read_at(position, 8)
            start, size = position + 8, elements * dtype.itemsize
            position = start + size
            if len(stated) < 8 or position > len(self._data):
                raise CheckpointError(f'the file is cut off in storage {excerpt(key)}')
            if stated != struct.pack('<q', elements):
                raise CheckpointError(f'storage {excerpt(key)} has another length than its pickle says')
            storages[key] = self._bytes[start:position]
        return storages

    def _load_storage(self, saved_id: Any) -> Any:
        if _is_module(saved_id):
            return saved_id[1]
        _, storage_type, key, _, elements, view = _check_storage_id(saved_id, 6)
        dtype = _storage_dtype(storage_type)
        first, (elements,) = 0, _check_integers((elements,))
        if view is not None:
            if type(view) is not tuple or len(view) != 3:
                raise CheckpointError(f'the view of storage {excerpt(key)} is damaged')
            first, elements = _check_integers(view[1:])
        if key not in self._raw:
            raise CheckpointError(f'the file has no storage {excerpt(key)}')
        part = self._raw[key][first * dtype.itemsize : (first + elements) * dtype.itemsize]
        if len(part) < elements * dtype.itemsize:
            raise CheckpointError(f'storage {excerpt(key)} is smaller than its pickle says')
        return part.view(dtype)


def _is_module(saved_id: Any) -> bool:
    """Whether a persistent identifier of the old format is that of a class, stored with its source code."""
    return type(saved_id) is tuple and len(saved_id) > 0 and saved_id[0] in ('module', b'module')


def _check_storage_id(saved_id: Any, length: int) -> tuple[Any, ...]:
    if type(saved_id) is not tuple or len(saved_id) != length or saved_id[0] not in ('storage', b'storage'):
        raise CheckpointError('its pickle refers to something that is not a storage')
    if type(saved_id[2]) not in (str, bytes):
        raise CheckpointError('its pickle has a storage without a key')
    return saved_id


def _storage_dtype(storage_type: Any) -> np.dtype:
    name = storage_type.name if type(storage_type) is Inert else ''
    module, _, name = name.rpartition('.')
    known = STORAGES | QUANTIZED_STORAGES
    if module not in _STORAGE_MODULES or name.lstrip('_') not in known:
        raise CheckpointError(f'its pickle has a storage of type {excerpt(name or storage_type)}')
    return DTYPES[known[name.lstrip('_')]]


def _check_integers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or any(type(value) is not int or value < 0 for value in values):
        raise CheckpointError(f'a tensor or storage has the sizes, strides or offset {excerpt(values)}')
    return tuple(values)


def _size(values: Any = ()) -> tuple[int, ...]:
    return _check_integers(values)


def _first_argument(data: Any = None, *others: Any) -> Any:
    """Returns the tensor of a parameter, without its attributes."""
    return data


def _freeze(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
