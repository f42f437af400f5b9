"""Builds the shards of a split: audio files in, a TFDS dataset of ArrayRecord shards out. Resumable at any moment.

A shard is a function of its inputs alone: clips k·n to (k+1)·n - 1 of the list, less those left out. It is written
under a temporary name and renamed, so a file under a shard's name is whole; a build that was killed continues with the
shards that are missing. Several builds may share the work, each with a range of the shards; the one that makes the last
shard finishes the split. The layout is described in `audiosep_jax/data/layout.py`.
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
from typing import Any, Literal

import numpy as np

from audiosep_jax.audio.formats import MAX_FLAC_RATE
from audiosep_jax.data.layout import (
    FORMAT_VERSION,
    SplitInfo,
    read_split_info,
    read_summary,
    shard_path,
    split_info_path,
    split_names,
    summary_path,
    write_json,
    write_split_info,
)
from audiosep_jax.data.records import Record, encode_audio, features, record_to_bytes
from audiosep_jax.data.shards import count_records
from audiosep_jax.errors import AudioFileError, ConfigError, DataError
from audiosep_jax.storage.buckets import as_path, is_bucket, reaching, size, write_bytes, writing
from audiosep_jax.storage.locks import AtWork, locked
from data_prep.clips.base import ClipSource, LeftOut, LeftOutError
from data_prep.clips.sources import ClipsInMemory, LongEnough
from data_prep.workers import run_in_processes

Progress = Callable[[int, int], None]
Runner = Literal['local', 'beam']
REASONS = ('missing', 'unreadable', 'too short', 'excluded')
_REQUESTS = 16  # at once: on a network mount or of a bucket, each takes tens of milliseconds


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What became of a split: what is in it, which clips are not, and how many shards this call made of it.

    While shards of other jobs are missing, `info.complete` is False and nothing is known of the clips yet.
    """

    info: SplitInfo
    skipped: tuple[LeftOut, ...]  # also those that the source had left out before
    num_shards_made: int  # the others were there already
    num_shards_missing: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Clips by what became of them: found (they are in the shards), missing, unreadable, too short, excluded."""
        reasons = Counter(skipped.reason for skipped in self.skipped)
        return {'found': self.info.num_clips} | {reason: reasons[reason] for reason in REASONS}


def build_shards(
    clips: ClipSource | Iterable[Any],
    out: str | os.PathLike,
    *,
    sample_rate: int,
    name: str | None = None,
    split: str = 'train',
    clips_per_shard: int = 2000,
    codec: str = 'flac',
    shortest: float = 0.0,
    jobs: int = 1,
    shard_range: tuple[int, int | None] | None = None,
    retry_skipped: bool = False,
    runner: Runner = 'local',
    beam_args: Sequence[str] = (),
    progress: Progress | None = None,
) -> BuildResult:
    """Builds one split in the directory `out`, or what is missing of it.

    Args:
        clips: a `ClipSource`, or clips (`id`, `audio` float [T], `captions`, `labels`) at `sample_rate` in memory.
        out: directory of the dataset, or gs://…, s3://…; a build of the same inputs that was interrupted there is
            continued.
        sample_rate: of the shards, Hz.
        name: of the dataset, in TFDS's sense; by default made from `out`'s last part.
        split: name of the split.
        clips_per_shard: input clips to a shard file.
        codec: 'flac', or 'pcm16' for hosts short of cores (1.6 times the size, no decoding).
        shortest: clips shorter than this many seconds are left out.
        jobs: processes; each makes whole shards.
        shard_range: (first, last + 1) of the shards to make; other calls, on any host, make the others.
        retry_skipped: make the shards that lack unreadable clips again (after the files were mended).
        runner: 'local' processes, or 'beam': an Apache Beam pipeline (`jobs` is not used).
        beam_args: Beam's own flags, as '--runner=DataflowRunner'.
        progress: called with (clips done, clips in all), from this process.

    Raises:
        ConfigError: a setting out of range.
        DataError: `out` holds something else, or other inputs' shards; no clip is readable; it cannot be written.
    """
    source = clips if hasattr(clips, 'clip_id') else ClipsInMemory(clips)
    known_left_out = tuple(getattr(source, 'left_out', ()))
    if shortest:
        source = LongEnough(source, shortest)
    out = as_path(out)
    plan = _plan(source, out, name, split, sample_rate, clips_per_shard, codec, jobs)
    shards = _shards_in(shard_range, plan)
    if runner == 'beam':
        from data_prep.beam import pipeline_options, run_on_beam

        options = pipeline_options(beam_args)
    try:
        with reaching(out):
            _claim(out, plan)
            # The lock says who is at work; a bucket has none, and no temporary files that somebody must not sweep.
            lock = contextlib.nullcontext() if is_bucket(out) else AtWork(out / 'splits' / f'.{split}.lock')
            with lock as at_work:
                todo = _missing(out, plan, shards, retry_skipped)
                if todo:
                    # From here on the split is unfinished, also where it was complete before.
                    write_split_info(out, plan)
                parts = [(k, source.part(*_bounds(plan, k))) for k in todo]
                in_all = sum(stop - start for start, stop in (_bounds(plan, k) for k in shards))
                already = in_all - sum(len(part) for _, part in parts)
                report = (lambda n: progress(already + n, in_all)) if progress else (lambda n: None)
                report(0)
                if runner == 'beam':
                    run_on_beam(_write_shard, parts, out, plan, options, report)
                else:
                    run_in_processes(_write_shard, [(part, out, plan, k) for k, part in parts], jobs, report)
                missing = _missing(out, plan, range(plan.num_shards), False) if shard_range else []
                if missing:
                    return BuildResult(plan, (), len(todo), len(missing))
                lock = contextlib.nullcontext() if is_bucket(out) else locked(out / 'splits' / '.finishing.lock')
                with lock:
                    sweep = at_work is not None and (at_work.alone() or (at_work.alone() is None and not shard_range))
                    return _finish(out, plan, known_left_out, len(todo), sweep)
    except OSError as error:
        raise DataError(f'{out}: cannot be written: {error}') from error


def _shards_in(shard_range: tuple[int, int | None] | None, plan: SplitInfo) -> range:
    """The shards of this call. A range may reach beyond the last: an array of jobs need not divide evenly."""
    first, end = shard_range or (0, None)
    if first < 0 or (end is not None and end <= first):
        raise ConfigError(f'--shard-range {first}:{end}: give FIRST:END, of which END is not made, as 0:10, 10:20')
    return range(first, plan.num_shards)[: None if end is None else end - first]


def _missing(out: pathlib.Path, plan: SplitInfo, shards: Iterable[int], retry_skipped: bool) -> list[int]:
    with futures.ThreadPoolExecutor(_REQUESTS) as pool:
        shards = list(shards)
        done = pool.map(lambda k: _is_done(out, plan, k, retry_skipped), shards)
        return [k for k, is_done in zip(shards, done, strict=True) if not is_done]


def _plan(source, out, name, split, sample_rate, clips_per_shard, codec, jobs) -> SplitInfo:
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
    return SplitInfo(name=name, split=split, num_inputs=len(source), fingerprint=fingerprint, **settings)


def _claim(out: pathlib.Path, plan: SplitInfo) -> None:
    """Makes `out` the place of this build, or raises DataError where it is something else's."""
    if out.exists() and not out.is_dir():
        raise DataError(f'{out}: is a file: give a directory')
    splits = split_names(out)
    if not splits and out.is_dir() and any(entry.name != 'splits' for entry in out.iterdir()):
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
    """Whether the shard is there and whole; one that was cut short later is made again."""
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
    """Writes one shard and the summary of what is in it. Runs in a worker: a process, or Beam's."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path = shard_path(out, plan, shard)
    summary = dict(fingerprint=plan.fingerprint, captions=[], ids=[], num_samples=0, skipped=[])
    labels, sources = Counter(), Counter()
    try:
        with reaching(out), writing(path) as temporary:
            # group_size 1: each record can be read alone. Uncompressed: FLAC does not shrink further, and trying costs.
            writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
            for index in range(len(source)):
                try:
                    record = _record(source, index, plan)
                except (AudioFileError, DataError) as error:
                    reason = error.reason if isinstance(error, LeftOutError) else 'unreadable'
                    left_out = LeftOut(source.clip_id(index), reason, str(error))
                    summary['skipped'].append(dataclasses.asdict(left_out))
                else:
                    writer.write(record_to_bytes(record))
                    summary['captions'].append(record.captions)
                    summary['ids'].append(record.id)
                    summary['num_samples'] += record.num_samples
                    labels.update(record.labels)
                    sources[source_name(record)] += 1
                tick()
            writer.close()
            if count_records(temporary) != len(summary['captions']):
                raise DataError(f'{path}: could not be written completely: is the disk full?')
            summary |= dict(labels=labels, sources=sources, num_bytes=size(temporary), sha256=checksum(temporary))
            # The summary first: where the shard is, there is its summary.
            write_json(summary_path(out, plan, shard), summary)
    except (OSError, RuntimeError) as error:
        raise DataError(f'{path}: cannot be written: {" ".join(str(error).split())}') from error


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a local file, in hexadecimal. Raises OSError."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def source_name(record: Record) -> str:
    """The corpus that a clip came from, where its source names one, as `clotho:train/rain.wav`."""
    corpus = record.source.partition(':')[0]
    return corpus if re.fullmatch(r'[\w.+-]+', corpus) and corpus != record.source else 'files'


def _record(source: ClipSource, index: int, plan: SplitInfo) -> Record:
    """One clip as a record. Raises AudioFileError or DataError for one that is to be left out."""
    if hasattr(source, 'record'):  # records of another dataset, encoded already
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
        # Nothing is worth keeping, and a second attempt must not find these shards done.
        _remove_split(out, plan)
        raise DataError(f'none of the {plan.num_inputs} clips could be used; the first: {skipped[0].message}')
    _write_skipped(out, plan, known_left_out + skipped)
    if sweep:
        _sweep(out, plan)
    _write_tfds_metadata(out, info)
    write_split_info(out, info)
    return BuildResult(info, known_left_out + skipped, num_made)


def _left_out(entry: dict[str, str]) -> LeftOut:
    # Before reasons had names, the message stood under `reason`.
    return LeftOut(**entry) if 'message' in entry else LeftOut(entry['id'], 'unreadable', entry['reason'])


def _sweep(out: pathlib.Path, plan: SplitInfo) -> None:
    """Removes what builds that were killed left under temporary names. Not while others are at work here."""
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
    """The CSV list (`id,reason,message`) of the clips that a build left out; it exists only if there are any."""
    return as_path(out) / 'splits' / f'{split}-skipped.csv'


def _remove_split(out: pathlib.Path, plan: SplitInfo) -> None:
    for shard in range(plan.num_shards):
        shard_path(out, plan, shard).unlink(missing_ok=True)
        summary_path(out, plan, shard).unlink(missing_ok=True)
    split_info_path(out, plan.split).unlink(missing_ok=True)
    if is_bucket(out):  # folders are but parts of names
        return
    (out / 'splits' / '.finishing.lock').unlink(missing_ok=True)
    (out / 'splits' / f'.{plan.split}.lock').unlink(missing_ok=True)
    for folder in (out / 'splits', out):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_tfds_metadata(out: pathlib.Path, info: SplitInfo) -> None:
    """`features.json` and `dataset_info.json` over all the complete splits in `out`.

    TFDS looks at file names to find the splits and writes in place. In a scratch directory with the names alone it sees
    no unfinished split, and the results are renamed into place.
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
                    num_bytes=split.num_bytes or sum(map(size, paths)),  # splits of earlier versions have no number
                    filename_template=template,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=scratch,
            features=features(),
            split_infos=split_infos,
            version='1.0.0',
            check_data=False,  # the check alone needs TensorFlow
            description='Captioned sounds for language-queried separation.',
        )
        for file in ('features.json', 'dataset_info.json'):
            write_bytes(out / file, (pathlib.Path(scratch) / file).read_bytes())
