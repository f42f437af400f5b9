"""Reads any folder of sounds: class folders, sounds with captions in text files beside them, or in tables of metadata.

    SOURCE/dog_barking/1.wav             caption and label 'dog barking': the name of its folder, underscores as spaces
    SOURCE/field/a.flac, field/a.txt     every line of the text file is a caption; no label
    SOURCE/metadata.csv                  Hugging Face's audiofolder; see `data_prep.clips.metadata_files`

A table of metadata describes the sounds in its folder and below, except where a folder has a table itself, as the
splits of a dataset do. Sounds that it does not list are left out, unless they have a text file.

Folders may be nested and linked to each other; each is read once. In a folder with such text files, a sound without one
is left out, because the folder's name ('clips', 'batch_3') may not be a class; `--captions class` uses the name anyway.
Sounds directly in SOURCE need a text file. Suffixes may be in upper or lower case; names that begin with a dot are
skipped. A clip's id is its path below SOURCE.
"""

import collections
import dataclasses
import os
import pathlib
import unicodedata
from collections.abc import Iterator
from typing import Literal, get_args

from audiosep_jax.audio.formats import FOLDER_SUFFIXES, dataset_suffixes
from audiosep_jax.errors import ConfigError, DataError, LeftOut, LeftOutError, printable
from audiosep_jax.storage.tables import read_text
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import distinct, files_or_refuse
from data_prep.clips.metadata_files import Metadata, key_of, read_metadata
from data_prep.clips.sources import Files
from data_prep.exclusions import ExcludingOptions, is_excluded, youtube_id

CaptionSource = Literal['auto', 'text', 'class']
ClassFolder = Literal['parent', 'top']


def read_folder(
    source: str | os.PathLike,
    *,
    captions: CaptionSource = 'auto',
    class_folder: ClassFolder = 'parent',
    frames: int = 0,
    excluded: frozenset[str] = frozenset(),
) -> Files:
    """Returns all sounds below a folder that have captions, sorted by path.

    Args:
        source: the folder.
        captions: 'text' takes captions from text files and metadata only; 'class' falls back from text files to the
            name of the class folder; 'auto' takes metadata and text files, and the name of the class folder where no
            sound of the folder has either.
        class_folder: which of nested folders names the class: 'parent', the innermost, or 'top'.
        frames: number of pictures to take from each file, which must be a video.
        excluded: ids, file names or YouTube ids of clips that must not be used for training.

    Raises:
        ConfigError: `captions` or `class_folder` is unknown.
        DataError: there is no such folder, no sound in it has a caption, or a table of metadata cannot be used.
    """
    for flag, value, kind in (('captions', captions, CaptionSource), ('class-folder', class_folder, ClassFolder)):
        if value not in get_args(kind):
            raise ConfigError(f'--{flag} {value!r}: {", ".join(get_args(kind))}')
    folder = pathlib.Path(source)
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    tables: dict[str, Metadata | None] = {}  # by folder: its own, or the one of the folder above
    described: set[str] = set()
    for inner, files in _folders(folder, left_out):
        table = tables.get(os.path.dirname(inner)) if inner else None
        if captions != 'class':
            table = read_metadata(folder, inner, [entry.name for entry in files], left_out) or table
        tables[inner] = table
        texts = {_key(entry.name): entry.name for entry in files if _suffix(entry.name) == '.txt'}
        sounds = [entry for entry in files if _suffix(entry.name) in FOLDER_SUFFIXES]
        has_pairs = any(_key(entry.name) in texts for entry in sounds)
        by_class = captions == 'class' or (captions == 'auto' and not has_pairs and table is None)
        class_name = _class_name(inner, class_folder) if by_class else ''
        for sound in sounds:
            path = _joined(inner, sound.name)
            described.add(key_of(path))
            try:
                _check(sound, excluded, path)
                text = texts.get(_key(sound.name))
                row = table.rows.get(key_of(path)) if table is not None else None
                if row is not None and row[0]:
                    entries.append(Entry(path, path, *row))
                elif text is not None:
                    entries.append(Entry(path, path, _lines(folder, _joined(inner, text))))
                elif class_name:
                    entries.append(Entry(path, path, (class_name,), (class_name,)))
                else:
                    raise LeftOutError('excluded', _no_caption(captions, inner, table))
            except LeftOutError as error:
                left_out.append(LeftOut(path, error.reason, f'{path}: {error}'))
    for table in {id(table): table for table in tables.values() if table is not None}.values():
        absent = [path for path in table.rows if path not in described]
        left_out += [LeftOut(path, 'missing', f'{path}: no such sound, but {table.path} lists it') for path in absent]
    if not entries and not left_out:
        raise DataError(f'{folder}: holds no sounds ({", ".join(dataset_suffixes()[:10])}, …)')
    entries.sort(key=lambda entry: entry.id)
    return files_or_refuse(entries, folder, sorted(left_out, key=lambda clip: clip.id), 'folder', frames)


def _folders(folder: pathlib.Path, left_out: list[LeftOut]) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """Yields (path below `folder`, files sorted by name) for each folder once, linked ones last."""
    waiting = collections.deque([''])
    links: collections.deque[str] = collections.deque()
    seen: set[tuple[int, int]] = set()
    while waiting or links:
        inner = waiting.popleft() if waiting else links.popleft()
        files = []
        try:
            status = os.stat(folder / inner)
            if (status.st_dev, status.st_ino) in seen:  # reached before through a link
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / inner) as listing:
                for entry in sorted(listing, key=lambda entry: entry.name):
                    if entry.name.startswith('.') or entry.name == '__MACOSX':
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(_joined(inner, entry.name))
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        links.append(_joined(inner, entry.name))
                    else:
                        files.append(entry)
        except OSError as error:
            why = f'cannot be listed: {error.strerror or error}'
            if not inner:
                raise DataError(f'{folder}: {why}') from error
            left_out.append(LeftOut(inner, 'unreadable', f'{inner}: {why}'))
        yield inner, files


def _check(sound: os.DirEntry, excluded: frozenset[str], path: str) -> None:
    """Raises LeftOutError if a sound must not or cannot be used."""
    if is_excluded(excluded, path, sound.name, youtube_id(sound.name) or ''):
        raise LeftOutError('excluded', 'is in a list of --exclude')
    if printable(path) != path:
        raise LeftOutError('unreadable', 'its name is not UTF-8: rename it')
    if not sound.is_file(follow_symlinks=False) and not os.path.isfile(sound.path):
        if sound.is_symlink():
            raise LeftOutError('missing', 'is a link to a file that is not there')
        raise LeftOutError('unreadable', 'is not a file')  # for example a pipe, on which a reader would wait forever


def _lines(folder: pathlib.Path, path: str) -> tuple[str, ...]:
    """Returns the captions in a text file. Raises LeftOutError if there is none."""
    try:
        captions = distinct(read_text(folder / path).splitlines())
    except DataError as error:
        raise LeftOutError('unreadable', str(error)) from error
    if not captions:
        raise LeftOutError('excluded', f'no caption in {path}')
    return captions


def _no_caption(captions: CaptionSource, inner: str, table: Metadata | None) -> str:
    if table is not None:
        return f'no caption: {table.path} has none for it'
    if captions == 'text' or not inner:
        return 'no caption: there is no text file beside it'
    return 'no caption: others in its folder have a text file (--captions class takes the name of the folder)'


def _class_name(inner: str, class_folder: ClassFolder) -> str:
    """Returns 'dog barking' for the folder `animals/dog_barking`, and '' for no folder."""
    parts = inner.split('/')
    name = unicodedata.normalize('NFC', parts[-1] if class_folder == 'parent' else parts[0])
    return ' '.join(name.replace('_', ' ').split())


def _joined(inner: str, name: str) -> str:
    return f'{inner}/{name}' if inner else name


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _key(name: str) -> str:
    """Returns the key that a sound and its text file share, normalized because macOS decomposes accents."""
    return unicodedata.normalize('NFC', os.path.splitext(name)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildFolder(ExcludingOptions):
    """Shards from a folder of sounds: class folders, text files of captions beside the sounds, or metadata.csv."""

    source: pathlib.Path
    """The folder, with sounds at any depth, such as an audiofolder of Hugging Face with metadata.csv or .jsonl."""
    captions: CaptionSource = 'auto'
    """text: from metadata and text files only; class: from the name of the folder if there is no text file; auto: from
    metadata and text files, and like class in folders where no sound has either."""
    class_folder: ClassFolder = 'parent'
    """Which of nested folders names the class: the one that the sound is in (parent), or the one in --source (top)."""
    frames: int = 0
    """Number of pictures to keep of each video, for image queries."""

    def clips(self) -> ClipSource:
        return read_folder(
            self.source,
            captions=self.captions,
            class_folder=self.class_folder,
            frames=self.frames,
            excluded=self.excluded,
        )
