"""Processes that meet: all of them, too few, two with one number, and others that happen to knock. Here, threads."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.processes import free_address

from audiosep_jax.errors import ConfigError
from audiosep_jax.parallel import meeting
from audiosep_jax.parallel.meeting import Place, meet


@pytest.fixture
def address():
    return free_address()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(meeting, '_QUIET_SECONDS', 0.0)
    monkeypatch.setattr(meeting, '_RETRY_SECONDS', 0.05)


def outcomes(places, seconds):
    """What each process gets: None, or its error."""

    def outcome(place):
        try:
            meet(place, seconds)
        except ConfigError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(outcome, places))


@pytest.mark.parametrize('count', [1, 2, 5])
def test_all_come_and_leave_the_port_to_jax(address, count):
    assert outcomes([Place(address, count, n) for n in reversed(range(count))], 60) == [None] * count
    with meeting._listening(Place(address, count, 0)):
        pass


def test_all_are_told_who_is_missing(address, capsys):
    first, third = outcomes([Place(address, 4, 0), Place(address, 4, 2)], 2)
    assert first == third
    assert first.startswith(f'processes 1, 3 of 4 did not come to process 0 at {address} within 2 s: start ')
    said = capsys.readouterr().err
    assert f'waits for processes 1, 2, 3 at {address}' in said or f'waits for processes 1, 3 at {address}' in said
    assert 'process 2 of 4 waits for ' in said
    assert '(--join-seconds 2)' in said


def test_process_0_never_comes(address, capsys):
    (said,) = outcomes([Place(address, 2, 1)], 1)
    assert said.startswith(f'process 1 of 2 did not reach process 0 at {address} within 1 s (Connection refused)')
    assert f'process 1 of 2 waits for process 0 at {address} (Connection refused)' in capsys.readouterr().err


@pytest.mark.parametrize('index', [0, 1])
def test_a_name_that_does_not_resolve(index, monkeypatch, capsys):
    def unknown(*arguments, **settings):
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    (said,) = outcomes([Place('nowhere.invalid:1234', 2, index)], 1)
    assert 'nowhere.invalid' in said
    assert 'Name or service not known' in said
    assert '\n' not in said
    assert 'nowhere.invalid' in capsys.readouterr().err


def test_two_with_one_number_or_other_counts_all_say_so(address):
    said = outcomes([Place(address, 3, 0), Place(address, 3, 1), Place(address, 3, 1)], 60)
    assert said == ['two processes say that they are process 1 of 3: check --process-id'] * 3
    first, second = outcomes([Place(address, 2, 0), Place(address, 3, 1)], 60)
    assert first == second
    assert first.startswith('process 1 was told of 3 processes, and process 0 of 2: ')


@pytest.mark.parametrize(
    'words', [b'GET / HTTP/1.1\r\n\r\n', b'', b'x' * 10_000, b'audiosep-jax one 2\n', b'\xff\xfe\n']
)
def test_strangers_are_sent_away(address, words):
    place = Place(address, 2, 0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, place, 60)
        connection = next(c for c, _ in meeting._attempts(place) if c)
        with connection:
            if words:
                connection.sendall(words)
        meet(Place(address, 2, 1), 60)
        first.result()


def test_a_taken_port_is_one_line(address):
    with (
        meeting._listening(Place(address, 2, 0)),
        pytest.raises(ConfigError, match='Address already in use: choose an'),
    ):
        meet(Place(address, 2, 0), 1)


def test_a_process_that_ended_may_be_started_again(address):
    place = Place(address, 3, 0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, place, 60)
        connection = next(c for c, _ in meeting._attempts(place) if c)
        with connection:
            connection.sendall(b'audiosep-jax 1 3\n')
        others = [pool.submit(meet, Place(address, 3, 2), 60)]
        meet(Place(address, 3, 1), 60)
        first.result()
        others[0].result()
