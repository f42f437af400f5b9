"""AudioSet (Gemmeke et al. 2017): two million ten-second clips of YouTube videos, labelled with 527 classes.

It is distributed as tables, in which three lines begin with #, and the names of the classes:

    balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
        # YTID, start_seconds, end_seconds, positive_labels
        --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
    class_labels_indices.csv
        index,mid,display_name

Users fetch the sounds themselves. A clip's file is looked up below the source folder, at any depth and with any
suffix, as `YTID`, `YYTID` (a Y before the id), and either with its times, `_30`, `_30_40`, `_30-40`, `_30.000_40.000`,
`_30000_40000` (milliseconds) or `_000030`, also as `Title [YTID]`. A clip's id is `YTID_START`, START in seconds.

Labels are the display names. Two captions are made from them: the list of names, and a sentence in which commas and
parentheses within a name become one pair of parentheses. Each caption names all labels, because the whole clip is the
target of its query: for the query 'Dog' a clip that also holds a man's speech would be a wrong target.

    Dog                                     Dog
                                            the sound of dog
    Dog; Male speech, man speaking          Dog, Male speech, man speaking
                                            the sounds of dog and male speech (man speaking)

Labels that are not in the list of classes are ignored; a clip without other labels is left out as excluded. Rows that
cannot be read are left out as unreadable; if most rows are like that, the table is refused.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

import tyro

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from audiosep_jax.storage.tables import read_text, rows_of
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import (
    bad_row,
    files_or_refuse,
    find_file,
    list_media,
    one_line,
    read_table,
    refuse_wrong_table,
)
from data_prep.clips.sources import Files
from data_prep.clips.youtube import by_name, find_clip
from data_prep.exclusions import FILES, ExcludingOptions, is_excluded

# The available splits and the tables of each.
_BALANCED, _UNBALANCED, _EVAL = (f'{name}_segments.csv' for name in ('balanced_train', 'unbalanced_train', 'eval'))
_TABLES = {
    'train': (_BALANCED, _UNBALANCED),
    'balanced_train': (_BALANCED,),
    'unbalanced_train': (_UNBALANCED,),
    'eval': (_EVAL,),
    'test': (_EVAL,),
}
_CLASSES = 'class_labels_indices.csv'
_COLUMNS = ('YTID', 'start_seconds', 'end_seconds', 'positive_labels')
# Class names that begin with a proper name keep their capital letter.
_PROPER = ('Bollywood', 'Carnatic', 'Christian', 'Christmas', 'French', 'Hammond', 'Middle Eastern', 'Rhodes')


@dataclasses.dataclass(slots=True)
class _Segment:
    """One row, or several rows of the same clip."""

    youtube_id: str
    start: float
    end: float
    mids: str  # as in the table: mid,mid,…


def read_audioset(
    source: str | os.PathLike,
    split: str = 'train',
    *,
    segments: Sequence[str | os.PathLike] = (),
    classes: str | os.PathLike | None = None,
    whole_videos: bool = False,
    frames: int = 0,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the clips of a split, in the order of its tables.

    Args:
        source: the folder with the sounds at any depth; the tables are in it or in a folder directly in it.
        split: 'balanced_train', 'unbalanced_train', 'train' (both, or the one there is), 'eval' or 'test' (the same).
        segments: tables to use instead of those of the split, in the same format.
        classes: the list of classes, if it is not in `source`.
        whole_videos: the files are whole videos, and a clip is its part of the video.
        frames: number of pictures to take from each video.
        excluded: YouTube ids or clip ids to leave out.

    Raises:
        ConfigError: there is no such split.
        DataError: a table is missing or damaged, or none of the clips has a file.
    """
    folder = pathlib.Path(source)
    tables = [pathlib.Path(table) for table in segments] or _find_tables(folder, split)
    names = read_classes(classes or find_file(folder, _CLASSES) or folder / _CLASSES)
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    merged = _merge(row for table in tables for row in _read_segments(table, left_out))
    paths = by_name(list_media(folder, left_out=left_out, video_first=frames > 0))
    videos = Counter(segment.youtube_id for segment in merged)
    texts: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}  # shared, because there are two million clips
    for segment in merged:
        youtube, start, end = segment.youtube_id, segment.start, segment.end
        clip_id = f'{youtube}_{start:g}'
        if segment.mids not in texts:
            mids = map(str.strip, segment.mids.split(','))
            labels = tuple(dict.fromkeys(names[mid] for mid in mids if mid in names))
            texts[segment.mids] = labels, captions_of(labels)
        labels, captions = texts[segment.mids]
        path = find_clip(paths, youtube, start, end, whole_video=whole_videos, only_one=videos[youtube] == 1)
        if is_excluded(excluded, clip_id, youtube):
            left_out.append(LeftOut(clip_id, 'excluded', f'{clip_id}: in a list of --exclude'))
        elif not labels:
            message = f'{clip_id}: none of its labels is in {_CLASSES}: {segment.mids}'
            left_out.append(LeftOut(clip_id, 'excluded', message))
        elif path is None:
            message = f'{clip_id}: no file below {folder} named {youtube} or Y{youtube}, with or without its times'
            left_out.append(LeftOut(clip_id, 'missing', message))
        elif whole_videos:
            entries.append(Entry(clip_id, path, captions, labels, start, end - start))
        else:
            entries.append(Entry(clip_id, path, captions, labels))
    return files_or_refuse(entries, folder, left_out, 'audioset', frames)


def read_classes(path: str | os.PathLike) -> dict[str, str]:
    """Returns display names by mid. Raises DataError if the list is missing or lacks one of the two columns."""
    names = {row['mid'].strip(): one_line(row['display_name']) for _, row in read_table(path, ('mid', 'display_name'))}
    if not any(names.values()):
        raise DataError(f'{path}: lists no classes')
    return {mid: name for mid, name in names.items() if name}


def captions_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the list of labels and a sentence made from them, as described above."""
    phrases = [_phrase(label) for label in labels]
    if not phrases:
        return ()
    listed = ' and '.join([', '.join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)
    return ', '.join(labels), f'the {"sounds" if phrases[1:] else "sound"} of {listed}'


@functools.cache
def _phrase(label: str) -> str:
    """Returns 'Fire engine, fire truck (siren)' as 'fire engine (fire truck, siren)'."""
    head, *rest = (text.strip() for text in re.split(r'[,(]', label.replace(')', '')) if text.strip())
    if not head.startswith(_PROPER) and head[1:2].islower():
        head = head[0].lower() + head[1:]
    return f'{head} ({", ".join(rest)})' if rest else head


def _find_tables(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    if split not in _TABLES:
        raise ConfigError(f'--split {split!r}: AudioSet has {", ".join(_TABLES)}; or give --segments, the table')
    tables = [find_file(folder, name) for name in _TABLES[split]]
    found = [table for table in tables if table is not None]
    if not found:
        raise DataError(f'{folder}: no {" or ".join(_TABLES[split])} in it: give --segments, the table of the split')
    return found


def _read_segments(path: pathlib.Path, left_out: list[LeftOut]) -> list[_Segment]:
    """Reads a table. Raises DataError if it has another format; single bad rows are added to `left_out`."""
    segments: list[_Segment] = []
    bad: list[LeftOut] = []
    for line, row in rows_of(path, read_text(path), skipinitialspace=True):
        # YouTube ids contain no #. Some copies have lost the # before the header.
        if not row or row[0].startswith('#') or row[0] == _COLUMNS[0]:
            continue
        segment = _segment(row)
        if segment:
            segments.append(segment)
        else:
            problem = f'expected {", ".join(_COLUMNS)} (in quotes), got {", ".join(row):.80}'
            bad.append(bad_row(path, line, problem))
    refuse_wrong_table(bad, len(segments))
    if not segments:
        raise DataError(f'{path}: lists no clips')
    left_out += bad
    return segments


def _segment(row: list[str]) -> _Segment | None:
    """Returns None for a line that is not a row of the table."""
    try:
        youtube, first, last, mids = (text.strip() for text in row)
        start, end = float(first), float(last)
    except ValueError:
        return None
    return _Segment(youtube, start, end, mids) if youtube and 0 <= start < end < float('inf') else None


def _merge(segments: Iterable[_Segment]) -> list[_Segment]:
    """Merges clips that are listed twice into one with the labels of both."""
    merged: dict[tuple[str, str], _Segment] = {}
    for segment in segments:
        # The key is what distinguishes ids.
        known = merged.setdefault((segment.youtube_id, f'{segment.start:g}'), segment)
        if known is not segment and segment.mids != known.mids:
            known.mids = f'{known.mids},{segment.mids}'
    return list(merged.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildAudioSet(ExcludingOptions):
    """Shards from AudioSet: --split train, balanced_train, unbalanced_train or eval."""

    overlap = (
        'AudioSet may hold clips of the test splits of VGGSound and AudioCaps: to evaluate on them, leave them out '
        'with --exclude vggsound.csv test.csv'
    )
    source: pathlib.Path
    """The folder with the sounds or videos, at any depth, with the tables (…_segments.csv) and
    class_labels_indices.csv."""
    segments: Annotated[tuple[tuple[pathlib.Path, ...], ...], tyro.conf.UseAppendAction, FILES] = ()
    """Tables of the split (default: those in the source that are named after it; for train the balanced and the
    unbalanced one)."""
    classes: pathlib.Path | None = None
    """The list of classes (default: class_labels_indices.csv in the source)."""
    whole_videos: bool = False
    """The files are whole videos: take the part from start_seconds to end_seconds."""
    frames: int = 0
    """Number of pictures to keep of each video, for image queries."""

    def clips(self) -> ClipSource:
        return read_audioset(
            self.source,
            self.split,
            segments=[path for paths in self.segments for path in paths],
            classes=self.classes,
            whole_videos=self.whole_videos,
            frames=self.frames,
            excluded=self.excluded,
        )
