"""The checkpoints of a run: writes that fail in the background, and what becomes of them."""

import errno
import logging
import os
import resource
import shutil
import subprocess
import time

import pytest
from support.processes import command_of
from support.saved_steps import save_step

from audiosep_jax.checkpoints import steps
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.checkpoints.steps import complete_steps
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.run_lock import LOCK_FILE
from audiosep_jax.training.checkpointer import Checkpointer

# Orbax abandons futures of a failed save, and Python warns when it collects them.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture
def full_disk():
    """Returns a function after which no file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_for_failure(checkpointer) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            checkpointer.check()
        except CheckpointError as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError('no failure is noticed')


def assert_nothing_is_logged(caplog):
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_resumed_run_knows_which_step_is_the_best(tmp_path):
    for step, score in ((10, 1.0), (20, 5.0), (30, 2.0), (40, 3.0), (50, 4.0)):
        with Checkpointer(tmp_path / 'run', keep=1) as checkpointer:
            save_step(checkpointer, step, score=score)
    assert complete_steps(tmp_path / 'run') == [20, 50]


@pytest.mark.parametrize('size', [0, 1000, 50_000])
def test_a_full_disk_is_noticed_without_waiting_for_the_next_save(tmp_path, full_disk, caplog, size):
    started = time.monotonic()
    checkpointer = Checkpointer(tmp_path / 'run')
    save_step(checkpointer, 10)
    checkpointer.wait()
    full_disk(size)
    try:
        save_step(checkpointer, 20)
    except CheckpointError as error:  # a part of it is written before the background takes over
        message = str(error)
    else:
        message = wait_for_failure(checkpointer)
    with pytest.raises(CheckpointError, match='step 20 could not be written'):
        checkpointer.wait()
    checkpointer.__exit__(CheckpointError)  # as when the error is not caught
    assert complete_steps(tmp_path / 'run') == [10]
    assert message.startswith('the checkpoint of step 20 could not be written to')
    assert message.endswith(f'{os.strerror(errno.EFBIG)}; earlier checkpoints are intact')
    assert '\n' not in message
    assert time.monotonic() - started < 60
    assert_nothing_is_logged(caplog)


@pytest.mark.parametrize('accident', ['removed', 'renamed', 'file'])
def test_a_folder_that_went_away_is_one_line_and_not_made_again(tmp_path, accident, caplog):
    folder = tmp_path / 'run' / 'checkpoints'
    with Checkpointer(folder) as checkpointer:
        save_step(checkpointer, 10)
        checkpointer.wait()
        if accident == 'removed':
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / 'moved')
        if accident == 'file':
            folder.write_text('')
        with pytest.raises(CheckpointError, match='is gone: it was removed or renamed'):
            save_step(checkpointer, 20)
    assert not folder.is_dir()
    assert_nothing_is_logged(caplog)


def test_what_prevents_a_commit_is_the_error(tmp_path, caplog):
    def refuse():
        raise CheckpointError('not mine any more')

    checkpointer = Checkpointer(tmp_path, before_commit=refuse)
    save_step(checkpointer, 10)
    assert wait_for_failure(checkpointer) == 'not mine any more'
    with pytest.raises(CheckpointError, match='not mine any more'):
        checkpointer.__exit__(None)
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]
    assert_nothing_is_logged(caplog)


def test_an_old_step_is_never_seen_half_deleted(tmp_path, monkeypatch):
    """A deletion that is interrupted, as by SIGKILL, leaves something that no reader takes for a step."""
    checkpointer = Checkpointer(tmp_path, keep=1)
    save_step(checkpointer, 10, score=1.0)
    save_step(checkpointer, 20, score=2.0)
    checkpointer.wait()
    assert complete_steps(tmp_path) == [20]

    def interrupted(folder, *_, **__):
        next(path for path in sorted(folder.rglob('*')) if path.is_file()).unlink()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(steps.shutil, 'rmtree', interrupted)
        save_step(checkpointer, 30, score=3.0)
        assert os.strerror(errno.EIO) in wait_for_failure(checkpointer)
        checkpointer.__exit__(CheckpointError)
    assert complete_steps(tmp_path) == [30]
    assert load_for_inference(tmp_path).step == 30
    assert any('20.deleting' in path.name for path in tmp_path.iterdir())
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.steps() == [30]
    assert [path.name for path in tmp_path.iterdir()] == ['30']


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 6 MB, which only root can make."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', str(folder)]
    is_root = os.geteuid() == 0 and shutil.which('mount')
    if not is_root or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('no permission to mount a file system')
    yield folder
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_program_ends_with_one_line_where_the_disk_is_full(dataset, tmp_path, small_disk):
    workdir = small_disk / 'run'
    changes = {'--steps': [10_000], '--checkpoint-every': [2]}
    started = None
    with subprocess.Popen(command_of(dataset, workdir, changes), stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            if 'step 1/' in line:
                (small_disk / 'ballast').write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 1_500_000))
            if not ('step ' in line or 'compil' in line) or 'error' in line:
                said.append(line)
                started = started or time.monotonic()
    assert process.returncode == 1
    assert time.monotonic() - started < 30
    assert len(said) == 1, said
    assert said[0].rstrip().endswith('No space left on device; earlier checkpoints are intact') or (
        'cannot write to' in said[0] and 'No space left on device' in said[0]
    )
    assert not (workdir / LOCK_FILE).exists()
