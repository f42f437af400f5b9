"""PyTorch files put together by hand, sound and hostile ones, without torch.

The pieces of pickles are instructions of protocol 2.
"""

import io
import pickle
import pickletools
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import read_torch


def value(tree) -> bytes:
    """The instructions that push plain values."""
    return pickletools.optimize(pickle.dumps(tree, 2))[2:-1]


def named(module: str, name: str) -> bytes:
    """The instruction that pushes a class or function."""
    return f'c{module}\n{name}\n'.encode()


def call(module: str, name: str, *args: bytes) -> bytes:
    """The instructions that push the result of a call."""
    return named(module, name) + b'(' + b''.join(args) + b'tR'


def storage(key='0', kind='FloatStorage', elements=4) -> bytes:
    """The instructions that push a storage of a zip."""
    return b'(' + value('storage') + named('torch', kind) + b''.join(map(value, (key, 'cpu', elements))) + b'tQ'


def tensor(store=None, offset=0, size=(4,), stride=(1,), *metadata) -> bytes:
    """The instructions that push a tensor, by default one over `storage()`."""
    rest = (value(False), call('collections', 'OrderedDict'), *map(value, metadata))
    store = storage() if store is None else store
    return call('torch._utils', '_rebuild_tensor_v2', store, *map(value, (offset, size, stride)), *rest)


def numpy_dtype(code='f4', state=(3, '<', None, None, None, -1, -1, 0)) -> bytes:
    """The instructions that push a numpy dtype."""
    return call('numpy', 'dtype', value(code), value(False), value(True)) + value(state) + b'b'


def numpy_array(state: bytes, kind: bytes = named('numpy', 'ndarray')) -> bytes:
    """The instructions that push a numpy array with a state."""
    return call('numpy.core.multiarray', '_reconstruct', kind, value((0,)), value('b')) + state + b'b'


def numpy_state(shape, dtype: bytes, data) -> bytes:
    """The instructions that push the state of a numpy array."""
    return b'(' + value(1) + value(shape) + dtype + value(False) + value(data) + b't'


def zipped(pickled: bytes, storages: dict[str, bytes] | None = None, *, root='archive', method=0, **others) -> bytes:
    """A zip around the instructions of a pickle."""
    storages = {'0': np.arange(4, dtype='<f4').tobytes()} if storages is None else storages
    entries = {'data.pkl': b'\x80\x02' + pickled + b'.'} | {f'data/{key}': data for key, data in storages.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as archive:
        for name, data in (entries | others).items():
            archive.writestr(zipfile.ZipInfo(f'{root}/{name}'), data, method)
    return buffer.getvalue()


def legacy(*pickles: bytes, tail=b'') -> bytes:
    """A file of the format before the zip, around the instructions of its last pickles."""
    start = (pickle.dumps(thing, 2) for thing in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}))
    return b''.join(start) + b''.join(b'\x80\x02' + p + b'.' for p in pickles) + tail


def read_bytes(folder: Path, data: bytes):
    """Reads a file with these contents."""
    path = folder / 'file.pt'
    path.write_bytes(data)
    return read_torch(path)


def check_refused(folder: Path, data: bytes, reason: str) -> None:
    """Asserts that a file with these contents is refused soon, in one line that begins with its path."""
    path = folder / 'file.pt'
    path.write_bytes(data)
    started = time.process_time()  # other programs that keep the machine busy do not count
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    assert time.process_time() - started < 30  # the worst takes three seconds on a quiet machine
    message = str(caught.value)
    assert message.startswith(f'{path}: ')
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    assert re.search(reason, message), message


def assert_same_bits(found, expected) -> None:
    """Asserts that two arrays have the same type, shape and bits."""
    expected = np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
