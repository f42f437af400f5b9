"""PyTorch files: everything that torch wrote into tests/reference is read, and what is written is read again."""

import collections
import pathlib
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from support.paths import REFERENCE
from support.torch_samples import SAMPLES, call, lightning, named, storage, tensor, tensors, value, zipped

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import Inert, read_torch, write_torch
from audiosep_jax.weights.torch_files.dtypes import DTYPES

TENSOR_FILES = [f'torch_{name}' for name in SAMPLES if name.endswith('.pt')]
LIGHTNING_FILES = [f'torch_{name}' for name in SAMPLES if name.endswith('.ckpt')]


def read(tmp_path, data):
    path = tmp_path / 'file.pt'
    path.write_bytes(data)
    return read_torch(path)


def same(ours, expected):
    """Bit by bit; of one type and shape."""
    expected = np.asarray(expected)
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    assert ours.tobytes() == expected.tobytes()


@pytest.mark.parametrize('name', TENSOR_FILES)
def test_every_type_and_view(name):
    tree = read_torch(REFERENCE / name)
    base = np.arange(24, dtype=np.float32)
    assert list(tree['types']) == list(DTYPES)
    for dtype, array in tree['types'].items():
        same(array, np.array([1, 2, 4]).astype(DTYPES[dtype]))
    same(tree['offset'], base[5:11])
    same(tree['transposed'], base.reshape(4, 6).T)
    same(tree['strided'], base[::5])
    same(tree['expanded'], np.full((3, 2), 1.5, np.float32))
    same(tree['empty'], np.zeros((0, 7), np.float32))
    same(tree['scalar'], np.float64(2.5))
    same(tree['conjugated'], np.array([1 - 2j], np.complex64))
    same(tree['parameter'], base[:4].reshape(2, 2))
    same(tree['storage'], np.array([1, 2], np.uint8))
    assert type(tree['state']) is collections.OrderedDict
    same(tree['state']['weight'], base)
    same(tree['state']['steps'], np.int64(7))


@pytest.mark.parametrize('name', TENSOR_FILES)
def test_what_shares_a_storage_shares_memory_and_none_can_be_written(name):
    tree = read_torch(REFERENCE / name)
    whole = tree['state']['weight']
    for view in ('offset', 'transposed', 'strided', 'parameter'):
        assert np.shares_memory(tree[view], whole)
        assert not np.shares_memory(tree[view], tree['expanded'])
    assert tree['tied'] is tree['parameter']
    assert tree['transposed'].strides == (4, 24)
    assert tree['expanded'].strides == (0, 0)
    arrays = [*tree['types'].values(), *(v for v in tree.values() if isinstance(v, np.ndarray))]
    assert not any(array.flags.writeable for array in arrays)


@pytest.mark.parametrize('name', LIGHTNING_FILES)
def test_lightning_checkpoint(name):
    tree = read_torch(REFERENCE / name)
    same(tree['state_dict']['weight'], np.array([[1, 2], [3, 4]], np.float32))
    moments = tree['optimizer_states'][0]['state'][0]
    same(moments['step'], np.float32(1))
    assert moments['exp_avg'].shape == (2, 2)
    assert tree['optimizer_states'][0]['param_groups'][0]['params'] == [0, 1]
    plain = ('epoch', 'global_step', 'pytorch-lightning_version', 'counts', 'groups', 'size', 'set', 'frozen', 'bytes')
    assert [tree[key] for key in plain] == [
        3, 2**40, '2.1.0', {'a': 2, 'b': 1}, {'a': [1]}, (2, 3), {1}, frozenset({2}), b'\xff\x00',
    ]  # fmt: skip
    assert type(tree['counts']) is type(tree['groups']) is dict
    assert tree['complex'] == 1 + 2j
    assert type(tree['loss']) is np.float64
    assert tree['loss'] == 0.25
    same(tree['history'], np.arange(6, dtype=np.float32).reshape(2, 3))
    same(tree['columns'], np.arange(6, dtype=np.int16).reshape(2, 3))
    same(tree['names'], np.array(['dog', 'cat']))


@pytest.mark.parametrize('name', LIGHTNING_FILES)
def test_objects_are_inert(name):
    tree = read_torch(REFERENCE / name)
    settings = tree['hyper_parameters']
    assert (settings.name, settings.state['rate']) == ('argparse.Namespace', 0.1)
    assert (settings.state['folder'].name, settings.state['folder'].args) == ('pathlib.PurePosixPath', ('/', 'data'))
    assert (tree['settings'].name, tree['settings'].state) == ('torch_samples.Settings', {'rate': 1e-3})
    attributes = tree['attributes']
    assert (attributes.mapping, attributes.state) == ({'layers': 3}, {'frozen': True})
    function = tree['partial']
    assert (function.name, function.args[0].name, function.state[2]) == (
        'functools.partial', 'torch_samples.Settings', {'rate': 2},
    )  # fmt: skip
    assert tree['objects'].state[-1] == [1, None]
    assert (tree['device'].name, tree['device'].args) == ('torch.device', ('cpu',))
    assert (tree['dtype'].name, tree['dtype'].args) == ('torch.bfloat16', None)
    assert tree['sparse'].name == 'torch._utils._rebuild_sparse_tensor'
    same(tree['sparse'].args[1][1], np.ones(2, np.float32))
    assert tree['meta'].name == 'torch._utils._rebuild_meta_tensor_no_storage'
    assert repr(settings) == "Inert('argparse.Namespace', ...)"


def test_big_endian_and_deflated(tmp_path):
    """Files of other machines, and zips that somebody packed again; each type is turned around part by part."""
    for name, dtype in (('Float', '>f4'), ('ComplexFloat', '>c8'), ('BFloat16', '>u2'), ('Long', '>i8')):
        stored = np.array([1, 2, 3, 4], dtype)
        pickled = tensor(storage(kind=f'{name}Storage'))
        same_storage = value('a') + pickled + value('b') + pickled
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            data = zipped(b'}(' + same_storage + b'u', {'0': stored.tobytes()}, method=method, byteorder=b'big')
            tree = read(tmp_path, data)
            expected = np.array([1, 2, 3, 4], dtype.replace('>', '<'))
            same(tree['a'], expected.view(ml_dtypes.bfloat16) if name == 'BFloat16' else expected)
            assert np.shares_memory(tree['a'], tree['b'])
            assert not tree['a'].flags.writeable


def test_torch_3_0_and_other_old_names(tmp_path):
    """Python 2 strings, parameters and tensor subclasses by their old functions, storages of a GPU."""
    old = b'(U\x07storagectorch.cuda\nFloatStorage\nU\x010U\x06cuda:0K\x04NtQ'.replace(b'N', b'')
    plain = call('torch._utils', '_rebuild_tensor', old, value(1), value((2,)), value((1,)))
    parameter = call('torch.nn.parameter', 'Parameter', plain) + value((True, False, {})) + b'b'
    subclass = call(
        'torch._tensor', '_rebuild_from_type_v2', named('torch._utils', '_rebuild_tensor'), named('mine', 'Tagged'),
        b'(' + storage() + value(2) + value((1,)) + value((1,)) + b't', value({'tag': 1}),
    )  # fmt: skip
    tree = read(tmp_path, zipped(b'](' + plain + parameter + subclass + b'e'))
    for array, expected in zip(tree, ([1, 2], [1, 2], [2]), strict=True):
        same(array, np.array(expected, np.float32))


def test_reading_imports_nothing(tmp_path, monkeypatch):
    """Not even a module that is there to be imported."""
    (tmp_path / 'canary.py').write_text('raise SystemExit("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    tree = read(tmp_path, zipped(call('canary', 'Bird', value(1)) + value({'a': 1}) + b'b'))
    assert (tree.name, tree.args, tree.state) == ('canary.Bird', (1,), {'a': 1})


def everything():
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
        same(array, expected['state_dict'][name])
    for key in ('plain', 'tuple', 'shared', 3):
        assert tree[key] == expected[key]
    assert tree['shared'][0] is tree['shared'][1]
    assert type(tree['state_dict']) is collections.OrderedDict


def test_written_files_read_again(tmp_path):
    write_torch(tmp_path / 'a.pt', everything())
    tree = read_torch(tmp_path / 'a.pt')
    check_everything(tree, tree['state_dict'].items())
    for key in ('columns', 'empty', 'scalar', 'expanded'):
        same(tree[key], everything()[key])
    assert tree['tied'] is tree['state_dict']['float32']
    # And from the map: the same bytes, over the very file that is read.
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
        ({'a': np.array(['x'])}, r"\['a'\] is an array of <U1, which torch has not"),
        (Inert('mine.Thing', ()), 'the whole is of type Inert'),
        ({frozenset(): 1}, 'the whole has a key of type frozenset'),
        ([1 << 4096], r'\[0\] is an integer of more than 255 bytes'),
    ],
)
def test_what_torch_would_not_read_is_not_written(tmp_path, tree, place):
    with pytest.raises(CheckpointError, match=f'^{re.escape(str(tmp_path))}/a.pt: cannot be written: {place}$'):
        write_torch(tmp_path / 'a.pt', tree)
    assert list(tmp_path.iterdir()) == []


def test_writing_ends_on_trees_without_end(tmp_path):
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
            same(tree[key].numpy(), everything()[key])
        assert tree['tied'] is tree['state_dict']['float32']


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('protocol', [1, 2, 3, 4, 5])
def test_what_this_torch_saves_is_read(tmp_path, legacy, protocol):
    """The files in tests/reference are of one version; here the one that is installed."""
    torch = pytest.importorskip('torch')
    saved = tensors(torch, DTYPES)
    options = {'_use_new_zipfile_serialization': not legacy, 'pickle_protocol': protocol}
    torch.save(saved, tmp_path / 'a.pt', **options)
    tree = read_torch(tmp_path / 'a.pt')
    for name, array in tree['types'].items():
        same(array, saved['types'][name].view(torch.uint8).numpy().view(DTYPES[name]))
    for key in ('offset', 'transposed', 'strided', 'expanded', 'empty', 'scalar'):
        same(tree[key], saved[key].numpy())
        assert tree[key].strides == saved[key].numpy().strides or key == 'empty'
    same(tree['conjugated'], saved['conjugated'].resolve_conj().numpy())
    same(tree['parameter'], saved['parameter'].detach().numpy())

    torch.save(extras := lightning(torch), tmp_path / 'b.ckpt', **options)
    tree = read_torch(tmp_path / 'b.ckpt')
    for key, moments in extras['optimizer_states'][0]['state'].items():
        for name in moments:
            same(tree['optimizer_states'][0]['state'][key][name], moments[name].numpy())
    assert tree['settings'].state == {'rate': 1e-3}
    assert tree['hyper_parameters'].state['rate'] == 0.1
    assert tree['partial'].args[0].name == 'support.torch_samples.Settings'
    same(tree['history'], extras['history'])


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=f'^{tmp_path}/none.pt: No such file or directory$'):
        read_torch(tmp_path / 'none.pt')
    with pytest.raises(CheckpointError, match='Is a directory'):
        read_torch(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        write_torch(pathlib.Path(tmp_path / 'none' / 'a.pt'), {})
