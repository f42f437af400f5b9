"""Reads sounds and pictures from the files of datasets: whole audio files, parts of them, videos, members of archives.

A path names a file, or as `archive.tar::member` a member of an uncompressed tar archive, which is read at its offset.
libsndfile decodes the formats that it knows, and PyAV MP4, WebM, Matroska and other containers. The first bytes tell
which of the two is needed, not the suffix, because many files are not what their suffix says.
"""

import functools
import importlib.util
import io
import math
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import soundfile

from audiosep_jax.audio.containers import INSTALL_PYAV, ContainerSound, is_container, max_seconds
from audiosep_jax.audio.formats import CONTAINER_SUFFIXES
from audiosep_jax.audio.reading import decoding_errors, read_audio
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.truncation import cut_short_error, has_estimated_length, is_sound_file_cut_short
from audiosep_jax.errors import AudioFileError, ConfigError, LeftOutError
from data_prep.clips.video import read_pictures

# Hz; a header that gives less or more is damaged.
LOWEST_RATE, HIGHEST_RATE = 1000, 10_000_000
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
        ConfigError: PyAV is needed and not installed.
    """
    try:
        file = _locate(path)
        if _is_container(file, str(path)):
            with ContainerSound(file, str(path), mono=True) as sound:

                def read(first: int, stop: int) -> np.ndarray:
                    return sound.read(first, stop)[0]

                return _part(read, sound.rate, sample_rate, start, seconds, str(path))
        if isinstance(file, pathlib.Path) and start == 0 and seconds is None:
            audio, rate = read_audio(file, mono=True)
            _check_header(rate, audio.shape[-1], str(path))
            return resample(audio[0], rate, sample_rate)
        return _part_of_sound_file(file, sample_rate, start, seconds, str(path))
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
        ConfigError: PyAV is not installed.
    """
    try:
        file = _locate(path)
        if not _is_container(file, str(path)):
            raise AudioFileError(f'{path}: has no pictures, it is not a video; build without --frames')
        return read_pictures(file, str(path), count, start, seconds)
    except MemoryError as error:
        raise _too_large(path) from error


def sound_seconds(path: str | os.PathLike) -> float:
    """Returns the length of a file's sound in seconds by its header; without one there, all is decoded.

    Raises what `read_sound` raises.
    """
    try:
        file = _locate(path)
        if _is_container(file, str(path)):
            with ContainerSound(file, str(path), mono=True) as track:
                rate, from_header = track.rate, track.seconds
                seconds = track.read().shape[1] / rate if from_header is None else from_header
        else:
            with _open_sound_file(file, str(path)) as sound:
                rate, seconds = sound.samplerate, sound.frames / sound.samplerate
    except MemoryError as error:
        raise _too_large(path) from error
    _check_header(rate, 0, str(path))
    if not 0 <= seconds <= max_seconds(file):
        raise AudioFileError(f'{path}: damaged, the file is too small for {seconds:.0f} s of sound')
    return seconds


def check_pyav(paths: Iterable[str], frames: int = 0) -> None:
    """Checks, before hours of building, that PyAV is installed if files need it by their names.

    Args:
        paths: the files.
        frames: how many pictures are to be taken of each.

    Raises:
        ConfigError: PyAV (or Pillow, for pictures) is needed and not installed.
    """
    if all(importlib.util.find_spec(name) for name in (('av', 'PIL') if frames else ('av',))):
        return
    first = next((path for path in paths if frames or path.lower().endswith(CONTAINER_SUFFIXES)), None)
    if first is not None:
        raise ConfigError(f'{first}: {INSTALL_PYAV}')


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


def _is_container(file: pathlib.Path | io.BytesIO, name: str) -> bool:
    return is_container(_head(file, name), pathlib.PurePath(name).suffix)


def _head(file: pathlib.Path | io.BytesIO, name: str) -> bytes:
    """Returns the first 12 bytes; none if it is not a regular file, because `read_audio` has a better message then."""
    if isinstance(file, io.BytesIO):
        return file.getbuffer()[:12].tobytes()
    if not file.is_file():
        return b''
    try:
        with file.open('rb') as opened:
            return opened.read(12)
    except OSError as error:
        raise AudioFileError(f'{name}: cannot be read: {error.strerror}') from error


def _open_sound_file(file: pathlib.Path | io.BytesIO, name: str) -> soundfile.SoundFile:
    if isinstance(file, io.BytesIO) and not file.getbuffer().nbytes:
        raise AudioFileError(f'{name}: the file is empty (0 bytes)')
    with decoding_errors(name):
        return soundfile.SoundFile(file if isinstance(file, io.BytesIO) else os.fsencode(file))


def _part_of_sound_file(
    file: pathlib.Path | io.BytesIO, sample_rate: int, start: float, seconds: float | None, name: str
) -> np.ndarray:
    with _open_sound_file(file, name) as sound:

        def read(first: int, stop: int) -> np.ndarray:
            if stop > sound.frames and is_sound_file_cut_short(file, sound):
                raise cut_short_error(name)
            stop = min(stop, sound.frames)
            if first >= stop:
                return np.zeros(0, np.float32)
            # libsndfile seeks inexactly in an MP3, so all that precedes the part is decoded.
            skipped = first if sound.format == 'MP3' else 0
            try:
                with decoding_errors(name):
                    sound.seek(first - skipped)
                    samples = sound.read(stop - first + skipped, dtype='float32', always_2d=True)[skipped:]
            except (ValueError, OverflowError) as error:
                raise AudioFileError(f'{name}: damaged or cut short ({_reason(error)})') from error
            if len(samples) < stop - first and not has_estimated_length(file, sound):
                raise cut_short_error(name)
            return samples.mean(axis=1)

        return _part(read, sound.samplerate, sample_rate, start, seconds, name)


def _check_header(rate: int, length: int, name: str) -> None:
    """Raises AudioFileError for a rate or a length that no clip has, because resampling it could fill the memory."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioFileError(f'{name}: damaged, its header gives a sample rate of {rate} Hz')
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
    _check_header(rate, 0, name)
    begin, count = round(start * sample_rate), None if seconds is None else round(seconds * sample_rate)
    context = math.ceil(_CONTEXT * rate)
    # The first sample's time is also that of a sample of the result, so that both grids agree.
    step = rate // math.gcd(rate, sample_rate)
    first = max(0, (begin * rate // sample_rate - context) // step * step)
    longest = int(LONGEST * rate) + 1  # one more than allowed, so that the check sees it
    stop = first + longest if count is None else math.ceil((begin + count) * rate / sample_rate) + context
    samples = read(first, min(stop, first + longest))
    _check_header(rate, len(samples), name)
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
