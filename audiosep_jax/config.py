"""Converts frozen dataclasses to plain dictionaries and back; an unknown key is an error that names the nearest one."""

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from audiosep_jax.errors import ConfigError

T = TypeVar('T')


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a (nested) dataclass as JSON-ready dictionaries; tuples become lists."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value

    return plain(config)


def from_dict(cls: type[T], values: dict[str, Any], path: str = '') -> T:
    """Rebuilds a dataclass from what `to_dict` returned; missing keys take their defaults.

    Args:
        cls: the dataclass.
        values: its fields.
        path: the key under which `values` was found, for messages.

    Raises:
        ConfigError: an unknown key (the message names the nearest known one), or a value that `cls` refuses.
    """
    if not isinstance(values, dict):
        raise ConfigError(f'{path or cls.__name__}: expected a dictionary of settings, got {type(values).__name__}')
    hints = typing.get_type_hints(cls)
    assert dataclasses.is_dataclass(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    kwargs = {}
    for key, value in values.items():
        where = f'{path}.{key}' if path else key
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f'did you mean {near[0]!r}?' if near else f'known keys: {", ".join(names)}'
            raise ConfigError(f'unknown configuration key {where!r}: {hint}')
        kwargs[key] = _typed(hints[key], value, where)
    try:
        return cls(**kwargs)
    except TypeError as error:  # a field without a default is missing
        raise ConfigError(f'{path or cls.__name__}: {error}') from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Returns a value as the annotation `hint` wants it; JSON has no tuples, for example.

    Raises:
        ConfigError: the value has another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f'{where}: expected a list, got {value!r:.80}')
        return tuple(_typed(args[0], v, f'{where}[{i}]') for i, v in enumerate(value))
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f'{where}: {value!r:.80} is not one of {", ".join(map(repr, args))}')
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f'{where}: expected {hint.__name__}, got {value!r:.80}')
    return value
