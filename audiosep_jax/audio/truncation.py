"""Walks through the outermost boxes, elements and chunks of files: where each of several files joined end to end
begins, and whether the last one ends before its header says, which libsndfile and FFmpeg play without an error.
"""

import io
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import soundfile

from audiosep_jax.audio.pieces import find_bytes, opened
from audiosep_jax.errors import AudioFileError

# Programs that write to a pipe cannot know the length and leave something like 0x7FFFF000 or 0xFFFFFFFF in the header.
UNKNOWN_LENGTH = 0x7FFF0000
# Careless writers count their own header into the length; a file that was cut short lacks more than that.
HEADER_BYTES = 64
# The field of libsndfile's log that tells how many bytes the header promised, by libsndfile's name of the format.
_LENGTH_FIELD = {
    'WAV': 'data',
    'WAVEX': 'data',
    'RF64': 'Riff size',
    'W64': 'riff',
    'AIFF': 'SSND',
    'AU': 'Data Size',
}
# The outermost boxes of MP4 and QuickTime. Behind the index, anything else is no box: tags are appended there.
_BOXES = b'ftyp moov mdat free skip wide uuid moof mfra sidx styp ssix meta udta emsg prft pdin pnot PICT junk'.split()
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
# Identifiers of the outermost elements, of those in a segment and of those in a cluster of Matroska.
_ELEMENTS = {
    *(_EBML, _SEGMENT, 0xEC, 0xBF),
    *(0x1F43B675, 0x1C53BB6B, 0x1254C367, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1043A770, 0x1941A469),
    *(0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF),
}


ASF_GUID = bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')


class Walk(NamedTuple):
    """Where files that were joined begin, the first at 0, and whether the last one is cut short."""

    starts: list[int]
    is_cut_short: bool


def cut_short_error(name: str) -> AudioFileError:
    """Returns the error to raise for a file, called `name` in the message, that was cut short."""
    return AudioFileError(
        f'{name}: damaged or cut short: its header promises more audio than it holds; download or copy it again'
    )


def is_sound_file_cut_short(sound: soundfile.SoundFile) -> bool:
    """Returns whether the header of a file that libsndfile reads promises more bytes than there are.

    libsndfile plays what is left, and mentions the missing bytes only in its log.
    """
    field = _LENGTH_FIELD.get(sound.format)
    found = re.search(rf'{field}\s*:\s*(\d+) \(should be (\d+)\)', sound.extra_info) if field else None
    if not found:
        return False
    promised, present = map(int, found.groups())
    return promised - present > HEADER_BYTES and promised < UNKNOWN_LENGTH


def is_container_cut_short(file: Path | io.BytesIO) -> bool:
    """Returns whether the outermost boxes (MP4) or elements (Matroska) promise more bytes than there are."""
    with opened(file) as data:
        size = data.seek(0, io.SEEK_END)
        data.seek(0)
        walk = walk_elements if data.read(4) == b'\x1a\x45\xdf\xa3' else walk_boxes
        return walk(data, size).is_cut_short


def walk_boxes(file: BinaryIO, size: int) -> Walk:
    """Walks through the boxes of MP4 and QuickTime (ISO/IEC 14496-12, section 4.2)."""
    starts, place, seen = [0], 0, set()
    while place < size:
        file.seek(place)
        header = file.read(16)
        kind, length = header[4:8], int.from_bytes(header[:4], 'big')
        if length == 1:
            length = int.from_bytes(header[8:], 'big')
        is_whole = {b'moov', b'mdat'} <= seen
        if length < 8 or (is_whole and kind not in _BOXES):  # it extends to the end of the file, or is no box
            return Walk(starts, False)
        if is_whole and kind == b'ftyp':
            starts.append(place)
            seen = set()
        seen.add(kind)
        place += length
    return Walk(starts, place > size)


def walk_elements(file: BinaryIO, size: int) -> Walk:
    """Walks through the elements of Matroska (RFC 8794, sections 4 and 5), also inside those of unknown length."""
    starts, place, has_segment = [0], 0, False
    while place < size:
        file.seek(place)
        header = file.read(12)
        element = _element(header)
        if element is None or (has_segment and element[0] not in _ELEMENTS):
            return Walk(starts, False)
        identifier, begin, length = element
        if identifier == _EBML and has_segment:
            starts.append(place)
            has_segment = False
        has_segment = has_segment or identifier == _SEGMENT
        place += begin + (length or 0)
    return Walk(starts, place > size)


def _element(header: bytes) -> tuple[int, int, int | None] | None:
    """Returns the identifier of the element that begins here, where its content begins, and its length if known.

    The leading zeros of the identifier and of the length tell how long each is. None: no element begins here.
    """
    if len(header) < 2 or not header[0] or header[0] < 16:
        return None
    width = 9 - header[0].bit_length()
    field = header[width : width + 8]
    if not field or not field[0]:
        return None
    length_width = 9 - field[0].bit_length()
    length = int.from_bytes(field[:length_width], 'big') & (1 << 7 * length_width) - 1
    identifier = int.from_bytes(header[:width], 'big')
    return identifier, width + length_width, None if length == (1 << 7 * length_width) - 1 else length


def walk_avi(file: BinaryIO, size: int) -> Walk:
    """Walks through the RIFF chunks of an AVI, of which a long one has several."""
    return _walk_chunks(file, size, b'RIFF', (b'AVI ',), (b'AVIX',), 'little')


def walk_forms(file: BinaryIO, size: int) -> Walk:
    """Walks through the FORM chunks of AIFF."""
    return _walk_chunks(file, size, b'FORM', (b'AIFF', b'AIFC'), (), 'big')


def _walk_chunks(file: BinaryIO, size: int, name: bytes, first: tuple, more: tuple, order: str) -> Walk:
    starts: list[int] = []
    place, is_cut_short = 0, False
    while place + 12 <= size:
        file.seek(place)
        header = file.read(12)
        if header[:4] != name or header[8:] not in (*first, *more):
            break
        length = int.from_bytes(header[4:8], 'little' if order == 'little' else 'big')
        if header[8:] in first:
            starts.append(place)
        is_known = 4 < length < UNKNOWN_LENGTH
        is_cut_short = is_known and place + 8 + length - size > HEADER_BYTES
        if not is_known:
            break
        place += 8 + length + length % 2
    return Walk(starts or [0], is_cut_short)


def walk_caf(file: BinaryIO, size: int) -> Walk:
    """Walks through the chunks of a Core Audio file; the last one may have the length -1, which is unknown."""
    starts, place = [0], 8
    while place + 12 <= size:
        file.seek(place)
        header = file.read(12)
        if header[:4] == b'caff' and place > 8:
            starts.append(place)
            place += 8
            continue
        length = int.from_bytes(header[4:], 'big', signed=True)
        if length < 0 or not all(32 <= byte < 127 for byte in header[:4]):
            return Walk(starts, False)
        place += 12 + length
    return Walk(starts, place - size > HEADER_BYTES)


def walk_flv(file: BinaryIO, size: int) -> Walk:
    """Walks through the tags of a Flash video."""
    starts, place = [0], 13
    while place + 11 <= size:
        file.seek(place)
        header = file.read(4)
        if header == b'FLV\x01':
            starts.append(place)
            place += 13
            continue
        if header[0] & 0x1F not in (8, 9, 18):
            return Walk(starts, False)
        place += 15 + int.from_bytes(header[1:4], 'big')
    return Walk(starts, place - size > HEADER_BYTES)


def walk_objects(file: BinaryIO, size: int) -> Walk:
    """Finds the headers of ASF, and of the last one how long the data behind it are."""
    starts = [0]
    while (place := find_bytes(file, ASF_GUID, starts[-1] + 16, size)) < size:
        starts.append(place)
    file.seek(starts[-1] + 16)
    place = starts[-1] + int.from_bytes(file.read(8), 'little')
    file.seek(min(place, size) + 16)
    length = int.from_bytes(file.read(8), 'little')
    is_known = 50 < length < 2**62  # the data of a live recording have another length
    return Walk(starts, is_known and place + length - size > HEADER_BYTES)
