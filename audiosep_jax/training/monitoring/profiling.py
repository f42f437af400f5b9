"""Profiles of a run for TensorBoard: traces of a few steps, and a server that takes traces while the run goes on."""

import contextlib
import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from etils import epath
from jax._src.profiler import _profile_state

from audiosep_jax.errors import AudioSepError, ConfigError, first_line
from audiosep_jax.parallel.hosts import gathered
from audiosep_jax.storage.buckets import is_bucket, reaching, write_bytes
from audiosep_jax.training.config import TrainConfig

_STEPS = 5  # of a trace
_WARM_UP = 10  # steps before the trace soon after the start
_KEPT = 10  # traces of `profile_every`


class Traces:
    """Traces a few steps soon after the start, and again every so many steps. A context manager.

    A trace that cannot be taken or written gets a note, and the run goes on.

    Args:
        config: `profile` and `profile_every`.
        workdir: traces go to its folder `profile`, those of `profile_every` to one subfolder each.
        first_step: the step after which the run starts or resumes.
        note: shows a line to the user.
        before_writing: called before anything is written; what it raises prevents that.
    """

    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        first_step: int,
        note: Callable[[str], None],
        *,
        before_writing: Callable[[], None] = lambda: None,
    ):
        self._before_writing = before_writing
        self._folder, self._first, self._note = workdir / 'profile', first_step, note
        self._once, self._every = config.profile, config.profile_every
        self._trace: _Trace | None = None
        self._last_step = 0  # of the trace

    def __enter__(self) -> 'Traces':
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def begin_step(self, step: int) -> None:
        """Ends the trace if it is complete, and starts one if it is due.

        Args:
            step: the steps of the run before this one.
        """
        if step == self._last_step:
            self._end()
        if self._trace is not None:
            return
        if self._once and step - self._first == _WARM_UP:
            self._begin(step, self._folder)
        elif self._every and step % self._every == 0 and step > self._first:
            with self._noting_problems():
                self._before_writing()
                self._make_room()
            self._begin(step, self._folder / f'step-{step}')

    def _begin(self, step: int, folder: Path) -> None:
        with self._noting_problems():
            self._before_writing()
            self._trace = _Trace(folder)
            self._last_step = step + _STEPS

    def _end(self) -> None:
        trace, self._trace = self._trace, None
        if trace is not None:
            with self._noting_problems():
                try:
                    self._before_writing()
                except BaseException:
                    trace.discard()
                    raise
                trace.end()

    def _make_room(self) -> None:
        """Deletes the oldest traces of `profile_every`, so that with the next one there are `_KEPT`."""
        if jax.process_index() > 0 or not self._folder.exists():
            return
        names = [path.name for path in self._folder.iterdir() if re.fullmatch(r'step-\d+', path.name)]
        names.sort(key=lambda name: int(name.removeprefix('step-')))
        for name in names[: -(_KEPT - 1)]:
            epath.Path(self._folder / name).rmtree()

    @contextlib.contextmanager
    def _noting_problems(self) -> Iterator[None]:
        try:
            with reaching(self._folder):
                yield
        except (AudioSepError, OSError, RuntimeError) as error:
            self._note(f'no profile in {self._folder}: {first_line(error)}')


class _Trace:
    """A trace that has begun. XLA writes files into a local folder; those of a bucket are copied there."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._local = Path(tempfile.mkdtemp(prefix='audiosep-')) if is_bucket(folder) else folder
        try:
            jax.profiler.start_trace(self._local)
        except BaseException:
            self._clean_up()
            raise

    def end(self) -> None:
        try:
            jax.profiler.stop_trace()
            if self._local != self._folder:
                for path in sorted(self._local.rglob('*')):
                    if path.is_file():
                        write_bytes(self._folder / path.relative_to(self._local).as_posix(), path.read_bytes())
        finally:
            self.discard()

    def discard(self) -> None:
        # JAX takes a trace that it could not write for one that is still running, and would refuse the next.
        _profile_state.reset()
        self._clean_up()

    def _clean_up(self) -> None:
        if self._local != self._folder:
            shutil.rmtree(self._local, ignore_errors=True)


@contextlib.contextmanager
def profiler_server(port: int) -> Iterator[None]:
    """Lets TensorBoard take a trace of each process while the block runs. All processes must call this.

    Args:
        port: where the first process of each host listens; the next ones have the next ports. 0: there is no server.

    Raises:
        ConfigError: on some host, a port cannot be used.
    """
    if not port:
        yield
        return
    hosts = gathered(platform.node())
    index = jax.process_index()
    port += hosts[:index].count(hosts[index])
    # JAX does not say that its server could not be started.
    problems = gathered(_problem_with(port))
    for host, problem in zip(hosts, problems, strict=True):
        if problem:
            raise ConfigError(f'--profiler-port: on {host}, {problem}; choose another port')
    jax.profiler.start_server(port)
    try:
        yield
    finally:
        jax.profiler.stop_server()


def _problem_with(port: int) -> str:
    """Returns why no server can listen at a port; '' if one can."""
    if port >= 1 << 16:
        return f'port {port} cannot be used: the last one is 65535'
    try:
        socket.create_server(('', port)).close()
    except OSError as error:
        return f'port {port} cannot be used: {os.strerror(error.errno) if error.errno else error}'
    return ''
