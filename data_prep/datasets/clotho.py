"""Clotho 2.1 (Drossos et al. 2020, doi 10.5281/zenodo.4783391): 15 to 30 s of Freesound at 44.1 kHz, 5 captions each.

It expects the folder with the downloaded tables and the unpacked archives, which may be one level deeper:

    clotho_captions_development.csv     file_name,caption_1,…,caption_5 (also …_validation.csv, …_evaluation.csv)
    clotho_metadata_development.csv     file_name,keywords,sound_id,… in Latin-1; optional: the keywords become labels
    development/*.wav                   also validation, evaluation

Splits are train, val and test, or the authors' names development, validation and evaluation. A clip's id is its file
name. Keywords are the tags that the uploader gave the sound, separated by ';', so the set of labels is not fixed.
"""

import dataclasses
import os
import pathlib
import unicodedata

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import (
    bad_row,
    distinct,
    files_or_refuse,
    find_file,
    first_of,
    list_media,
    read_table,
    refuse_wrong_table,
    stem_of,
    visible,
)
from data_prep.clips.sources import Files
from data_prep.exclusions import ExcludingOptions, is_excluded

SPLITS = {'train': 'development', 'val': 'validation', 'test': 'evaluation'}

_CAPTIONS = tuple(f'caption_{number}' for number in range(1, 6))
# The metadata are in Latin-1. Copies that were saved again are often UTF-8; Latin-1 text is hardly ever valid UTF-8.
_ENCODINGS = ('utf-8-sig', 'latin-1')


def read_clotho(
    source: str | os.PathLike,
    split: str = 'train',
    *,
    labels: bool = True,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the clips of a split, in the order of its captions.

    Args:
        source: the folder with the CSV files and the folders of sounds.
        split: 'train', 'val', 'test', or the authors' name of the split.
        labels: take the keywords of the metadata as labels, if there are metadata.
        excluded: file names or Freesound ids to leave out.

    Raises:
        ConfigError: there is no such split.
        DataError: the captions are missing or damaged, or none of the files is there.
    """
    part = SPLITS.get(split, split)
    if part not in SPLITS.values():
        raise ConfigError(f'--split {split!r}: Clotho has train (development), val (validation) and test (evaluation)')
    folder = pathlib.Path(source)
    name = f'clotho_captions_{part}.csv'
    table = find_file(folder, name)
    if table is None:
        raise DataError(f'{folder}: no {name} in it: give the folder into which Clotho was downloaded')
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    captions: dict[str, list[str]] = {}
    bad: list[LeftOut] = []
    for line, row in read_table(table, ('file_name', *_CAPTIONS), encodings=_ENCODINGS, bad=bad):
        if not row['file_name'].strip():
            bad.append(bad_row(table, line, 'no file name'))
            continue
        known = captions.setdefault(_key(row['file_name']), [])
        # One row may contain the same sentence twice. From a second row of the same file only new sentences are taken.
        known += [text for text in visible(row[column] for column in _CAPTIONS) if not known or text not in known]
    refuse_wrong_table(bad, len(captions))
    if not captions:
        raise DataError(f'{table}: lists no clips')
    left_out += bad
    keywords, sound_ids = _metadata(folder, part)
    others = frozenset(SPLITS.values()) - {part}
    # Some names have a space before the suffix, which not every unpacking tool keeps.
    paths = first_of((stem.strip(), path) for stem, path in list_media(folder, left_out=left_out, skip=others))
    for clip_id, listed in captions.items():
        path, texts = paths.get(stem_of(clip_id).strip()), tuple(listed)
        if is_excluded(excluded, clip_id, *sound_ids.get(clip_id, ())):
            left_out.append(LeftOut(clip_id, 'excluded', f'{clip_id}: in a list of --exclude'))
        elif not texts:
            left_out.append(LeftOut(clip_id, 'excluded', f'{clip_id}: has no caption'))
        elif path is None:
            left_out.append(LeftOut(clip_id, 'missing', f'{folder / part / clip_id}: no such file'))
        else:
            entries.append(Entry(clip_id, path, texts, keywords.get(clip_id, ()) if labels else ()))
    return files_or_refuse(entries, folder, left_out, 'clotho')


def _metadata(folder: pathlib.Path, part: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Returns keywords and Freesound ids by file name; both are empty if there are no metadata."""
    table = find_file(folder, f'clotho_metadata_{part}.csv')
    keywords: dict[str, tuple[str, ...]] = {}
    sound_ids: dict[str, tuple[str, ...]] = {}
    if table is not None:
        for _, row in read_table(table, ('file_name', 'keywords'), encodings=_ENCODINGS, loose=True):
            known = _key(row['file_name'])
            keywords[known] = distinct((*keywords.get(known, ()), *row['keywords'].split(';')))
            sound_id = row.get('sound_id', '').strip()
            sound_ids[known] = (sound_id,) if sound_id.isdigit() else ()  # else 'Not found'
    return keywords, sound_ids


def _key(file_name: str) -> str:
    """Returns the key by which the two tables are joined."""
    return unicodedata.normalize('NFC', file_name.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildClotho(ExcludingOptions):
    """Shards from Clotho 2.1: --split train (development), val (validation) or test (evaluation)."""

    source: pathlib.Path
    """The folder with clotho_captions_development.csv and others, and with the folders development, …."""
    labels: bool = True
    """Keep the keywords of clotho_metadata_….csv, if there is one, as labels."""

    def clips(self) -> ClipSource:
        return read_clotho(self.source, self.split, labels=self.labels, excluded=self.excluded)
