"""Bytes of files: pieces of one read as a file of their own, searching, and the tags before a sound."""

import bisect
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

# A piece of a file: from one byte to the one before another, or bytes that stand in for what is damaged there.
Piece = tuple[int, int] | bytes


def opened(file: Path | io.BytesIO) -> BinaryIO:
    """Opens a file that is given by its path or its bytes; the position of the latter is not moved."""
    return io.BytesIO(file.getbuffer()) if isinstance(file, io.BytesIO) else open(file, 'rb')


def skip_tags(file: BinaryIO, start: int = 0) -> int:
    """Returns where what follows the ID3v2 tags at `start`, if any, begins."""
    while True:
        file.seek(start)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b'ID3' or max(head[6:]) > 127:
            return start
        # The size is in four bytes of seven bits each; a flag tells of a footer.
        size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        start += 10 + size + (10 if head[5] & 0x10 else 0)


def file_bytes(file: Path | io.BytesIO) -> int:
    """Returns the size of a file that is given by its path or its bytes."""
    return file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.path.getsize(file)


class PiecesFile(io.RawIOBase):
    """Pieces of a file, and bytes in between, read as one file. `open_pieces` makes it, with a buffer."""

    def __init__(self, file: Path | io.BytesIO, pieces: Sequence[Piece]):
        self._pieces = [piece for piece in pieces if isinstance(piece, bytes) or piece[1] > piece[0]]
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in self._pieces]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._place = 0
        # A number, because Python warns of files that were not closed, and it is PyAV that lets go of them.
        self._number = None if isinstance(file, io.BytesIO) else os.open(file, os.O_RDONLY | getattr(os, 'O_BINARY', 0))
        self._bytes = file if isinstance(file, io.BytesIO) else io.BytesIO()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves as the `seek` of any file does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise OSError(22, os.strerror(22))
        self._place = base + offset
        return self._place

    def readinto(self, buffer) -> int:
        """Reads as the `readinto` of any file does, up to the end of a piece."""
        if self._place >= self._starts[-1]:
            return 0
        index = bisect.bisect_right(self._starts, self._place) - 1
        piece, skipped = self._pieces[index], self._place - self._starts[index]
        count = min(len(buffer), self._starts[index + 1] - self._place)
        data = piece[skipped : skipped + count] if isinstance(piece, bytes) else self._read(piece[0] + skipped, count)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _read(self, start: int, count: int) -> bytes:
        if self._number is None:
            with self._bytes.getbuffer() as buffer:
                return bytes(buffer[start : start + count])
        os.lseek(self._number, start, os.SEEK_SET)
        return os.read(self._number, count)

    def close(self) -> None:
        """Closes the file of the pieces as well."""
        number = None if self.closed else getattr(self, '_number', None)  # there is none if opening failed
        if number is not None:
            os.close(number)
        super().close()


def open_pieces(file: Path | io.BytesIO, pieces: Sequence[Piece] | None) -> BinaryIO:
    """Opens pieces of a file as a file; None: all of it."""
    if pieces is None:
        pieces = [(0, file_bytes(file))]
    return io.BufferedReader(PiecesFile(file, pieces), 65536)


def find_bytes(file: BinaryIO, wanted: bytes, start: int, size: int) -> int:
    """Returns where bytes are found at or after `start`; `size`, the end of the file, if they are not."""
    place = start
    while place < size:
        file.seek(place)
        block = file.read(1 << 20)
        found = block.find(wanted)
        if found >= 0:
            return place + found
        if len(block) < 1 << 20:
            break
        place += len(block) - len(wanted) + 1
    return size
