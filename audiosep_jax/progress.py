"""What the terminal shows of long work: a bar, and the live line of a training run."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f'{task.speed:.0f}/s' if task.speed else '')


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, gone at the end; nothing where that is no terminal. Yields `show(done, total)`."""
    with Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
        # rich would send what is printed meanwhile to the bar's stream; harmless only where both are the screen.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def printed_progress(
    verb: str, show: Callable[[int, int], None], *, every: float = 30.0
) -> Iterator[Callable[[int, int], None]]:
    """Passes on to `show`; where there is no terminal, also prints a line with the rate every so many seconds."""
    started = said = time.perf_counter()
    before: int | None = None  # what was there already, of a run that is continued

    def report(done: int, total: int) -> None:
        nonlocal said, before
        show(done, total)
        now = time.perf_counter()
        before = done if before is None else before
        if not sys.stderr.isatty() and now - said >= every:
            said = now
            rate = (done - before) / (now - started)
            print(f'{verb} {done} of {total}, {rate:.1f} a second', file=sys.stderr, flush=True)

    yield report
