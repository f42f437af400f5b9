"""The lock of a run's folder, which only one run may write at a time, on any file system and in buckets.

The system's own file locks cannot be trusted on network file systems, and buckets have none. Here the lock is a file
that names its holder, and that the holder refreshes while it lives. The lock of a dead process is taken over: on the
same machine, at once; from another machine, when the file has not been refreshed for a while.

If the folder is removed and another run starts in its place, the first run finds the lock of the other one, or a folder
that is not its own, and writes nothing more.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import is_bucket, reaching

LOCK_FILE = 'run.lock'
_PERIOD = 10.0  # seconds between two refreshments
_STALE = 60.0  # a lock of another machine that is not refreshed for so many seconds is the lock of a dead process
_SETTLE = 1.0  # after writing a file that another process may write at the same time; then the last writer has won
_DATE = '%Y-%m-%d %H:%M:%S %Z'


@dataclasses.dataclass(frozen=True)
class _Holder:
    """What the file says.

    Attributes:
        id: random, so that no two locks are equal.
        host: the host's name.
        machine: where the process number means something: one boot of one system, and one container.
        pid: the process.
        started: when it started, since numbers of processes are used again; None if the system does not say.
        since: when it took the lock.
        refreshed: when it last refreshed it. The text has a fixed length, so the file can be overwritten in place.
    """

    id: str
    host: str
    machine: str
    pid: int
    started: int | None
    since: float
    refreshed: str

    @staticmethod
    def here() -> '_Holder':
        pid, now = os.getpid(), time.time()
        return _Holder(secrets.token_hex(8), socket.gethostname(), _machine(), pid, _start_time(pid), now, f'{now:.3f}')

    def refresh(self) -> '_Holder':
        return dataclasses.replace(self, refreshed=f'{time.time():.3f}')

    def encode(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self)) + '\n').encode()

    @staticmethod
    def decode(data: bytes) -> '_Holder | None':
        try:
            holder = _Holder(**json.loads(data))
            float(holder.refreshed), time.localtime(holder.since), int(holder.pid)
            return holder
        except (ValueError, TypeError, OverflowError, OSError, RecursionError):
            return None

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {time.strftime(_DATE, time.localtime(self.since))}'

    def is_on_this_machine(self) -> bool:
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    def age(self) -> float:
        return time.time() - float(self.refreshed)


class RunLock:
    """The lock of one folder, held by this process between `acquire` and `release`.

    Args:
        folder: the folder, possibly in a bucket. It is made if it does not exist.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._path = folder / LOCK_FILE
        self._in_bucket = is_bucket(folder)
        self._own: _Holder | None = None
        self._made: list[pathlib.Path] = []
        self._refreshed = 0.0
        self._lost = ''  # why this process does not hold the lock any more
        # While the folder is open, no other can get its inode, so it can be told from one of the same name.
        self._open_folder: int | None = None
        self._refreshing = threading.Lock()
        self._stopped = threading.Event()

    def acquire(self) -> str:
        """Takes the lock, and refreshes it from now on in a thread.

        Returns:
            A note for the user if the lock was taken over from a dead process, otherwise ''.

        Raises:
            CheckpointError: another run holds the lock, or the folder cannot be written.
        """
        try:
            with reaching(self._folder):
                self._make_folder()
                note = self._take(_Holder.here())
        except OSError as error:
            self._remove_folder()
            reason = 'it is not a folder' if isinstance(error, FileExistsError) else error.strerror or error
            raise CheckpointError(f'cannot write checkpoints to {self._folder}: {reason}') from error
        except BaseException:
            self._remove_folder()
            raise
        self._refreshed = time.time()
        if not self._in_bucket:
            with contextlib.suppress(OSError):
                self._open_folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        threading.Thread(target=self._keep_refreshing, name='run-lock', daemon=True).start()
        return note

    def check(self) -> None:
        """Checks that this process still holds the lock; call it before writing into the folder.

        Raises:
            CheckpointError: another run has taken the lock over, because this one was suspended for too long or because
                the folder was removed.
        """
        own = self._own
        if own is None:
            return
        if not self._is_surely_held(own):
            self._refresh()
        if self._lost:
            raise CheckpointError(f'{self._folder} {self._lost}: this one ends and writes nothing more')

    def release(self) -> None:
        """Gives the lock back if this process holds it, and removes the folder if it was made here and is empty."""
        own, self._own = self._own, None
        self._stopped.set()
        if own is None:
            return
        with self._refreshing, contextlib.suppress(Exception):  # the folder may be gone, or the disk
            if self._open_folder is not None:
                os.close(self._open_folder)
                self._open_folder = None
            holder = self._read()
            if holder is not None and holder.id == own.id:
                self._path.unlink()
                self._remove_folder()

    def _is_surely_held(self, own: _Holder) -> bool:
        if self._in_bucket:
            # Nobody takes over a lock that was refreshed a moment ago, so the file need not be fetched each time.
            return 0 <= time.time() - self._refreshed < 2 * _PERIOD
        try:
            holder = self._read()
        except OSError:
            return False
        return holder is not None and holder.id == own.id

    def _is_in_another_folder(self) -> bool:
        """Returns whether another folder has taken the place of the one that was locked.

        Inodes change on some file systems, so this counts only where the lock is not to be found either.
        """
        if self._open_folder is None:
            return False
        try:
            there = os.stat(self._folder)
        except OSError:
            return False
        try:
            return not os.path.samestat(there, os.fstat(self._open_folder))
        except OSError:  # of a removed folder, on network file systems
            return True

    def _take(self, own: _Holder) -> str:
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):  # the file was there, and was released a moment ago
                if self._create(own):
                    self._own = own
                    return ''
                holder = self._read() or self._read_again()
                if holder is not None and not self._is_dead(holder):
                    raise CheckpointError(self._refusal(holder))
                self._overwrite(own)
                time.sleep(_SETTLE)
                winner = self._read()
                if winner is not None and winner.id == own.id:  # otherwise another process took it over, too
                    self._own = own
                    return f'taking over {self._folder} from {holder or "a run"}, which ended without releasing it'
        raise CheckpointError(f'{self._folder} is in use by other runs that start at this moment: try again')

    def _refusal(self, holder: _Holder) -> str:
        return f'{self._folder} is in use by another run ({holder}): wait until it ends, or choose another --workdir'

    def _is_dead(self, holder: _Holder) -> bool:
        """Finds out about a process of another machine by waiting: a live one refreshes its lock.

        So a job that is started again on another machine, after its own has failed, need not be started a third time.
        """
        if holder.is_on_this_machine():
            return not _is_running(holder.pid, holder.started)
        # The clocks of two machines may differ, so an old lock is believed dead only if nothing refreshes it.
        patience = max(_STALE - abs(holder.age()), 1.5 * _PERIOD)
        print(
            f'{self._folder} is locked by {holder}; seeing for up to {patience:.0f} s whether it lives', file=sys.stderr
        )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(_PERIOD / 10)
            if self._read() != holder:
                return False
        return True

    def _create(self, own: _Holder) -> bool:
        """Returns whether the file did not exist and is ours now."""
        if not self._in_bucket:
            try:
                file = self._path.open('xb')
            except FileExistsError:
                return False
            try:
                with file:
                    file.write(own.encode())
            except BaseException:  # for example, the disk is full
                self._path.unlink(missing_ok=True)
                raise
            return True
        if self._path.exists():
            return False
        self._path.write_bytes(own.encode())
        time.sleep(_SETTLE)
        holder = self._read()
        return holder is not None and holder.id == own.id

    def _overwrite(self, own: _Holder) -> None:
        if self._in_bucket:
            self._path.write_bytes(own.encode())
            return
        # Always a new file: the previous holder, should it wake up, then refreshes only the one that nobody sees.
        temporary = self._path.with_name(f'.{LOCK_FILE}.{own.id}')
        try:
            temporary.write_bytes(own.encode())
            temporary.replace(self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _read(self) -> _Holder | None:
        return _Holder.decode(self._path.read_bytes())

    def _read_again(self) -> _Holder | None:
        """Reads the file once more, because its holder may be writing it at this moment."""
        time.sleep(_SETTLE)
        return self._read()

    def _keep_refreshing(self) -> None:
        while not self._stopped.wait(_PERIOD):
            # What fails now, because the disk is full or a server does not answer, may succeed the next time.
            with contextlib.suppress(Exception):
                self._refresh()

    def _refresh(self) -> None:
        with self._refreshing:
            own = self._own
            if own is None or self._lost:
                return
            try:
                holder = self._refresh_in_bucket(own) if self._in_bucket else self._refresh_in_place(own)
            except FileNotFoundError:  # somebody removed the file, is removing the folder, or has renamed it
                time.sleep(_SETTLE)
                if self._is_in_another_folder():
                    self._lost = 'was removed, and there is another folder in its place'
                    return
                with contextlib.suppress(OSError):
                    if self._create(own.refresh()):
                        self._refreshed = time.time()
                return
            except OSError:
                return
            if holder is not None and holder.id != own.id:
                cause = 'after it was removed' if self._is_in_another_folder() else 'while this one was suspended'
                self._lost = f'was taken over by another run ({holder}) {cause}'
            else:
                self._refreshed = time.time()

    def _refresh_in_place(self, own: _Holder) -> _Holder | None:
        """Refreshes the file if it is ours, and returns whose it was."""
        with self._path.open('r+b') as file:
            holder = _Holder.decode(file.read())
            if holder is None and self._is_in_another_folder():  # whose run is writing the file at this moment
                raise FileNotFoundError
            if holder is None or holder.id == own.id:
                file.seek(0)
                file.write(own.refresh().encode())
                file.truncate()
        return holder

    def _refresh_in_bucket(self, own: _Holder) -> _Holder | None:
        holder = self._read()
        if holder is None or holder.id == own.id:
            self._path.write_bytes(own.refresh().encode())
        return holder

    def _make_folder(self) -> None:
        if self._in_bucket:
            return
        missing = [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in self._made:
                folder.rmdir()
        self._made = []


def _machine() -> str:
    """Returns what differs between two boots, and between two containers, even where the host names are equal."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip())
        parts.append(os.readlink('/proc/self/ns/pid'))
    return ' '.join(parts)


def _start_time(pid: int) -> int | None:
    """Returns when a process started, in ticks since the system did; -1 if it has ended; None if nobody can say."""
    try:
        # The second field is the name in parentheses, which may contain anything.
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return None
    return -1 if fields[0] in 'ZX' else int(fields[19])


def _is_running(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        pass
    found = _start_time(pid)
    return found is None or started is None or found == started
