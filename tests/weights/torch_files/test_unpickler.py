"""Pickles as an attacker would write them: each is refused in one line, and nothing runs."""

import importlib
import os
import pickle

import pytest
from support.torch_pickles import call, check_refused, legacy, named, read_bytes, storage, tensor, value, zipped

from audiosep_jax.weights.torch_files import unpickler
from audiosep_jax.weights.torch_files.inert import Inert


def test_reading_imports_nothing(tmp_path, monkeypatch):
    """Not even a module that could be imported is imported."""
    (tmp_path / 'canary.py').write_text('raise SystemExit("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    tree = read_bytes(tmp_path, zipped(call('canary', 'Bird', value(1)) + value({'a': 1}) + b'b'))
    assert (tree.name, tree.args, tree.state) == ('canary.Bird', (1,), {'a': 1})


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
        check_refused(tmp_path, data, 'refused: its pickle asks for [a-z_]+.[a-z_]+, which could run code$')
    check_refused(tmp_path, hostile, 'could run code|not a file of torch.save')
    assert not canary.exists()


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (call('mine', 'f') + value(1) + b'\x85R', 'calls mine.f'),  # a call of the result of a call
        (value(1) + b')R', 'calls int'),
        (tensor() + b')R', 'calls ndarray'),
        (named('mine', 'f') + b']R', 'without a tuple of arguments'),
        (named('mine', 'C') + value({'__class__': 1}) + b'b', 'assigns to mine.C'),
        (named('torch', 'FloatStorage') + value('dtype') + value('x') + b's', 'assigns to torch.FloatStorage'),
        (value((1,)) + value(1) + b'a', 'assigns to tuple'),
        (value({}) + value({'__class__': 1}) + b'b', 'assigns to dict'),
        (value(('storage', 1)) + b'Q', 'refers to something that is not a storage'),
        (value('storage') + b'Q', 'refers to something that is not a storage'),
        (value(None) + b'Q', 'refers to something that is not a storage'),
        (named('torch', 'FloatStorage') + b'Q', 'refers to something that is not a storage'),
        (storage('../data.pkl'), 'no data/../data.pkl'),
        (storage('/etc/passwd'), 'no data//etc/passwd'),
        (storage(5), 'without a key'),
        (storage(kind='Tensor'), 'a storage of type Tensor'),
        (b'(' + value('storage') + named('mine', 'FloatStorage') + value('0') * 3 + b'tQ', 'storage of type'),
        (b'Pstorage\n', 'which no PyTorch file has'),
        (b'\x82\x01', 'which no PyTorch file has'),
        (b'\x97', 'which no PyTorch file has'),
        (b'\xff', 'no pickle instruction 0xff'),
        (b'\x80\x06N', 'protocol 6'),
        (b'h\x05', 'refers to a value 5'),
        (b'j\xff\xff\xff\xff', 'refers to a value'),
        (b'a', 'damaged'),
        (b't', 'damaged'),
        (b'\x87', 'more values from the stack than there are'),
        (b'', 'damaged'),
        (b'X\xff\xff\xff\xffabc', 'cut off'),
        (b'\x8e' + b'\xff' * 8 + b'abc', 'cut off'),
        (b'\x96' + b'\xff' * 8 + b'abc', 'cut off'),
        (b'\x8b\xff\xff\xff\x7fabc', 'an integer of'),
        (b'L' + b'9' * 5000 + b'L\n', 'damaged'),
        (b'Iabc\n', 'damaged'),
        (b'X\x02\0\0\0\xff\xfe', 'damaged'),
        (call('builtins', 'bytearray', value(1 << 60)), 'not made from a string'),
        (call('builtins', 'bytearray', value((1, 2))), 'not made from a string'),
        (call('_codecs', 'encode', value('x'), value('rot13')), 'not made from a string'),
        (call('builtins', 'set', value('x')), 'a set that is not made from a list'),
        (call('builtins', 'complex', value('1j'), value('1')), 'not made from two numbers'),
        (call('torch', 'Size', value((1, -1))), 'sizes'),
    ],
)  # fmt: skip
def test_strange_pickles(tmp_path, pickled, reason):
    check_refused(tmp_path, zipped(pickled), reason)


def test_tricks_with_inert_objects(tmp_path):
    """State, attributes and items that are special to Python have no effect here."""
    state = {'__class__': 1, '__reduce__': 2, 'name': 'x', 'args': None, '__setstate__': 3}
    trick = call('mine', 'C') + b'q\0' + value(state) + b'b' + b'h\0' + value('__class__') + value(1) + b's0'
    tree = read_bytes(tmp_path, zipped(trick))
    assert (type(tree), tree.name, tree.args, tree.state) == (Inert, 'mine.C', (), state)
    assert tree.mapping == {'__class__': 1}
    with pytest.raises(TypeError):
        tree()
    # An OrderedDict keeps its methods.
    tree = read_bytes(tmp_path, zipped(call('collections', 'OrderedDict') + value({'items': 1, 'keys': 2}) + b'b'))
    assert list(tree.items()) == []
    assert vars(tree) == {}
    # An object that refers to itself does not make the walk through the result endless.
    loop = call('mine', 'C') + b'q\0}' + value('self') + b'h\0sb'
    assert read_bytes(tmp_path, zipped(loop)).state['self'].name == 'mine.C'


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
        (value(1) + b'\x85' * 100_000 + b'cmine\nC\n2R0', 'nested more than 200 deep|calls|without a tuple'),
        (b'}' + value(1) + b'\x85' * 100_000 + b'Ns', 'too large a key'),
        (b'}' + PAIRS + b'Ns', 'too large a key'),
        (b'\x8f(' + PAIRS + b'\x90', 'too large a key'),
        (b'(' + PAIRS + b'\x91', 'too large a key'),
        (PAIRS, 'unfolds to more'),
        (call('torch', 'Size', PAIRS), r'sizes, strides or offset \[tuple, tuple\]'),
        (call('torch', 'Size', b'(' + PAIRS + b'l'), r'offset \[tuple\]'),
        (b'(' + value('storage') + PAIRS + value('0') * 2 + value(1) + b'tQ', 'a storage of type'),
        (b'(' + PAIRS + value('0') * 3 + value(1) + b'tQ', 'refers to something that is not a storage'),
        (tensor(None, 0, (1 << 8000,) * 60, (0,) * 60), 'more than the file'),
        (call('torch._utils', '_rebuild_tensor', storage(), value(0), value((2,) * 100_000), value(())), 'the sizes'),
        (b'](' + b'K\1' * 100_000 + b'eq\0(' + b'h\0' * 100_000 + b'l' + ORDERED, 'not made from pairs'),
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
    """Pickles that would exhaust the stack, the memory or the time."""
    monkeypatch.setattr(unpickler, '_MAX_WORK', 400_000)  # a tenth of the limit takes a tenth of the time
    check_refused(tmp_path, zipped(pickled), reason)
