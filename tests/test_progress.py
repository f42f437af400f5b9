"""Progress of long work: a bar on a terminal; in a log no bar, but lines with the rate."""

import contextlib
import time

import pytest
from support.terminal import wide_terminal

from audiosep_jax import progress as progress_module
from audiosep_jax.progress import explained_compilation, printed_progress, progress_bar


def test_a_log_has_lines_with_the_rate(capsys):
    shown = []
    with printed_progress('embedded', lambda *counts: shown.append(counts), every=0) as progress:
        progress(100, 300)
        progress(200, 300)
    assert shown == [(100, 300), (200, 300)]
    assert capsys.readouterr().err.splitlines()[1].startswith('embedded 200 of 300, ')
    with printed_progress('embedded', lambda *counts: None, every=60) as progress:
        progress(100, 300)
    assert capsys.readouterr().err == ''


def test_a_bar_counts_on_a_terminal(monkeypatch):
    terminal = wide_terminal(monkeypatch)
    with contextlib.redirect_stderr(terminal), progress_bar('building') as show:
        show(3, 7)
    assert 'building' in terminal.getvalue()
    assert '3/7' in terminal.getvalue()


def test_a_bar_is_silent_in_a_log(capsys):
    with progress_bar('building') as show:
        show(3, 7)
        print('one line')
    assert capsys.readouterr() == ('one line\n', '')


def test_a_quick_compilation_needs_no_words():
    shown = []
    with explained_compilation(shown.append, then='now training'):
        pass
    assert shown == []


def test_a_long_compilation_says_what_it_does_and_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(progress_module, '_PATIENCE', 0.01)
    monkeypatch.setattr(progress_module, '_MINUTE', 0.05)
    shown = []
    deadline = time.monotonic() + 60
    with explained_compilation(shown.append, then='now training'):
        while len(shown) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert 'usually less than a minute for a small network' in shown[0]
    assert shown[1] == 'still compiling after 1 min; if XLA asks "Very slow compile?", nothing is wrong'
    assert shown[2] == 'still compiling after 2 min'
    assert shown[-1] == 'compiled in 0 s; now training'


def test_a_compilation_that_fails_is_not_called_compiled(monkeypatch):
    monkeypatch.setattr(progress_module, '_PATIENCE', 0.0)
    shown = []
    with pytest.raises(RuntimeError), explained_compilation(shown.append, then='now training'):
        raise RuntimeError
    assert not any('compiled in' in line for line in shown)
