"""What is in MP4, WebM, Matroska and other containers: their sound track and pictures, by PyAV (extra `[video]`).

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
from data_prep.datasets import LeftOutError

# Video files come from strangers: no playlists, no lists of other files, no network.
_FORMATS = 'mov,matroska,webm,avi,flv,aac,mp3,ogg,asf,mpegts,mpeg,wav,flac'
# Containers whose time stamps hold wherever one begins to read.
_SEEKABLE = ('mov', 'matroska')
_WARM_UP = 0.5  # seconds decoded before a part: AAC needs 50 ms of what was before, Opus 80, HE-AAC more
_JITTER = 0.005  # seconds; Matroska rounds its time stamps to 1 ms
_LONGEST_SILENCE = 600.0  # seconds, of all gaps; a time stamp farther on is nonsense
_FEWEST_BYTES = 25  # of a second of sound; no codec has less for long
_LOST = 0.1  # of a part: what may be undecodable, and is silent
_SHORTER_SIDE = 256  # pixels
_JPEG_QUALITY = 90
_WORTH_SEEKING = 5.0  # seconds; pictures nearer than that are decoded up to


class SoundTrack:
    """The sound track of a container, opened: `rate` Hz, averaged over its channels.

    Args:
        file: its path, or its bytes.
        name: for messages.

    Raises:
        AudioFileError: not a container that is known, damaged, or without sound.
        ConfigError: PyAV is not installed.
    """

    def __init__(self, file: pathlib.Path | io.BytesIO, name: str):
        self._file, self._name = file, name
        self._open()
        self.rate = self._stream.rate or 0
        if not self.rate:
            self._container.close()
            raise AudioFileError(f'{name}: its sound track gives no sample rate; it cannot be decoded')

    def _open(self) -> None:
        self._container = _open(self._file, self._name)
        try:
            self._stream = _only(self._container, 'audio', self._name)
        except AudioFileError:
            self._container.close()
            raise

    def __enter__(self) -> 'SoundTrack':
        return self

    def __exit__(self, *exception) -> None:
        self._container.close()

    @property
    def seconds(self) -> float:
        """Its length by the header, or the container's."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration:
            return self._container.duration / 1e6
        return len(self.read(0, None)) / self.rate

    def read(self, first: int, stop: int | None) -> np.ndarray:
        """float32 [T]: samples first to stop - 1, fewer where the track ends sooner; None: to the end."""
        pieces, end, lost = self._decode(first, stop, seek=True)
        if first > 0 and (not pieces or pieces[0][0] > first):
            # Where an index is missing or wrong a container goes to a place behind the one that was asked for.
            self._container.close()
            self._open()
            pieces, end, lost = self._decode(first, stop, seek=False)
        if (stop is None or end < stop) and _is_seekable(self._container) and _cut_short(self._file):
            raise AudioFileError(f'{self._name}: damaged or cut short, its header promises more than it holds')
        sound = np.zeros(max(end - first, 0), np.float32)
        for at, samples in pieces:
            into = sound[max(at - first, 0) : max(at - first + len(samples), 0)]
            into[:] = samples[max(first - at, 0) :][: len(into)]
        if lost > _LOST * max(len(sound), 1):
            raise AudioFileError(f'{self._name}: damaged, {lost / self.rate:.1f} s of the sound cannot be decoded')
        return sound

    def _decode(self, first: int, stop: int | None, *, seek: bool) -> tuple[list[tuple[int, np.ndarray]], int, float]:
        """Runs of samples with their places, which may lie outside; where the track ends, or stop; how many samples
        could not be decoded."""
        origin = self._container.start_time or 0
        before = first - round(_WARM_UP * self.rate)
        if seek and before > 0 and _is_seekable(self._container):
            _seek(self._container, origin + before * 1_000_000 // self.rate, self._name)
            expected = before
        else:
            expected = 0
        pieces, lost, silent, reached = [], 0.0, 0, None
        most = most_seconds(self._file) * self.rate
        for frame, unreadable in _frames(self._container, self._stream, self._name):
            if frame is None:
                lost += unreadable * self.rate
                continue
            samples = _mono(frame)
            if frame.sample_rate != self.rate:
                raise AudioFileError(f'{self._name}: its sample rate changes on the way; convert it to WAV first')
            at = expected
            if frame.pts is not None:
                stamped = round((float(frame.pts * frame.time_base) - origin / 1e6) * self.rate)
                if reached is None or abs(stamped - reached) > _JITTER * self.rate:
                    at = stamped
            silent += max(at - expected, 0)
            if silent > _LONGEST_SILENCE * self.rate:
                raise AudioFileError(f'{self._name}: damaged, its time stamps jump')
            expected = reached = at + len(samples)
            if reached > most:
                raise AudioFileError(f'{self._name}: damaged, it is too small for so much sound')
            if reached > first or not pieces:
                pieces.append((at, samples))
            if stop is not None and reached >= stop:
                break
        end = reached or 0
        return pieces, end if stop is None else min(end, stop), lost


def pictures(
    file: pathlib.Path | io.BytesIO, name: str, count: int, start: float, seconds: float | None
) -> list[bytes]:
    """`data_prep.media.read_frames` of a container."""
    with _open(file, name) as container:
        stream = _only(container, 'video', name)
        origin = (container.start_time or 0) / 1e6
        length = _video_seconds(container, stream, origin) or _last_picture(file, name) - origin
        seconds = length - start if seconds is None else min(seconds, length - start)
        if seconds <= 0:
            raise LeftOutError('too short', f'{name}: ends before the part that begins at {start:g} s')
        times = [origin + start + seconds * (k + 0.5) / count for k in range(count)]
        return [_jpeg(frame, stream) for frame in _frames_at(container, stream, times, name)]


def _frames_at(container, stream, times: list[float], name: str) -> Iterator[Any]:
    """The picture that is shown at each of the rising times (seconds): the last that begins before it."""
    frames, shown, following = None, None, None
    for time in times:
        place = None if following is None else following.time
        if frames is None or (place is not None and time - place > _WORTH_SEEKING and _is_seekable(container)):
            if _is_seekable(container) and time > _WORTH_SEEKING:
                _seek(container, round(time * 1e6), name)
            frames = (f for f, _ in _frames(container, stream, name) if f is not None and f.time is not None)
            following = next(frames, None)
            shown = following if shown is None or following is not None else shown
        while following is not None and following.time <= time:
            shown, following = following, next(frames, None)
        if shown is None:
            raise AudioFileError(f'{name}: damaged, none of its pictures can be decoded')
        yield shown


def _video_seconds(container, stream, origin: float) -> float:
    if stream.duration:
        begin = float(stream.start_time * stream.time_base) - origin if stream.start_time is not None else 0.0
        return begin + float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _last_picture(file: pathlib.Path | io.BytesIO, name: str) -> float:
    """When the last picture begins, seconds: of a recording whose header was written before its length was known."""
    import av

    with _open(file, name) as container:
        stream = _only(container, 'video', name)
        try:
            return max((float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None), default=0.0)
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise AudioFileError(f'{name}: damaged: {_reason(error)}') from error


def _jpeg(frame, stream) -> bytes:
    image = frame.to_image()
    width, height = image.size
    # Pixels may be wider than high.
    aspect = stream.sample_aspect_ratio or 1
    width = round(width * float(aspect)) if aspect > 0 else width
    scale = min(1.0, _SHORTER_SIDE / min(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size)  # bicubic
    if frame.rotation:
        image = image.rotate(frame.rotation, expand=True)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _open(file: pathlib.Path | io.BytesIO, name: str):
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"{name}: to read it, install PyAV: pip install 'audiosep_jax[video]'") from error

    options = {'format_whitelist': _FORMATS, 'protocol_whitelist': 'file'}
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        # 'file:' keeps a name with a colon from being taken for a protocol.
        source = file if isinstance(file, io.BytesIO) else f'file:{file}'
        return av.open(source, container_options=options, metadata_errors='replace')
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioFileError(f'{name}: damaged, cut short or not a video file ({_reason(error)})') from error


def _only(container, kind: Literal['audio', 'video'], name: str):
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


def _is_seekable(container) -> bool:
    return any(name in container.format.name.split(',') for name in _SEEKABLE)


def _seek(container, microseconds: int, name: str) -> None:
    """To a place at which decoding can begin, before the time."""
    import av

    try:
        container.seek(microseconds)
    except (av.FFmpegError, OSError) as error:
        raise AudioFileError(f'{name}: damaged, cannot be read from {microseconds / 1e6:.1f} s on') from error


def _frames(container, stream, name: str) -> Iterator[tuple[Any, float]]:
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
        raise AudioFileError(f'{name}: damaged: {_reason(error)}') from error


def _mono(frame) -> np.ndarray:
    """float32 [T] of an audio frame: the average of its channels."""
    samples = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if np.issubdtype(samples.dtype, np.integer):
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (1.0 if samples.dtype == np.uint8 else 0.0)
    return samples.mean(axis=0).astype(np.float32)


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the path and the number of the error."""
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def most_seconds(file: pathlib.Path | io.BytesIO) -> float:
    """More than any sound in a file of this size can last."""
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.path.getsize(file)
    return size / _FEWEST_BYTES + _LONGEST_SILENCE


def _cut_short(file: pathlib.Path | io.BytesIO) -> bool:
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
