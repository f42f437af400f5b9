"""The commands of `python -m data_prep` for existing datasets (verify, stats, merge, inspect, stage), and make-eval."""

import pathlib
import sys
from typing import Annotated, Literal

import numpy as np
import tyro

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.audio.writing import check_format, write_audio
from audiosep_jax.data.embeddings import cached_encoders, read_encoder_identity
from audiosep_jax.data.layout import read_split_info, split_names
from audiosep_jax.data.records import decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.data.staging import stage as stage_dataset
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.progress import printed_progress, progress_bar
from audiosep_jax.storage.buckets import write_bytes
from audiosep_jax.storage.json_files import write_json
from data_prep.caption_variants import add_variants
from data_prep.co_occurrence import count_together
from data_prep.embed import embed_dataset
from data_prep.make_eval import make_eval as make_benchmark
from data_prep.merge import merge_datasets
from data_prep.options import PROBLEMS_SHOWN, num_cores, print_result
from data_prep.stats import dataset_stats, draw, table
from data_prep.verify import verify_dataset

_Dataset = tyro.conf.Positional[pathlib.Path]
_Output = Annotated[pathlib.Path | None, tyro.conf.arg(aliases=['-o'])]


def caption_variants(
    shards: _Dataset, file: tyro.conf.Positional[pathlib.Path], /, encoder: tuple[str, ...] = ()
) -> int:
    """Add other wordings of the captions to a dataset and embed them; training then draws among all wordings.

    The shards stay as they are. Variants that the dataset had before are replaced.

    Args:
        shards: Directory of the dataset.
        file: A .json file of {"caption": ["variant", …]}, or a .csv or .tsv of rows caption,variant,variant….
        encoder: Query encoders that embed them (default: all that the dataset has embeddings of).
    """
    encoders = [load_encoder(name) for name in encoder] or [
        load_encoder(read_encoder_identity(shards, name)) for name in cached_encoders(shards)
    ]
    added = add_variants(shards, file)
    for loaded in encoders:
        embed_dataset(shards, loaded, what='variants')
    then = f'not embedded: run `python -m data_prep embed {shards} --encoder NAME`, and again with --what variants'
    done = f'embedded with {", ".join(e.name for e in encoders)}' if encoders else then
    verb = 'replaced by' if added.replaced else 'now has'
    print(f'{shards}: {verb} {added.num_variants} variants of {added.num_captions} captions, {done}')
    if added.num_without:
        print(f'note: {added.num_without} captions have no variants')
    if added.unknown:
        examples = ', '.join(map(repr, added.unknown[:3]))
        print(f'note: {len(added.unknown)} captions of {file} are not in the dataset: {examples}', file=sys.stderr)
    return 0


def co_occurrence(
    shards: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    /,
    out: Annotated[pathlib.Path, tyro.conf.arg(aliases=['-o'])],
    split: tuple[str, ...] = (),
    min_clips: int = 1,
    jobs: int = num_cores(),
) -> int:
    """Write a table of the labels that clips have together; with --mixing.together, training mixes such clips first.

    Args:
        shards: Directories of the datasets, whose clips have several labels.
        out: The .json file to write: {"label": ["label", …], …}.
        split: Only these splits (default: all complete ones).
        min_clips: Leave out pairs of labels that fewer clips have.
        jobs: Number of threads that read.
    """
    if not shards:
        raise ConfigError('co-occurrence: give at least one dataset')
    with progress_bar('reading') as bar, printed_progress('read', bar) as progress:
        made = count_together(shards, out, splits=split, min_clips=min_clips, jobs=jobs, progress=progress)
    print(
        f'{out}: {made.num_pairs} pairs of {made.num_labels} labels, from {made.num_several} of {made.num_clips} clips '
        'with several labels'
    )
    if made.alone:
        examples = ', '.join(map(repr, made.alone[:3]))
        print(f'note: {len(made.alone)} labels meet no other: {examples}')
    return 0


def verify(shards: _Dataset, /, jobs: int = num_cores()) -> int:
    """Check that every record decodes, that the shards hold the bytes that were written, and that counts and caches
    agree.

    Args:
        shards: Directory of the dataset.
        jobs: Number of threads that decode.
    """
    with progress_bar('verifying') as bar, printed_progress('verified', bar) as progress:
        found = verify_dataset(shards, jobs=jobs, progress=progress)
    encoders = ', '.join(found.encoders) or 'none'
    print(
        f'{shards}: {found.num_clips} clips decoded ({found.seconds / 3600:.2f} h, {found.num_captions} captions, '
        f'{found.num_silent} silent), embeddings: {encoders}'
    )
    for note in found.notes:
        print(f'note: {note}')
    for problem in found.problems[:PROBLEMS_SHOWN]:
        print(f'problem: {problem}', file=sys.stderr)
    if len(found.problems) > PROBLEMS_SHOWN:
        print(f'… and {len(found.problems) - PROBLEMS_SHOWN} problems more', file=sys.stderr)
    print('no problems' if not found.problems else f'{len(found.problems)} problems')
    return 1 if found.problems else 0


def stats(
    shards: _Dataset,
    /,
    measure: int = 2000,
    rows: int = 20,
    json: pathlib.Path | None = None,
    picture: pathlib.Path | None = None,
    jobs: int = num_cores(),
) -> int:
    """Show the statistics of a dataset: hours, clips of each source, labels and loudness.

    Args:
        shards: Directory of the dataset.
        measure: Number of clips of each split to decode for loudness and length.
        rows: Number of sources and labels to show, the most frequent first.
        json: Write the full statistics, with every label, to this file.
        picture: Draw the statistics in this PNG file.
        jobs: Number of threads that decode.
    """
    if rows < 1:
        raise ConfigError(f'--rows {rows}: must be at least 1')
    if picture is not None and picture.suffix.lower() != '.png':
        raise ConfigError(f'--picture {picture}: give a name that ends in .png')
    with progress_bar('measuring') as progress:
        found = dataset_stats(shards, measure=measure, jobs=jobs, progress=progress)
    print(table(found, rows=rows))
    if json is not None:
        write_json(json, {'directory': str(shards), 'splits': [split.as_json() for split in found]})
    if picture is not None:
        draw(found, picture, str(shards))
    return 0


def merge(
    shards: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    /,
    out: str,
    name: str | None = None,
    split: tuple[str, ...] = (),
    clips_per_shard: int = 2000,
    prefix_ids: bool = False,
    jobs: int = num_cores(),
) -> int:
    """Merge several datasets into one. Records, and embeddings that all of them have, are copied and not encoded again.

    Training also accepts several datasets without a merge.

    Args:
        shards: Directories of the datasets, which must have the same sample rate and codec.
        out: Directory of the new dataset; an interrupted merge continues there.
        name: Name of the new dataset (default: made from the last part of --out).
        split: Only these splits (default: all complete ones).
        clips_per_shard: Number of clips in a shard file.
        prefix_ids: Put the dataset's name before each id, for datasets that share ids.
        jobs: Number of processes that copy.
    """
    with progress_bar('merging') as bar, printed_progress('merged', bar) as progress:
        results = merge_datasets(
            shards,
            out,
            name=name,
            splits=split,
            clips_per_shard=clips_per_shard,
            prefix_ids=prefix_ids,
            jobs=jobs,
            progress=progress,
        )
    for result in results:
        print_result(out, result)
    taken = cached_encoders(out)
    others = sorted({encoder for directory in shards for encoder in cached_encoders(directory)} - set(taken))
    left = f'; left out: {", ".join(others)}, which not all of them have, or of other weights' if others else ''
    print(f'{out}: embeddings of {", ".join(taken) or "no encoder"}{left}')
    return 0


def inspect(
    shards: _Dataset,
    shard: tyro.conf.Positional[int],
    clip: tyro.conf.Positional[int],
    /,
    split: str | None = None,
    out: _Output = None,
) -> int:
    """Print the record of one clip, and write it to a sound file.

    Args:
        shards: Directory of the dataset.
        shard: Number of the shard, counted from 0.
        clip: Number of the clip in the shard, counted from 0.
        split: Split of the shard (default: train, or the only one).
        out: Sound file to write: .wav, .flac or .ogg. Pictures of its video are written beside it.
    """
    if out is not None:
        check_format(out, 'PCM_16')
    names = split_names(shards)
    split = split or ('train' if 'train' in names or len(names) != 1 else names[0])
    opened = Shards(shards, split, check=False)
    lengths = opened.info.shard_lengths
    if not 0 <= shard < len(lengths):
        raise DataError(f'{shards}: no shard {shard}: split {split!r} has {len(lengths)}, from 0 on')
    if not 0 <= clip < lengths[shard]:
        raise DataError(f'{opened.path(shard)}: no clip {clip}: there are {lengths[shard]}, from 0 on')
    if problem := opened.problem(shard):
        raise DataError(problem)
    record = opened.read(sum(lengths[:shard]) + clip)
    samples = decode_audio(record).astype(np.float32) / INT16_SCALE
    about = {
        'id': record.id,
        'captions': record.captions,
        'labels': record.labels,
        'source': record.source,
        'seconds': round(record.num_samples / record.sample_rate, 3),
        'sample_rate': record.sample_rate,
        'codec': record.codec,
        'bytes': len(record.audio),
        'peak': round(float(np.abs(samples).max(initial=0)), 4),
        'frames': len(record.frames),
    }
    for name, value in about.items():
        print(f'{name:<12} {" | ".join(value) if isinstance(value, tuple) else value}')
    if out is not None:
        write_audio(out, samples[None], record.sample_rate)
        for number, frame in enumerate(record.frames):
            write_bytes(out.with_name(f'{out.stem}-{number}.jpg'), frame)
    return 0


def stage(
    shards: tyro.conf.Positional[tuple[str, ...]],
    /,
    to: pathlib.Path,
    split: tuple[str, ...] = (),
    encoder: tuple[str, ...] = (),
) -> int:
    """Copy datasets from a bucket or a network file system to a local disk, and print the paths of the copies.

    Training does this itself, given --stage-dir. An interrupted copy continues where it stopped.

    Args:
        shards: The datasets: paths, gs://… or s3://….
        to: Folder on a local disk; each dataset gets a folder in it.
        split: Only these splits (default: all complete ones).
        encoder: Only the embeddings of these encoders (default: all).
    """
    if not shards:
        raise ConfigError('stage: give at least one dataset')
    for dataset in shards:
        with progress_bar(f'copying {dataset}, MB') as progress:
            copy = stage_dataset(dataset, to, splits=split, encoders=encoder or None, progress=progress)
        clips = {name: read_split_info(copy, name).num_clips for name in split_names(copy)}
        print(f'{copy}: ' + ', '.join(f'{count} clips of {name}' for name, count in clips.items()))
    return 0


def make_eval(
    name: tyro.conf.Positional[Literal['audiocaps', 'audioset', 'clotho', 'esc50', 'music', 'vggsound']],
    /,
    source: pathlib.Path,
    out: pathlib.Path,
    metadata: pathlib.Path | None = None,
    sample_rate: int = 32000,
    snr: float = 0.0,
    seed: int = 0,
    jobs: int = num_cores(),
) -> int:
    """Make the mixtures of an evaluation benchmark; `audiosep-jax evaluate --data OUT` scores on them.

    An interrupted run continues when it is started again. DCASE 2024 and VoiceBank-DEMAND need no such step: they are
    evaluated as they are distributed.

    Args:
        name: The benchmark.
        source: Folder of the source dataset, with its sounds at any depth.
        out: Folder to create.
        metadata: The benchmark's table, or the folder that holds it: evaluation/metadata of AudioSep (default: SOURCE).
        sample_rate: Sample rate of the files in Hz.
        snr: Ratio of the target's energy to the noise's, in dB.
        seed: Seed that draws what AudioSet's clips are mixed with; the tables of other benchmarks specify it.
        jobs: Number of threads.
    """
    with progress_bar('mixing') as bar, printed_progress('mixed', bar) as progress:
        made = make_benchmark(
            name,
            source,
            out,
            metadata=metadata,
            sample_rate=sample_rate,
            snr_db=snr,
            seed=seed,
            jobs=jobs,
            progress=progress,
        )
    print(f'{out}: {made.num_made} mixtures made now, {made.num_there} were there, {len(made.left_out)} left out')
    for left in made.left_out[:PROBLEMS_SHOWN]:
        print(f'left out ({left.reason}): {left.message}', file=sys.stderr)
    if made.left_out:
        print(f'{len(made.left_out)} left out, all listed in {out / "left_out.csv"}', file=sys.stderr)
    return 1 if made.left_out else 0
