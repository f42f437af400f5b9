"""Rebuilds numpy's scalars and small arrays from pickles, without numpy's own unpickling.

Arrays of Python objects, records, dates and subclasses stay `Inert`.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files.inert import Inert

_MODULES = ('numpy.core', 'numpy._core')  # numpy 1, numpy 2


def _rebuild_scalar(dtype: Any, data: Any = None) -> Any:
    known, raw = _dtype_of(dtype), _bytes_of(data)
    if known is None or raw is None:
        return Inert('numpy.core.multiarray.scalar', (dtype, data))
    (scalar,) = _array(raw, known, (1,))
    return scalar


def _rebuild_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Rebuilds an array of a pickle of protocol 5."""
    known, raw = _dtype_of(dtype), _bytes_of(data)
    if known is None or raw is None:
        return Inert('numpy.core.numeric._frombuffer', (data, dtype, shape, order))
    return _array(raw, known, shape, 'F' if order == 'F' else 'C')


def _rebuild_array(inert: Inert) -> Any:
    """Rebuilds an array that a call of `_reconstruct` announced, once its state is known."""
    kind = inert.args[0] if inert.args else None
    if type(kind) is not Inert or kind.name != 'numpy.ndarray' or type(inert.state) is not tuple:
        return inert
    _, shape, dtype, fortran, data = inert.state
    known, raw = _dtype_of(dtype), _bytes_of(data)
    if known is None or raw is None:
        return inert
    return _array(raw, known, shape, 'F' if fortran else 'C')


# What replaces calls of these names, and what replaces the Inert of these names when its state is known.
CALLS: dict[str, Callable[..., Any]] = {
    **{f'{module}.multiarray.scalar': _rebuild_scalar for module in _MODULES},
    **{f'{module}.numeric._frombuffer': _rebuild_from_buffer for module in _MODULES},
}
BUILDS: dict[str, Callable[[Inert], Any]] = {f'{module}.multiarray._reconstruct': _rebuild_array for module in _MODULES}


def _dtype_of(value: Any) -> np.dtype | None:
    """Returns the dtype that an Inert 'numpy.dtype' describes; None unless it is one of plain numbers or strings."""
    if type(value) is not Inert or value.name != 'numpy.dtype' or not value.args:
        return None
    code = value.args[0]
    if type(code) is not str or not re.fullmatch(r'b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}', code):
        return None
    order = value.state[1] if type(value.state) is tuple and len(value.state) > 1 else None
    dtype = np.dtype(code)
    if order == '<':
        return dtype.newbyteorder('<')
    return dtype.newbyteorder('>') if order == '>' else dtype


def _bytes_of(value: Any) -> bytes | bytearray | None:
    """Returns the raw bytes of numbers. Python 2 wrote them as a string, which may have been decoded as text."""
    if type(value) is str:
        return value.encode()
    return value if isinstance(value, bytes | bytearray) else None


def _array(data: bytes | bytearray, dtype: np.dtype, shape: Any, order: Literal['C', 'F'] = 'C') -> np.ndarray:
    """Returns a read-only, little-endian array over the bytes."""
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise CheckpointError('its pickle has a numpy array without a shape')
    flat = np.frombuffer(data, dtype)
    if dtype.byteorder == '>':
        flat = flat.astype(dtype.newbyteorder('<'))
    if dtype.kind == 'U' and flat.size and flat.view('<u4').max() > 0x10FFFF:
        raise CheckpointError('its pickle has a numpy string with invalid characters')
    array = flat.reshape(shape, order=order)
    array.flags.writeable = False
    return array
