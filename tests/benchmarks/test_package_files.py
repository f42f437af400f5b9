"""benchmarks/package_files.py: Debian packages, wheels and Qt's resource files, made here."""

import shutil
import stat
import struct
import subprocess
import zipfile
import zlib

import pytest

from audiosep_jax.errors import DataError, DownloadError, LeftOutError

needs_dpkg = pytest.mark.skipif(shutil.which('dpkg-deb') is None, reason='dpkg-deb is not installed')
CONTROL = 'Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\nDescription: sounds\n'


@pytest.fixture
def package_files(benchmarks_on_path):
    import package_files

    return package_files


def make_deb(folder, name, files, version='1.0'):
    root = folder / f'{name}-root'
    (root / 'DEBIAN').mkdir(parents=True)
    (root / 'DEBIAN' / 'control').write_text(CONTROL.format(name=name, version=version))
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    subprocess.run(['dpkg-deb', '--root-owner-group', '-b', root, folder / f'{name}_{version}_all.deb'], check=True)
    shutil.rmtree(root)


def resource_file(files, version=3):
    """Returns Qt's format with one folder, `sounds`: {name: (contents, flags)}."""
    names, contents, entries = b'', b'', []

    def name_of(text):
        nonlocal names
        at = len(names)
        names += struct.pack('>HI', len(text), 0) + text.encode('utf-16-be')
        return at

    time = b'' if version == 1 else bytes(8)
    folder = struct.pack('>IHII', name_of('sounds'), 2, len(files), 2) + time
    for name, (data, flags) in files.items():
        data = struct.pack('>I', len(data)) + zlib.compress(data) if flags & 1 else data
        entries.append(struct.pack('>IHHHI', name_of(name), flags, 0, 0, len(contents)) + time)
        contents += struct.pack('>I', len(data)) + data
    tree = struct.pack('>IHII', 0, 2, 1, 1) + time + folder + b''.join(entries)
    start = 24
    head = struct.pack('>4I', version, start, start + len(tree), start + len(tree) + len(contents))
    return b'qres' + head + bytes(4) + tree + contents + names


@needs_dpkg
def test_a_debian_package_is_unpacked_and_its_files_are_gone_afterwards(package_files, tmp_path):
    make_deb(tmp_path, 'barks', {'usr/share/dog.ogg': b'woof'})
    with package_files.unpacked('barks', tmp_path) as files:
        assert files.read('usr/share/dog.ogg') == b'woof'
        root = files._root
        with pytest.raises(DataError, match=r'usr/share/cat\.ogg: is not in the package'):
            files.read('usr/share/cat.ogg')
    assert not root.exists()
    assert (tmp_path / 'barks_1.0_all.deb').exists()


@needs_dpkg
def test_a_damaged_debian_package_is_named(package_files, tmp_path):
    (tmp_path / 'barks_1.0_all.deb').write_bytes(b'no package')
    with (
        pytest.raises(DataError, match=r'barks_1\.0_all\.deb: cannot be unpacked'),
        package_files.unpacked('barks', tmp_path),
    ):
        pass


def test_packages_whose_names_begin_alike_are_told_apart(package_files, tmp_path):
    (tmp_path / 'drumkits').mkdir()
    (tmp_path / 'drumkits' / 'a').write_bytes(b'1')
    with pytest.raises(LeftOutError, match=r'no drum_\*\.deb'), package_files.unpacked('drum', tmp_path):
        pass
    with package_files.unpacked('drumkits', tmp_path) as files:
        assert files.read('a') == b'1'


def test_a_wheel_is_read_as_an_archive(package_files, tmp_path):
    with zipfile.ZipFile(tmp_path / 'dog_sounds-1.0-py3-none-any.whl', 'w') as wheel:
        wheel.writestr('dog_sounds/dog.mp3', b'woof')
    with package_files.unpacked('pypi-dog-sounds', tmp_path) as files:
        assert files.read('dog_sounds/dog.mp3') == b'woof'


@pytest.mark.parametrize('version', [1, 2, 3])
def test_files_in_resource_files_of_qt(package_files, tmp_path, version):
    (tmp_path / 'game' / 'share').mkdir(parents=True)
    data = resource_file({'dog.ogg': (b'woof' * 50, 1), 'cat.ogg': (b'meow', 0), 'cow.ogg': (b'moo', 4)}, version)
    (tmp_path / 'game' / 'share' / 'farm.rcc').write_bytes(data)
    with package_files.unpacked('game', tmp_path) as files:
        assert files.read('rcc/sounds/dog.ogg') == b'woof' * 50
        assert files.read('rcc/sounds/cat.ogg') == b'meow'
        with pytest.raises(DataError, match='is not in the package'):
            files.read('rcc/sounds/cow.ogg')


@pytest.mark.parametrize('data', [b'', b'qres', b'PK', resource_file({'a': (b'b', 0)})[:60]])
def test_a_damaged_resource_file_is_named(package_files, data):
    with pytest.raises(DataError, match=r'^farm\.rcc: '):
        package_files.read_resources(data, 'farm.rcc')


def test_a_damaged_archive_is_named(package_files, tmp_path):
    (tmp_path / 'game').mkdir()
    (tmp_path / 'game' / 'pak0.pk3').write_bytes(b'no archive')
    with package_files.unpacked('game', tmp_path) as files, pytest.raises(DataError, match='cannot be read'):
        files.read('sound/gun.wav')


def fake_program(folder, name, script):
    path = folder / name
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_without_the_programs_the_error_says_what_to_do(package_files, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(DownloadError, match=r'apt-get and dpkg-deb not found: run this on Debian, or .*--packages'):
        package_files.check_programs(None)
    package_files.check_programs(tmp_path)
    with pytest.raises(DataError, match='no such folder of packages'):
        package_files.check_programs(tmp_path / 'none')


def test_a_package_that_the_distribution_lacks_is_left_out(package_files, tmp_path, monkeypatch):
    fake_program(tmp_path, 'apt-get', 'echo "E: Unable to locate package $2" >&2; exit 100')
    monkeypatch.setenv('PATH', str(tmp_path))
    with (
        pytest.raises(LeftOutError, match='no such package, or needs `apt-get update`'),
        package_files.unpacked('barks', None),
    ):
        pass


def test_without_a_network_the_error_is_one_line_with_the_reason(package_files, tmp_path, monkeypatch):
    fake_program(tmp_path, 'apt-get', 'echo "W: note\nE: Failed to fetch a.deb  Could not connect" >&2; exit 100')
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(DownloadError) as caught, package_files.unpacked('barks', None):
        pass
    message = str(caught.value)
    assert message.startswith('barks cannot be downloaded: E: Failed to fetch a.deb')
    assert message.endswith('check the network; the next run goes on from here')
    assert '\n' not in message


@needs_dpkg
def test_a_downloaded_package_is_unpacked(package_files, tmp_path, monkeypatch):
    make_deb(tmp_path, 'barks', {'dog.ogg': b'woof'})
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    fake_program(bin_folder, 'apt-get', f'cp {tmp_path}/$2_1.0_all.deb .')
    monkeypatch.setenv('PATH', f'{bin_folder}:/usr/bin:/bin')
    with package_files.unpacked('barks', None) as files:
        assert files.read('dog.ogg') == b'woof'
