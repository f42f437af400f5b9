"""JAX's persistent compilation cache: the second start of a program does not compile again what the first one did."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """The user's cache of this project: `$XDG_CACHE_HOME/audiosep_jax`, by default `~/.cache/audiosep_jax`."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'audiosep_jax'


def enable_compilation_cache() -> None:
    """Turns the cache on for this process, unless `JAX_COMPILATION_CACHE_DIR` already says where it is."""
    if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
        # The encoders compile layer by layer, 0.1 to 0.3 s each: `benchmarks/encoders.py`.
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
