"""Statistics of a dataset: hours, clips of each source, labels and loudness, as a table, JSON or a picture.

Counts come from the shards' summaries, so two million clips take only seconds. Loudness and length are measured on
clips that are spread evenly over each split.
"""

import collections
import dataclasses
import math
import os
import pathlib
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.layout import read_split_info, read_summary, split_names
from audiosep_jax.data.records import decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.atomic import replacing
from data_prep.build import skipped_path, source_name
from data_prep.clips.listing import read_table

_BIN_DB = 3
_QUIETEST_DB = -90
_PERCENTILES = (5, 25, 50, 75, 95)
_LABELS_DRAWN = 40


@dataclasses.dataclass(frozen=True)
class SplitStats:
    """The statistics of one split.

    Attributes:
        left_out: number of clips that the build left out, by reason.
        sources: number of clips of each source, the most frequent first.
        labels: number of clips with each label, the most frequent first.
        levels_db: RMS of each measured clip that is not silent, in dB of full scale.
        seconds: length of each measured clip.
    """

    split: str
    clips: int
    hours: float
    captions: int
    sample_rate: int  # Hz
    codec: str
    gigabytes: float
    left_out: dict[str, int]
    sources: dict[str, int]
    labels: dict[str, int]
    silent: int
    levels_db: np.ndarray
    seconds: np.ndarray

    @property
    def measured(self) -> int:
        """How many clips were decoded."""
        return len(self.levels_db) + self.silent

    def as_json(self) -> dict[str, Any]:
        """Returns the statistics ready for JSON, with distributions as percentiles and as histograms of 3 dB steps."""
        edges = np.arange(_QUIETEST_DB, _BIN_DB, _BIN_DB)
        counts, _ = np.histogram(np.clip(self.levels_db, _QUIETEST_DB, -1e-9), edges)
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {'measured': self.measured}
        return values | {
            'levels_db': _percentiles(self.levels_db),
            'levels_db_histogram': {int(edge): int(count) for edge, count in zip(edges, counts, strict=False)},
            'seconds': _percentiles(self.seconds),
        }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {f'p{q}': round(float(np.percentile(values, q)), 3) for q in _PERCENTILES} | {
        'least': round(float(values.min()), 3),
        'most': round(float(values.max()), 3),
    }


def dataset_stats(
    directory: str | os.PathLike,
    *,
    measure: int = 2000,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[SplitStats]:
    """Returns the statistics of every complete split.

    Args:
        directory: directory of the dataset.
        measure: number of clips of each split to decode for loudness and length, evenly spread.
        jobs: number of threads that decode.
        progress: called with (clips measured, clips to measure).

    Raises:
        ConfigError: a number is out of range.
        DataError: there is no complete split, or shards cannot be read.
    """
    for name, number, least in (('measure', measure, 0), ('jobs', jobs, 1)):
        if number < least:
            raise ConfigError(f'--{name} {number}: must be at least {least}')
    infos = [read_split_info(directory, split) for split in split_names(directory)]
    splits = [Shards(directory, info.split) for info in infos if info.complete]
    if not splits:
        raise DataError(f'{directory}: no dataset with a complete split here: run `python -m data_prep build` first')
    total, done = sum(min(measure, len(shards)) for shards in splits), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    return [_split_stats(shards, measure, jobs, tick) for shards in splits]


def _split_stats(shards: Shards, measure: int, jobs: int, tick: Callable[[], None]) -> SplitStats:
    info = shards.info
    with futures.ThreadPoolExecutor(jobs) as pool:
        sources: collections.Counter[str] = collections.Counter()
        labels: collections.Counter[str] = collections.Counter()
        for some_sources, some_labels in pool.map(lambda shard: _names(shards, shard), range(info.num_shards)):
            sources.update(some_sources)
            labels.update(some_labels)
        chosen = np.unique(np.linspace(0, len(shards) - 1, min(measure, len(shards))).astype(int))
        measured = []
        for level_and_seconds in pool.map(lambda clip: _level(shards, int(clip)), chosen):
            measured.append(level_and_seconds)
            tick()
    levels = np.array([level for level, _ in measured])
    sizes = sum(shards.path(shard).stat().st_size for shard in range(info.num_shards))
    return SplitStats(
        split=info.split,
        clips=info.num_clips,
        hours=info.num_samples / info.sample_rate / 3600,
        captions=info.num_captions,
        sample_rate=info.sample_rate,
        codec=info.codec,
        gigabytes=sizes / 1e9,
        left_out=_left_out(shards),
        sources=dict(sources.most_common()),
        labels=dict(labels.most_common()),
        silent=int(np.isneginf(levels).sum()),
        levels_db=levels[np.isfinite(levels)],
        seconds=np.array([length for _, length in measured]),
    )


def _names(shards: Shards, shard: int) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the numbers of clips of each source and of each label in one shard."""
    summary = read_summary(shards.directory, shards.info, shard)
    if 'labels' in summary and 'sources' in summary:
        return summary['sources'], summary['labels']
    # Summaries of earlier versions lack the counts, so the records are read.
    sources: collections.Counter[str] = collections.Counter()
    labels: collections.Counter[str] = collections.Counter()
    first = sum(shards.info.shard_lengths[:shard])
    for index in range(first, first + shards.info.shard_lengths[shard]):
        record = shards.read(index)
        labels.update(record.labels)
        sources[source_name(record)] += 1
    return sources, labels


def _level(shards: Shards, index: int) -> tuple[float, float]:
    """Returns the RMS in dB of full scale and the length in seconds of a clip."""
    record = shards.read(index)
    power = np.mean(np.square(decode_audio(record), dtype=np.float64)) / INT16_SCALE**2
    return 10 * math.log10(power) if power else -math.inf, record.num_samples / record.sample_rate


def _left_out(shards: Shards) -> dict[str, int]:
    path = skipped_path(shards.directory, shards.info.split)
    if not path.is_file():
        return {}
    try:
        rows = [row for _, row in read_table(path, ('id', 'reason'))]
    except DataError as error:
        raise DataError(f'{error}: delete this list of the clips that were left out') from error
    # Older versions had no named reasons and stored the message under `reason`.
    reasons = [row['reason'] if 'message' in row else 'unreadable' for row in rows]
    return dict(collections.Counter(reasons).most_common())


def table(stats: list[SplitStats], *, rows: int = 20) -> str:
    """Returns a text table of each split with its `rows` most frequent sources and labels."""
    lines = []
    for split in stats:
        lines += [
            f'split {split.split}',
            f'  clips      {split.clips}, {split.captions} captions, {split.hours:.2f} h',
            f'  audio      {split.codec} at {split.sample_rate} Hz, {split.gigabytes:.3g} GB',
        ]
        if split.left_out:
            lines.append('  left out   ' + ', '.join(f'{reason} {n}' for reason, n in split.left_out.items()))
        if split.measured:
            seconds = _percentiles(split.seconds)
            lines.append(
                f'  length     {seconds["p5"]:.2f} / {seconds["p50"]:.2f} / {seconds["p95"]:.2f} s '
                f'(5 %, median, 95 % of {split.measured} clips)'
            )
        if len(split.levels_db):
            levels = _percentiles(split.levels_db)
            lines.append(
                f'  loudness   {levels["p5"]:.1f} / {levels["p50"]:.1f} / {levels["p95"]:.1f} dB of full scale, RMS; '
                f'{split.silent} silent'
            )
        for title, counts in (('source', split.sources), ('label', split.labels)):
            lines += [f'  {title:<10} {count:>9}  {name}' for name, count in list(counts.items())[:rows]]
            if len(counts) > rows:
                lines.append(f'  {title:<10} {sum(list(counts.values())[rows:]):>9}  in {len(counts) - rows} others')
    return '\n'.join(lines)


def draw(stats: list[SplitStats], path: str | os.PathLike, title: str = '') -> None:
    """Draws a PNG with the loudness, the lengths of the clips and the most frequent labels of each split.

    Raises:
        DataError: the picture cannot be written.
    """
    # Imported late and without pyplot, for the reasons given in audiosep_jax/plots.py.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 0.6 + 4.2 * len(stats)), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    for row, split in zip(figure.subplots(len(stats), 3, squeeze=False), stats, strict=True):
        row[0].hist(np.clip(split.levels_db, _QUIETEST_DB, 0), bins=np.arange(_QUIETEST_DB, 1, _BIN_DB))
        row[0].set_title(f'{split.split}: {split.clips} clips, {split.hours:.1f} h', loc='left', parse_math=False)
        row[0].set_xlabel('RMS, dB of full scale')
        row[1].hist(split.seconds, bins=40)
        row[1].set_xlabel('length, seconds')
        for axis in row[:2]:
            axis.set_ylabel(f'clips of {split.measured} measured')
        names = list(split.labels)[:_LABELS_DRAWN]
        row[2].barh(range(len(names)), [split.labels[name] for name in names])
        row[2].set_yticks(range(len(names)), names, fontsize=max(4, 9 - len(names) // 8), parse_math=False)
        row[2].invert_yaxis()
        row[2].set_xlabel(f'clips with the label ({len(names)} of {len(split.labels)} labels)')
    if title:
        figure.suptitle(title, parse_math=False, wrap=True)
    try:
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Glyph .* missing from font')  # labels may be in any script
            canvas.print_png(temporary)
    except OSError as error:
        where = pathlib.Path(path)
        raise DataError(f'{where}: the picture cannot be written: {error.strerror or error}') from error
