"""Scores on disk, a JSON line per item: what an evaluation that was killed continues from.

Every line has a key that depends on all that the scores do (weights, protocol, texts, files), so a line of another
checkpoint or of files that have changed since is never taken for one of this run. Lines are only ever appended, and are
on the disk before the next batch is begun; the half line of a killed process is passed over.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiosep_jax.errors import DataError


def key_of(*parts: Any) -> str:
    """A short hash of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


class Journal:
    """The records in all `scores-*.jsonl` of a folder; new ones are appended to this process's file.

    Args:
        folder: made if its parent exists.
        process_index: whose file; each process of an evaluation has its own.

    Raises:
        DataError: the folder cannot be made, read or written.
    """

    def __init__(self, folder: str | os.PathLike, process_index: int = 0):
        self._folder = Path(folder)
        self._path = self._folder / f'scores-{process_index:05}.jsonl'
        try:
            self._folder.mkdir(exist_ok=True)
            self._records = {}
            for path in sorted(self._folder.glob('scores-*.jsonl')):
                self._records |= _records_of(path)
            self._file = self._path.open('ab')
            if self._path.stat().st_size and not _ends_a_line(self._path):
                self._file.write(b'\n')
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def get(self, key: str) -> dict | None:
        """The record of that key, or None."""
        return self._records.get(key)

    def append(self, records: Mapping[str, dict]) -> None:
        """Puts records by key on the disk. Raises DataError where that fails: earlier ones are kept."""
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
            f'{self._path}: scores cannot be kept there: {error.strerror or error}; give another --out, or make room: '
            'the same command then continues'
        )


def _records_of(path: Path) -> dict[str, dict]:
    records = {}
    with path.open('rb') as file:
        for line in file:
            try:
                record = json.loads(line)
                records[record.pop('key')] = record
            except (ValueError, TypeError, KeyError, AttributeError):  # cut short, or not ours
                continue
    return records


def _ends_a_line(path: Path) -> bool:
    with path.open('rb') as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b'\n'
