"""Pickles read as data, whatever they ask for: nothing that a pickle names is imported or called.

A pickle is a program for a small stack machine, and Python's own machine imports and calls what the program names. This
one knows the whole language (protocols 0 to 5) and has no such instruction: a name becomes an `Inert` value, a call of
it an `Inert` with the arguments, and only the names in a closed list are rebuilt, by functions of this package:

    plain values        dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex, bool, None
    collections         OrderedDict; defaultdict and Counter as plain dicts (a default factory would be a call)
    numpy               numbers, strings and arrays of them; arrays of Python objects stay inert
    what the caller adds  (`calls`), for example tensors

What no checkpoint has a reason to name is refused (`inert`: where the line is, and why).

A hostile pickle may also aim at the memory or the clock. Values are bounded by the length of the pickle, instructions
and copies by a budget; what is hashed must be small and flat (hashing nested tuples is exponential, and overflows the C
stack); and the result contains itself nowhere, is not deep, and is not much larger unfolded than it is in memory.
"""

import codecs
import mmap
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import numpy_values
from audiosep_jax.weights.torch_files.inert import Inert, check_name, check_shape, key_size, shown

# A large Lightning checkpoint takes 100,000 instructions. This many run for two or three seconds.
_MAX_WORK = 4_000_000
# In bytes. Below Python's limit of 4300 decimal digits: whoever prints the integer must not meet a ValueError.
_MAX_INTEGER = 1024

# Python 2's names, which protocols below 3 keep.
_RENAMED = {'__builtin__': 'builtins', 'copy_reg': 'copyreg', 'exceptions': 'builtins'}
_RENAMED_TYPES = {'long': 'int', 'unicode': 'str', 'xrange': 'range'}
_OPERATIONS: list[Callable | None] = [None] * 256


def _operation(*codes: bytes):
    def register(function):
        for code in codes:
            _OPERATIONS[code[0]] = function
        return function

    return register


class InertUnpickler:
    """The machine. One instance reads one pickle; `position` is then where it ended.

    Args:
        data: what holds the pickle.
        position, end: where it begins, and where it ends at the latest.
        calls: functions for further names, called with the arguments that the pickle gives, of any type and number.
        persistent_load: for what lies outside the pickle (storages), called with what identifies it there.

    Raises:
        CheckpointError: the reason, without the file's name. `load` may raise any other Exception for damaged data.
    """

    def __init__(
        self,
        data: bytes | mmap.mmap,
        position: int = 0,
        end: int | None = None,
        *,
        calls: dict[str, Callable] | None = None,
        persistent_load: Callable[[Any], Any] | None = None,
    ):
        self.position = position
        self._data = data
        self._end = len(data) if end is None else end
        own = {name: getattr(self, method) for name, method in _CALLS.items()}
        self._calls = {**(calls or {}), **numpy_values.CALLS, **own}
        self._persistent_load = persistent_load
        self._stack: list = []
        self._below: list[list] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._slots: dict[int, int] = {}  # id of an Inert that a build will replace -> its place in the memo
        self._names: dict[tuple[str, str], Inert] = {}
        self._work = 0

    def load(self) -> Any:
        data, operations = self._data, _OPERATIONS
        stop, end = pickle.STOP[0], self._end
        while self.position < end:
            code = data[self.position]
            self.position += 1
            if code == stop:
                result = self._stack.pop()
                check_shape(result)
                return result
            operation = operations[code]
            if operation is None:
                raise CheckpointError(f'there is no pickle instruction {code:#04x}')
            operation(self)
            self._work += 1
            if self._work > _MAX_WORK:
                raise CheckpointError('its pickle is too long to be that of a checkpoint')
        raise CheckpointError('its pickle is cut off')

    def _spend(self, *values: Any) -> None:
        """For what is copied, which one short instruction can ask for again and again."""
        for value in values:
            if isinstance(value, str | bytes | bytearray):
                self._work += len(value) >> 3
            elif isinstance(value, list | tuple | dict | set):
                self._work += len(value)

    def _take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > self._end:
            raise CheckpointError('its pickle is cut off')
        return self._data[start : self.position]

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> bytes:
        end = self._data.find(b'\n', self.position, self._end)
        if end < 0:
            raise CheckpointError('its pickle is cut off')
        return self._take(end + 1 - self.position)[:-1]

    def _to_mark(self) -> list:
        items, self._stack = self._stack, self._below.pop()
        return items

    @_operation(pickle.PROTO)
    def _proto(self):
        if (version := self._number('B')) > 5:
            raise CheckpointError(f'its pickle has protocol {version}; 5 is the newest known')

    @_operation(pickle.FRAME)
    def _frame(self):
        self._take(8)  # frames only tell a reader of streams how much to read ahead

    @_operation(pickle.INT)
    def _int(self):
        line = self._line()
        self._stack.append(line == b'01' if line in (b'00', b'01') else int(line))

    @_operation(pickle.LONG)
    def _long(self):
        self._stack.append(int(self._line().removesuffix(b'L')))

    @_operation(pickle.LONG1, pickle.LONG4)
    def _binary_long(self):
        size = self._number('B' if self._data[self.position - 1] == pickle.LONG1[0] else '<I')
        if size > _MAX_INTEGER:
            raise CheckpointError(f'its pickle has an integer of {size} bytes')
        self._stack.append(int.from_bytes(self._take(size), 'little', signed=True))

    @_operation(pickle.FLOAT)
    def _float(self):
        self._stack.append(float(self._line()))

    @_operation(pickle.STRING)
    def _string(self):
        line = self._line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[0] != line[-1]:
            raise CheckpointError('its pickle has a string without quotes')
        self._stack.append(_text(codecs.escape_decode(line[1:-1])[0]))

    @_operation(pickle.UNICODE)
    def _unicode(self):
        self._stack.append(self._line().decode('raw-unicode-escape'))

    @_operation(pickle.MARK)
    def _mark(self):
        self._below.append(self._stack)
        self._stack = []

    @_operation(pickle.POP)
    def _pop(self):
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    @_operation(pickle.POP_MARK)
    def _pop_mark(self):
        self._to_mark()

    @_operation(pickle.DUP)
    def _dup(self):
        self._stack.append(self._stack[-1])

    @_operation(pickle.TUPLE)
    def _tuple(self):
        items = self._to_mark()
        self._stack.append(tuple(items))

    @_operation(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
    def _short_tuple(self):
        size = self._data[self.position - 1] - pickle.TUPLE1[0] + 1
        if len(self._stack) < size:
            raise CheckpointError('its pickle takes more than there is')
        self._stack[-size:] = [tuple(self._stack[-size:])]

    @_operation(pickle.LIST)
    def _list(self):
        items = self._to_mark()
        self._stack.append(items)

    @_operation(pickle.DICT)
    def _dict(self):
        items = self._to_mark()
        self._stack.append({})
        self._set_items(items)

    @_operation(pickle.FROZENSET)
    def _frozenset_of_mark(self):
        items = self._to_mark()
        self._stack.append(self._frozenset(items))

    @_operation(pickle.APPEND)
    def _append(self):
        item = self._stack.pop()
        self._extend([item])

    @_operation(pickle.APPENDS, pickle.ADDITEMS)
    def _appends(self):
        self._extend(self._to_mark())

    def _extend(self, items: list) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(self._keys(items))
        else:
            self._made(target).sequence.extend(items)

    @_operation(pickle.SETITEM)
    def _setitem(self):
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    @_operation(pickle.SETITEMS)
    def _setitems(self):
        self._set_items(self._to_mark())

    def _set_items(self, items: list) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict):
            target = self._made(target).mapping
        target.update(zip(self._keys(items[::2]), items[1::2], strict=True))

    def _made(self, target: Any) -> Inert:
        """The target of an assignment: an inert object; not a class, nor a value of ours."""
        if type(target) is not Inert or target.args is None:
            raise CheckpointError(f'its pickle assigns to {shown(getattr(target, "name", type(target).__name__))}')
        return target

    def _keys(self, values: list) -> list:
        """The values, once each is known to be harmless to hash and to compare."""
        for value in values:
            if type(value) is not str:
                # Tuples can be made to have the same hash, which costs the square of their number.
                size = key_size(value)
                self._work += 256 * (size - 1)
        if self._work > _MAX_WORK:
            raise CheckpointError('its pickle has too many keys')
        return values

    @_operation(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT)
    def _put(self):
        self._remember(self._index(pickle.PUT, pickle.BINPUT), self._stack[-1])

    @_operation(pickle.MEMOIZE)
    def _memoize(self):
        self._remember(len(self._memo), self._stack[-1])

    @_operation(pickle.GET, pickle.BINGET, pickle.LONG_BINGET)
    def _get(self):
        index = self._index(pickle.GET, pickle.BINGET)
        if index not in self._memo:
            raise CheckpointError(f'its pickle refers to a value {index} that it has not')
        self._stack.append(self._memo[index])

    def _index(self, text: bytes, short: bytes) -> int:
        code = self._data[self.position - 1]
        return int(self._line()) if code == text[0] else self._number('B' if code == short[0] else '<I')

    def _remember(self, index: int, value: Any) -> None:
        self._memo[index] = value
        if type(value) is Inert and value.name in numpy_values.BUILDS:
            self._slots[id(value)] = index

    @_operation(pickle.GLOBAL)
    def _global(self):
        module, name = self._line(), self._line()
        self._stack.append(self._named(module.decode(), name.decode()))

    @_operation(pickle.STACK_GLOBAL)
    def _stack_global(self):
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise CheckpointError('its pickle names something by what is not a string')
        self._stack.append(self._named(module, name))

    @_operation(pickle.INST)
    def _inst(self):
        module, name = self._line(), self._line()
        args = tuple(self._to_mark())
        self._stack.append(self._call(self._named(module.decode(), name.decode()), args))

    @_operation(pickle.OBJ)
    def _obj(self):
        named, *args = self._to_mark()
        self._stack.append(self._call(named, tuple(args)))

    @_operation(pickle.REDUCE, pickle.NEWOBJ)
    def _reduce(self):
        args, named = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(named, args))

    @_operation(pickle.NEWOBJ_EX)
    def _newobj_ex(self):
        keywords, args, named = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(named, args, keywords))

    @_operation(pickle.BUILD)
    def _build(self):
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, OrderedDict | np.ndarray):
            return  # attributes of a state dict (`_metadata`) or of a tensor
        target = self._made(target)
        target.state = state
        self._spend(*state if type(state) is tuple else ())
        if target.name in numpy_values.BUILDS:
            self._stack[-1] = value = numpy_values.BUILDS[target.name](target)
            slot = self._slots.pop(id(target), None)
            if self._memo.get(slot) is target:
                self._memo[slot] = value

    @_operation(pickle.BINPERSID)
    def _binpersid(self):
        if self._persistent_load is None:
            raise CheckpointError('its pickle asks for a storage where there can be none')
        self._stack.append(self._persistent_load(self._stack.pop()))

    @_operation(pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
    def _outside(self):
        raise CheckpointError('its pickle refers to what no PyTorch file has (a registered extension, a buffer)')

    def _named(self, module: str, name: str) -> Inert:
        module = _RENAMED.get(module, module)
        if module == 'builtins':
            name = _RENAMED_TYPES.get(name, name)
        # Not by the whole: 'a.b' and 'c' are a name, 'a' and 'b.c' are not.
        if (module, name) not in self._names:
            check_name(module, name)
            self._names[module, name] = Inert(f'{module}.{name}')
        return self._names[module, name]

    def _call(self, named: Any, args: Any, keywords: Any = None) -> Any:
        if type(named) is not Inert or named.args is not None:
            raise CheckpointError(f'its pickle calls {shown(getattr(named, "name", type(named).__name__))}')
        if type(args) is not tuple or (keywords is not None and type(keywords) is not dict):
            raise CheckpointError(f'its pickle calls {shown(named.name)} with what are no arguments')
        self._work += 8  # an object takes ten times the memory that an instruction does
        if named.name in self._calls and not keywords:
            self._spend(*args)
            return self._calls[named.name](*args)
        return Inert(named.name, args, keywords=keywords)

    def _set(self, items: Iterable = ()) -> set:
        if type(items) not in (list, tuple, set):
            raise CheckpointError('its pickle has a set of what is no list')
        return set(self._keys(list(items)))

    def _frozenset(self, items: Iterable = ()) -> frozenset:
        return frozenset(self._set(items))

    def _ordered(self, pairs: Iterable = ()) -> OrderedDict:
        """The OrderedDict of Python 2 has its items as an argument."""
        if type(pairs) not in (list, tuple) or any(type(p) not in (list, tuple) or len(p) != 2 for p in pairs):
            raise CheckpointError('its pickle has an OrderedDict of what are no pairs')
        self._keys([key for key, value in pairs])
        return OrderedDict(pairs)

    def _default(self, factory: Any = None) -> dict:
        return {}

    def _counter(self, counts: Any = None) -> dict:
        counts = {} if counts is None else counts
        if type(counts) is not dict:
            raise CheckpointError('its pickle has a Counter of what is no dict')
        return dict(counts)

    def _complex(self, real: Any, imaginary: Any) -> complex:
        if not isinstance(real, float | int) or not isinstance(imaginary, float | int):
            raise CheckpointError('its pickle has a complex number of what are no numbers')
        return complex(real, imaginary)

    def _bytes(self, *args: Any) -> bytes:
        """Protocols before 3 have bytes as calls: of a string in Latin-1, or of nothing."""
        if not args:
            return b''
        if len(args) == 2 and type(args[0]) is str and args[1] in ('latin1', 'latin-1'):
            return args[0].encode('latin-1')
        if len(args) == 1 and type(args[0]) is bytes:
            return args[0]
        raise CheckpointError('its pickle has bytes made of something else than a string')

    def _bytearray(self, *args: Any) -> bytearray:
        return bytearray(self._bytes(*args))

    def _reconstructor(self, named: Any, base: Any, state: Any) -> Any:
        return self._call(named, () if state is None else (state,))

    def _newobj(self, named: Any, *args: Any) -> Any:
        return self._call(named, args)


def _value_operations():
    """The instructions that push a constant, a number or a string of a stated length."""

    def constant(make):
        return lambda machine: machine._stack.append(make())

    def empty_set(machine):
        machine._work += 8
        machine._stack.append(set())

    def number(layout):
        return lambda machine: machine._stack.append(machine._number(layout))

    def string(layout, convert):
        return lambda machine: machine._stack.append(convert(machine._take(machine._number(layout))))

    def unicode(data):
        return data.decode('utf-8', 'surrogatepass')

    for code, make in {b'}': dict, b']': list, b')': tuple}.items():
        _operation(code)(constant(make))
    _operation(pickle.EMPTY_SET)(empty_set)
    for code, value in {b'N': None, b'\x88': True, b'\x89': False}.items():
        _operation(code)(constant(lambda value=value: value))
    for code, layout in {b'J': '<i', b'K': 'B', b'M': '<H', b'G': '>d'}.items():
        _operation(code)(number(layout))
    for codes, convert in {
        (b'U', b'T', None): _text,
        (b'C', b'B', b'\x8e'): bytes,
        (b'\x8c', b'X', b'\x8d'): unicode,
    }.items():
        for code, layout in zip(codes, ('B', '<I', '<Q'), strict=True):
            if code:
                _operation(code)(string(layout, convert))
    _operation(pickle.BYTEARRAY8)(string('<Q', bytearray))


def _text(data: bytes) -> str | bytes:
    """A string of Python 2, which is text or not."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


_value_operations()

_CALLS = {
    'collections.OrderedDict': '_ordered',
    'collections.defaultdict': '_default',
    'collections.Counter': '_counter',
    'builtins.set': '_set',
    'builtins.frozenset': '_frozenset',
    'builtins.complex': '_complex',
    'builtins.bytes': '_bytes',
    'builtins.bytearray': '_bytearray',
    '_codecs.encode': '_bytes',
    'copyreg._reconstructor': '_reconstructor',
    'copyreg.__newobj__': '_newobj',
    'copyreg.__newobj_ex__': '_call',
}
