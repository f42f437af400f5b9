"""Checks the annotated shapes and types of arrays at each call, while the tests run."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, get_args

import jax
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def check_shapes_of(*modules: str) -> None:
    """Has modules and packages checked that are imported from now on."""
    loaded = [name for name in sys.modules if name.startswith(modules)]
    assert not loaded, f'imported too early to be checked: {loaded}'
    install_import_hook(modules, f'{__name__}.{check_shapes.__name__}')


def check_shapes(function: Callable) -> Callable:
    """Checks the arguments and results that are annotated with shapes.

    Other annotations are mypy's business: tests pass stand-ins for encoders and separators, and wrong types whose
    refusal they test.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_shape(hint)}
    if not function.__annotations__:
        return function
    checked = _check(function)

    @functools.wraps(function)
    def in_single_precision(*args: Any, **kwargs: Any) -> Any:
        # The annotations promise float32. A test that runs the network in double precision breaks that on purpose.
        return (function if jax.config.jax_enable_x64 else checked)(*args, **kwargs)

    return in_single_precision


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(part) for part in get_args(hint))
