"""Builds the shards of a split: it turns audio files into a TFDS dataset of ArrayRecord shards.

A shard depends only on its inputs: clips k·n to (k+1)·n - 1 of the list, without those that are left out. It is written
under a temporary name and then renamed, so a file with a shard's name is always complete, and a build that was killed
continues with the missing shards. Several builds may share the work, each with a range of the shards; the one that
makes the last shard finishes the split. `audiosep_jax/data/layout.py` describes the layout.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any, Literal, cast

import numpy as np

from audiosep_jax.audio.formats import MAX_FLAC_RATE
from audiosep_jax.data.layout import (
    FORMAT_VERSION,
    Skipped,
    SplitInfo,
    read_split_info,
    read_summary,
    shard_path,
    split_info_path,
    split_names,
    summary_path,
    write_split_info,
)
from audiosep_jax.data.records import Codec, Record, encode_audio, features, record_to_bytes
from audiosep_jax.data.shards import count_records
from audiosep_jax.errors import AudioFileError, ConfigError, DataError, LeftOut, LeftOutError, Reason
from audiosep_jax.storage.buckets import as_path, is_bucket, reaching, size, write_bytes, writing
from audiosep_jax.storage.json_files import write_json
from audiosep_jax.storage.locks import AtWork, locked
from data_prep.clips.base import ClipSource
from data_prep.clips.sources import ClipsInMemory, LongEnough
from data_prep.workers import run_in_processes

Progress = Callable[[int, int], None]
Runner = Literal['local', 'beam']
_REASONS: tuple[Reason, ...] = ('missing', 'unreadable', 'too short', 'excluded')  # of clips that are left out
# How many requests run at once: on a network mount or in a bucket, each takes tens of milliseconds.
_REQUESTS = 16


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """The result of a build: what the split holds, which clips were left out, and how many shards this call made.

    While shards of other jobs are missing, `info.complete` is False, and the clips have not been counted yet.
    """

    info: SplitInfo
    skipped: tuple[LeftOut, ...]  # includes those that the source itself had left out
    num_shards_made: int  # the others already existed
    num_shards_missing: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The number of clips that are in the shards (found), missing, unreadable, too short and excluded."""
        reasons: Counter[str] = Counter(skipped.reason for skipped in self.skipped)
        return {'found': self.info.num_clips} | {reason: reasons[reason] for reason in _REASONS}


def build_shards(
    clips: ClipSource | Iterable[Any],
    out: str | os.PathLike,
    *,
    sample_rate: int,
    name: str | None = None,
    split: str = 'train',
    clips_per_shard: int = 2000,
    codec: Codec = 'flac',
    shortest: float = 0.0,
    jobs: int = 1,
    shard_range: tuple[int, int | None] | None = None,
    retry_skipped: bool = False,
    runner: Runner = 'local',
    beam_args: Sequence[str] = (),
    progress: Progress | None = None,
) -> BuildResult:
    """Builds one split in the directory `out`, or the shards of it that are still missing.

    Args:
        clips: a `ClipSource`, or clips (`id`, `audio` float [T], `captions`, `labels`) at `sample_rate` in memory.
        out: directory of the dataset, or gs://…, s3://…; an interrupted build of the same inputs continues there.
        sample_rate: sample rate of the shards in Hz.
        name: TFDS name of the dataset; by default it is made from the last part of `out`.
        split: name of the split.
        clips_per_shard: number of input clips in a shard file.
        codec: 'flac', or 'pcm16' for hosts with few cores (1.6 times the size, but nothing to decode).
        shortest: clips shorter than this many seconds are left out.
        jobs: number of processes; each makes whole shards.
        shard_range: the shards to make, (first, last + 1); other calls, on any host, make the others.
        retry_skipped: rebuild the shards that left clips out, for example after the files were repaired.
        runner: 'local' processes, or 'beam': an Apache Beam pipeline (`jobs` is not used).
        beam_args: Beam's own flags, such as '--runner=DataflowRunner'.
        progress: called in this process with (clips done, clips in total).

    Raises:
        ConfigError: a setting is out of range.
        DataError: `out` holds something else, or shards of other inputs; no clip is readable; writing fails.
    """
    is_source = hasattr(clips, 'clip_id')
    source = cast(ClipSource, clips) if is_source else ClipsInMemory(cast(Iterable[Any], clips))
    known_left_out = tuple(getattr(source, 'left_out', ()))
    if shortest:
        source = LongEnough(source, shortest)
    out = as_path(out)
    plan = _plan(source, out, name, split, sample_rate, clips_per_shard, codec, jobs)
    shards = _shards_in(shard_range, plan)
    beam_options = None
    if runner == 'beam':
        from data_prep.beam import pipeline_options

        beam_options = pipeline_options(beam_args)
    try:
        with reaching(out):
            _claim(out, plan)
            with _at_work(out, split) as at_work:
                todo = _missing(out, plan, shards, retry_skipped)
                if todo:
                    # From here on the split is unfinished, even if it was complete before.
                    write_split_info(out, plan)
                _make_shards(source, out, plan, shards, todo, jobs, beam_options, progress)
                missing = _missing(out, plan, range(plan.num_shards), False) if shard_range else []
                if missing:
                    return BuildResult(plan, (), len(todo), len(missing))
                with contextlib.nullcontext() if is_bucket(out) else locked(out / 'splits' / '.finishing.lock'):
                    sweep = at_work is not None and (at_work.alone() or (at_work.alone() is None and not shard_range))
                    return _finish(out, plan, known_left_out, len(todo), sweep)
    except OSError as error:
        raise DataError(f'{out}: cannot be written: {error}') from error


def _at_work(out: pathlib.Path, split: str) -> contextlib.AbstractContextManager[AtWork | None]:
    """Returns the lock that shows other builds of the split that this one is running.

    A bucket needs none: it has no temporary files that a sweep could remove.
    """
    return contextlib.nullcontext() if is_bucket(out) else AtWork(out / 'splits' / f'.{split}.lock')


def _make_shards(
    source: ClipSource,
    out: pathlib.Path,
    plan: SplitInfo,
    shards: Iterable[int],
    todo: Sequence[int],
    jobs: int,
    beam_options: Any,
    progress: Progress | None,
) -> None:
    """Writes the shards `todo` out of this call's `shards`, in local processes or, given `beam_options`, on Beam."""
    parts = [(k, source.part(*_bounds(plan, k))) for k in todo]
    in_all = sum(stop - start for start, stop in (_bounds(plan, k) for k in shards))
    already = in_all - sum(len(part) for _, part in parts)

    def report(done: int) -> None:
        if progress:
            progress(already + done, in_all)

    report(0)
    if beam_options is None:
        run_in_processes(_write_shard, [(part, out, plan, k) for k, part in parts], jobs, report)
    else:
        from data_prep.beam import run_on_beam

        run_on_beam(_write_shard, parts, out, plan, beam_options, report)


def _shards_in(shard_range: tuple[int, int | None] | None, plan: SplitInfo) -> range:
    """Returns the shards of this call. A range may end beyond the last shard, since jobs need not divide it evenly."""
    first, end = shard_range or (0, None)
    if first < 0 or (end is not None and end <= first):
        raise ConfigError(f'--shard-range {first}:{end}: give FIRST:END without END itself, such as 0:10, 10:20')
    return range(first, plan.num_shards)[: None if end is None else end - first]


def _missing(out: pathlib.Path, plan: SplitInfo, shards: Iterable[int], retry_skipped: bool) -> list[int]:
    with futures.ThreadPoolExecutor(_REQUESTS) as pool:
        shards = list(shards)
        done = pool.map(lambda k: _is_done(out, plan, k, retry_skipped), shards)
        return [k for k, is_done in zip(shards, done, strict=True) if not is_done]


def _plan(
    source: ClipSource,
    out: pathlib.Path,
    name: str | None,
    split: str,
    sample_rate: int,
    clips_per_shard: int,
    codec: Codec,
    jobs: int,
) -> SplitInfo:
    directory = out if is_bucket(out) else out.resolve()
    name = name or re.sub(r'\W+', '_', directory.name.lower()).strip('_')
    for what, text in (('name', name), ('split', split)):
        if not re.fullmatch('[a-z][a-z0-9_]*', text):
            raise ConfigError(f'--{what} {text!r}: give small letters, digits and _, beginning with a letter')
    if codec not in ('flac', 'pcm16'):
        raise ConfigError(f'--codec {codec!r}: flac or pcm16')
    for what, number in (('sample-rate', sample_rate), ('clips-per-shard', clips_per_shard), ('jobs', jobs)):
        if number < 1:
            raise ConfigError(f'--{what} {number}: must be at least 1')
    if codec == 'flac' and sample_rate > MAX_FLAC_RATE:
        raise ConfigError(f'--sample-rate {sample_rate}: FLAC holds rates up to {MAX_FLAC_RATE} Hz; use --codec pcm16')
    if len(source) == 0:
        raise DataError('there are no clips to build shards from')
    source.check(sample_rate)
    settings = dict(sample_rate=sample_rate, codec=codec, clips_per_shard=clips_per_shard)
    inputs = json.dumps([FORMAT_VERSION, settings, source.description()], sort_keys=True)
    fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
    return SplitInfo(
        name=name,
        split=split,
        num_inputs=len(source),
        fingerprint=fingerprint,
        sample_rate=sample_rate,
        codec=codec,
        clips_per_shard=clips_per_shard,
    )


def _claim(out: pathlib.Path, plan: SplitInfo) -> None:
    """Reserves `out` for this build. Raises DataError if it holds something else."""
    if out.exists() and not out.is_dir():
        raise DataError(f'{out}: is a file: give a directory')
    splits = split_names(out)
    # A damaged description of a split may be deleted: the summaries show that the shards are from this build.
    is_dataset = bool(splits) or any((out / 'splits').glob('*-of-*.json'))
    if not is_dataset and out.is_dir() and any(entry.name != 'splits' for entry in out.iterdir()):
        raise DataError(f'{out}: is not empty and not a dataset: give another directory')
    for split in splits:
        found = read_split_info(out, split)
        if found.name != plan.name:
            raise DataError(f'{out}: holds the dataset {found.name!r}: give --name {found.name} or another --out')
        if split == plan.split and found.fingerprint != plan.fingerprint:
            keys = ('sample_rate', 'codec', 'clips_per_shard', 'num_inputs')
            what = ', '.join(
                f'{k} {getattr(found, k)} there, {getattr(plan, k)} now'
                for k in keys
                if getattr(found, k) != getattr(plan, k)
            )
            raise DataError(
                f'{out}: holds split {split!r} of other inputs or settings '
                f'({what or "the list of clips differs"}): give another --out, or delete it to build again'
            )
    if plan.split not in splits:
        write_split_info(out, plan)


def _bounds(plan: SplitInfo, shard: int) -> tuple[int, int]:
    start = shard * plan.clips_per_shard
    return start, min(start + plan.clips_per_shard, plan.num_inputs)


def _is_done(out: pathlib.Path, plan: SplitInfo, shard: int, retry_skipped: bool) -> bool:
    """Whether the shard exists and is complete; one that was truncated later is made again."""
    path = shard_path(out, plan, shard)
    if not path.exists():
        return False
    try:
        summary = read_summary(out, plan, shard)
    except DataError:
        return False
    if retry_skipped and summary['skipped']:
        return False
    if summary.get('num_bytes', size(path)) != size(path):
        return False
    return is_bucket(out) or count_records(path) == len(summary['captions'])


def _write_shard(source: ClipSource, out: pathlib.Path, plan: SplitInfo, shard: int, tick: Callable[[], None]) -> None:
    """Writes one shard and the summary of its contents. It runs in a worker process, or in a worker of Beam."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path = shard_path(out, plan, shard)
    captions: list[Sequence[str]] = []
    ids: list[str] = []
    skipped: list[dict[str, str]] = []
    labels: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    num_samples = 0
    try:
        with reaching(out), writing(path) as temporary:
            # With group_size 1 each record can be read on its own. Compressing FLAC again costs time and saves nothing.
            writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
            for index in range(len(source)):
                try:
                    record = _record(source, index, plan)
                except (AudioFileError, DataError) as error:
                    reason: Reason = error.reason if isinstance(error, LeftOutError) else 'unreadable'
                    left_out = LeftOut(source.clip_id(index), reason, str(error))
                    skipped.append(dataclasses.asdict(left_out))
                else:
                    writer.write(record_to_bytes(record))
                    captions.append(record.captions)
                    ids.append(record.id)
                    num_samples += record.num_samples
                    labels.update(record.labels)
                    sources[source_name(record)] += 1
                tick()
            writer.close()
            if count_records(temporary) != len(captions):
                raise DataError(f'{path}: could not be written completely: is the disk full?')
            summary = dict(
                fingerprint=plan.fingerprint,
                captions=captions,
                ids=ids,
                num_samples=num_samples,
                skipped=skipped,
                labels=labels,
                sources=sources,
                num_bytes=size(temporary),
                sha256=checksum(temporary),
            )
            # The summary is written first, so that a shard never exists without one.
            write_json(summary_path(out, plan, shard), summary)
    except (OSError, RuntimeError) as error:
        raise DataError(f'{path}: cannot be written: {" ".join(str(error).split())}') from error


def checksum(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a local file in hexadecimal. Raises OSError if it cannot be read."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def source_name(record: Record) -> str:
    """Returns the corpus of a clip, such as `clotho` for `clotho:train/rain.wav`; 'files' if none is named."""
    corpus = record.source.partition(':')[0]
    return corpus if re.fullmatch(r'[\w.+-]+', corpus) and corpus != record.source else 'files'


def _record(source: ClipSource, index: int, plan: SplitInfo) -> Record:
    """Returns one clip as a record. Raises AudioFileError or DataError if the clip must be left out."""
    if hasattr(source, 'record'):  # records of another dataset, which are already encoded
        return source.record(index)
    clip = source.read(index, plan.sample_rate)
    captions = tuple(caption for caption in clip.captions if caption.strip())
    if not captions:
        raise LeftOutError('excluded', f'{clip.id}: no caption')
    if clip.audio.ndim == 1 and not clip.audio.size:
        raise LeftOutError('too short', f'{clip.id}: no audio')
    if clip.audio.ndim != 1:
        raise AudioFileError(f'{clip.id}: no audio: expected [T] samples, got {list(clip.audio.shape)}')
    if not np.isfinite(clip.audio).all():
        raise AudioFileError(f'{clip.id}: has non-finite samples')
    return Record(
        id=clip.id,
        audio=encode_audio(clip.audio, plan.sample_rate, plan.codec),
        codec=plan.codec,
        sample_rate=plan.sample_rate,
        num_samples=clip.audio.size,
        captions=captions,
        labels=tuple(clip.labels),
        source=getattr(clip, 'source', ''),
        frames=tuple(getattr(clip, 'frames', ())),
    )


def _finish(
    out: pathlib.Path, plan: SplitInfo, known_left_out: tuple[LeftOut, ...], num_made: int, sweep: bool
) -> BuildResult:
    with futures.ThreadPoolExecutor(_REQUESTS) as pool:
        summaries = list(pool.map(lambda k: read_summary(out, plan, k), range(plan.num_shards)))
        sizes = list(pool.map(lambda k: size(shard_path(out, plan, k)), range(plan.num_shards)))
    skipped = tuple(_left_out(entry) for summary in summaries for entry in summary['skipped'])
    info = dataclasses.replace(
        plan,
        complete=True,
        shard_lengths=tuple(len(s['captions']) for s in summaries),
        num_captions=sum(len(c) for s in summaries for c in s['captions']),
        num_samples=sum(s['num_samples'] for s in summaries),
        num_skipped=len(skipped),
        num_bytes=sum(sizes),
        content=_content(plan, skipped),
    )
    if info.num_clips == 0:
        # The empty shards are removed, so that a second attempt does not take them for finished ones.
        _remove_split(out, plan)
        raise DataError(f'none of the {plan.num_inputs} clips could be used; the first: {skipped[0].message}')
    _write_skipped(out, plan, known_left_out + skipped)
    if sweep:
        _sweep(out, plan)
    _write_tfds_metadata(out, info)
    write_split_info(out, info)
    return BuildResult(info, known_left_out + skipped, num_made)


def _left_out(entry: Skipped) -> LeftOut:
    if 'message' not in entry:
        return LeftOut(entry['id'], 'unreadable', entry['reason'])
    return LeftOut(entry['id'], cast(Reason, entry['reason']), entry['message'])


def _sweep(out: pathlib.Path, plan: SplitInfo) -> None:
    """Removes the temporary files of builds that were killed. No other build may be running here."""
    for pattern in (f'.{plan.name}-{plan.split}.array_record-*.tmp-*', f'splits/.{plan.split}[.-]*.tmp-*'):
        for leftover in out.glob(pattern):
            leftover.unlink(missing_ok=True)
    for scratch in (*out.glob('.tfds-*'), *out.glob(f'splits/.{plan.split}-tasks-*')):
        shutil.rmtree(scratch, ignore_errors=True)


def _content(plan: SplitInfo, skipped: tuple[LeftOut, ...]) -> str:
    left_out = json.dumps([plan.fingerprint, [s.id for s in skipped]])
    return hashlib.sha256(left_out.encode()).hexdigest()


def _write_skipped(out: pathlib.Path, plan: SplitInfo, skipped: tuple[LeftOut, ...]) -> None:
    path = skipped_path(out, plan.split)
    if not skipped:
        path.unlink(missing_ok=True)
        return
    file = io.StringIO(newline='')
    writer = csv.writer(file)
    writer.writerow(['id', 'reason', 'message'])
    writer.writerows(dataclasses.astuple(s) for s in skipped)
    write_bytes(path, file.getvalue().encode())


def skipped_path(out: str | os.PathLike, split: str) -> pathlib.Path:
    """Returns the path of the CSV list (`id,reason,message`) of clips left out; it exists only if there are any."""
    return as_path(out) / 'splits' / f'{split}-skipped.csv'


def _remove_split(out: pathlib.Path, plan: SplitInfo) -> None:
    for shard in range(plan.num_shards):
        shard_path(out, plan, shard).unlink(missing_ok=True)
        summary_path(out, plan, shard).unlink(missing_ok=True)
    split_info_path(out, plan.split).unlink(missing_ok=True)
    if is_bucket(out):  # folders in a bucket exist only as parts of names
        return
    (out / 'splits' / '.finishing.lock').unlink(missing_ok=True)
    (out / 'splits' / f'.{plan.split}.lock').unlink(missing_ok=True)
    for folder in (out / 'splits', out):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_tfds_metadata(out: pathlib.Path, info: SplitInfo) -> None:
    """Writes `features.json` and `dataset_info.json` for all complete splits in `out`.

    TFDS finds the splits by their file names and writes in place. It therefore works in a scratch directory that holds
    empty files with the names of the complete splits, and its results are moved into place.
    """
    import tensorflow_datasets as tfds

    others = [read_split_info(out, s) for s in split_names(out) if s != info.split]
    splits = [info, *(other for other in others if other.complete)]
    with tempfile.TemporaryDirectory(prefix='.tfds-', dir=None if is_bucket(out) else out) as scratch:
        split_infos = []
        for split in splits:
            paths = [shard_path(out, split, k) for k in range(split.num_shards)]
            for path in paths:
                (pathlib.Path(scratch) / path.name).touch()
            template = tfds.core.ShardedFileTemplate(
                data_dir=scratch, dataset_name=split.name, split=split.split, filetype_suffix='array_record'
            )
            split_infos.append(
                tfds.core.SplitInfo(
                    name=split.split,
                    shard_lengths=list(split.shard_lengths),
                    num_bytes=split.num_bytes or sum(map(size, paths)),  # splits of earlier versions do not store it
                    filename_template=template,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=scratch,
            features=features(),
            split_infos=split_infos,
            version='1.0.0',
            check_data=False,  # only this check needs TensorFlow
            description='Captioned sounds for language-queried separation.',
        )
        for file in ('features.json', 'dataset_info.json'):
            write_bytes(out / file, (pathlib.Path(scratch) / file).read_bytes())
