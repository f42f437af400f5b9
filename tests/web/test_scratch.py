"""The server's temporary folder: what a killed server left is removed, what a live one uses stays."""

import subprocess
import sys

import pytest

from audiosep_jax.web.scratch import scratch_folder

_HOLD = """
import sys, time
from audiosep_jax.web.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / 'upload.wav').write_bytes(b'x')
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    return tmp_path


def hold(parent):
    """A process with a folder of its own, as a server has one."""
    code = f'import tempfile; tempfile.tempdir = {str(parent)!r}\n{_HOLD}'
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith(str(parent))
    return process


def test_it_is_empty_and_removed_at_the_end(parent):
    with scratch_folder() as folder:
        assert folder.is_relative_to(parent)
        assert list(folder.iterdir()) == []
        (folder / 'upload.wav').write_bytes(b'x')
    assert list(parent.iterdir()) == []


def test_what_a_killed_server_left_is_removed_and_a_live_one_s_stays(parent):
    dead, live = hold(parent), hold(parent)
    dead.kill()
    dead.wait()
    assert len(list(parent.glob('*/files/upload.wav'))) == 2
    try:
        with scratch_folder():
            assert len(list(parent.glob('*/files/upload.wav'))) == 1
        assert live.poll() is None
        assert len(list(parent.iterdir())) == 1
    finally:
        for process in (dead, live):
            process.kill()
            process.wait()
            process.stdout.close()


def test_other_folders_and_links_stay(parent, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (elsewhere / 'server.lock').touch()
    (elsewhere / 'precious').touch()
    (parent / 'audiosep-jax-link').symlink_to(elsewhere)
    (parent / 'audiosep-jax-other').mkdir()  # such as that of a publication under way
    (parent / 'unrelated').mkdir()
    (parent / 'unrelated' / 'server.lock').touch()
    with scratch_folder():
        pass
    assert {path.name for path in parent.iterdir()} == {'audiosep-jax-link', 'audiosep-jax-other', 'unrelated'}
    assert (elsewhere / 'precious').exists()
