"""A stream that says that it is a terminal."""

import io

import pytest


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 120 columns, for `contextlib.redirect_stderr`."""
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '120')
    return Terminal()
