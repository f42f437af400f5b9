"""Reads the tables of benchmarks, and finds the files that they name."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax.audio.formats import BENCHMARK_SUFFIXES
from audiosep_jax.errors import DataError, LeftOut
from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.storage.tables import read_text, rows_of


def read_rows(
    folder: Path, metadata: Path | None, name: str, columns: Sequence[str], advice: str = ''
) -> tuple[Path, list[tuple[int, dict[str, str]]], list[LeftOut]]:
    """Returns the path of a table, its rows with their line numbers, and the rows that do not fit the header.

    If several columns have the same name, the first one counts: Clotho's table has two `noise_wav1`.

    Args:
        folder: folder of the benchmark.
        metadata: folder of the table; None: it is looked for.
        name: the table's file name.
        columns: the columns that the table must have; if empty, rows are keyed by the positions of their fields.
        advice: what the error message says to do if the table cannot be read.

    Raises:
        DataError: the table is missing, cannot be read, or lacks a column.
    """
    parents = folder.absolute().parents[:2]
    places = [metadata] if metadata else [folder, *(p / 'metadata' for p in (folder, *parents)), *parents[:1]]
    path = next((place / name for place in places if (place / name).exists()), places[0] / name)
    bad = []
    advice = advice or f'--data is the folder of the audio, --metadata that of {name}'
    if not path.exists():
        raise DataError(f'{path}: No such file or directory; {advice}')
    try:
        lines = list(rows_of(path, read_text(path), strict=False))
    except DataError as error:
        raise DataError(f'{error}; {advice}') from error
    header = [column.strip() for column in lines[0][1]] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        found = ','.join(header) or 'empty'
        raise DataError(f'{path}: no column {" and ".join(missing)} in its first line: {found:.200}')
    rows = []
    for line, fields in lines[1:]:
        if not fields:
            continue
        if len(fields) != len(header):
            problem = f'{len(fields)} fields, the first line has {len(header)}'
            bad.append(bad_row(path, line, problem))
            continue
        keys = header if columns else map(str, range(len(header)))
        row: dict[str, str] = {}
        for key, field in zip(keys, fields, strict=True):
            row.setdefault(key, field)
        rows.append((line, row))
    return path, rows, bad


def with_distinct_names(items: list[Item]) -> list[Item]:
    """Numbers items with the same name: the original scores an item twice if its row occurs twice."""
    seen: dict[str, int] = {}
    result = []
    for item in items:
        seen[item.name] = seen.get(item.name, 0) + 1
        again = seen[item.name] > 1
        result.append(dataclasses.replace(item, name=f'{item.name} ({seen[item.name]})') if again else item)
    return result


def bad_row(path: Path, line: int, problem: str) -> LeftOut:
    return LeftOut(f'{path.name}:{line}', 'bad row', f'{path} line {line}: {problem}')


def tables_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob('*.csv') if path.is_file() and path.name[0] != '.')


def read_header(table: Path) -> list[str]:
    """Returns the columns of a table; [] if it cannot be read, which is reported when its rows are read."""
    try:
        _, header = next(rows_of(table, read_text(table), strict=False), (0, []))
    except DataError:
        return []
    return [column.strip() for column in header]


def first_existing(folder: Path, stem: str) -> Path:
    """Returns the file with that stem; if there is none, the .wav, whose absence will be reported."""
    for suffix in BENCHMARK_SUFFIXES:
        if os.path.exists(folder / f'{stem}{suffix}'):  # unlike Path.exists, False for a name that is too long
            return folder / f'{stem}{suffix}'
    return folder / f'{stem}{BENCHMARK_SUFFIXES[0]}'
