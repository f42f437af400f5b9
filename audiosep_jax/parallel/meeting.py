"""The processes of a run meet before JAX joins them, because JAX waits without a word and then aborts the program.

Process 0 listens at the coordinator's address, where JAX's service will listen later. The others connect and say their
number. When all have come, process 0 tells them to go on; when time runs out, it tells them who is missing.
"""

import contextlib
import dataclasses
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterator

from audiosep_jax.errors import ConfigError, listed

_QUIET_SECONDS = 1.0  # usually all come within this time, and then nothing is said
_REPEAT_SECONDS = 30.0
_RETRY_SECONDS = 0.5
_GREETING = 'audiosep-jax'
_MAX_LINE = 200  # bytes; whoever sends more is none of the processes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the processes meet.

    Attributes:
        address: HOST:PORT of process 0.
        count: number of processes.
        index: this process's number, from 0.
    """

    address: str
    count: int
    index: int

    @property
    def host(self) -> str:
        """The name or number of process 0's host."""
        return self.address.rpartition(':')[0].strip('[]')

    @property
    def port(self) -> int:
        """The port of process 0."""
        return int(self.address.rpartition(':')[2])


def meet(place: Place, seconds: float) -> None:
    """Returns when all processes have come.

    Args:
        place: where they meet.
        seconds: how long to wait for them.

    Raises:
        ConfigError: a process did not come in time, two have the same number, or they were told different numbers of
            processes.
    """
    if place.count > 1:
        (_wait_for_others if place.index == 0 else _wait_for_first)(place, _Patience(place, seconds))


class _Patience:
    """How long this process waits. It says on stderr for whom: soon after the start, and again every half minute."""

    def __init__(self, place: Place, seconds: float):
        self._place, self.seconds = place, seconds
        self.deadline = time.monotonic() + seconds
        self.begin()

    def begin(self) -> None:
        """Says nothing for a moment, because what is waited for from now on is likely to come at once."""
        self._next = time.monotonic() + _QUIET_SECONDS

    def say(self, whom: str) -> None:
        """Says for whom this process waits, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REPEAT_SECONDS
        left = max(self.deadline - time.monotonic(), 0)
        print(
            f'process {self._place.index} of {self._place.count} waits for {whom}; {left:.0f} s left '
            f'(--join-seconds {self.seconds:g})',
            file=sys.stderr,
            flush=True,
        )

    def go_on(self, whom: str, too_late: str) -> None:
        """Says for whom this process waits, if it is time to. Raises ConfigError(too_late) if time is up."""
        if time.monotonic() > self.deadline:
            raise ConfigError(too_late)
        self.say(whom)


# ---- Process 0 ----


def _wait_for_others(place: Place, patience: _Patience) -> None:
    _check_name(place, patience)
    patience.begin()
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_listening(place))
        except OSError as error:
            raise ConfigError(
                f'process 0 cannot listen at port {place.port} (--coordinator {place.address}): '
                f'{os.strerror(error.errno) if error.errno else error}: choose another port'
            ) from error
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        try:
            while missing := [n for n in range(1, place.count) if n not in here]:
                names = _processes(missing)
                patience.go_on(
                    f'{names} at {place.address}',
                    f'{names} of {place.count} did not come to process 0 at {place.address} within '
                    f'{patience.seconds:g} s: start the same command for each, or correct --num-processes; see '
                    '--join-seconds',
                )
                for key, _ in selector.select(_RETRY_SECONDS):
                    if key.fileobj is server:
                        guest = stack.enter_context(server.accept()[0])
                        guest.setblocking(False)
                        selector.register(guest, selectors.EVENT_READ, bytearray())
                    else:
                        _listen_to(key, selector, here, place)
        except ConfigError as error:
            _tell(here, str(error))
            raise
        _tell(here, 'go')
        for guest in here.values():  # who closes first keeps the port for a minute, so the others should
            guest.settimeout(_RETRY_SECONDS)
            with contextlib.suppress(OSError):
                guest.recv(1)


def _listening(place: Place) -> socket.socket:
    """Returns a socket that listens where JAX's service will: at the coordinator's port of all of the host's addresses.

    Raises:
        OSError: the port is taken.
    """
    port = int(os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', f':{place.port}').rpartition(':')[2])
    backlog = max(place.count, 128)
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(('', port), backlog=backlog)


def _listen_to(
    key: selectors.SelectorKey, selector: selectors.BaseSelector, here: dict[int, socket.socket], place: Place
) -> None:
    """Reads what a guest says, and enters it into `here` once it has said its number. Strangers are sent away."""
    guest, said = key.fileobj, key.data
    assert isinstance(guest, socket.socket)
    try:
        heard = guest.recv(_MAX_LINE)
    except BlockingIOError:
        return
    except OSError:
        heard = b''
    said += heard
    known = [n for n, other in here.items() if other is guest]
    if not heard or known or len(said) > _MAX_LINE:  # gone, or not one of us
        selector.unregister(guest)
        guest.close()
        for n in known:  # a process that has ended may be started again
            del here[n]
    elif said.endswith(b'\n'):
        try:
            number = _number_of(said.decode('ascii', 'replace').split(), place)
            if number in here:
                raise ConfigError(
                    f'two processes say that they are process {number} of {place.count}: check --process-id'
                )
        except ConfigError:
            here[-1] = guest  # to be told, too
            raise
        if number is None:
            selector.unregister(guest)
            guest.close()
        else:
            here[number] = guest


def _number_of(words: list[str], place: Place) -> int | None:
    """Returns the number of the process that says these words, or None if it is a stranger. Raises ConfigError."""
    if len(words) != 3 or words[0] != _GREETING or not (words[1].isdigit() and words[2].isdigit()):
        return None
    number, count = int(words[1]), int(words[2])
    if count != place.count or not 0 < number < count:
        raise ConfigError(
            f'process {number} was told of {count} processes, and process 0 of {place.count}: give all of them the '
            'same --num-processes, and each its own --process-id'
        )
    return number


def _tell(guests: dict[int, socket.socket], line: str) -> None:
    for guest in guests.values():
        with contextlib.suppress(OSError):
            guest.setblocking(True)
            guest.sendall(f'{line}\n'.encode())


def _processes(numbers: list[int]) -> str:
    return f'process{"es" if len(numbers) > 1 else ""} {listed([str(n) for n in numbers])}'


# ---- The others ----


def _wait_for_first(place: Place, patience: _Patience) -> None:
    for connection, problem in _attempts(place):
        if connection is not None:
            with connection:
                answer = _answer(connection, place, patience)
            if answer == 'go':
                return
            if answer:
                raise ConfigError(answer)
            problem = 'it has gone again'
        patience.go_on(
            f'process 0 at {place.address} ({problem})',
            f'process {place.index} of {place.count} did not reach process 0 at {place.address} within '
            f'{patience.seconds:g} s ({problem}): is it running, and is --coordinator its address? See --join-seconds',
        )
        time.sleep(_RETRY_SECONDS)


def _attempts(place: Place) -> Iterator[tuple[socket.socket | None, str]]:
    """Yields, for each attempt to reach process 0, the connection or else what is wrong."""
    while True:
        try:
            yield socket.create_connection((place.host, place.port), timeout=10), ''
        except OSError as error:
            yield None, error.strerror or str(error)


def _answer(connection: socket.socket, place: Place, patience: _Patience) -> str:
    """Greets process 0 and returns its answer; '' if it ends without one."""
    said = bytearray()
    with contextlib.suppress(ConnectionError):
        connection.sendall(f'{_GREETING} {place.index} {place.count}\n'.encode())
        connection.settimeout(_RETRY_SECONDS)
        # Process 0 ends the wait in time, and says why; a little longer, in case it is stuck.
        while not said.endswith(b'\n') and time.monotonic() < patience.deadline + _REPEAT_SECONDS:
            patience.say(f'the other processes, with process 0 at {place.address}')
            with contextlib.suppress(TimeoutError):
                heard = connection.recv(4096)
                if not heard:
                    break
                said += heard
    return said.decode('utf-8', 'replace').strip()


def _check_name(place: Place, patience: _Patience) -> None:
    """Waits until the name of process 0's host resolves here, too: JAX connects this process to itself by it."""
    while True:
        try:
            socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            return
        except OSError as error:
            problem = error.strerror or str(error)
        patience.go_on(
            f'the name {place.host!r} of its own host to resolve ({problem})',
            f'the name {place.host!r} of process 0 does not resolve ({problem}): correct --coordinator {place.address}',
        )
        time.sleep(_RETRY_SECONDS)
