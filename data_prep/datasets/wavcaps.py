"""WavCaps (Mei et al. 2023): 400,000 sounds of four sources with a caption each, 7,500 hours of FLAC at 32 kHz.

It expects the folder from Hugging Face (cvssp/WavCaps), or its GitHub repository with the sounds beside it:

    json_files/AudioSet_SL/as_final.json            {"num_captions_per_audio": 1, "data": [{"id": …, "caption": …,
    json_files/BBC_Sound_Effects/bbc_final.json     "duration": seconds, …}, …]}, or the bare list
    json_files/FreeSound/fsd_final.json
    json_files/SoundBible/sb_final.json
    json_files/blacklist/*.json                     {"AudioSet": [ids], "FreeSound": [ids]}, three files
    Zip_files/FreeSound/….flac                      unpacked, at any depth below a folder of the source's name, also
                                                    `FreeSound_flac`, as the archives have it; named by id

**Evaluation clips.** The sources hold clips of AudioCaps, Clotho, VGGSound, ESC-50 and UrbanSound8K. The authors list
them in three blacklists; all three are applied, and nothing is built without them. None lists FSD50K's clips: give
`--exclude FSD50K.ground_truth/eval.csv`.

**Pieces.** Sounds of the BBC and Freesound are minutes long. One longer than `piece_seconds` by more than
`SHORTEST_PIECE` is cut into pieces of `piece_seconds`; a rest of less than `SHORTEST_PIECE` stays with the piece before
it. A piece has the sound's captions and its id with the piece's number: `BBC_Sound_Effects/07055128#2`.

A clip's id is SOURCE/ID, because different sources use the same numbers. There are no labels.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import tyro

from audiosep_jax.errors import AudioSepError, ConfigError, DataError, LeftOut
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.storage.tables import read_text
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import (
    bad_row,
    distinct,
    files_or_refuse,
    find_file,
    list_media,
    one_line,
    refuse_wrong_table,
    stem_of,
)
from data_prep.clips.media import sound_seconds
from data_prep.clips.sources import Files
from data_prep.exclusions import ExcludingOptions, is_excluded, youtube_id

Source = Literal['AudioSet_SL', 'BBC_Sound_Effects', 'FreeSound', 'SoundBible']

METADATA: dict[Source, str] = {
    'AudioSet_SL': 'as_final.json',
    'BBC_Sound_Effects': 'bbc_final.json',
    'FreeSound': 'fsd_final.json',
    'SoundBible': 'sb_final.json',
}
BLACKLISTS = (
    'blacklist_exclude_all_ac.json',
    'blacklist_exclude_test_ac.json',
    'blacklist_exclude_ub8k_esc50_vggsound.json',
)
SHORTEST_PIECE = 5.0  # seconds: a training segment
_LONGEST = 24 * 3600.0  # seconds of a sound

# Folders that may hold the JSON files.
_PLACES = ('json_files', 'data/json_files')


@dataclasses.dataclass
class _Listed:
    """A sound of the metadata."""

    source: Source
    name: str
    captions: list[str]
    seconds: float  # NaN: not known
    audio: str  # file name without suffix, '' if the metadata do not give it

    @property
    def id(self) -> str:
        return f'{self.source}/{self.name}'

    @property
    def youtube_id(self) -> str:
        """Returns the YouTube id, or '' if there is none."""
        return (youtube_id(self.name) or '') if self.source == 'AudioSet_SL' else ''

    @property
    def file_stems(self) -> tuple[str, ...]:
        """The names that its file may have, the likeliest first."""
        forms = (f'Y{self.youtube_id}', self.youtube_id) if self.youtube_id else ()
        return (self.name, *forms, self.audio)


def read_wavcaps(
    source: str | os.PathLike,
    *,
    sources: Sequence[Source] = (),
    piece_seconds: float = 30.0,
    blacklists: str | os.PathLike | None = None,
    allow_evaluation_clips: bool = False,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns the clips, source by source in the order of the metadata.

    Args:
        source: the folder with the JSON files and the sounds.
        sources: which of the four to read; by default all that have metadata, and the others are in `left_out`.
        piece_seconds: length in seconds of the pieces of long sounds; 0 to leave them whole.
        blacklists: the folder with the three blacklists, if it is not in `source`.
        allow_evaluation_clips: apply no blacklists, and do not require them.
        excluded: further ids to leave out: those of WavCaps, of its sources or of YouTube.

    Raises:
        ConfigError: a source is unknown, or pieces would be shorter than `SHORTEST_PIECE`.
        DataError: metadata or a blacklist are missing or damaged, or none of the files is there.
    """
    unknown = [name for name in sources if name not in METADATA]
    if unknown:
        raise ConfigError(f'--sources {unknown[0]!r}: WavCaps has {", ".join(METADATA)}')
    if piece_seconds and not SHORTEST_PIECE <= piece_seconds < math.inf:
        raise ConfigError(f'--piece-seconds {piece_seconds:g}: at least {SHORTEST_PIECE:g}, or 0 for whole sounds')
    folder = pathlib.Path(source)
    evaluation = frozenset() if allow_evaluation_clips else _blacklisted(folder, blacklists)
    tables = {name: _find(folder, name, file) for name, file in METADATA.items() if not sources or name in sources}
    left_out: list[LeftOut] = []
    for name, table in tables.items():
        if table is None and sources:
            raise DataError(f'{folder}: no {METADATA[name]} in it, which lists {name}')
        if table is None:
            left_out.append(LeftOut(name, 'missing', f'{folder}: no {METADATA[name]}: without the clips of {name}'))
    if not any(tables.values()):
        raise DataError(f'{folder}: no {" or ".join(METADATA.values())} in it: give the folder of WavCaps')
    paths = _paths(folder, left_out)
    entries: list[Entry] = []
    for name, table in tables.items():
        for clip in _read_clips(name, table, left_out) if table else ():
            captions = distinct(clip.captions)
            path = next((paths[name, form] for form in clip.file_stems if (name, form) in paths), None)
            if (reason := _why_not(clip, evaluation, excluded)) or not captions:
                left_out.append(LeftOut(clip.id, 'excluded', f'{clip.id}: {reason or "has no caption"}'))
            elif path is None:
                left_out.append(LeftOut(clip.id, 'missing', f'{clip.id}: no {clip.name}.flac in a folder {name}'))
            else:
                seconds = _header_seconds(folder / path) if math.isnan(clip.seconds) else clip.seconds
                entries += _pieces(clip.id, path, captions, seconds, piece_seconds)
    return files_or_refuse(entries, folder, left_out, 'wavcaps')


def piece_bounds(seconds: float, piece_seconds: float) -> list[tuple[float, float]]:
    """Returns (start, length) of each piece of a sound, in seconds.

    The last length is an upper bound, because the piece ends with the file and durations in the metadata are rounded.
    """
    count = max(1, math.floor((seconds - SHORTEST_PIECE) / piece_seconds) + 1)
    lengths = [piece_seconds] * (count - 1) + [piece_seconds + SHORTEST_PIECE]
    return [(number * piece_seconds, length) for number, length in enumerate(lengths)]


def _pieces(clip_id: str, path: str, captions: tuple[str, ...], seconds: float, piece_seconds: float) -> list[Entry]:
    if not piece_seconds:
        return [Entry(clip_id, path, captions)]
    bounds = piece_bounds(0.0 if math.isnan(seconds) else seconds, piece_seconds)
    if len(bounds) == 1:  # the length still holds if the metadata are wrong
        return [Entry(clip_id, path, captions, seconds=bounds[0][1])]
    return [
        Entry(f'{clip_id}#{number}', path, captions, start=start, seconds=length)
        for number, (start, length) in enumerate(bounds)
    ]


def _why_not(clip: _Listed, evaluation: frozenset[tuple[str, str]], excluded: frozenset[str]) -> str:
    if (clip.source, clip.youtube_id or clip.name) in evaluation:
        return 'in a blacklist: an evaluation set has it'
    if is_excluded(excluded, clip.id, clip.name, clip.youtube_id):
        return 'in a list of --exclude'
    return ''


def _blacklisted(folder: pathlib.Path, blacklists: str | os.PathLike | None) -> frozenset[tuple[str, str]]:
    """Returns (source, id) of all clips in the three blacklists; for AudioSet with YouTube ids."""
    places = [f'{place}/blacklist' for place in _PLACES]
    found = {name: find_file(blacklists or folder, name, f'blacklist/{name}', folders=places) for name in BLACKLISTS}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        raise DataError(
            f'{blacklists or folder}: no {", ".join(absent)} in it: WavCaps holds clips of evaluation sets, which its '
            'blacklists name; get them from its repository and give --blacklists, or --allow-evaluation-clips'
        )
    ids: set[tuple[str, str]] = set()
    for path in filter(None, found.values()):
        groups = _load(path)
        names: dict[str, str] = {'AudioSet': 'AudioSet_SL', **{name: name for name in METADATA}}
        if not isinstance(groups, dict) or not groups or not groups.keys() <= names.keys():
            raise DataError(f'{path}: expected {{"AudioSet": [ids], "FreeSound": [ids]}}')
        for group, listed in groups.items():
            if not isinstance(listed, list) or not all(isinstance(name, (str, int)) for name in listed):
                raise DataError(f'{path}: expected a list of ids under {group!r}')
            for clip_id in map(str, listed):
                youtube = youtube_id(clip_id) if group.startswith('AudioSet') else None
                ids.add((names[group], youtube or stem_of(clip_id.strip())))
    return frozenset(ids)


def _find(folder: pathlib.Path, source: Source, name: str) -> pathlib.Path | None:
    return find_file(folder, f'{source}/{name}', name, folders=_PLACES)


def _paths(folder: pathlib.Path, left_out: list[LeftOut]) -> dict[tuple[str, str], str]:
    """Maps (source, stem) to the file below a folder of the source's name; the innermost such folder counts."""
    names = {form.lower(): name for name in METADATA for form in (name, f'{name}_flac')}
    paths: dict[tuple[str, str], str] = {}
    for stem, path in list_media(folder, left_out=left_out):
        source = next((names[part] for part in reversed(path.lower().split('/')[:-1]) if part in names), None)
        if source:
            paths.setdefault((source, stem), path)
    return paths


def _load(path: pathlib.Path) -> Any:
    return parse_json(read_text(path), path, strict=False)


def _read_clips(source: Source, path: pathlib.Path, left_out: list[LeftOut]) -> Iterator[_Listed]:
    values = _load(path)
    items = values.get('data') if isinstance(values, dict) else values
    if not isinstance(items, list):
        raise DataError(f'{path}: expected {{"data": [{{"id": …, "caption": …}}, …]}}, or the list alone')
    clips: dict[str, _Listed] = {}
    bad: list[LeftOut] = []
    for number, item in enumerate(items, start=1):
        name = item.get('id') if isinstance(item, dict) else None
        if isinstance(name, bool) or not isinstance(name, (str, int)) or not stem_of(str(name).strip()):
            bad.append(bad_row(path, number, f"expected a clip with an 'id', got {item!r:.80}", 'entry'))
            continue
        texts = [item[key] for key in ('caption', *(f'caption_{k}' for k in range(1, 6))) if item.get(key) is not None]
        if not all(isinstance(text, str) for text in texts):
            bad.append(bad_row(path, number, f"'caption' must be a text, got {texts!r:.80}", 'entry'))
            continue
        name = one_line(stem_of(str(name).strip()))
        audio = stem_of(str(item.get('audio') or '').rsplit('/', 1)[-1])  # 'wav_path' as published
        clip = clips.setdefault(name, _Listed(source, name, [], _seconds(item.get('duration')), audio))
        clip.captions += texts  # a file that is listed twice has the captions of both entries
    refuse_wrong_table(bad, len(items) - len(bad))
    if not clips:
        raise DataError(f'{path}: lists no clips')
    left_out += bad
    return iter(clips.values())


def _seconds(value: Any) -> float:
    """Returns a duration, or NaN for anything else: machine-made metadata hold `NaN`, null, text and milliseconds."""
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return seconds if 0 < seconds <= _LONGEST else math.nan


def _header_seconds(path: pathlib.Path) -> float:
    """Returns the duration in a file's header, for a sound without one in the metadata; NaN if there is none either."""
    try:
        return sound_seconds(path)
    except AudioSepError:
        return math.nan  # reported as unreadable when it is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildWavCaps(ExcludingOptions):
    """Shards from WavCaps, without the clips of evaluation sets, with long sounds cut into pieces."""

    overlap = (
        'WavCaps may hold clips of the evaluation split of FSD50K, which its blacklists do not name: to evaluate on '
        'them, leave them out with --exclude FSD50K.ground_truth/eval.csv'
    )
    source: pathlib.Path
    """The folder with json_files (and its folder blacklist) and with the unpacked sounds."""
    sources: Annotated[tuple[tuple[Source, ...], ...], tyro.conf.UseAppendAction] = ()
    """Which of the four sources to read (default: all that have metadata)."""
    piece_seconds: float = 30.0
    """Cut longer sounds (of at least 5 s) into pieces of this many seconds; 0 keeps them whole."""
    blacklists: pathlib.Path | None = None
    """The folder with WavCaps's three blacklists, if it is not in the source."""
    allow_evaluation_clips: bool = False
    """Keep clips of the evaluation sets. Models trained on them cannot be evaluated on AudioCaps, Clotho, ESC-50, …"""

    def clips(self) -> ClipSource:
        if self.split != 'train':
            raise ConfigError(f'--split {self.split!r}: all of WavCaps is train')
        return read_wavcaps(
            self.source,
            sources=[name for names in self.sources for name in names],
            piece_seconds=self.piece_seconds,
            blacklists=self.blacklists,
            allow_evaluation_clips=self.allow_evaluation_clips,
            excluded=self.excluded,
        )
