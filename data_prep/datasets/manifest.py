"""Reads clips that are listed with their captions in a JSON, JSON Lines or CSV file.

JSON is AudioSep's own datafile format, `{"data": [{"wav": "clips/a.flac", "caption": "a dog barking"}, ...]}`, or the
bare list; JSON Lines (`.jsonl`) has one such object on each line. CSV (`.csv`, `.tsv`) has a header line, and commas,
semicolons or tabs between its fields. Keys, and CSV columns:

    wav                 the audio file, absolute or relative to the manifest's folder; libsndfile must read its format
    caption, captions   a sentence, or (JSON) a list of them
    label, labels       optional: class names, a list in JSON, separated by ';' in CSV
    id                  optional: the clip's name in the dataset; by default the `wav` as written

Other keys and columns are passed over, and `build` names them in a note. A manifest without captions, or with a name
that seems to be a misspelled `caption`, is refused, because its clips would be left out.

Entries with the same file (and id) are one clip with several captions, of which training draws one at a time.
"""

import dataclasses
import difflib
import hashlib
import json
import pathlib
import sys
from collections.abc import Collection, Sequence
from typing import Any, TypeGuard

from audiosep_jax.errors import DataError, LeftOutError, listed, printable, single_line
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.storage.tables import rows_of
from data_prep.clips.base import Clip, ClipSource
from data_prep.clips.listing import delimiter_of, read_json_lines
from data_prep.clips.media import read_sound
from data_prep.options import BuildOptions

_CAPTIONS = ('caption', 'captions')
_KEYS = ('wav', *_CAPTIONS, 'label', 'labels', 'id')
_KNOWN = 'wav, caption (or captions), label (or labels), id'


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip of a manifest, before it is read."""

    id: str
    wav: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]


class Manifest:
    """The clips of a list of entries, with paths relative to `folder`.

    Attributes:
        passed_over: the keys or columns of the file that mean nothing here.
    """

    def __init__(self, entries: Sequence[Entry], folder: pathlib.Path, passed_over: Sequence[str] = ()):
        self.entries = list(entries)
        self.folder = folder
        self.passed_over = tuple(passed_over)

    def __len__(self) -> int:
        return len(self.entries)

    def check(self, sample_rate: int) -> None:
        """Accepts any rate, since files are resampled."""

    def clip_id(self, index: int) -> str:
        return self.entries[index].id

    def read(self, index: int, sample_rate: int) -> Clip:
        """Returns the clip. Raises AudioFileError for a bad file, LeftOutError if it is missing or has no caption."""
        entry = self.entries[index]
        if not entry.captions:
            raise LeftOutError('excluded', f'{entry.wav}: no caption')
        audio = read_sound(self.folder / entry.wav, sample_rate=sample_rate)
        return Clip(entry.id, audio, entry.captions, entry.labels, entry.wav)

    def part(self, start: int, stop: int) -> 'Manifest':
        return Manifest(self.entries[start:stop], self.folder)

    def description(self) -> Any:
        # The folder is not part of it, so that a build continues after the corpus and its manifest were moved together.
        text = json.dumps([dataclasses.astuple(e) for e in self.entries], ensure_ascii=False)
        return {'kind': 'manifest', 'sha256': hashlib.sha256(text.encode()).hexdigest()}


def read_manifest(path: str | pathlib.Path) -> Manifest:
    """Returns all entries of a manifest after checking them, without reading audio.

    Raises:
        DataError: the manifest is missing, is neither JSON, JSON Lines nor CSV or has no entries, a key is missing or
            misspelled, a value has the wrong type, or two files have the same id.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding='utf-8-sig')  # spreadsheets begin a CSV with a byte order mark
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such manifest') from error
    except IsADirectoryError as error:
        raise DataError(f'{path}: is a folder; give the JSON or CSV (for folders: `build folder`)') from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: cannot be read as UTF-8 text: {error}') from error
    suffix = path.suffix.lower()
    if suffix in ('.csv', '.tsv'):
        rows, unit = _csv_rows(path, text)
    elif suffix in ('.jsonl', '.ndjson'):
        rows, unit = read_json_lines(path), 'line'
    else:
        rows, unit = _json_rows(path, text), 'entry'
    merged: dict[str, Entry] = {}
    unknown: dict[str, str] = {}  # the first place of each
    has_captions = False
    for number, row in rows:
        where = f'{path}: {unit} {number}'
        entry = _entry(where, row)
        for key in row:
            if key not in _KEYS:
                unknown.setdefault(key, where)
        has_captions = has_captions or any(key in row for key in _CAPTIONS)
        known = merged.get(entry.id)
        if known is None:
            merged[entry.id] = entry
        elif known.wav == entry.wav:
            merged[entry.id] = Entry(
                entry.id, entry.wav, _union(known.captions, entry.captions), _union(known.labels, entry.labels)
            )
        else:
            raise DataError(f'{where}: the id {entry.id!r} is taken by another file, {known.wav}: ids must differ')
    if not merged:
        raise DataError(f'{path}: lists no clips')
    if unknown and not has_captions:
        key, where = next(iter(unknown.items()))
        raise DataError(f'{where}: unknown key {key!r}: known: {_KNOWN}; no entry has a caption')
    return Manifest(list(merged.values()), path.parent, tuple(unknown))


def _json_rows(path: pathlib.Path, text: str) -> list[tuple[int, dict]]:
    values = parse_json(text, path, remedy='a CSV manifest must be named .csv, JSON Lines .jsonl', strict=False)
    if isinstance(values, dict) and 'data' in values:
        values = values['data']
    if not isinstance(values, list):
        raise DataError(f'{path}: expected {{"data": [{{"wav": …, "caption": …}}, …]}}')
    return list(enumerate(values, start=1))


def _csv_rows(path: pathlib.Path, text: str) -> tuple[list[tuple[int, dict]], str]:
    table = ((line, fields) for line, fields in rows_of(path, text, delimiter=delimiter_of(text)) if fields)
    names = [name.strip() for name in next(table, (0, []))[1]]
    _check_keys(f'{path}: header', names)
    rows = []
    for line, fields in table:
        if len(fields) != len(names):
            raise DataError(
                f'{path}: line {line}: {"more" if len(fields) > len(names) else "fewer"} fields than the header has; '
                'put quotes around a caption that holds a separator'
            )
        row: dict[str, Any] = {key: value for key, value in zip(names, fields, strict=True) if value or key != 'id'}
        for key in ('label', 'labels'):
            if key in row:
                row[key] = [label for label in row[key].split(';') if label.strip()]
        rows.append((line, row))
    return rows, 'line'


def _check_keys(where: str, keys: Collection[str]) -> None:
    """Raises DataError if there is no audio file, or if a key seems to be a misspelled name of the captions."""
    if not any(key in keys for key in _CAPTIONS):
        for key in keys:
            if key not in _KEYS and (near := difflib.get_close_matches(key, _CAPTIONS, n=1, cutoff=0.8)):
                raise DataError(f'{where}: unknown key {key!r}: did you mean {near[0]!r}? known: {_KNOWN}')
    if 'wav' not in keys:
        raise DataError(f"{where}: no key 'wav', the audio file: found {listed([*keys]) or 'none'}; known: {_KNOWN}")


def _entry(where: str, row: Any) -> Entry:
    if not isinstance(row, dict):
        raise DataError(f'{where}: expected {{"wav": …, "caption": …}}, got {row!r:.80}')
    _check_keys(where, row)
    wav, clip_id = row['wav'], row.get('id', row['wav'])
    if not _is_text(wav) or not wav.strip():
        raise DataError(f"{where}: 'wav' must name an audio file, got {wav!r:.80}")
    if not _is_text(clip_id) or not clip_id.strip():
        raise DataError(f"{where}: 'id' must be a text, got {clip_id!r:.80}")
    captions = _texts(where, row, 'caption') + _texts(where, row, 'captions')
    labels = _texts(where, row, 'label') + _texts(where, row, 'labels')
    return Entry(clip_id.strip(), wav.strip(), _union(captions), _union(labels))


def _texts(where: str, row: dict, key: str) -> list[str]:
    """Returns the non-blank texts under a key, which may hold one text, a list or nothing."""
    value = row.get(key)
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(map(_is_text, values)):
        raise DataError(f'{where}: {key!r} must be a text or a list of texts, got {value!r:.80}')
    return [v.strip() for v in values if v.strip()]


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a string that a record and a file name can hold: no NUL, and no half of a surrogate pair.

    JSON can escape both.
    """
    return isinstance(value, str) and not any(c == '\0' or '\ud800' <= c <= '\udfff' for c in value)


def _union(*texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for some in texts for text in some))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildManifest(BuildOptions):
    """Shards from audio files listed with their captions in JSON (AudioSep's datafile format), JSON Lines or CSV."""

    source: pathlib.Path
    """The manifest: {"data": [{"wav": …, "caption": …}]}, a .jsonl with such an object on each line, a .csv or a .tsv.
    Its keys or columns are wav, caption (or captions), label (or labels) and id; others are passed over. Relative paths
    start at its folder."""

    def clips(self) -> ClipSource:
        manifest = read_manifest(self.source)
        if manifest.passed_over:
            names = single_line(printable(listed([repr(name) for name in manifest.passed_over])))
            print(f'note: {self.source}: passed over {names}; the known names are {_KNOWN}', file=sys.stderr)
        return manifest
