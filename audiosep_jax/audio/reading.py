"""Reads sound files of any length, in blocks or whole: with libsndfile, or with PyAV (extra `[video]`)."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiosep_jax.audio.containers import ContainerSound, is_container
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.truncation import cut_short_error, has_estimated_length, is_sound_file_cut_short
from audiosep_jax.errors import AudioFileError

_BLOCK = 65536  # samples
_MAX_FRAMES = 2**56  # a header without a length gives 2^63


class SoundInput:
    """An open sound file. `open_sound` makes it.

    Attributes:
        path: the file's path as it was given.
        rate: sample rate in Hz.
        channels: how many channels the blocks have.
        seconds: the length by the header, which may be an estimate; None where the header has none.
        subtype: libsndfile's name of the sample format (`PCM_24`); None for a container.
    """

    def __init__(self, path: Path, file: soundfile.SoundFile | ContainerSound):
        self.path, self._file = path, file
        self.subtype: str | None = None
        self.seconds: float | None
        if isinstance(file, ContainerSound):
            self.rate, self.channels, self.seconds = file.rate, file.channels, file.seconds
        else:
            self.rate, self.channels, self.subtype = file.samplerate, file.channels, file.subtype
            self.seconds = file.frames / file.samplerate

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 [channels, n], n above 0, from the beginning to the end of the file. Can be used once.

        Raises:
            AudioFileError: damaged or cut short, empty, or with NaN or infinite samples.
        """
        length, num_bad = 0, 0
        file = self._file
        for block in file.blocks() if isinstance(file, ContainerSound) else _decoded_blocks(file, self.path):
            length += block.shape[-1]
            num_bad += int(np.count_nonzero(~np.isfinite(block)))
            if num_bad:  # go on to the end, to count them all for the message
                continue
            yield block
        if num_bad:
            raise AudioFileError(f'{self.path}: {num_bad} samples are NaN or infinite; repair or export the file again')
        if not length:
            raise AudioFileError(f'{self.path}: the file holds no samples')


def _decoded_blocks(file: soundfile.SoundFile, path: Path) -> Iterator[np.ndarray]:
    length = 0
    while True:
        with decoding_errors(str(path)):
            block = file.read(_BLOCK, dtype='float32', always_2d=True)
        if not len(block):
            break
        length += len(block)
        yield np.ascontiguousarray(block.T)
    if length < file.frames and not has_estimated_length(path, file):
        raise cut_short_error(str(path))


class _SequentialFile(soundfile.SoundFile):
    """A file read from beginning to end. soundfile seeks between two reads, which is inexact in an MP3."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def open_sound(path: str | os.PathLike) -> Iterator[SoundInput]:
    """Opens a sound file for reading in blocks.

    A few encoders write MP3s with a variable bit rate and no Xing header. Of those, libsndfile decodes only as much as
    it estimates from the first frame.

    Raises:
        AudioFileError: missing, a folder, not audio, or by its header damaged or cut short.
        ConfigError: PyAV is needed and not installed.
    """
    path = Path(path)
    head = _read_head(path)
    if is_container(head, path.suffix):
        with ContainerSound(path) as sound:
            if sound.is_cut_short:
                raise cut_short_error(str(path))
            yield SoundInput(path, sound)
        return
    with decoding_errors(str(path)):
        file = _SequentialFile(os.fsencode(path))  # as bytes, because names need not be valid UTF-8
    with file:
        if file.frames > _MAX_FRAMES:
            raise AudioFileError(
                f'{path}: its header gives no usable length ({file.frames} samples); write the file again, to disk'
            )
        if is_sound_file_cut_short(path, file):
            raise cut_short_error(str(path))
        yield SoundInput(path, file)


@contextlib.contextmanager
def decoding_errors(name: str) -> Iterator[None]:
    """Turns what soundfile raises while it opens or reads the file `name` into AudioFileError."""
    try:
        yield
    except TypeError as error:  # soundfile goes by the suffix .raw before it looks inside
        raise AudioFileError(f'{name}: headerless audio; convert it to WAV or FLAC first') from error
    except soundfile.LibsndfileError as error:
        reason = ' '.join(error.error_string.removeprefix('Error : ').split()).rstrip('.')
        if not reason or reason.startswith('File does not exist'):  # its text for an MP3 without a frame
            reason = 'nothing in it can be decoded'
        raise AudioFileError(f'{name}: damaged, cut short or not an audio file ({reason})') from error


def _read_head(path: Path) -> bytes:
    """Returns the first 12 bytes.

    Raises:
        AudioFileError: the reason, where libsndfile would say 'System error' or, at a pipe, wait.
    """
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
    """Reads a whole file as float32 `[channels, T]`.

    Args:
        path: anything that libsndfile decodes, and with PyAV (extra `video`) MP4, M4A, WebM, Matroska and more.
        sample_rate: resample to this rate, in Hz; None keeps the file's own.
        mono: average the channels (then channels = 1).

    Returns:
        The samples and their sample rate in Hz.

    Raises:
        AudioFileError: missing, a folder, not audio, damaged or cut short, empty, with NaN or infinite samples, or
            too long for the memory.
        ConfigError: PyAV is needed and not installed.
    """
    with open_sound(path) as file:
        rate = file.rate
        try:
            audio = np.concatenate(list(file.blocks()), axis=-1)
        except MemoryError as error:
            raise AudioFileError(f'{path}: does not fit into memory; read it in blocks') from error
    if mono:
        audio = audio.mean(axis=0, keepdims=True)
    if sample_rate is not None:
        audio, rate = resample(audio, rate, sample_rate), sample_rate
    return np.ascontiguousarray(audio, np.float32), rate
