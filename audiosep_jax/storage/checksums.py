"""Checksums of files: of a folder's in a file that `sha256sum --check` reads, of a JSON object in the object itself."""

import concurrent.futures
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import write_bytes

CHECKSUMS = 'checksums.sha256'
_KEY = 'sha256'  # of a JSON object
_BLOCK = 1 << 20
_THREADS = 4


def write_checksums(folder: pathlib.Path) -> None:
    """Writes the checksums of all files in a folder's subfolders, to `checksums.sha256` in the folder.

    Raises:
        OSError: a file cannot be read, or the checksums cannot be written.
    """
    names = sorted(name for path in folder.iterdir() if path.is_dir() for name in _files(folder, path))
    lines = [f'{digest}  {name}\n' for name, digest in zip(names, _digests(folder, names), strict=True)]
    write_bytes(folder / CHECKSUMS, ''.join(lines).encode())


def check_checksums(folder: pathlib.Path, subfolders: Iterable[str] | None = None) -> bool:
    """Checks the files of a folder against its checksums.

    Args:
        folder: what `write_checksums` was given.
        subfolders: those whose files are compared; None for all.

    Returns:
        Whether there are checksums. A folder of an older version, or of another program, has none.

    Raises:
        CheckpointError: a file differs, is missing, or has no checksum.
        OSError: a file cannot be read.
    """
    try:
        text = (folder / CHECKSUMS).read_bytes().decode()
    except FileNotFoundError:
        return False
    except UnicodeDecodeError:
        text = '\n'
    lines = [re.fullmatch(r'([0-9a-f]{64})  ([^/\0]+/[^\0]+)', line) for line in text.split('\n')[:-1]]
    if not lines or not all(lines) or not text.endswith('\n'):
        raise CheckpointError(f'{folder} cannot be read: damaged: {CHECKSUMS} cannot be read')
    wanted = {line[2]: line[1] for line in lines if line}
    if subfolders is None:
        subfolders = [*(name.partition('/')[0] for name in wanted), *(p.name for p in folder.iterdir() if p.is_dir())]
    chosen = set(subfolders)
    found = {name for part in chosen if (folder / part).is_dir() for name in _files(folder, folder / part)}
    expected = {name for name in wanted if name.partition('/')[0] in chosen}
    if expected - found:
        raise CheckpointError(f'{folder} cannot be read: damaged: {min(expected - found)} is missing')
    if found - expected:
        raise CheckpointError(f'{folder} cannot be read: damaged: {min(found - expected)} has no checksum')
    names = sorted(expected)
    for name, digest in zip(names, _digests(folder, names), strict=True):
        if digest != wanted[name]:
            raise CheckpointError(f'{folder} cannot be read: damaged: the checksum of {name} differs')
    return True


def _files(folder: pathlib.Path, below: pathlib.Path) -> Iterator[str]:
    """Yields the names of all files below a folder's subfolder, relative to the folder."""
    for path in below.iterdir():
        if path.is_dir():
            yield from _files(folder, path)
        else:
            yield path.relative_to(folder).as_posix()


def _digests(folder: pathlib.Path, names: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # hashing releases Python's lock
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its checksum as one more entry."""
    return {**value, _KEY: _digest_of_json(value)}


def check_seal(value: Mapping[str, Any]) -> bool:
    """Checks a JSON object against the checksum in it.

    Returns:
        Whether there is one. An object of an older version, or of another program, has none.

    Raises:
        CheckpointError: the checksum differs.
    """
    if _KEY not in value:
        return False
    if value[_KEY] != _digest_of_json({key: item for key, item in value.items() if key != _KEY}):
        raise CheckpointError(f'damaged: its checksum differs; if it was changed on purpose, remove its {_KEY!r}')
    return True


def _digest_of_json(value: Mapping[str, Any]) -> str:
    # As JSON gives it back: a tuple is a list then, and a number that is a key is a string.
    again = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(again, sort_keys=True).encode()).hexdigest()
