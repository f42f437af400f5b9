import os

import pytest

from audiosep_jax.errors import CheckpointError, DataError
from audiosep_jax.storage.atomic import check_writable, new_folder, replacing


def test_the_new_file_has_the_usual_permissions_and_appears_only_at_the_end(tmp_path):
    with replacing(tmp_path / 'a') as temporary:
        temporary.write_text('new')
        assert not (tmp_path / 'a').exists()
    (tmp_path / 'b').touch()
    assert (tmp_path / 'a').read_text() == 'new'
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError, ValueError])
def test_the_old_file_stays_whatever_happens(tmp_path, error):
    (tmp_path / 'a').write_text('old')

    def write():
        with replacing(tmp_path / 'a') as temporary:
            temporary.write_text('half of the n')
            raise error

    with pytest.raises(error):
        write()
    assert (tmp_path / 'a').read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['a']


@pytest.mark.parametrize('name', ['x' * 255, 'é' * 127, 'a\udce9.wav'])
def test_any_name_that_the_file_system_allows_works(tmp_path, name):
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip('this file system has no such name')
    with replacing(tmp_path / name) as temporary:
        temporary.write_text('new')
    assert (tmp_path / name).read_text() == 'new'


def test_a_folder_in_the_way_or_missing_is_an_os_error(tmp_path):
    (tmp_path / 'a').mkdir()
    for path in (tmp_path / 'a', tmp_path / 'b' / 'c'):
        with pytest.raises(OSError, match=path.name), replacing(path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_a_new_folder_replaces_the_old_one_only_when_it_is_complete(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'old').touch()

    def write_half():
        with new_folder(tmp_path / 'a') as temporary:
            (temporary / 'new').touch()
            raise ValueError('half of it')

    with pytest.raises(ValueError, match='half'):
        write_half()
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['old']
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    with new_folder(tmp_path / 'link') as temporary:
        (temporary / 'new').touch()
    assert (tmp_path / 'link').is_symlink()
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['new']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'link']


@pytest.mark.parametrize(
    ('path', 'kind', 'says'),
    [
        ('missing/x', 'file', r'--out \S*missing/x: the folder \S*missing does not exist; make it first'),
        ('missing/x', 'folder', 'does not exist; make it first'),
        ('missing/x', 'either', 'does not exist; make it first'),
        ('file/x', 'file', 'does not exist; make it first'),
        ('folder', 'file', 'folder: is a folder; name a file'),
        ('file', 'folder', 'file: is a file, but a folder is needed'),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path, path, kind, says):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match=says):
        check_writable(tmp_path / path, '--out', kind=kind)
    with pytest.raises(CheckpointError, match=f'^{tmp_path / path}: '):
        check_writable(tmp_path / path, '', kind=kind, error=CheckpointError)


def test_what_can_be_written_passes(tmp_path, monkeypatch):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    for path, kinds in [
        ('new', ('file', 'folder', 'either')),
        ('folder', ('folder', 'either')),
        ('file', ('file', 'either')),
    ]:
        for kind in kinds:
            check_writable(path, '--out', kind=kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']


def test_missing_permissions_are_said(tmp_path, monkeypatch):
    """Root may write everywhere, so the system's answer is replaced."""
    (tmp_path / 'locked').mkdir()
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path / 'locked')
    for path, kind in [('locked', 'folder'), ('locked/x', 'file'), ('locked/x', 'folder'), ('locked/x', 'either')]:
        with pytest.raises(DataError, match=f'no permission to write into {tmp_path}/locked'):
            check_writable(tmp_path / path, '--json', kind=kind)
    check_writable(tmp_path / 'locked', '--json', kind='either')
