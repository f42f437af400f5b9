"""Reads pickles as data: nothing that a pickle names is imported or called.

A pickle is a program for a small stack machine, and Python's own machine imports and calls what the program names. The
machine here knows the whole language (protocols 0 to 5), but a name becomes an `Inert` value, and a call of it an
`Inert` with the arguments. Only the names on a closed list are rebuilt, by functions of this package:

    plain values     dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex, bool, None
    collections      OrderedDict; defaultdict and Counter as plain dicts (a default factory would be a call)
    numpy            numbers, strings and arrays of them; arrays of Python objects stay inert
    `calls`          what the caller adds, for example tensors

Names that no checkpoint has a reason to contain are refused (`inert.py` says which, and why).

A hostile pickle may also try to exhaust the memory or the time. So a budget bounds instructions and copies, what is
hashed must be small and flat (hashing nested tuples takes exponential time and overflows the C stack), and the result
must not contain itself, be deep, or unfold to much more than it takes in memory.
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
from audiosep_jax.weights.torch_files.inert import Inert, check_name, check_tree, excerpt, key_size

# A large Lightning checkpoint takes 100,000 instructions. This limit is reached after two or three seconds.
_MAX_WORK = 4_000_000
# In bytes. Python does not print integers of more than 4300 decimal digits, so a longer one could break its reader.
_MAX_INTEGER = 1024

# Names in Python 2, which protocols below 3 use.
_RENAMED_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg', 'exceptions': 'builtins'}
_RENAMED_TYPES = {'long': 'int', 'unicode': 'str', 'xrange': 'range'}

_Operation = Callable[['InertUnpickler'], None]
_OPERATIONS: list[_Operation | None] = [None] * 256


def _operation(*codes: bytes) -> Callable[[_Operation], _Operation]:
    """Registers a method as the implementation of these instructions."""

    def register(function: _Operation) -> _Operation:
        for code in codes:
            _OPERATIONS[code[0]] = function
        return function

    return register


class InertUnpickler:
    """The stack machine. An instance reads one pickle; afterwards `position` is the end of that pickle.

    Args:
        data: the bytes that contain the pickle.
        position: where it begins.
        end: where it ends at the latest.
        calls: functions for further names, called with the pickle's arguments, which may be of any type and number.
        persistent_load: a function that returns what lies outside the pickle (storages), called with its identifier.

    Raises:
        CheckpointError: the reason, without the file's name. For damaged data `load` may raise any other Exception too.
    """

    def __init__(
        self,
        data: bytes | mmap.mmap,
        position: int = 0,
        end: int | None = None,
        *,
        calls: dict[str, Callable[..., Any]] | None = None,
        persistent_load: Callable[[Any], Any] | None = None,
    ):
        self.position = position
        self._data = data
        self._end = len(data) if end is None else end
        own = {name: getattr(self, method) for name, method in _CALLS.items()}
        self._calls: dict[str, Callable[..., Any]] = {**(calls or {}), **numpy_values.CALLS, **own}
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stack under each mark
        self._memo: dict[int, Any] = {}
        self._slots: dict[int, int] = {}  # id of an Inert that BUILD will replace -> its index in the memo
        self._names: dict[tuple[str, str], Inert] = {}
        self._work = 0

    def load(self) -> Any:
        """Runs the pickle and returns its result."""
        data, operations = self._data, _OPERATIONS
        stop, end = pickle.STOP[0], self._end
        while self.position < end:
            code = data[self.position]
            self.position += 1
            if code == stop:
                result = self._stack.pop()
                check_tree(result)
                return result
            operation = operations[code]
            if operation is None:
                raise CheckpointError(f'there is no pickle instruction {code:#04x}')
            operation(self)
            self._work += 1
            if self._work > _MAX_WORK:
                raise CheckpointError('its pickle is too long to be that of a checkpoint')
        raise CheckpointError('its pickle is cut off')

    def _charge(self, *values: Any) -> None:
        """Charges the budget for values that are copied, which a short instruction can request again and again."""
        for value in values:
            if isinstance(value, str | bytes | bytearray):
                self._work += len(value) >> 3
            elif isinstance(value, list | tuple | dict | set):
                self._work += len(value)

    def _read(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > self._end:
            raise CheckpointError('its pickle is cut off')
        return self._data[start : self.position]

    def _read_number(self, layout: str) -> Any:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _read_line(self) -> bytes:
        end = self._data.find(b'\n', self.position, self._end)
        if end < 0:
            raise CheckpointError('its pickle is cut off')
        return self._read(end + 1 - self.position)[:-1]

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    @_operation(pickle.PROTO)
    def _proto(self) -> None:
        if (version := self._read_number('B')) > 5:
            raise CheckpointError(f'its pickle has protocol {version}; 5 is the newest known')

    @_operation(pickle.FRAME)
    def _frame(self) -> None:
        self._read(8)  # frames only help readers of streams to read ahead

    @_operation(pickle.INT)
    def _int(self) -> None:
        line = self._read_line()
        self._stack.append(line == b'01' if line in (b'00', b'01') else int(line))

    @_operation(pickle.LONG)
    def _long(self) -> None:
        self._stack.append(int(self._read_line().removesuffix(b'L')))

    @_operation(pickle.LONG1, pickle.LONG4)
    def _binary_long(self) -> None:
        size = self._read_number('B' if self._data[self.position - 1] == pickle.LONG1[0] else '<I')
        if size > _MAX_INTEGER:
            raise CheckpointError(f'its pickle has an integer of {size} bytes')
        self._stack.append(int.from_bytes(self._read(size), 'little', signed=True))

    @_operation(pickle.FLOAT)
    def _float(self) -> None:
        self._stack.append(float(self._read_line()))

    @_operation(pickle.STRING)
    def _string(self) -> None:
        line = self._read_line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[0] != line[-1]:
            raise CheckpointError('its pickle has a string without quotes')
        self._stack.append(_decode_python2(codecs.escape_decode(line[1:-1])[0]))

    @_operation(pickle.UNICODE)
    def _unicode(self) -> None:
        self._stack.append(self._read_line().decode('raw-unicode-escape'))

    @_operation(pickle.MARK)
    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    @_operation(pickle.POP)
    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_to_mark()

    @_operation(pickle.POP_MARK)
    def _pop_mark(self) -> None:
        self._pop_to_mark()

    @_operation(pickle.DUP)
    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    # ---- instructions for containers ---------------------------------------------------------------------------------

    @_operation(pickle.TUPLE)
    def _tuple(self) -> None:
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    @_operation(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
    def _short_tuple(self) -> None:
        size = self._data[self.position - 1] - pickle.TUPLE1[0] + 1
        if len(self._stack) < size:
            raise CheckpointError('its pickle takes more values from the stack than there are')
        self._stack[-size:] = [tuple(self._stack[-size:])]

    @_operation(pickle.LIST)
    def _list(self) -> None:
        items = self._pop_to_mark()
        self._stack.append(items)

    @_operation(pickle.DICT)
    def _dict(self) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set_items(items)

    @_operation(pickle.FROZENSET)
    def _frozenset(self) -> None:
        items = self._pop_to_mark()
        self._stack.append(self._make_frozenset(items))

    @_operation(pickle.APPEND)
    def _append(self) -> None:
        self._extend([self._stack.pop()])

    @_operation(pickle.APPENDS, pickle.ADDITEMS)
    def _appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(self._check_keys(items))
        else:
            self._check_assignable(target).sequence.extend(items)

    @_operation(pickle.SETITEM)
    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    @_operation(pickle.SETITEMS)
    def _setitems(self) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict):
            target = self._check_assignable(target).mapping
        target.update(zip(self._check_keys(items[::2]), items[1::2], strict=True))

    def _check_assignable(self, target: Any) -> Inert:
        """Returns the target of an assignment, which must be an inert object, not a class or a rebuilt value."""
        if type(target) is not Inert or target.args is None:
            raise CheckpointError(f'its pickle assigns to {excerpt(getattr(target, "name", type(target).__name__))}')
        return target

    def _check_keys(self, values: list[Any]) -> list[Any]:
        """Returns the values, which must be harmless to hash and to compare."""
        for value in values:
            if type(value) is not str:
                # Tuples can be chosen to have equal hashes, and n of those take time proportional to n squared.
                size = key_size(value)
                self._work += 256 * (size - 1)
        if self._work > _MAX_WORK:
            raise CheckpointError('its pickle has too many keys')
        return values

    @_operation(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT)
    def _put(self) -> None:
        self._remember(self._read_index(pickle.PUT, pickle.BINPUT), self._stack[-1])

    @_operation(pickle.MEMOIZE)
    def _memoize(self) -> None:
        self._remember(len(self._memo), self._stack[-1])

    @_operation(pickle.GET, pickle.BINGET, pickle.LONG_BINGET)
    def _get(self) -> None:
        index = self._read_index(pickle.GET, pickle.BINGET)
        if index not in self._memo:
            raise CheckpointError(f'its pickle refers to a value {index} that it does not have')
        self._stack.append(self._memo[index])

    def _read_index(self, text: bytes, short: bytes) -> int:
        code = self._data[self.position - 1]
        return int(self._read_line()) if code == text[0] else self._read_number('B' if code == short[0] else '<I')

    def _remember(self, index: int, value: Any) -> None:
        self._memo[index] = value
        if type(value) is Inert and value.name in numpy_values.BUILDS:
            self._slots[id(value)] = index

    # ---- instructions for names, calls and objects -------------------------------------------------------------------

    @_operation(pickle.GLOBAL)
    def _global(self) -> None:
        module, name = self._read_line(), self._read_line()
        self._stack.append(self._look_up(module.decode(), name.decode()))

    @_operation(pickle.STACK_GLOBAL)
    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise CheckpointError('its pickle has a name that is not a string')
        self._stack.append(self._look_up(module, name))

    @_operation(pickle.INST)
    def _inst(self) -> None:
        module, name = self._read_line(), self._read_line()
        args = tuple(self._pop_to_mark())
        self._stack.append(self._call(self._look_up(module.decode(), name.decode()), args))

    @_operation(pickle.OBJ)
    def _obj(self) -> None:
        named, *args = self._pop_to_mark()
        self._stack.append(self._call(named, tuple(args)))

    @_operation(pickle.REDUCE, pickle.NEWOBJ)
    def _reduce(self) -> None:
        args, named = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(named, args))

    @_operation(pickle.NEWOBJ_EX)
    def _newobj_ex(self) -> None:
        keywords, args, named = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(named, args, keywords))

    @_operation(pickle.BUILD)
    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, OrderedDict | np.ndarray):
            return  # the state is the attributes of a state dict (`_metadata`) or of a tensor, which are dropped
        target = self._check_assignable(target)
        target.state = state
        self._charge(*state if type(state) is tuple else ())
        if target.name in numpy_values.BUILDS:
            self._stack[-1] = value = numpy_values.BUILDS[target.name](target)
            slot = self._slots.pop(id(target), None)
            if slot is not None and self._memo.get(slot) is target:
                self._memo[slot] = value

    @_operation(pickle.BINPERSID)
    def _binpersid(self) -> None:
        if self._persistent_load is None:
            raise CheckpointError('its pickle asks for a storage where there can be none')
        self._stack.append(self._persistent_load(self._stack.pop()))

    @_operation(pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
    def _unsupported(self) -> None:
        raise CheckpointError('its pickle refers to a registered extension or a buffer, which no PyTorch file has')

    def _look_up(self, module: str, name: str) -> Inert:
        module = _RENAMED_MODULES.get(module, module)
        if module == 'builtins':
            name = _RENAMED_TYPES.get(name, name)
        # The pair is the key, because ('a.b', 'c') is acceptable and ('a', 'b.c') is not.
        if (module, name) not in self._names:
            check_name(module, name)
            self._names[module, name] = Inert(f'{module}.{name}')
        return self._names[module, name]

    def _call(self, named: Any, args: Any, keywords: Any = None) -> Any:
        if type(named) is not Inert or named.args is not None:
            raise CheckpointError(f'its pickle calls {excerpt(getattr(named, "name", type(named).__name__))}')
        if type(args) is not tuple or (keywords is not None and type(keywords) is not dict):
            raise CheckpointError(f'its pickle calls {excerpt(named.name)} without a tuple of arguments')
        self._work += 8  # an object takes ten times the memory that an instruction does
        if named.name in self._calls and not keywords:
            self._charge(*args)
            return self._calls[named.name](*args)
        return Inert(named.name, args, keywords=keywords)

    # ---- functions that rebuild values, called through `_CALLS` ------------------------------------------------------

    def _make_set(self, items: Iterable[Any] = ()) -> set[Any]:
        if type(items) not in (list, tuple, set):
            raise CheckpointError('its pickle has a set that is not made from a list')
        return set(self._check_keys(list(items)))

    def _make_frozenset(self, items: Iterable[Any] = ()) -> frozenset[Any]:
        return frozenset(self._make_set(items))

    def _make_ordered_dict(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        """Python 2 passes the items of an OrderedDict as an argument; Python 3 sets them afterwards."""
        if type(pairs) not in (list, tuple) or any(type(p) not in (list, tuple) or len(p) != 2 for p in pairs):
            raise CheckpointError('its pickle has an OrderedDict that is not made from pairs')
        self._check_keys([key for key, value in pairs])
        return OrderedDict(pairs)

    def _make_default_dict(self, factory: Any = None) -> dict[Any, Any]:
        return {}

    def _make_counter(self, counts: Any = None) -> dict[Any, Any]:
        counts = {} if counts is None else counts
        if type(counts) is not dict:
            raise CheckpointError('its pickle has a Counter that is not made from a dict')
        return dict(counts)

    def _make_complex(self, real: Any, imaginary: Any) -> complex:
        if not isinstance(real, float | int) or not isinstance(imaginary, float | int):
            raise CheckpointError('its pickle has a complex number that is not made from two numbers')
        return complex(real, imaginary)

    def _make_bytes(self, *args: Any) -> bytes:
        """Protocols below 3 make bytes by a call: from a string in Latin-1, or from nothing."""
        if not args:
            return b''
        if len(args) == 2 and type(args[0]) is str and args[1] in ('latin1', 'latin-1'):
            return args[0].encode('latin-1')
        if len(args) == 1 and type(args[0]) is bytes:
            return args[0]
        raise CheckpointError('its pickle has bytes that are not made from a string')

    def _make_bytearray(self, *args: Any) -> bytearray:
        return bytearray(self._make_bytes(*args))

    def _reconstructor(self, named: Any, base: Any, state: Any) -> Any:
        return self._call(named, () if state is None else (state,))

    def _newobj(self, named: Any, *args: Any) -> Any:
        return self._call(named, args)


def _decode_python2(data: bytes) -> str | bytes:
    """Decodes a string of Python 2, which may be text or not."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _decode_utf8(data: bytes) -> str:
    return data.decode('utf-8', 'surrogatepass')


def _register_values() -> None:
    """Registers the instructions that push a constant, a number, or a string with its length in front."""

    def constant(make: Callable[[], Any]) -> _Operation:
        return lambda machine: machine._stack.append(make())

    def number(layout: str) -> _Operation:
        return lambda machine: machine._stack.append(machine._read_number(layout))

    def string(layout: str, convert: Callable[[bytes], Any]) -> _Operation:
        return lambda machine: machine._stack.append(convert(machine._read(machine._read_number(layout))))

    def empty_set(machine: InertUnpickler) -> None:
        machine._work += 8  # for its memory, as for an object
        machine._stack.append(set())

    _operation(pickle.EMPTY_SET)(empty_set)
    for code, make in {pickle.EMPTY_DICT: dict, pickle.EMPTY_LIST: list, pickle.EMPTY_TUPLE: tuple}.items():
        _operation(code)(constant(make))
    _operation(pickle.NONE)(constant(lambda: None))
    _operation(pickle.NEWTRUE)(constant(lambda: True))
    _operation(pickle.NEWFALSE)(constant(lambda: False))
    for code, layout in {pickle.BININT: '<i', pickle.BININT1: 'B', pickle.BININT2: '<H', pickle.BINFLOAT: '>d'}.items():
        _operation(code)(number(layout))
    for code, layout, convert in (
        (pickle.SHORT_BINSTRING, 'B', _decode_python2),
        (pickle.BINSTRING, '<I', _decode_python2),
        (pickle.SHORT_BINBYTES, 'B', bytes),
        (pickle.BINBYTES, '<I', bytes),
        (pickle.BINBYTES8, '<Q', bytes),
        (pickle.SHORT_BINUNICODE, 'B', _decode_utf8),
        (pickle.BINUNICODE, '<I', _decode_utf8),
        (pickle.BINUNICODE8, '<Q', _decode_utf8),
        (pickle.BYTEARRAY8, '<Q', bytearray),
    ):
        _operation(code)(string(layout, convert))


_register_values()

_CALLS = {
    'collections.OrderedDict': '_make_ordered_dict',
    'collections.defaultdict': '_make_default_dict',
    'collections.Counter': '_make_counter',
    'builtins.set': '_make_set',
    'builtins.frozenset': '_make_frozenset',
    'builtins.complex': '_make_complex',
    'builtins.bytes': '_make_bytes',
    'builtins.bytearray': '_make_bytearray',
    '_codecs.encode': '_make_bytes',
    'copyreg._reconstructor': '_reconstructor',
    'copyreg.__newobj__': '_newobj',
    'copyreg.__newobj_ex__': '_call',
}
