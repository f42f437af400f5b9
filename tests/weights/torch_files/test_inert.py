"""Which names are refused, and what messages show of untrusted values."""

import pytest
from support.torch_pickles import check_refused, named, read_bytes, value, zipped

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files.inert import Inert, check_tree, excerpt, key_size

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
def test_names_that_could_run_code_are_refused(tmp_path, name):
    """A name is refused even if it is not called, or is the class of an object, in every spelling of a pickle."""
    module, _, function = name.rpartition('.')
    reference = named(module, function)
    stack = value(module) + value(function) + b'\x93'
    instance = b'(i' + reference[1:]
    for pickled in (reference, stack, instance, reference + b')\x81', b'(' + reference + b'o', reference + b')}\x92'):
        check_refused(tmp_path, zipped(pickled), 'refused: its pickle asks for')


@pytest.mark.parametrize('name', ['a.b', 'Outer.Inner', '__class__.__base__', '', 'a b', '<lambda>', 'x\ny', 'é.x'])
def test_dotted_and_malformed_names(tmp_path, name):
    for module in ('mine', 'torch._utils', 'collections'):
        known = named('mine.a', 'b') if name == 'a.b' else b''
        check_refused(tmp_path, zipped(known + value(module) + value(name) + b'\x93'), 'dotted or malformed name')
    check_refused(tmp_path, zipped(value(f'..{name}') + value('x') + b'\x93'), 'dotted or malformed name')


@pytest.mark.parametrize('name', ['builtins.len', 'builtins.print', 'operator.itemgetter', 'signal.Signals'])
def test_harmless_functions_in_hyper_parameters_are_inert(tmp_path, name):
    module, _, function = name.rpartition('.')
    assert read_bytes(tmp_path, zipped(named(module, function))).name == name


@pytest.mark.parametrize(
    ('given', 'text'),
    [
        ('a\nb', r'a\nb'),
        ('x' * 100, 'x' * 77 + '...'),
        (1 << 64, 'an integer of 65 bits'),
        ([1, 'a', [2]], '[1, a, list]'),
        ((0,) * 9, '[0, 0, 0, 0, 0, 0, 0, 0, …]'),
        (None, 'None'),
        (b'\xff', r"b'\xff'"),
        (Inert('mine.C'), 'Inert'),
    ],
)
def test_an_excerpt_is_short_and_printable(given, text):
    assert excerpt(given) == text


def test_a_key_unfolds_to_its_values():
    assert key_size('a') == 1
    assert key_size((1, (2, 'a'), frozenset({3}))) == 7
    for bad in (1 << 70, 1j, [], ((),) * 1001):
        with pytest.raises(CheckpointError, match='key'):
            key_size(bad)


def test_a_tree_may_repeat_but_not_contain_itself():
    shared = [1]
    check_tree({'a': shared, 'b': (shared, shared)})
    one, other = Inert('mine.C', ()), Inert('mine.C', ())
    one.state, other.state = other, one  # objects may refer to each other
    check_tree([one])
    shared.append((shared,))
    with pytest.raises(CheckpointError, match='contains itself'):
        check_tree([shared])
