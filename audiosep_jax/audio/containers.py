"""Sound inside MP4, WebM, Matroska and other containers, by PyAV (extra `[video]`).

Time is a player's: zero is where the container's first stream begins; what an edit list or a codec's priming cuts off
is not there; a sound track that begins late or has a gap is silent so long.
"""

import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import numpy as np

from audiosep_jax.errors import AudioFileError, ConfigError

SUFFIXES = (
    '.m4a',
    '.mp4',
    '.webm',
    '.mkv',
    '.mka',
    '.mov',
    '.m4v',
    '.avi',
    '.flv',
    '.aac',
    '.3gp',
    '.wmv',
    '.ts',
    '.wma',
    '.mpg',
    '.mpeg',
    '.ogv',
)
JITTER = 0.005  # seconds; Matroska rounds its time stamps to 1 ms
LONGEST_SILENCE = 600.0  # seconds, of all gaps; a time stamp farther on is nonsense
LOST = 0.1  # of a sound: what may be undecodable, and is silent
# Files come from strangers: no playlists, no lists of other files, no network.
_FORMATS = 'mov,matroska,webm,avi,flv,aac,mp3,ogg,asf,mpegts,mpeg,wav,flac'
# Containers whose time stamps hold wherever one begins to read.
_SEEKABLE = ('mov', 'matroska')
_FEWEST_BYTES = 25  # of a second of sound; no codec has less for long
# Boxes that begin an ISO base media file (MP4, M4A, QuickTime).
_FIRST_BOXES = (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide', b'pnot', b'styp')


def is_container(head: bytes, suffix: str) -> bool:
    """Whether PyAV is to read a file, by the first 12 bytes; where they say nothing, by its suffix."""
    if head[:4] in (b'fLaC', b'FORM', b'RF64') or (head[:4] == b'RIFF' and head[8:12] == b'WAVE'):
        return False
    if head[4:8] in _FIRST_BOXES or head[:4] == b'\x1a\x45\xdf\xa3' or (head[:4], head[8:12]) == (b'RIFF', b'AVI '):
        return True
    return bool(head) and suffix.lower() in SUFFIXES


class ContainerSound:
    """The sound track of a container, read from its beginning to its end.

    Attributes:
        rate: Hz.
        channels: of the blocks.
        seconds: its length by the header, which may be wrong; None where there is none.

    Raises:
        AudioFileError: not a container that is known, damaged, or without sound.
        ConfigError: PyAV is not installed.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._container = open_container(path, str(path))
        try:
            self._stream = best_stream(self._container, 'audio', str(path))
            if is_seekable(self._container) and is_container_cut_short(path):
                raise AudioFileError(f'{path}: damaged or cut short, its header promises more than it holds')
            if not self._stream.rate:
                raise AudioFileError(f'{path}: its sound track gives no sample rate; it cannot be decoded')
        except AudioFileError:
            self.close()
            raise
        self.rate = self._stream.rate
        self.channels = self._stream.channels
        self.seconds = self._container.duration / 1e6 if self._container.duration else None

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [channels, n], one after the other; once.

        Raises:
            AudioFileError: damaged, or its rate or channels change on the way.
        """
        path, rate = self._path, self.rate
        origin, reached, silent, lost = (self._container.start_time or 0) / 1e6, 0, 0, 0.0
        most, first = most_seconds(path) * rate, True
        for frame, unreadable in decoded_frames(self._container, self._stream, str(path)):
            if frame is None:
                lost += unreadable * rate
                continue
            samples = frame_samples(frame)
            if (frame.sample_rate, len(samples)) != (rate, self.channels):
                raise AudioFileError(f'{path}: its rate or channels change on the way; convert it to WAV first')
            if frame.pts is not None:
                gap = round((float(frame.pts * frame.time_base) - origin) * rate) - reached
                if first or abs(gap) > JITTER * rate:
                    silent += max(gap, 0)
                    if silent > LONGEST_SILENCE * rate:
                        raise AudioFileError(f'{path}: damaged, its time stamps jump')
                    for begin in range(0, gap, rate):
                        yield np.zeros((self.channels, min(rate, gap - begin)), np.float32)
                    reached += max(gap, 0)
                    samples = samples[:, max(-gap, 0) :]
            first = False
            reached += samples.shape[-1]
            if reached > most:
                raise AudioFileError(f'{path}: damaged, it is too small for so much sound')
            if samples.shape[-1]:
                yield samples
        if lost > LOST * max(reached, 1):
            raise AudioFileError(f'{path}: damaged, {lost / rate:.1f} s of the sound cannot be decoded')

    def close(self) -> None:
        self._container.close()


def frame_samples(frame) -> np.ndarray:
    """float32 [channels, n] of PyAV's audio frame."""
    samples = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if np.issubdtype(samples.dtype, np.integer):
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (1.0 if samples.dtype == np.uint8 else 0.0)
    return samples.astype(np.float32)


def best_stream(container, kind: Literal['audio', 'video'], name: str):
    """The best stream of this kind, alone: the others are not demuxed. Raises AudioFileError where there is none."""
    from av.stream import Discard

    stream = container.streams.best(kind)
    if stream is None:
        missing = 'sound track' if kind == 'audio' else 'pictures; build without --frames'
        raise AudioFileError(f'{name}: has no {missing}')
    if stream.codec_context is None:
        raise AudioFileError(f'{name}: its {kind} is coded in a way that PyAV does not know')
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1  # there is a process per core already
    return stream


def is_seekable(container) -> bool:
    return any(name in container.format.name.split(',') for name in _SEEKABLE)


def seek_container(container, microseconds: int, name: str) -> None:
    """To a place at which decoding can begin, before the time."""
    import av

    try:
        container.seek(microseconds)
    except (av.FFmpegError, OSError) as error:
        raise AudioFileError(f'{name}: damaged, cannot be read from {microseconds / 1e6:.1f} s on') from error


def decoded_frames(container, stream, name: str) -> Iterator[tuple[Any, float]]:
    """Decoded frames; None, with its length in seconds, for a packet that cannot be decoded."""
    import av

    try:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                yield None, float((packet.duration or 0) * packet.time_base)
            else:
                for frame in decoded:
                    yield frame, 0.0
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:  # IndexError: streams that appear on the way
        raise AudioFileError(f'{name}: damaged: {reason(error)}') from error


def reason(error: Exception) -> str:
    """What FFmpeg says, without the path and the number of the error."""
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def most_seconds(file: pathlib.Path | io.BytesIO) -> float:
    """More than any sound in a file of this size can last."""
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.path.getsize(file)
    return size / _FEWEST_BYTES + LONGEST_SILENCE


def is_container_cut_short(file: pathlib.Path | io.BytesIO) -> bool:
    """Whether the outermost boxes (MP4) or elements (Matroska) promise more bytes than there are."""
    with io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else open(file, 'rb') as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        matroska = opened.read(4) == b'\x1a\x45\xdf\xa3'
        opened.seek(0)
        end = 0
        while end < size:
            opened.seek(end)
            length = _element_bytes(opened) if matroska else _box_bytes(opened)
            if length is None:  # to the end of the file
                return False
            end += length
    return end > size


def _box_bytes(file: BinaryIO) -> int | None:
    """ISO/IEC 14496-12, section 4.2."""
    header = file.read(16)
    size = int.from_bytes(header[:4], 'big')
    if size == 1:
        size = int.from_bytes(header[8:], 'big')
    return size if size >= 8 else None


def _element_bytes(file: BinaryIO) -> int | None:
    """RFC 8794, sections 4 and 5: identifier and size, each as long as its leading zeros say."""
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


def open_container(file: pathlib.Path | io.BytesIO, name: str):
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"{name}: to read it, install PyAV: pip install 'audiosep_jax[video]'") from error

    options = {'format_whitelist': _FORMATS, 'protocol_whitelist': 'file'}
    # Tags that are not UTF-8 must not stop the reading. PyAV 19 lets them through by itself and has no such argument.
    lenient = {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {}
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        # 'file:' keeps a name with a colon from being taken for a protocol.
        source = file if isinstance(file, io.BytesIO) else f'file:{file}'
        return av.open(source, container_options=options, **lenient)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioFileError(f'{name}: damaged, cut short or not a video file ({reason(error)})') from error
