"""`python -m data_prep build|embed|verify`: from sound files to what training reads. Exit codes as in `audiosep-jax`:
2 for flags, 1 for files and data, 0 otherwise."""

import abc
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from audiosep_jax.encoders import load_encoder
from audiosep_jax.errors import explained
from audiosep_jax.progress import progress_bar
from audiosep_jax.records import Codec
from data_prep.build import build_shards, skipped_path
from data_prep.datasets import ClipSource
from data_prep.datasets.manifest import read_manifest
from data_prep.datasets.synthetic import SyntheticClips
from data_prep.embed import embed_captions
from data_prep.verify import verify_dataset

_PROBLEMS_SHOWN = 20


def _num_cores() -> int:
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
    jobs: int = dataclasses.field(default_factory=_num_cores)
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
        for skipped in result.skipped[:_PROBLEMS_SHOWN]:
            print(f'left out: {skipped.reason}', file=sys.stderr)
        if result.skipped:
            where = skipped_path(self.out, info.split)
            print(f'{len(result.skipped)} of {info.num_inputs} clips were left out, listed in {where}', file=sys.stderr)
        print(f'next: python -m data_prep embed {self.out} --encoder words')
        return 1 if self.strict and result.skipped else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildManifest(BuildOptions):
    """Shards from audio files listed with their captions in a JSON (AudioSep's datafile format) or CSV file."""

    source: pathlib.Path
    """The manifest: {"data": [{"wav": …, "caption": …}]}, or a .csv with columns wav, caption. Relative paths start at
    its folder."""

    def clips(self) -> ClipSource:
        return read_manifest(self.source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSynthetic(BuildOptions):
    """Shards of procedural sounds with captions: nothing to download."""

    num_clips: Annotated[int, tyro.conf.arg(name='clips')]
    """How many."""
    seed: int = 0
    """Which ones: another seed gives other sounds of the same classes."""
    seconds: float = 5.0
    """Length of a clip."""

    def clips(self) -> ClipSource:
        return SyntheticClips(self.num_clips, self.seed, self.seconds)


def build(
    dataset: Annotated[BuildManifest, tyro.conf.subcommand('manifest')]
    | Annotated[BuildSynthetic, tyro.conf.subcommand('synthetic')],
) -> int:
    """Build the shards of a dataset's split."""
    return dataset.run()


def embed(
    shards: tyro.conf.Positional[pathlib.Path],
    /,
    encoder: str = 'words',
    split: tuple[str, ...] = (),
) -> int:
    """Fill the embedding cache: every caption through a query encoder.

    Args:
        shards: Directory of the dataset.
        encoder: Query encoder: words; clap or clip (fetched from the hub); or a path of CLAP or CLIP weights.
        split: Only these splits (default: all complete ones).
    """
    loaded = load_encoder(encoder)
    with progress_bar('embedding') as progress:
        rows = embed_captions(shards, loaded, splits=split, progress=progress)
    print(f'{shards}: {rows} captions embedded now with {encoder!r} (E = {loaded.embedding_size}); complete')
    return 0


def verify(shards: tyro.conf.Positional[pathlib.Path], /, jobs: int = _num_cores()) -> int:
    """Check that every record decodes and that counts and caches agree.

    Args:
        shards: Directory of the dataset.
        jobs: Threads that decode.
    """
    with progress_bar('verifying') as progress:
        found = verify_dataset(shards, jobs=jobs, progress=progress)
    encoders = ', '.join(found.encoders) or 'none'
    print(
        f'{shards}: {found.num_clips} clips decoded ({found.seconds / 3600:.2f} h, {found.num_captions} captions, '
        f'{found.num_silent} silent), embeddings: {encoders}'
    )
    for note in found.notes:
        print(f'note: {note}')
    for problem in found.problems[:_PROBLEMS_SHOWN]:
        print(f'problem: {problem}', file=sys.stderr)
    if len(found.problems) > _PROBLEMS_SHOWN:
        print(f'… and {len(found.problems) - _PROBLEMS_SHOWN} problems more', file=sys.stderr)
    print('no problems' if not found.problems else f'{len(found.problems)} problems')
    return 1 if found.problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    commands = {'build': build, 'embed': embed, 'verify': verify}
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog='python -m data_prep',
            description='Build, embed and verify datasets.',
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except KeyboardInterrupt:
        print('data_prep: interrupted; the same command goes on where it stopped', file=sys.stderr)
        return 130
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise
        print(f'data_prep: error: {explanation[0]}', file=sys.stderr)
        return explanation[1]


if __name__ == '__main__':
    sys.exit(main())
