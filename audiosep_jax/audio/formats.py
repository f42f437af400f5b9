"""The formats of sound files, by suffix: the one table of what is read, written, played and found in a folder.

To support another format, add one line to `FORMATS`. Suffixes are lower case; callers compare `path.suffix.lower()`.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

MAX_FLAC_RATE = 655350  # Hz

_ANY_RATE = range(1, 2**31)
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclasses.dataclass(frozen=True)
class Writer:
    """How a format is written, and the limits beyond which libsndfile ends the process or gives an empty message.

    Attributes:
        name: libsndfile's name of the format; 'M4A', which PyAV writes, is not one of them.
        subtype: the only subtype that the format has; None: the caller chooses one.
        max_channels: the most channels of a file.
        rates: the sample rates that a file may have, in Hz.
        has_bit_rate: its encoder can be given a bit rate.
        has_quality: its encoder can be given a quality, for a variable bit rate.
    """

    name: str
    subtype: str | None = None
    max_channels: int = 1024
    rates: Collection[int] = _ANY_RATE
    has_bit_rate: bool = False
    has_quality: bool = False


@dataclasses.dataclass(frozen=True)
class SoundFormat:
    """A format of sound files.

    Attributes:
        suffix: how its files are named, with the dot.
        writer: how it is written; None: it is only read.
        in_container: PyAV reads it; libsndfile reads all others.
        has_pictures: it is a format of video.
        is_alias: another line writes the same format under a better-known suffix.
        refused_output: a path of this suffix is refused as an output, because it hardly names a folder. All suffixes
            that can be written name files anyway.
        in_browsers: all browsers play it.
        in_benchmarks: evaluation sets come in it.
        dataset_rank: where published datasets hold a clip in several formats, the lowest rank is taken: lossless
            files, then lossy ones, then those that need PyAV, then videos. None: published datasets do not use it.
        in_folders: datasets that users assemble themselves (folders, WebDataset) may use it.
    """

    suffix: str
    writer: Writer | None = None
    in_container: bool = False
    has_pictures: bool = False
    is_alias: bool = False
    refused_output: bool = False
    in_browsers: bool = False
    in_benchmarks: bool = False
    dataset_rank: int | None = None
    in_folders: bool = True


def _container(suffix: str, writer: Writer | None = None, **fields: Any) -> SoundFormat:
    return SoundFormat(suffix, writer, in_container=True, **fields)


def _video(suffix: str, **fields: Any) -> SoundFormat:
    return SoundFormat(suffix, in_container=True, has_pictures=True, **fields)


# Messages name the suffixes in this order, and within a rank the earlier format is preferred.
FORMATS = (
    SoundFormat('.wav', Writer('WAV'), in_browsers=True, in_benchmarks=True, dataset_rank=1),
    SoundFormat(
        '.flac',
        Writer('FLAC', max_channels=8, rates=range(1, MAX_FLAC_RATE + 1)),
        in_browsers=True,
        in_benchmarks=True,
        dataset_rank=0,
    ),
    SoundFormat(
        '.ogg',
        Writer('OGG', 'VORBIS', max_channels=255, rates=range(1, 200001), has_quality=True),
        in_browsers=True,
        in_benchmarks=True,
        dataset_rank=2,
    ),
    SoundFormat('.opus', Writer('OGG', 'OPUS', max_channels=255, rates=_OPUS_RATES, has_bit_rate=True), dataset_rank=2),
    SoundFormat(
        '.mp3',
        Writer('MP3', 'MPEG_LAYER_III', max_channels=2, rates=_MP3_RATES, has_bit_rate=True, has_quality=True),
        in_browsers=True,
        in_benchmarks=True,
        dataset_rank=2,
    ),
    SoundFormat('.aiff', Writer('AIFF'), dataset_rank=1),
    SoundFormat('.aif', Writer('AIFF'), is_alias=True, dataset_rank=1),
    SoundFormat('.caf', Writer('CAF')),
    SoundFormat('.w64', Writer('W64')),
    SoundFormat('.oga', refused_output=True),
    SoundFormat('.au'),
    SoundFormat('.aifc', in_folders=False),
    SoundFormat('.rf64', in_folders=False),
    _container('.m4a', Writer('M4A', 'AAC', max_channels=6, rates=_AAC_RATES, has_bit_rate=True), dataset_rank=3),
    _container('.mka', dataset_rank=3),
    _container('.aac', refused_output=True, dataset_rank=3),
    _container('.wma', refused_output=True),
    _video('.mp4', refused_output=True, dataset_rank=4),
    _video('.webm', refused_output=True, dataset_rank=4),
    _video('.mkv', refused_output=True, dataset_rank=4),
    _video('.mov', dataset_rank=4),
    _video('.m4v', dataset_rank=4),
    _video('.avi', dataset_rank=4),
    _video('.flv', dataset_rank=4),
    _video('.3gp', dataset_rank=4),
    _video('.wmv', dataset_rank=4),
    _video('.ts', dataset_rank=4),
    _video('.mpg', in_folders=False),
    _video('.mpeg', in_folders=False),
    _video('.ogv', in_folders=False),
)


def _suffixes(chosen: Callable[[SoundFormat], Any]) -> tuple[str, ...]:
    return tuple(form.suffix for form in FORMATS if chosen(form))


def held_rate(suffix: str, rate: int) -> int:
    """Returns the sample rate (Hz) of a file for a sound at `rate`: the next higher one that the format has, if any.

    Formats that hold any rate up to a limit keep theirs, also beyond the limit: `check_format` refuses that.
    """
    writer = WRITERS.get(suffix.lower())
    if writer is None or rate in writer.rates or isinstance(writer.rates, range):
        return rate
    return min((held for held in writer.rates if held > rate), default=max(writer.rates))


def dataset_suffixes(*, videos_first: bool = False) -> tuple[str, ...]:
    """Returns the suffixes of published datasets' files, the preferred ones first."""
    published = [form for form in FORMATS if form.dataset_rank is not None]
    published.sort(key=lambda form: (form.has_pictures != videos_first, form.dataset_rank))
    return tuple(form.suffix for form in published)


# The suffixes by which a folder's sounds are recognized; a file that is named itself may have any name.
READABLE_SUFFIXES = _suffixes(lambda form: True)
CONTAINER_SUFFIXES = _suffixes(lambda form: form.in_container)
WRITERS = {form.suffix: form.writer for form in FORMATS if form.writer}
WRITABLE_SUFFIXES = tuple(WRITERS)
# What `--format` may name.
OUTPUT_FORMATS = tuple(form.suffix[1:] for form in FORMATS if form.writer and not form.is_alias)
# The suffixes by which an output path means a file. A folder's name may have a dot too, so others do not.
OUTPUT_FILE_SUFFIXES = _suffixes(lambda form: form.writer or form.refused_output)
BROWSER_SUFFIXES = _suffixes(lambda form: form.in_browsers)
BENCHMARK_SUFFIXES = _suffixes(lambda form: form.in_benchmarks)
# The suffixes of files in datasets that users assemble themselves.
FOLDER_SUFFIXES = frozenset(_suffixes(lambda form: form.in_folders))
