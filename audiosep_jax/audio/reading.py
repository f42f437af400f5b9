"""Sound files as blocks, whatever their length: libsndfile's formats, and containers by PyAV (extra `[video]`)."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiosep_jax.audio.containers import SUFFIXES as CONTAINER_SUFFIXES
from audiosep_jax.audio.containers import ContainerSound, is_container
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.truncation import has_guessed_length, is_cut_short
from audiosep_jax.errors import AudioFileError

# What a folder's sounds are told by; a file that is named may be called anything.
SUFFIXES = (
    *('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aiff', '.aif', '.aifc', '.au', '.caf', '.w64', '.rf64'),
    *CONTAINER_SUFFIXES,
)
_BLOCK = 65536  # samples
_MOST_FRAMES = 2**56  # a header without a length becomes 2^63


class SoundInput:
    """A sound file, open. Made by `open_sound`.

    Attributes:
        path: as it was named.
        rate: Hz.
        channels: of the blocks.
        seconds: its length by the header, which may be an estimate; None where there is none.
        subtype: of its samples, in libsndfile's words (`PCM_24`); None in a container.
    """

    def __init__(self, path: Path, file: soundfile.SoundFile | ContainerSound):
        self.path, self._file = path, file
        self.subtype: str | None = None
        if isinstance(file, ContainerSound):
            self.rate, self.channels, self.seconds = file.rate, file.channels, file.seconds
        else:
            self.rate, self.channels, self.subtype = file.samplerate, file.channels, file.subtype
            self.seconds = file.frames / file.samplerate

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [channels, n], n above 0, from the beginning to the end; once.

        Raises:
            AudioFileError: damaged or cut short, empty, or NaN or infinite samples.
        """
        length, bad = 0, 0
        pieces = self._file.blocks() if isinstance(self._file, ContainerSound) else self._decoded()
        for block in pieces:
            length += block.shape[-1]
            bad += int(np.count_nonzero(~np.isfinite(block)))
            if bad:  # counted to the end, for the message
                continue
            yield block
        if bad:
            raise AudioFileError(f'{self.path}: {bad} samples are NaN or infinite; repair or export the file again')
        if not length:
            raise AudioFileError(f'{self.path}: the file holds no samples')

    def _decoded(self) -> Iterator[np.ndarray]:
        file, length = self._file, 0
        while True:
            with _explained(self.path):
                block = file.read(_BLOCK, dtype='float32', always_2d=True)
            if not len(block):
                break
            length += len(block)
            yield np.ascontiguousarray(block.T)
        if length < file.frames and not has_guessed_length(self.path, file):
            raise _cut_short(self.path)


class _Forward(soundfile.SoundFile):
    """Read from the beginning to the end: soundfile seeks between two reads, which MP3 does only roughly."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def open_sound(path: str | os.PathLike) -> Iterator[SoundInput]:
    """Opens a sound file for reading in blocks. (Of an MP3 with a variable bit rate and no Xing header, which few
    encoders write, libsndfile decodes only as much as it estimates from the first frame.)

    Raises:
        AudioFileError: missing, a folder, not audio, or damaged or cut short as far as its header tells.
        ConfigError: PyAV is needed and not installed.
    """
    path = Path(path)
    head = _head(path)
    if is_container(head, path.suffix):
        with contextlib.closing(ContainerSound(path)) as sound:
            yield SoundInput(path, sound)
        return
    with _explained(path):
        file = _Forward(os.fsencode(path))  # bytes: names need not be valid UTF-8
    with file:
        if file.frames > _MOST_FRAMES:
            raise AudioFileError(
                f'{path}: its header gives no usable length ({file.frames} samples); write the file again, to disk'
            )
        if is_cut_short(path, file):
            raise _cut_short(path)
        yield SoundInput(path, file)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except TypeError as error:  # soundfile goes by the suffix .raw before it looks inside
        raise AudioFileError(f'{path}: headerless audio; convert it to WAV or FLAC first') from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix('Error : ').rstrip('.')
        if not reason or reason.startswith('File does not exist'):  # what it says of an MP3 without a frame
            reason = 'nothing in it can be decoded'
        raise AudioFileError(f'{path}: damaged, cut short or not an audio file ({reason})') from error


def _cut_short(path: Path) -> AudioFileError:
    return AudioFileError(f'{path}: damaged or cut short, its header promises more audio than it holds; get it anew')


def _head(path: Path) -> bytes:
    """The first 12 bytes, or the reasons that libsndfile reports as 'System error', or waits for (a pipe)."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioFileError(f'{path}: is a folder; name the audio files in it')
        if not stat.S_ISREG(mode):
            raise AudioFileError(f'{path}: not a regular file; save the audio to a file first')
        with path.open('rb') as file:
            head = file.read(12)
    except FileNotFoundError as error:
        raise AudioFileError(f'{path}: no such file; check the name') from error
    except OSError as error:
        raise AudioFileError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:  # a NUL byte in the name
        raise AudioFileError(f'{str(path)!r}: not a file name') from error
    if not head:
        raise AudioFileError(f'{path}: the file is empty (0 bytes)')
    return head


def read_audio(
    path: str | os.PathLike, *, sample_rate: int | None = None, mono: bool = False
) -> tuple[np.ndarray, int]:
    """Reads a whole file, as float32 `[channels, T]`, with the rate of what is returned.

    Args:
        path: anything that libsndfile decodes, and with PyAV (extra `video`) MP4, M4A, WebM, Matroska and more.
        sample_rate: resample to this rate, in Hz; None keeps the file's own.
        mono: average the channels (then channels = 1).

    Returns:
        The samples and their sample rate in Hz.

    Raises:
        AudioFileError: missing, a folder, not audio, damaged or cut short, empty, or with NaN or infinite samples.
        ConfigError: PyAV is needed and not installed.
    """
    with open_sound(path) as file:
        rate = file.rate
        try:
            audio = np.concatenate(list(file.blocks()), axis=-1)
        except MemoryError as error:
            raise AudioFileError(f'{path}: too long for the memory that there is; read it in blocks') from error
    if mono:
        audio = audio.mean(axis=0, keepdims=True)
    if sample_rate is not None:
        audio, rate = resample(audio, rate, sample_rate), sample_rate
    return np.ascontiguousarray(audio, np.float32), rate
