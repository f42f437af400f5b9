"""Does the work of a request: reads an uploaded recording, separates it, and writes the sounds and a picture.

It does not depend on Gradio. The page (`page.py`) and the endpoints for programs (`api.py`) use it.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.writing import Subtype, write_together
from audiosep_jax.errors import AudioFileError, ConfigError, QueryError, explained
from audiosep_jax.plots import spectrogram_panels
from audiosep_jax.separation.cancellation import cancels
from audiosep_jax.separation.outputs import RESIDUAL, plan_outputs, query_names
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.separator import Progress, Separator
from audiosep_jax.separation.strength import check_strength

_SUBTYPE: Subtype = 'PCM_24'  # the finest that every browser plays
# Samples per second of the time limit, over all channels: four channels at 48 kHz, or two at 96 kHz.
_MAX_SAMPLES_PER_SECOND = 4 * 48_000
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one request.

    Attributes:
        seconds: of a recording.
        megabytes: of the uploaded file, in 10^6 bytes.
        queries: how many sounds one request may extract.
        characters: of one description.

    Raises:
        ConfigError: a limit that admits nothing.
    """

    seconds: float = 600.0
    megabytes: int = 200
    queries: int = 6
    characters: int = 500

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ConfigError(f'--max-seconds {self.seconds:g}: must be above 0')
        if self.megabytes < 1:
            raise ConfigError(f'--max-megabytes {self.megabytes}: must be at least 1')
        if self.queries < 1 or self.characters < 1:
            raise ConfigError('a page needs at least one query of at least one character')


@dataclasses.dataclass(frozen=True)
class Answer:
    """The files that answer a request.

    Attributes:
        targets: a WAV file for each description, in the order of the request.
        residual: the WAV file of the rest.
        picture: a PNG of the spectrograms, if one was asked for.
        note: a remark for the user; may be empty.
    """

    targets: dict[str, Path]
    residual: Path
    picture: Path | None
    note: str


def extract(
    separator: Separator,
    recording: Path,
    queries: Sequence[str],
    unwanted: Sequence[str],
    strength: float | None,
    *,
    folder: Path,
    limits: Limits,
    has_picture: bool = True,
    progress: Progress | None = None,
) -> Answer:
    """Does what `answer` does, for descriptions that are a list each.

    Args:
        separator, recording, strength, folder, limits: see `answer`.
        queries: the sounds to extract.
        unwanted: the sounds to exclude; may be empty.
        has_picture: whether to draw the spectrograms.
        progress: see `Separator.separate`.

    Raises:
        AudioFileError, ConfigError, QueryError: see `answer`.
    """
    strength = check_strength(strength)
    texts, excluded = _checked(queries, limits), _checked(unwanted, limits)
    if not texts:
        raise QueryError('nothing to extract: describe a sound, for example: a dog barking')
    embedded = separator.prepare([Query.text(text).without(*excluded) for text in texts])
    mixture, rate = _read(recording, limits)
    separation = separator.separate(mixture, embedded, sample_rate=rate, strength=strength, progress=progress)
    sounds = [*separation.targets, separation.residual]

    names = [*query_names(texts), RESIDUAL]
    plan = plan_outputs(folder, [Path(recording.name)], names, num_queries=len(texts), subtype=_SUBTYPE)
    paths = plan[Path(recording.name)]
    gain = write_together(dict(zip(paths, sounds, strict=True)), rate, subtype=_SUBTYPE)
    picture = folder / f'{paths[-1].stem.removesuffix(RESIDUAL)}spectrograms.png' if has_picture else None
    if picture is not None:
        labels = _distinct(['recording', *map(shortened, texts), 'residual'])
        spectrogram_panels(picture, dict(zip(labels, [mixture, *sounds], strict=True)), rate)
    notes = []
    if gain < 1:
        notes.append(f'All files were attenuated by {-20 * np.log10(gain):.1f} dB to stay within full scale.')
    if cancels(mixture):
        notes.append('The channels cancel in their mean, which is what is listened to: upload each channel by itself.')
    return Answer(dict(zip(texts, paths, strict=False)), paths[-1], picture, ' '.join(notes))


def refusal(error: Exception, recording: Path | None, place: Path) -> str | None:
    """Returns what to tell the user about an error, without paths of this machine; None: it is a fault of ours.

    Args:
        error: what was raised.
        recording: the uploaded file, if there is one.
        place: the folder of the request's results; it is inside the folder of all results.
    """
    explanation = explained(error)
    if explanation is None:
        return None
    text = explanation[0]
    for private in (str(recording), f'{place}/', f'{place.parent}/'):
        text = text.replace(private, recording.name if recording and private == str(recording) else '')
    _log.info('refused: %s', text)
    return text


def _checked(descriptions: Sequence[str], limits: Limits) -> list[str]:
    """Returns the descriptions without duplicates. Raises QueryError."""
    lines = list(dict.fromkeys(line.strip() for line in descriptions))
    if len(lines) > limits.queries:
        raise QueryError(f'{len(lines)} descriptions are too many; at most {limits.queries} at once')
    for line in lines:
        if not line:
            raise QueryError('a description is empty')
        if len(line) > limits.characters:
            raise QueryError(f'a description of {len(line)} characters is too long; at most {limits.characters}')
        if not line.isprintable() and any('\ud800' <= c <= '\udfff' for c in line):
            raise QueryError('a description is not valid text: type it again')
    return lines


def _read(recording: Path, limits: Limits) -> tuple[np.ndarray, int]:
    """Returns the samples, float32 [channels, T], and the rate in Hz.

    A recording that is too long is refused before it is decoded, because hours of silence are a small FLAC file.
    """
    blocks: list[np.ndarray] = []
    frames = 0
    with open_sound(recording) as sound:
        _check_length((sound.seconds or 0) * sound.rate, sound.channels, sound.rate, limits)
        for block in sound.blocks():  # the header may state too short a length, or none
            frames += block.shape[-1]
            _check_length(frames, sound.channels, sound.rate, limits)
            blocks.append(block)
    return np.concatenate(blocks, axis=-1), sound.rate


def _check_length(frames: float, channels: int, rate: int, limits: Limits) -> None:
    if frames > limits.seconds * rate:
        raise AudioFileError(
            f'the recording is {frames / rate / 60:.1f} minutes long, this page accepts up to {limits.seconds / 60:g}; '
            'cut it, or use the command line, which accepts any length'
        )
    if frames * channels > limits.seconds * _MAX_SAMPLES_PER_SECOND:
        raise AudioFileError(
            f'the recording has {channels} channels at {rate} Hz, too many samples for this page; cut it'
        )


def shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f'{text[: limit - 1]}…'


def _distinct(labels: list[str]) -> list[str]:
    """Makes labels unique by invisible characters: one may be 'recording', or two may be shortened alike."""
    return [label + '\u200b' * labels[:i].count(label) for i, label in enumerate(labels)]
