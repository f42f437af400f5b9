"""Eight CPU devices for every test, one compilation cache for all of them and for the programs that they start."""

import collections
import ctypes
import gc
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

from support.compiling import xla_flags
from support.paths import REFERENCE

# Before jax is imported: it reads these once.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {xla_flags(devices=8)}'
_CACHE = Path(tempfile.gettempdir()) / f'audiosep_jax_tests_{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

# A shell's background jobs ignore Ctrl-C, and hand that on to the programs that they start, which tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# glibc gives every thread an arena, and XLA, PyTorch and Grain have many threads. With two, a worker holds a third
# less. It also keeps what is freed, of ever larger blocks; with a fixed threshold, those over 1 MiB go back at once.
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of <malloc.h>
if hasattr(_LIBC, 'mallopt'):
    _LIBC.mallopt(_M_ARENA_MAX, 2)
    _LIBC.mallopt(_M_MMAP_THRESHOLD, 1 << 20)

import hypothesis  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from support.fake_bucket import bucket  # noqa: E402, F401
from support.offline import offline  # noqa: E402, F401
from support.shape_checks import check_shapes_of  # noqa: E402

check_shapes_of('audiosep_jax.models', 'audiosep_jax.separation', 'audiosep_jax.audio.stft', 'audiosep_jax.training')

# No deadline: the first example imports or compiles, and machines that run tests are busy.
hypothesis.settings.register_profile('suite', deadline=None)
hypothesis.settings.load_profile('suite')


def pytest_collection_modifyitems(items):
    """Sorts the files: those that take much memory, then those with slow tests, then the others.

    A worker holds least in the beginning, and none should have slow tests left when the others have nothing more to do.
    """
    for item in items:
        # `-m "not slow"` replaces the `-m "not nightly"` of setup.cfg.
        assert not item.get_closest_marker('nightly') or item.get_closest_marker('slow'), f'{item.nodeid} is not slow?'
    slow = collections.Counter(item.path for item in items if item.get_closest_marker('slow'))
    large = {item.path for item in items if item.get_closest_marker('large')}
    items.sort(key=lambda item: (item.path not in large, -slow[item.path]))


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


_peak = 0, 'no test'
_peaks = []
_GROWTH_BYTES = 400 << 20
_after_freeing = psutil.Process().memory_info().rss


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Frees what tests compiled, after each file and when a file's tests have left much behind.

    A worker would otherwise keep the programs of every file, several GB. Compiling again is cheap: they are cached on
    disk.
    """
    global _after_freeing, _peak
    yield
    _peak = max(_peak, (_peak_bytes(), item.nodeid), key=lambda peak: peak[0])
    file_ends = nextitem is None or nextitem.path != item.path
    if 'jax' in sys.modules and (file_ends or psutil.Process().memory_info().rss > _after_freeing + _GROWTH_BYTES):
        sys.modules['jax'].clear_caches()
        gc.collect()
        if hasattr(_LIBC, 'malloc_trim'):
            _LIBC.malloc_trim(0)
        _after_freeing = psutil.Process().memory_info().rss


def pytest_sessionfinish(session):
    if hasattr(session.config, 'workeroutput'):  # in a worker of pytest-xdist
        session.config.workeroutput['peak'] = _peak
    else:
        _peaks.append(_peak)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _peaks.append(tuple(getattr(node, 'workeroutput', {}).get('peak', _peak)))


def pytest_terminal_summary(terminalreporter):
    peak, test = max(_peaks)
    terminalreporter.write_line(f'peak memory of a process that ran tests: {peak / 1e9:.2f} GB, in {test}')


@pytest.fixture(scope='module')
def reference():
    """Outputs of the original PyTorch separator (tests/reference/README.md)."""
    import numpy as np

    with np.load(REFERENCE / 'resunet30_reference.npz') as archive:
        return dict(archive)


@pytest.fixture(scope='module')
def reference_state(reference):
    """The state dict behind those outputs, rebuilt from names and shapes; without the fixed STFT matrices.

    It takes 100 MB, hence once for each file that wants it: made in a second, and then given back.
    """
    import json

    from support.reference_weights import separator_tensor

    entries = zip(reference['state_names'], reference['state_shapes'], reference['analytic'], strict=True)
    return {str(n): separator_tensor(str(n), tuple(json.loads(str(s)))) for n, s, analytic in entries if not analytic}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quarter(monkeypatch):
    """What the command line then gets for a checkpoint of any name: a separator without a network."""
    from support.quarter_separator import QuarterSeparator

    from audiosep_jax.cli import terminal

    fake = QuarterSeparator()
    monkeypatch.setattr(terminal, 'load', lambda path, **options: fake)
    return fake


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    """What the tests of training train on: 24 short clips and their embeddings."""
    from support.small_dataset import build_small

    directory = tmp_path_factory.mktemp('dataset')
    build_small(directory, 24)
    return directory


@pytest.fixture(scope='module')
def shared_programs():
    """For a file with many equal training runs: what they compile, they share."""
    from support.training_runs import shared_programs

    with shared_programs():
        yield
