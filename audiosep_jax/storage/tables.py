"""Text files and CSV tables, read whole: what is damaged gives an error of one line, and no row is lost in silence."""

import csv
import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

from audiosep_jax.errors import DataError

# A line that no text file holds. A reader that does not return it as a row has taken it for a part of a quoted field.
_END = '\0end'


def read_text(path: str | os.PathLike, encodings: Sequence[str] = ('utf-8-sig',)) -> str:
    """Returns a whole text file, with its line ends unchanged.

    Args:
        path: the file.
        encodings: the first one that fits is used.

    Raises:
        DataError: missing, unreadable, in another encoding, not text, or a Git LFS pointer in place of the file.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file') from error
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
    if data.startswith(b'version https://git-lfs'):
        raise DataError(f'{path}: is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download it')
    if b'\0' in data or data.startswith((b'\xff\xfe', b'\xfe\xff')):
        raise DataError(f'{path}: not UTF-8 text but UTF-16 or binary (NUL in it): save it as UTF-8')
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            start = error.start
    raise DataError(f'{path}: cannot be read as utf-8 text (at byte {start}): save it as UTF-8')


def rows_of(
    path: str | os.PathLike, text: str, *, strict: bool = True, delimiter: str = ',', skipinitialspace: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a CSV text, each with the number of the line on which it ends. Empty lines are empty rows.

    Args:
        path: the file, for messages.
        text: its text, without NUL.
        strict: refuse text after the closing quote of a field.
        delimiter: the character between two fields.
        skipinitialspace: skip blanks after it.

    Raises:
        DataError: a quote that is never closed, a field that is too long, or something else that is not CSV.
    """
    # The lines keep their ends, because a quoted field may hold them.
    lines = itertools.chain(io.StringIO(text, newline=''), [_END])
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=skipinitialspace, strict=strict)
    last = 0
    try:
        for row in reader:
            if row == [_END] and reader.line_num == last + 1:
                return
            if row and row[-1].endswith(_END):
                break
            yield reader.line_num, row
            last = reader.line_num
    except csv.Error as error:
        if 'unexpected end of data' not in str(error):
            raise DataError(f'{path}: line {reader.line_num}: not valid CSV: {error}') from error
    raise DataError(f'{path}: line {last + 1}: not valid CSV: a quote that begins there is never closed')
