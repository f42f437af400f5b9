"""Sound files that end before their headers say: libsndfile plays what is left, and mentions it in its log alone."""

import io
import os
import re
from pathlib import Path

import soundfile

# Programs that write to a pipe cannot know the length and leave something like 0x7FFFF000 or 0xFFFFFFFF in the header.
_UNKNOWN_LENGTH = 0x7FFF0000
# Careless writers count their own header into the length; a file cut short lacks more than that.
_HEADER_BYTES = 64
# Where libsndfile's log tells how many bytes the header promised, by container.
_LENGTH_FIELD = {
    'WAV': 'data',
    'WAVEX': 'data',
    'RF64': 'Riff size',
    'W64': 'riff',
    'AIFF': 'SSND',
    'AU': 'Data Size',
}


def is_cut_short(file: Path | io.BytesIO, sound: soundfile.SoundFile) -> bool:
    """Whether the container promises more bytes than there are.

    Args:
        file: the bytes that `sound` reads; in memory, its position is left alone.
    """
    if sound.format == 'OGG':
        # RFC 3533, section 6: a page has 27 bytes, a table of its segments and these; at most 65,307 bytes in all.
        tail = _bytes_of(file, -2 * 65536)
        page = tail[tail.rfind(b'OggS') :]
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    field = _LENGTH_FIELD.get(sound.format)
    found = field and re.search(rf'{field}\s*:\s*(\d+) \(should be (\d+)\)', sound.extra_info)
    if not found:
        return False
    promised, present = map(int, found.groups())
    return promised - present > _HEADER_BYTES and promised < _UNKNOWN_LENGTH


def has_guessed_length(file: Path | io.BytesIO, sound: soundfile.SoundFile) -> bool:
    """True for an MP3 without a Xing, Info or VBRI header: its length is estimated from the first frame's bit rate."""
    if sound.format != 'MP3':
        return False
    head, tag = _bytes_of(file, 10), 0
    if head[:3] == b'ID3':  # the tag's size is in four bytes of seven bits each
        tag = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return not any(name in _bytes_of(file, tag + 256)[tag:] for name in (b'Xing', b'Info', b'VBRI'))


def _bytes_of(file: Path | io.BytesIO, count: int) -> bytes:
    """The first bytes of a file; where `count` is negative, the last."""
    with io.BytesIO(file.getbuffer()) if isinstance(file, io.BytesIO) else open(file, 'rb') as opened:
        if count < 0:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) + count))
        return opened.read(abs(count))
