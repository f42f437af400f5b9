"""Files in packages: Debian packages and wheels, fetched and unpacked without root, and the archives inside them."""

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from audiosep_jax.errors import DataError, DownloadError, LeftOutError

WHEEL = 'pypi-'  # begins the name of a package of Python's index
RESOURCES = 'rcc/'  # begins the path of a file in one of Qt's resource files
ARCHIVES = ('.zip', '.pk3')
# What apt-get says about a package that the distribution does not have.
_UNKNOWN = ('Unable to locate package', 'has no candidate', 'no installation candidate')


class PackageFiles:
    """The files of an unpacked package, and those in the archives among them.

    Args:
        root: the folder into which the package was unpacked.
    """

    def __init__(self, root: Path):
        self._root = root
        self._archives: dict[str, zipfile.ZipFile] | None = None
        self._resources: dict[str, bytes] | None = None

    def read(self, path: str) -> bytes:
        """Returns a file of the package, or of an archive in it.

        Raises:
            DataError: there is none, or it is damaged.
        """
        try:
            if (self._root / path).is_file():
                return (self._root / path).read_bytes()
            if path.startswith(RESOURCES):
                data = self._index_of_resources().get(path.removeprefix(RESOURCES))
                if data is not None:
                    return data
            elif archive := self._index_of_archives().get(path):
                return archive.read(path)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f'{path}: cannot be read: {error}') from error
        raise DataError(f'{path}: is not in the package')

    def _index_of_archives(self) -> dict[str, zipfile.ZipFile]:
        if self._archives is None:
            self._archives = {}
            for path in sorted(self._root.rglob('*')):
                if path.suffix.lower() in ARCHIVES and path.is_file():
                    archive = zipfile.ZipFile(path)
                    self._archives.update(dict.fromkeys(archive.namelist(), archive))
        return self._archives

    def _index_of_resources(self) -> dict[str, bytes]:
        if self._resources is None:
            self._resources = {}
            for path in sorted(self._root.rglob('*.rcc')):
                self._resources.update(read_resources(path.read_bytes(), path.name))
        return self._resources


def read_resources(data: bytes, name: str) -> dict[str, bytes]:
    """Returns the files in a binary resource file of Qt, by path. Those compressed with Zstandard are passed over.

    Args:
        data: the resource file.
        name: of the resource file, for messages.

    Raises:
        DataError: it is damaged, or is no resource file.
    """
    if data[:4] != b'qres':
        raise DataError(f'{name}: is not a resource file of Qt')
    try:
        return dict(_walk_resources(data))
    except (struct.error, UnicodeDecodeError, zlib.error, RecursionError) as error:
        raise DataError(f'{name}: damaged: {error}') from error


def _walk_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields paths and contents. The tree has entries of 14 bytes, or 22 from version 2 on, which adds a time."""
    version, tree, contents, names = struct.unpack_from('>4I', data, 4)
    size = 14 if version == 1 else 22
    folders = [(0, '')]
    while folders:
        index, prefix = folders.pop()
        _, _, count, first = struct.unpack_from('>IHII', data, tree + size * index)
        for child in range(first, first + count):
            entry = tree + size * child
            at, flags = struct.unpack_from('>IH', data, entry)
            (length,) = struct.unpack_from('>H', data, names + at)  # a hash of 4 bytes follows, then UTF-16
            path = prefix + data[names + at + 6 : names + at + 6 + 2 * length].decode('utf-16-be')
            if flags & 2:
                folders.append((child, path + '/'))
            elif not flags & 4:
                (at,) = struct.unpack_from('>I', data, entry + 10)
                (length,) = struct.unpack_from('>I', data, contents + at)
                file = data[contents + at + 4 : contents + at + 4 + length]
                # qCompress writes the size before the stream of zlib.
                yield path, zlib.decompress(file[4:]) if flags & 1 else file


@contextlib.contextmanager
def unpacked(package: str, folder: Path | None) -> Iterator[PackageFiles]:
    """Yields the files of a package, which are removed at the end.

    Args:
        package: a Debian package, or `pypi-` and the name of a wheel.
        folder: holds packages as `NAME_VERSION_ARCHITECTURE.deb` or `NAME-VERSION….whl`, or unpacked as folders `NAME`;
            None: it is downloaded.

    Raises:
        LeftOutError: there is no such package.
        DownloadError: the network or a program is missing.
        DataError: the package is damaged.
    """
    if folder is not None and (folder / package).is_dir():
        yield PackageFiles(folder / package)
        return
    with tempfile.TemporaryDirectory(prefix='audiosep-') as scratch:
        file = _find(package, folder) if folder is not None else _download(package, Path(scratch))
        root = Path(scratch) / 'files'
        if file.suffix == '.whl':
            root.mkdir()
            shutil.copy(file, root / 'wheel.zip')
        else:
            _run(['dpkg-deb', '-x', str(file), str(root)], DataError(f'{file}: cannot be unpacked'))
        if folder is None:
            file.unlink()
        yield PackageFiles(root)


def check_programs(folder: Path | None) -> None:
    """Checks, before the work, that packages can be fetched.

    Raises:
        DataError: the folder is missing.
        DownloadError: without a folder, `apt-get` or `dpkg-deb` is missing.
    """
    if folder is not None:
        if not folder.is_dir():
            raise DataError(f'{folder}: no such folder of packages')
    elif missing := [name for name in ('apt-get', 'dpkg-deb') if shutil.which(name) is None]:
        raise DownloadError(
            f'{" and ".join(missing)} not found: run this on Debian, or give unpacked packages with --packages'
        )


def _find(package: str, folder: Path) -> Path:
    wheel = package.startswith(WHEEL)
    pattern = f'{package.removeprefix(WHEEL).replace("-", "_")}-*.whl' if wheel else f'{package}_*.deb'
    files = sorted(folder.glob(pattern))
    if not files:
        raise LeftOutError('missing', f'no {pattern} in {folder}')
    return files[-1]


def _download(package: str, scratch: Path) -> Path:
    """Returns the downloaded package in `scratch`."""
    if package.startswith(WHEEL):
        name = package.removeprefix(WHEEL)
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', name]
    else:
        command = ['apt-get', 'download', package]
    try:
        _run(command, DownloadError(f'{package} cannot be downloaded'), scratch)
    except DownloadError as error:
        if any(text in str(error) for text in _UNKNOWN):
            raise LeftOutError('missing', 'this distribution has no such package, or needs `apt-get update`') from error
        raise DownloadError(f'{error}: check the network; the next run goes on from here') from error
    return next(path for path in scratch.iterdir() if path.suffix in ('.deb', '.whl'))


def _run(command: list[str], failure: DataError | DownloadError, folder: Path | None = None) -> None:
    """Runs a program. If it fails, raises `failure` with the last line that names the error."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, 'LC_ALL': 'C'},  # the messages are read
            capture_output=True,
            text=True,
            errors='replace',
            check=False,
        )
    except FileNotFoundError as error:
        raise type(failure)(f'{failure}: {command[0]} not found') from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f'exit code {done.returncode}']
        errors = [line for line in lines if line.startswith(('E: ', 'ERROR: ', 'dpkg-deb: error'))] or lines
        raise type(failure)(f'{failure}: {errors[0].strip()}')
