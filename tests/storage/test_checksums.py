"""Checksums of a folder's files and of JSON objects: every change is refused, and what has none is read unverified."""

import os
import shutil
import subprocess

import pytest

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.storage.checksums import CHECKSUMS, check_checksums, check_seal, sealed, write_checksums


@pytest.fixture
def folder(tmp_path):
    for name in ('a/x', 'a/deep/y', 'b/z'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'contents of {name}')
    (tmp_path / 'top').write_text('not covered')
    write_checksums(tmp_path)
    return tmp_path


def test_what_is_unchanged_is_verified(folder):
    assert check_checksums(folder)
    (folder / 'top').write_text('changed')
    assert check_checksums(folder)
    (folder / CHECKSUMS).unlink()
    assert not check_checksums(folder)


@pytest.mark.skipif(not shutil.which('sha256sum'), reason='needs sha256sum')
def test_the_file_is_that_of_the_usual_tool(folder):
    subprocess.run(['sha256sum', '--check', '--strict', CHECKSUMS], cwd=folder, check=True, capture_output=True)
    assert [line.split()[1] for line in (folder / CHECKSUMS).read_text().splitlines()] == ['a/deep/y', 'a/x', 'b/z']


def test_damage_is_one_line_that_names_the_file(folder):
    (folder / 'a' / 'deep' / 'y').write_text('contents of a/deep/Y')
    with pytest.raises(CheckpointError, match='cannot be read: damaged: the checksum of a/deep/y differs'):
        check_checksums(folder)
    assert check_checksums(folder, ['b'])
    (folder / 'a' / 'deep' / 'y').unlink()
    with pytest.raises(CheckpointError, match='cannot be read: damaged: a/deep/y is missing'):
        check_checksums(folder)
    shutil.rmtree(folder / 'a')
    with pytest.raises(CheckpointError, match='cannot be read: damaged: a/deep/y is missing'):
        check_checksums(folder, ['a'])
    (folder / 'b' / 'more').write_text('')
    with pytest.raises(CheckpointError, match='cannot be read: damaged: b/more has no checksum'):
        check_checksums(folder, ['b'])


def test_every_change_of_the_checksums_is_refused(folder):
    whole = (folder / CHECKSUMS).read_bytes()
    for position in range(len(whole)):
        for bit in (0, 3, 7):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            (folder / CHECKSUMS).write_bytes(data)
            with pytest.raises(CheckpointError, match='cannot be read: damaged'):
                check_checksums(folder)
        (folder / CHECKSUMS).write_bytes(whole[:position])
        with pytest.raises(CheckpointError, match='cannot be read: damaged'):
            check_checksums(folder)


def test_in_a_bucket(bucket):
    folder = as_path('gs://b/run')
    (folder / 'a' / 'x').write_bytes(os.urandom(3_000_000))
    write_checksums(folder)
    assert check_checksums(folder)
    (folder / 'a' / 'x').write_bytes(b'')
    with pytest.raises(CheckpointError, match='gs://b/run cannot be read: damaged: the checksum of a/x differs'):
        check_checksums(folder)


def test_a_json_object_carries_its_checksum():
    value = {'a': [1, 2.5, None], 'b': {'c': 'é'}, 'd': (1, 2), 'e': {3: 4}}
    found = sealed(value)
    assert check_seal(found)
    assert not check_seal(value)
    with pytest.raises(
        CheckpointError, match=r"its checksum differs; if it was changed on purpose, remove its 'sha256'"
    ):
        check_seal({**found, 'a': [1, 2.5, 0]})
    with pytest.raises(CheckpointError, match='its checksum differs'):
        check_seal({**found, 'more': 1})
