"""How a dataset directory is laid out, and the JSON files in it."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.data.records import Codec
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.buckets import as_path, write_bytes

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """`splits/SPLIT.json`. Written with `complete=False` when a build begins: then it is the plan that a resumed build
    must agree with; the counts are filled in when the last shard is there."""

    name: str  # of the dataset, in TFDS's sense
    split: str
    sample_rate: int  # Hz
    codec: Codec
    clips_per_shard: int  # input clips; unreadable ones are left out, so a shard may hold fewer
    num_inputs: int
    fingerprint: str  # of the inputs and settings that decide the shards' bytes
    complete: bool = False
    shard_lengths: tuple[int, ...] = ()
    num_captions: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    num_bytes: int = 0  # of the shard files
    content: str = ''  # of the finished split: the fingerprint, and which clips were left out
    format_version: int = FORMAT_VERSION

    @property
    def num_shards(self) -> int:
        """Of the finished split, also where the last shards hold no clip."""
        return -(-self.num_inputs // self.clips_per_shard)

    @property
    def num_clips(self) -> int:
        """Without those that were left out; 0 before the split is complete."""
        return sum(self.shard_lengths)


def shard_path(directory: str | os.PathLike, info: SplitInfo, shard: int) -> pathlib.Path:
    """TFDS's name for a shard file."""
    file = f'{info.name}-{info.split}.array_record-{shard:05d}-of-{info.num_shards:05d}'
    return as_path(directory) / file


def summary_path(directory: str | os.PathLike, info: SplitInfo, shard: int) -> pathlib.Path:
    """JSON: `captions` (a list per clip, so that embedding need not read the audio), `skipped`, `num_samples`. Earlier
    versions lack: `ids`; `num_bytes` and `sha256` of the file; `labels` and `sources`, names with their numbers of
    clips."""
    return as_path(directory) / 'splits' / f'{info.split}-{shard:05d}-of-{info.num_shards:05d}.json'


def read_summary(directory: str | os.PathLike, info: SplitInfo, shard: int) -> dict[str, Any]:
    """Raises DataError for a summary that is missing, damaged or of another build."""
    path = summary_path(directory, info, shard)
    summary = read_json(path)
    if not isinstance(summary, dict) or summary.get('fingerprint') != info.fingerprint or 'captions' not in summary:
        raise DataError(f'{path}: not a summary of this build: delete it and run the same `data_prep build` again')
    return summary


def split_info_path(directory: str | os.PathLike, split: str) -> pathlib.Path:
    """JSON: the `SplitInfo`."""
    return as_path(directory) / 'splits' / f'{split}.json'


def split_names(directory: str | os.PathLike) -> list[str]:
    """The splits that a dataset directory has, complete or not."""
    found = (as_path(directory) / 'splits').glob('*.json')
    return sorted(p.stem for p in found if '-of-' not in p.stem)


def read_split_info(directory: str | os.PathLike, split: str) -> SplitInfo:
    """Raises DataError: no such dataset or split, or one written by a later version of this project."""
    path = split_info_path(directory, split)
    if not path.exists():
        if not as_path(directory).is_dir():
            raise DataError(f'{directory}: no such dataset directory (make one with `python -m data_prep build`)')
        names = split_names(directory)
        has = f'it has the splits {", ".join(names)}' if names else 'it was not made by `python -m data_prep build`'
        raise DataError(f'{directory}: no split {split!r} here: {has}')
    values = read_json(path)
    if not isinstance(values, dict) or values.get('format_version') != FORMAT_VERSION:
        raise DataError(f'{path}: not a split description of format {FORMAT_VERSION}: use the version that built it')
    try:
        return from_dict(SplitInfo, values)
    except ConfigError as error:
        raise DataError(f'{path}: damaged split description: {error}') from error


def write_split_info(directory: str | os.PathLike, info: SplitInfo) -> None:
    """Atomically; raises OSError."""
    write_json(split_info_path(directory, info.split), to_dict(info))


def read_json(path: pathlib.Path) -> Any:
    """Raises DataError for a file that is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read as JSON: {error}') from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Atomically: a reader, or a build killed here, sees the old file or the new one. Raises OSError."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + '\n').encode())
