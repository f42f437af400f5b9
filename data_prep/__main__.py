"""The command line `python -m data_prep build|embed|…`, which turns sound files into datasets for training.

Exit codes are those of `audiosep-jax`: 2 for wrong flags, 1 for problems with files and data, 0 otherwise. The commands
for existing datasets are in `commands.py`.
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Union

import tyro

from audiosep_jax.data.embeddings import Modality
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import dash_hint, explained
from audiosep_jax.interrupts import interruptible, leave
from audiosep_jax.progress import printed_progress, progress_bar
from data_prep.commands import caption_variants, co_occurrence, inspect, make_eval, merge, stage, stats, verify
from data_prep.datasets.audiocaps import BuildAudioCaps
from data_prep.datasets.audioset import BuildAudioSet
from data_prep.datasets.clotho import BuildClotho
from data_prep.datasets.esc50 import BuildESC50
from data_prep.datasets.folder import BuildFolder
from data_prep.datasets.fsd50k import BuildFSD50K
from data_prep.datasets.manifest import BuildManifest
from data_prep.datasets.music import BuildMUSIC
from data_prep.datasets.synthetic import BuildSynthetic
from data_prep.datasets.vggsound import BuildVGGSound
from data_prep.datasets.voicebank import BuildVoiceBank
from data_prep.datasets.wavcaps import BuildWavCaps
from data_prep.datasets.webdataset import BuildWebDataset
from data_prep.embed import embed_dataset
from data_prep.options import BuildOptions, parse_shard_range

# The datasets that `build` supports, one per line.
_DATASETS: dict[str, type[BuildOptions]] = {
    'manifest': BuildManifest,
    'synthetic': BuildSynthetic,
    'audiocaps': BuildAudioCaps,
    'audioset': BuildAudioSet,
    'clotho': BuildClotho,
    'esc50': BuildESC50,
    'folder': BuildFolder,
    'fsd50k': BuildFSD50K,
    'music': BuildMUSIC,
    'vggsound': BuildVGGSound,
    'voicebank': BuildVoiceBank,
    'wavcaps': BuildWavCaps,
    'webdataset': BuildWebDataset,
}
if TYPE_CHECKING:
    _Dataset = BuildOptions
else:
    _Dataset = Union[tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in _DATASETS.items())]  # noqa: UP007


def build(dataset: _Dataset) -> int:
    """Build the shards of a dataset's split."""
    return dataset.run()


def embed(
    shards: tyro.conf.Positional[pathlib.Path],
    /,
    encoder: str = 'words',
    what: Modality = 'text',
    split: tuple[str, ...] = (),
    shard_range: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Fill the embedding cache with the embeddings of every caption, sound or picture from a query encoder.

    Several calls, even on several hosts, may share the shards of a dataset; the last to end completes the cache.

    Args:
        shards: Directory of the dataset.
        encoder: Query encoder: words; wordllama (needs the package wordllama); minilm, clap or clip (fetched from the
            hub); or a path to weights of one of these three.
        what: Captions (text), whole sounds (audio, for clap), the pictures of videos (image, for clip) or the captions'
            variants (see caption-variants).
        split: Only these splits (default: all complete ones).
        shard_range: Only these shards of each split, FIRST:END, such as 0:100.
        process_index: Number of this call among those that share the shards.
        process_count: Number of calls that share the shards.
    """
    share = parse_shard_range(shard_range)
    loaded = load_encoder(encoder)
    started = time.perf_counter()
    with progress_bar('embedding') as bar, printed_progress('embedded', bar) as progress:
        done = embed_dataset(
            shards,
            loaded,
            what=what,
            splits=split,
            shard_range=share,
            process_index=process_index,
            process_count=process_count,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    things = {'text': 'captions', 'audio': 'sounds', 'image': 'pictures', 'variants': 'caption variants'}[what]
    rate = f' ({done.num_encoded} encoded, {done.num_encoded / seconds:.0f} a second)' if done.num_encoded else ''
    end = f'{done.num_missing} shards of other calls are missing' if done.num_missing else 'complete'
    print(
        f'{shards}: {done.num_rows} {things} embedded now with {encoder!r} (E = {loaded.embedding_size}){rate}; {end}'
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    commands: dict[str, Callable[..., int]] = {
        'build': build,
        'embed': embed,
        'caption-variants': caption_variants,
        'co-occurrence': co_occurrence,
        'verify': verify,
        'stats': stats,
        'merge': merge,
        'inspect': inspect,
        'stage': stage,
        'make-eval': make_eval,
    }
    with interruptible(signal.SIGTERM) as interrupted:
        return _run(argv, commands, interrupted)


def _run(argv: Sequence[str] | None, commands: dict[str, Callable[..., int]], interrupted: Callable[[], bool]) -> int:
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog='python -m data_prep',
            description='Build, embed and maintain datasets.',
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except SystemExit as stop:  # --help, or a wrong flag that tyro has explained
        hint = dash_hint(sys.argv[1:] if argv is None else argv) if stop.code else None
        if hint is not None:
            print(f'data_prep: note: {hint}', file=sys.stderr)
        raise
    except KeyboardInterrupt:
        return _say_interrupted()
    except Exception as error:
        if interrupted():
            return _say_interrupted()
        explanation = explained(error)
        if explanation is None:
            raise
        print(f'data_prep: error: {explanation[0]}', file=sys.stderr)
        return explanation[1]


def _say_interrupted() -> int:
    print('data_prep: interrupted; the same command resumes', file=sys.stderr)
    return 130


if __name__ == '__main__':
    leave(main())
