"""The parts of a sound file, found by its own structure: chained Ogg streams, files joined end to end, odd headers.

Decoders read the first part alone, or trust a header that a broken recorder or a tag editor has left. Here the bytes
tell what there is, and each part is handed on as a file that decoders read right.
"""

import dataclasses
import functools
import io
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from audiosep_jax.audio.structure import kinds
from audiosep_jax.audio.structure.kinds import Kind
from audiosep_jax.audio.structure.pieces import Piece, find_bytes, opened, skip_tags
from audiosep_jax.audio.structure.truncation import (
    HEADER_BYTES,
    UNKNOWN_LENGTH,
    Walk,
    walk_au,
    walk_avi,
    walk_boxes,
    walk_caf,
    walk_elements,
    walk_flv,
    walk_forms,
    walk_mpeg,
    walk_objects,
    walk_ts,
    walk_wavpack,
)

_FLAC_START = b'\x22'  # bytes of the block that begins every FLAC stream
_SNDFILE_TAGS = {1, 2, 3, 6, 7, 0x11, 0x31}  # of WAV: PCM, MS ADPCM, float, A-law, µ-law, IMA ADPCM, GSM 6.10
_EXTENSIBLE = 0xFFFE
# Chunks that are found where a careless writer has left out a byte.
_CHUNKS = tuple(
    name.ljust(4).encode()
    for name in [
        'fmt',
        'data',
        'fact',
        'LIST',
        'PEAK',
        'JUNK',
        'junk',
        'PAD',
        'FLLR',
        'bext',
        'iXML',
        'cue',
        'smpl',
        'inst',
        'id3',
        'axml',
    ]
)
_W64_NAMES = bytes.fromhex('8cd100c04f8edb8a')  # the second half of the name of each chunk


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a file that is decoded by itself.

    Attributes:
        pieces: its bytes; None: the whole file as it is.
        in_libsndfile: libsndfile reads it right; PyAV reads it otherwise.
        is_vorbis_order: libsndfile gives its channels in the order of Vorbis.
        mask: a WAV's loudspeakers, as bits; 0: not given.
        seconds: its length, where counted; None: the decoder's header is to be asked.
    """

    pieces: tuple[Piece, ...] | None = None
    in_libsndfile: bool = False
    is_vorbis_order: bool = False
    mask: int = 0
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the bytes of a file tell.

    Attributes:
        kind: its format.
        parts: one or more.
        is_cut_short: it ends before its structure says.
        fault: why it cannot be right; empty if it can.
    """

    kind: Kind
    parts: tuple[Part, ...]
    is_cut_short: bool = False
    fault: str = ''


def structure_of(file: Path | io.BytesIO) -> Structure:
    """Returns what the bytes of a file tell; of a path it is remembered until the file changes.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(file, io.BytesIO):
        return _structure(file)
    status = os.stat(file)
    return _remembered(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)  # the clips of a dataset are often parts of a few long files
def _remembered(file: Path, modified: int, size: int) -> Structure:
    return _structure(file)


def _structure(file: Path | io.BytesIO) -> Structure:
    kind = kinds.kind_of(file)
    read = _READERS.get(kind)
    if read is None:
        return Structure(kind, (Part(None, kind.in_libsndfile),))
    with opened(file) as data:
        size = data.seek(0, os.SEEK_END)
        return read(data, size)


# ---- Ogg -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Link:
    """Ogg streams that begin together: a recording of its own."""

    start: int
    stop: int = 0
    is_open: bool = True  # only first pages so far
    codecs: dict[int, bytes] = dataclasses.field(default_factory=dict)  # the first bytes of each stream
    unfinished: set[int] = dataclasses.field(default_factory=set)


def _read_ogg(file: BinaryIO, size: int) -> Structure:
    """Finds the links of a chain; see RFC 3533, section 6.

    A file is cut short if its last page is incomplete, or if a stream of sound in its last link has no last page.
    """
    links: list[_Link] = []
    is_cut_short = False
    for start, header, stop, first in _ogg_pages(file, size):
        flags, serial = header[5], int.from_bytes(header[14:18], 'little')
        is_cut_short = stop > size
        if flags & 2:
            if not links or not links[-1].is_open or serial in links[-1].codecs:
                links.append(_Link(start))
            links[-1].codecs[serial] = first
            links[-1].unfinished.add(serial)
        elif links:
            links[-1].is_open = False
        if links:
            links[-1].stop = min(stop, size)
            if flags & 4:
                links[-1].unfinished.discard(serial)
    if not links:
        return Structure(kinds.OGG, (Part(),), fault='no Ogg stream begins in it')
    last = links[-1]
    is_cut_short = is_cut_short or any(_is_ogg_sound(last.codecs[serial]) for serial in last.unfinished)
    parts = []
    for link in links:
        codecs = list(link.codecs.values())
        simple = len(codecs) == 1 and codecs[0].startswith((b'\x01vorbis', b'OpusHead'))
        # Streams of Opus with another mapping than 0 and 1 have channels without places.
        is_ordered = simple and (codecs[0].startswith(b'\x01vorbis') or codecs[0][18:19] == b'\x01')
        pieces = None if len(links) == 1 and link.start == 0 else ((link.start, link.stop),)
        if any(map(_is_ogg_sound, codecs)) or len(links) == 1:
            parts.append(Part(pieces, simple, is_ordered))
    return Structure(kinds.OGG, tuple(parts), is_cut_short, '' if parts else 'no sound in it')


def _is_ogg_sound(first: bytes) -> bool:
    return first.startswith((b'\x01vorbis', b'OpusHead', b'\x7fFLAC', b'fLaC', b'Speex'))


def _ogg_pages(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int, bytes]]:
    """Yields of each page where it begins, its header, where it ends (perhaps beyond the file), its first bytes."""
    place = 0
    while place < size:
        file.seek(place)
        header = file.read(27)
        if header[:4] != b'OggS' or (len(header) > 4 and header[4]):
            place = find_bytes(file, b'OggS\0', place + 1, size)
            continue
        if len(header) < 27:
            yield place, header.ljust(27, b'\0'), size + 1, b''
            return
        table = file.read(header[26])
        stop = place + 27 + header[26] + sum(table) + (1 if len(table) < header[26] else 0)
        yield place, header, stop, file.read(19) if header[5] & 2 else b''
        place = stop


# ---- FLAC ------------------------------------------------------------------------------------------------------------


def _read_flac(file: BinaryIO, size: int) -> Structure:
    """Finds FLAC streams one behind the other, each perhaps behind an ID3v2 tag, and what tags are behind the last."""
    starts = [skip_tags(file)]
    while starts[-1] < size:
        magics = (b'fLaC\x00\x00\x00' + _FLAC_START, b'fLaC\x80\x00\x00' + _FLAC_START)
        starts.append(min(find_bytes(file, magic, starts[-1] + 4, size) for magic in magics))
    parts = []
    for start, stop in itertools.pairwise(starts):
        file.seek(start + 18)
        packed = int.from_bytes(file.read(8), 'big')
        total = packed & 0xFFFFFFFFF
        end = _without_id3v1(file, start, stop)
        is_plain = len(starts) == 2 and start == 0
        # Only FFmpeg knows the tag that tells the places of more than two channels.
        is_simple = 0 < total < 2**35 and packed >> 41 & 7 < 2
        parts.append(Part(None if is_plain else ((start, end),), is_simple))
    return Structure(kinds.FLAC, tuple(parts))


def _without_id3v1(file: BinaryIO, start: int, stop: int) -> int:
    if stop - start > 128:
        file.seek(stop - 128)
        if file.read(3) == b'TAG':
            return stop - 128
    return stop


# ---- WAV -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Wav:
    """What the chunks of one WAV file tell."""

    form: bytes = b''  # the content of the chunk fmt
    fact: bytes = b''
    data: tuple[int, int] | None = None
    stop: int = 0  # where the file, or what can be understood of it, ends
    is_cut_short: bool = False
    is_odd: bool = False  # decoders may take it for something else


def _read_wav(file: BinaryIO, size: int) -> Structure:
    """Walks through the chunks of WAV files, one behind the other. The header of an odd one is written anew."""
    parts: list[Part] = []
    start, is_cut_short = skip_tags(file), False
    is_joined = start > 0
    while True:
        wav = _walk_wav(file, start, size)
        if wav.data is None or len(wav.form) < 16:
            if not parts:
                # Perhaps a decoder knows better; what is missing is said then.
                return Structure(kinds.WAV, (Part(None, True),), is_cut_short=wav.is_cut_short)
            break
        is_cut_short = wav.is_cut_short
        file.seek(wav.stop)
        follows = file.read(12)
        next_start = wav.stop if follows[:4] in (b'RIFF', b'RF64', b'BW64') and follows[8:] == b'WAVE' else size
        is_joined = is_joined or next_start < size
        parts.append(_wav_part(wav, None if not wav.is_odd and not is_joined else _new_header(wav)))
        start = next_start
        if start >= size:
            break
    return Structure(kinds.WAV, tuple(parts), is_cut_short)


def _wav_part(wav: _Wav, header: bytes | None) -> Part:
    assert wav.data is not None
    tag = struct.unpack('<H', wav.form[:2])[0]
    mask = 0
    if tag == _EXTENSIBLE and len(wav.form) >= 26:
        mask, tag = struct.unpack('<IH', wav.form[20:26])
    return Part(None if header is None else (header, wav.data), tag in _SNDFILE_TAGS, mask=mask)


def _walk_wav(file: BinaryIO, start: int, size: int) -> _Wav:
    wav, sizes64 = _Wav(), b''
    file.seek(start)
    kind = file.read(4)
    wav.is_odd = kind == b'BW64'
    place = start + 12
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack('<4sI', file.read(8))
        if not _is_chunk_name(name) or name in (b'RIFF', b'RF64', b'BW64'):
            break
        begin = place + 8
        if name == b'data' and wav.data is None:
            if kind != b'RIFF' and length == 0xFFFFFFFF and len(sizes64) >= 16:
                length = struct.unpack('<Q', sizes64[8:16])[0]
            is_unknown = UNKNOWN_LENGTH <= length <= 0xFFFFFFFF and begin + length > size
            if is_unknown or (not length and _is_unfinished(file, start, begin, size)):
                wav.is_odd, length = wav.is_odd or not length, _riff_end(file, start, begin, size) - begin
            wav.is_cut_short = begin + length - size > HEADER_BYTES
            wav.data = begin, min(begin + length, size)
        elif name in (b'fmt ', b'fact', b'ds64') and length <= 4096:
            content = file.read(length)
            if name == b'fmt ' and not wav.form:
                wav.form = content
            elif name == b'fact':
                wav.fact = content
            elif name == b'ds64':
                sizes64 = content
        if wav.data is None and begin + length > size:
            wav.is_odd = True
            # The length of a chunk before the sound is damaged: the sound may still be found.
            length = find_bytes(file, b'data', begin, size) - begin
        place = begin + length
        if length % 2:
            file.seek(place)
            following = file.read(5)
            # Careless writers leave out the byte that makes an odd chunk even.
            if following[:4] in _CHUNKS or (following[1:] not in _CHUNKS and not _is_chunk_name(following[1:])):
                wav.is_odd = wav.is_odd or wav.data is None
            else:
                place += 1
        wav.stop = min(place, size)
    wav.is_odd = wav.is_odd or (wav.data is not None and not _is_plain_fmt(wav.form))
    return wav


def _read_w64(file: BinaryIO, size: int) -> Structure:
    """Walks through the chunks of Sony's Wave64, and hands the sound on as WAV: libsndfile reads beyond its end."""
    parts: list[Part] = []
    place, is_cut_short, form = 40, False, b''
    while place + 24 <= size:
        file.seek(place)
        name, length = file.read(16), int.from_bytes(file.read(8), 'little')
        if name == kinds.W64_GUID:
            place += 40
            continue
        if name[8:] != _W64_NAMES or length < 24:
            break
        if name.startswith(b'fmt ') and length <= 4096:
            form = file.read(length - 24)
        elif name.startswith(b'data') and len(form) >= 16:
            is_cut_short = place + length - size > HEADER_BYTES
            wav = _Wav(form, data=(place + 24, min(place + length, size)))
            parts.append(_wav_part(wav, _new_header(wav)))
        place += (length + 7) // 8 * 8
    return Structure(kinds.W64, tuple(parts) or (Part(None, True),), is_cut_short)


def _is_plain_fmt(form: bytes) -> bool:
    """Returns whether the size of a sample fits its bits; libsndfile takes more from the one, FFmpeg from the other."""
    if len(form) < 16:
        return False
    tag, channels, _, _, frame, bits = struct.unpack('<HHIIHH', form[:16])
    return tag not in (1, 3) or frame == channels * ((bits + 7) // 8)


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _riff_end(file: BinaryIO, start: int, begin: int, size: int) -> int:
    """Returns where a WAV file ends whose data chunk does not say it."""
    file.seek(start + 4)
    end = start + 8 + struct.unpack('<I', file.read(4))[0]
    return end if begin < end < size else size


def _is_unfinished(file: BinaryIO, start: int, begin: int, size: int) -> bool:
    """Returns whether a data chunk of length 0 is one whose recorder could not go back to write the length."""
    file.seek(start + 4)
    whole = struct.unpack('<I', file.read(4))[0]
    if size <= begin or (whole and start + 8 + whole <= begin):
        return False
    file.seek(begin)
    following = file.read(8)
    length = struct.unpack('<I', following[4:])[0] if len(following) == 8 else 0
    return not (_is_chunk_name(following[:4]) and begin + 8 + length + length % 2 == size)


def _new_header(wav: _Wav) -> bytes:
    """Returns the header of a WAV file that has these chunks alone; RF64 (EBU Tech 3306) where it is long."""
    assert wav.data is not None
    length = wav.data[1] - wav.data[0]
    fact = b'fact' + struct.pack('<I', len(wav.fact)) + wav.fact if wav.fact else b''
    chunks = b'fmt ' + struct.pack('<I', len(wav.form)) + wav.form + b'\0' * (len(wav.form) % 2) + fact
    riff = 4 + len(chunks) + 8 + length
    if riff < UNKNOWN_LENGTH:
        return b'RIFF' + struct.pack('<I', riff) + b'WAVE' + chunks + b'data' + struct.pack('<I', length)
    sizes = b'ds64' + struct.pack('<IQQQI', 28, riff + 36, length, 0, 0)
    return b'RF64\xff\xff\xff\xffWAVE' + sizes + chunks + b'data\xff\xff\xff\xff'


# ---- what is walked through, or searched for the beginning of another file ------------------------------------------


def _read_mpeg(file: BinaryIO, size: int) -> Structure:
    walk = walk_mpeg(file, size)
    pieces = tuple(walk.pieces)
    is_plain = len(pieces) == 1 and pieces[0][0] == 0
    return Structure(
        kinds.MP3, (Part(None if is_plain else pieces, seconds=walk.seconds),), walk.is_cut_short, walk.fault
    )


def _read_wavpack(file: BinaryIO, size: int) -> Structure:
    files, is_cut_short = walk_wavpack(file, size)
    return Structure(kinds.WAVPACK, tuple(Part((place,)) for place in files), is_cut_short)


def _read_joined(kind: Kind, magic: bytes, file: BinaryIO, size: int) -> Structure:
    """Finds files one behind the other by their first bytes, which are too many to be there by chance."""
    starts = [skip_tags(file)]
    while starts[-1] < size:
        starts.append(find_bytes(file, magic, starts[-1] + len(magic), size))
    if len(starts) == 2 and starts[0] == 0:
        return Structure(kind, (Part(None, kind.in_libsndfile),))
    return Structure(kind, tuple(Part(((a, b),), kind.in_libsndfile) for a, b in itertools.pairwise(starts)))


def _walked(kind: Kind, walk: Callable[[BinaryIO, int], Walk], file: BinaryIO, size: int) -> Structure:
    """Finds files one behind the other by walking through boxes, elements or chunks."""
    starts, is_cut_short = walk(file, size)
    in_libsndfile = kind.in_libsndfile
    if kind == kinds.CAF:
        file.seek(0)
        # libsndfile counts whole packets in ALAC, of which the last one may hold less.
        in_libsndfile = file.read(32)[28:] != b'alac'
    if starts == [0]:
        return Structure(kind, (Part(None, in_libsndfile),), is_cut_short)
    places = itertools.pairwise([*starts, size])
    return Structure(kind, tuple(Part((place,), in_libsndfile) for place in places), is_cut_short)


_READERS: dict[Kind, Callable[[BinaryIO, int], Structure]] = {
    kinds.OGG: _read_ogg,
    kinds.FLAC: _read_flac,
    kinds.WAV: _read_wav,
    kinds.MP3: _read_mpeg,
    kinds.AMR: functools.partial(_read_joined, kinds.AMR, b'#!AMR'),
    kinds.W64: _read_w64,
    kinds.WAVPACK: _read_wavpack,
    kinds.AU: functools.partial(_walked, kinds.AU, walk_au),
    kinds.MPEG_TS: functools.partial(_walked, kinds.MPEG_TS, walk_ts),
    kinds.AIFF: functools.partial(_walked, kinds.AIFF, walk_forms),
    kinds.AVI: functools.partial(_walked, kinds.AVI, walk_avi),
    kinds.MP4: functools.partial(_walked, kinds.MP4, walk_boxes),
    kinds.MATROSKA: functools.partial(_walked, kinds.MATROSKA, walk_elements),
    kinds.FLV: functools.partial(_walked, kinds.FLV, walk_flv),
    kinds.CAF: functools.partial(_walked, kinds.CAF, walk_caf),
    kinds.ASF: functools.partial(_walked, kinds.ASF, walk_objects),
}
