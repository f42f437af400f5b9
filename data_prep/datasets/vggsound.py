"""VGGSound (Chen et al. 2020): 200,000 ten-second clips of YouTube videos that show what sounds, in 309 classes.

Its list has no header; the older lists, `train.csv` and `test.csv`, name files:

    vggsound.csv            --0PQM4-hqg,30,waterfall burbling,train
    train.csv, test.csv     --0PQM4-hqg_000030.mp4,waterfall burbling

A clip's file is looked up below the source folder, at any depth and with any suffix, as `YTID_000030`; also with the
times that other scripts write (see `data_prep.clips.youtube`), or by its YouTube id where the list has one clip of the
video. A clip's id is `YTID_000030`. Its captions are the label, 'waterfall burbling', and 'the sound of waterfall
burbling'; a clip with several labels gets captions that name all of them, as in `data_prep.datasets.audioset`. Rows
that cannot be read are left out as unreadable; if most rows are like that, the list is refused.
"""

import dataclasses
import os
import pathlib
from collections import Counter

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from audiosep_jax.storage.tables import read_text, rows_of
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import (
    bad_row,
    distinct,
    files_or_refuse,
    find_file,
    list_media,
    refuse_wrong_table,
    stem_of,
)
from data_prep.clips.sources import Files
from data_prep.clips.youtube import by_name, find_clip
from data_prep.datasets.audioset import captions_of
from data_prep.exclusions import ExcludingOptions, is_excluded

CLIP_SECONDS = 10.0
_SPLITS = ('train', 'test')


@dataclasses.dataclass
class _Listed:
    """One clip of the list."""

    youtube_id: str
    start: int
    labels: list[str]

    @property
    def id(self) -> str:
        return f'{self.youtube_id}_{self.start:06d}'


def read_vggsound(
    source: str | os.PathLike,
    split: str = 'train',
    *,
    table: str | os.PathLike | None = None,
    whole_videos: bool = False,
    frames: int = 0,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the clips of a split, in the order of the list.

    Args:
        source: the folder with the videos or sounds at any depth; the list is in it or in a folder directly in it.
        split: 'train' or 'test'.
        table: the list; by default vggsound.csv in `source`, or SPLIT.csv.
        whole_videos: the files are whole videos, and a clip is the ten seconds from its start on.
        frames: number of pictures to take from each video.
        excluded: YouTube ids or clip ids to leave out.

    Raises:
        ConfigError: there is no such split.
        DataError: the list is missing or damaged, has no clip of the split, or none of its clips has a file.
    """
    if split not in _SPLITS:
        raise ConfigError(f'--split {split!r}: VGGSound has train and test')
    folder = pathlib.Path(source)
    table = table or find_file(folder, 'vggsound.csv') or find_file(folder, f'{split}.csv')
    if table is None:
        raise DataError(f'{folder}: no vggsound.csv or {split}.csv in it: give --table, the list of VGGSound')
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    listed = _read_clips(pathlib.Path(table), split, left_out)
    paths = by_name(list_media(folder, left_out=left_out, video_first=frames > 0))
    videos = Counter(clip.youtube_id for clip in listed)
    for clip in listed:
        youtube, end = clip.youtube_id, clip.start + CLIP_SECONDS
        labels = distinct(clip.labels)
        path = None if whole_videos else paths.get(clip.id)
        path = path or find_clip(
            paths, youtube, clip.start, end, whole_video=whole_videos, only_one=videos[youtube] == 1
        )
        if is_excluded(excluded, clip.id, youtube):
            left_out.append(LeftOut(clip.id, 'excluded', f'{clip.id}: in a list of --exclude'))
        elif path is None:
            name = youtube if whole_videos else clip.id
            left_out.append(LeftOut(clip.id, 'missing', f'{clip.id}: no file below {folder} named {name}'))
        else:
            captions = captions_of(labels) if labels[1:] else (*labels, f'the sound of {labels[0]}')
            part = (clip.start, CLIP_SECONDS) if whole_videos else (0.0, None)
            entries.append(Entry(clip.id, path, captions, labels, *part))
    return files_or_refuse(entries, folder, left_out, 'vggsound', frames)


def _read_clips(path: pathlib.Path, split: str, left_out: list[LeftOut]) -> list[_Listed]:
    clips: dict[tuple[str, int], _Listed] = {}
    bad: list[LeftOut] = []
    rows = 0
    for line, row in rows_of(path, read_text(path), skipinitialspace=True):
        if not row:
            continue
        fields = _fields(row, split)
        if fields is None:
            problem = f'expected YTID,start,label,split or YTID_000030.mp4,label, got {",".join(row):.80}'
            bad.append(bad_row(path, line, problem))
            continue
        rows += 1
        youtube, start, label, found = fields
        if found == split:
            clips.setdefault((youtube, start), _Listed(youtube, start, [])).labels.append(label)
    refuse_wrong_table(bad, rows)
    if not clips:
        raise DataError(f'{path}: lists no clips' + (f' of the split {split!r}' if rows else ''))
    left_out += bad
    return list(clips.values())


def _fields(row: list[str], split: str) -> tuple[str, int, str, str] | None:
    """Returns YouTube id, start in seconds, label and split of a row of either list; None for any other row.

    Labels with commas are quoted in the authors' lists, but some copies have lost the quotes.
    """
    row = [text.strip() for text in row]
    if len(row) >= 4 and row[1].isdecimal() and row[-1] in _SPLITS:
        youtube, start, label, split = row[0], row[1], ', '.join(row[2:-1]), row[-1]
    else:
        youtube, _, start = stem_of(row[0]).rpartition('_')
        label = ', '.join(row[1:])
    if not (youtube and label.strip() and start.isdecimal() and start.isascii()):
        return None
    return youtube, int(start), label, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildVGGSound(ExcludingOptions):
    """Shards from VGGSound: --split train or test."""

    overlap = (
        'VGGSound may hold clips of the evaluation split of AudioSet and of the test split of AudioCaps: to evaluate '
        'on them, leave them out with --exclude eval_segments.csv test.csv'
    )
    source: pathlib.Path
    """The folder with the videos or sounds, at any depth, and with vggsound.csv (or the older train.csv, test.csv)."""
    table: pathlib.Path | None = None
    """The list of clips (default: vggsound.csv in the source, or SPLIT.csv)."""
    whole_videos: bool = False
    """The files are whole videos: take ten seconds from the start on."""
    frames: int = 0
    """Number of pictures to keep of each video, for image queries."""

    def clips(self) -> ClipSource:
        return read_vggsound(
            self.source,
            self.split,
            table=self.table,
            whole_videos=self.whole_videos,
            frames=self.frames,
            excluded=self.excluded,
        )
