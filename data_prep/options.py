"""The options of every `python -m data_prep build DATASET`. Each dataset's own flags are in its file in `datasets/`."""

import abc
import dataclasses
import os
import re
import shlex
import sys

from audiosep_jax.data.records import Codec
from audiosep_jax.errors import ConfigError
from audiosep_jax.progress import printed_progress, progress_bar
from audiosep_jax.storage.buckets import is_bucket
from data_prep.build import BuildResult, Runner, build_shards, skipped_path
from data_prep.clips.base import ClipSource

PROBLEMS_SHOWN = 20


def num_cores() -> int:
    """Returns the number of cores of this process if the system can tell (Linux), else of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(abc.ABC):
    """The options of every dataset's build; a subclass adds those that find its clips."""

    out: str
    """Directory of the dataset, also gs://… or s3://…. An interrupted build continues there; it may already hold other
    splits of the dataset."""
    name: str | None = None
    """Name of the dataset (default: made from the last part of --out)."""
    split: str = 'train'
    """Name of the split."""
    sample_rate: int = 32000
    """Sample rate of the shards in Hz; files with another rate are resampled."""
    codec: Codec = 'flac'
    """How audio is stored: flac, or pcm16 for hosts with few cores."""
    clips_per_shard: int = 2000
    """Number of clips in a shard file."""
    shortest: float = 0.0
    """Leave out clips shorter than this many seconds."""
    jobs: int = dataclasses.field(default_factory=num_cores)
    """Number of processes; each makes whole shards."""
    shard_range: str | None = None
    """Make only these shards: FIRST:END, such as 20:30, without END. The jobs of an array may run at any time on any
    host; the one that makes the last missing shard finishes the split."""
    retry_skipped: bool = False
    """Rebuild shards that left clips out, for example after the files were repaired."""
    strict: bool = False
    """Exit with code 1 if any clip was left out, apart from those excluded on purpose."""
    runner: Runner = 'local'
    """Local processes, or an Apache Beam pipeline, all of whose workers must have access to --out."""
    beam_args: str = ''
    """Beam's own flags as one string, after an equals sign: --beam-args='--runner=FlinkRunner --parallelism=64'."""

    @abc.abstractmethod
    def clips(self) -> ClipSource:
        """Returns the clips of the dataset. Raises DataError or ConfigError if the options do not lead to any."""

    def run(self) -> int:
        """Builds the split, prints the result and returns the exit code."""
        clips = self.clips()
        with progress_bar('building') as bar, printed_progress('built', bar) as progress:
            result = build_shards(
                clips,
                self.out,
                sample_rate=self.sample_rate,
                name=self.name,
                split=self.split,
                clips_per_shard=self.clips_per_shard,
                codec=self.codec,
                shortest=self.shortest,
                jobs=self.jobs,
                shard_range=parse_shard_range(self.shard_range),
                retry_skipped=self.retry_skipped,
                runner=self.runner,
                beam_args=shlex.split(self.beam_args),
                progress=progress,
            )
        print_result(self.out, result)
        if not result.info.complete:
            return 0
        then = f'stage {self.out} --to FOLDER' if is_bucket(self.out) else f'embed {self.out} --encoder wordllama'
        print(f'next: python -m data_prep {then}')
        return 1 if self.strict and any(skipped.reason != 'excluded' for skipped in result.skipped) else 0


def parse_shard_range(text: str | None) -> tuple[int, int | None] | None:
    """Returns '20:30' as (20, 30); either number may be omitted. Raises ConfigError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r'(\d*):(\d*)', text)
    if not match:
        raise ConfigError(f'--shard-range {text!r}: give FIRST:END, as 20:30')
    first, end = match.groups()
    return int(first or 0), int(end) if end else None


def print_result(out: str | os.PathLike, result: BuildResult) -> None:
    """Prints the result of a build, and the first clips that were left out to stderr."""
    info = result.info
    if not info.complete:
        print(
            f'{out}: split {info.split!r}: {result.num_shards_made} shards made now; {result.num_shards_missing} of '
            f'{info.num_shards} are still missing; the job that makes the last of them finishes the split'
        )
        return
    hours = info.num_samples / info.sample_rate / 3600
    print(
        f'{out}: split {info.split!r} has {info.num_clips} clips ({hours:.2f} h, {info.num_captions} '
        f'captions) in {info.num_shards} shard{"s" * (info.num_shards != 1)}; '
        f'{result.num_shards_made} of {info.num_shards} shards made now'
    )
    counts = ', '.join(f'{reason} {count}' for reason, count in result.counts.items())
    print(f'clips: {counts}')
    for skipped in result.skipped[:PROBLEMS_SHOWN]:
        print(f'left out ({skipped.reason}): {skipped.message}', file=sys.stderr)
    if result.skipped:
        in_all = info.num_clips + len(result.skipped)
        where = skipped_path(out, info.split)
        print(f'{len(result.skipped)} of {in_all} clips were left out, listed in {where}', file=sys.stderr)
