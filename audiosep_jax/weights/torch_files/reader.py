"""Reads and writes the files of `torch.save`, without torch.

Reading maps the file into memory and touches no tensor's bytes: tensors are read-only numpy views of it. A checkpoint
is untrusted input: its pickle is read as data (`unpickler.py`: what is rebuilt, what stays inert, what is refused),
every size in it is checked against the file, and all that can be wrong is a CheckpointError of one line.

Formats: the zip of torch >= 1.6 (stored or deflated, either byte order) and the stream of pickles before it. Refused:
the tar of torch < 0.2 and TorchScript. Quantised, sparse, nested and meta tensors, subclasses without storage and types
that numpy has not (below 8 bits) become `Inert` with their parts as `args`; tensors' gradients and hooks are dropped.

Writing is in `writer.py`. Sources: torch/serialization.py, torch/_utils.py,
torch/_weights_only_unpickler.py of torch 2.13.
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
from typing import Any, BinaryIO

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files.dtypes import DTYPES, QUANTISED, STORAGES
from audiosep_jax.weights.torch_files.inert import Inert, shown
from audiosep_jax.weights.torch_files.unpickler import InertUnpickler

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

_STORAGE_MODULES = ('torch', 'torch.cuda', 'torch.storage')

# What is inflated, or computed from expanded views, stays within this beside the file's own size.
_SLACK = 1 << 26
_MAX_EXPANDED = 1 << 30
_MAX_DIRECTORY = 1 << 24


def read_torch(path: str | os.PathLike) -> Any:
    """What `torch.save` was given.

    Returns:
        The tree: dict, OrderedDict, list, tuple, set, numbers, strings, bytes, None as they are (a Counter or a
        defaultdict is a dict, a torch.Size a tuple). Tensors, parameters and storages are read-only numpy arrays of
        their shape and strides, with ml_dtypes for bfloat16 and float8; those that share a storage share memory. Any
        other class or function is an `Inert`, torch.dtype and torch.device included. No container contains itself or
        is 200 deep.

    Raises:
        CheckpointError: the file is missing, no file of torch.save, damaged, or asks for what could run code.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception:  # a damaged file may provoke any: numpy, zipfile, zlib and struct each have their own
        reason = 'damaged, or not a file of torch.save'
    raise CheckpointError(f'{path}: {reason}')


def _read(path: str | os.PathLike) -> Any:
    with _Source(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise CheckpointError('the file is empty')
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:4] == b'PK\3\4':
            return _ZipFile(file, data).load()
        if data[257:262] == b'ustar':
            raise CheckpointError('a tar file, as torch before 0.2 wrote: load and save it with a newer torch')
        return _LegacyFile(file, data).load()


class _Source(io.FileIO):
    """A file that limits what `zipfile` reads at once: a directory, whose entries take ten times the room in memory."""

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise CheckpointError('a zip with too many entries')
        return super().read(_MAX_DIRECTORY if size < 0 else size)


class _File(abc.ABC):
    """What both formats share: storages by key, and tensors on them."""

    def __init__(self, file: BinaryIO, data: mmap.mmap):
        self._file = file
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)  # read-only, as the map is
        self._big_endian = False
        self._storages: dict[tuple, np.ndarray] = {}
        self._spent = 0
        self._rebuilt = {
            'torch._utils._rebuild_tensor': self._tensor,
            'torch._utils._rebuild_tensor_v2': self._tensor_v2,
            'torch._utils._rebuild_tensor_v3': self._tensor_v3,
            'torch._utils._rebuild_parameter': _first,
            'torch._utils._rebuild_parameter_with_state': _first,
            'torch._utils._rebuild_device_tensor_from_cpu_tensor': _first,
            'torch._utils._rebuild_device_tensor_from_numpy': _first,
            'torch._utils._rebuild_xla_tensor': _first,
            'torch.nn.parameter.Parameter': _first,
            'torch.autograd.variable.Variable': _first,  # torch 0.3
        }
        subclass = dict.fromkeys(
            f'torch.{module}._rebuild_from_type{version}' for module in ('_tensor', 'tensor') for version in ('', '_v2')
        )
        self._calls = {**self._rebuilt, **dict.fromkeys(subclass, self._subclass), 'torch.Size': _size}

    def _unpickler(self, data: bytes | mmap.mmap, position: int, end: int) -> InertUnpickler:
        return InertUnpickler(data, position, end, calls=self._calls, persistent_load=self._persistent)

    @abc.abstractmethod
    def _persistent(self, saved_id: Any) -> Any:
        """The storage that a pickle means."""

    def _peek(self, offset: int, size: int) -> bytes:
        """A few bytes between the tensors. Not by the map, where a touch brings in dozens of pages around it."""
        self._file.seek(offset)
        return self._file.read(size)

    def _allow(self, size: int) -> None:
        """For so many bytes that are not mapped but computed. A small file must not fill the memory."""
        self._spent += size
        if self._spent > _SLACK + 8 * len(self._data):
            raise CheckpointError('its tensors unfold to many times its size')

    def _typed(self, storage: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Bytes of the file as numbers of this machine."""
        if not self._big_endian or dtype.itemsize == 1:
            return storage.view(dtype)
        self._allow(storage.nbytes)
        part = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
        return _frozen(storage.view(f'<u{part}').byteswap().view(dtype))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
        if type(storage) is not np.ndarray or storage.ndim != 1 or not storage.flags.c_contiguous:
            raise CheckpointError('a tensor has no storage')
        # numpy has as many dimensions; and the product of more could take for ever.
        if any(type(values) not in (tuple, list) or len(values) > 64 for values in (size, stride)):
            raise CheckpointError(f'a tensor has the sizes {shown(size)} and strides {shown(stride)}')
        size, stride = _integers(size), _integers(stride)
        (offset,) = _integers((offset,))
        if len(size) != len(stride):
            raise CheckpointError(f'a tensor has {len(size)} sizes and {len(stride)} strides')
        if 0 in size:
            return _frozen(np.empty(size, storage.dtype))
        elements, width = 1, storage.itemsize
        for n in size:
            elements *= n
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage):
            raise CheckpointError(
                f'a tensor of shape {shown(size)} reaches element {shown(last)} of a storage of {len(storage)}'
            )
        # An expanded view costs nothing until somebody copies it.
        if elements * width > max(_MAX_EXPANDED, len(self._data)):
            raise CheckpointError(f'a tensor of shape {shown(size)} stands for more than the file can hold')
        strides = tuple(step * width if n > 1 else width for n, step in zip(size, stride, strict=True))
        return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * width, strides)

    def _tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
    ) -> np.ndarray:
        array = self._tensor(storage, offset, size, stride)
        # Views that torch conjugates or negates when they are used.
        for bit, function in (('conj', np.conj), ('neg', np.negative)):
            if isinstance(metadata, dict) and metadata.get(bit):
                self._allow(array.nbytes)
                array = _frozen(function(array))
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
        return self._tensor_v2(self._typed(storage, DTYPES[name]), offset, size, stride, grad, hooks, metadata)

    def _subclass(self, function: Any, kind: Any, args: Any, state: Any) -> Any:
        """A tensor with attributes, or of a subclass: the tensor."""
        if type(function) is not Inert or type(args) is not tuple:
            raise CheckpointError('a tensor of a subclass is made by no function')
        if function.name not in self._rebuilt:
            return Inert('torch._tensor._rebuild_from_type_v2', (function, kind, args, state))
        return self._rebuilt[function.name](*args)


class _ZipFile(_File):
    """A zip with ROOT/data.pkl, ROOT/data/KEY for each storage, and small entries that tell about the format."""

    def __init__(self, file: BinaryIO, data: mmap.mmap):
        super().__init__(file, data)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        self._entries = {entry.orig_filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise CheckpointError('two entries of the zip have the same name')
        entries.sort(key=lambda entry: entry.header_offset)
        for entry, following in itertools.pairwise(entries):
            if entry.header_offset + 30 + len(entry.orig_filename) + entry.compress_size > following.header_offset:
                raise CheckpointError(f'the entry {shown(entry.orig_filename)} of the zip overlaps the next one')
        roots = [name.removesuffix('data.pkl') for name in self._entries if re.fullmatch(r'[^/]+/data\.pkl', name)]
        if len(roots) != 1:
            raise CheckpointError('a zip, but not one of torch.save: it has no data.pkl')
        self._root = roots[0]
        if self._root + 'constants.pkl' in self._entries:
            raise CheckpointError('a TorchScript archive: in PyTorch, save the state_dict() of the loaded module')
        if self._root + 'byteorder' in self._entries:
            order = self._entry('byteorder').tobytes()
            if order not in (b'little', b'big'):
                raise CheckpointError(f'its byte order is {shown(order)}')
            self._big_endian = order == b'big'

    def load(self) -> Any:
        name = self._root + 'data.pkl'
        if self._entries[name].compress_type != zipfile.ZIP_STORED:
            pickled = self._entry('data.pkl').tobytes()
            return self._unpickler(pickled, 0, len(pickled)).load()
        start, end = self._extent(self._entries[name])
        return self._unpickler(self._data, start, end).load()

    def _extent(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Where the entry's bytes lie, by its local header, which must agree with the directory."""
        name, offset = entry.orig_filename, entry.header_offset
        if entry.flag_bits & 0x2041:
            raise CheckpointError(f'the entry {shown(name)} of the zip is encrypted')
        header = self._peek(max(offset, 0), 30)
        if len(header) < 30 or header[:4] != b'PK\3\4':
            raise CheckpointError(f'the entry {shown(name)} of the zip is not where its directory says')
        flags, method, packed, size, name_size, extra_size = struct.unpack('<6xHH8xIIHH', header)
        start = offset + 30 + name_size + extra_size
        raw = self._peek(offset + 30, name_size)
        stated = raw.decode('utf-8' if flags & 0x800 else 'cp437')
        sizes = ((packed, entry.compress_size), (size, entry.file_size))
        # With bit 3 the sizes follow the bytes; all ones: they are in the 64-bit extension.
        agree = flags & 8 or all(local in (0xFFFFFFFF, central) for local, central in sizes)
        if stated != name or method != entry.compress_type or not agree:
            raise CheckpointError(f'the entry {shown(name)} of the zip is another one than its directory says')
        if start + entry.compress_size > len(self._data):
            raise CheckpointError(f'the file is cut off in {shown(name)}')
        return start, start + entry.compress_size

    def _entry(self, name: str) -> np.ndarray:
        """uint8 [bytes] of an entry: mapped, or inflated."""
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise CheckpointError(f'the zip has no {shown(name)}')
        start, end = self._extent(entry)
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.file_size != entry.compress_size:
                raise CheckpointError(f'the entry {shown(name)} of the zip has two sizes')
            return self._bytes[start:end]
        if entry.compress_type != zipfile.ZIP_DEFLATED:
            raise CheckpointError(f'{shown(name)} is compressed: unpack the zip and store it uncompressed')
        self._allow(entry.file_size)
        inflated = zlib.decompressobj(-15).decompress(self._bytes[start:end], entry.file_size + 1)
        if len(inflated) != entry.file_size:
            raise CheckpointError(f'the entry {shown(name)} of the zip inflates to another size than it says')
        return np.frombuffer(inflated, np.uint8)

    def _persistent(self, saved_id: Any) -> np.ndarray:
        _, storage_type, key, _, elements = _storage_id(saved_id, 5)
        dtype = _storage_dtype(storage_type)
        (elements,) = _integers((elements,))
        if (key, None) not in self._storages:
            found = elements or f'{self._root}data/{key}' in self._entries
            self._storages[key, None] = self._entry(f'data/{key}') if found else self._bytes[:0]
        storage = self._storages[key, None]
        if elements * dtype.itemsize > len(storage):
            raise CheckpointError(
                f'storage {shown(key)} has {len(storage)} bytes; its pickle says {shown(elements)} of {dtype}'
            )
        if (key, dtype, elements) not in self._storages:
            self._storages[key, dtype, elements] = self._typed(storage[: elements * dtype.itemsize], dtype)
        return self._storages[key, dtype, elements]


class _LegacyFile(_File):
    """Five pickles one after the other, the fourth being the tree, then the storages, each after its length.

    How many bytes a storage has depends on its type, which only the tree tells. So the tree is read twice: first to
    learn the types, with nothing rebuilt, and again when it is known where each storage lies.
    """

    def load(self) -> Any:
        try:
            magic, position = self._pickle(0)
        except CheckpointError as error:
            if str(error).startswith('refused'):
                raise
            raise CheckpointError(f'not a file of torch.save, or a damaged one ({error})') from None
        if type(magic) is not int or magic != _MAGIC_NUMBER:
            raise CheckpointError('not a file of torch.save')
        version, position = self._pickle(position)
        if type(version) is not int or version != _PROTOCOL_VERSION:
            raise CheckpointError(f'has version {shown(version)} of the old format; {_PROTOCOL_VERSION} is known')
        _, position = self._pickle(position)
        types: dict[str | bytes, tuple[np.dtype, int]] = {}
        _, after = self._survey(position, types)
        keys, after = self._pickle(after)
        self._roots = self._locate(keys, after, types)
        return self._unpickler(self._data, position, len(self._data)).load()

    def _pickle(self, position: int) -> tuple[Any, int]:
        unpickler = InertUnpickler(self._data, position)
        return unpickler.load(), unpickler.position

    def _survey(self, position: int, types: dict) -> tuple[Any, int]:
        nothing = self._bytes[:0]

        def note(saved_id):
            if type(saved_id) is tuple and saved_id and saved_id[0] in ('module', b'module'):
                return saved_id[1]
            _, storage_type, key, _, elements, _ = _storage_id(saved_id, 6)
            types.setdefault(key, (_storage_dtype(storage_type), *_integers((elements,))))
            return nothing

        calls = {name: (lambda *args: nothing) if name != 'torch.Size' else _size for name in self._calls}
        unpickler = InertUnpickler(self._data, position, calls=calls, persistent_load=note)
        return unpickler.load(), unpickler.position

    def _locate(self, keys: Any, position: int, types: dict) -> dict[str | bytes, np.ndarray]:
        """uint8 [bytes] of each storage."""
        if type(keys) is not list or any(type(key) not in (str, bytes) for key in keys):
            raise CheckpointError('its list of storages is damaged')
        storages = {}
        for key in keys:
            if key not in types or key in storages:
                raise CheckpointError(f'its list of storages has {shown(key)}, its pickle has not')
            dtype, elements = types[key]
            stated = self._peek(position, 8)
            start, size = position + 8, elements * dtype.itemsize
            position = start + size
            if len(stated) < 8 or position > len(self._data):
                raise CheckpointError(f'the file is cut off in storage {shown(key)}')
            if stated != struct.pack('<q', elements):
                raise CheckpointError(f'storage {shown(key)} has another length than its pickle says')
            storages[key] = self._bytes[start:position]
        return storages

    def _persistent(self, saved_id: Any) -> Any:
        if type(saved_id) is tuple and saved_id and saved_id[0] in ('module', b'module'):
            return saved_id[1]
        _, storage_type, key, _, elements, view = _storage_id(saved_id, 6)
        dtype = _storage_dtype(storage_type)
        first, (elements,) = 0, _integers((elements,))
        if view is not None:
            if type(view) is not tuple or len(view) != 3:
                raise CheckpointError(f'the view of storage {shown(key)} is damaged')
            first, elements = _integers(view[1:])
        if key not in self._roots:
            raise CheckpointError(f'the file has no storage {shown(key)}')
        part = self._roots[key][first * dtype.itemsize : (first + elements) * dtype.itemsize]
        if len(part) < elements * dtype.itemsize:
            raise CheckpointError(f'storage {shown(key)} is smaller than its pickle says')
        return part.view(dtype)


def _storage_id(saved_id: Any, length: int) -> tuple:
    if type(saved_id) is not tuple or len(saved_id) != length or saved_id[0] not in ('storage', b'storage'):
        raise CheckpointError('its pickle refers to what is no storage')
    if type(saved_id[2]) not in (str, bytes):
        raise CheckpointError('its pickle has a storage without a key')
    return saved_id


def _storage_dtype(storage_type: Any) -> np.dtype:
    name = storage_type.name if type(storage_type) is Inert else ''
    module, _, name = name.rpartition('.')
    known = STORAGES | QUANTISED
    if module not in _STORAGE_MODULES or name.lstrip('_') not in known:
        raise CheckpointError(f'its pickle has a storage of type {shown(name or storage_type)}')
    return DTYPES[known[name.lstrip('_')]]


def _integers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or any(type(value) is not int or value < 0 for value in values):
        raise CheckpointError(f'a tensor or storage has the sizes, strides or offset {shown(values)}')
    return tuple(values)


def _size(values: Any = ()) -> tuple[int, ...]:
    return _integers(values)


def _first(data: Any = None, *others: Any) -> Any:
    """The tensor of a parameter, less its attributes."""
    return data


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
