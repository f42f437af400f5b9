"""Shows the progress of long work on the terminal."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_PATIENCE = 5.0  # seconds that need no explanation
_MINUTE = 60.0  # seconds
_XLA_WARNS_AFTER = 2  # minutes


class _RateColumn(ProgressColumn):
    """How many items are finished per second."""

    def render(self, task: Task) -> Text:
        return Text(f'{task.speed:.0f}/s' if task.speed else '')


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar on stderr until the end, if that is a terminal. Yields `show(done, total)`, which moves the bar."""
    with _bar(description, MofNCompleteColumn(), _RateColumn()) as show:
        yield show


@contextlib.contextmanager
def download_bar(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar as `progress_bar` does. Yields `show(done, total)` in bytes; the total may be unknown."""
    with _bar(description, DownloadColumn(), TransferSpeedColumn()) as show:
        yield show


@contextlib.contextmanager
def _bar(description: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    with Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
        # rich redirects what is printed meanwhile to the bar's stream, which is right only if both are the screen.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def printed_progress(
    verb: str, show: Callable[[int, int], None], *, every: float = 30.0
) -> Iterator[Callable[[int, int], None]]:
    """Adds progress lines for logs to a progress bar, which a file does not show.

    Args:
        verb: what the lines begin with, for example 'evaluated'.
        show: a bar's `show(done, total)`.
        every: seconds from one line to the next.

    Yields:
        `report(done, total)`, which calls `show` and, if stderr is no terminal, prints a line with the rate now and
        then.
    """
    started = last_line = time.perf_counter()
    done_before: int | None = None  # by an earlier run, which this one resumes

    def report(done: int, total: int) -> None:
        nonlocal last_line, done_before
        show(done, total)
        now = time.perf_counter()
        done_before = done if done_before is None else done_before
        if not sys.stderr.isatty() and now - last_line >= every:
            last_line = now
            rate = (done - done_before) / (now - started)
            print(f'{verb} {done} of {total}, {rate:.1f} a second', file=sys.stderr, flush=True)

    yield report


@contextlib.contextmanager
def explained_compilation(show: Callable[[str], None], *, then: str = '') -> Iterator[None]:
    """While the block compiles a training step, says what takes so long, and each minute that it still goes on.

    XLA's own warning, 'Very slow compile?', cannot be turned off without losing the reasons of real failures, so a line
    says what it means.

    Args:
        show: shows a line to the user; called from another thread.
        then: what a last line announces, if there were others; '' for no such line.
    """
    ended = threading.Event()
    started = time.monotonic()

    def explain() -> None:
        if ended.wait(_PATIENCE):
            return
        show(
            'compiling the training step: usually less than a minute for a small network and one to three for the full '
            'size, several times as long on a busy machine'
        )
        minutes = 1
        while not ended.wait(max(started + minutes * _MINUTE - time.monotonic(), 0)):
            xla = '; if XLA asks "Very slow compile?", nothing is wrong' if minutes + 1 == _XLA_WARNS_AFTER else ''
            show(f'still compiling after {minutes} min{xla}')
            minutes += 1

    thread = threading.Thread(target=explain, name='compiling', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    seconds = time.monotonic() - started
    if then and seconds > _PATIENCE:
        show(f'compiled in {seconds:.0f} s; {then}')
