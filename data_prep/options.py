"""What every `python -m data_prep build DATASET` takes. A dataset's own flags are in its file in `datasets/`."""

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
    """Of this process, where the system can tell (Linux), or of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(abc.ABC):
    """What every dataset's build takes; a subclass adds what its own clips are made from."""

    out: str
    """Directory of the dataset, also gs://… or s3://…. A build that was killed continues there; another split of it may
    be added."""
    name: str | None = None
    """Name of the dataset (default: made from the last part of --out)."""
    split: str = 'train'
    """Name of the split."""
    sample_rate: int = 32000
    """Hz of the shards; files of another rate are resampled."""
    codec: Codec = 'flac'
    """How audio is kept: flac, or pcm16 for hosts short of cores."""
    clips_per_shard: int = 2000
    """Clips in a shard file."""
    shortest: float = 0.0
    """Leave out clips shorter than this many seconds."""
    jobs: int = dataclasses.field(default_factory=num_cores)
    """Processes; each makes whole shards."""
    shard_range: str | None = None
    """FIRST:END, as 20:30, to make only these shards (END not included), one job of an array of jobs that run at any
    time on any host. The job that makes the last missing shard finishes the split."""
    retry_skipped: bool = False
    """Make shards that lack unreadable clips again, after the files were mended."""
    strict: bool = False
    """End with exit code 1 if any clip had to be left out, other than those excluded on purpose."""
    runner: Runner = 'local'
    """Local processes, or an Apache Beam pipeline; --out must then be a place that all its workers reach."""
    beam_args: str = ''
    """Beam's own flags in one text, after an equals sign: --beam-args='--runner=FlinkRunner --parallelism=64'."""

    @abc.abstractmethod
    def clips(self) -> ClipSource:
        """The dataset. Raises DataError or ConfigError where its settings name none."""

    def run(self) -> int:
        """Builds the split and says what became of it; returns the exit code."""
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
        then = f'stage {self.out} --to FOLDER' if is_bucket(self.out) else f'embed {self.out} --encoder words'
        print(f'next: python -m data_prep {then}')
        return 1 if self.strict and any(skipped.reason != 'excluded' for skipped in result.skipped) else 0


def parse_shard_range(text: str | None) -> tuple[int, int | None] | None:
    """'20:30' as (20, 30); either number may be left out. Raises ConfigError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r'(\d*):(\d*)', text)
    if not match:
        raise ConfigError(f'--shard-range {text!r}: give FIRST:END, as 20:30')
    first, end = match.groups()
    return int(first or 0), int(end) if end else None


def print_result(out: str | os.PathLike, result: BuildResult) -> None:
    """Says what became of a build; what was left out goes to stderr, cut short."""
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
