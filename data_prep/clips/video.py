"""Takes pictures from MP4, WebM, Matroska and other containers, with PyAV.

Times are those of a player: zero is where the container's first stream begins.
"""

import io
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from audiosep_jax.audio.containers import (
    best_stream,
    decoded_frames,
    ffmpeg_reason,
    is_seekable,
    open_container,
    seek_container,
)
from audiosep_jax.errors import AudioFileError, LeftOutError

if TYPE_CHECKING:  # importing PyAV takes a while
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_SHORTER_SIDE = 256  # pixels
_JPEG_QUALITY = 90
_MIN_SEEK_SECONDS = 5.0  # for a shorter way, decoding all pictures in between is faster than seeking


def read_pictures(
    file: pathlib.Path | io.BytesIO, name: str, count: int, start: float, seconds: float | None
) -> list[bytes]:
    """Returns what `data_prep.clips.media.read_frames` does, for a container that messages call `name`."""
    with open_container(file, name) as container:
        stream = best_stream(container, 'video', name)
        origin = (container.start_time or 0) / 1e6
        length = _video_seconds(container, stream, origin) or _last_picture_seconds(file, name) - origin
        seconds = length - start if seconds is None else min(seconds, length - start)
        if seconds <= 0:
            raise LeftOutError('too short', f'{name}: ends before the part that begins at {start:g} s')
        times = [origin + start + seconds * (k + 0.5) / count for k in range(count)]
        return [_jpeg(frame, stream) for frame in _frames_at(container, stream, times, name)]


def _frames_at(
    container: 'InputContainer', stream: 'VideoStream', times: list[float], name: str
) -> Iterator['VideoFrame']:
    """Yields the picture that is shown at each of the rising times (seconds): the last one that begins before it."""
    frames: Iterator[VideoFrame] | None = None
    shown: VideoFrame | None = None
    following: VideoFrame | None = None
    for time in times:
        position = None if following is None else following.time
        if frames is None or (position is not None and time - position > _MIN_SEEK_SECONDS and is_seekable(container)):
            if is_seekable(container) and time > _MIN_SEEK_SECONDS:
                seek_container(container, round(time * 1e6), name)
            frames = (f for f, _ in decoded_frames(container, stream, name) if f is not None and f.time is not None)
            following = next(frames, None)
            shown = following if shown is None or following is not None else shown
        while following is not None and following.time is not None and following.time <= time:
            shown, following = following, next(frames, None)
        if shown is None:
            raise AudioFileError(f'{name}: damaged, none of its pictures can be decoded')
        yield shown


def _video_seconds(container: 'InputContainer', stream: 'VideoStream', origin: float) -> float:
    """Returns when the video ends, by its header; 0 if the header does not say."""
    if stream.duration and stream.time_base:
        begin = float(stream.start_time * stream.time_base) - origin if stream.start_time is not None else 0.0
        return begin + float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _last_picture_seconds(file: pathlib.Path | io.BytesIO, name: str) -> float:
    """Returns when the last picture begins: for recordings whose header was written before their length was known."""
    import av

    with open_container(file, name) as container:
        stream = best_stream(container, 'video', name)
        try:
            return max((float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None), default=0.0)
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise AudioFileError(f'{name}: damaged: {ffmpeg_reason(error)}') from error


def _jpeg(frame: 'VideoFrame', stream: 'VideoStream') -> bytes:
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
