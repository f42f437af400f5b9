"""MUSIC (Zhao et al. 2018): YouTube videos of people who play an instrument, alone or in pairs.

It is distributed as lists of ids, `MUSIC_solo_videos.json` and `MUSIC_duet_videos.json` (a later
list with more instruments, `MUSIC21_solo_videos.json`, has the same form):

    {"videos": {"acoustic_guitar": ["YouTube id", …], "flute violin": [...]}}

A video's file is looked up below the source folder as `INSTRUMENT/ID`, then as `ID` in any folder, with any suffix.
The videos are minutes long, so they are cut into consecutive pieces of ten seconds; the rest at the end is kept as a
piece if it has at least half that length. A piece's id is `ID_START`, START in seconds. Labels are the
instruments; captions are these names, and 'the sound of an acoustic guitar' or 'the sound of a flute and a violin'.

The dataset has no splits, so all of it becomes one, called test by default. To train on some videos, `--exclude` the
others.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from audiosep_jax.errors import AudioFileError, ConfigError, DataError, LeftOut, LeftOutError
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
    refuse_wrong_table,
    stem_of,
)
from data_prep.clips.media import sound_seconds
from data_prep.clips.sources import Files
from data_prep.clips.youtube import by_name
from data_prep.exclusions import FILES, ExcludingOptions, is_excluded

PIECE_SECONDS = 10.0
_LISTS = ('MUSIC_solo_videos.json', 'MUSIC_duet_videos.json')


def read_music(
    source: str | os.PathLike,
    *,
    lists: Sequence[str | os.PathLike] = (),
    piece_seconds: float = PIECE_SECONDS,
    frames: int = 0,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the pieces of all videos, in the order of the lists. The header of each file is read for its length.

    Args:
        source: the folder with the videos or sounds at any depth; the lists are in it or in a folder directly in it.
        lists: the lists to read; by default those of solos and duets that are in `source`.
        piece_seconds: length of a piece in seconds.
        frames: number of pictures to take from each piece.
        excluded: YouTube ids or ids of pieces to leave out.

    Raises:
        ConfigError: the length is not positive.
        DataError: a list is missing or damaged, or none of the videos has a file.
    """
    if not 0 < piece_seconds < float('inf'):
        raise ConfigError(f'--piece-seconds {piece_seconds}: must be a positive number of seconds')
    folder = pathlib.Path(source)
    found = [pathlib.Path(path) for path in lists] or [p for p in (find_file(folder, name) for name in _LISTS) if p]
    if not found:
        raise DataError(f'{folder}: no {" or ".join(_LISTS)} in it: give --lists')
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    listed = list_media(folder, left_out=left_out, video_first=frames > 0)
    anywhere = by_name(listed)
    in_folders = first_of((f'{pathlib.PurePosixPath(path).parent.name}/{stem}', path) for stem, path in listed)
    for youtube, (groups, instruments) in _read_videos(found, left_out).items():
        path = next((in_folders[f'{g}/{youtube}'] for g in groups if f'{g}/{youtube}' in in_folders), None)
        path = path or anywhere.get(youtube)
        if is_excluded(excluded, youtube):
            left_out.append(LeftOut(youtube, 'excluded', f'{youtube}: in a list of --exclude'))
            continue
        if path is None:
            left_out.append(LeftOut(youtube, 'missing', f'{youtube}: no file of this name below {folder}'))
            continue
        try:
            starts = _starts(sound_seconds(folder / path), piece_seconds)
        except LeftOutError as error:
            left_out.append(LeftOut(youtube, error.reason, str(error)))
            continue
        except AudioFileError as error:
            left_out.append(LeftOut(youtube, 'unreadable', str(error)))
            continue
        if not starts:
            message = f'{folder / path}: less than half of {piece_seconds:g} s'
            left_out.append(LeftOut(youtube, 'too short', message))
        for start in starts:
            piece = f'{youtube}_{start:g}'
            if is_excluded(excluded, piece):
                left_out.append(LeftOut(piece, 'excluded', f'{piece}: in a list of --exclude'))
            else:
                captions = captions_of(instruments)
                entries.append(Entry(piece, path, captions, instruments, start, piece_seconds))
    return files_or_refuse(entries, folder, left_out, 'music', frames)


def captions_of(instruments: Sequence[str]) -> tuple[str, ...]:
    """Returns captions such as 'flute and violin' and 'the sound of a flute and a violin'."""
    with_articles = [f'{"an" if name[:1].lower() in "aeio" else "a"} {name}' for name in instruments]
    return ' and '.join(instruments), f'the sound of {" and ".join(with_articles)}'


def _starts(length: float, piece: float) -> list[float]:
    """Returns the starts of a sound's pieces in seconds; the last piece may be up to half a piece shorter."""
    count = int(length / piece + 0.5)
    return [k * piece for k in range(count)]


def _read_videos(
    lists: Sequence[pathlib.Path], left_out: list[LeftOut]
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Returns by YouTube id the names it is listed under and their instruments. Raises DataError for a damaged list."""
    groups: dict[str, list[str]] = {}
    bad: list[LeftOut] = []
    rows = 0
    for path in lists:
        value = parse_json(read_text(path), path, strict=False)
        videos = value.get('videos') if isinstance(value, dict) else None
        if not isinstance(videos, dict) or not all(isinstance(ids, list) for ids in videos.values()):
            raise DataError(f'{path}: expected {{"videos": {{"INSTRUMENT": ["YouTube id", …], …}}}}')
        for name, ids in videos.items():
            for number, youtube in enumerate(ids, start=1):
                if not isinstance(youtube, str) or not youtube.strip():
                    problem = f'expected a YouTube id, got {youtube!r:.80}'
                    bad.append(bad_row(path, number, problem, f'under {name!r}: entry'))
                    continue
                rows += 1
                groups.setdefault(stem_of(youtube.strip()), []).append(name)
    refuse_wrong_table(bad, rows)
    if not groups:
        raise DataError(f'{lists[0]}: lists no videos')
    left_out += bad
    return {youtube: (tuple(names), _instruments(names)) for youtube, names in groups.items()}


def _instruments(names: Sequence[str]) -> tuple[str, ...]:
    return distinct(part.replace('_', ' ') for name in names for part in name.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildMUSIC(ExcludingOptions):
    """Shards from MUSIC, solos and duets: videos cut into pieces of ten seconds."""

    source: pathlib.Path
    """The folder with the videos or sounds, at any depth, with MUSIC_solo_videos.json and MUSIC_duet_videos.json."""
    split: str = 'test'
    """Name of the split; MUSIC defines none."""
    lists: Annotated[tuple[tuple[pathlib.Path, ...], ...], tyro.conf.UseAppendAction, FILES] = ()
    """The lists of videos (default: those of solos and of duets in the source)."""
    piece_seconds: float = PIECE_SECONDS
    """Length of a piece in seconds."""
    frames: int = 0
    """Number of pictures to keep of each piece, for image queries."""

    def clips(self) -> ClipSource:
        return read_music(
            self.source,
            lists=[path for paths in self.lists for path in paths],
            piece_seconds=self.piece_seconds,
            frames=self.frames,
            excluded=self.excluded,
        )
