"""NumPy's `.npy` files of numbers: written atomically, read with limits.

`numpy.load` evaluates the header of a file as a Python literal. Depending on what is damaged it then raises one of a
dozen classes of errors, prints warnings, or allocates the memory that the header asks for. Here a header has to be one
that `numpy.save` writes for an array of numbers, and the file as long as its header says.
"""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from audiosep_jax.storage.buckets import writing

_MAX_HEADER = 10_000  # bytes; NumPy's own limit
_ENTRY = r"""\s*(?:(['"])descr\1\s*:\s*(['"])(?P<descr>[<>|=]?[biufc]\d{1,2})\2"""
_ENTRY += r"""|(['"])fortran_order\4\s*:\s*(?P<fortran>True|False)"""
_ENTRY += r"""|(['"])shape\6\s*:\s*\((?P<shape>(?:\s*\d{1,19}L?\s*,)*\s*(?:\d{1,19}L?\s*)?)\))\s*"""
_ENTRIES = re.compile(_ENTRY)


@dataclasses.dataclass(frozen=True)
class NpyHeader:
    """What the header of a `.npy` file says.

    Attributes:
        shape: of the array.
        dtype: of its numbers.
        fortran_order: whether the first axis is the fastest in the file.
        start: the position of the first number in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int

    @property
    def num_bytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(file: BinaryIO) -> NpyHeader:
    """Reads the header of an open `.npy` file, and checks that the whole array follows.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a `.npy` file of numbers, or shorter than its header says.
    """
    magic = file.read(8)
    if magic[:6] != b'\x93NUMPY' or magic[6:] not in (b'\1\0', b'\2\0', b'\3\0'):
        raise ValueError('not a .npy file')
    length = int.from_bytes(file.read(2 if magic[6] == 1 else 4), 'little')
    header = file.read(min(length, _MAX_HEADER + 1))
    if len(header) != length:
        raise ValueError('cut short' if length <= _MAX_HEADER else 'its header is damaged')
    descr, fortran, shape = _parse(header)
    try:
        dtype = np.dtype(descr)
    except TypeError as error:
        raise ValueError(f'numbers of unknown type {descr!r}') from error
    found = NpyHeader(shape, dtype, fortran, file.tell())
    if len(shape) > 32 or os.fstat(file.fileno()).st_size < found.start + found.num_bytes:
        raise ValueError('shorter than its header says')
    return found


def _parse(header: bytes) -> tuple[str, bool, tuple[int, ...]]:
    """Returns type, order and shape. A header is a literal like {'descr': '<f2', 'fortran_order': False, 'shape': …}"""
    problem = ValueError('its header is damaged, or not of an array of numbers')
    text = header.decode('latin-1').strip()
    if not text.startswith('{') or not text.endswith('}'):
        raise problem
    found: dict[str, str] = {}
    place = 1
    for _ in range(3):
        entry = _ENTRIES.match(text, place)
        if entry is None:
            raise problem
        found |= {name: value for name, value in entry.groupdict().items() if value is not None}
        place = entry.end() + (text[entry.end()] == ',')
    if len(found) != 3 or text[place:].strip() != '}':
        raise problem
    sizes = [size for size in re.split(r'[,\s]+', found['shape'].replace('L', '')) if size]
    if len(sizes) == 1 and ',' not in found['shape']:  # (3) is a number, and not a shape
        raise problem
    return found['descr'], found['fortran'] == 'True', tuple(map(int, sizes))


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Returns the array in a `.npy` file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a `.npy` file of numbers, or shorter than its header says.
    """
    with open(Path(path), 'rb') as file:
        header = read_npy_header(file)
        data = file.read(header.num_bytes)
    if len(data) != header.num_bytes:
        raise ValueError('shorter than its header says')
    array = np.frombuffer(data, header.dtype)
    return array.reshape(header.shape[::-1]).T if header.fortran_order else array.reshape(header.shape)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Writes an array as a `.npy` file, in a folder or a bucket; until it is whole, what was at `path` stays there.

    Raises:
        OSError: it cannot be written.
    """
    # NumPy would append .npy to a name without that suffix, but not to an open file.
    with writing(path) as temporary, open(temporary, 'wb') as file:
        np.save(file, array)
