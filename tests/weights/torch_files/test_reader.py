"""PyTorch files: the samples of tests/reference are read; damaged and hostile files are refused in one line."""

import collections
import io
import pickle
import struct
import zipfile
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from support.paths import REFERENCE
from support.torch_pickles import (
    assert_same_bits,
    call,
    check_refused,
    legacy,
    named,
    read_bytes,
    storage,
    tensor,
    value,
    zipped,
)
from support.torch_samples import SAMPLES, lightning, tensors

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import read_torch
from audiosep_jax.weights.torch_files.dtypes import DTYPES

TENSOR_FILES = [f'torch_{name}' for name in SAMPLES if name.endswith('.pt')]
LIGHTNING_FILES = [f'torch_{name}' for name in SAMPLES if name.endswith('.ckpt')]


@pytest.mark.parametrize('name', TENSOR_FILES)
def test_every_type_and_view(name):
    tree = read_torch(REFERENCE / name)
    base = np.arange(24, dtype=np.float32)
    assert list(tree['types']) == list(DTYPES)
    for dtype, array in tree['types'].items():
        assert_same_bits(array, np.array([1, 2, 4]).astype(DTYPES[dtype]))
    assert_same_bits(tree['offset'], base[5:11])
    assert_same_bits(tree['transposed'], base.reshape(4, 6).T)
    assert_same_bits(tree['strided'], base[::5])
    assert_same_bits(tree['expanded'], np.full((3, 2), 1.5, np.float32))
    assert_same_bits(tree['empty'], np.zeros((0, 7), np.float32))
    assert_same_bits(tree['scalar'], np.float64(2.5))
    assert_same_bits(tree['conjugated'], np.array([1 - 2j], np.complex64))
    assert_same_bits(tree['parameter'], base[:4].reshape(2, 2))
    assert_same_bits(tree['storage'], np.array([1, 2], np.uint8))
    assert type(tree['state']) is collections.OrderedDict
    assert_same_bits(tree['state']['weight'], base)
    assert_same_bits(tree['state']['steps'], np.int64(7))


@pytest.mark.parametrize('name', TENSOR_FILES)
def test_views_of_a_storage_share_memory_and_are_read_only(name):
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
    assert_same_bits(tree['state_dict']['weight'], np.array([[1, 2], [3, 4]], np.float32))
    moments = tree['optimizer_states'][0]['state'][0]
    assert_same_bits(moments['step'], np.float32(1))
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
    assert_same_bits(tree['history'], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert_same_bits(tree['columns'], np.arange(6, dtype=np.int16).reshape(2, 3))
    assert_same_bits(tree['names'], np.array(['dog', 'cat']))


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
    assert_same_bits(tree['sparse'].args[1][1], np.ones(2, np.float32))
    assert tree['meta'].name == 'torch._utils._rebuild_meta_tensor_no_storage'
    assert repr(settings) == "Inert('argparse.Namespace', ...)"


def test_big_endian_and_deflated(tmp_path):
    """Files from big-endian machines, and zips that were packed again. Complex numbers are swapped part by part."""
    for name, dtype in (('Float', '>f4'), ('ComplexFloat', '>c8'), ('BFloat16', '>u2'), ('Long', '>i8')):
        stored = np.array([1, 2, 3, 4], dtype)
        pickled = tensor(storage(kind=f'{name}Storage'))
        same_storage = value('a') + pickled + value('b') + pickled
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            data = zipped(b'}(' + same_storage + b'u', {'0': stored.tobytes()}, method=method, byteorder=b'big')
            tree = read_bytes(tmp_path, data)
            expected = np.array([1, 2, 3, 4], dtype.replace('>', '<'))
            assert_same_bits(tree['a'], expected.view(ml_dtypes.bfloat16) if name == 'BFloat16' else expected)
            assert np.shares_memory(tree['a'], tree['b'])
            assert not tree['a'].flags.writeable


def test_names_of_old_versions(tmp_path):
    """Strings of Python 2, parameters and subclasses of tensors by their old functions, storages on a GPU."""
    old = b'(U\x07storagectorch.cuda\nFloatStorage\nU\x010U\x06cuda:0K\x04NtQ'.replace(b'N', b'')
    plain = call('torch._utils', '_rebuild_tensor', old, value(1), value((2,)), value((1,)))
    parameter = call('torch.nn.parameter', 'Parameter', plain) + value((True, False, {})) + b'b'
    subclass = call(
        'torch._tensor', '_rebuild_from_type_v2', named('torch._utils', '_rebuild_tensor'), named('mine', 'Tagged'),
        b'(' + storage() + value(2) + value((1,)) + value((1,)) + b't', value({'tag': 1}),
    )  # fmt: skip
    tree = read_bytes(tmp_path, zipped(b'](' + plain + parameter + subclass + b'e'))
    for array, expected in zip(tree, ([1, 2], [1, 2], [2]), strict=True):
        assert_same_bits(array, np.array(expected, np.float32))


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('protocol', [1, 2, 3, 4, 5])
def test_what_this_torch_saves_is_read(tmp_path, legacy, protocol):
    """The files in tests/reference come from one version of torch; this tests the installed one."""
    torch = pytest.importorskip('torch')
    saved = tensors(torch, DTYPES)
    options = {'_use_new_zipfile_serialization': not legacy, 'pickle_protocol': protocol}
    torch.save(saved, tmp_path / 'a.pt', **options)
    tree = read_torch(tmp_path / 'a.pt')
    for name, array in tree['types'].items():
        assert_same_bits(array, saved['types'][name].view(torch.uint8).numpy().view(DTYPES[name]))
    for key in ('offset', 'transposed', 'strided', 'expanded', 'empty', 'scalar'):
        assert_same_bits(tree[key], saved[key].numpy())
        assert tree[key].strides == saved[key].numpy().strides or key == 'empty'
    assert_same_bits(tree['conjugated'], saved['conjugated'].resolve_conj().numpy())
    assert_same_bits(tree['parameter'], saved['parameter'].detach().numpy())

    torch.save(extras := lightning(torch), tmp_path / 'b.ckpt', **options)
    tree = read_torch(tmp_path / 'b.ckpt')
    for key, moments in extras['optimizer_states'][0]['state'].items():
        for name in moments:
            assert_same_bits(tree['optimizer_states'][0]['state'][key][name], moments[name].numpy())
    assert tree['settings'].state == {'rate': 1e-3}
    assert tree['hyper_parameters'].state['rate'] == 0.1
    assert tree['partial'].args[0].name == 'support.torch_samples.Settings'
    assert_same_bits(tree['history'], extras['history'])


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=f'^{tmp_path}/none.pt: No such file or directory$'):
        read_torch(tmp_path / 'none.pt')
    with pytest.raises(CheckpointError, match='Is a directory'):
        read_torch(str(tmp_path))


# ---- damaged and hostile files ---------------------------------------------------------------------------------------


HUGE = 1 << 62


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (tensor(None, 0, (5,), (1,)), r'shape \[5\] reaches element 4 of a storage of 4'),
        (tensor(None, 1, (4,), (1,)), 'reaches element 4'),
        (tensor(None, 0, (2, 2), (3, 1)), 'reaches element 4'),
        (tensor(None, 0, (2,), (-1,)), 'sizes, strides or offset'),
        (tensor(None, 3, (4,), (-1,)), 'sizes, strides or offset'),
        (tensor(None, -1, (1,), (1,)), 'sizes, strides or offset'),
        (tensor(None, 0, (-1,), (1,)), 'sizes, strides or offset'),
        (tensor(None, 0, (1.0,), (1,)), 'sizes, strides or offset'),
        (tensor(None, 0, (True,), (1,)), 'sizes, strides or offset'),
        (tensor(None, 0, 4, 1), 'the sizes 4 and strides 1'),
        (tensor(None, 0, (2, 2), (1,)), '2 sizes and 1 strides'),
        (tensor(None, 0, (HUGE, HUGE), (HUGE, 1)), 'reaches element'),
        (tensor(None, 0, (HUGE, HUGE), (0, 0)), 'more than the file can hold'),
        (tensor(None, 0, (1 << 40,), (0,)), 'more than the file can hold'),
        (tensor(None, HUGE, (2,), (HUGE,)), 'reaches element'),
        (tensor(None, 0, (1 << 8000,), (1 << 8000,)), 'reaches element an integer of 16000 bits'),
        (tensor(None, 4, (), ()), 'reaches element 4'),
        (tensor(None, 0, (0, HUGE, HUGE), (1, 1, 1)), 'damaged'),
        (tensor(None, 0, (1,) * 100, (1,) * 100), r'sizes \[1, 1, 1, 1, 1, 1, 1, 1, …\]'),
        (tensor(storage(elements=5)), 'storage 0 has 16 bytes; its pickle says 5 of float32'),
        (tensor(storage(elements=HUGE)), 'its pickle says'),
        (tensor(storage(elements=-1)), 'sizes, strides or offset'),
        (tensor(storage(key='1')), 'the zip has no data/1'),
        (tensor(storage(kind='DoubleStorage')), 'its pickle says 4 of float64'),
        (tensor(value(None)), 'has no storage'),
        (tensor(value([1.0, 2, 3, 4])), 'has no storage'),
        (tensor(tensor(None, 0, (4,), (0,))), 'has no storage'),
        (call('torch._utils', '_rebuild_tensor_v2', storage()), 'damaged'),
        (call('torch._utils', '_rebuild_tensor_v3', storage(), *[value(0)] * 6), 'has no storage'),
    ],
)
def test_tensors_beyond_their_storage(tmp_path, pickled, reason):
    check_refused(tmp_path, zipped(value('state_dict') + pickled + b'\x86'), reason)


def test_strides_along_axes_of_length_0_or_1_do_not_matter(tmp_path):
    """Along axes of length 0 or 1 any stride is valid: torch leaves it as some view had it."""
    assert read_bytes(tmp_path, zipped(tensor(None, 3, (1, 1), (HUGE, 1 << 70)))).tolist() == [[3.0]]
    assert read_bytes(tmp_path, zipped(tensor(None, 100, (0, 5), (HUGE, 1)))).shape == (0, 5)


def test_many_conjugated_and_negated_views(tmp_path):
    """The bytes that are computed rather than mapped are bounded by the size of the file."""
    ones = np.ones(1 << 18, '<c8').tobytes()
    store = storage(kind='ComplexFloatStorage', elements=1 << 18)
    lazily = tensor(store, 0, (1 << 18,), (1,), {'conj': True})
    check_refused(tmp_path, zipped(b'(' + lazily * 100 + b't', {'0': ones}), 'many times its size')
    expanded = tensor(store, 0, (1 << 10, 1 << 16), (0, 1), {'neg': True})
    check_refused(tmp_path, zipped(expanded, {'0': ones}), 'many times its size')


def entry(name, data, **attributes):
    info = zipfile.ZipInfo(name)
    for key, attribute in attributes.items():
        setattr(info, key, attribute)
    return info, data


def archive(*entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as target:
        for info, data in entries:
            target.writestr(info, data)
    return buffer.getvalue()


GOOD = zipped(tensor())
PICKLE = b'\x80\x02' + tensor() + b'.'


def changed(data, offset, layout, new, *, mark, nth=0):
    """A zip with one field changed, in its nth local header (PK34) or directory entry (PK12)."""
    position = -1
    for _ in range(nth + 1):
        position = data.index(mark, position + 1)
    out = bytearray(data)
    struct.pack_into(layout, out, position + offset, new)
    return bytes(out)


directory = partial(changed, GOOD, mark=b'PK\1\2', nth=1)
local = partial(changed, GOOD, mark=b'PK\3\4', nth=1)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_zips(tmp_path):
    assert read_bytes(tmp_path, GOOD).tolist() == [0, 1, 2, 3]
    cases = {
        'empty': b'',
        'not a file of torch.save|damaged|cut off': b'\x93NUMPY',
        'not a file of torch.save': b'fLaC and so on',
        'damaged': GOOD[:-30],
        'no data.pkl': archive(entry('a/other', b'')),
        'has no data.pkl': archive(entry('a/data.pkl', PICKLE), entry('b/data.pkl', PICKLE)),
        'the same name': archive(entry('a/data.pkl', PICKLE), entry('a/data.pkl', PICKLE)),
        'TorchScript': zipped(tensor(), **{'constants.pkl': b''}),
        "byte order is b'middle'": zipped(tensor(), byteorder=b'middle'),
        'encrypted': directory(8, '<H', 1),
        'differs from what': local(30, '<B', ord('X')),
    }
    for reason, data in cases.items():
        check_refused(tmp_path, data, reason)
    check_refused(tmp_path, directory(42, '<I', 7), 'overlaps|not where')
    check_refused(tmp_path, directory(42, '<I', 0), 'overlaps|differs from what')
    check_refused(tmp_path, directory(42, '<I', 0xFFFFFFF0), 'not where|damaged')
    check_refused(tmp_path, directory(20, '<I', 1 << 30), 'differs from what|overlaps|cut off')
    check_refused(tmp_path, directory(24, '<I', 1 << 30), 'differs from what|two sizes')
    check_refused(tmp_path, directory(10, '<H', 8), 'differs from what')
    check_refused(tmp_path, local(8, '<H', 8), 'differs from what')
    check_refused(tmp_path, local(28, '<H', 60_000), 'cut off')
    check_refused(tmp_path, local(26, '<H', 3), 'differs from what')
    check_refused(tmp_path, local(0, '<I', 0), 'not where')
    both = changed(directory(10, '<H', 14), 8, '<H', 14, mark=b'PK\3\4', nth=1)
    check_refused(tmp_path, both, 'is compressed: unpack')


def test_a_directory_of_millions(tmp_path):
    """Each entry of 46 bytes would take half a kilobyte of memory."""
    entries = GOOD[GOOD.index(b'PK\1\2') : GOOD.index(b'PK\5\6')]
    many = entries * (20_000_000 // len(entries))
    end = struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, len(many), GOOD.index(entries), 0)
    check_refused(tmp_path, GOOD[: GOOD.index(entries)] + many + end, 'too many entries')


def test_zip_bombs(tmp_path):
    """Deflated files are read up to a limit, and false sizes are refused."""
    zeros = {'0': bytes(1 << 24)}
    deflated = partial(zipped, method=zipfile.ZIP_DEFLATED)
    tree = read_bytes(tmp_path, deflated(tensor(storage(elements=1 << 22), 0, (1 << 22,), (1,)), zeros))
    assert tree.shape == (1 << 22,)
    many = {str(i): zeros['0'] for i in range(8)}
    check_refused(tmp_path, deflated(b'(' + b''.join(map(storage, many)) + b't', many), 'many times its size')
    check_refused(tmp_path, deflated(value('x' * 100_000_000)), 'many times its size')
    good = deflated(tensor(), {'0': bytes(16)})
    lying = changed(changed(good, 24, '<I', 8, mark=b'PK\1\2', nth=1), 22, '<I', 8, mark=b'PK\3\4', nth=1)
    check_refused(tmp_path, lying, 'inflates to another size')


def test_legacy_files(tmp_path):
    store = b'(' + value('storage') + named('torch', 'FloatStorage') + value('k') + value('cpu') + value(4) + b'NtQ'
    numbers = np.arange(4, dtype='<f4').tobytes()
    stated = struct.pack('<q', 4)
    good = legacy(tensor(store), value(['k']), tail=stated + numbers)
    assert read_bytes(tmp_path, good).tolist() == [0, 1, 2, 3]

    def viewed(first, count):
        view = value(('v', first, count))
        return legacy(tensor(store[:-3] + view + b'tQ', 0, (2,), (1,)), value(['k']), tail=stated + numbers)

    assert read_bytes(tmp_path, viewed(2, 2)).tolist() == [2, 3]
    module = b'(' + value('module') + named('mine', 'Net') + b'NNtQ)R' + value({'w': 1}) + b'b'
    assert read_bytes(tmp_path, legacy(module, value([]))).name == 'mine.Net'

    check_refused(tmp_path, viewed(3, 2), 'smaller than')
    check_refused(tmp_path, viewed(-1, 2), 'sizes, strides or offset')
    check_refused(tmp_path, good[:-1], 'cut off in storage k')
    check_refused(
        tmp_path, legacy(tensor(store), value(['k']), tail=struct.pack('<q', 1 << 60) + numbers), 'another length'
    )
    check_refused(tmp_path, legacy(tensor(store), value([]), tail=stated + numbers), 'no storage k')
    check_refused(
        tmp_path,
        legacy(tensor(store), value(['k', 'k']), tail=(stated + numbers) * 2),
        'its list of storages has an unexpected k',
    )
    check_refused(tmp_path, legacy(tensor(store), value({'k': 1})), 'list of storages')
    check_refused(tmp_path, legacy(tensor(store, 0, (5,)), value(['k']), tail=stated + numbers), 'reaches element 4')
    check_refused(tmp_path, legacy(tensor(store.replace(value(4), value(HUGE))), value(['k']), tail=stated), 'cut off')
    check_refused(tmp_path, legacy(tensor()), 'refers to something that is not a storage')
    check_refused(tmp_path, pickle.dumps({'a': 1}), 'not a file of torch.save')
    check_refused(tmp_path, pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(7), 'version 7')
    check_refused(tmp_path, bytes(257) + b'ustar' + bytes(300), 'a tar file')
    check_refused(tmp_path, (REFERENCE / 'torch_script.pt').read_bytes(), 'TorchScript')


def test_every_cut_of_a_file(tmp_path):
    """A download may break off anywhere."""
    for name in ('torch_zip16.pt', 'torch_legacy.pt'):
        whole = (REFERENCE / name).read_bytes()
        for size in range(0, len(whole), 97):
            with pytest.raises(CheckpointError):
                read_bytes(tmp_path, whole[:size])
