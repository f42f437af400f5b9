"""What every `python -m data_prep build DATASET` takes. A dataset's own flags are in its file in `datasets/`."""

import abc
import dataclasses
import os
import pathlib
import sys

from audiosep_jax.progress import progress_bar
from audiosep_jax.records import Codec
from data_prep.build import build_shards, skipped_path
from data_prep.datasets import ClipSource

PROBLEMS_SHOWN = 20


def num_cores() -> int:
    """Of this process, where the system can tell (Linux), or of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(abc.ABC):
    """What every dataset's build takes; a subclass adds what its own clips are made from."""

    out: pathlib.Path
    """Directory of the dataset. A build that was killed continues there; another split of it may be added."""
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
    jobs: int = dataclasses.field(default_factory=num_cores)
    """Processes; each makes whole shards."""
    retry_skipped: bool = False
    """Make shards that lack unreadable clips again, after the files were mended."""
    strict: bool = False
    """End with exit code 1 if any clip had to be left out."""

    @abc.abstractmethod
    def clips(self) -> ClipSource:
        """The dataset. Raises DataError or ConfigError where its settings name none."""

    def run(self) -> int:
        """Builds the split and says what became of it; returns the exit code."""
        clips = self.clips()
        with progress_bar('building') as progress:
            result = build_shards(
                clips,
                self.out,
                sample_rate=self.sample_rate,
                name=self.name,
                split=self.split,
                clips_per_shard=self.clips_per_shard,
                codec=self.codec,
                jobs=self.jobs,
                retry_skipped=self.retry_skipped,
                progress=progress,
            )
        info = result.info
        made = f'{result.num_shards_made} of {info.num_shards} shards made now' if info.num_shards else ''
        hours = info.num_samples / info.sample_rate / 3600
        print(
            f'{self.out}: split {info.split!r} has {info.num_clips} clips ({hours:.2f} h, {info.num_captions} '
            f'captions) in {info.num_shards} shards; {made}'
        )
        for skipped in result.skipped[:PROBLEMS_SHOWN]:
            print(f'left out: {skipped.reason}', file=sys.stderr)
        if result.skipped:
            where = skipped_path(self.out, info.split)
            print(f'{len(result.skipped)} of {info.num_inputs} clips were left out, listed in {where}', file=sys.stderr)
        print(f'next: python -m data_prep embed {self.out} --encoder words')
        return 1 if self.strict and result.skipped else 0
