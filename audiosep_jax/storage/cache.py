"""The user's cache folder, and in it JAX's compilation cache, which spares a program's next start compiling again."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Returns this project's cache folder: `$XDG_CACHE_HOME/audiosep_jax`, by default `~/.cache/audiosep_jax`."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'audiosep_jax'


def enable_compilation_cache() -> None:
    """Turns on JAX's compilation cache in this process, unless `JAX_COMPILATION_CACHE_DIR` already names a folder."""
    if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
        # JAX's default is 1 s, but the encoders compile layer by layer, 0.1 to 0.3 s each (`benchmarks/encoders.py`).
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
