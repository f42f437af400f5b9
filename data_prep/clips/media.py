"""Reads sounds and pictures from the files of datasets: whole audio files, parts of them, videos, members of archives.

A path names a file, or as `archive.tar::member` a member of an uncompressed tar archive, which is read at its offset.
Sounds are read as everywhere else, by `audiosep_jax/audio/reading.py`.
"""

import functools
import io
import math
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Mapping

import numpy as np

from audiosep_jax.audio import reading
from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.structure.kinds import kind_of
from audiosep_jax.audio.structure.pieces import file_bytes
from audiosep_jax.errors import AudioFileError, LeftOutError
from data_prep.clips.video import read_pictures

LONGEST = 4 * 3600.0  # seconds of a clip

# Decoded before and after a part, so that resampling it alone equals resampling the whole: soxr's filter is shorter.
_CONTEXT = 0.1  # seconds
_MEMBER = re.compile(r'(.+?\.tar)::(.+)', re.IGNORECASE | re.DOTALL)


def read_sound(
    path: str | os.PathLike, *, sample_rate: int, start: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Reads a sound, or the part of it that begins at `start`, as float32 [T], mono, at `sample_rate` Hz.

    Only the part and a little around it is decoded (in MP3, and in containers other than MP4 and Matroska, also all
    that precedes it). Channels are averaged; the part is resampled as the whole file would be (soxr HQ). Samples may
    slightly exceed [-1, 1].

    Args:
        path: a file, or `archive.tar::member`.
        sample_rate: in Hz.
        start: where the part begins, in seconds.
        seconds: its length; None: to the end. If the file ends sooner, T is less.

    Raises:
        LeftOutError: missing; or too short, because the file ends before the part begins.
        AudioFileError: unreadable: no sound in it, damaged, cut short within the part, NaN or infinite samples, an
            impossible sample rate, longer than `LONGEST` or than fits into memory.
    """
    try:
        with open_sound(_locate(path), name=str(path), mono=True, whole=False) as sound:

            def read(first: int, stop: int) -> np.ndarray:
                return sound.read(first, stop)[0]

            return _part(read, sound.rate, sample_rate, start, seconds, str(path))
    except MemoryError as error:
        raise _too_large(path) from error


def read_frames(
    path: str | os.PathLike, count: int, *, start: float = 0.0, seconds: float | None = None
) -> list[bytes]:
    """Returns `count` pictures of a video as JPEG, from the middles of `count` equal pieces of the part.

    The shorter side has at most 256 pixels (pictures are never enlarged). The same versions of PyAV and Pillow give the
    same bytes.

    Args:
        path: a file, or `archive.tar::member`.
        count: how many pictures.
        start: where the part begins, in seconds.
        seconds: its length; None: to the end.

    Raises:
        LeftOutError: missing; or too short, because the video ends before the part begins.
        AudioFileError: unreadable: damaged, or without pictures.
    """
    try:
        file = _locate(path)
        if not file_bytes(file):
            raise AudioFileError(f'{path}: the file is empty (0 bytes)')
        if not kind_of(file).has_pictures:
            raise AudioFileError(f'{path}: has no pictures, it is not a video; build without --frames')
        return read_pictures(file, str(path), count, start, seconds)
    except MemoryError as error:
        raise _too_large(path) from error


def sound_seconds(path: str | os.PathLike) -> float:
    """Returns the length of a file's sound in seconds by its header; without one there, all is decoded.

    Raises what `read_sound` raises.
    """
    try:
        return reading.sound_seconds(_locate(path), str(path))
    except MemoryError as error:
        raise _too_large(path) from error


def tar_members(archive: str | os.PathLike) -> Mapping[str, tuple[int, int]]:
    """Returns the offset and size in bytes of each file in an uncompressed tar archive, by name.

    This process remembers the result. If the archive is cut short or damaged, the members before that are returned.

    Raises:
        LeftOutError: missing.
        AudioFileError: not an uncompressed tar archive.
    """
    try:
        status = os.stat(archive)
        return _tar_index(os.fspath(archive), status.st_mtime_ns, status.st_size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LeftOutError('missing', f'{archive}: no such archive') from error
    except (OSError, tarfile.TarError) as error:
        raise AudioFileError(f'{archive}: not an uncompressed tar archive: {_reason(error)}') from error


@functools.lru_cache(maxsize=8)  # the clips of a shard come from one or two archives
def _tar_index(archive: str, modified: int, size: int) -> dict[str, tuple[int, int]]:
    """Reads the index of an archive; `modified` and `size` make it read again when the archive has changed."""
    members = {}
    with tarfile.open(archive, 'r:') as tar:
        try:
            for member in tar:
                if member.isreg():
                    members[member.name.removeprefix('./')] = member.offset_data, member.size
        except tarfile.TarError:
            pass
    return members


def _locate(path: str | os.PathLike) -> pathlib.Path | io.BytesIO:
    """Returns the file that a path names; a member of an archive as its bytes. Raises LeftOutError if it is missing."""
    member = _MEMBER.fullmatch(os.fspath(path))
    if member and not os.path.exists(path):
        return _read_member(member[1], member[2], str(path))
    path = pathlib.Path(path)
    try:
        found = path.exists()
    except (OSError, ValueError) as error:
        raise AudioFileError(f'{path}: cannot be read: {_reason(error)}') from error
    if not found:
        raise LeftOutError('missing', f'{path}: no such file')
    return path


def _read_member(archive: str, member: str, name: str) -> io.BytesIO:
    place = tar_members(archive).get(member.removeprefix('./'))
    if place is None:
        raise LeftOutError('missing', f'{name}: the archive has no such member')
    offset, size = place
    try:
        with open(archive, 'rb') as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise AudioFileError(f'{name}: cannot be read: {error.strerror}') from error
    if len(data) < size:
        raise AudioFileError(f'{name}: the archive is cut short; download or copy it again')
    return io.BytesIO(data)


def _check_length(rate: int, length: int, name: str) -> None:
    """Raises AudioFileError for a length that no clip has, because resampling it could fill the memory."""
    if length > LONGEST * rate:
        raise AudioFileError(f'{name}: lasts more than {LONGEST / 3600:g} hours; cut it into pieces, if that is true')


def _part(
    read: Callable[[int, int], np.ndarray],
    rate: int,
    sample_rate: int,
    start: float,
    seconds: float | None,
    name: str,
) -> np.ndarray:
    """Returns a part as float32 [T], resampled as with the whole.

    Args:
        read: `read(first, stop)` returns these float32 samples at `rate` Hz, or fewer if the file ends sooner.
        rate: of the file, in Hz.
        sample_rate: of the result, in Hz.
        start: where the part begins, in seconds.
        seconds: its length; None: to the end.
        name: what messages call the file.
    """
    if not 0 <= start < math.inf or (seconds is not None and not 0 < seconds < math.inf):
        raise ValueError(f'{name}: start {start}, seconds {seconds}')
    begin, count = round(start * sample_rate), None if seconds is None else round(seconds * sample_rate)
    context = math.ceil(_CONTEXT * rate)
    # The first sample's time is also that of a sample of the result, so that both grids agree.
    step = rate // math.gcd(rate, sample_rate)
    first = max(0, (begin * rate // sample_rate - context) // step * step)
    longest = int(LONGEST * rate) + 1  # one more than allowed, so that the check sees it
    stop = first + longest if count is None else math.ceil((begin + count) * rate / sample_rate) + context
    samples = read(first, min(stop, first + longest))
    _check_length(rate, len(samples), name)
    if not np.isfinite(samples).all():
        raise AudioFileError(f'{name}: has NaN or infinite samples; repair or export the file again')
    skipped = begin - first // step * (sample_rate // math.gcd(rate, sample_rate))
    part = resample(samples, rate, sample_rate)[skipped:][:count]
    if not part.size:
        if start == 0:
            raise AudioFileError(f'{name}: the file holds no samples')
        raise LeftOutError('too short', f'{name}: ends before the part that begins at {start:g} s')
    return np.ascontiguousarray(part, np.float32)


def _too_large(path: str | os.PathLike) -> AudioFileError:
    return AudioFileError(f'{path}: damaged, or too long to fit into memory')


def _reason(error: Exception) -> str:
    """Returns an error's text on one line; it does not vary, because it contains no path and no address."""
    return ' '.join(str(error).split()).rstrip('.') or type(error).__name__
