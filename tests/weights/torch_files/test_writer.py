"""Writing: torch reads what is written, and so does this project; what torch could not read is refused."""

import collections
import pathlib
import re
import zipfile

import numpy as np
import pytest
from support.torch_pickles import assert_same_bits

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import read_torch, write_torch
from audiosep_jax.weights.torch_files.dtypes import DTYPES
from audiosep_jax.weights.torch_files.inert import Inert


def everything():
    """A tree with everything that can be written."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (2, 3, dtype.itemsize), np.uint8) for name, dtype in DTYPES.items()}
    shared = [1, 'x']
    tree = {
        'state_dict': collections.OrderedDict((n, a.view(DTYPES[n])[..., 0]) for n, a in arrays.items()),
        'columns': np.arange(6.0).reshape(2, 3).T,
        'empty': np.zeros((0, 3), np.float32),
        'scalar': np.array(3, np.int64),
        'expanded': np.broadcast_to(np.float32(2), (3, 2)),
        'plain': [1, -1, 2**31, -(2**63), 2**100, 1.5, None, True, 'é\ud800', b'\xff\x00', b'', 1 + 2j, {1, 'a'}, ()],
        'tuple': ((1, (2.0,)), []),
        'shared': [shared, shared],
        3: {(1, 'key'): bytearray(b'ab')},
    }
    return tree | {'tied': tree['state_dict']['float32']}


def check_everything(tree, state):
    expected = everything()
    assert [name for name, _ in state] == list(DTYPES)
    for name, array in state:
        assert_same_bits(array, expected['state_dict'][name])
    for key in ('plain', 'tuple', 'shared', 3):
        assert tree[key] == expected[key]
    assert tree['shared'][0] is tree['shared'][1]
    assert type(tree['state_dict']) is collections.OrderedDict


def test_written_files_read_again(tmp_path):
    write_torch(tmp_path / 'a.pt', everything())
    tree = read_torch(tmp_path / 'a.pt')
    check_everything(tree, tree['state_dict'].items())
    for key in ('columns', 'empty', 'scalar', 'expanded'):
        assert_same_bits(tree[key], everything()[key])
    assert tree['tied'] is tree['state_dict']['float32']
    # Written again from the map, over the file that is mapped, it has the same bytes.
    first = (tmp_path / 'a.pt').read_bytes()
    write_torch(tmp_path / 'a.pt', tree)
    assert (tmp_path / 'a.pt').read_bytes() == first
    with zipfile.ZipFile(tmp_path / 'a.pt') as archive:
        assert archive.testzip() is None
        starts = [e.header_offset + 30 + len(e.filename) + len(e.extra) for e in archive.infolist()]
    assert not any(start % 64 for start in starts)


@pytest.mark.parametrize(
    ('tree', 'place'),
    [
        ({'a': [1, {2: object()}]}, r"\['a'\]\[1\]\[2\] is of type object"),
        ({'a': np.array(['x'])}, r"\['a'\] is an array of <U1, which torch does not have"),
        (Inert('mine.Thing', ()), 'the whole tree is of type Inert'),
        ({frozenset(): 1}, 'the whole tree has a key of type frozenset'),
        ([1 << 4096], r'\[0\] is an integer of more than 255 bytes'),
    ],
)
def test_what_torch_would_not_read_is_not_written(tmp_path, tree, place):
    with pytest.raises(CheckpointError, match=f'^{re.escape(str(tmp_path))}/a.pt: cannot be written: {place}$'):
        write_torch(tmp_path / 'a.pt', tree)
    assert list(tmp_path.iterdir()) == []


def test_endless_and_deep_trees(tmp_path):
    loop, deep = [], []
    loop.append((loop,))
    for _ in range(300):
        deep = [deep]
    write_torch(tmp_path / 'loop.pt', loop)  # as torch does
    with pytest.raises(CheckpointError, match='contains itself'):
        read_torch(tmp_path / 'loop.pt')
    with pytest.raises(CheckpointError, match='nested more than'):
        write_torch(tmp_path / 'deep.pt', deep)


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip('torch')
    write_torch(tmp_path / 'a.pt', everything())
    for options in ({}, {'mmap': True}):
        tree = torch.load(tmp_path / 'a.pt', weights_only=True, **options)
        state = [(n, t.view(torch.uint8).numpy().view(DTYPES[n])) for n, t in tree['state_dict'].items()]
        assert [str(t.dtype) for t in tree['state_dict'].values()] == [f'torch.{name}' for name in DTYPES]
        check_everything(tree, state)
        for key in ('columns', 'empty', 'scalar', 'expanded'):
            assert_same_bits(tree[key].numpy(), everything()[key])
        assert tree['tied'] is tree['state_dict']['float32']


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_torch(pathlib.Path(tmp_path / 'none' / 'a.pt'), {})
