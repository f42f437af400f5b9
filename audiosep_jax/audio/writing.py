"""Writing sound files of any length: block by block, all files of one recording or none, never half a file.

An integer format cannot hold what is beyond full scale, and by how much a recording goes beyond is known at its end
alone: until then the samples lie as float32 in files without a name beside the outputs, which vanish with the process.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import soundfile

from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.storage.atomic import replacing

Subtype = Literal['PCM_16', 'PCM_24', 'PCM_32', 'FLOAT']
MAX_FLAC_RATE = 655350  # Hz

# By suffix: libsndfile's name, the subtype where there is no choice, the most channels, and the rates in Hz. Asked
# beyond its limits, libsndfile ends the process (Vorbis) or gives an empty message.
_ANY_RATE = range(1, 2**31)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_FORMATS = {
    '.wav': ('WAV', None, 1024, _ANY_RATE),
    '.flac': ('FLAC', None, 8, range(1, MAX_FLAC_RATE + 1)),
    '.ogg': ('OGG', 'VORBIS', 255, range(1, 200001)),
    '.opus': ('OGG', 'OPUS', 255, (8000, 12000, 16000, 24000, 48000)),
    '.mp3': ('MP3', 'MPEG_LAYER_III', 2, _MP3_RATES),
    '.aiff': ('AIFF', None, 1024, _ANY_RATE),
    '.aif': ('AIFF', None, 1024, _ANY_RATE),
    '.caf': ('CAF', None, 1024, _ANY_RATE),
    '.w64': ('W64', None, 1024, _ANY_RATE),
}
SUFFIXES = tuple(_FORMATS)
_LISTED = f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}'

# libsndfile overflows its stack when a long block goes to the Vorbis encoder at once; smaller blocks also keep the
# quantised copy small.
_BLOCK = 65536
# A plain WAV counts its bytes in 32 bits; beyond that the RF64 header (EBU Tech 3306) takes over, suffix unchanged.
_WAV_BYTES = 2**32 - 2**16
_BYTES = {'PCM_16': 2, 'PCM_24': 3, 'PCM_32': 4, 'FLOAT': 4}
_IN_MEMORY = 2**23  # bytes of an output that are no file yet
# The largest positive 16-bit value is one step below full scale.
_HIGHEST = 1.0 - 2.0**-15


def check_format(
    path: str | os.PathLike, subtype: Subtype, *, channels: int = 1, sample_rate: int = 44100, named: str | None = None
) -> None:
    """Raises ConfigError where no file of this suffix can hold this subtype, channel count and rate (in Hz).

    Args:
        named: what the message calls the file, where its path is nothing that a user gave.
    """
    suffix = Path(path).suffix.lower()
    path = named or path
    if suffix not in _FORMATS:
        raise ConfigError(f'{path}: cannot write {suffix or "a file without suffix"}; use {_LISTED}')
    if subtype not in get_args(Subtype):
        raise ConfigError(f'{path}: unknown subtype {subtype!r}; use {", ".join(get_args(Subtype))}')
    kind, fixed, most_channels, rates = _FORMATS[suffix]
    if not fixed and not soundfile.check_format(kind, subtype):
        raise ConfigError(f'{path}: {kind} holds 16 or 24 bits, not {subtype}; use .wav for that')
    if not 1 <= channels <= most_channels:
        raise ConfigError(f'{path}: {suffix} holds 1 to {most_channels} channels, not {channels}; use .wav')
    if sample_rate not in rates:
        held = f'up to {rates[-1]}' if isinstance(rates, range) else ', '.join(map(str, rates))
        raise ConfigError(f'{path}: {suffix} holds rates {held} Hz, not {sample_rate}; use .wav')


def has_subtypes(suffix: str) -> bool:
    """Whether a file of this suffix may have samples of several kinds; those of OGG, Opus and MP3 are what they are."""
    return suffix.lower() in _FORMATS and _FORMATS[suffix.lower()][1] is None


def subtype_like(source: str | None, suffix: str) -> Subtype:
    """The subtype of an output, given libsndfile's name of the input's: as many bits, at least 16 and as the format
    has them; 16 of what is lossy."""
    source = source or ''
    if source in ('FLOAT', 'DOUBLE'):
        return 'PCM_24' if suffix.lower() == '.flac' else 'FLOAT'
    if source.endswith('_32'):
        return 'PCM_24' if suffix.lower() == '.flac' else 'PCM_32'
    return 'PCM_24' if source.endswith(('_20', '_24')) else 'PCM_16'


class OutputFiles:
    """Files that get blocks of as many samples each. Made by `written_together`."""

    def __init__(self, paths: Sequence[Path], sample_rate: int, channels: int, subtype: Subtype):
        self._paths, self._rate, self._channels, self._subtype = paths, sample_rate, channels, subtype
        self._spools = [_spool(path.absolute().parent) for path in paths]
        self._peaks = [0.0] * len(paths)

    def write(self, sounds: Sequence[np.ndarray]) -> None:
        """float32 [channels, n], one for each file.

        Raises:
            AudioFileError: NaN or infinite samples, or no room.
        """
        for i, (path, sound) in enumerate(zip(self._paths, sounds, strict=True)):
            peak = float(np.abs(sound).max(initial=0.0))
            if not np.isfinite(peak):
                raise AudioFileError(f'{path}: not written, the samples to write are NaN or infinite')
            self._peaks[i] = max(self._peaks[i], peak)
            with _explained(path):
                self._spools[i].write(np.ascontiguousarray(sound.T, np.float32).reshape(-1).view(np.uint8))

    def finish(self, gains: Sequence[float] | None = None) -> float:
        """Encodes all files, each times its gain (1 if none are given), under temporary names; then renames them.

        Returns:
            The gain that all of them got, besides, to keep within full scale; 1.0 if none.

        Raises:
            AudioFileError: they cannot be written.
        """
        gains = gains or [1.0] * len(self._paths)
        common = 1.0
        for path, peak, gain in zip(self._paths, self._peaks, gains, strict=True):
            if peak * gain > 1.0 and not self._is_unlimited(path):
                common = min(common, _HIGHEST / (peak * gain))
        with contextlib.ExitStack() as renames:  # not before the last one is written
            for path, spool, gain in zip(self._paths, self._spools, gains, strict=True):
                with _explained(path):
                    spool.flush()
                    temporary = renames.enter_context(replacing(path))
                    self._encode(temporary, path.suffix.lower(), spool, gain * common)
        return common

    def close(self) -> None:
        for spool in self._spools:
            # What is still in its buffer goes to the disk now; where that is full, the file is none that matters.
            with contextlib.suppress(OSError):
                spool.close()

    def _is_unlimited(self, path: Path) -> bool:
        return self._subtype == 'FLOAT' and has_subtypes(path.suffix)

    def _encode(self, temporary: Path, suffix: str, spool: tempfile.SpooledTemporaryFile, gain: float) -> None:
        kind, fixed = _FORMATS[suffix][:2]
        encoding = fixed or self._subtype
        frame_bytes = 4 * self._channels
        if kind == 'WAV' and spool.tell() // 4 * _BYTES[self._subtype] > _WAV_BYTES:
            kind = 'RF64'
        spool.seek(0)
        shape = self._rate, self._channels
        with soundfile.SoundFile(os.fsencode(temporary), 'w', *shape, encoding, format=kind) as file:
            while data := spool.read(_BLOCK * frame_bytes):
                block = np.frombuffer(data, np.float32).reshape(-1, self._channels) * np.float32(gain)
                file.write(quantised(block, encoding))


def _spool(folder: Path) -> tempfile.SpooledTemporaryFile:
    return tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=folder)


@contextlib.contextmanager
def written_together(
    paths: Sequence[str | os.PathLike], sample_rate: int, *, channels: int, subtype: Subtype = 'PCM_16'
) -> Iterator[OutputFiles]:
    """Several files as one: all of them appear at `finish`, or none does. One gain for all keeps them within full
    scale, so that targets and residual still add up to the (attenuated) mixture.

    Raises:
        ConfigError: a suffix, subtype, rate or channel count that the format does not have.
        AudioFileError: the files cannot be written there.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        check_format(path, subtype, channels=channels, sample_rate=sample_rate)
        if path.is_dir():
            raise AudioFileError(f'{path}: cannot be written: a folder has that name')
    with contextlib.closing(OutputFiles(paths, sample_rate, channels, subtype)) as files:
        yield files


def quantised(block: np.ndarray, encoding: str) -> np.ndarray:
    """Float `[n, channels]` rounded to what `encoding` stores: left-aligned int32, of which libsndfile keeps the top.

    Its own conversion from float truncates in WAV (half a step of DC) and rounds in FLAC.
    """
    if not encoding.startswith('PCM_'):
        return block
    bits = int(encoding[-2:])
    full = 2.0 ** (bits - 1)
    # In double: float32 does not hold the largest of 32 bits.
    return np.clip(np.rint(block * full), -full, full - 1).astype(np.int64).astype(np.int32) << (32 - bits)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AudioFileError(f'{path}: cannot be written: {error.strerror or error}') from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip('.').replace('System error', 'the disk is full or failing')
        raise AudioFileError(f'{path}: cannot be written: {reason}') from error


def write_audio(path: str | os.PathLike, audio: np.ndarray, sample_rate: int, *, subtype: Subtype = 'PCM_16') -> float:
    """Writes float `[channels, T]` in the format of the suffix of `path`; replaces an existing file.

    The file appears under its name only when it is complete. Where samples beyond full scale would wrap or clip, that
    is everywhere but in float files, the whole file is attenuated instead.

    Args:
        path: ends in one of `SUFFIXES`: .wav, .flac, .ogg, .mp3 and others.
        audio: float `[channels, T]`.
        sample_rate: in Hz, a whole number.
        subtype: of the samples; FLAC has no PCM_32 and no FLOAT, OGG, Opus and MP3 are what they are.

    Returns:
        The gain that was applied to keep within full scale; 1.0 if none.

    Raises:
        ConfigError: a suffix, subtype, rate or channel count that the format does not have.
        AudioFileError: non-finite samples, or the file cannot be written there.
    """
    return write_together({path: audio}, sample_rate, subtype=subtype)


def write_together(
    sounds: Mapping[str | os.PathLike, np.ndarray], sample_rate: int, *, subtype: Subtype = 'PCM_16'
) -> float:
    """As `write_audio`, several files as one: all of them are written or none is, with one gain for all.

    For what was separated from one mixture: with one gain, targets and residual still add up to the (attenuated)
    mixture.
    """
    sounds = {Path(path): np.asarray(audio, np.float32) for path, audio in sounds.items()}
    for audio in sounds.values():
        if audio.ndim != 2:
            raise ValueError(f'audio must be [channels, T], got shape {audio.shape}')
    if not sounds:
        return 1.0
    channels = len(next(iter(sounds.values())))
    with written_together(list(sounds), sample_rate, channels=channels, subtype=subtype) as files:
        files.write(list(sounds.values()))
        return files.finish()
