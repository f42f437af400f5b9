"""JSON files, in folders and in buckets: the one place that parses JSON, with a check of its shape and with limits.

Whoever reads a file names the shape that it must have, as an annotation: `list[int]`, `dict[str, str]`, `str | None`, a
`TypedDict`. A file that is damaged, or is another one, then gives an error that names the place, and no exception later
from the code that trusted it. Keys that a `TypedDict` does not name are accepted, because later versions may add some.

The standard library's parser is used, and not one that decodes into types: lists that others publish hold `NaN`, which
strict decoders refuse, and none of them notices a repeated key.
"""

import functools
import itertools
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from audiosep_jax.errors import AudioSepError, DataError, first_line
from audiosep_jax.storage.buckets import write_bytes

MAX_BYTES = 1 << 26
MAX_LIST_BYTES = 1 << 30  # of a file that lists clips; the largest published one has a fifth of it
_MAX_DEPTH = 200
_MAX_DIGITS = 1000
_MAX_INTEGER = 1 << 63  # what an array of NumPy can hold
_HALF_PAIR = re.compile('[\ud800-\udfff]')
_ESCAPED_HALF = re.compile(r'\\u[dD][89a-fA-F]')
_NAMES = {str: 'a text', int: 'a whole number', float: 'a number', bool: 'true or false', type(None): 'null'}


def read_json(
    path: pathlib.Path,
    shape: Any = Any,
    *,
    error: type[AudioSepError] = DataError,
    remedy: str = '',
    strict: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Returns the contents of a JSON file. A byte order mark is skipped.

    Args:
        path: the file.
        shape: see the module.
        error: the class of the errors.
        remedy: what the user can do about a damaged file; the end of the message.
        strict: see `parse_json`.
        max_bytes: the size above which the file is refused.

    Raises:
        DataError, or `error`: the file is missing, too large, not JSON, or of another shape.
    """
    try:
        with path.open('rb') as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f'{path}: cannot be read as JSON: {problem.strerror or problem}') from problem
    if len(data) > max_bytes:
        raise error(f'{path}: too large for such a file, more than {max_bytes >> 20} MiB{_and(remedy)}')
    return parse_json(data, path, shape, error=error, remedy=remedy, strict=strict)


def parse_json(
    data: bytes | str,
    where: object,
    shape: Any = Any,
    *,
    error: type[AudioSepError] = DataError,
    remedy: str = '',
    strict: bool = True,
) -> Any:
    """Returns what a JSON text says.

    Args:
        data: the text; bytes must be UTF-8.
        where: the path of the file, for messages.
        shape: see the module.
        error: the class of the errors.
        remedy: what the user can do about a damaged file; the end of the message.
        strict: refuse what JSON files of this project never hold: NaN and infinity, integers beyond 64 bits, and halves
            of surrogate pairs, which cannot be written as UTF-8. Files of others may hold them.

    Raises:
        DataError, or `error`: it is not JSON, nested too deeply, or of another shape.
    """
    try:
        text = _decoded(data, remedy) if isinstance(data, bytes) else data.removeprefix('\ufeff')
        if not text or text.isspace():
            raise ValueError('not valid JSON: it is empty')
        refuse = _refuse_constant if strict else None
        value = json.loads(text, object_pairs_hook=_distinct, parse_int=_integer, parse_constant=refuse)
        _check(value, shape, '', strict, 0)
        if strict and _ESCAPED_HALF.search(text):  # UTF-8 itself cannot express one
            _check_texts(value, '')
    except json.JSONDecodeError as problem:
        raise error(f'{where}: not valid JSON: {problem}{_and(remedy)}') from problem
    except ValueError as problem:
        raise error(f'{where}: {first_line(problem)}{_and(remedy)}') from problem
    except RecursionError as problem:
        raise error(f'{where}: not valid JSON: nested too deeply{_and(remedy)}') from problem
    return value


def check_shape(value: Any, shape: Any, where: object, *, error: type[AudioSepError], remedy: str = '') -> None:
    """Checks a value that something else has parsed, in the way of `parse_json`.

    Raises:
        AudioSepError: it has another shape; the class is `error`.
    """
    try:
        _check(value, shape, '', True, 0)
        _check_texts(value, '')
    except ValueError as problem:
        raise error(f'{where}: {first_line(problem)}{_and(remedy)}') from problem


def write_json(path: pathlib.Path, value: Any, *, indent: int = 1) -> None:
    """Writes a JSON file atomically: readers see the old file or the new one, even if this process is killed.

    Its folder is made.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False) + '\n').encode())


def _and(remedy: str) -> str:
    return remedy and f': {remedy}'


def _decoded(data: bytes, remedy: str) -> str:
    advice = '' if remedy else ': save it as UTF-8'
    if data.startswith((b'\xff\xfe', b'\xfe\xff')) or b'\0' in data[:4]:
        raise ValueError(f'not UTF-8 text but UTF-16 or binary{advice}')
    if data.startswith(b'version https://git-lfs'):
        raise ValueError('is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download it')
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8 text (at byte {error.start}){advice}') from error


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:  # converting takes quadratic time, and Python refuses more than a few thousand
        raise ValueError(f'holds a number of {len(digits)} digits')
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f'holds {name}, which is no number')


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'not valid JSON: the key {repeated!r:.80} occurs twice in an object')
    return values


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _check(value: Any, shape: Any, place: str, strict: bool, depth: int) -> None:
    """Raises ValueError if a parsed value does not have the shape. `place` is where it is in the file."""
    if depth > _MAX_DEPTH:
        raise ValueError('not valid JSON: nested too deeply')
    if shape is Any:
        _check_any(value, place, strict, depth)
    elif typing.is_typeddict(shape):
        _check_fields(value, shape, place, strict, depth)
    elif shape in (dict, list):
        if not isinstance(value, shape):
            raise _mismatch(place, _kind(shape()), value)
        _check_any(value, place, strict, depth)
    elif isinstance(shape, type) and not typing.get_args(shape):
        _check_scalar(value, shape, place, strict)
    else:
        _check_generic(value, shape, place, strict, depth)


def _check_any(value: Any, place: str, strict: bool, depth: int) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check(item, Any, _inside(place, key), strict, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, Any, f'{place}[{index}]', strict, depth + 1)
    elif strict:
        _check_scalar(value, type(value), place, strict)


def _check_scalar(value: Any, shape: type, place: str, strict: bool) -> None:
    wanted = (int, float) if shape is float else shape
    if not isinstance(value, wanted) or (isinstance(value, bool) and shape is not bool):
        raise _mismatch(place, _NAMES[shape], value)
    if not strict:
        return
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise ValueError(f'{_at(place)}a number of {len(str(abs(value)))} digits')
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{_at(place)}a number out of range')


def _check_texts(value: Any, place: str) -> None:
    """Raises ValueError if a key or a text holds half of a surrogate pair."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key, place)
            _check_texts(item, _inside(place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_texts(item, f'{place}[{index}]')
    elif isinstance(value, str) and _HALF_PAIR.search(value):
        raise ValueError(f'{_at(place)}a text that UTF-8 cannot express: {value!r:.80}')


def _check_fields(value: Any, shape: Any, place: str, strict: bool, depth: int) -> None:
    if not isinstance(value, dict):
        raise _mismatch(place, 'an object', value)
    missing = sorted(shape.__required_keys__ - value.keys())
    if missing:
        raise ValueError(f'{_at(place)}no key {missing[0]!r}')
    fields = _fields(shape)
    for key, item in value.items():
        _check(item, fields.get(key, Any), _inside(place, key), strict, depth + 1)


@functools.cache
def _fields(shape: Any) -> dict[str, Any]:
    return typing.get_type_hints(shape)


def _check_generic(value: Any, shape: Any, place: str, strict: bool, depth: int) -> None:
    origin, args = typing.get_origin(shape), typing.get_args(shape)
    if origin in (typing.Union, types.UnionType):
        fitting = [one for one in args if isinstance(value, (int, float) if one is float else _base(one))]
        if not fitting:
            raise _mismatch(place, ' or '.join(_NAMES.get(one) or _kind(_base(one)()) for one in args), value)
        _check(value, fitting[0], place, strict, depth)
        return
    if origin is typing.Literal:
        if not any(type(value) is type(one) and value == one for one in args):
            raise _mismatch(place, ' or '.join(map(repr, args)), value)
    elif origin is list:
        if not isinstance(value, list):
            raise _mismatch(place, 'a list', value)
        if _are_texts(value, args[0]):
            return
        for index, item in enumerate(value):
            _check(item, args[0], f'{place}[{index}]', strict, depth + 1)
    else:
        assert origin is dict, shape
        if not isinstance(value, dict):
            raise _mismatch(place, 'an object', value)
        for key, item in value.items():
            _check(item, args[1], _inside(place, key), strict, depth + 1)


def _are_texts(values: list[Any], shape: Any) -> bool:
    """Returns whether all values are texts or lists of them, whichever the shape is: a fast way for captions."""
    if shape is str:
        return set(map(type, values)) <= {str}
    if shape == list[str]:
        return set(map(type, values)) <= {list} and set(map(type, itertools.chain.from_iterable(values))) <= {str}
    return False


def _base(shape: Any) -> type:
    """Returns the class of the parsed values of a shape without alternatives."""
    return dict if typing.is_typeddict(shape) else typing.get_origin(shape) or shape


def _mismatch(place: str, expected: str, value: Any) -> ValueError:
    return ValueError(f'{_at(place)}expected {expected}, got {_kind(value)}')


def _kind(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return 'an object' if isinstance(value, Mapping) else 'a list'
    if value is None or isinstance(value, bool):
        return {None: 'null', True: 'true', False: 'false'}[value]
    text = repr(value) if isinstance(value, str | float) or abs(value) < _MAX_INTEGER else 'a number too large'
    return text if len(text) <= 80 else f'{text[:79]}…'


def _inside(place: str, key: str) -> str:
    key = key if key.isidentifier() else repr(key)
    return f'{place}.{key[:80]}' if place else key[:80]


def _at(place: str) -> str:
    return f'{place}: ' if place else ''
