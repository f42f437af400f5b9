"""Sound and pictures of files as datasets have them: whole audio files, parts of them, video, members of archives.

A path names a file, or `archive.tar::member` a member of an uncompressed tar archive, read at its offset. libsndfile
decodes what it knows; MP4, WebM, Matroska and other containers are PyAV's (`data_prep.clips.video`). Which of the two
is told by the first bytes, not by the suffix: much that is called .wav is not.
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

from audiosep_jax.audio.containers import SUFFIXES as CONTAINER_SUFFIXES
from audiosep_jax.audio.containers import is_container, most_seconds
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.truncation import has_guessed_length, is_cut_short
from audiosep_jax.errors import AudioFileError, ConfigError
from data_prep.clips.base import LeftOutError

# What a listing of a folder takes for sounds and for containers; files of other names are read all the same.
AUDIO_SUFFIXES = ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.aiff', '.aif')
# Hz; a header that tells of less or more is damaged.
LOWEST_RATE, HIGHEST_RATE = 1000, 10_000_000
LONGEST = 4 * 3600.0  # seconds of a clip

# Around a part, so that resampling it alone gives what resampling the whole would: soxr's filter is shorter.
_CONTEXT = 0.1  # seconds
_MEMBER = re.compile(r'(.+?\.tar)::(.+)', re.IGNORECASE | re.DOTALL)


def read_sound(
    path: str | os.PathLike, *, sample_rate: int, start: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """float32 [T] mono at `sample_rate` Hz: a file, or the part of it that begins at `start` seconds.

    Of a part no more is decoded than that and a little around it (of MP3, and of containers other than MP4 and
    Matroska, all before it too). Channels are averaged; resampling is as of the whole file (soxr HQ). Samples may go
    a little beyond [-1, 1].

    Args:
        path: a file, or `archive.tar::member`.
        sample_rate: Hz.
        start: of the part, seconds.
        seconds: of the part; None: to the end. Where the file ends sooner, T is less.

    Raises:
        LeftOutError: missing; too short, where the file ends before the part begins.
        AudioFileError: unreadable: no sound in it, damaged, cut short within the part, NaN or infinite samples, a
            rate that no sound has, more than `LONGEST` or than the memory holds.
        ConfigError: PyAV is needed and not installed.
    """
    try:
        file = _locate(path)
        if _is_container(file, str(path)):
            from data_prep.clips.video import SoundTrack

            with SoundTrack(file, str(path)) as track:
                return _part(track.read, track.rate, sample_rate, start, seconds, str(path))
        if isinstance(file, pathlib.Path) and start == 0 and seconds is None:
            audio, rate = read_audio(file, mono=True)
            _check_header(rate, audio.shape[-1], str(path))
            return resample(audio[0], rate, sample_rate)
        return _part_of_audio(file, sample_rate, start, seconds, str(path))
    except MemoryError as error:
        raise _too_large(path) from error


def read_frames(
    path: str | os.PathLike, count: int, *, start: float = 0.0, seconds: float | None = None
) -> list[bytes]:
    """`count` pictures of a video as JPEG, from the middles of `count` equal pieces of the part.

    The shorter side is at most 256 pixels (never enlarged); the same versions of PyAV and Pillow give the same bytes.

    Raises:
        LeftOutError: missing; too short, where the video ends before the part begins.
        AudioFileError: unreadable: damaged, or without pictures.
        ConfigError: PyAV is not installed.
    """
    try:
        file = _locate(path)
        if not _is_container(file, str(path)):
            raise AudioFileError(f'{path}: has no pictures, it is not a video; build without --frames')
        from data_prep.clips.video import pictures

        return pictures(file, str(path), count, start, seconds)
    except MemoryError as error:
        raise _too_large(path) from error


def sound_seconds(path: str | os.PathLike) -> float:
    """How long a file's sound is, seconds, by its header alone. Raises as `read_sound`."""
    from data_prep.clips.video import SoundTrack

    try:
        file = _locate(path)
        if _is_container(file, str(path)):
            with SoundTrack(file, str(path)) as track:
                rate, seconds = track.rate, track.seconds
        else:
            with _sound_file(file, str(path)) as sound:
                rate, seconds = sound.samplerate, sound.frames / sound.samplerate
    except MemoryError as error:
        raise _too_large(path) from error
    _check_header(rate, 0, str(path))
    if not 0 <= seconds <= most_seconds(file):
        raise AudioFileError(f'{path}: damaged, it is too small for {seconds:.0f} s of sound')
    return seconds


def check_pyav(paths: Iterable[str], frames: int = 0) -> None:
    """Raises ConfigError where files need PyAV, by their names, and it is not installed: before hours of building."""
    if all(importlib.util.find_spec(name) for name in (('av', 'PIL') if frames else ('av',))):
        return
    first = next((path for path in paths if frames or path.lower().endswith(CONTAINER_SUFFIXES)), None)
    if first is not None:
        raise ConfigError(f"{first}: to read it, install PyAV: pip install 'audiosep_jax[video]'")


def tar_members(archive: str | os.PathLike) -> Mapping[str, tuple[int, int]]:
    """Offset and size in bytes of every file in an uncompressed tar archive, by name; remembered in this process.

    Of an archive that was cut short, or is damaged farther on, those before that.

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


@functools.lru_cache(maxsize=8)  # a shard's clips come from one archive or two
def _tar_index(archive: str, modified: int, size: int) -> dict[str, tuple[int, int]]:
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
    """The file that a path names; a member of an archive as its bytes. Raises LeftOutError where there is none."""
    member = _MEMBER.fullmatch(os.fspath(path))
    if member and not os.path.exists(path):
        archive, name = member.groups()
        place = tar_members(archive).get(name.removeprefix('./'))
        if place is None:
            raise LeftOutError('missing', f'{path}: the archive has no such member')
        offset, size = place
        try:
            with open(archive, 'rb') as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise AudioFileError(f'{path}: cannot be read: {error.strerror}') from error
        if len(data) < size:
            raise AudioFileError(f'{path}: the archive is cut short; get it anew')
        return io.BytesIO(data)
    path = pathlib.Path(path)
    try:
        found = path.exists()
    except (OSError, ValueError) as error:
        raise AudioFileError(f'{path}: cannot be read: {_reason(error)}') from error
    if not found:
        raise LeftOutError('missing', f'{path}: no such file')
    return path


def _is_container(file: pathlib.Path | io.BytesIO, name: str) -> bool:
    """Whether PyAV is to read a file, by what it begins with; where that says nothing, by its suffix."""
    return is_container(_head(file, name), pathlib.PurePath(name).suffix)


def _head(file: pathlib.Path | io.BytesIO, name: str) -> bytes:
    """The first 12 bytes; none of what is no regular file, about which `read_audio` has more to say."""
    if isinstance(file, io.BytesIO):
        return file.getbuffer()[:12].tobytes()
    if not file.is_file():
        return b''
    try:
        with file.open('rb') as opened:
            return opened.read(12)
    except OSError as error:
        raise AudioFileError(f'{name}: cannot be read: {error.strerror}') from error


def _sound_file(file: pathlib.Path | io.BytesIO, name: str) -> soundfile.SoundFile:
    if isinstance(file, io.BytesIO) and not file.getbuffer().nbytes:
        raise AudioFileError(f'{name}: the file is empty (0 bytes)')
    try:
        return soundfile.SoundFile(file if isinstance(file, io.BytesIO) else os.fsencode(file))
    except TypeError as error:  # soundfile goes by the suffix .raw before it looks inside
        raise AudioFileError(f'{name}: headerless audio; convert it to WAV or FLAC first') from error
    except soundfile.LibsndfileError as error:
        raise AudioFileError(f'{name}: damaged, cut short or not an audio file ({_reason(error)})') from error


def _part_of_audio(file, sample_rate: int, start: float, seconds: float | None, name: str) -> np.ndarray:
    with _sound_file(file, name) as sound:

        def read(first: int, stop: int) -> np.ndarray:
            if stop > sound.frames and is_cut_short(file, sound):
                raise _promises_more(name)
            stop = min(stop, sound.frames)
            if first >= stop:
                return np.zeros(0, np.float32)
            # libsndfile finds a place in an MP3 only roughly: decode all before it.
            skipped = first if sound.format == 'MP3' else 0
            try:
                sound.seek(first - skipped)
                samples = sound.read(stop - first + skipped, dtype='float32', always_2d=True)[skipped:]
            except (soundfile.LibsndfileError, ValueError, OverflowError) as error:
                raise AudioFileError(f'{name}: damaged or cut short ({_reason(error)})') from error
            if len(samples) < stop - first and not has_guessed_length(file, sound):
                raise _promises_more(name)
            return samples.mean(axis=1)

        return _part(read, sound.samplerate, sample_rate, start, seconds, name)


def _check_header(rate: int, length: int, name: str) -> None:
    """Raises AudioFileError for `length` samples at `rate` Hz that no clip has: resampled they fill the memory."""
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
    """float32 [T]: a part, resampled as if with the whole. `read(first, stop)` gives float32 samples at `rate` Hz, or
    fewer where the file ends sooner."""
    if not 0 <= start < math.inf or (seconds is not None and not 0 < seconds < math.inf):
        raise ValueError(f'{name}: start {start}, seconds {seconds}')
    _check_header(rate, 0, name)
    begin, count = round(start * sample_rate), None if seconds is None else round(seconds * sample_rate)
    context = math.ceil(_CONTEXT * rate)
    # A first sample whose time is also a sample of the result, so that both grids agree.
    step = rate // math.gcd(rate, sample_rate)
    first = max(0, (begin * rate // sample_rate - context) // step * step)
    most = int(LONGEST * rate) + 1  # one too many
    stop = first + most if count is None else math.ceil((begin + count) * rate / sample_rate) + context
    samples = read(first, min(stop, first + most))
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


def _promises_more(name: str) -> AudioFileError:
    return AudioFileError(f'{name}: damaged or cut short, its header promises more audio than it holds; get it anew')


def _too_large(path: str | os.PathLike) -> AudioFileError:
    return AudioFileError(f'{path}: damaged, or too long for the memory that there is')


def _reason(error: Exception) -> str:
    """What went wrong on one line, the same whenever and wherever it does: no paths, no addresses."""
    if isinstance(error, soundfile.LibsndfileError):
        text = error.error_string.removeprefix('Error : ')
        text = '' if text.startswith('File does not exist') else text  # what it says of an MP3 without a frame
        return ' '.join(text.split()).rstrip('.') or 'nothing in it can be decoded'
    return ' '.join(str(error).split()).rstrip('.') or type(error).__name__
