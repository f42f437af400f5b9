"""Goodput: the share of a run's wall-clock time that went into steps that count, over all its starts."""

import json

import pytest

from audiosep_jax.training.monitoring import speed
from audiosep_jax.training.monitoring.speed import Goodput


@pytest.fixture
def clock(monkeypatch):
    """Sets the system's clock, in seconds since 1970."""
    return lambda now: monkeypatch.setattr(speed.time, 'time', lambda: now)


def written(goodput: Goodput, step: int, seconds: float, input_wait: float = 0.0) -> dict:
    """The next line of the log, as a run writes it."""
    line = {'step': step, 'loss': None, 'seconds': seconds, 'input_wait': input_wait}
    return line | goodput.add(line)


def lines_of(*lines: dict) -> list[bytes]:
    return [json.dumps(line).encode() for line in lines]


def test_compiling_validating_and_waiting_for_input_are_not_in_steps(clock):
    goodput = Goodput([], after_step=0, started=1000.0)
    clock(1030)  # 20 s of compiling, and steps of 10 s, of which 1 s was spent waiting
    assert written(goodput, 50, 10.0, 0.1) == {
        **{'step': 50, 'loss': None, 'seconds': 10.0, 'input_wait': 0.1},
        **{'time': 1030, 'elapsed': 30.0, 'goodput': pytest.approx(0.3)},
    }
    clock(1060)  # 20 s of validation and a checkpoint, and steps of 10 s
    assert written(goodput, 100, 10.0)['goodput'] == pytest.approx(19 / 60)


def test_a_restart_counts_steps_once_and_the_time_that_the_run_was_down(clock):
    goodput = Goodput([], after_step=0, started=1000.0)
    log = []
    for step, now in ((50, 1010), (100, 1020), (150, 1030)):
        clock(now)
        log.append(written(goodput, step, 10.0))
    assert log[-1]['goodput'] == 1.0
    # The run dies at 1035, starts again at 1090 after step 100, and takes the steps to 150 again.
    resumed = Goodput(lines_of(*log), after_step=100, started=1090.0)
    clock(1100)
    again = written(resumed, 150, 10.0)
    assert again['goodput'] == pytest.approx(30 / 100)
    assert again['elapsed'] == 100
    # The first two lines and the new one are the log now, and say the same to the next start.
    clock(1150)
    third = Goodput(lines_of(*log[:2], again), after_step=150, started=1140.0)
    assert written(third, 200, 10.0)['goodput'] == pytest.approx(40 / 150)


def test_a_run_that_died_before_its_first_checkpoint_keeps_its_first_start(clock):
    clock(1050)
    line = written(Goodput([], after_step=0, started=1000.0), 50, 20.0)
    again = Goodput(lines_of(line), after_step=0, started=1100.0)
    clock(1200)
    assert written(again, 50, 20.0)['goodput'] == pytest.approx(20 / 200)


def test_lines_that_do_not_say_when_they_were_written_do_not_count(clock):
    """Those of earlier versions, of validations, and what a killed run left."""
    old = [
        *lines_of({'step': 50, 'loss': 0.1, 'seconds': 10.0, 'input_wait': 0.0}),
        *lines_of({'step': 50, 'validation': {'SDRi': 1.0}}),
        *lines_of({'step': 50, 'seconds': 1.0, 'input_wait': 0.0, 'time': 'noon', 'elapsed': 3.0}),
        b'{"step": 60, "seco',
        b'\xff',
        b'',
    ]
    goodput = Goodput(old, after_step=50, started=1000.0)
    clock(1040)
    assert written(goodput, 100, 10.0)['goodput'] == pytest.approx(10 / 40)


def test_a_clock_that_is_set_back(clock):
    goodput = Goodput([], after_step=0, started=1000.0)
    clock(900)
    assert written(goodput, 50, 10.0)['goodput'] == 1.0
    assert written(Goodput([], after_step=0, started=1000.0), 50, 10.0, 1.0)['goodput'] == 0.0
