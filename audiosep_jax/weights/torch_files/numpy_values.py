"""numpy's numbers and small arrays out of pickles, through none of numpy's own unpickling.

Arrays of Python objects, records, dates and subclasses stay `Inert`.
"""

import re
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files.inert import Inert

_MODULES = ('numpy.core', 'numpy._core')  # numpy 1, numpy 2


def _scalar(dtype: Any, data: Any = None) -> Any:
    known, raw = _dtype(dtype), _raw(data)
    if known is None or raw is None:
        return Inert('numpy.core.multiarray.scalar', (dtype, data))
    (scalar,) = _array(raw, known, (1,))
    return scalar


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array as protocol 5 has it."""
    known, raw = _dtype(dtype), _raw(data)
    if known is None or raw is None:
        return Inert('numpy.core.numeric._frombuffer', (data, dtype, shape, order))
    return _array(raw, known, shape, 'F' if order == 'F' else 'C')


def _reconstructed(inert: Inert) -> Any:
    """An array that `_reconstruct` announced, now that its state has come."""
    kind = inert.args[0] if inert.args else None
    if type(kind) is not Inert or kind.name != 'numpy.ndarray' or type(inert.state) is not tuple:
        return inert
    _, shape, dtype, fortran, data = inert.state
    known, raw = _dtype(dtype), _raw(data)
    if known is None or raw is None:
        return inert
    return _array(raw, known, shape, 'F' if fortran else 'C')


# What calls of these names make; and the names whose Inert is replaced when its state has come.
CALLS = {
    **{f'{module}.multiarray.scalar': _scalar for module in _MODULES},
    **{f'{module}.numeric._frombuffer': _from_buffer for module in _MODULES},
}
BUILDS = {f'{module}.multiarray._reconstruct': _reconstructed for module in _MODULES}


def _dtype(value: Any) -> np.dtype | None:
    """The dtype that an Inert 'numpy.dtype' describes, if it is one of plain numbers or strings."""
    if type(value) is not Inert or value.name != 'numpy.dtype' or not value.args:
        return None
    code = value.args[0]
    if type(code) is not str or not re.fullmatch(r'b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}', code):
        return None
    order = value.state[1] if type(value.state) is tuple and len(value.state) > 1 else '='
    return np.dtype(code).newbyteorder(order if order in ('<', '>') else '=')


def _raw(value: Any) -> bytes | None:
    """The bytes of numbers; a string where Python 2 wrote them and they happened to be text."""
    if type(value) is str:
        return value.encode()
    return value if isinstance(value, bytes | bytearray) else None


def _array(data: bytes, dtype: np.dtype, shape: Any, order: str = 'C') -> np.ndarray:
    """A read-only array over the bytes, little-endian."""
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise CheckpointError('its pickle has a numpy array without a shape')
    flat = np.frombuffer(data, dtype)
    if dtype.byteorder == '>':
        flat = flat.astype(dtype.newbyteorder('<'))
    if dtype.kind == 'U' and flat.size and flat.view('<u4').max() > 0x10FFFF:
        raise CheckpointError('its pickle has a numpy string of no known letters')
    array = flat.reshape(shape, order=order)
    array.flags.writeable = False
    return array
