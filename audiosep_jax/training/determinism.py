"""Runs that compute the same bits each time: what XLA has to be told for GPUs."""

import os

import jax
from jax._src import xla_bridge

from audiosep_jax.errors import ConfigError

_FLAG = '--xla_gpu_deterministic_ops=true'


def make_deterministic() -> None:
    """Makes XLA's programs for GPUs compute the same bits each time, on the same devices. Call it before JAX starts.

    XLA then uses no kernel that adds numbers in a random order. It also measures no kernels to choose the fastest,
    because the choice may differ from one start to the next. This costs speed. Programs for CPUs and TPUs are
    deterministic anyway.

    Raises:
        ConfigError: JAX has already started its GPUs, or XLA's flags are in a file.
    """
    flags = os.environ.get('XLA_FLAGS', '').split()
    if _FLAG in flags:
        return
    if flags and not flags[0].startswith('-'):  # XLA then takes it for the name of a file with its flags
        raise ConfigError(f'$XLA_FLAGS names a file: for --deterministic, set it to the flags themselves and {_FLAG}')
    if not xla_bridge.backends_are_initialized():
        os.environ['XLA_FLAGS'] = ' '.join([*flags, _FLAG])
    elif jax.default_backend() == 'gpu':
        raise ConfigError(f'deterministic: JAX has already started its GPUs: set XLA_FLAGS={_FLAG} before that')
