"""FSD50K (Fonseca et al. 2020, doi 10.5281/zenodo.4060432): Freesound clips of 0.3 to 30 s, 200 classes of AudioSet.

It expects the folder into which the archives of Zenodo were unpacked, or a mirror of it:

    FSD50K.ground_truth/dev.csv         fname,labels,mids,split    (split: train or val)
    FSD50K.ground_truth/eval.csv        fname,labels,mids
    FSD50K.dev_audio/*.wav              also FSD50K.eval_audio, named by fname, a number of Freesound
    FSD50K.metadata/dev_clips_info_FSD50K.json      title, description, tags, …; also eval_…; read for --titles alone

On Hugging Face these are labels/dev.csv, clips/dev/*.wav and metadata/…; on Kaggle, each folder is in another of its
name.

Splits are train and val (of dev.csv), dev (both) and test or eval. A clip's id is its fname.

Labels are kept in AudioSet's spelling: `Chirp_and_tweet` becomes 'Chirp, tweet'. A clip is labelled with a class and
its parents, each of which is a correct name of the sound. So each label is a caption, and a sentence with all of them
is another. A clip of several sounds has labels that are not parents of one another; it gets the captions of
`data_prep.datasets.audioset`, which name all labels. A class's parents are the labels that all its clips share.

    Chirp_and_tweet,Bird            Chirp, tweet
                                    Bird
                                    the sounds of chirp (tweet) and bird
    Chirp_and_tweet,Bird,Speech     Chirp, tweet, Bird, Speech
                                    the sounds of chirp (tweet), bird and speech

Rows that cannot be read are left out as unreadable; if most rows are like that, the table is refused.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Collection, Sequence

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.storage.tables import read_text
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
)
from data_prep.clips.sources import Files
from data_prep.datasets.audioset import captions_of
from data_prep.exclusions import ExcludingOptions, is_excluded

# For each split, the part of the dataset and the splits of dev.csv that belong to it.
_PARTS = {
    'train': ('dev', ('train',)),
    'val': ('dev', ('val',)),
    'dev': ('dev', ('train', 'val')),
    'test': ('eval', None),
    'eval': ('eval', None),
}
_TABLES = ('FSD50K.ground_truth', 'ground_truth', 'labels')
_SOUNDS = ('FSD50K.{part}_audio', '{part}_audio', 'clips/{part}', 'audio/{part}')
_METADATA = ('FSD50K.metadata', 'metadata')
# The only AudioSet name in which one '_and_' of FSD50K stands for a comma and another for ', and'.
_SPELLINGS = {'Dishes_and_pots_and_pans': 'Dishes, pots, and pans'}


def read_fsd50k(
    source: str | os.PathLike,
    split: str = 'train',
    *,
    titles: bool = False,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the clips of a split, in the order of the ground truth.

    Args:
        source: the folder with FSD50K.ground_truth and the folders of sounds.
        split: 'train', 'val', 'dev', 'test' or 'eval'.
        titles: take the uploader's title of each clip as a caption too.
        excluded: Freesound ids to leave out.

    Raises:
        ConfigError: there is no such split.
        DataError: the ground truth is missing or damaged, requested titles are missing, or none of the files is there.
    """
    if split not in _PARTS:
        raise ConfigError(f'--split {split!r}: FSD50K has train, val, dev (both of them) and test (or eval)')
    part, wanted = _PARTS[split]
    table = find_file(source, *_in(_TABLES, f'{part}.csv'), f'{part}.csv')
    if table is None:
        raise DataError(f'{source}: no FSD50K.ground_truth/{part}.csv in it: give the folder of FSD50K')
    folder, sounds = _sounds(pathlib.Path(source), table, part)
    columns = ('fname', 'labels', 'split') if wanted else ('fname', 'labels')
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    clips, parents = _read_clips(table, columns, wanted, left_out)
    if not clips:
        raise DataError(f'{table}: lists no clips of split {split!r}')
    paths = first_of(list_media(folder / sounds, left_out=left_out))
    known = _titles(folder, part) if titles else {}
    for clip_id, listed in clips.items():
        labels = distinct(map(audioset_name, listed))
        is_one_sound = any(parents[label].issuperset(listed) for label in listed)
        joint = captions_of(labels)
        captions = (*labels, *joint[1:]) if is_one_sound else joint
        texts = distinct([*captions, known.get(clip_id, '')])
        if is_excluded(excluded, clip_id):
            left_out.append(LeftOut(clip_id, 'excluded', f'{clip_id}: in a list of --exclude'))
        elif not texts:
            left_out.append(LeftOut(clip_id, 'excluded', f'{clip_id}: has no label'))
        elif clip_id not in paths:
            left_out.append(LeftOut(clip_id, 'missing', f'{folder / sounds / clip_id}.wav: no such file'))
        else:
            entries.append(Entry(clip_id, f'{sounds}/{paths[clip_id]}', texts, labels))
    return files_or_refuse(entries, folder, left_out, 'fsd50k')


def _in(folders: Sequence[str], name: str) -> list[str]:
    """Returns the paths of a file in these folders, and in another of the same name in each."""
    return [f'{folder}/{inner}{name}' for folder in folders for inner in ('', f'{folder}/')]


def _sounds(source: pathlib.Path, table: pathlib.Path, part: str) -> tuple[pathlib.Path, str]:
    """Returns the dataset's folder and the name of the folder in it that holds the sounds of a part."""
    names = [name.format(part=part) for name in _SOUNDS]
    parents = [folder for folder in table.parents[:3] if folder == source or source in folder.parents]
    for folder, name in itertools.product(parents, names):
        if (folder / name).is_dir():
            return folder, name
    return next((folder for folder in parents if folder.name not in _TABLES), source), names[0]


def _read_clips(
    table: pathlib.Path, columns: Sequence[str], wanted: Collection[str] | None, left_out: list[LeftOut]
) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """Returns the labels by fname in the wanted splits, and for each label those that all its clips share."""
    clips: dict[str, list[str]] = {}
    parents: dict[str, set[str]] = {}
    bad: list[LeftOut] = []
    rows = 0
    for line, row in read_table(table, columns, bad=bad):
        clip_id, split = stem_of(row['fname'].strip()), row.get('split', '').strip()
        if not clip_id:
            bad.append(bad_row(table, line, 'no fname'))
            continue
        if wanted and split not in ('train', 'val'):
            bad.append(bad_row(table, line, f'split {split!r}: expected train or val'))
            continue
        rows += 1
        labels = [label.strip() for label in row['labels'].split(',')]
        for label in labels:
            parents.setdefault(label, set(labels)).intersection_update(labels)
        if wanted is None or split in wanted:
            clips.setdefault(clip_id, []).extend(labels)
    refuse_wrong_table(bad, rows)
    left_out += bad
    return clips, parents


def audioset_name(label: str) -> str:
    """Returns AudioSet's display name of a label of FSD50K, such as 'Chirp, tweet' for 'Chirp_and_tweet'."""
    return _SPELLINGS.get(label) or label.replace('_and_', ', ').replace('_', ' ')


def _titles(folder: pathlib.Path, part: str) -> dict[str, str]:
    """Returns titles by fname, as words: 'dog bark 3' for 'dog_bark_3.wav'."""
    name = f'{part}_clips_info_FSD50K.json'
    path = find_file(folder, *_in(_METADATA, name)) or folder / _METADATA[0] / name
    values = parse_json(read_text(path), path, strict=False)
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise DataError(f'{path}: expected {{"FNAME": {{"title": …}}, …}}')
    return {name: stem_of(str(value.get('title', ''))).replace('_', ' ') for name, value in values.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildFSD50K(ExcludingOptions):
    """Shards from FSD50K: --split train, val, dev (both of them) or test. The captions are made of the labels."""

    overlap = (
        'FSD50K and the evaluation sets ESC-50 and Clotho are of Freesound and have clips in common: to evaluate on '
        'them, leave them out with --exclude esc50.csv clotho_metadata_evaluation.csv'
    )
    source: pathlib.Path
    """The folder with FSD50K.ground_truth, FSD50K.dev_audio and FSD50K.eval_audio, or with labels and clips."""
    titles: bool = False
    """Take the titles of FSD50K.metadata as captions too. Uploaders wrote them, and they often say little."""

    def clips(self) -> ClipSource:
        return read_fsd50k(self.source, self.split, titles=self.titles, excluded=self.excluded)
