"""The layout of a dataset directory, and the JSON descriptions of splits and shards in it."""

import dataclasses
import os
import pathlib
import re
from typing import NotRequired, TypedDict

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.data.records import Codec
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.storage.json_files import MAX_LIST_BYTES, read_json, write_json

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """The description of a split, `splits/SPLIT.json`.

    A build writes it with `complete=False` at its start. Then it is the plan that a resumed build must agree with; the
    counts are filled in after the last shard.
    """

    name: str  # the dataset's name in TFDS
    split: str
    sample_rate: int  # Hz
    codec: Codec
    clips_per_shard: int  # number of inputs; unreadable ones are left out, so a shard may hold fewer clips
    num_inputs: int
    fingerprint: str  # hash of the inputs and settings that determine the shards' bytes
    complete: bool = False
    shard_lengths: tuple[int, ...] = ()
    num_captions: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    num_bytes: int = 0  # size of all shard files
    content: str = ''  # hash of the fingerprint and of which clips were left out; empty before the split is complete
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ('name', 'split'):
            if not re.fullmatch(r'[^/\\\0]+', getattr(self, name)):
                raise ConfigError(f'{name}: {getattr(self, name)!r} cannot be a part of a file name')
        for name, least in (('sample_rate', 1), ('clips_per_shard', 1), ('num_inputs', 0), ('num_samples', 0)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name}: {getattr(self, name)} is less than {least}')
        if not all(0 <= length <= self.clips_per_shard for length in self.shard_lengths):
            raise ConfigError(f'shard_lengths: not all of them are from 0 to {self.clips_per_shard}, clips_per_shard')
        if self.complete and len(self.shard_lengths) != self.num_shards:
            raise ConfigError(f'shard_lengths: {len(self.shard_lengths)} of {self.num_shards} shards')

    @property
    def num_shards(self) -> int:
        """The number of shards of the complete split, including those without any clip."""
        return -(-self.num_inputs // self.clips_per_shard)

    @property
    def num_clips(self) -> int:
        """The number of clips, excluding those that were left out; 0 before the split is complete."""
        return sum(self.shard_lengths)


class Skipped(TypedDict):
    """A clip that was left out of a shard. Older versions had no named reasons, and the message under `reason`."""

    id: str
    reason: str
    message: NotRequired[str]


class Summary(TypedDict):
    """The description of a shard; see `summary_path`."""

    fingerprint: str
    captions: list[list[str]]
    skipped: list['Skipped']
    num_samples: int
    ids: NotRequired[list[str]]
    labels: NotRequired[dict[str, int]]
    sources: NotRequired[dict[str, int]]
    num_bytes: NotRequired[int]
    sha256: NotRequired[str]


def shard_path(directory: str | os.PathLike, info: SplitInfo, shard: int) -> pathlib.Path:
    """Returns the path of a shard file, whose name is TFDS's."""
    file = f'{info.name}-{info.split}.array_record-{shard:05d}-of-{info.num_shards:05d}'
    return as_path(directory) / file


def summary_path(directory: str | os.PathLike, info: SplitInfo, shard: int) -> pathlib.Path:
    """Returns the path of a shard's summary, a JSON file.

    It holds `captions` (a list for each clip, so that embedding need not read the audio), `skipped` and `num_samples`.
    Summaries of earlier versions lack `ids`, the file's `num_bytes` and `sha256`, and `labels` and `sources`, which are
    names with their numbers of clips.
    """
    return as_path(directory) / 'splits' / f'{info.split}-{shard:05d}-of-{info.num_shards:05d}.json'


def read_summary(directory: str | os.PathLike, info: SplitInfo, shard: int) -> Summary:
    """Returns the summary of a shard.

    Raises:
        DataError: the summary is missing, damaged or from another build.
    """
    path = summary_path(directory, info, shard)
    remedy = 'not a summary of this build: delete it and run the same `data_prep build` again'
    summary: Summary = read_json(path, Summary, remedy=remedy, max_bytes=MAX_LIST_BYTES)
    if summary['fingerprint'] != info.fingerprint:
        raise DataError(f'{path}: {remedy}')
    length = info.shard_lengths[shard] if info.complete else len(summary['captions'])
    for name, found in (('captions', summary['captions']), ('ids', summary.get('ids', summary['captions']))):
        if len(found) != length:
            raise DataError(f'{path}: {length} clips, but {name} of {len(found)}: {remedy}')
    return summary


def split_info_path(directory: str | os.PathLike, split: str) -> pathlib.Path:
    """Returns the path of a split's description, the `SplitInfo` as JSON."""
    return as_path(directory) / 'splits' / f'{split}.json'


def split_names(directory: str | os.PathLike) -> list[str]:
    """Returns the names of the splits in a dataset directory, including incomplete ones."""
    found = (as_path(directory) / 'splits').glob('*.json')
    return sorted(p.stem for p in found if '-of-' not in p.stem)


def read_split_info(directory: str | os.PathLike, split: str) -> SplitInfo:
    """Returns the description of a split.

    Raises:
        DataError: there is no such dataset or split, or its description is damaged or from another version.
    """
    path = split_info_path(directory, split)
    if not path.exists():
        if not as_path(directory).is_dir():
            raise DataError(f'{directory}: no such dataset directory (make one with `python -m data_prep build`)')
        names = split_names(directory)
        has = f'it has the splits {", ".join(names)}' if names else 'it was not made by `python -m data_prep build`'
        raise DataError(f'{directory}: no split {split!r} here: {has}')
    again = 'run the same `data_prep build` again'
    values = read_json(path, dict, remedy=f'delete it and {again}', max_bytes=MAX_LIST_BYTES)
    if values.get('format_version') != FORMAT_VERSION:
        raise DataError(f'{path}: not a split description of format {FORMAT_VERSION}: use the version that built it')
    try:
        info = from_dict(SplitInfo, values)
    except ConfigError as error:
        raise DataError(f'{path}: damaged split description: {error}: delete it and {again}') from error
    if info.split != split:
        raise DataError(f'{path}: describes the split {info.split!r}: delete it and {again}')
    return info


def write_split_info(directory: str | os.PathLike, info: SplitInfo) -> None:
    """Writes the description of a split atomically. Raises OSError if that fails."""
    write_json(split_info_path(directory, info.split), to_dict(info))
