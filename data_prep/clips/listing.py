"""What readers of published datasets share: reading their tables, and finding out which of the files are there."""

import csv
import io
import os
import pathlib
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from audiosep_jax.errors import DataError
from data_prep.clips.base import Entry, LeftOut, printable
from data_prep.clips.sources import Files

# In the order of preference where a clip is there in several forms: lossless ones first, pictures with sound last.
SOUND_SUFFIXES = ('.flac', '.wav', '.aiff', '.aif', '.ogg', '.opus', '.mp3', '.m4a', '.mka', '.aac')
VIDEO_SUFFIXES = ('.mp4', '.webm', '.mkv', '.mov', '.m4v', '.avi', '.flv', '.3gp', '.wmv', '.ts')


def read_text(path: str | os.PathLike, encodings: Sequence[str] = ('utf-8-sig',)) -> str:
    """A whole text file, in the first of the encodings that fits it, line ends as they are.

    Raises:
        DataError: missing, unreadable, in another encoding, or Git LFS's note in place of the file.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file') from error
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
    if data.startswith(b'version https://git-lfs'):
        raise DataError(f'{path}: is a note of Git LFS, not the file: run `git lfs pull` there, or download it')
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problem = error
    raise DataError(f'{path}: cannot be read as {encodings[-1]} text: {problem}')


def read_table(
    path: str | os.PathLike,
    columns: Sequence[str],
    *,
    encodings: Sequence[str] = ('utf-8-sig',),
    delimiter: str = ',',
    loose: bool = False,
    bad: list[LeftOut] | None = None,
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file that has a header, each with the number of the line it ends on.

    Byte order marks, CRLF and empty lines do no harm.

    Args:
        columns: those that must be there.
        loose: let a row have other fields than the header as long as it has these columns.
        bad: takes the rows of another number of fields; None: they are refused. See `refuse_wrong_table`.

    Raises:
        DataError: as `read_text`, not CSV, a column is missing, a row of another number of fields.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, encodings), newline=''), delimiter=delimiter, strict=True)
    rows = []
    try:
        names = [(name or '').strip() for name in reader.fieldnames or ()]
        absent = [column for column in columns if column not in names]
        if absent:
            raise DataError(f'{path}: no column {absent[0]!r}: expected {",".join(columns)}, found {",".join(names)}')
        reader.fieldnames = names
        for row in reader:
            more, fewer = None in row, any(row.get(column) is None for column in (columns if loose else names))
            if fewer or (more and not loose):
                problem = f'{"fewer" if fewer else "more"} fields than the header has; a text with a comma needs quotes'
                if bad is None:
                    raise DataError(f'{path}: line {reader.line_num}: {problem}')
                bad.append(bad_row(path, reader.line_num, problem))
                continue
            rows.append((reader.line_num, {column: row[column] or '' for column in names if column in row}))
    except csv.Error as error:
        raise DataError(f'{path}: line {reader.line_num}: not valid CSV: {error}') from error
    return rows


def bad_row(path: str | os.PathLike, number: int, problem: str, unit: str = 'line') -> LeftOut:
    """A row of a table that cannot be read: it is left out, and the others are not."""
    return LeftOut(f'{os.path.basename(path)}:{number}', 'unreadable', f'{path}: {unit} {number}: {problem}')


def refuse_wrong_table(bad: Sequence[LeftOut], num_good: int) -> None:
    """Raises DataError where most rows of a table are bad: it is another one than was thought."""
    if len(bad) > num_good:
        raise DataError(bad[0].message)


def one_line(text: str) -> str:
    """The text without line breaks and runs of blanks. Half a surrogate pair, which JSON can spell and UTF-8 cannot,
    becomes a question mark."""
    return ' '.join(text.encode('utf-8', 'replace').decode('utf-8').split())


def visible(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts that are not blank, on one line each."""
    return tuple(line for line in map(one_line, texts) if line)


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Each of the visible texts once, in their order."""
    return tuple(dict.fromkeys(visible(texts)))


def stem_of(name: str) -> str:
    """A file name without its suffix where that is one of sound or video: '12.5 kHz' keeps its dot. In Unicode's
    composed form: archives made on a Mac unpack to the decomposed one."""
    stem, suffix = os.path.splitext(name)
    known = suffix.lower() in SOUND_SUFFIXES or suffix.lower() in VIDEO_SUFFIXES
    return unicodedata.normalize('NFC', stem if known else name)


def list_media(
    folder: str | os.PathLike,
    *,
    left_out: list[LeftOut],
    skip: Collection[str] = (),
    video_first: bool = False,
) -> list[tuple[str, str]]:
    """(stem, path relative to `folder` with '/') of all sound and video files below it, links to folders followed.

    Each folder is listed once and no file is touched. Of files with one stem the preferred form comes first, then the
    one of the least path.

    Args:
        left_out: takes the files and folders whose names are not UTF-8: no record can hold them.
        skip: names of folders that are passed over, in small letters: those of other splits.
        video_first: prefer files with pictures.

    Raises:
        DataError: the folder is not there or cannot be listed.
    """
    folder = pathlib.Path(folder)
    order = (*VIDEO_SUFFIXES, *SOUND_SUFFIXES) if video_first else (*SOUND_SUFFIXES, *VIDEO_SUFFIXES)
    rank = {suffix: number for number, suffix in enumerate(order)}
    found: list[tuple[int, str, str]] = []
    odd: list[LeftOut] = []
    waiting, seen = [''], set()
    while waiting:
        inner = waiting.pop()
        here = folder / inner
        real = os.path.realpath(here)
        if real in seen:  # a link back up
            continue
        seen.add(real)
        try:
            with os.scandir(here) as listing:
                for entry in listing:
                    name = entry.name
                    # `._a.wav` is what a Mac leaves beside `a.wav`; lost+found may be listed by root alone.
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
    """As `os.path.isdir`: of a link to itself `DirEntry.is_dir` would raise."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def first_of(listed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Stem to path; the first of several."""
    paths: dict[str, str] = {}
    for stem, path in listed:
        paths.setdefault(stem, path)
    return paths


def find_file(source: str | os.PathLike, *names: str, folders: Sequence[str] = ()) -> pathlib.Path | None:
    """The first file of one of these names in `source`, in its folders of the names `folders`, then in any folder
    directly in it. A name may have folders of its own. None where there is no such file.

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
    """Raises DataError, which names the first reason, where none of the clips is left."""
    if not entries:
        first = f'; the first: {left_out[0].message}' if left_out else ''
        raise DataError(f'{folder}: none of the {len(left_out)} listed clips can be used{first}')
    return Files(entries, folder, kind=kind, left_out=left_out, frames=frames)
