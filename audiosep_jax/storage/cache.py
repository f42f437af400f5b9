"""The user's cache folder, and in it JAX's compilation cache, which spares a program's next start compiling again.

In a container there may be no home folder, or one that cannot be written. Everything works there, too: caches are then
temporary, or off. `$XDG_CACHE_HOME` names a folder in which to keep them.
"""

import functools
import os
import tempfile
from pathlib import Path

from audiosep_jax.storage.buckets import is_bucket


def cache_folder() -> Path:
    """Returns this project's cache folder: `$XDG_CACHE_HOME/audiosep_jax`, by default `~/.cache/audiosep_jax`.

    Where it cannot be written, this is a temporary folder, which is removed when the process ends.
    """
    kept = _kept()
    return Path(_temporary().name) if kept is None else kept / 'audiosep_jax'


def is_kept() -> bool:
    """Returns whether what is in the cache folder stays there when the process ends."""
    return _kept() is not None


def enable_compilation_cache() -> None:
    """Turns on JAX's compilation cache in this process, unless `JAX_COMPILATION_CACHE_DIR` already names a folder."""
    chosen = os.environ.get('JAX_COMPILATION_CACHE_DIR', '')
    if is_bucket(chosen) and 'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES' not in os.environ:
        import jax

        # For GPUs, XLA also keeps there which kernels are fast. It cannot write to buckets, so compiling would fail.
        jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
    elif not chosen and is_kept():
        import jax

        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
        # JAX's default is 1 s, but the encoders compile layer by layer, 0.1 to 0.3 s each (`benchmarks/encoders.py`).
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)


def give_libraries_a_cache() -> None:
    """Where the user's cache cannot be written, gives matplotlib and huggingface_hub a temporary one.

    Call it before importing either, because they look for their folders then.
    """
    if not is_kept():
        os.environ.setdefault('MPLCONFIGDIR', str(cache_folder() / 'matplotlib'))
        os.environ.setdefault('HF_HOME', str(cache_folder() / 'huggingface'))


def expanded(path: str | os.PathLike) -> Path:
    """Returns the path with `~` replaced by the home folder, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _kept() -> Path | None:
    """Returns the folder of all the user's caches; None if it cannot be written."""
    try:
        folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except (OSError, RuntimeError):  # no home, or one that may not be looked into
        return None
    return folder if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK) else None


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix='audiosep_jax-')
