"""Downloads from a server on this machine: whole, cut, resumed, changed meanwhile, damaged, and without room."""

import collections
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from huggingface_hub import constants
from support.file_server import serving
from support.paths import ROOT

from audiosep_jax.errors import DownloadError
from audiosep_jax.weights import download as downloads
from audiosep_jax.weights.download import download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
PATH = '/records/1/files/some,model=1.ckpt'


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, '_PAUSE', 0.01)
    with serving() as served:
        served.files[PATH] = CONTENT
        yield served


@pytest.fixture
def get(server, tmp_path):
    """Downloads the file; `path` is where."""

    def call(**options):
        return download(f'{server.url}/records/1/files/some,model%3D1.ckpt', call.path, place='there', **options)

    call.path = tmp_path / 'new' / 'model.ckpt'
    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_nothing_else_stays(get, server):
    assert get().read_bytes() == CONTENT
    assert names(get.path.parent) == ['model.ckpt']
    get()
    assert len(server.requests) == 1


@pytest.mark.parametrize('kind', ['sha256', 'md5'])
def test_size_and_checksum_are_checked(get, server, kind):
    right = f'{kind}:{hashlib.new(kind, CONTENT).hexdigest()}'
    assert get(size=len(CONTENT), checksum=right).read_bytes() == CONTENT
    get.path.unlink()
    with pytest.raises(
        DownloadError, match=r'model\.ckpt .* is damaged or another file \(its \w+ is .*run the same again'
    ):
        get(checksum=f'{kind}:{"0" * 32}')
    assert names(get.path.parent) == []  # so that running the same again helps
    with pytest.raises(DownloadError, match='has 3000000 bytes, and 7 were expected'):
        get(size=7)
    assert not get.path.exists()


def test_the_checksum_that_the_server_states_is_checked(get, server):
    server.etags[PATH] = f'"md5:{"0" * 32}"'
    with pytest.raises(DownloadError, match='its MD5 is'):
        get()
    server.etags[PATH] = '"another kind of tag"'
    assert get().read_bytes() == CONTENT


def test_cut_connections_are_resumed(get, server):
    server.cuts[PATH] = [1_000_000, 500_000]
    assert get().read_bytes() == CONTENT
    assert [asked for _, _, asked in server.requests] == [None, 'bytes=1000000-', 'bytes=1500000-']


def test_the_next_call_resumes_what_the_last_one_left(get, server):
    server.cuts[PATH] = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r'4 times; 1\.0 MB have arrived\): run the same again to fetch the rest'):
        get()
    assert not get.path.exists()
    assert get().read_bytes() == CONTENT
    assert server.requests[-1][2] == 'bytes=1000000-'
    assert names(get.path.parent) == ['model.ckpt']


def test_another_file_at_the_same_address_is_not_appended(get, server):
    server.cuts[PATH] = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        get()
    server.files[PATH] = CONTENT[::-1]
    assert get().read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize('etag', ['', 'W/"weak"'])
def test_without_a_strong_tag_it_starts_again(get, server, etag):
    server.etags[PATH] = etag
    server.cuts[PATH] = [1_000_000]
    assert get().read_bytes() == CONTENT
    assert [asked for _, _, asked in server.requests] == [None, None]


def test_a_part_that_is_complete_or_too_long(get, server):
    part = get.path.with_name('.model.ckpt.part')
    part.parent.mkdir()
    (part.parent / '.model.ckpt.etag').write_text(server.etag(PATH))
    part.write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert [asked for _, _, asked in server.requests] == ['bytes=3000000-']
    get.path.unlink()
    (part.parent / '.model.ckpt.etag').write_text(server.etag(PATH))
    part.write_bytes(CONTENT + b'more')
    assert get().read_bytes() == CONTENT


def test_a_killed_download_resumes(get, server):
    server.cuts[PATH] = [2_000_000]
    code = 'import sys, pathlib, audiosep_jax.weights.download as d; d._PAUSE = 100; '
    code += 'd.download(sys.argv[1], pathlib.Path(sys.argv[2]), place="")'
    url = f'{server.url}/records/1/files/some,model%3D1.ckpt'
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen([sys.executable, '-c', code, url, str(get.path)], env=environment)
    part, deadline = get.path.with_name('.model.ckpt.part'), time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 2_000_000):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert get().read_bytes() == CONTENT
    assert server.requests[-1][2] == 'bytes=2000000-'


def test_what_cannot_be_fetched_is_one_line_with_a_remedy(get, server, tmp_path, monkeypatch):
    def message(url):
        with pytest.raises(DownloadError) as error:
            download(url, tmp_path / 'x.ckpt', place='a good place')
        assert '\n' not in str(error.value)
        assert 'x.ckpt cannot be fetched from http' in str(error.value)
        return str(error.value)

    remedy = 'download it on another machine and put it at a good place'
    assert message(f'{server.url}/nothing').endswith(f'(404 Not Found): {remedy}')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        assert message(f'http://127.0.0.1:{free.getsockname()[1]}/x').endswith(f'(Connection refused): {remedy}')
    with monkeypatch.context() as patch:
        patch.setattr(constants, 'HF_HUB_OFFLINE', True)
        assert message(server.url).endswith(f'(HF_HUB_OFFLINE is set): {remedy}')

    def fail(*_, **__):
        raise socket.gaierror(-2, 'Name or service not known')

    with monkeypatch.context() as patch:
        patch.setattr(socket, 'getaddrinfo', fail)
        assert message('https://zenodo.org/x').endswith(f'(Name or service not known): {remedy}')


def test_a_full_disk_is_found_before_or_while_writing(get, monkeypatch):
    usage = collections.namedtuple('usage', 'total used free')
    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, 'disk_usage', lambda _: usage(0, 0, 2_000_000))
        with pytest.raises(DownloadError, match=r'0\.00 GB are needed in .*: free some space, or let XDG_CACHE_HOME'):
            get()

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(downloads, '_read', full)
        with pytest.raises(DownloadError, match=r'No space left on device\): free some space'):
            get()
    assert get().read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made(get, tmp_path):
    (tmp_path / 'new').write_text('a file')
    with pytest.raises(DownloadError, match=r'model\.ckpt cannot be fetched from .*File exists'):
        get()
