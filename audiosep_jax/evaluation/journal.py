"""Keeps scores on disk, one JSON line per item, so that a killed evaluation can resume.

Every line has a key that depends on everything that the scores depend on (weights, protocol, texts, files). A line of
another checkpoint, or of files that have changed since, is therefore never reused. Lines are only appended, and are on
disk before the next batch begins. A line that was cut short by a killed process is skipped.

A line ends in the CRC-32 of the rest of it, `"crc32": "…"}`, so that a flipped digit is not taken for a score. Lines of
earlier versions have none and are used as they are.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import parse_json

_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\s*\Z')


def key_of(*parts: Any) -> str:
    """Returns a short hash of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


class Journal:
    """The records in all files `scores-*.jsonl` of a folder. New ones are appended to this process's file.

    Attributes:
        num_damaged: the number of lines that do not match their checksum, and whose items have not been scored again.

    Args:
        folder: the folder of the scores; it is created if its parent exists.
        process_index: index of this process; each process of an evaluation writes its own file.

    Raises:
        DataError: the folder cannot be created, read or written.
    """

    def __init__(self, folder: str | os.PathLike, process_index: int = 0):
        self._folder = Path(folder)
        self._path = self._folder / f'scores-{process_index:05}.jsonl'
        try:
            self._folder.mkdir(exist_ok=True)
            self._records: dict[str, dict] = {}
            damaged: list[str | None] = []
            for path in sorted(self._folder.glob('scores-*.jsonl')):
                self._records |= _read_records(path, damaged)
            self.num_damaged = sum(key not in self._records for key in damaged)
            self._file = self._path.open('ab')
            if self._path.stat().st_size and not _ends_with_newline(self._path):
                self._file.write(b'\n')
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def get(self, key: str) -> dict | None:
        """Returns the record of a key, or None."""
        return self._records.get(key)

    def append(self, records: Mapping[str, dict]) -> None:
        """Writes records by key to disk.

        Raises:
            DataError: the file cannot be written; the earlier records are kept.
        """
        lines = [json.dumps({'key': key, **record}, ensure_ascii=False) for key, record in records.items()]
        try:
            self._file.write(b''.join(_with_checksum(line.encode('utf-8', 'backslashreplace')) for line in lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        self._records |= records

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f'{self._path}: scores cannot be kept there: {error.strerror or error}; give another --out, or free some '
            'space and run the same command again to resume'
        )


def _with_checksum(line: bytes) -> bytes:
    return line[:-1] + f', "crc32": "{zlib.crc32(line):08x}"}}\n'.encode()


def _read_records(path: Path, damaged: list[str | None]) -> dict[str, dict]:
    """Returns the records of a file by key. `damaged` receives the keys of lines unlike their checksum."""
    records = {}
    with path.open('rb') as file:
        for line in file:
            checksum = _CHECKSUM.search(line)
            payload = line[: checksum.start()] + b'}' if checksum else line
            is_whole = checksum is None or zlib.crc32(payload) == int(checksum[1], 16)
            try:
                record = parse_json(payload, path, dict, strict=False)
                key = record.pop('key')
            except (DataError, KeyError):  # cut short, or written by something else
                record, key = {}, None
            if not is_whole:
                damaged.append(key if isinstance(key, str) else None)
            elif isinstance(key, str):
                records[key] = record
    return records


def _ends_with_newline(path: Path) -> bool:
    with path.open('rb') as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b'\n'
