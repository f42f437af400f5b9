"""Sound inside MP4, WebM, Matroska and other containers, decoded by PyAV (extra `[video]`).

Times are those of a player: zero is where the container's first stream begins; what an edit list or a codec's priming
cuts off is not there; where a sound track begins late or has a gap, there is silence.
"""

import functools
import io
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from audiosep_jax.audio.formats import CONTAINER_SUFFIXES
from audiosep_jax.audio.truncation import cut_short_error, is_container_cut_short
from audiosep_jax.errors import AudioFileError, ConfigError

if TYPE_CHECKING:  # PyAV is an extra
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

LONGEST_SILENCE = 600.0  # seconds, of all gaps together; a time stamp farther on is damaged
INSTALL_PYAV = "to read it, install PyAV: pip install 'audiosep_jax[video]'"
_JITTER = 0.005  # seconds; Matroska rounds its time stamps to 1 ms
_UNDECODABLE_SHARE = 0.1  # of a sound: up to this share may be undecodable, and becomes silence
_WARM_UP = 0.5  # seconds decoded before a part: AAC needs 50 ms of what precedes it, Opus 80 ms, HE-AAC more
_MIN_BYTES_PER_SECOND = 25  # of sound; no codec needs fewer for long
# Files come from strangers, so playlists, lists of other files and the network are excluded.
_DEMUXERS = 'mov,matroska,webm,avi,flv,aac,mp3,ogg,asf,mpegts,mpeg,wav,flac'
# Containers whose time stamps are right wherever reading begins.
_SEEKABLE = ('mov', 'matroska')
# Boxes that begin an ISO base media file (MP4, M4A, QuickTime).
_FIRST_BOXES = (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide', b'pnot', b'styp')


def is_container(head: bytes, suffix: str) -> bool:
    """Returns whether PyAV is to read a file.

    Args:
        head: its first 12 bytes, which decide, because many files have the suffix of another format.
        suffix: its suffix, which decides where the bytes are inconclusive.
    """
    if head[:4] in (b'fLaC', b'FORM', b'RF64') or (head[:4] == b'RIFF' and head[8:12] == b'WAVE'):
        return False
    if head[4:8] in _FIRST_BOXES or head[:4] == b'\x1a\x45\xdf\xa3' or (head[:4], head[8:12]) == (b'RIFF', b'AVI '):
        return True
    return bool(head) and suffix.lower() in CONTAINER_SUFFIXES


class ContainerSound:
    """The sound track of a container, opened for reading.

    Args:
        file: its path, or its bytes.
        name: what messages call it; None: its path.
        mono: average the channels, whose number may then change midway.

    Attributes:
        rate: its sample rate in Hz.
        channels: how many channels its blocks have.

    Raises:
        AudioFileError: not a known container, damaged, or without sound.
        ConfigError: PyAV is not installed.
    """

    def __init__(self, file: pathlib.Path | io.BytesIO, name: str | None = None, *, mono: bool = False):
        self._file, self._name, self._mono = file, str(file) if name is None else name, mono
        self._undecodable = 0.0  # samples
        self._open()
        if not self._stream.rate:
            self.close()
            raise AudioFileError(f'{self._name}: its sound track gives no sample rate; it cannot be decoded')
        self.rate = self._stream.rate
        self.channels = 1 if mono else self._stream.channels

    def _open(self) -> None:
        self._container = open_container(self._file, self._name)
        try:
            self._stream = best_stream(self._container, 'audio', self._name)
        except AudioFileError:
            self.close()
            raise

    def __enter__(self) -> 'ContainerSound':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    @property
    def seconds(self) -> float | None:
        """The length by the header of the track or of the container, which may be wrong; None where neither has it."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    @functools.cached_property
    def is_cut_short(self) -> bool:
        """Whether the header promises more than the file holds, as far as its format tells."""
        return is_seekable(self._container) and is_container_cut_short(self._file)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns what `blocks` yields in one float32 array [channels, n]; raises what it raises."""
        return np.concatenate([np.zeros((self.channels, 0), np.float32), *self.blocks(start, stop)], axis=1)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yields samples `start` to `stop` - 1 as float32 [channels, n], n above 0. Call it, or `read`, only once.

        Args:
            start: the first sample.
            stop: the sample after the last one; None: to the end of the track, which may also come before `stop`.

        Raises:
            AudioFileError: damaged, cut short before `stop`, or with a rate or channels that change midway.
        """
        position = start
        for begin, samples in self._placed_frames(start):
            # One second of silence at a time, because a gap may last ten minutes.
            while position < (begin if stop is None else min(begin, stop)):
                silence = min(self.rate, begin - position, self.rate if stop is None else stop - position)
                yield np.zeros((self.channels, silence), np.float32)
                position += silence
            wanted = samples[:, max(position - begin, 0) : None if stop is None else max(stop - begin, 0)]
            position += wanted.shape[1]
            if wanted.shape[1]:
                yield wanted
            if stop is not None and position >= stop:
                break
        else:
            if self.is_cut_short:
                raise cut_short_error(self._name)
        if self._undecodable > _UNDECODABLE_SHARE * max(position - start, 1):
            seconds = self._undecodable / self.rate
            raise AudioFileError(f'{self._name}: damaged, {seconds:.1f} s of the sound cannot be decoded')

    def _placed_frames(self, start: int, *, seek: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the sample number at which each frame begins, and its samples [channels, n]; frames do not overlap.

        The first frame begins at or before `start`, unless the track itself begins later. Counts in
        `self._undecodable` the samples of packets that cannot be decoded.
        """
        name, rate = self._name, self.rate
        origin = self._container.start_time or 0  # microseconds
        warm_up = start - round(_WARM_UP * rate)
        seek = seek and warm_up > 0 and is_seekable(self._container)
        if seek:
            seek_container(self._container, origin + warm_up * 1_000_000 // rate, name)
        end, silence, is_first = warm_up if seek else 0, 0, True
        self._undecodable = 0.0
        longest = max_seconds(self._file) * rate
        for frame, undecodable in decoded_frames(self._container, self._stream, name):
            if frame is None:
                self._undecodable += undecodable * rate
                continue
            samples = self._checked_samples(frame)
            begin = end
            if frame.pts is not None:
                stamped = round((float(frame.pts * frame.time_base) - origin / 1e6) * rate)
                if is_first or abs(stamped - end) > _JITTER * rate:
                    begin = stamped
            if seek and is_first and begin > start:
                break
            is_first = False
            samples = samples[:, max(end - begin, 0) :]
            begin = max(begin, end)
            silence += begin - end
            if silence > LONGEST_SILENCE * rate:
                raise AudioFileError(f'{name}: damaged, its time stamps jump')
            end = begin + samples.shape[1]
            if end > longest:
                raise AudioFileError(f'{name}: damaged, the file is too small for that much sound')
            yield begin, samples
        if seek and is_first:
            # Where an index is missing or wrong, seeking may go past the place it was asked for.
            self.close()
            self._open()
            yield from self._placed_frames(start, seek=False)

    def _checked_samples(self, frame: 'AudioFrame') -> np.ndarray:
        samples = frame_samples(frame)
        if frame.sample_rate != self.rate or not (self._mono or len(samples) == self.channels):
            raise AudioFileError(f'{self._name}: its rate or channels change midway; convert it to WAV first')
        return samples.mean(axis=0, keepdims=True) if self._mono else samples


def frame_samples(frame: 'AudioFrame') -> np.ndarray:
    """Returns the samples of PyAV's audio frame as float32 [channels, n]."""
    samples: np.ndarray = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if np.issubdtype(samples.dtype, np.integer):
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (1.0 if samples.dtype == np.uint8 else 0.0)
    return samples.astype(np.float32)


@overload
def best_stream(container: 'InputContainer', kind: Literal['audio'], name: str) -> 'AudioStream': ...
@overload
def best_stream(container: 'InputContainer', kind: Literal['video'], name: str) -> 'VideoStream': ...
def best_stream(container: 'InputContainer', kind: Literal['audio', 'video'], name: str) -> Any:
    """Returns the best stream of this kind, and tells the demuxer to skip the others.

    Raises:
        AudioFileError: there is no such stream, or PyAV does not know its codec.
    """
    from av.stream import Discard

    stream = container.streams.best(kind)
    if stream is None:
        missing = 'sound track' if kind == 'audio' else 'pictures; build without --frames'
        raise AudioFileError(f'{name}: has no {missing}')
    if stream.codec_context is None:
        raise AudioFileError(f'{name}: its {kind} has a codec that PyAV does not know')
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1  # one process per core decodes already
    return stream


def is_seekable(container: 'InputContainer') -> bool:
    """Returns whether time stamps stay right after seeking."""
    return any(name in container.format.name.split(',') for name in _SEEKABLE)


def seek_container(container: 'InputContainer', microseconds: int, name: str) -> None:
    """Moves to a place at or before a time from which decoding can begin.

    Raises:
        AudioFileError: FFmpeg cannot seek there.
    """
    import av

    try:
        container.seek(microseconds)
    except (av.FFmpegError, OSError) as error:
        raise AudioFileError(f'{name}: damaged, cannot be read from {microseconds / 1e6:.1f} s on') from error


def decoded_frames(
    container: 'InputContainer', stream: 'AudioStream | VideoStream', name: str
) -> Iterator[tuple[Any, float]]:
    """Yields the frames of a stream, each with 0.0; for an undecodable packet, None with its length in seconds.

    Raises:
        AudioFileError: the container is damaged.
    """
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
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:  # IndexError: streams that appear midway
        raise AudioFileError(f'{name}: damaged: {ffmpeg_reason(error)}') from error


def ffmpeg_reason(error: Exception) -> str:
    """Returns FFmpeg's text of an error, without the path and the number."""
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def max_seconds(file: pathlib.Path | io.BytesIO) -> float:
    """Returns a length in seconds that no sound in a file of this size can exceed."""
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.path.getsize(file)
    return size / _MIN_BYTES_PER_SECOND + LONGEST_SILENCE


def open_container(file: pathlib.Path | io.BytesIO, name: str) -> 'InputContainer':
    """Opens a container by its path or its bytes; messages call it `name`.

    Raises:
        AudioFileError: not a known container, or damaged.
        ConfigError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(f'{name}: {INSTALL_PYAV}') from error

    options = {'format_whitelist': _DEMUXERS, 'protocol_whitelist': 'file'}
    # Tags that are not UTF-8 must not stop the reading. PyAV 19 lets them through by itself and has no such argument.
    lenient: dict[str, Any] = {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {}
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        # 'file:' keeps a name with a colon from being taken for a protocol.
        source = file if isinstance(file, io.BytesIO) else f'file:{file}'
        return av.open(source, container_options=options, **lenient)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioFileError(f'{name}: damaged, cut short or not a video file ({ffmpeg_reason(error)})') from error
