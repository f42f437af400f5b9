"""PyTorch files as an attacker would write them, and damaged ones: each is refused in one line, and nothing runs."""

import importlib
import io
import os
import pickle
import re
import struct
import time
import zipfile
from functools import partial

import numpy as np
import pytest
from support.paths import REFERENCE
from support.torch_samples import call, named, storage, tensor, value, zipped

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import Inert, read_torch, unpickler

NDARRAY = named('numpy', 'ndarray')


def dtype(code='f4', state=(3, '<', None, None, None, -1, -1, 0)):
    return call('numpy', 'dtype', value(code), value(False), value(True)) + value(state) + b'b'


def array(state, kind=NDARRAY):
    return call('numpy.core.multiarray', '_reconstruct', kind, value((0,)), value('b')) + state + b'b'


def array_state(shape, kind, data):
    return b'(' + value(1) + value(shape) + kind + value(False) + value(data) + b't'


def legacy(*pickles, tail=b''):
    start = (pickle.dumps(thing, 2) for thing in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}))
    return b''.join(start) + b''.join(b'\x80\x02' + p + b'.' for p in pickles) + tail


def read(tmp_path, data):
    path = tmp_path / 'file.pt'
    path.write_bytes(data)
    return read_torch(path)


def refused(tmp_path, data, reason):
    """One line, which begins with the file; soon."""
    path = tmp_path / 'file.pt'
    path.write_bytes(data)
    started = time.process_time()  # another program that keeps the machine busy does not count
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    assert time.process_time() - started < 30  # the worst takes three seconds on a quiet machine
    message = str(caught.value)
    assert message.startswith(f'{path}: ')
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    assert re.search(reason, message), message


class Reduce:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
    ('function', 'args'),
    [
        (os.system, ('touch {canary}',)),
        (eval, ('open("{canary}", "w")',)),
        (exec, ('open("{canary}", "w")',)),
        (getattr, (os, 'system')),
        (open, ('{canary}', 'w')),
        (__import__, ('canary',)),
        (pickle.loads, (b'cos\nsystem\n.',)),
        (importlib.import_module, ('canary',)),
        (compile, ('1', 'x', 'eval')),
    ],
)
def test_what_runs_code_is_refused_and_does_not_run(tmp_path, function, args, protocol):
    canary = tmp_path / 'canary'
    args = tuple(a.format(canary=canary) if isinstance(a, str) else 'os' if a is os else a for a in args)
    hostile = pickle.dumps({'state_dict': Reduce(function, args)}, protocol)
    body = hostile[2:-1] if protocol >= 2 else hostile[:-1]
    for data in (zipped(body), legacy(body, b']')):
        refused(tmp_path, data, 'refused: its pickle asks for [a-z_]+.[a-z_]+, which could run code$')
    refused(tmp_path, hostile, 'could run code|not a file of torch.save')
    assert not canary.exists()


NAMES = [
    *(f'{m}.system' for m in ('os', 'posix', 'nt')),
    *(f'builtins.{n}' for n in ('eval', 'getattr', 'setattr', 'globals', 'map', 'vars', '__build_class__')),
    *('__builtin__.eval', '__builtin__.execfile', 'operator.attrgetter', '_operator.methodcaller', 'functools.reduce'),
    *('subprocess.Popen', 'sys.modules', 'shutil.rmtree', 'socket.socket', 'ctypes.CDLL', 'runpy.run_path'),
    *('multiprocessing.util.spawnv_passfds', 'torch.hub.load', 'torch.load', 'torch.jit.load', 'numpy.load'),
    *('torch.storage._load_from_bytes', 'torch.utils.cpp_extension.load', 'types.FunctionType', 'pickle._loads'),
    *('cloudpickle.cloudpickle._make_function', 'numpy.testing._private.utils.runstring', 'code.interact', 'pip.main'),
]


@pytest.mark.parametrize('name', NAMES)
def test_even_the_name_is_refused(tmp_path, name):
    """Uncalled, as the class of an object, and however the pickle spells it."""
    module, _, function = name.rpartition('.')
    reference = named(module, function)
    stack = value(module) + value(function) + b'\x93'
    instance = b'(i' + reference[1:]
    for pickled in (reference, stack, instance, reference + b')\x81', b'(' + reference + b'o', reference + b')}\x92'):
        refused(tmp_path, zipped(pickled), 'refused: its pickle asks for')


@pytest.mark.parametrize('name', ['a.b', 'Outer.Inner', '__class__.__base__', '', 'a b', '<lambda>', 'x\ny', 'é.x'])
def test_dotted_and_malformed_names(tmp_path, name):
    for module in ('mine', 'torch._utils', 'collections'):
        known = named('mine.a', 'b') if name == 'a.b' else b''
        refused(tmp_path, zipped(known + value(module) + value(name) + b'\x93'), 'dotted or malformed name')
    refused(tmp_path, zipped(value(f'..{name}') + value('x') + b'\x93'), 'dotted or malformed name')


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (call('mine', 'f') + value(1) + b'\x85R', 'calls mine.f'),  # a call of what a call made
        (value(1) + b')R', 'calls int'),
        (tensor() + b')R', 'calls ndarray'),
        (named('mine', 'f') + b']R', 'no arguments'),
        (named('mine', 'C') + value({'__class__': 1}) + b'b', 'assigns to mine.C'),
        (named('torch', 'FloatStorage') + value('dtype') + value('x') + b's', 'assigns to torch.FloatStorage'),
        (value((1,)) + value(1) + b'a', 'assigns to tuple'),
        (value({}) + value({'__class__': 1}) + b'b', 'assigns to dict'),
        (value(('storage', 1)) + b'Q', 'refers to what is no storage'),
        (value('storage') + b'Q', 'refers to what is no storage'),
        (value(None) + b'Q', 'refers to what is no storage'),
        (named('torch', 'FloatStorage') + b'Q', 'refers to what is no storage'),
        (storage('../data.pkl'), 'no data/../data.pkl'),
        (storage('/etc/passwd'), 'no data//etc/passwd'),
        (storage(5), 'without a key'),
        (storage(kind='Tensor'), 'a storage of type Tensor'),
        (b'(' + value('storage') + named('mine', 'FloatStorage') + value('0') * 3 + b'tQ', 'storage of type'),
        (b'Pstorage\n', 'no PyTorch file has'),
        (b'\x82\x01', 'no PyTorch file has'),
        (b'\x97', 'no PyTorch file has'),
        (b'\xff', 'no pickle instruction 0xff'),
        (b'\x80\x06N', 'protocol 6'),
        (b'h\x05', 'refers to a value 5'),
        (b'j\xff\xff\xff\xff', 'refers to a value'),
        (b'a', 'damaged'),
        (b't', 'damaged'),
        (b'\x87', 'more than there is'),
        (b'', 'damaged'),
        (b'X\xff\xff\xff\xffabc', 'cut off'),
        (b'\x8e' + b'\xff' * 8 + b'abc', 'cut off'),
        (b'\x96' + b'\xff' * 8 + b'abc', 'cut off'),
        (b'\x8b\xff\xff\xff\x7fabc', 'an integer of'),
        (b'L' + b'9' * 5000 + b'L\n', 'damaged'),
        (b'Iabc\n', 'damaged'),
        (b'X\x02\0\0\0\xff\xfe', 'damaged'),
        (call('builtins', 'bytearray', value(1 << 60)), 'made of something else'),
        (call('builtins', 'bytearray', value((1, 2))), 'made of something else'),
        (call('_codecs', 'encode', value('x'), value('rot13')), 'made of something else'),
        (call('builtins', 'set', value('x')), 'a set of what'),
        (call('builtins', 'complex', value('1j'), value('1')), 'no numbers'),
        (call('torch', 'Size', value((1, -1))), 'sizes'),
    ],
)  # fmt: skip
def test_strange_pickles(tmp_path, pickled, reason):
    refused(tmp_path, zipped(pickled), reason)


BIG = 1 << 62


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
        (tensor(None, 0, (BIG, BIG), (BIG, 1)), 'reaches element'),
        (tensor(None, 0, (BIG, BIG), (0, 0)), 'more than the file can hold'),
        (tensor(None, 0, (1 << 40,), (0,)), 'more than the file can hold'),
        (tensor(None, BIG, (2,), (BIG,)), 'reaches element'),
        (tensor(None, 0, (1 << 8000,), (1 << 8000,)), 'reaches element an integer of 16000 bits'),
        (tensor(None, 4, (), ()), 'reaches element 4'),
        (tensor(None, 0, (0, BIG, BIG), (1, 1, 1)), 'damaged'),
        (tensor(None, 0, (1,) * 100, (1,) * 100), r'sizes \[1, 1, 1, 1, 1, 1, 1, 1, …\]'),
        (tensor(storage(elements=5)), 'storage 0 has 16 bytes; its pickle says 5 of float32'),
        (tensor(storage(elements=BIG)), 'its pickle says'),
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
    refused(tmp_path, zipped(value('state_dict') + pickled + b'\x86'), reason)


def test_strides_of_single_and_no_elements_do_not_matter(tmp_path):
    """They are legal whatever they are: torch leaves them as some view had them."""
    assert read(tmp_path, zipped(tensor(None, 3, (1, 1), (BIG, 1 << 70)))).tolist() == [[3.0]]
    assert read(tmp_path, zipped(tensor(None, 100, (0, 5), (BIG, 1)))).shape == (0, 5)


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (array(array_state((2,), dtype(), b'abc')), 'damaged'),
        (array(array_state((BIG,), dtype(), b'abcd')), 'damaged'),
        (array(array_state((-1,), dtype(), b'abcd')), 'without a shape'),
        (array(array_state([1], dtype(), b'abcd')), 'without a shape'),
        (array(value((1, 2))), 'damaged'),
        (array(array_state((1,), dtype('U1'), b'\xff\xff\xff\xff')), 'no known letters'),
        (call('numpy.core.multiarray', 'scalar', dtype(), value(b'abc')), 'damaged'),
        (call('numpy.core.multiarray', 'scalar', dtype(), value(b'abcdefgh')), 'damaged'),
        (array(array_state((1,), dtype(), b'abcd')) + value((1, (2,), None, 0, b'')) + b'bq\0', None),
    ],
)
def test_numpy_arrays_with_false_states(tmp_path, pickled, reason):
    if reason:
        refused(tmp_path, zipped(pickled), reason)
    else:  # a second state, for an array that is one already
        assert read(tmp_path, zipped(pickled)).tobytes() == b'abcd'


@pytest.mark.parametrize(
    'pickled',
    [
        array(array_state((1,), dtype('O8', (3, '|', None, None, None, -1, -1, 63)), [1])),
        array(array_state((1,), dtype('V8', (3, '|', None, ('a',), {'a': 1}, 8, 1, 16)), b'abcdefgh')),
        array(array_state((1,), dtype('f4,O'), b'abcdefgh')),
        array(array_state((1,), dtype('U999999999'), b'abcd')),
        array(array_state((1,), named('mine', 'Type'), b'abcd')),
        array(array_state((1,), dtype(), b'abcd'), named('numpy', 'matrix')),
        array(array_state((1,), dtype(), b'abcd'), named('mine', 'Array')),
        call('numpy.core.multiarray', 'scalar', dtype('O'), value(1)),
        call('numpy', 'ndarray', value((1 << 40,))),
        call('numpy', 'zeros', value(1 << 40)),
        call('numpy', 'memmap_', value('/etc/passwd')),
        dtype('f4', ('x', 1)),
    ],
)
def test_other_numpy_objects_are_inert(tmp_path, pickled):
    assert type(read(tmp_path, zipped(pickled))) is Inert


@pytest.mark.parametrize('name', ['builtins.len', 'builtins.print', 'operator.itemgetter', 'signal.Signals'])
def test_harmless_functions_in_hyper_parameters_are_inert(tmp_path, name):
    module, _, function = name.rpartition('.')
    path = tmp_path / 'x.pt'
    path.write_bytes(zipped(named(module, function)))
    assert read_torch(path).name == name


def test_tricks_with_inert_objects(tmp_path):
    """State, attributes and items that mean something to Python mean nothing here."""
    state = {'__class__': 1, '__reduce__': 2, 'name': 'x', 'args': None, '__setstate__': 3}
    trick = call('mine', 'C') + b'q\0' + value(state) + b'b' + b'h\0' + value('__class__') + value(1) + b's0'
    tree = read(tmp_path, zipped(trick))
    assert (type(tree), tree.name, tree.args, tree.state) == (Inert, 'mine.C', (), state)
    assert tree.mapping == {'__class__': 1}
    with pytest.raises(TypeError):
        tree()
    # An OrderedDict keeps its methods.
    tree = read(tmp_path, zipped(call('collections', 'OrderedDict') + value({'items': 1, 'keys': 2}) + b'b'))
    assert list(tree.items()) == []
    assert vars(tree) == {}
    # Objects that refer to themselves and to each other end a walk.
    loop = call('mine', 'C') + b'q\0}' + value('self') + b'h\0sb'
    assert read(tmp_path, zipped(loop)).state['self'].name == 'mine.C'


def nested(depth, one, other):
    return one * depth + other * depth


LAUGHS = b''.join(b'(' + (value('ha') if not i else b'h' + bytes([i - 1])) * 10 + b'lq' + bytes([i]) for i in range(99))
ENCODED = named('_codecs', 'encode') + b'h\0' + value('latin1') + b'\x86R'
ORDERED = b'q\1' + call('collections', 'OrderedDict', b'h\1')
PAIRS = value('ha') + b'2\x86' * 100


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (nested(100_000, b'(', b'l'), 'nested more than 200 deep'),
        (nested(100_000, b'}K\1', b's'), 'nested more than 200 deep|damaged|no instr|assigns'),
        (value(1) + b'\x85' * 100_000, 'nested more than 200 deep'),
        (value(1) + b'\x85' * 100_000 + b'cmine\nC\n2R0', 'nested more than 200 deep|calls|no arguments'),
        (b'}' + value(1) + b'\x85' * 100_000 + b'Ns', 'too large a key'),
        (b'}' + PAIRS + b'Ns', 'too large a key'),
        (b'\x8f(' + PAIRS + b'\x90', 'too large a key'),
        (b'(' + PAIRS + b'\x91', 'too large a key'),
        (PAIRS, 'unfolds to more'),
        (call('torch', 'Size', PAIRS), r'sizes, strides or offset \[tuple, tuple\]'),
        (call('torch', 'Size', b'(' + PAIRS + b'l'), r'offset \[tuple\]'),
        (b'(' + value('storage') + PAIRS + value('0') * 2 + value(1) + b'tQ', 'a storage of type'),
        (b'(' + PAIRS + value('0') * 3 + value(1) + b'tQ', 'refers to what is no storage'),
        (tensor(None, 0, (1 << 8000,) * 60, (0,) * 60), 'more than the file'),
        (call('torch._utils', '_rebuild_tensor', storage(), value(0), value((2,) * 100_000), value(())), 'the sizes'),
        (b'](' + b'K\1' * 100_000 + b'eq\0(' + b'h\0' * 100_000 + b'l' + ORDERED, 'no pairs'),
        (LAUGHS, 'unfolds to more'),
        (b']q\0h\0a', 'contains itself'),
        (b']q\0h\0\x85a', 'contains itself'),
        (b'}q\0K\1h\0s', 'contains itself'),
        (b'}' + value(1j) + b'Ns', 'a key of type complex'),
        (b'}' + value(1 << 70) + b'Ns', 'beyond 64 bits'),
        (b'}]Ns', 'a key of type list'),
        (b'}' + tensor() + b'Ns', 'a key of type ndarray'),
        (b']' * 500_000, 'too long'),
        (b'\x8f' * 500_000, 'too long'),
        (named('mine', 'C') + b'q\0' + b'h\0)R' * 100_000, 'too long'),
        (b'](' + b'K\1' * 200_000 + b'eq\0' + (named('builtins', 'set') + b'h\0\x85R0') * 900, 'too many keys|long'),
        (value('x' * 1_000_000) + b'q\0' + ENCODED * 900, 'too long'),
        (b'}' + b''.join(value((i,)) + b'N' for i in range(2_000)).join((b'(', b'u')), 'too many keys'),
        (named('copyreg', '__newobj__') + b'(' + named('copyreg', '__newobj__') * 5_000 + b'tR', 'damaged'),
    ],
    ids=range(31),
)  # fmt: skip
def test_bombs(tmp_path, pickled, reason, monkeypatch):
    """For the stack, the memory or the clock."""
    monkeypatch.setattr(unpickler, '_MAX_WORK', 400_000)  # a tenth, to be done in a tenth of the time
    refused(tmp_path, zipped(pickled), reason)


def test_conjugated_and_turned_around_again_and_again(tmp_path):
    """What is computed rather than mapped is bounded by the size of the file."""
    ones = np.ones(1 << 18, '<c8').tobytes()
    store = storage(kind='ComplexFloatStorage', elements=1 << 18)
    lazily = tensor(store, 0, (1 << 18,), (1,), {'conj': True})
    refused(tmp_path, zipped(b'(' + lazily * 100 + b't', {'0': ones}), 'many times its size')
    expanded = tensor(store, 0, (1 << 10, 1 << 16), (0, 1), {'neg': True})
    refused(tmp_path, zipped(expanded, {'0': ones}), 'many times its size')


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
    """A zip with a field of its nth local header (PK34) or directory entry (PK12) set."""
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
    assert read(tmp_path, GOOD).tolist() == [0, 1, 2, 3]
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
        'another one': local(30, '<B', ord('X')),
    }
    for reason, data in cases.items():
        refused(tmp_path, data, reason)
    refused(tmp_path, directory(42, '<I', 7), 'overlaps|not where')
    refused(tmp_path, directory(42, '<I', 0), 'overlaps|another one')
    refused(tmp_path, directory(42, '<I', 0xFFFFFFF0), 'not where|damaged')
    refused(tmp_path, directory(20, '<I', 1 << 30), 'another one|overlaps|cut off')
    refused(tmp_path, directory(24, '<I', 1 << 30), 'another one|two sizes')
    refused(tmp_path, directory(10, '<H', 8), 'another one')
    refused(tmp_path, local(8, '<H', 8), 'another one')
    refused(tmp_path, local(28, '<H', 60_000), 'cut off')
    refused(tmp_path, local(26, '<H', 3), 'another one')
    refused(tmp_path, local(0, '<I', 0), 'not where')
    both = changed(directory(10, '<H', 14), 8, '<H', 14, mark=b'PK\3\4', nth=1)
    refused(tmp_path, both, 'is compressed: unpack')


def test_a_directory_of_millions(tmp_path):
    """Half a kilobyte of memory for each entry of 46 bytes."""
    entries = GOOD[GOOD.index(b'PK\1\2') : GOOD.index(b'PK\5\6')]
    many = entries * (20_000_000 // len(entries))
    end = struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, len(many), GOOD.index(entries), 0)
    refused(tmp_path, GOOD[: GOOD.index(entries)] + many + end, 'too many entries')


def test_zip_bombs(tmp_path):
    """Deflated files are read, up to a limit; sizes that are not true are not believed."""
    zeros = {'0': bytes(1 << 24)}
    deflated = partial(zipped, method=zipfile.ZIP_DEFLATED)
    tree = read(tmp_path, deflated(tensor(storage(elements=1 << 22), 0, (1 << 22,), (1,)), zeros))
    assert tree.shape == (1 << 22,)
    many = {str(i): zeros['0'] for i in range(8)}
    refused(tmp_path, deflated(b'(' + b''.join(map(storage, many)) + b't', many), 'many times its size')
    refused(tmp_path, deflated(value('x' * 100_000_000)), 'many times its size')
    good = deflated(tensor(), {'0': bytes(16)})
    lying = changed(changed(good, 24, '<I', 8, mark=b'PK\1\2', nth=1), 22, '<I', 8, mark=b'PK\3\4', nth=1)
    refused(tmp_path, lying, 'inflates to another size')


def test_legacy_files(tmp_path):
    store = b'(' + value('storage') + named('torch', 'FloatStorage') + value('k') + value('cpu') + value(4) + b'NtQ'
    numbers = np.arange(4, dtype='<f4').tobytes()
    stated = struct.pack('<q', 4)
    good = legacy(tensor(store), value(['k']), tail=stated + numbers)
    assert read(tmp_path, good).tolist() == [0, 1, 2, 3]

    def viewed(first, count):
        view = value(('v', first, count))
        return legacy(tensor(store[:-3] + view + b'tQ', 0, (2,), (1,)), value(['k']), tail=stated + numbers)

    assert read(tmp_path, viewed(2, 2)).tolist() == [2, 3]
    module = b'(' + value('module') + named('mine', 'Net') + b'NNtQ)R' + value({'w': 1}) + b'b'
    assert read(tmp_path, legacy(module, value([]))).name == 'mine.Net'

    refused(tmp_path, viewed(3, 2), 'smaller than')
    refused(tmp_path, viewed(-1, 2), 'sizes, strides or offset')
    refused(tmp_path, good[:-1], 'cut off in storage k')
    refused(tmp_path, legacy(tensor(store), value(['k']), tail=struct.pack('<q', 1 << 60) + numbers), 'another length')
    refused(tmp_path, legacy(tensor(store), value([]), tail=stated + numbers), 'no storage k')
    refused(tmp_path, legacy(tensor(store), value(['k', 'k']), tail=(stated + numbers) * 2), 'its list of storages')
    refused(tmp_path, legacy(tensor(store), value({'k': 1})), 'list of storages')
    refused(tmp_path, legacy(tensor(store, 0, (5,)), value(['k']), tail=stated + numbers), 'reaches element 4')
    refused(tmp_path, legacy(tensor(store.replace(value(4), value(BIG))), value(['k']), tail=stated), 'cut off')
    refused(tmp_path, legacy(tensor()), 'refers to what is no storage')
    refused(tmp_path, pickle.dumps({'a': 1}), 'not a file of torch.save')
    refused(tmp_path, pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(7), 'version 7')
    refused(tmp_path, bytes(257) + b'ustar' + bytes(300), 'a tar file')
    refused(tmp_path, (REFERENCE / 'torch_script.pt').read_bytes(), 'TorchScript')


def test_every_cut_of_a_file(tmp_path):
    """A download that broke off anywhere."""
    for name in ('torch_zip16.pt', 'torch_legacy.pt'):
        whole = (REFERENCE / name).read_bytes()
        for size in range(0, len(whole), 97):
            with pytest.raises(CheckpointError):
                read(tmp_path, whole[:size])
