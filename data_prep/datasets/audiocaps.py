"""AudioCaps (Kim et al. 2019), version 1 and 2.0: sentences for ten-second clips of AudioSet.

Its repository has `dataset/` (v1) and `dataset2.0/` with a table per split, `train.csv`, `val.csv` and `test.csv`:

    audiocap_id,youtube_id,start_time,caption

A training clip has one row. A test or validation clip has five rows with the same video and start; they become one
clip with several captions. Users download, cut and name the videos themselves, so a clip's file is looked up below the
source folder, with any suffix, by any of its audiocap ids, as `YTID` or as `YYTID`, each also followed by its times
(see `data_prep.clips.youtube`); folders named after another split are skipped. A clip's id is `YTID_START`, START in
seconds. Rows that cannot be read are left out as unreadable; if most rows are like that, the table is refused.
"""

import dataclasses
import os
import pathlib
from collections import Counter

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import (
    bad_row,
    files_or_refuse,
    find_file,
    list_media,
    read_table,
    refuse_wrong_table,
    visible,
)
from data_prep.clips.sources import Files
from data_prep.clips.youtube import by_name, find_clip
from data_prep.exclusions import ExcludingOptions, is_excluded

CLIP_SECONDS = 10.0

# Names that folders of each split may have.
_FOLDERS = {
    'train': {'train', 'training'},
    'val': {'val', 'valid', 'validation'},
    'test': {'test', 'testing', 'eval', 'evaluation'},
}
_COLUMNS = ('audiocap_id', 'youtube_id', 'start_time', 'caption')


@dataclasses.dataclass
class _Listed:
    """One clip of the table."""

    youtube_id: str
    start: float
    numbers: list[str]
    captions: list[str]

    @property
    def id(self) -> str:
        return f'{self.youtube_id}_{self.start:g}'


def read_audiocaps(
    source: str | os.PathLike,
    split: str = 'train',
    *,
    captions: str | os.PathLike | None = None,
    whole_videos: bool = False,
    frames: int = 0,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the clips of a split, in the order of its table.

    Args:
        source: the folder with the sounds, at any depth, and the table.
        split: 'train', 'val' or 'test'.
        captions: the table; by default SPLIT.csv in `source`, in its folder dataset, or in another one directly in it.
        whole_videos: the files are whole videos, and a clip is the ten seconds from its start_time on.
        frames: number of pictures to take from each video.
        excluded: audiocap ids, YouTube ids or clip ids to leave out.

    Raises:
        ConfigError: there is no such split.
        DataError: the table is missing or damaged, or none of its clips has a file.
    """
    if split not in _FOLDERS:
        raise ConfigError(f'--split {split!r}: AudioCaps has train, val and test')
    folder = pathlib.Path(source)
    table = captions or find_file(folder, f'{split}.csv', folders=('dataset', 'dataset2.0'))
    if table is None:
        raise DataError(f'{folder}: no {split}.csv in it: give --captions, the table of AudioCaps')
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    clips = _read_clips(pathlib.Path(table), left_out)
    others = frozenset().union(*(names for name, names in _FOLDERS.items() if name != split))
    paths = by_name(list_media(folder, left_out=left_out, skip=others, video_first=frames > 0))
    # A name that fits two clips identifies neither.
    numbers = Counter(number for clip in clips for number in set(clip.numbers))
    videos = Counter(clip.youtube_id for clip in clips)
    for clip in clips:
        youtube, end = clip.youtube_id, clip.start + CLIP_SECONDS
        path = next(
            (paths[number] for number in clip.numbers if number and numbers[number] == 1 and number in paths), None
        )
        path = path or find_clip(
            paths, youtube, clip.start, end, whole_video=whole_videos, only_one=videos[youtube] == 1
        )
        texts = visible(clip.captions)
        if is_excluded(excluded, clip.id, youtube, *clip.numbers):
            left_out.append(LeftOut(clip.id, 'excluded', f'{clip.id}: in a list of --exclude'))
        elif not texts:
            left_out.append(LeftOut(clip.id, 'excluded', f'{clip.id}: has no caption'))
        elif path is None:
            message = f'{clip.id}: no file below {folder} named Y{youtube}, {youtube} or by its audiocap id'
            left_out.append(LeftOut(clip.id, 'missing', message))
        elif whole_videos:
            entries.append(Entry(clip.id, path, texts, start=clip.start, seconds=CLIP_SECONDS))
        else:
            entries.append(Entry(clip.id, path, texts))
    return files_or_refuse(entries, folder, left_out, 'audiocaps', frames)


def _read_clips(path: pathlib.Path, left_out: list[LeftOut]) -> list[_Listed]:
    clips: dict[tuple[str, float], _Listed] = {}
    bad: list[LeftOut] = []
    rows = 0
    for line, row in read_table(path, _COLUMNS, bad=bad):
        number, youtube, start = (row[column].strip() for column in _COLUMNS[:3])
        try:
            seconds = float(start)
        except ValueError:
            seconds = -1.0
        if not youtube or not 0 <= seconds < float('inf'):
            problem = f'expected a YouTube id and a start in seconds, got {youtube!r}, {start!r}'
            bad.append(bad_row(path, line, problem))
            continue
        rows += 1
        clip = clips.setdefault((youtube, seconds), _Listed(youtube, seconds, [], []))
        # Different annotators may write the same sentence, but the same row twice is a mistake in the table.
        if number not in clip.numbers or row['caption'] not in clip.captions:
            clip.captions.append(row['caption'])
            clip.numbers.append(number)
    refuse_wrong_table(bad, rows)
    if not clips:
        raise DataError(f'{path}: lists no clips')
    left_out += bad
    return list(clips.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildAudioCaps(ExcludingOptions):
    """Shards from AudioCaps, v1 or 2.0: --split train, val or test."""

    overlap = (
        'AudioCaps may hold clips of the test split of VGGSound and of the evaluation split of AudioSet: to evaluate '
        'on them, leave them out with --exclude vggsound.csv eval_segments.csv'
    )
    source: pathlib.Path
    """The folder with the sounds or videos, at any depth, and with the tables train.csv, val.csv, test.csv."""
    captions: pathlib.Path | None = None
    """The table of the split (default: SPLIT.csv in the source, its folder dataset, then dataset2.0)."""
    whole_videos: bool = False
    """The files are whole videos: take the ten seconds from start_time on."""
    frames: int = 0
    """Number of pictures to keep of each video, for image queries."""

    def clips(self) -> ClipSource:
        return read_audiocaps(
            self.source,
            self.split,
            captions=self.captions,
            whole_videos=self.whole_videos,
            frames=self.frames,
            excluded=self.excluded,
        )
