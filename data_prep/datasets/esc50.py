"""ESC-50 (Piczak 2015): 2,000 sounds of 5 s at 44.1 kHz, 40 of each of 50 classes, in five folds.

The folder as it comes from GitHub, in `ESC-50-master.zip` or from Kaggle:

    meta/esc50.csv      filename,fold,target,category,esc10,src_file,take; on Kaggle: esc50.csv
    audio/*.wav         on Kaggle: audio/audio/44100/*.wav, or audio/audio/*.wav

A clip's id is its file name. Its label and its only caption are the category with spaces for underscores, such as
'chirping birds'. Rows of the same file become one clip with several categories, and its caption names all of them. Rows
that cannot be read are left out as unreadable; if most rows are like that, the table is refused.
"""

import dataclasses
import os
import pathlib
from typing import Annotated

import tyro

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import bad_row, files_or_refuse, find_file, list_media, read_table, refuse_wrong_table
from data_prep.clips.sources import Files
from data_prep.options import BuildOptions

FOLDS = (1, 2, 3, 4, 5)


def read_esc50(source: str | os.PathLike, folds: tuple[int, ...] = FOLDS) -> Files:
    """Returns the clips of some folds, in the order of the metadata.

    Args:
        source: the folder with `meta` (or `esc50.csv`) and `audio`, or the one that holds it.
        folds: the folds to take, from 1 to 5.

    Raises:
        ConfigError: there is no such fold.
        DataError: the metadata are missing or damaged, or no clip of these folds is there.
    """
    unknown = [fold for fold in folds if fold not in FOLDS]
    if unknown or not folds:
        raise ConfigError(f'--folds {" ".join(map(str, unknown))}: ESC-50 has the folds 1 to 5')
    table = find_file(source, 'meta/esc50.csv', 'esc50.csv', folders=['ESC-50-master'])
    if table is None:
        raise DataError(f'{pathlib.Path(source) / "meta" / "esc50.csv"}: no such file: give the folder of ESC-50')
    folder = table.parent.parent if table.parent.name == 'meta' else table.parent
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    clips = _clips(table, left_out)
    there = _sounds(folder / 'audio', left_out)
    for name, (fold, categories) in clips.items():
        if fold not in folds:
            continue
        if name in there:
            texts = tuple(category.replace('_', ' ') for category in categories)
            entries.append(Entry(name, f'audio/{there[name]}', (' and '.join(texts),), texts))
        else:
            left_out.append(LeftOut(name, 'missing', f'{folder / "audio" / name}: no such file'))
    return files_or_refuse(entries, folder, left_out, 'esc50')


def _sounds(folder: pathlib.Path, left_out: list[LeftOut]) -> dict[str, str]:
    """Returns the path of each file name below the folder; the copies at 16 kHz, which mirrors add, come last."""
    paths = [path for _, path in list_media(folder, left_out=left_out)]
    paths.sort(key=lambda path: ('16000' in path.split('/'), path.count('/'), path), reverse=True)
    return {path.rpartition('/')[2]: path for path in paths}


def _clips(path: pathlib.Path, left_out: list[LeftOut]) -> dict[str, tuple[int, list[str]]]:
    """Returns the fold and the categories of each file name."""
    clips: dict[str, tuple[int, list[str]]] = {}
    bad: list[LeftOut] = []
    for line, row in read_table(path, ('filename', 'fold', 'category'), bad=bad):
        name, fold, category = (row[key].strip() for key in ('filename', 'fold', 'category'))
        # The name is compared with the names in a folder, so it must not contain a folder.
        if not name or '/' in name or not category or fold not in map(str, FOLDS):
            bad.append(bad_row(path, line, 'expected a file name, a fold of 1 to 5 and a category'))
            continue
        known_fold, categories = clips.setdefault(name, (int(fold), []))
        if known_fold != int(fold):
            bad.append(bad_row(path, line, f'{name} is in fold {known_fold} and in {fold}'))
        elif category not in categories:
            categories.append(category)
    refuse_wrong_table(bad, len(clips))
    left_out += bad
    return clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildESC50(BuildOptions):
    """Shards from ESC-50: environmental sounds of 50 classes, captioned with the class."""

    source: pathlib.Path
    """Its folder, with meta/esc50.csv (or esc50.csv) and audio."""
    folds: Annotated[tuple[tuple[int, ...], ...], tyro.conf.UseAppendAction] = ()
    """Which of the five folds (default: all). The authors' classifiers train on four and test on the fifth."""

    def clips(self) -> ClipSource:
        return read_esc50(self.source, tuple(fold for folds in self.folds for fold in folds) or FOLDS)
