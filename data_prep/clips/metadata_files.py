"""The metadata of Hugging Face's audiofolder: a table that names the sounds below its folder and describes them.

    metadata.csv            file_name,text                  or metadata.tsv; also with semicolons
    metadata.jsonl          {"file_name": "data/a.wav", "text": "a dog barks"}

Its captions are in the first of `CAPTION_COLUMNS` that is not blank; `caption_1`, `caption_2` … count together. Without
such a column, the name of a class is the caption. A table without `file_name` belongs to something else.
"""

import dataclasses
import pathlib
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from audiosep_jax.errors import DataError, LeftOut
from data_prep.clips.listing import bad_row, distinct, read_json_lines, read_table, refuse_wrong_table

# In order of preference. What is said in a recording describes it less than what is heard.
CAPTION_COLUMNS = (
    'caption',
    'captions',
    'text',
    'description',
    'prompt',
    'sentence',
    'transcription',
    'transcript',
    'normalized_text',
    'raw_text',
)
_LABEL_COLUMNS = ('label', 'labels', 'category', 'class', 'class_name')
_NAMES = ('metadata.csv', 'metadata.tsv', 'metadata.jsonl')
_UNREAD = 'metadata.parquet'


@dataclasses.dataclass(frozen=True)
class Metadata:
    """One table.

    Attributes:
        path: relative to the dataset's folder.
        rows: captions and labels, by the key (`key_of`) of the file's path relative to the dataset's folder.
    """

    path: str
    rows: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


def key_of(path: str) -> str:
    """Returns the key under which `Metadata.rows` has a file: macOS decomposes accents in the names of files."""
    return unicodedata.normalize('NFC', path)


def read_metadata(folder: pathlib.Path, inner: str, names: Iterable[str], left_out: list[LeftOut]) -> Metadata | None:
    """Returns the table of the folder `inner` of a dataset, if there is one.

    Args:
        folder: the dataset's folder.
        inner: a folder in it, as a relative path; '' for itself.
        names: the names of the files in `inner`.
        left_out: receives the rows that cannot be read.

    Raises:
        DataError: the table is damaged, has no captions, or is a Parquet file.
    """
    there = set(names)
    name = next((name for name in _NAMES if name in there), None)
    path = posixpath.join(inner, name or _UNREAD)
    if name is None:
        if _UNREAD in there:
            raise DataError(f'{folder / path}: Parquet is not read: write it as metadata.csv, or use --captions class')
        return None
    rows: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    bad: list[LeftOut] = []
    columns: dict[str, None] = {}
    for number, row in _rows(folder / path, bad):
        values = {str(column).strip().lower(): value for column, value in row.items()}
        columns |= dict.fromkeys(values)
        column = next((column for column in values if column == 'file_name' or column.endswith('_file_name')), None)
        if column is None:
            continue
        file = values[column]
        if not isinstance(file, str) or not _is_inside(file):
            bad.append(bad_row(folder / path, number, f'{column} {file!r} is not a file below this folder'))
            continue
        key = key_of(posixpath.normpath(posixpath.join(inner, file.strip().replace('\\', '/'))))
        known = rows.get(key, ((), ()))
        labels = _first(values, _LABEL_COLUMNS)
        captions = _captions(values) or tuple(label.replace('_', ' ') for label in labels)
        rows[key] = distinct([*known[0], *captions]), distinct([*known[1], *labels])
    refuse_wrong_table(bad, len(rows))
    if not rows:
        return None
    if not any(captions for captions, _ in rows.values()):
        raise DataError(
            f'{folder / path}: no captions: expected a column {", ".join(CAPTION_COLUMNS[:4])} …, found '
            f'{", ".join(columns)} (--captions class takes the names of the folders)'
        )
    left_out += bad
    return Metadata(path, rows)


def _rows(path: pathlib.Path, bad: list[LeftOut]) -> list[tuple[int, dict[str, Any]]]:
    if path.suffix == '.jsonl':
        return read_json_lines(path, bad=bad)
    return read_table(path, (), delimiter=None, bad=bad)


def _is_inside(file: str) -> bool:
    path = posixpath.normpath(file.strip().replace('\\', '/'))
    return not posixpath.isabs(path) and path.split('/')[0] not in ('.', '..')


def _captions(values: Mapping[str, Any]) -> tuple[str, ...]:
    several = [column for column in values if re.fullmatch(r'caption_?\d+', column)]
    return distinct(text for column in several for text in _texts(values[column])) or _first(values, CAPTION_COLUMNS)


def _first(values: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...]:
    """Returns the texts of the first of the columns that has any."""
    return next(filter(None, (distinct(_texts(values.get(column))) for column in columns)), ())


def _texts(value: Any) -> list[str]:
    """Returns the texts of a value: itself, or the members of a list. The number of a class is none."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and not text.strip().isdecimal()]
