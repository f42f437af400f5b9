"""Walks through the outermost boxes, elements and chunks of files: where each of several files joined end to end
begins, and whether the last one ends before its header says, which libsndfile and FFmpeg play without an error.
"""

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import soundfile

from audiosep_jax.audio.structure.kinds import ASF_GUID, Frame, mpeg_frame
from audiosep_jax.audio.structure.pieces import find_bytes, skip_tags
from audiosep_jax.errors import AudioFileError

# Programs that write to a pipe cannot know the length and leave something like 0x7FFFF000 or 0xFFFFFFFF in the header.
UNKNOWN_LENGTH = 0x7FFF0000
# Careless writers count their own header into the length; a file that was cut short lacks more than that.
HEADER_BYTES = 64
_MAX_GARBAGE = 0.1  # of an MP3: what is neither a frame nor a tag
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
_CAF_CHUNKS = b'desc data pakt chan kuki strg mark regn inst midi ovvw peak umid uuid edct info free'.split()
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
# Identifiers of the outermost elements, of those in a segment and of those in a cluster of Matroska.
_ELEMENTS = {
    *(_EBML, _SEGMENT, 0xEC, 0xBF),
    *(0x1F43B675, 0x1C53BB6B, 0x1254C367, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1043A770, 0x1941A469),
    *(0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF),
}


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


def walk_boxes(file: BinaryIO, size: int) -> Walk:
    """Walks through the boxes of MP4 and QuickTime (ISO/IEC 14496-12, section 4.2)."""
    starts, place = [0], 0
    seen: set[bytes] = set()
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
        if length < 0 or header[:4] not in _CAF_CHUNKS:
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


def walk_au(file: BinaryIO, size: int) -> Walk:
    """Finds Sun's AU files one behind the other, as far as they tell their length; libsndfile finds what is missing."""
    starts, place = [], 0
    while place + 24 <= size:
        file.seek(place)
        header = file.read(12)
        if header[:4] != b'.snd':
            break
        starts.append(place)
        offset, length = int.from_bytes(header[4:8], 'big'), int.from_bytes(header[8:], 'big')
        if length >= UNKNOWN_LENGTH:
            break
        place += offset + length
    return Walk(starts or [0], False)


def walk_wavpack(file: BinaryIO, size: int) -> tuple[list[tuple[int, int]], bool]:
    """Returns from where to where each WavPack file goes, and whether the last one is cut short."""
    files: list[tuple[int, int]] = []
    place, left = 0, 0
    while place + 32 <= size:
        file.seek(place)
        header = file.read(32)
        if header[:4] != b'wvpk':
            place = find_bytes(file, b'wvpk', place + 1, size)
            continue
        length, total, index, count = (int.from_bytes(header[i : i + 4], 'little') for i in (4, 12, 16, 20))
        is_initial = header[25] & 8  # of the blocks for the same samples, one for each two channels
        if not files or (index == 0 and is_initial and count):
            files.append((place, place))
            left = total if total < 2**32 - 1 else 0
        left -= count if is_initial else 0
        place += 8 + length
        files[-1] = files[-1][0], min(place, size)
    return files or [(0, size)], left > 0 or place > size + HEADER_BYTES


_TS_PACKET = 188
_TS_SOUND = {0x03, 0x04, 0x0F, 0x11, 0x1C, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87}
_TS_SOUND_DESCRIPTORS = {0x6A, 0x7A, 0x7B, 0x7C, 0x7F}  # AC-3, E-AC-3, DTS, AAC, and Opus among others


def walk_ts(file: BinaryIO, size: int) -> Walk:
    """Finds where an MPEG transport stream (ISO/IEC 13818-1, section 2.4) goes on without any track of sound it had."""
    starts = [0]
    tracks: set[tuple[int, int]] = set()
    place = find_bytes(file, b'\x47\x40\x00', 0, size)
    while place < size:
        file.seek(place)
        block = file.read(1 << 16)
        found = _ts_tracks(block)
        if found and tracks and not found & tracks:
            starts.append(place)
            tracks = found
        elif found:
            tracks = found & tracks or found
        place = find_bytes(file, b'\x47\x40\x00', place + _TS_PACKET, size)
    return Walk(starts, False)


def _ts_tracks(block: bytes) -> set[tuple[int, int]]:
    """Returns number and type of the tracks of sound in the programs whose table begins the block."""
    programs = _ts_section(block, 0)
    tracks: set[tuple[int, int]] = set()
    for i in range(8, len(programs) - 4, 4):
        number = (programs[i + 2] & 0x1F) << 8 | programs[i + 3]
        place = block.find(bytes([0x47, 0x40 | number >> 8, number & 255]), _TS_PACKET)
        table = _ts_section(block[place:], 2) if place >= 0 and programs[i : i + 2] != b'\0\0' else b''
        j = 12 + ((table[10] & 15) << 8 | table[11]) if len(table) > 16 else len(table)
        while j + 5 <= len(table) - 4:
            length = (table[j + 3] & 15) << 8 | table[j + 4]
            descriptors = table[j + 5 : j + 5 + length]
            if table[j] in _TS_SOUND or (table[j] == 6 and set(_tags(descriptors)) & _TS_SOUND_DESCRIPTORS):
                tracks.add(((table[j + 1] & 0x1F) << 8 | table[j + 2], table[j]))
            j += 5 + length
    return tracks


def _tags(descriptors: bytes) -> Iterator[int]:
    place = 0
    while place + 2 <= len(descriptors):
        yield descriptors[place]
        place += 2 + descriptors[place + 1]


def _ts_section(block: bytes, table: int) -> bytes:
    """Returns the section of a table with its header and checksum, from the packet that begins the block."""
    packet = block[:_TS_PACKET]
    start = 4 + (1 + packet[4] if len(packet) == _TS_PACKET and packet[3] & 0x20 else 0)
    if len(packet) < _TS_PACKET or start >= _TS_PACKET or block[_TS_PACKET : _TS_PACKET + 1] not in (b'\x47', b''):
        return b''
    start += 1 + packet[start]
    if start + 3 > _TS_PACKET or packet[start] != table:
        return b''
    return packet[start : start + 3 + ((packet[start + 1] & 15) << 8 | packet[start + 2])]


class MpegWalk(NamedTuple):
    """Where frames of MPEG audio are, whether some are missing, how long they last, and why they cannot be right."""

    pieces: list[tuple[int, int]]
    is_cut_short: bool
    seconds: float
    fault: str


def walk_mpeg(file: BinaryIO, size: int) -> MpegWalk:
    """Walks from frame to frame, and leaves out tags and what is no frame, also between files that were joined."""
    pieces: list[list[int]] = []
    place, garbage, frames, missing, seconds = skip_tags(file), 0, 0, 0, 0.0
    promised = -1  # frames by the header of the part; -1: it has none
    while place < size:
        file.seek(place)
        head = file.read(64)
        frame = mpeg_frame(head)
        if frame is None:
            following = _behind_tag(file, head, place, size)
            if following is None:
                following = _next_frame(file, place + 1, size)
                garbage += following - place if head.strip(b'\0') else 0
            place = following
            continue
        count = _promised_frames(head, frame)
        if count is not None:
            missing += max(promised - frames, 0)
            promised, frames = count, 0
            # The first such frame is left out. The decoder plays those of joined files, as silence.
            seconds += frame.samples / frame.rate if pieces else -_encoder_delay(file, place) / frame.rate
        else:
            frames += 1
            seconds += frame.samples / frame.rate
        if pieces and pieces[-1][1] == place:
            pieces[-1][1] = min(place + frame.size, size)
        else:
            pieces.append([place, min(place + frame.size, size)])
        place += frame.size
    missing += max(promised - frames, 0)
    fault = f'{garbage} of its {size} bytes are no MPEG audio' if garbage > max(_MAX_GARBAGE * size, 4096) else ''
    return MpegWalk([(start, stop) for start, stop in pieces], missing > 2, seconds, fault)


def _promised_frames(head: bytes, frame: Frame) -> int | None:
    """Returns how many frames follow, by the header of Xing, Info or VBRI in a frame without sound.

    None: the frame is one of sound; 0: the header does not say.
    """
    mono = frame.channels == 1
    place = 4 + ((9 if mono else 17) if frame.is_low_rate else (17 if mono else 32))
    if head[place : place + 4] in (b'Xing', b'Info'):
        return int.from_bytes(head[place + 8 : place + 12], 'big') if head[place + 7] & 1 else 0
    return int.from_bytes(head[50:54], 'big') if head[36:40] == b'VBRI' else None


def _encoder_delay(file: BinaryIO, place: int) -> int:
    """Returns how many samples the encoder has added at both ends, by the header that LAME and FFmpeg write."""
    file.seek(place)
    head = file.read(200)
    start = max(head.find(b'Xing'), head.find(b'Info')) + 120
    if start < 120 or head[start : start + 4] not in (b'LAME', b'Lavc', b'Lavf'):
        return 0
    packed = int.from_bytes(head[start + 21 : start + 24], 'big')
    return (packed >> 12) + (packed & 0xFFF)


def _behind_tag(file: BinaryIO, head: bytes, place: int, size: int) -> int | None:
    """Returns where the tag that begins at `place` ends; None: there is none."""
    if head[:3] == b'ID3':
        return min(skip_tags(file, place), size) if skip_tags(file, place) > place else None
    if head[:3] == b'TAG' and place + 128 <= size:
        return place + (227 if head[3:4] == b'+' else 128)
    if head[:8] == b'APETAGEX' and len(head) >= 32:
        length, _, flags = struct.unpack('<III', head[12:24])
        # The length counts the footer but not the header, before which or at which this is.
        return min(place + 32 + (length if flags & 0x20000000 else 0), size)
    if head[:11] == b'LYRICSBEGIN':
        stop = min(find_bytes(file, end, place, size) for end in (b'LYRICS200', b'LYRICSEND'))
        return min(stop + 9, size)
    return None


def _next_frame(file: BinaryIO, start: int, size: int) -> int:
    """Returns where, at or after `start`, frames or a tag begin again."""
    while start < size:
        file.seek(start)
        block = file.read(1 << 16)
        for place, byte in enumerate(block):
            if byte == 0xFF:
                frame = mpeg_frame(block[place : place + 4])
                if frame:
                    file.seek(start + place + frame.size)
                    if mpeg_frame(file.read(4)):
                        return start + place
            elif byte in b'ITA' and block.startswith((b'ID3', b'TAG', b'APETAGEX'), place):
                return start + place
        start += len(block) if len(block) < 1 << 16 else len(block) - 8
    return size
