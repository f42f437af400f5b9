"""Progress of a training run: one line that is redrawn on a terminal, and a line per update in a log."""

import contextlib

import pytest
from support.terminal import wide_terminal

from audiosep_jax.training.monitoring.progress import TrainingProgress, _clock


def test_training_writes_a_line_per_update_to_a_log(capsys):
    with TrainingProgress(10, 30) as progress:
        progress.update(30, 0.012344, 5.04, skipped=2)
        progress.note('a note')
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'step 10/30  compiling …'
    assert lines[1] == 'step 30/30  loss 0.01234  5.0 clips/s  0:00 left  2 skipped'
    assert lines[2:] == ['a note']


def test_training_redraws_one_line_on_a_terminal(monkeypatch):
    terminal = wide_terminal(monkeypatch)
    with contextlib.redirect_stderr(terminal), TrainingProgress(0, 30) as progress:
        progress.update(3, 0.5, 7.0)
        progress.note('a note')
    for part in ('step 3/30', 'loss 0.50000', '7.0 clips/s', 'left', 'a note\n'):
        assert part in terminal.getvalue()


def test_time_left_does_not_count_the_compilation(capsys, monkeypatch):
    now = iter([0.0, 100.0, 104.0])  # made; after a first step with its compilation; after two more steps
    monkeypatch.setattr('audiosep_jax.progress.time.perf_counter', lambda: next(now))
    progress = TrainingProgress(0, 13)
    progress.update(1, 0.5, 1.0)
    progress.update(3, 0.5, 1.0)
    assert '0:20 left' in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (59.6, '1:00'), (3661, '1:01:01'), (360000, '100:00:00')])
def test_time_left_in_hours_minutes_and_seconds(seconds, text):
    assert _clock(seconds) == text
