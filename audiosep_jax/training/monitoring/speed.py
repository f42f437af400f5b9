"""How fast a run is: the speed of its steps, and the share of its time that went into them."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import jax

from audiosep_jax.errors import DataError
from audiosep_jax.models.cost import peak_flops, training_flops
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.training.config import TrainConfig


class Speedometer:
    """Measures the speed of the steps since it was last read, without the time of checkpoints and validations."""

    def __init__(self, config: TrainConfig, num_devices: int):
        self._batch_size, self._num_devices = config.batch_size, num_devices
        num_samples = round(config.input.segment_seconds * config.model.sample_rate)
        peak = peak_flops(jax.devices()[0].device_kind, config.model.dtype)
        # MFU per (clip/s); None if the peak of the device is not known.
        self._mfu_per_rate = training_flops(config.model, num_samples) / (peak * num_devices) if peak else None
        self.start()

    def start(self) -> None:
        """Measures from now on."""
        self._started, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the time of the block as waiting for the next batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def read(self, steps: int) -> dict[str, float]:
        """Returns the figures of `steps` steps for the log, and starts again.

        `input_wait` is the share of the time in which the loop waited for the next batch, while the devices worked on
        earlier ones. `mfu` counts only the model's own work, not what `remat` computes twice.
        """
        seconds = time.perf_counter() - self._started
        rate = steps * self._batch_size / seconds
        figures = {
            'clips_per_second': rate,
            'clips_per_second_per_device': rate / self._num_devices,
            'input_wait': self._waited / seconds,
            'seconds': seconds,
        }
        if self._mfu_per_rate:
            figures['mfu'] = rate * self._mfu_per_rate
        self.start()
        return figures


class _Timed(TypedDict):
    """A line of `log.jsonl` that says when it was written. Earlier versions wrote none."""

    step: int
    seconds: float
    input_wait: float
    time: float
    elapsed: float


class Goodput:
    """The share of a run's wall-clock time, since its first start, that went into training steps that count.

    The log itself is enough to compute it. The steps of a line took its `seconds`, less the share `input_wait`. The
    time between two lines was spent on compiling, validation and checkpoints, or the run was down. Steps that are taken
    again after a restart count once, because a resumed run drops their earlier lines.

    Args:
        lines: the lines of the log before this start. Those that will be dropped are needed, too: where a run died
            before its first checkpoint, only they know when it first started.
        after_step: the step after which the run resumes.
        started: when this start began, in seconds since 1970.
    """

    def __init__(self, lines: Iterable[bytes], *, after_step: int, started: float):
        timed = [*_timed(lines)]
        self._first_started = min([started, *(line['time'] - line['elapsed'] for line in timed)])
        self._in_steps = sum(_seconds_in_steps(line) for line in timed if line['step'] <= after_step)

    def add(self, line: Mapping[str, Any]) -> dict[str, float]:
        """Returns what a line of the log says of the whole run: `time`, `elapsed` and `goodput`.

        Args:
            line: the next line, with `seconds` and `input_wait`.
        """
        self._in_steps += _seconds_in_steps(line)
        now = time.time()
        elapsed = max(now - self._first_started, self._in_steps)  # the system's clock may have been set back
        return {'time': now, 'elapsed': elapsed, 'goodput': self._in_steps / elapsed if elapsed else 0.0}


def _timed(lines: Iterable[bytes]) -> Iterator[_Timed]:
    """Yields those of the lines that can be read, and that say when they were written."""
    for line in lines:
        with contextlib.suppress(DataError):
            yield parse_json(line, 'log.jsonl', _Timed)


def _seconds_in_steps(line: Mapping[str, Any]) -> float:
    return line['seconds'] * (1 - line['input_wait'])
