"""Shows the progress of a training run on the terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class TrainingProgress:
    """A bar on a terminal, or one printed line per update for the logs of batch systems. A context manager.

    Args:
        step: the steps taken already.
        steps: the steps of the whole run.
        quiet: show nothing, because one of several processes is enough.
    """

    def __init__(self, step: int, steps: int, *, quiet: bool = False):
        self._first, self._steps = step, steps
        self._since = (step, time.perf_counter())
        self._is_warm = False
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._progress = Progress(
            TextColumn('step {task.completed}/{task.total}'),
            BarColumn(),
            TextColumn('{task.description}'),
            console=Console(stderr=True),
            disable=not self._live,
        )
        self._task = self._progress.add_task('compiling …', total=steps, completed=step)

    def __enter__(self) -> 'TrainingProgress':
        self._progress.start()
        self._print(f'step {self._first}/{self._steps}  compiling …')
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, clips_per_second: float, skipped: int = 0) -> None:
        """Shows the state after `step` steps. The time left is extrapolated from this run's own pace.

        Args:
            step: the steps taken.
            loss: the mean loss since the last update.
            clips_per_second: the mean speed since the last update.
            skipped: how many steps were skipped.
        """
        first, started = self._since
        now = time.perf_counter()
        pace = (now - started) / max(step - first, 1)
        if not self._is_warm:  # the first steps include the compilation, so the next estimate starts after them
            self._is_warm, self._since = True, (step, now)
        text = f'loss {loss:.5f}  {clips_per_second:.1f} clips/s  {_clock(pace * (self._steps - step))} left'
        if skipped:
            text += f'  {skipped} skipped'
        if self._live:
            self._progress.update(self._task, completed=step, description=text)
        else:
            self._print(f'step {step}/{self._steps}  {text}')

    def note(self, text: str) -> None:
        """Shows a line that stays on the screen."""
        if self._live:
            self._progress.console.print(text)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        if not self._live and not self._quiet:
            print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
