"""Detects files that end before their headers say, which libsndfile and FFmpeg play without an error.

`is_sound_file_cut_short` checks the formats that libsndfile reads, `is_container_cut_short` MP4 and Matroska.
"""

import io
import os
import re
from pathlib import Path
from typing import BinaryIO

import soundfile

from audiosep_jax.errors import AudioFileError

# Programs that write to a pipe cannot know the length and leave something like 0x7FFFF000 or 0xFFFFFFFF in the header.
_UNKNOWN_LENGTH = 0x7FFF0000
# Careless writers count their own header into the length; a file that was cut short lacks more than that.
_HEADER_BYTES = 64
# The field of libsndfile's log that tells how many bytes the header promised, by libsndfile's name of the format.
_LENGTH_FIELD = {
    'WAV': 'data',
    'WAVEX': 'data',
    'RF64': 'Riff size',
    'W64': 'riff',
    'AIFF': 'SSND',
    'AU': 'Data Size',
}


def cut_short_error(name: str) -> AudioFileError:
    """Returns the error to raise for a file, called `name` in the message, that was cut short."""
    return AudioFileError(
        f'{name}: damaged or cut short: its header promises more audio than it holds; download or copy it again'
    )


def is_sound_file_cut_short(file: Path | io.BytesIO, sound: soundfile.SoundFile) -> bool:
    """Returns whether the header of a file that libsndfile reads promises more bytes than there are.

    Args:
        file: what `sound` reads; the position of bytes in memory is not moved.
        sound: the opened file. libsndfile plays what is left, and mentions the missing bytes only in its log.
    """
    if sound.format == 'OGG':
        # RFC 3533, section 6: a page has 27 bytes, a table of its segments, and these; at most 65,307 bytes in all.
        tail = _read_bytes(file, -2 * 65536)
        page = tail[tail.rfind(b'OggS') :]
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    field = _LENGTH_FIELD.get(sound.format)
    found = re.search(rf'{field}\s*:\s*(\d+) \(should be (\d+)\)', sound.extra_info) if field else None
    if not found:
        return False
    promised, present = map(int, found.groups())
    return promised - present > _HEADER_BYTES and promised < _UNKNOWN_LENGTH


def has_estimated_length(file: Path | io.BytesIO, sound: soundfile.SoundFile) -> bool:
    """Returns whether libsndfile estimated the length from the bit rate of the first frame.

    It does so for an MP3 without a Xing, Info or VBRI header.
    """
    if sound.format != 'MP3':
        return False
    head, tag = _read_bytes(file, 10), 0
    if head[:3] == b'ID3':  # the tag's size is in four bytes of seven bits each
        tag = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return not any(name in _read_bytes(file, tag + 256)[tag:] for name in (b'Xing', b'Info', b'VBRI'))


def _read_bytes(file: Path | io.BytesIO, count: int) -> bytes:
    """Returns the first `count` bytes of a file; where `count` is negative, the last."""
    with io.BytesIO(file.getbuffer()) if isinstance(file, io.BytesIO) else open(file, 'rb') as opened:
        if count < 0:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) + count))
        return opened.read(abs(count))


def is_container_cut_short(file: Path | io.BytesIO) -> bool:
    """Returns whether the outermost boxes (MP4) or elements (Matroska) promise more bytes than there are."""
    with io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else open(file, 'rb') as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        matroska = opened.read(4) == b'\x1a\x45\xdf\xa3'
        opened.seek(0)
        end = 0
        while end < size:
            opened.seek(end)
            length = _element_bytes(opened) if matroska else _box_bytes(opened)
            if length is None:  # it extends to the end of the file
                return False
            end += length
    return end > size


def _box_bytes(file: BinaryIO) -> int | None:
    """Returns the size of the MP4 box that begins here (ISO/IEC 14496-12, section 4.2); None: to the file's end."""
    header = file.read(16)
    size = int.from_bytes(header[:4], 'big')
    if size == 1:
        size = int.from_bytes(header[8:], 'big')
    return size if size >= 8 else None


def _element_bytes(file: BinaryIO) -> int | None:
    """Returns the size of the Matroska element that begins here (RFC 8794, sections 4 and 5); None: not known.

    An identifier and a size precede its content; the leading zeros of each tell how long it is.
    """
    header = file.read(12)
    if len(header) < 2 or not header[0]:
        return None
    identifier = 9 - header[0].bit_length()
    field = header[identifier : identifier + 8]
    if not field or not field[0]:
        return None
    width = 9 - field[0].bit_length()
    size = int.from_bytes(field[:width], 'big') & (1 << 7 * width) - 1
    return None if size == (1 << 7 * width) - 1 else identifier + width + size
