"""Reads sound files of any length, in blocks or whole: with libsndfile where it reads them right, else with PyAV.

The bytes of a file decide (`structure/parts.py`), not its suffix. Nothing is ever left out without a word: what was
joined is read to its end, and what is cut short or damaged is refused.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import soundfile

from audiosep_jax.audio.containers import ContainerSound, max_seconds
from audiosep_jax.audio.formats import CONTAINER_SUFFIXES
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.samples import check_rate, from_vorbis_order, usual_mask
from audiosep_jax.audio.structure.kinds import OTHER, unreadable
from audiosep_jax.audio.structure.parts import Part, Structure, structure_of
from audiosep_jax.audio.structure.pieces import open_pieces
from audiosep_jax.audio.structure.truncation import cut_short_error, is_sound_file_cut_short
from audiosep_jax.errors import AudioFileError

_BLOCK = 65536  # samples
_MAX_FRAMES = 2**56  # a header without a length gives 2^63
# libsndfile seeks to an exact sample in these; in others it may not, and all that precedes a part is decoded.
_EXACTLY_SEEKABLE = ('PCM_', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW', 'VORBIS')
_HEADERLESS = ('.raw', '.pcm')
# Headerless formats that libsndfile knows by their suffixes alone.
_BY_SUFFIX = ('.vox', '.gsm', '.ul', '.al')


class _Decoder(Protocol):
    """What decodes one part: libsndfile or PyAV."""

    rate: int
    channels: int
    mask: int
    subtype: str | None

    @property
    def seconds(self) -> float | None: ...
    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]: ...
    def close(self) -> None: ...


class SoundInput:
    """An open sound file. `open_sound` makes it.

    Attributes:
        path: the file's path as it was given.
        rate: sample rate in Hz.
        channels: how many channels the blocks have, in the order of WAV.
        mask: the loudspeakers of the channels as the bits of WAVEFORMATEXTENSIBLE; 0 where the file does not say.
        seconds: the length by the header, which may be an estimate; None where the header has none.
        subtype: libsndfile's name of the sample format (`PCM_24`); None for a lossy one that PyAV decodes.
    """

    def __init__(self, name: Path | str, decoders: Sequence[_Decoder]):
        self.path, self._decoders = name, decoders
        first = decoders[0]
        self.rate, self.channels, self.mask, self.subtype = first.rate, first.channels, first.mask, first.subtype
        lengths = [decoder.seconds for decoder in decoders]
        self.seconds = None if None in lengths else sum(length for length in lengths if length is not None)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yields float32 [channels, n], n above 0, from the beginning to the end of the file. Can be used once.

        Args:
            start: the first sample.
            stop: the sample after the last one; None: to the end.

        Raises:
            AudioFileError: damaged or cut short before `stop`, empty, or with NaN or infinite samples.
        """
        length, num_bad = 0, 0
        for block in self._decoded(start, stop):
            length += block.shape[-1]
            num_bad += int(np.count_nonzero(~np.isfinite(block)))
            if num_bad:  # go on to the end, to count them all for the message
                continue
            yield block
        if num_bad:
            raise AudioFileError(f'{self.path}: {num_bad} samples are NaN or infinite; repair or export the file again')
        if not length and start == 0:
            raise AudioFileError(f'{self.path}: the file holds no samples; record or export it again')

    def _decoded(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        if len(self._decoders) == 1:
            yield from self._decoders[0].blocks(start, stop)
            return
        position = 0
        for block in (block for decoder in self._decoders for block in decoder.blocks()):
            wanted = block[:, max(start - position, 0) : None if stop is None else max(stop - position, 0)]
            position += block.shape[-1]
            if wanted.shape[-1]:
                yield wanted
            if stop is not None and position >= stop:
                return

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns what `blocks` yields in one float32 array [channels, n]; raises what it raises."""
        return np.concatenate([np.zeros((self.channels, 0), np.float32), *self.blocks(start, stop)], axis=1)


class _SequentialFile(soundfile.SoundFile):
    """A file read from beginning to end. soundfile seeks between two reads, which is inexact in some formats."""

    def seekable(self) -> bool:
        return False


class _LibsndfileSound:
    """A part of a sound file that libsndfile decodes; its attributes and methods are those of ContainerSound."""

    def __init__(self, file: Path | io.BytesIO, name: str, structure: Structure, part: Part, *, mono: bool):
        self._name, self._part, self._mono = name, part, mono
        self._data = open_pieces(file, part.pieces)
        source: bytes | BinaryIO = self._data
        if isinstance(file, Path) and part.pieces is None and (structure.kind != OTHER or file.suffix in _BY_SUFFIX):
            source = os.fsencode(file)  # libsndfile itself reads faster; as bytes, for names may be no UTF-8
        try:
            with _decoding_errors(name):
                self._sound = _SequentialFile(source)
            self.rate, self.subtype = self._sound.samplerate, self._sound.subtype
            check_rate(self.rate, name)
        except BaseException:
            self.close()
            raise
        self.channels = 1 if mono else self._sound.channels
        self.mask = part.mask or (usual_mask(self.channels) if part.is_vorbis_order else 0)
        self._is_cut_short = structure.is_cut_short or is_sound_file_cut_short(self._sound)

    @property
    def seconds(self) -> float:
        return self._sound.frames / self.rate

    @property
    def is_cut_short(self) -> bool:
        return self._is_cut_short

    @property
    def frames(self) -> int:
        return self._sound.frames

    def close(self) -> None:
        if hasattr(self, '_sound'):
            self._sound.close()
        self._data.close()

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        sound = self._sound
        wanted_stop = sound.frames if stop is None else min(stop, sound.frames)
        position = 0
        if start and start < sound.frames and sound.subtype.startswith(_EXACTLY_SEEKABLE):
            with _decoding_errors(self._name):
                soundfile.SoundFile.seek(sound, start)
            position = start
        while position < wanted_stop:
            with _decoding_errors(self._name):
                block = sound.read(min(_BLOCK, wanted_stop - position), dtype='float32', always_2d=True)
            if not len(block):
                break
            skipped = max(start - position, 0)
            position += len(block)
            if len(block) > skipped:
                channels = np.ascontiguousarray(block[skipped:].T)
                if self._mono:
                    channels = channels.mean(axis=0, keepdims=True)
                yield from_vorbis_order(channels) if self._part.is_vorbis_order else channels
        if position < wanted_stop or ((stop is None or stop > sound.frames) and self._is_cut_short):
            raise cut_short_error(self._name)


@contextlib.contextmanager
def open_sound(
    path: str | os.PathLike | io.BytesIO, *, name: str | None = None, mono: bool = False, whole: bool = True
) -> Iterator[SoundInput]:
    """Opens a sound file for reading in blocks.

    Parts of a file that were recorded one after the other (chained Ogg, files joined end to end) are read as one sound.
    If their sample rates or channels differ, the file is refused.

    Args:
        path: the file, or its bytes.
        name: what messages call it; None: its path.
        mono: average the channels.
        whole: refuse a file that is cut short at once. False: when what is missing is to be read.

    Raises:
        AudioFileError: missing, a folder, not audio, not supported, or by its structure damaged or cut short.
    """
    file = path if isinstance(path, io.BytesIO) else Path(path)
    name = str(file) if name is None else name
    _check_file(file, name)
    try:
        structure = structure_of(file)
    except OSError as error:
        raise AudioFileError(f'{name}: cannot be read: {error.strerror}') from error
    if structure.fault:
        raise unreadable(name, structure.kind, structure.fault)
    if structure.is_cut_short and whole:
        raise cut_short_error(name)
    with contextlib.ExitStack() as opened:
        decoders: list[_Decoder] = []
        for part in structure.parts:
            decoder = _decoder(file, name, structure, part, mono)
            opened.callback(decoder.close)
            if isinstance(decoder, _LibsndfileSound) and decoder.is_cut_short and whole:
                raise cut_short_error(name)
            if decoders and (decoder.rate, decoder.channels) != (decoders[0].rate, decoders[0].channels):
                raise AudioFileError(f'{name}: its rate or channels change midway; cut it there, and convert the parts')
            decoders.append(decoder)
        yield SoundInput(name if isinstance(path, io.BytesIO) else Path(path), decoders)


def _decoder(file: Path | io.BytesIO, name: str, structure: Structure, part: Part, mono: bool) -> _Decoder:
    """Returns libsndfile's reading of a part, or PyAV's where libsndfile does not read it."""
    kind = structure.kind
    if not part.in_libsndfile:
        return ContainerSound(file, name, kind=kind, part=part, mono=mono)
    if kind == OTHER:
        _check_other(file, name)
    try:
        sound = _LibsndfileSound(file, name, structure, part, mono=mono)
    except AudioFileError:
        if kind.demuxer is None:
            raise
        return ContainerSound(file, name, kind=kind, part=part, mono=mono)
    if kind.demuxer and not 0 <= sound.frames <= _MAX_FRAMES:
        sound.close()
        return ContainerSound(file, name, kind=kind, part=part, mono=mono)
    return sound


def _check_other(file: Path | io.BytesIO, name: str) -> None:
    """Raises AudioFileError for what libsndfile would take for headerless samples or for an MP3."""
    suffix = Path(name).suffix.lower()
    if suffix in _HEADERLESS:
        raise AudioFileError(f'{name}: headerless audio; convert it to WAV or FLAC first')
    with open_pieces(file, None) as data:
        head = data.read(3)
    if head == b'ID3' or (head[:1] == b'\xff' and head[1:2] >= b'\xe0'):
        raise unreadable(name, OTHER, 'nothing in it can be decoded', is_video=suffix in CONTAINER_SUFFIXES)


@contextlib.contextmanager
def _decoding_errors(name: str) -> Iterator[None]:
    """Turns what soundfile raises while it opens or reads the file `name` into AudioFileError."""
    try:
        yield
    except (soundfile.LibsndfileError, OverflowError, ValueError) as error:
        text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
        reason = ' '.join(text.removeprefix('Error : ').split()).rstrip('.')
        if not reason or reason.startswith('File does not exist'):
            reason = 'nothing in it can be decoded'
        is_video = name.lower().endswith(CONTAINER_SUFFIXES)
        raise unreadable(name, OTHER, reason, is_video=is_video) from error


def _check_file(file: Path | io.BytesIO, name: str) -> None:
    """Checks that there is a file with at least one byte.

    Raises:
        AudioFileError: the reason, where libsndfile would say 'System error' or, at a pipe, wait.
    """
    if isinstance(file, io.BytesIO):
        head = file.getvalue()[:1]
    else:
        try:
            mode = file.stat().st_mode
            if stat.S_ISDIR(mode):
                raise AudioFileError(f'{file}: is a folder; name the audio files in it')
            if not stat.S_ISREG(mode):
                raise AudioFileError(f'{file}: not a regular file; save the audio to a file first')
            with file.open('rb') as opened:
                head = opened.read(1)
        except FileNotFoundError as error:
            raise AudioFileError(f'{file}: no such file; check the name') from error
        except OSError as error:
            raise AudioFileError(f'{file}: cannot be read: {error.strerror}') from error
        except ValueError as error:  # a NUL byte in the name
            raise AudioFileError(f'{str(file)!r}: not a file name') from error
    if not head:
        raise AudioFileError(f'{name}: the file is empty (0 bytes)')


def sound_seconds(file: Path | io.BytesIO, name: str | None = None) -> float:
    """Returns the length of a file, or of its bytes, in seconds by its header; without one there, all is decoded.

    Raises:
        AudioFileError: as `open_sound`; or the file is too small for the length.
    """
    with open_sound(file, name=name, mono=True, whole=False) as sound:
        seconds = sound.seconds
        if seconds is None:
            return sum(block.shape[-1] for block in sound.blocks()) / sound.rate
    if not 0 <= seconds <= max_seconds(file):
        raise AudioFileError(
            f'{name or file}: damaged, the file is too small for {seconds:.0f} s of sound; download or export it again'
        )
    return seconds


def read_audio(
    path: str | os.PathLike, *, sample_rate: int | None = None, mono: bool = False
) -> tuple[np.ndarray, int]:
    """Reads a whole file as float32 `[channels, T]`.

    Args:
        path: anything that libsndfile or FFmpeg (PyAV) decodes: sound files, and the sound tracks of videos.
        sample_rate: resample to this rate, in Hz; None keeps the file's own.
        mono: average the channels (then channels = 1).

    Returns:
        The samples and their sample rate in Hz.

    Raises:
        AudioFileError: missing, a folder, not audio, not supported, damaged or cut short, empty, with NaN or infinite
            samples, or too long for the memory.
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
