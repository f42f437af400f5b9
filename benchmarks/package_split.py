"""Splits a folder of sounds into training and validation by package, so that no package is on both sides.

    python benchmarks/package_split.py SOUNDS OUT --share 0.2 --seed 0

SOUNDS holds `train.json`, a datafile of `wav` and `caption`, and `sources.csv`, which names the class and the package
of each `file`. Sounds of one package often come from the same recording, so a split by clip would show training sounds
in validation. Writes `OUT/train.json` and `OUT/validation.json`, whose paths point into SOUNDS.
"""

import collections
import csv
import os
import random
from collections.abc import Sequence
from pathlib import Path

import tyro

from audiosep_jax.errors import DataError, reported
from audiosep_jax.storage.json_files import write_json
from data_prep.datasets.manifest import read_manifest

DRAWS = 1000


def main(sounds: Path, out: Path, /, share: float = 0.2, seed: int = 0) -> None:
    """Writes OUT/train.json and OUT/validation.json.

    Args:
        sounds: the folder with train.json and sources.csv.
        out: the folder for both lists, not SOUNDS itself.
        share: the largest share of the clips in validation.
        seed: of the split.
    """
    if out.resolve() == sounds.resolve():
        raise DataError(f'{out}: would replace the train.json that is split: choose another folder')
    sources = read_sources(sounds / 'sources.csv')
    captions = {entry.wav: entry.captions for entry in read_manifest(sounds / 'train.json').entries}
    if missing := [row['file'] for row in sources if row['file'] not in captions]:
        raise DataError(f'{sounds / "train.json"}: does not list {missing[0]}, which is in sources.csv')
    training, validation = split_by_package(sources, share, seed)
    for name, rows in (('train.json', training), ('validation.json', validation)):
        entries = [
            {
                'wav': os.path.relpath(sounds.resolve() / row['file'], out.resolve()),
                'caption': caption,
                'label': row['class'],
            }
            for row in rows
            for caption in captions[row['file']]
        ]
        write_json(out / name, {'data': entries})
    print(describe_split(training, validation))


def read_sources(path: Path) -> list[dict[str, str]]:
    """Returns the rows of sources.csv.

    Raises:
        DataError: it is missing, or has no column `file`, `class` or `package`.
    """
    columns, rows = read_table(path)
    if not rows or not {'file', 'class', 'package'} <= {*columns}:
        raise DataError(f'{path}: must have the columns file, class and package, and a row for each sound')
    return rows


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and the rows of a CSV file; cells that a row lacks are ''.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    try:
        with path.open(encoding='utf-8', newline='') as file:
            reader = csv.DictReader(file, restval='')
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f'{path}: cannot be read as a table: {error}') from error
    return columns, rows


def split_by_package(
    rows: Sequence[dict[str, str]], share: float = 0.2, seed: int = 0
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns the rows for training and those for validation, in the order in which they were given.

    Each package is wholly on one side, and each class keeps a package in training, so that a class from one package
    alone is not in validation. Of `DRAWS` random splits, the one with the most classes in validation is taken, and of
    these the largest.

    Args:
        rows: they have `class` and `package`; what follows a space in the name of the package is not part of it.
        share: the largest share of the rows in validation, more than 0 and less than 1.
        seed: the same seed gives the same split.

    Raises:
        DataError: the share is out of range.
    """
    if not 0 < share < 1:
        raise DataError(f'the share of validation must be between 0 and 1, got {share:g}')
    sizes = collections.Counter(package_of(row) for row in rows)
    packages_of: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        packages_of[row['class']].add(package_of(row))
    generator = random.Random(seed)
    best, best_score = set[str](), (0, 0)
    for _ in range(DRAWS):
        held, count = set[str](), 0
        for package in generator.sample(sorted(sizes), len(sizes)):
            fits = count + sizes[package] <= share * len(rows)
            if fits and all(packages - held - {package} for packages in packages_of.values()):
                held.add(package)
                count += sizes[package]
        score = (sum(not packages.isdisjoint(held) for packages in packages_of.values()), count)
        if score > best_score:
            best, best_score = held, score
    training = [row for row in rows if package_of(row) not in best]
    return training, [row for row in rows if package_of(row) in best]


def package_of(row: dict[str, str]) -> str:
    """Returns the package of a row; presets of one sound font share a package, because they share samples."""
    return row['package'].split(' ')[0]


def describe_split(training: Sequence[dict[str, str]], validation: Sequence[dict[str, str]]) -> str:
    """Returns what is printed about a split."""
    absent = sorted({row['class'] for row in training} - {row['class'] for row in validation})
    counts = ', '.join(
        f'{len(rows)} clips from {len({package_of(row) for row in rows})} packages in {name}'
        for rows, name in ((training, 'training'), (validation, 'validation'))
    )
    return f'{counts}; classes in training alone: {", ".join(absent) or "none"}'


if __name__ == '__main__':
    with reported('package_split.py'):
        tyro.cli(main)
