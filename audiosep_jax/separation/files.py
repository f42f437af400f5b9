"""From a recording in a file to the files of its sounds, in memory that does not depend on its length."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from audiosep_jax.audio.compression import DEFAULT_COMPRESSION, Compression
from audiosep_jax.audio.formats import held_rate
from audiosep_jax.audio.loudness import LoudnessMatch
from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.resampling import Resampler
from audiosep_jax.audio.writing import Subtype, has_subtypes, subtype_like, written_together
from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.separation.spans import Span, stream_spans
from audiosep_jax.separation.strength import check_strength
from audiosep_jax.storage.atomic import check_writable

# The command line checks its flags before it loads JAX, which the separator imports.
if TYPE_CHECKING:
    from audiosep_jax.separation.queries import Embedded
    from audiosep_jax.separation.separator import Queries, Separation, Separator

# Called with the seconds done and the seconds in all, which are None if the file's header does not state them.
FileProgress = Callable[[float, float | None], None]


class Recording(Protocol):
    """What is read of a recording: a `SoundInput`, or a pipe."""

    rate: int
    channels: int
    mask: int
    seconds: float | None
    subtype: str | None

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 [channels, n]."""
        ...


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """What is done to every recording.

    Attributes:
        spans: the parts to separate; empty: all of it.
        per_channel: see `Separator.separate`.
        strength: see `strength.py`.
        keep_loudness: bring each sound to the loudness of its recording, by at most 24 dB.
        subtype: of the samples; None: the recording's, at least PCM_16.
        compression: of lossy formats.

    Raises:
        ConfigError: a strength that is not between 0 and 1.
    """

    spans: tuple[Span, ...] = ()
    per_channel: bool = False
    strength: float = 1.0
    keep_loudness: bool = False
    subtype: Subtype | None = None
    compression: Compression = DEFAULT_COMPRESSION

    def __post_init__(self) -> None:
        check_strength(self.strength)


@dataclasses.dataclass(frozen=True)
class WrittenSounds:
    """What was written.

    Attributes:
        seconds: of the recording.
        sample_rate: of the files, Hz.
        subtype: of the samples; None for formats without a choice.
        gain: that kept all files within full scale; 1.0 if none was needed.
        loudness_gains: the factor of each file for its loudness.
    """

    seconds: float
    sample_rate: int
    subtype: Subtype | None
    gain: float
    loudness_gains: tuple[float, ...]


def separate_file(
    separator: 'Separator',
    source: str | os.PathLike,
    queries: 'Queries | Embedded',
    targets: Sequence[str | os.PathLike],
    *,
    residual: str | os.PathLike | None = None,
    per_channel: bool = False,
    strength: float = 1.0,
    keep_loudness: bool = False,
    subtype: Subtype | None = None,
    bit_rate: int | None = None,
    quality: float | None = None,
    progress: FileProgress | None = None,
) -> WrittenSounds:
    """Separates a sound file into one file for each query, as `audiosep-jax separate` does.

    The files have the rate, length and channels of the source. They replace existing ones, and appear together when
    they are complete, or not at all.

    Args:
        separator: the model.
        source: the sound file, of any length.
        queries: see `Separator.separate`.
        targets: a file for each query, all of them of one format.
        residual: a file for the residual.
        per_channel: see `Separator.separate`.
        strength: see `Separator.separate`.
        keep_loudness: bring each sound to the loudness of the source, by at most 24 dB.
        subtype: of the samples, as in `write_audio`; by default the source's, at least PCM_16.
        bit_rate: as in `write_audio`.
        quality: as in `write_audio`.
        progress: called after each piece with the seconds done and the seconds in all, which are None if the source's
            header does not state them. What it raises ends the separation, and no file is written.

    Raises:
        ConfigError: another number of files than queries, or settings that cannot work.
        QueryError: see `Separator.embed`.
        AudioFileError: the source cannot be read, or a file cannot be written.
    """
    from audiosep_jax.separation.queries import Embedded

    options = FileOptions((), per_channel, strength, keep_loudness, subtype, Compression(bit_rate, quality))
    embedded = queries if isinstance(queries, Embedded) else separator.prepare(queries)
    if len(targets) != len(embedded.queries):
        raise ConfigError(f'{len(targets)} files for {len(embedded.queries)} queries: give one for each')
    files, last = [Path(path) for path in targets], None if residual is None else Path(residual)
    for path in (*files, *([last] if last else [])):
        check_writable(path, '', error=AudioFileError)
    with open_sound(source) as sound:
        return write_sounds(separator, sound, embedded, files, last, options, progress)


def write_sounds(
    separator: 'Separator',
    sound: Recording,
    embedded: 'Embedded',
    targets: Sequence[Path],
    residual: Path | None,
    options: FileOptions,
    progress: FileProgress | None = None,
) -> WrittenSounds:
    """Does what `separate_file` does with an open recording. Without `targets`, only the residual is written."""
    outputs = [*targets, *([residual] if residual is not None else [])]
    suffix = outputs[0].suffix
    subtype = options.subtype or subtype_like(sound.subtype, suffix)
    rate = held_rate(suffix, sound.rate)
    resamplers = [Resampler(sound.rate, rate, sound.channels) for _ in outputs]
    with written_together(
        outputs,
        rate,
        channels=sound.channels,
        subtype=subtype,
        mask=sound.mask,
        compression=options.compression,
    ) as files:
        match = LoudnessMatch(len(outputs), sound.rate, sound.channels) if options.keep_loudness else None
        samples = 0
        for piece in separated_pieces(separator, sound.blocks(), sound.rate, embedded, options, live=False):
            parts = piece.blended(options.strength)
            sounds = [*(parts.targets if targets else ()), *([parts.residual] if residual is not None else [])]
            files.write([resampler.push(x) for resampler, x in zip(resamplers, sounds, strict=True)])
            if match is not None:
                match.push(piece.mixture, sounds)
            samples += piece.residual.shape[-1]
            done = samples / sound.rate
            if progress is not None and (sound.seconds is None or done < sound.seconds):
                progress(done, sound.seconds)
        files.write([resampler.finish() for resampler in resamplers])
        seconds = samples / sound.rate
        if progress is not None:
            progress(seconds, seconds)
        gains = match.gains() if match is not None else [1.0] * len(outputs)
        gain = files.finish(gains)
    return WrittenSounds(seconds, rate, subtype if has_subtypes(suffix) else None, gain, tuple(gains))


def separated_pieces(
    separator: 'Separator',
    blocks: Iterator[np.ndarray],
    rate: int,
    embedded: 'Embedded',
    options: FileOptions,
    *,
    live: bool,
) -> Iterator['Separation']:
    """Yields the pieces of a recording that arrives in blocks, float32 [channels, n], before they are blended."""
    per_channel = options.per_channel
    if options.spans:
        return stream_spans(
            separator, blocks, embedded, options.spans, sample_rate=rate, per_channel=per_channel, live=live
        )
    return separator.stream(blocks, embedded, sample_rate=rate, per_channel=per_channel, live=live)
