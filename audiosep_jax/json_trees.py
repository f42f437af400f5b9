"""Nested containers with arrays in them, as JSON: plain values of Python come back as they were, arrays by name."""

import base64
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

_DROPPED = object()
_KEYS = (str, int, float, bytes, type(None), tuple)  # that a PyTorch file can be written with
_NOT_NUMBERS = 'OSUmM'  # arrays of objects, texts and dates


_SEQUENCES = {'list': list, 'tuple': tuple, 'set': set, 'frozenset': frozenset}


def to_json(tree: Any, name_of: Callable[[tuple, np.ndarray], str]) -> tuple[Any, list[str]]:
    """(JSON, places of what was left out: objects of other classes, arrays of anything but numbers, odd keys).

    Args:
        tree: dict, OrderedDict, list, tuple, set, str, bytes, numbers, None, arrays.
        name_of: called with the path of each array (its keys and indices from the root) and the array.
    """
    dropped: list[str] = []

    def visit(value: Any, path: tuple) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return visit(value.item(), path)
        if isinstance(value, np.ndarray) and value.dtype.kind not in _NOT_NUMBERS and value.dtype.names is None:
            return {'array': name_of(path, value)}
        if isinstance(value, bytes | bytearray):
            return {'bytes': base64.b64encode(value).decode()}
        if isinstance(value, complex):
            return {'complex': [value.real, value.imag]}
        if isinstance(value, dict):
            pairs = []
            for key, item in value.items():
                if not isinstance(key, _KEYS):
                    dropped.append('/'.join(map(str, (*path, key))))
                    continue
                pair = [visit(key, (*path, 'key')), visit(item, (*path, key))]
                if pair[1] is not _DROPPED:
                    pairs.append(pair)
            return {'ordered' if isinstance(value, OrderedDict) else 'dict': pairs}
        for kind, cls in _SEQUENCES.items():
            if isinstance(value, cls):
                items = [visit(v, (*path, i)) for i, v in enumerate(value)]
                # In a sequence the others keep their places.
                return {kind: [None if v is _DROPPED else v for v in items]}
        dropped.append('/'.join(map(str, path)) or 'the whole')
        return _DROPPED

    result = visit(tree, ())
    return (None if result is _DROPPED else result), dropped


def from_json(value: Any, array: Callable[[str], np.ndarray]) -> Any:
    """The inverse of `to_json`; `array` gives the array of a name. Raises ValueError for what it did not write."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError('a bare list')
        return value
    if len(value) != 1:
        raise ValueError(f'a node with the keys {sorted(value)}')
    ((kind, content),) = value.items()
    if kind == 'array':
        return array(content)
    if kind == 'bytes':
        return base64.b64decode(content)
    if kind == 'complex':
        return complex(*content)
    if kind in ('dict', 'ordered'):
        pairs = [(from_json(k, array), from_json(v, array)) for k, v in content]
        return OrderedDict(pairs) if kind == 'ordered' else dict(pairs)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](from_json(v, array) for v in content)
    raise ValueError(f'a node of the unknown kind {kind!r}')
