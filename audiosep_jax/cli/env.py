"""The command `audiosep-jax env`: what this program runs on, to paste into a bug report.

Whatever cannot be found out is said in the place of the value, so that the command never fails because of it. Nothing
personal is in it: the home folder is written as `~`, and the user's name in other paths as `USER`. Host names, tokens
and the names of cached repositories are not read.
"""

import dataclasses
import functools
import getpass
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audiosep_jax
from audiosep_jax.cli import terminal
from audiosep_jax.storage.cache import cache_folder, is_kept

_PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'scipy', 'ml_dtypes', 'soundfile', 'av'),
    *('soxr', 'tokenizers', 'safetensors', 'huggingface_hub', 'protobuf', 'tyro', 'wordllama'),
)
# The package by which each extra of setup.cfg is recognized.
EXTRAS = {
    'cuda12': 'jax-cuda12-plugin',
    'cuda13': 'jax-cuda13-plugin',
    'tpu': 'libtpu',
    'demo': 'gradio',
    'mcp': 'mcp',
    'export': 'onnx',
    'speech': 'pesq',
    'wandb': 'wandb',
    'gcs': 'gcsfs',
    's3': 's3fs',
    'beam': 'apache-beam',
}
# Variables that change what is computed, or where it is kept.
_VARIABLES = (
    *('JAX_PLATFORMS', 'XLA_FLAGS', 'JAX_ENABLE_X64', 'JAX_DEFAULT_MATMUL_PRECISION', 'JAX_COMPILATION_CACHE_DIR'),
    *('XLA_PYTHON_CLIENT_PREALLOCATE', 'XLA_PYTHON_CLIENT_MEM_FRACTION', 'CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS'),
    *('XDG_CACHE_HOME', 'HF_HOME', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE'),
)
_DEVICE_SECONDS, _CACHE_SECONDS = 20.0, 2.0


@dataclasses.dataclass(frozen=True)
class Env:
    """Describe this installation for a bug report: versions, devices, memory, caches and optional extras.

    The home folder is shown as ~, and nothing else that is personal is read.
    """

    json: bool = False
    """Print it as JSON."""


def run(command: Env) -> int:
    """Prints the description; returns 0."""
    found = private(describe())
    if command.json:
        terminal.say(json.dumps(found, indent=None, ensure_ascii=False))
        return 0
    for section, entries in found.items():
        terminal.say(section)
        width = max((len(name) for name in entries), default=0)
        for name, value in entries.items():
            terminal.say(f'  {name:<{width}}  {value}')
    return 0


def describe() -> dict[str, dict[str, Any]]:
    """Returns the description by section and name, with paths as they are."""
    return {
        'versions': {
            'audiosep_jax': audiosep_jax.__version__,
            'python': f'{platform.python_version()} ({platform.python_implementation()})',
            **{name: _version(name) for name in _PACKAGES},
            'libsndfile': _probed(_libsndfile),
            'ffmpeg': _probed(_ffmpeg),
        },
        'extras': {extra: _version(package) for extra, package in EXTRAS.items()},
        'system': {
            'platform': _probed(platform.platform),
            'cpu': _probed(_cpu),
            'memory': _probed(_memory),
            'package': str(Path(audiosep_jax.__file__).parent),
            'executable': sys.executable,
            'locale': _probed(lambda: f'{sys.getfilesystemencoding()}, {sys.stdout.encoding}'),
        },
        'devices': _devices(),
        'caches': _caches(),
        'variables': {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def private(value: Any) -> Any:
    """Returns a description in which no path names the user."""
    if isinstance(value, dict):
        return {name: private(part) for name, part in value.items()}
    if not isinstance(value, str):
        return value
    for home in {os.path.expanduser('~'), os.path.realpath(os.path.expanduser('~'))}:
        if len(home) > 1:
            value = re.sub(rf'{re.escape(home)}(?![\w.-])', '~', value)
    name = _probed(getpass.getuser)
    # Only a whole folder: the name may be a word.
    return re.sub(rf'(?<=/){re.escape(name)}(?=/|$|[:,\s])', 'USER', value) if name else value


def _probed(probe: Callable[[], Any]) -> Any:
    """Returns what a probe finds, or why it finds nothing."""
    try:
        return probe()
    except Exception as error:  # a broken library may raise anything
        return f'unknown ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "no message"})'


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'
    except Exception as error:  # damaged metadata
        return f'unknown ({type(error).__name__})'


def _libsndfile() -> str:
    import soundfile

    return soundfile.__libsndfile_version__


def _ffmpeg() -> str:
    import av

    return ', '.join(f'{name} {".".join(map(str, number))}' for name, number in sorted(av.library_versions.items()))


def _cpu() -> str:
    names = re.findall(r'^model name\s*:\s*(.+)$', _text('/proc/cpuinfo'), re.M)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{names[0] if names else platform.processor() or platform.machine()}, {usable} of {os.cpu_count()} cores'


def _memory() -> str:
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    available = re.search(r'^MemAvailable:\s*(\d+) kB', _text('/proc/meminfo'), re.M)
    limit = _text('/sys/fs/cgroup/memory.max').strip()
    parts = [_size(total)]
    parts += [f'{_size(1024 * int(available[1]))} available'] if available else []
    parts += [f'limited to {_size(int(limit))}'] if limit.isdigit() else []
    return ', '.join(parts)


def _text(path: str) -> str:
    try:
        return Path(path).read_text('utf-8', 'replace')
    except OSError:
        return ''


def _devices() -> dict[str, Any]:
    """Returns JAX's devices. A driver that hangs is given up after a while."""
    found: dict[str, Any] = {}

    def look() -> None:
        import jax

        found['backend'] = jax.default_backend()
        for device in jax.local_devices():
            memory = _probed(device.memory_stats) if device.platform != 'cpu' else None
            limit = memory.get('bytes_limit') if isinstance(memory, dict) else None
            found[str(device)] = f'{device.device_kind}{f", {_size(limit)}" if limit else ""}'

    thread = threading.Thread(target=lambda: found.update(error=result) if (result := _probed(look)) else None)
    thread.daemon = True
    thread.start()
    thread.join(_DEVICE_SECONDS)
    return found if not thread.is_alive() else {'error': f'no answer within {_DEVICE_SECONDS:.0f} s'}


def _caches() -> dict[str, str]:
    """Returns the folders of the caches and their sizes."""
    ours = cache_folder()
    hub = os.environ.get('HF_HUB_CACHE') or os.path.join(
        os.environ.get('HF_HOME') or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'huggingface'), 'hub'
    )
    compiled = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(ours / 'xla')
    kept = '' if is_kept() else ' (temporary: the cache folder cannot be written)'
    folders = {'audiosep_jax': str(ours), 'compiled programs': compiled, 'hub': os.path.expanduser(hub)}
    return {
        name: f'{_probed(functools.partial(_folder_size, folder))}, {folder}{kept}' for name, folder in folders.items()
    }


def _folder_size(folder: str) -> str:
    """Returns the size of the files below a folder; of a huge one, that of those seen in two seconds."""
    if not os.path.isdir(folder):
        return 'none'
    end, total = time.monotonic() + _CACHE_SECONDS, 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path) and os.path.exists(path):  # another process may have removed it
                total += os.path.getsize(path)
        if time.monotonic() > end:
            return f'more than {_size(total)}'
    return _size(total)


def _size(count: int) -> str:
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'
