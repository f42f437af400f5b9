"""Writes sound files of any length in blocks: all files of one recording appear together, complete, or none does.

An integer format cannot hold samples beyond full scale, and only at the end of a recording is it known how far its peak
goes beyond. Until then the samples wait as float32 in unnamed files beside the outputs, which vanish with the process.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import soundfile

from audiosep_jax.audio.compression import DEFAULT_COMPRESSION, Compression, check_compression, libsndfile_settings
from audiosep_jax.audio.encoding import encode_m4a
from audiosep_jax.audio.formats import WRITABLE_SUFFIXES, WRITERS
from audiosep_jax.audio.samples import quantize, to_vorbis_order, usual_mask
from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.storage.atomic import replacing

Subtype = Literal['PCM_16', 'PCM_24', 'PCM_32', 'FLOAT']

# libsndfile overflows its stack when a long block goes to the Vorbis encoder at once; smaller blocks also keep the
# quantized copy small.
_BLOCK = 65536  # frames
# A plain WAV counts its bytes in 32 bits; beyond that the RF64 header (EBU Tech 3306) takes over, suffix unchanged.
_MAX_WAV_BYTES = 2**32 - 2**16
_SAMPLE_BYTES = {'PCM_16': 2, 'PCM_24': 3, 'PCM_32': 4, 'FLOAT': 4}
_MAX_BYTES_IN_MEMORY = 2**23  # of the waiting samples; more go to a file
# The largest positive 16-bit value is one step below full scale.
_HIGHEST = 1.0 - 2.0**-15


def check_format(
    path: str | os.PathLike, subtype: Subtype, *, channels: int = 1, sample_rate: int = 44100, named: str | None = None
) -> None:
    """Checks that the format of a path's suffix can hold a sound.

    Args:
        path: the file to write.
        subtype: of its samples.
        channels: how many there are.
        sample_rate: in Hz.
        named: what the message calls the file, if `path` is not what the user gave.

    Raises:
        ConfigError: it cannot; the message says what can.
    """
    suffix = Path(path).suffix.lower()
    name = named or path
    writer = WRITERS.get(suffix)
    if writer is None:
        writable = f'{", ".join(WRITABLE_SUFFIXES[:-1])} or {WRITABLE_SUFFIXES[-1]}'
        raise ConfigError(f'{name}: cannot write {suffix or "a file without suffix"}; use {writable}')
    if subtype not in get_args(Subtype):
        raise ConfigError(f'{name}: unknown subtype {subtype!r}; use {", ".join(get_args(Subtype))}')
    if not writer.subtype and not soundfile.check_format(writer.name, subtype):
        raise ConfigError(f'{name}: {writer.name} holds 16 or 24 bits, not {subtype}; use .wav for that')
    if not 1 <= channels <= writer.max_channels:
        raise ConfigError(f'{name}: {suffix} holds 1 to {writer.max_channels} channels, not {channels}; use .wav')
    if sample_rate not in writer.rates:
        rates = writer.rates
        held = f'up to {rates[-1]}' if isinstance(rates, range) else ', '.join(map(str, rates))
        raise ConfigError(f'{name}: {suffix} holds rates {held} Hz, not {sample_rate}; use .wav')


def has_subtypes(suffix: str) -> bool:
    """Returns whether files of this suffix come with several subtypes; OGG, Opus, MP3 and M4A have one each."""
    writer = WRITERS.get(suffix.lower())
    return writer is not None and writer.subtype is None


def subtype_like(source: str | None, suffix: str) -> Subtype:
    """Returns the subtype for an output: as many bits as the input, within what the format has; at least 16.

    Args:
        source: libsndfile's name of the input's subtype. Lossy ones and None give 16 bits.
        suffix: of the output.
    """
    source = source or ''
    if source in ('FLOAT', 'DOUBLE'):
        return 'PCM_24' if suffix.lower() == '.flac' else 'FLOAT'
    if source.endswith('_32'):
        return 'PCM_24' if suffix.lower() == '.flac' else 'PCM_32'
    return 'PCM_24' if source.endswith(('_20', '_24')) else 'PCM_16'


class OutputFiles:
    """Several files that receive blocks of equal length. `written_together` makes it."""

    def __init__(
        self,
        paths: Sequence[Path],
        sample_rate: int,
        channels: int,
        subtype: Subtype,
        mask: int = 0,
        compression: Compression = DEFAULT_COMPRESSION,
    ):
        self._mask, self._compression = mask, compression
        self._paths, self._rate, self._channels, self._subtype = paths, sample_rate, channels, subtype
        self._spools = [_new_spool(path.absolute().parent) for path in paths]
        self._peaks = [0.0] * len(paths)

    def write(self, sounds: Sequence[np.ndarray]) -> None:
        """Appends to each file its block, float32 [channels, n].

        Raises:
            AudioFileError: NaN or infinite samples, or the disk is full.
        """
        for i, (path, sound) in enumerate(zip(self._paths, sounds, strict=True)):
            peak = float(np.abs(sound).max(initial=0.0))
            if not np.isfinite(peak):
                raise AudioFileError(f'{path}: not written, the samples to write are NaN or infinite')
            self._peaks[i] = max(self._peaks[i], peak)
            with _writing_errors(path):
                self._spools[i].write(np.ascontiguousarray(sound.T, np.float32).reshape(-1).view(np.uint8).data)

    def finish(self, gains: Sequence[float] | None = None) -> float:
        """Encodes all files under temporary names, and then renames them.

        Args:
            gains: a factor for each file; None: 1 for all.

        Returns:
            The further factor, the same for all files, that keeps them within full scale; 1.0 if none is needed.

        Raises:
            AudioFileError: they cannot be written.
        """
        gains = gains or [1.0] * len(self._paths)
        common = 1.0
        for path, peak, gain in zip(self._paths, self._peaks, gains, strict=True):
            if peak * gain > 1.0 and not self._is_unlimited(path):
                common = min(common, _HIGHEST / (peak * gain))
        with contextlib.ExitStack() as renames:  # none is renamed before the last one is written
            for path, spool, gain in zip(self._paths, self._spools, gains, strict=True):
                with _writing_errors(path):
                    spool.flush()
                    temporary = renames.enter_context(replacing(path))
                    self._encode(temporary, path.suffix.lower(), spool, gain * common)
        return common

    def close(self) -> None:
        """Frees the memory and the disk space of the waiting samples."""
        for spool in self._spools:
            # Closing flushes the buffer. If the disk is full, that does not matter: the spool is discarded anyway.
            with contextlib.suppress(OSError):
                spool.close()

    def _is_unlimited(self, path: Path) -> bool:
        return self._subtype == 'FLOAT' and has_subtypes(path.suffix)

    def _encode(self, temporary: Path, suffix: str, spool: 'tempfile.SpooledTemporaryFile[bytes]', gain: float) -> None:
        writer = WRITERS[suffix]
        if writer.name == 'M4A':
            samples = _waiting_samples(spool, self._channels, gain)
            encode_m4a(temporary, samples, self._rate, self._channels, self._compression.bit_rate)
            return
        subtype = writer.subtype or self._subtype
        kind = writer.name
        # One and two channels need no mask, unless they are for unusual places.
        has_mask = kind == 'WAV' and self._mask and (self._channels > 2 or self._mask != usual_mask(self._channels))
        kind = 'WAVEX' if has_mask else kind
        if kind in ('WAV', 'WAVEX') and spool.tell() // 4 * _SAMPLE_BYTES[self._subtype] > _MAX_WAV_BYTES:
            kind = 'RF64'
        shape = self._rate, self._channels
        settings = libsndfile_settings(writer, self._compression, channels=self._channels, sample_rate=self._rate)
        with soundfile.SoundFile(os.fsencode(temporary), 'w', *shape, subtype, format=kind, **settings) as file:
            for block in _waiting_samples(spool, self._channels, gain):
                if writer.name == 'OGG':
                    block = np.ascontiguousarray(to_vorbis_order(block.T).T)
                file.write(quantize(block, subtype))
        if has_mask:
            _write_mask(temporary, self._mask)


def _write_mask(path: Path, mask: int) -> None:
    """Writes the mask of loudspeakers into a WAV file of WAVEFORMATEXTENSIBLE, where libsndfile has its own."""
    with open(path, 'r+b') as file:
        # The chunk's name and size precede its fields, of which the mask is the one at byte 20.
        file.seek(file.read(256).index(b'fmt ') + 8 + 20)
        file.write(mask.to_bytes(4, 'little'))


def _waiting_samples(spool: 'tempfile.SpooledTemporaryFile[bytes]', channels: int, gain: float) -> Iterator[np.ndarray]:
    """Yields the samples of a spool times a gain, float32 [n, channels]."""
    spool.seek(0)
    while data := spool.read(_BLOCK * 4 * channels):
        yield np.frombuffer(data, np.float32).reshape(-1, channels) * np.float32(gain)


def _new_spool(folder: Path) -> 'tempfile.SpooledTemporaryFile[bytes]':
    return tempfile.SpooledTemporaryFile(_MAX_BYTES_IN_MEMORY, dir=os.fspath(folder))


@contextlib.contextmanager
def written_together(
    paths: Sequence[str | os.PathLike],
    sample_rate: int,
    *,
    channels: int,
    subtype: Subtype = 'PCM_16',
    mask: int = 0,
    compression: Compression = DEFAULT_COMPRESSION,
) -> Iterator[OutputFiles]:
    """Opens several files that all appear at `finish`, or not at all.

    One gain for all keeps them within full scale, so that targets and residual still add up to the (attenuated)
    mixture.

    Args:
        paths: the files, replaced if they exist.
        sample_rate: in Hz.
        channels: how many each file has.
        subtype: of the samples, where a format has a choice.
        mask: the loudspeakers of the channels as the bits of WAVEFORMATEXTENSIBLE, for a WAV; 0: not known.
        compression: the bit rate or quality, for a format that has a choice.

    Raises:
        ConfigError: a suffix, subtype, rate, channel count or compression that the format does not have.
        AudioFileError: the files cannot be written there.
    """
    outputs = [Path(path) for path in paths]
    for path in outputs:
        check_format(path, subtype, channels=channels, sample_rate=sample_rate)
        check_compression(path.suffix, compression, channels=channels, sample_rate=sample_rate, named=str(path))
        if path.is_dir():
            raise AudioFileError(f'{path}: cannot be written: a folder has that name')
    with contextlib.closing(OutputFiles(outputs, sample_rate, channels, subtype, mask, compression)) as files:
        yield files


@contextlib.contextmanager
def _writing_errors(path: Path) -> Iterator[None]:
    """Turns what fails while `path` is written into AudioFileError."""
    try:
        yield
    except OSError as error:
        raise AudioFileError(f'{path}: cannot be written: {error.strerror or error}') from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip('.').replace('System error', 'the disk is full or failing')
        raise AudioFileError(f'{path}: cannot be written: {reason}') from error


def write_audio(
    path: str | os.PathLike,
    audio: np.ndarray,
    sample_rate: int,
    *,
    subtype: Subtype = 'PCM_16',
    bit_rate: int | None = None,
    quality: float | None = None,
) -> float:
    """Writes float `[channels, T]` in the format of the suffix of `path`, replacing an existing file.

    The file appears under its name only when it is complete. Samples beyond full scale would wrap or clip in all but
    float files; there the whole file is attenuated instead.

    Args:
        path: ends in one of `WRITABLE_SUFFIXES`: .wav, .flac, .ogg, .mp3 and others.
        audio: float `[channels, T]`.
        sample_rate: in Hz, a whole number.
        subtype: of the samples. FLAC has no PCM_32 and no FLOAT; OGG, Opus, MP3 and M4A ignore it.
        bit_rate: of MP3, Opus and M4A, in bit/s for all channels together; by default the encoder's choice.
        quality: of MP3 and OGG, with a variable bit rate: from 0 to 10, the best.

    Returns:
        The gain that was applied to keep within full scale; 1.0 if none.

    Raises:
        ConfigError: a suffix, subtype, rate, channel count, bit rate or quality that the format does not have.
        AudioFileError: non-finite samples, or the file cannot be written there.
    """
    return write_together({path: audio}, sample_rate, subtype=subtype, bit_rate=bit_rate, quality=quality)


def write_together(
    sounds: Mapping[str | os.PathLike, np.ndarray],
    sample_rate: int,
    *,
    subtype: Subtype = 'PCM_16',
    bit_rate: int | None = None,
    quality: float | None = None,
) -> float:
    """Writes several files as `write_audio` writes one: either all of them or none, and with one gain for all.

    This is for sounds that were separated from one mixture: with one gain, targets and residual still add up to the
    (attenuated) mixture.

    Args:
        sounds: each file's path, and its float `[channels, T]`; all of one shape.
        sample_rate: in Hz, a whole number.
        subtype: of the samples, as in `write_audio`.
        bit_rate: as in `write_audio`.
        quality: as in `write_audio`.

    Returns:
        The gain that was applied to all files; 1.0 if none.

    Raises:
        ConfigError: a suffix, subtype, rate, channel count, bit rate or quality that the format does not have.
        AudioFileError: non-finite samples, or a file cannot be written there.
    """
    compression = Compression(bit_rate, quality)
    arrays = {Path(path): np.asarray(audio, np.float32) for path, audio in sounds.items()}
    for audio in arrays.values():
        if audio.ndim != 2:
            raise ValueError(f'audio must be [channels, T], got shape {audio.shape}')
    if not arrays:
        return 1.0
    channels = len(next(iter(arrays.values())))
    with written_together(
        list(arrays), sample_rate, channels=channels, subtype=subtype, compression=compression
    ) as files:
        files.write(list(arrays.values()))
        return files.finish()
