"""Reads tar archives of samples in WebDataset's format, in which many labs keep AudioSet or LAION-Audio-630K.

    data-000000.tar     dogs/1.flac     a sound or video: all suffixes of `data_prep.datasets.folder`
                        dogs/1.json     {"text": "a dog barks" or [several], "tag": ["Dog", …], …}
                        dogs/1.txt      every line is a caption
                        dogs/1.cls      the number of a class, or its name

Members whose names differ only in the suffix form a sample, wherever they are in the archive. Keys may contain folders
and, unlike in the WebDataset library, dots. A clip's id is the archive's path without `.tar`, '/' and the key, because
keys may be reused in every archive. If a name occurs twice in an archive, the last one counts, as when unpacking. A
sample with labels but no caption gets captions as in `data_prep.datasets.audioset`: 'Dog, Wind' and 'the sounds of dog
and wind'.

Each archive is listed in one pass from header to header. Sounds are later read at their offsets, so archives must not
be compressed. The complete members of a truncated archive are used.
"""

import concurrent.futures
import dataclasses
import glob
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from audiosep_jax.audio.formats import FOLDER_SUFFIXES, dataset_suffixes
from audiosep_jax.errors import ConfigError, DataError, LeftOut, LeftOutError, printable
from audiosep_jax.progress import progress_bar
from audiosep_jax.storage.json_files import parse_json
from audiosep_jax.storage.tables import read_text
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import distinct, files_or_refuse
from data_prep.clips.sources import Files
from data_prep.datasets.audioset import captions_of
from data_prep.exclusions import ExcludingOptions, is_excluded, youtube_id

CAPTION_KEYS = ('text', 'caption', 'captions')
LABEL_KEYS = ('tag', 'tags', 'label', 'labels')
_KEYS = tyro.conf.arg(metavar='[KEY ...]')

_TEXT_SUFFIXES = ('.json', '.txt', '.cls')
_LARGEST_TEXT = 2**24  # bytes; no text of a sample is larger
_COMPRESSED = re.compile(r'\.(tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)$', re.IGNORECASE)
_MAGICS = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd', b'PK\x03\x04': 'zip'}
# Threads help because listing mostly waits for the disk.
_THREADS = 8


@dataclasses.dataclass
class _Sample:
    """The members of one key by suffix: the names of sounds and the contents of texts."""

    sounds: dict[str, str] = dataclasses.field(default_factory=dict)
    texts: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """The settings with which a sample is read."""

    caption_keys: tuple[str, ...]
    label_keys: tuple[str, ...]
    class_names: tuple[str, ...]
    suffixes: tuple[str, ...]  # suffixes of sounds in order of preference
    excluded: frozenset[str]


def read_webdataset(
    source: Sequence[str | os.PathLike],
    *,
    caption_keys: Sequence[str] = CAPTION_KEYS,
    label_keys: Sequence[str] = LABEL_KEYS,
    class_names: Sequence[str] = (),
    frames: int = 0,
    excluded: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Files:
    """Returns the samples of some archives that have a sound and captions, in the order of the archives.

    Args:
        source: archives, folders of them, or patterns: `data-*.tar`, `data-{000000..000099}.tar`.
        caption_keys: keys of a JSON member that hold captions, as a text or a list of texts.
        label_keys: keys that hold labels in the same way.
        class_names: names of the class numbers in `.cls` members and labels, counted from 0.
        frames: number of pictures to take from each sample, which must be a video.
        excluded: keys, or YouTube ids in them, of clips that must not be used for training.
        progress: called with (archives listed, archives in total).

    Raises:
        DataError: there is no archive, one is compressed, or there is no usable sample.
    """
    archives, folder = _archives(source)
    suffixes = dict.fromkeys((*dataset_suffixes(videos_first=bool(frames)), *sorted(FOLDER_SUFFIXES)))
    reading = _Reading(tuple(caption_keys), tuple(label_keys), tuple(class_names), tuple(suffixes), excluded)
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        listed = pool.map(lambda path: _list_archive(path, path.relative_to(folder).as_posix(), reading), archives)
        for number, (some_entries, some_left_out) in enumerate(listed, start=1):
            entries += some_entries
            left_out += some_left_out
            progress(number, len(archives))
    return files_or_refuse(entries, folder, left_out, 'webdataset', frames)


def _archives(source: Sequence[str | os.PathLike]) -> tuple[list[pathlib.Path], pathlib.Path]:
    """Returns the sorted archives and the folder that holds them all."""
    found: set[pathlib.Path] = set()
    tops: list[str] = []
    for given in source:
        for pattern in _expand_braces(os.fspath(given)):
            if pattern.startswith('pipe:') or '://' in pattern:
                raise DataError(f'{pattern}: is not on a file system: fetch or mount the archives first')
            pattern = os.path.abspath(pattern)
            if os.path.isdir(pattern):
                paths = [p for p in _files_below(pattern) if p.lower().endswith('.tar') or _COMPRESSED.search(p)]
                tops.append(pattern)
            else:
                paths = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True) or [pattern]
                tops += map(os.path.dirname, paths)
            for path in paths:
                if _COMPRESSED.search(path):
                    raise DataError(f'{path}: is compressed, and members are read at their places: unpack it to a .tar')
                if not path.lower().endswith('.tar'):
                    raise DataError(f'{path}: is not named .tar')
            found.update(map(pathlib.Path, paths))
    if not found:
        raise DataError(f'{", ".join(map(str, source))}: no archive (*.tar) there')
    return sorted(found), pathlib.Path(os.path.commonpath(tops))


def _files_below(folder: str) -> Iterator[str]:
    """Yields all files below a folder except hidden ones."""
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield from (os.path.join(top, name) for name in files if not name.startswith('.'))


def _expand_braces(pattern: str) -> list[str]:
    """Expands `data-{000..002}.tar` to three names and `{a,b}.tar` to two; other patterns stay as they are."""
    match = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
    if not match:
        return [pattern]
    first, last, several = match.groups()
    width = len(first or '')
    texts = several.split(',') if several else [f'{n:0{width}d}' for n in range(int(first), int(last) + 1)]
    return [name for text in texts for name in _expand_braces(pattern[: match.start()] + text + pattern[match.end() :])]


def _list_archive(path: pathlib.Path, name: str, reading: _Reading) -> tuple[list[Entry], list[LeftOut]]:
    """Returns the clips of one archive, and what is left out of it; `name` is its path below the common folder."""
    samples: dict[str, _Sample] = {}
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    stem = name[: -len('.tar')]
    try:
        for member, content in _members(path):
            key, suffix = os.path.splitext(member.removeprefix('./'))
            sample, suffix = samples.setdefault(key, _Sample()), suffix.lower()
            if suffix in sample.texts or suffix in sample.sounds:
                message = f'{member} occurs more than once: the last one counts'
                left_out.append(LeftOut(f'{stem}/{key}', 'excluded', f'{name}: {message}'))
            if content is None:
                sample.sounds[suffix] = member
            else:
                sample.texts[suffix] = content
    except LeftOutError as error:
        left_out.append(LeftOut(name, error.reason, f'{path}: {error}'))
    for key, sample in samples.items():
        clip_id = f'{stem}/{key}'
        try:
            entries.append(_entry(clip_id, name, key, sample, reading))
        except LeftOutError as error:
            left_out.append(LeftOut(clip_id, error.reason, f'{clip_id}: {error}'))
    return entries, left_out


def _members(path: pathlib.Path) -> Iterator[tuple[str, bytes | None]]:
    """Yields the names of an archive's sounds, and of its texts with their contents, in order.

    Raises:
        LeftOutError: the archive is damaged; raised after its complete members.
        DataError: the archive is compressed.
    """
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            _refuse_compressed(path, file.read(8))
            file.seek(0)
            with tarfile.open(fileobj=file, mode='r:') as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all; the stubs lack it
                    suffix = os.path.splitext(member.name)[1].lower()
                    is_text = suffix in _TEXT_SUFFIXES
                    if not member.isreg() or os.path.basename(member.name).startswith('.'):
                        continue
                    if not 0 <= member.size <= size - member.offset_data:
                        raise LeftOutError('unreadable', f'was cut short within {member.name}; download it again')
                    if is_text or suffix in FOLDER_SUFFIXES:
                        content = tar.extractfile(member) if is_text else None
                        yield member.name, content.read(_LARGEST_TEXT) if content else None
                file.seek(tar.offset)
                problem = _problem_after(file.read(2**16))
            if problem:
                raise LeftOutError('unreadable', f'{problem} after {tar.offset} of {size} bytes; download it again')
    except FileNotFoundError as error:
        raise LeftOutError('missing', 'no such archive') from error
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = ' '.join(str(error).split())
        message = f'cut short, damaged or not a tar archive ({reason}); download it again'
        raise LeftOutError('unreadable', message) from error


def _refuse_compressed(path: pathlib.Path, head: bytes) -> None:
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            raise DataError(
                f'{path}: is compressed ({kind}), and members are read at their places: unpack it to a .tar'
            )


def _problem_after(rest: bytes) -> str:
    """Returns what is wrong after the last member, or '' if nothing is: tar ends an archive with zeros."""
    if not rest:
        return 'ends without a mark of its end, as one that was cut short,'
    if rest[:512].strip(b'\0'):
        return 'cannot be read on'
    return 'goes on (another one appended to it?)' if rest.strip(b'\0') else ''


def _entry(clip_id: str, archive: str, key: str, sample: _Sample, reading: _Reading) -> Entry:
    """Returns the clip of a sample. Raises LeftOutError if it has no sound or no caption, or must not be used."""
    if is_excluded(reading.excluded, key, os.path.basename(key), youtube_id(os.path.basename(key)) or ''):
        raise LeftOutError('excluded', 'is in a list of --exclude')
    if printable(clip_id) != clip_id:
        raise LeftOutError('unreadable', 'its name is not UTF-8')
    if not sample.sounds:
        raise LeftOutError('missing', f'{" and ".join(sorted(sample.texts))} without a sound')
    captions, labels = _captions(sample.texts, reading)
    best = min(sample.sounds, key=reading.suffixes.index)
    return Entry(clip_id, f'{archive}::{sample.sounds[best]}', captions or captions_of(labels), labels)


def _captions(texts: Mapping[str, bytes], reading: _Reading) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the captions and labels of a sample. Raises LeftOutError if there is neither."""
    captions: list[str] = []
    labels: list[str] = []
    problem = None
    if '.json' in texts:
        try:
            value = parse_json(texts['.json'], 'its .json', dict, strict=False)
            captions += (text for key in reading.caption_keys for text in _texts(value.get(key)))
            labels += (name for key in reading.label_keys for name in _texts(value.get(key), reading.class_names))
        except (DataError, ValueError) as error:
            problem = LeftOutError('unreadable', f'its .json is damaged: {" ".join(str(error).split())}')
    try:
        captions += texts.get('.txt', b'').decode('utf-8-sig').splitlines()
        of_class = texts.get('.cls', b'').decode('utf-8-sig').strip()
        is_number = of_class.isascii() and of_class.isdigit()
        labels += _texts(int(of_class[:9]) if is_number else of_class, reading.class_names)
    except UnicodeDecodeError as error:
        problem = LeftOutError('unreadable', f'its text is not UTF-8: {error}')
    found = distinct(captions), distinct(labels)
    if not any(found):
        hint = ' (give --class-names for the numbers of classes)' if '.cls' in texts and not reading.class_names else ''
        where = ', '.join(sorted(texts)) or 'a file beside it'
        raise problem or LeftOutError('excluded', f'no caption and no label in {where}{hint}')
    return found


def _texts(value: Any, class_names: Sequence[str] = ()) -> list[str]:
    """Returns the texts in a JSON value, which is one or a list; numbers are replaced by the names of their classes."""
    texts = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(class_names):
            texts.append(class_names[item])
    return texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildWebDataset(ExcludingOptions):
    """Shards from tar archives in WebDataset's form: KEY.flac (or another sound) with KEY.json, KEY.txt or KEY.cls."""

    source: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TAR [TAR ...]')]
    """Archives, folders of them, or patterns in quotes: 'data-*.tar', 'data-{000000..000099}.tar'."""
    caption_keys: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, _KEYS] = ()
    """Keys that hold the captions in a JSON file (default: text, caption, captions)."""
    label_keys: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, _KEYS] = ()
    """Keys that hold the labels in a JSON file (default: tag, tags, label, labels)."""
    class_names: pathlib.Path | None = None
    """Text file with the names of the classes, one per line, if archives hold their numbers (counted from 0)."""
    frames: int = 0
    """Number of pictures to keep of each video, for image queries."""

    def clips(self) -> ClipSource:
        source = [given for several in self.source for given in several]
        if not source:
            raise ConfigError('--source: give archives, folders of them, or patterns')
        names = read_text(self.class_names).splitlines() if self.class_names else ()
        with progress_bar('listing') as progress:
            return read_webdataset(
                source,
                caption_keys=[key for keys in self.caption_keys or (CAPTION_KEYS,) for key in keys],
                label_keys=[key for keys in self.label_keys or (LABEL_KEYS,) for key in keys],
                class_names=[name.strip() for name in names],
                frames=self.frames,
                excluded=self.excluded,
                progress=progress,
            )
