"""JSON files, in folders and in buckets."""

import json
import pathlib
from typing import Any

from audiosep_jax.errors import DataError
from audiosep_jax.storage.buckets import write_bytes


def read_json(path: pathlib.Path) -> Any:
    """Returns the contents of a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read as JSON: {error}') from error


def write_json(path: pathlib.Path, value: Any, *, indent: int = 1) -> None:
    """Writes a JSON file atomically: readers see the old file or the new one, even if this process is killed.

    Its folder is made.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False) + '\n').encode())
