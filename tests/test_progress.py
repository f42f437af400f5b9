"""Progress of long work: a bar on a terminal; in a log no bar, but lines with the rate."""

import contextlib

from support.terminal import wide_terminal

from audiosep_jax.progress import printed_progress, progress_bar


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
