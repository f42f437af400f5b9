"""Keeps scores on disk, one JSON line per item, so that a killed evaluation can resume.

Every line has a key that depends on everything that the scores depend on (weights, protocol, texts, files). A line of
another checkpoint, or of files that have changed since, is therefore never reused. Lines are only appended, and are on
disk before the next batch begins. A line that was cut short by a killed process is skipped.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiosep_jax.errors import DataError


def key_of(*parts: Any) -> str:
    """Returns a short hash of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


class Journal:
    """The records in all files `scores-*.jsonl` of a folder. New ones are appended to this process's file.

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
            for path in sorted(self._folder.glob('scores-*.jsonl')):
                self._records |= _read_records(path)
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
        lines = [json.dumps({'key': key, **record}, ensure_ascii=False) + '\n' for key, record in records.items()]
        try:
            self._file.write(''.join(lines).encode('utf-8', 'backslashreplace'))
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


def _read_records(path: Path) -> dict[str, dict]:
    records = {}
    with path.open('rb') as file:
        for line in file:
            try:
                record = json.loads(line)
                records[record.pop('key')] = record
            except (ValueError, TypeError, KeyError, AttributeError):  # cut short, or written by something else
                continue
    return records


def _ends_with_newline(path: Path) -> bool:
    with path.open('rb') as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b'\n'
