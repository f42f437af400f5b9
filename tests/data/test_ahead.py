"""Reading ahead in a thread: in order, with failures in their place, and with waits that can be given up."""

import signal
import threading

import pytest

from audiosep_jax.data import ahead
from audiosep_jax.data.ahead import ReadAhead, is_stuck
from audiosep_jax.errors import DataError


class Numbers:
    """0, 1, 2 … up to `most`, and then an error or, with `stuck`, nothing until it is closed."""

    def __init__(self, most, *, stuck=False):
        self.given, self.most, self.stuck, self.closed = 0, most, stuck, threading.Event()

    def __next__(self):
        if self.given == self.most:
            if self.stuck:
                self.closed.wait()
            raise DataError('no more')
        self.given += 1
        return self.given - 1

    def close(self):
        self.closed.set()


def never():
    return False


def test_elements_come_in_order_and_the_failure_in_its_place():
    reader = ReadAhead(Numbers(5))
    assert reader.wait(3, never)
    assert [next(reader) for _ in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(DataError, match='no more'):
            next(reader)
    reader.close()


def test_a_failure_is_known_while_elements_are_left():
    reader = ReadAhead(Numbers(2))
    assert not reader.wait(4, never)
    assert (reader.ready, str(reader.failure)) == (2, 'no more')
    reader.close()


def test_no_more_is_read_than_is_wanted():
    source = Numbers(100)
    reader = ReadAhead(source)
    assert reader.wait(4, never)
    assert source.given == 4
    assert next(reader) == 0
    reader.close()
    assert source.closed.is_set()


def test_a_signal_is_heard_while_the_source_is_stuck():
    reader = ReadAhead(Numbers(1, stuck=True))
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    threading.Timer(0.5, signal.raise_signal, [signal.SIGTERM]).start()
    try:
        assert not reader.wait(2, lambda: bool(heard))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (reader.ready, reader.failure) == (1, None)
    reader.close()
    assert not is_stuck()


def test_a_source_that_cannot_be_closed_is_known_to_be_stuck(monkeypatch):
    monkeypatch.setattr(ahead, '_END_SECONDS', 0.1)
    source = Numbers(0, stuck=True)
    monkeypatch.setattr(source, 'close', lambda: None)
    reader = ReadAhead(source)
    reader.close()
    assert is_stuck()
    source.closed.set()
    reader._thread.join()
    assert not is_stuck()
