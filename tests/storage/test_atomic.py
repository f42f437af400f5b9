import pytest

from audiosep_jax.storage.atomic import replacing


def test_the_new_file_has_the_usual_permissions_and_is_not_there_before_its_time(tmp_path):
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
def test_any_name_that_the_file_system_has_will_do(tmp_path, name):
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
