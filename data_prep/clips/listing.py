"""For readers of published datasets: reading their tables, and finding out which of their files exist."""

import os
import pathlib
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from audiosep_jax.audio.formats import dataset_suffixes
from audiosep_jax.errors import DataError, LeftOut, printable
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.storage.tables import read_text, rows_of
from data_prep.clips.base import Entry
from data_prep.clips.sources import Files

_SUFFIXES = frozenset(dataset_suffixes())


def read_table(
    path: str | os.PathLike,
    columns: Sequence[str],
    *,
    encodings: Sequence[str] = ('utf-8-sig',),
    delimiter: str | None = ',',
    loose: bool = False,
    bad: list[LeftOut] | None = None,
) -> list[tuple[int, dict[str, str]]]:
    """Returns the rows of a CSV file with a header, each with the number of the line on which it ends.

    Byte order marks, CRLF and empty lines do no harm.

    Args:
        path: the file.
        columns: the columns that must exist.
        encodings: as for `tables.read_text`.
        delimiter: the character between two fields; None: what the header has, commas, semicolons or tabs.
        loose: accept rows with more or fewer fields than the header, as long as they have these columns.
        bad: receives the rows with a wrong number of fields; None: they are an error. See `refuse_wrong_table`.

    Raises:
        DataError: as for `tables.read_text`; not CSV; a column is missing; a row has a wrong number of fields.
    """
    text = read_text(path, encodings)
    delimiter = delimiter or delimiter_of(text)
    table = ((line, row) for line, row in rows_of(path, text, delimiter=delimiter) if row)
    names = [name.strip() for name in next(table, (0, []))[1]]
    absent = [column for column in columns if column not in names]
    if absent:
        found = ','.join(names)
        raise DataError(f'{path}: no column {absent[0]!r}: expected {",".join(columns)}, found {found:.200}')
    rows = []
    for line, fields in table:
        more, fewer = len(fields) > len(names), set(columns if loose else names) - set(names[: len(fields)])
        if fewer or (more and not loose):
            problem = f'{"fewer" if fewer else "more"} fields than the header has; a text with a comma needs quotes'
            if bad is None:
                raise DataError(f'{path}: line {line}: {problem}')
            bad.append(bad_row(path, line, problem))
            continue
        rows.append((line, dict(zip(names, fields, strict=False))))
    return rows


def delimiter_of(table: str) -> str:
    """Returns the character between the fields of a table: of comma, semicolon and tab, the header's most frequent."""
    header = next((line for line in table.splitlines() if line.strip()), '')
    return max(',;\t', key=header.count)


def read_json_lines(path: str | os.PathLike, *, bad: list[LeftOut] | None = None) -> list[tuple[int, dict[str, Any]]]:
    """Returns the objects of a file with one JSON object on each line, with the numbers of their lines.

    Args:
        path: the file.
        bad: receives the lines that are no objects; None: they are an error. See `refuse_wrong_table`.

    Raises:
        DataError: as for `tables.read_text`; a line is no object.
    """
    rows = []
    for number, line in enumerate(read_text(path).split('\n'), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, parse_json(line, f'{path}: line {number}', dict[str, Any], strict=False)))
        except DataError:
            if bad is None:
                raise
            bad.append(bad_row(path, number, 'not a JSON object'))
    return rows


def bad_row(path: str | os.PathLike, number: int, problem: str, unit: str = 'line') -> LeftOut:
    """Returns a `LeftOut` for a row of a table that cannot be read.

    Args:
        path: the table.
        number: of the row.
        problem: what is wrong with it.
        unit: what `number` counts.
    """
    return LeftOut(f'{os.path.basename(path)}:{number}', 'unreadable', f'{path}: {unit} {number}: {problem}')


def refuse_wrong_table(bad: Sequence[LeftOut], num_good: int) -> None:
    """Raises DataError if most rows of a table are bad, because it must then be a different table."""
    if len(bad) > num_good:
        raise DataError(bad[0].message)


def one_line(text: str) -> str:
    """Returns the text without line breaks and repeated blanks.

    Half a surrogate pair, which JSON can express and UTF-8 cannot, becomes a question mark.
    """
    return ' '.join(text.encode('utf-8', 'replace').decode('utf-8').split())


def visible(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the texts that are not blank, each on one line."""
    return tuple(line for line in map(one_line, texts) if line)


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the visible texts in their order, each once."""
    return tuple(dict.fromkeys(visible(texts)))


def stem_of(name: str) -> str:
    """Returns a file name without its suffix, if that is one of sound or video files: '12.5 kHz' keeps its dot.

    The result is in Unicode's composed form, because archives made on a Mac unpack to the decomposed one.
    """
    stem, suffix = os.path.splitext(name)
    return unicodedata.normalize('NFC', stem if suffix.lower() in _SUFFIXES else name)


def list_media(
    folder: str | os.PathLike,
    *,
    left_out: list[LeftOut],
    skip: Collection[str] = (),
    video_first: bool = False,
) -> list[tuple[str, str]]:
    """Returns (stem, path relative to `folder` with '/') of all sound and video files below a folder.

    Follows links to folders; lists each folder once, and opens no file. Among files with the same stem, the preferred
    format comes first, then the path that sorts first.

    Args:
        folder: the folder.
        left_out: receives the files and folders whose names are not UTF-8, because no record can hold them.
        skip: lower-case names of folders to skip, such as those of other splits.
        video_first: prefer files with pictures.

    Raises:
        DataError: the folder does not exist or cannot be listed.
    """
    folder = pathlib.Path(folder)
    rank = {suffix: number for number, suffix in enumerate(dataset_suffixes(videos_first=video_first))}
    found: list[tuple[int, str, str]] = []
    odd: list[LeftOut] = []
    waiting: list[str] = ['']
    seen: set[str] = set()
    while waiting:
        inner = waiting.pop()
        here = folder / inner
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above
            continue
        seen.add(real)
        try:
            with os.scandir(here) as listing:
                for entry in listing:
                    name = entry.name
                    # A Mac leaves `._a.wav` beside `a.wav`; only root may list lost+found.
                    if name.startswith('.') or name in ('__MACOSX', 'lost+found'):
                        continue
                    suffix = os.path.splitext(name)[1].lower()
                    path = f'{inner}/{name}' if inner else name
                    is_sound = suffix in rank and not _is_folder(entry)
                    if not is_sound and (name.lower() in skip or not _is_folder(entry)):
                        continue
                    if printable(name) != name:
                        odd.append(LeftOut(path, 'unreadable', f'{here / name}: its name is not UTF-8: rename it'))
                    elif is_sound:
                        found.append((rank[suffix], path, stem_of(name)))
                    else:
                        waiting.append(path)
        except OSError as error:
            raise DataError(f'{here}: cannot be listed: {error.strerror or error}') from error
    left_out += sorted(odd, key=lambda clip: clip.id)
    return [(stem, path) for _, path, stem in sorted(found)]


def _is_folder(entry: os.DirEntry) -> bool:
    """Returns what `os.path.isdir` does; `DirEntry.is_dir` would raise an error at a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def first_of(listed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns a mapping from stem to path; of several paths, the first one counts."""
    paths: dict[str, str] = {}
    for stem, path in listed:
        paths.setdefault(stem, path)
    return paths


def find_file(source: str | os.PathLike, *names: str, folders: Sequence[str] = ()) -> pathlib.Path | None:
    """Returns the first file that has one of these names, or None.

    Args:
        source: the folder that is searched first, then some folders in it.
        names: names, or relative paths, in order of preference.
        folders: the folders in `source` that are searched next, before all others that are directly in it.

    Raises:
        DataError: `source` is not a folder.
    """
    source = pathlib.Path(source)
    try:
        with os.scandir(source) as listing:
            inner = sorted(entry.name for entry in listing if not entry.name.startswith('.') and _is_folder(entry))
    except OSError as error:
        raise DataError(f'{source}: cannot be listed ({error.strerror}): give the folder of the dataset') from error
    for place in ('', *folders, *inner):
        for name in names:
            path = source / place / name
            if path.is_file():
                return path
    return None


def files_or_refuse(
    entries: list[Entry], folder: pathlib.Path, left_out: list[LeftOut], kind: str, frames: int = 0
) -> Files:
    """Returns the clips of a dataset as `Files`.

    Args:
        entries: the clips.
        folder: the folder to which their paths are relative.
        left_out: the listed clips that cannot be used.
        kind: the name of the dataset.
        frames: how many pictures to take of each video.

    Raises:
        DataError: there is no clip; the message gives the first reason.
    """
    if not entries:
        first = f'; the first: {left_out[0].message}' if left_out else ''
        raise DataError(f'{folder}: none of the {len(left_out)} listed clips can be used{first}')
    return Files(entries, folder, kind=kind, left_out=left_out, frames=frames)
