"""Measures what learning a query from examples gains over asking in words, class by class.

    python benchmarks/learn_query.py --checkpoint RUN --examples train.json --scored validation.json

Both files are lists of clips in AudioSep's format, {"data": [{"wav", "caption", "label"}, …]}, with paths relative to
the file. For each class with enough clips, a query is learnt from some clips of the first file, with clips of other
classes as backgrounds, and compared with the most frequent caption of the class, on mixtures of clips of the second
file. If both are the same file, its clips are divided: no clip is learnt from and scored on.

The tables give the means of the class in dB. Below them are the median over all mixtures of the difference, and the
mean over classes with its 95 % bootstrap interval, which resamples mixtures within the classes. The seconds are those
of learning, scores included, without the first class, which compiles.
"""

import collections
import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax import metrics
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.errors import DataError, reported
from audiosep_jax.evaluation.statistics import bootstrap_interval
from audiosep_jax.query_learning.learning import LearningConfig, learn_query
from audiosep_jax.query_learning.mixtures import Mixer, crops_of
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.separator import Separator
from audiosep_jax.storage.cache import enable_compilation_cache
from audiosep_jax.storage.json_files import read_json, write_json

DEFAULTS = LearningConfig()


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of a list."""

    path: Path
    caption: str
    label: str


def main(
    checkpoint: str,
    examples: Path,
    scored: Path,
    counts: tuple[int, ...] = (8, 3),
    classes: tuple[str, ...] = (),
    skip_classes: tuple[str, ...] = (),
    num_backgrounds: int = 24,
    mixtures: int = 24,
    min_scored: int = 2,
    snr_db: tuple[float, float] = (-5.0, 5.0),
    config: LearningConfig = DEFAULTS,
    json_file: Annotated[Path | None, tyro.conf.arg(name='json')] = None,
    seed: int = 0,
) -> None:
    """Measures, and prints the tables.

    Args:
        checkpoint: as for `audiosep-jax separate`.
        examples: the list of the clips to learn from.
        scored: the list of the clips to score on.
        counts: how many examples to learn from, one table for each.
        classes: only these; none: all that have enough clips.
        skip_classes: not these, for example those that settings were chosen on.
        num_backgrounds: how many clips of other classes to learn with; 0: procedural backgrounds.
        mixtures: how many mixtures to score on, per class.
        min_scored: least number of clips of a class in the second list.
        snr_db: the least and greatest level of the target in these mixtures.
        config: how to learn.
        json_file: also write the numbers to this file.
        seed: of the draws.
    """
    enable_compilation_cache()
    separator = load(checkpoint)
    found: dict[str, Any] = {}
    for count in counts:
        rng = np.random.default_rng(seed)
        lists = divided(read_clips(examples), read_clips(scored), count, examples.samefile(scored), rng)
        known = [sorted({clip.label for clip in clips}) for clips in lists]
        names = [
            name
            for name in known[0]
            if name in known[1] and (not classes or name in classes) and name not in skip_classes
            if sum(clip.label == name for clip in lists[0]) >= count
            if sum(clip.label == name for clip in lists[1]) >= min_scored
        ]
        if not names:
            raise DataError(f'{examples}: no class has {count} examples, and {min_scored} clips in {scored}')
        table = Table(
            'class', 'words', 'learnt', 'gain', 'alone: words', 'learnt', 'steps', 's', title=f'{count} examples'
        )
        rows = []
        for name in names:
            row = measure(separator, name, count, lists, num_backgrounds, mixtures, snr_db, config, rng)
            rows.append(row)
            text, learnt = (np.asarray(row[key]) for key in ('words', 'learnt'))
            print(
                f'{name}: {text.mean():.2f} -> {learnt.mean():.2f}, held out {row["held_out"]}, {row["seconds"]:.0f} s',
                flush=True,
            )
            numbers = [text.mean(), learnt.mean(), (learnt - text).mean(), *row['alone']]
            table.add_row(name, *(f'{number:.2f}' for number in numbers), str(row['steps']), f'{row["seconds"]:.0f}')
        Console(width=100).print(table)
        found[str(count)] = summary(rows, seed)
        print(found[str(count)]['text'], flush=True)
        found[str(count)]['classes'] = rows
    if json_file:
        write_json(json_file, found)


def read_clips(path: Path) -> list[Clip]:
    """Returns the clips of a list. Raises DataError."""
    entries = read_json(path, dict[str, list[dict[str, str]]]).get('data', [])
    return [Clip(path.parent / entry['wav'], entry['caption'], entry['label']) for entry in entries]


def divided(
    first: list[Clip], second: list[Clip], count: int, same: bool, rng: np.random.Generator
) -> tuple[list[Clip], list[Clip]]:
    """Returns the clips to learn from and those to score on, in random order; of one list, each clip once."""
    first, second = ([clips[i] for i in rng.permutation(len(clips))] for clips in (first, second))
    if not same:
        return first, second
    by_label = collections.defaultdict(list)
    for clip in first:
        by_label[clip.label].append(clip)
    learnt_from = [clip for clips in by_label.values() for clip in clips[: min(count, len(clips) // 2 or 1)]]
    return learnt_from, [clip for clip in first if clip not in learnt_from]


def measure(
    separator: Separator,
    name: str,
    count: int,
    lists: tuple[list[Clip], list[Clip]],
    num_backgrounds: int,
    mixtures: int,
    snr_db: tuple[float, float],
    config: LearningConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Learns a query for a class, and scores it and the words on the same mixtures."""
    own, others = ([[c for c in clips if (c.label == name) == wanted] for clips in lists] for wanted in (True, False))
    words = collections.Counter(clip.caption for clip in own[0]).most_common(1)[0][0]
    started = time.perf_counter()
    learnt = learn_query(
        separator,
        [clip.path for clip in own[0][:count]],
        query=words,
        backgrounds=[clip.path for clip in others[0][:num_backgrounds]],
        config=config,
    )
    seconds = time.perf_counter() - started
    rate = separator.config.sample_rate
    waveforms = [
        [read_audio(clip.path, sample_rate=rate, mono=True)[0][0] for clip in clips]
        for clips in (own[1], others[1][: max(mixtures, 1)])
    ]
    length = min(len(waveform) for group in waveforms for waveform in group)
    mixer = Mixer(*(crops_of(group, length) for group in waveforms), snr_db, 0.0)
    mixed, targets = mixer.draw(rng, mixtures)
    alone, _ = dataclasses.replace(mixer, absent=1.0).draw(rng, max(mixtures // 4, 1))
    row: dict[str, Any] = {'class': name, 'query': words, 'seconds': seconds, 'steps': learnt.steps, 'alone': []}
    row['held_out'] = f'{learnt.before.sdri:.2f} -> {learnt.after.sdri:.2f}'
    for key, embedding in (('words', separator.embed(words)[0]), ('learnt', learnt.embedding)):
        estimates = separate(separator, mixed, embedding)
        row[key] = [float(x) for x in metrics.sdri(targets, estimates, mixed)]
        row['alone'].append(float(-np.mean(metrics.sdr(alone, alone - separate(separator, alone, embedding)))))
    return row


def separate(separator: Separator, mixtures: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Returns what one embedding extracts from mixtures, float32 [B, T]."""
    return np.stack(separator.separate_batch(list(mixtures), np.tile(embedding, (len(mixtures), 1))))


def summary(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Returns the numbers of all classes together."""
    gains = np.concatenate([np.subtract(row['learnt'], row['words']) for row in rows])
    labels = [row['class'] for row in rows for _ in row['words']]
    means = [float(np.mean(np.subtract(row['learnt'], row['words']))) for row in rows]
    low, high = bootstrap_interval(gains, labels, seed)
    seconds = float(np.median([row['seconds'] for row in rows[1:] or rows]))
    return {
        'median': float(np.median(gains)),
        'median_of_classes': float(np.median(means)),
        'mean': float(np.mean(means)),
        'interval': [low, high],
        'seconds': seconds,
        'text': f'gain of the learnt query: median of mixtures {np.median(gains):+.2f} dB, of classes '
        f'{np.median(means):+.2f} dB; mean {np.mean(means):+.2f} dB ({low:+.2f} … {high:+.2f}); '
        f'{sum(mean > 0 for mean in means)} of {len(means)} classes gain; {seconds:.0f} s each',
    }


if __name__ == '__main__':
    with reported('learn_query.py'):
        tyro.cli(main)
