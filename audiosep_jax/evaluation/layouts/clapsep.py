"""Reads the benchmarks of CLAPSep: pairs of clips, with a caption of the sound to extract and one of that to exclude.

The tables are `metadata/evaluation/*.csv` of https://github.com/Aisaka0v0/CLAPSep (Ma et al., arXiv 2402.17455):
`source_file,positive_caption,noise_file,negative_caption`. The mixtures are not published, but made as in its
`evaluation/eval_audiocaps.py`: both clips are cut, or padded with zeros, to ten seconds and added at 0 dB, and a
mixture that would clip is scaled to a peak of 0.9.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from audiosep_jax.audio.formats import BENCHMARK_SUFFIXES
from audiosep_jax.errors import LeftOut
from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.layouts.tables import bad_row, read_header, read_rows, with_distinct_names

SECONDS = 10.0
_COLUMNS = ('source_file', 'positive_caption', 'noise_file', 'negative_caption')


@dataclasses.dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        title: see `Benchmark`.
        file: its name.
        num_items: how many mixtures it has.
    """

    title: str
    file: str
    num_items: int


TABLES = {
    'clapsep-audiocaps': Table("AudioCaps, CLAPSep's mixtures", 'audiocaps_eval.csv', 4785),
    'clapsep-audioset': Table("AudioSet, CLAPSep's mixtures", 'audioset_eval.csv', 18869),
    'clapsep-music': Table("MUSIC, CLAPSep's mixtures", 'music_eval.csv', 19805),
    'clapsep-esc50': Table("ESC-50, CLAPSep's mixtures", 'esc_eval.csv', 7500),
    'clapsep-fsd50k': Table("FSD50K, CLAPSep's mixtures", 'fsd_eval.csv', 8000),
}


def detect(folders: Sequence[Path]) -> str | None:
    """Returns the name of the benchmark whose table is in one of the folders.

    AudioSep's tables have the same names, so the columns decide.
    """
    for name, table in TABLES.items():
        for folder in folders:
            path = folder / table.file
            if path.is_file() and set(_COLUMNS) <= set(read_header(path)):
                return name
    return None


def reader(name: str) -> Callable[[Path, Path | None], tuple[list[Item], list[LeftOut]]]:
    """Returns the reader of a benchmark: from the folder of the clips and that of the table to its items."""
    table = TABLES[name]

    def read(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
        path, rows, bad = read_rows(folder, metadata, table.file, _COLUMNS)
        clips = _clips_below(folder)
        items = []
        for line, row in rows:
            source, positive, noise, negative = (row[column].strip() for column in _COLUMNS)
            if not (source and positive and noise and negative):
                bad.append(bad_row(path, line, 'a field is empty'))
                continue
            target, other = (clips.get(Path(file).stem, folder / file) for file in (source, noise))
            items.append(
                Item(
                    f'{source}+{noise}',
                    {'caption': positive},
                    None,
                    target,
                    _kind(positive),
                    source,
                    other,
                    0.0,
                    other=_kind(negative),
                    unwanted=negative,
                    seconds=SECONDS,
                )
            )
        return with_distinct_names(items), bad

    return read


def _kind(caption: str) -> str:
    """Returns the class in captions such as `the sound of sheep`; '' for AudioCaps' captions, which are sentences."""
    return caption.lower().removeprefix('the sound of ').strip() if caption.lower().startswith('the sound of ') else ''


def _clips_below(folder: Path) -> dict[str, Path]:
    """Returns the sound files in a folder and its sub-folders by their stems."""
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder):
        folders.sort()
        for path in sorted(map(Path, files)):
            if path.suffix.lower() in BENCHMARK_SUFFIXES and path.name[0] != '.':
                found.setdefault(path.stem, Path(place) / path)
    return found
