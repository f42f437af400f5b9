"""What is in MP4, WebM, Matroska and other containers: their sound track and pictures, by PyAV (extra `[video]`).

Time is a player's: zero is where the container's first stream begins; what an edit list or a codec's priming cuts off
is not there; a sound track that begins late or has a gap is silent so long.
"""

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from audiosep_jax.audio.containers import (
    JITTER,
    LONGEST_SILENCE,
    LOST,
    best_stream,
    decoded_frames,
    frame_samples,
    is_container_cut_short,
    is_seekable,
    most_seconds,
    open_container,
    reason,
    seek_container,
)
from audiosep_jax.errors import AudioFileError
from data_prep.clips.base import LeftOutError

_WARM_UP = 0.5  # seconds decoded before a part: AAC needs 50 ms of what was before, Opus 80, HE-AAC more
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
        self._container = open_container(self._file, self._name)
        try:
            self._stream = best_stream(self._container, 'audio', self._name)
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
        if (stop is None or end < stop) and is_seekable(self._container) and is_container_cut_short(self._file):
            raise AudioFileError(f'{self._name}: damaged or cut short, its header promises more than it holds')
        sound = np.zeros(max(end - first, 0), np.float32)
        for at, samples in pieces:
            into = sound[max(at - first, 0) : max(at - first + len(samples), 0)]
            into[:] = samples[max(first - at, 0) :][: len(into)]
        if lost > LOST * max(len(sound), 1):
            raise AudioFileError(f'{self._name}: damaged, {lost / self.rate:.1f} s of the sound cannot be decoded')
        return sound

    def _decode(self, first: int, stop: int | None, *, seek: bool) -> tuple[list[tuple[int, np.ndarray]], int, float]:
        """Runs of samples with their places, which may lie outside; where the track ends, or stop; how many samples
        could not be decoded."""
        origin = self._container.start_time or 0
        before = first - round(_WARM_UP * self.rate)
        if seek and before > 0 and is_seekable(self._container):
            seek_container(self._container, origin + before * 1_000_000 // self.rate, self._name)
            expected = before
        else:
            expected = 0
        pieces, lost, silent, reached = [], 0.0, 0, None
        most = most_seconds(self._file) * self.rate
        for frame, unreadable in decoded_frames(self._container, self._stream, self._name):
            if frame is None:
                lost += unreadable * self.rate
                continue
            samples = _mono(frame)
            if frame.sample_rate != self.rate:
                raise AudioFileError(f'{self._name}: its sample rate changes on the way; convert it to WAV first')
            at = expected
            if frame.pts is not None:
                stamped = round((float(frame.pts * frame.time_base) - origin / 1e6) * self.rate)
                if reached is None or abs(stamped - reached) > JITTER * self.rate:
                    at = stamped
            silent += max(at - expected, 0)
            if silent > LONGEST_SILENCE * self.rate:
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
    """`data_prep.clips.media.read_frames` of a container."""
    with open_container(file, name) as container:
        stream = best_stream(container, 'video', name)
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
        if frames is None or (place is not None and time - place > _WORTH_SEEKING and is_seekable(container)):
            if is_seekable(container) and time > _WORTH_SEEKING:
                seek_container(container, round(time * 1e6), name)
            frames = (f for f, _ in decoded_frames(container, stream, name) if f is not None and f.time is not None)
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

    with open_container(file, name) as container:
        stream = best_stream(container, 'video', name)
        try:
            return max((float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None), default=0.0)
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise AudioFileError(f'{name}: damaged: {reason(error)}') from error


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


def _mono(frame) -> np.ndarray:
    """float32 [T] of an audio frame: the average of its channels."""
    return frame_samples(frame).mean(axis=0)
