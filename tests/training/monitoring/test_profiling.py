"""Profiles: which steps are traced and where to, how many traces are kept, and the server that takes them."""

import socket

import jax
import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.monitoring import profiling
from audiosep_jax.training.monitoring.profiling import Traces, profiler_server


class FakeProfiler:
    """Stands for JAX's: notes what is traced, and writes a file for each trace."""

    def __init__(self):
        self.calls, self.folder, self.refuses = [], None, None

    def start_trace(self, folder):
        if self.refuses:
            raise self.refuses
        self.folder = as_path(str(folder))
        self.calls.append('start')

    def stop_trace(self):
        file = self.folder / 'plugins' / 'profile' / 'now' / 'host.xplane.pb'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b'trace')
        self.calls.append('stop')


@pytest.fixture
def profiler(monkeypatch):
    fake = FakeProfiler()
    monkeypatch.setattr(jax.profiler, 'start_trace', fake.start_trace)
    monkeypatch.setattr(jax.profiler, 'stop_trace', fake.stop_trace)
    return fake


def traced(profiler, config: TrainConfig, workdir, first: int, last: int, notes=None) -> dict[int, list[str]]:
    """Which steps, counted by those before them, start or stop a trace."""
    changes = {}
    with Traces(config, workdir, first, (notes if notes is not None else []).append) as traces:
        for step in range(first, last):
            before = len(profiler.calls)
            traces.begin_step(step)
            if profiler.calls[before:]:
                changes[step] = profiler.calls[before:]
    return changes


def traces_in(workdir) -> list[str]:
    return sorted(path.parents[3].relative_to(workdir).as_posix() for path in workdir.rglob('*.xplane.pb'))


def test_nothing_is_traced_unless_it_is_asked_for(profiler, tmp_path):
    assert traced(profiler, TrainConfig(), tmp_path, 0, 100) == {}
    assert not list(tmp_path.iterdir())


def test_five_steps_soon_after_the_start(profiler, tmp_path):
    assert traced(profiler, TrainConfig(profile=True), tmp_path, 30, 100) == {40: ['start'], 45: ['stop']}
    assert traces_in(tmp_path) == ['profile']


def test_five_steps_every_so_many(profiler, tmp_path):
    config = TrainConfig(profile=True, profile_every=20)
    assert traced(profiler, config, tmp_path, 0, 43) == {
        **{10: ['start'], 15: ['stop']},
        **{20: ['start'], 25: ['stop']},
        **{40: ['start']},  # and the end of the run stops it
    }
    assert profiler.calls[-1] == 'stop'
    assert traces_in(tmp_path) == ['profile', 'profile/step-20', 'profile/step-40']
    # The first steps after a restart are slower than others, so they are not traced.
    assert traced(profiler, config, tmp_path, 40, 60) == {50: ['start'], 55: ['stop']}


def test_traces_that_would_overlap(profiler, tmp_path):
    assert traced(profiler, TrainConfig(profile_every=5), tmp_path, 0, 12) == {5: ['start'], 10: ['stop', 'start']}
    changes = traced(profiler, TrainConfig(profile_every=3), tmp_path, 0, 12)
    assert changes == {3: ['start'], 8: ['stop'], 9: ['start']}


def test_the_newest_ten_are_kept(profiler, tmp_path):
    mine = [tmp_path / 'profile' / name for name in ('step-mine', '1')]
    for folder in mine:
        folder.mkdir(parents=True)
    traced(profiler, TrainConfig(profile=True, profile_every=5), tmp_path, 0, 72)
    kept = {f'profile/step-{step}' for step in range(25, 75, 5)}
    assert {*traces_in(tmp_path)} == kept | {'profile'}
    assert all(folder.exists() for folder in mine)


def test_traces_in_a_bucket(profiler, bucket):
    traced(profiler, TrainConfig(profile=True, profile_every=20), as_path('gs://runs/base'), 0, 21)
    name = 'plugins/profile/now/host.xplane.pb'
    assert bucket.contents('runs/base') == {f'profile/{name}': b'trace', f'profile/step-20/{name}': b'trace'}
    traced(profiler, TrainConfig(profile_every=5), as_path('gs://runs/base'), 20, 96)
    kept = {f'profile/step-{step}/{name}' for step in range(50, 100, 5)}
    assert {*bucket.contents('runs/base')} == kept | {f'profile/{name}'}


@pytest.mark.parametrize('problem', [RuntimeError('Only one at a time.\nTraceback'), OSError(28, 'full')])
def test_a_trace_that_fails_does_not_end_the_run(profiler, tmp_path, problem):
    profiler.refuses = problem
    notes = []
    assert traced(profiler, TrainConfig(profile_every=10), tmp_path, 0, 25, notes) == {}
    reason = 'Only one at a time.' if isinstance(problem, RuntimeError) else '[Errno 28] full'
    assert notes == [f'no profile in {tmp_path}/profile: {reason}'] * 2


def test_a_trace_that_cannot_be_written_does_not_prevent_the_next(tmp_path):
    """With JAX's own profiler."""
    (tmp_path / 'profile').mkdir()
    (tmp_path / 'profile' / 'step-5').touch()
    notes = []
    with Traces(TrainConfig(profile_every=5), tmp_path, 0, notes.append) as traces:
        for step in range(12):
            traces.begin_step(step)
    (note,) = notes
    assert note.startswith(f'no profile in {tmp_path}/profile: ')
    assert traces_in(tmp_path) == ['profile/step-10']


# ---- The server ----


def free_port() -> int:
    with socket.create_server(('', 0)) as server:
        return server.getsockname()[1]


def test_the_server_listens_while_the_run_goes_on():
    port = free_port()
    for _ in range(2):  # a second run in the same process
        with profiler_server(port):
            socket.create_connection(('localhost', port), timeout=10).close()
        with pytest.raises(OSError, match='refused'):
            socket.create_connection(('localhost', port), timeout=10)


def test_without_a_port_there_is_no_server(monkeypatch):
    monkeypatch.setattr(jax.profiler, 'start_server', None)
    with profiler_server(0):
        pass


@pytest.mark.parametrize('address', ['', '127.0.0.1'])
def test_a_used_port_is_one_line(address):
    with socket.create_server((address, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as error, profiler_server(port):
            pass
    assert str(error.value).startswith('--profiler-port: on ')
    assert str(error.value).endswith(f', port {port} cannot be used: Address already in use; choose another port')


def processes(monkeypatch, hosts: list[str], index: int, problems: dict[int, str] | None = None):
    """As if this were process `index` of a run on these hosts; `problems` are those of other processes."""

    def gathered(value):
        if value == profiling.platform.node():
            return hosts
        return [(problems or {}).get(i, '') if i != index else value for i in range(len(hosts))]

    monkeypatch.setattr(profiling, 'gathered', gathered)
    monkeypatch.setattr(jax, 'process_index', lambda: index)


def test_processes_of_one_host_listen_on_ports_in_a_row(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.profiler, 'start_server', asked.append)
    monkeypatch.setattr(jax.profiler, 'stop_server', lambda: None)
    port = free_port()
    for index in range(4):
        processes(monkeypatch, ['a', 'b', 'a', 'a'], index)
        with profiler_server(port):
            pass
    assert [one - port for one in asked] == [0, 0, 1, 2]


def test_a_port_that_another_process_cannot_use_stops_all(monkeypatch):
    processes(monkeypatch, ['a', 'b'], 0, {1: 'port 9012 cannot be used: Address already in use'})
    with pytest.raises(ConfigError, match='on b, port 9012 cannot be used'), profiler_server(free_port()):
        pass


def test_there_is_no_port_after_the_last(monkeypatch):
    processes(monkeypatch, ['a', 'a'], 1)
    with pytest.raises(ConfigError, match='on a, port 65536 cannot be used'), profiler_server(65535):
        pass
