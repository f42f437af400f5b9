"""Barriers for some platforms only.

Behind a barrier, XLA takes arrays as they are, and not before all of them are there. What that is good for depends on
how a compiler joins operations.
"""

from typing import TypeVar

from jax import lax

T = TypeVar('T')


def barrier_on_tpus(values: T) -> T:
    """Returns the same arrays, on TPUs from behind a barrier."""
    return lax.platform_dependent(values, tpu=lax.optimization_barrier, default=_nothing)


def barrier_except_on_tpus(values: T) -> T:
    """Returns the same arrays, except on TPUs from behind a barrier."""
    return lax.platform_dependent(values, tpu=_nothing, default=lax.optimization_barrier)


def _nothing(values: T) -> T:
    return values
