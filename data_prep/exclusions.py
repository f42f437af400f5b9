"""Reads lists of clips that must not be used for training, in the formats in which evaluation sets are published.

    *.txt       one id per line; lines that begin with # are comments
    *.json      a list, a dict of lists (WavCaps's blacklists), or entries with an `id`
    *.csv       the columns of `ID_COLUMNS` that its header has, or the first column if it has none of them;
                `FILE.csv:COLUMN` takes that one. AudioSet's segment lists and the tables of AudioCaps, Clotho, ESC-50
                and FSD50K are read as published; `vggsound.csv` lists both splits, and only its test clips are taken

An id is the dataset's own (often a file name, with or without suffix) or YouTube's, in any form that file names
contain: `0bRUkLsttto`, `Y0bRUkLsttto.wav`, `0bRUkLsttto_30-40`, `Y0bRUkLsttto_30.000_40.000.flac`, `Title
[0bRUkLsttto].mp4`.
"""

import dataclasses
import functools
import os
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import tyro

from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.storage.tables import read_text, rows_of
from data_prep.clips.listing import stem_of
from data_prep.options import BuildOptions

# For AudioCaps only YouTube's ids count: its own numbers would match sounds of Freesound, whose ids are numbers too.
ID_COLUMNS = (
    *('youtube_id', 'ytid', 'video_id', 'id', 'filename', 'file_name', 'fname'),
    *('sound_id', 'src_file', 'fsid', 'freesound_id'),
)

_EVALUATION_SPLITS = ('val', 'valid', 'validation', 'test', 'eval', 'evaluation')
FILES = tyro.conf.arg(metavar='FILE [FILE ...]')

# A YouTube id has 11 characters. One or two times in seconds or milliseconds may follow.
_TIMES = r'([_-]\d+(\.\d+)?){0,2}'
_YOUTUBE = re.compile(
    rf'((?P<bare>[\w-]{{11}})|Y(?P<marked>[\w-]{{11}})|.*\[(?P<titled>[\w-]{{11}})\]){_TIMES}', re.ASCII | re.DOTALL
)


def youtube_id(name: str) -> str | None:
    """Returns the YouTube id in a file name or in an id made from one; None for names of another form.

    Only their lengths distinguish the forms, because an id of 11 characters may itself begin with Y.
    """
    match = _YOUTUBE.fullmatch(stem_of(name.strip()))
    return match and (match['bare'] or match['marked'] or match['titled'])


def read_ids(path: str | os.PathLike) -> frozenset[str]:
    """Returns all ids of a list as written, without suffix, and as YouTube ids where they contain one.

    Args:
        path: .txt, .json or .csv, or `FILE.csv:COLUMN`.

    Raises:
        DataError: the list is missing or damaged, has no such column, or holds no ids.
    """
    path = pathlib.Path(path)
    column = None
    if not path.exists() and '.csv:' in path.name.lower():
        name, column = path.name.rsplit(':', 1)
        path = path.with_name(name)
    # Text that is not UTF-8 is from Clotho, whose metadata are in Latin-1; it has file names outside ASCII.
    text = read_text(path, ('utf-8-sig', 'latin-1'))
    suffix = path.suffix.lower()
    ids: Iterable[str]
    if suffix == '.json':
        ids = _json_ids(path, text)
    elif suffix == '.csv':
        ids = _csv_ids(path, text, column)
    elif suffix == '.txt':
        ids = (line.strip() for line in text.splitlines() if not line.startswith('#'))
    else:
        raise DataError(f'{path}: a list of ids must be named .txt, .json or .csv')
    known = frozenset(form for clip_id in ids if clip_id for form in _forms(clip_id))
    if not known:
        raise DataError(f'{path}: holds no ids')
    return known


def read_all_ids(paths: Iterable[str | os.PathLike]) -> frozenset[str]:
    """Returns the ids of several lists. Raises DataError if `read_ids` does for one of them."""
    return frozenset().union(*map(read_ids, paths))


def is_excluded(excluded: frozenset[str], *names: str) -> bool:
    """Whether any of the names by which a clip is known is among the excluded ids."""
    return bool(excluded) and any(form in excluded for name in names for form in (name, stem_of(name)))


def _forms(clip_id: str) -> list[str]:
    """Returns the forms in which a reader may look up an id."""
    youtube = youtube_id(clip_id)
    return [clip_id, stem_of(clip_id), *([youtube] if youtube else [])]


def _json_ids(path: pathlib.Path, text: str) -> list[str]:
    return list(_ids_within(path, parse_json(text, path, strict=False)))


def _ids_within(path: pathlib.Path, value: Any) -> Iterable[str]:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                if 'id' not in item:
                    raise DataError(f"{path}: an entry without 'id'")
                item = item['id']
            if isinstance(item, bool) or not isinstance(item, (str, int)):
                raise DataError(f'{path}: expected ids, which are texts or whole numbers, got {item!r:.80}')
            yield str(item).strip()
    elif isinstance(value, dict) and any(isinstance(inner, list) for inner in value.values()):
        for inner in value.values():
            if isinstance(inner, list):
                yield from _ids_within(path, inner)
    else:
        raise DataError(f'{path}: expected a list of ids, or lists of them under names')


def _csv_ids(path: pathlib.Path, text: str, column: str | None) -> list[str]:
    # AudioSet's lists have three comment lines that begin with '# '. A sound's name may begin with # alone.
    every = rows_of(path, text, skipinitialspace=True)
    rows = [row for _, row in every if any(map(str.strip, row)) and not row[0].startswith('# ')]
    header = [name.strip() for name in rows[0]] if rows else []
    if column is not None:
        if column not in header:
            raise DataError(f'{path}: no column {column!r}: it has {", ".join(header) or "no rows"}')
        chosen = [header.index(column)]
    else:
        chosen = [place for place, name in enumerate(header) if name.lower() in ID_COLUMNS]
    if chosen:
        rows = rows[1:]
    else:
        chosen = [0]
        if rows and all(len(row) == 4 and row[3] in ('train', 'test') for row in rows):
            rows = [row for row in rows if row[3] == 'test']
    return [row[place].strip() for row in rows for place in chosen if place < len(row)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExcludingOptions(BuildOptions):
    """Options of a dataset that may share clips with an evaluation set."""

    # Says which evaluation sets share clips with the dataset, and what to pass to --exclude.
    overlap: ClassVar[str] = ''

    # If the flag is given twice, all its values count: an exclusion that got lost would end up in training.
    exclude: Annotated[tuple[tuple[pathlib.Path, ...], ...], tyro.conf.UseAppendAction, FILES] = ()
    """Lists of ids that must not be in the shards: .txt, .json or .csv (FILE.csv:COLUMN for a certain column). Ids are
    the dataset's own, or YouTube's."""

    @functools.cached_property
    def excluded(self) -> frozenset[str]:
        """The ids in the lists of --exclude."""
        return read_all_ids(path for paths in self.exclude for path in paths)

    def run(self) -> int:
        if self.overlap and not self.exclude and self.split not in _EVALUATION_SPLITS:
            print(f'note: {self.overlap}', file=sys.stderr)
        return super().run()
