"""Which format a sound file has, by its content: many files have the suffix of another format."""

import dataclasses
import io
import struct
from collections.abc import Callable
from pathlib import Path

from audiosep_jax.audio.structure.pieces import opened, skip_tags
from audiosep_jax.errors import AudioFileError

HEAD_BYTES = 65536  # a frame that is to tell the format begins before this place
_RUN = 4  # frames in a row, each where the one before it ends, are no coincidence


@dataclasses.dataclass(frozen=True)
class Kind:
    """A format of files.

    Attributes:
        name: what messages call it.
        demuxer: FFmpeg's name of it; None: FFmpeg does not read it.
        in_libsndfile: libsndfile reads it too, and exactly.
        has_pictures: it is a format of video.
    """

    name: str
    demuxer: str | None = None
    in_libsndfile: bool = False
    has_pictures: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """The header of an MPEG frame: how many bytes and samples it has, what its sample rate in Hz is."""

    size: int
    samples: int
    rate: int
    channels: int
    is_low_rate: bool  # MPEG 2 and 2.5


MP3 = Kind('MP3', 'mp3')
AAC = Kind('AAC', 'aac')
FLAC = Kind('FLAC', 'flac', in_libsndfile=True)
OGG = Kind('Ogg', 'ogg', in_libsndfile=True, has_pictures=True)
WAV = Kind('WAV', 'wav', in_libsndfile=True)
AVI = Kind('AVI', 'avi', has_pictures=True)
MP4 = Kind('MP4', 'mov', has_pictures=True)
MATROSKA = Kind('Matroska', 'matroska', has_pictures=True)
ASF = Kind('ASF', 'asf', has_pictures=True)
FLV = Kind('FLV', 'flv', has_pictures=True)
CAF = Kind('CAF', 'caf', in_libsndfile=True)
AMR = Kind('AMR', 'amr')
AU = Kind('AU', 'au', in_libsndfile=True)
WAVPACK = Kind('WavPack', 'wv')
AIFF = Kind('AIFF', 'aiff', in_libsndfile=True)
W64 = Kind('W64', 'w64', in_libsndfile=True)
MPEG_TS = Kind('MPEG transport stream', 'mpegts', has_pictures=True)
# Formats of which only libsndfile knows the first bytes.
OTHER = Kind('', None, in_libsndfile=True)

ASF_GUID = bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')
W64_GUID = bytes.fromhex('726966662e91cf11a5d628db04c10000')
# Boxes that begin an ISO base media file (MP4, M4A, QuickTime).
_FIRST_BOXES = (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide', b'pnot', b'styp', b'moof', b'sidx')
# Where the bytes are, which they are, and what they begin.
_MAGIC = (
    (0, b'fLaC', FLAC),
    (0, b'OggS', OGG),
    (0, b'RF64', WAV),
    (0, b'BW64', WAV),
    (0, b'RIFX', OTHER),
    (0, b'FFIR', OTHER),
    (0, W64_GUID, W64),
    (0, b'caff', CAF),
    (0, b'.snd', AU),
    (0, b'\x1a\x45\xdf\xa3', MATROSKA),
    (0, b'FLV\x01', FLV),
    (0, ASF_GUID, ASF),
    (0, b'#!AMR', AMR),
    (0, b'wvpk', WAVPACK),
    (0, b'MAC ', Kind("Monkey's Audio", 'ape')),
    (0, b'TTA1', Kind('TTA', 'tta')),
    (0, b'MP+', Kind('Musepack', 'mpc')),
    (0, b'MPCK', Kind('Musepack', 'mpc8')),
    (0, b'tBaK', Kind('TAK', 'tak')),
    (0, b'ajkg', Kind('Shorten', 'shn')),
    (0, b'DSD ', Kind('DSF', 'dsf')),
    (0, b'.RMF', Kind('RealMedia', 'rm', has_pictures=True)),
    (0, b'.ra\xfd', Kind('RealAudio', 'rm')),
    (0, b'Creative Voice File\x1a', Kind('VOC', 'voc', in_libsndfile=True)),
    (0, b'\x00\x00\x01\xba', Kind('MPEG program stream', 'mpeg', has_pictures=True)),
    (0, b'\x7f\xfe\x80\x01', Kind('DTS', 'dts')),
    (0, b'\xfe\x7f\x01\x80', Kind('DTS', 'dts')),
    (0, b'\x1f\xff\xe8\x00', Kind('DTS', 'dts')),
    (0, b'\xff\x1f\x00\xe8', Kind('DTS', 'dts')),
    (4, b'\xf8\x72\x6f\xba', Kind('TrueHD', 'truehd')),
    (0, b'MThd', Kind('MIDI (notes, not sound)')),
    (0, b'FRM8', Kind('DSDIFF')),
    (0, b'ADIF', Kind('ADIF')),
)
_FORMS = {
    (b'RIFF', b'WAVE'): WAV,
    (b'RIFF', b'AVI '): AVI,
    (b'RIFF', b'QLCM'): Kind('QCP', 'qcp'),
    (b'RIFF', b'RMID'): Kind('MIDI (notes, not sound)'),
    (b'FORM', b'AIFF'): AIFF,
    (b'FORM', b'AIFC'): AIFF,
    (b'FORM', b'8SVX'): Kind('8SVX', 'iff', in_libsndfile=True),
}


def kind_of(file: Path | io.BytesIO) -> Kind:
    """Returns the format of a file by its first bytes; `OTHER` where nothing but libsndfile may know it.

    Raises:
        AudioFileError: the file cannot be read.
    """
    with opened(file) as data:
        start = skip_tags(data)
        data.seek(start)
        head = data.read(HEAD_BYTES)
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return kind
    if (head[:4], head[8:12]) in _FORMS:
        return _FORMS[head[:4], head[8:12]]
    if head[4:8] in _FIRST_BOXES:
        return MP4
    for period, lead in ((188, 0), (192, 4), (204, 0)):  # on disc each packet follows a time; on air, parity follows it
        if len(head) > lead + period and set(head[lead : lead + 8 * period : period]) == {0x47}:
            return MPEG_TS
    for kind, frame_size in _FRAMED:
        if _begins_with_frames(head, frame_size):
            return kind
    # Frames may begin behind a part of one, as in captured streams.
    for kind, frame_size in _FRAMED[:2]:
        place = head.find(b'\xff', 1)
        while place >= 0:
            if _begins_with_frames(head, frame_size, place):
                return kind
            place = head.find(b'\xff', place + 1)
    return OTHER


# Thousands of bits per second, by (MPEG 1 or not, layer) and the header's number, 1 to 14.
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def mpeg_frame(head: bytes) -> Frame | None:
    """Returns what the header of an MPEG audio frame (ISO/IEC 11172-3, 13818-3) says; None: it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bit_rate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or rate == 3 or bit_rate in (0, 15) or head[3] & 3 == 2:
        return None
    first = version == 3
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits, padding = 1000 * _BIT_RATES[first, layer][bit_rate - 1], head[2] >> 1 & 1
    samples = 384 if layer == 1 else 1152 if layer == 2 or first else 576
    size = 4 * (12 * bits // hertz + padding) if layer == 1 else samples // 8 * bits // hertz + padding
    return Frame(size, samples, hertz, 1 if head[3] >> 6 == 3 else 2, not first)


def _mpeg_size(head: bytes) -> int:
    frame = mpeg_frame(head)
    return frame.size if frame else 0


def _adts_size(head: bytes) -> int:
    """Returns the size of an AAC frame (ISO/IEC 13818-7, section 6.2); 0: it is none."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0


def _loas_size(head: bytes) -> int:
    return 3 + (struct.unpack('>H', head[1:3])[0] & 0x1FFF) if head[:1] == b'\x56' and head[1:2] >= b'\xe0' else 0


_AC3_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


def _ac3_size(head: bytes) -> int:
    """Returns the size of an AC-3 frame (ETSI TS 102 366, sections 4.4.1 and F.7); 0: it is none."""
    if len(head) < 6 or head[:2] != b'\x0b\x77' or head[5] >> 3 > 10 or head[4] >> 6 == 3 or head[4] & 63 > 37:
        return 0
    kbits, rate = _AC3_KBITS[(head[4] & 63) // 2], head[4] >> 6
    return {0: 4 * kbits, 1: 2 * (320 * kbits // 147 + (head[4] & 1)), 2: 6 * kbits}[rate]


def _eac3_size(head: bytes) -> int:
    if len(head) < 6 or head[:2] != b'\x0b\x77' or not 11 <= head[5] >> 3 <= 16:
        return 0
    return 2 * (((head[2] & 7) << 8 | head[3]) + 1)


def _gsm_size(head: bytes) -> int:
    return 33 if head[0] >> 4 == 0xD else 0


_FRAMED: tuple[tuple[Kind, Callable[[bytes], int]], ...] = (
    (MP3, _mpeg_size),
    (AAC, _adts_size),
    (Kind('AC-3', 'ac3'), _ac3_size),
    (Kind('E-AC-3', 'eac3'), _eac3_size),
    (Kind('LOAS', 'loas'), _loas_size),
    (Kind('GSM', 'gsm'), _gsm_size),
)


def _begins_with_frames(head: bytes, frame_size: Callable[[bytes], int], start: int = 0) -> bool:
    """Returns whether frames follow each other at `start`: several, or, from the first byte on, all there are."""
    place, least = start, 4 if frame_size is _gsm_size else 1
    for count in range(16 if frame_size is _gsm_size else _RUN):
        size = frame_size(head[place : place + 8]) if place < len(head) else 0
        if not size:
            # The only frames may be followed by an old tag.
            ends = place >= len(head) or head[place : place + 3] == b'TAG'
            return ends and count >= least and start == 0 and len(head) < HEAD_BYTES
        place += size
    return True


def unreadable(name: str, kind: Kind, reason: str, *, is_video: bool = False) -> AudioFileError:
    """Returns the error for a file, called `name` in the message, of which nothing can be decoded."""
    what = 'a video file' if is_video or kind.has_pictures else 'an audio file'
    return AudioFileError(f'{name}: damaged, cut short or not {what} ({reason}); download or export it again')


def unsupported(name: str, what: str) -> AudioFileError:
    """Returns the error for a file, called `name` in the message, that may be whole but has no decoder here."""
    return AudioFileError(f'{name}: {what} is not supported; convert the file to WAV or FLAC first')
