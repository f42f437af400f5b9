"""Fills the embedding caches of a dataset: it runs every caption, sound or picture through one query encoder.

`audiosep_jax/data/embeddings.py` describes the layout. Each file is renamed into place, and `SPLIT.json` is marked
`complete` last. A run that was killed therefore continues with the next shard, and hosts may share a split.
"""

import abc
import collections
import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Protocol, cast

import numpy as np

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.caption_variants import read_variants, variants_of
from audiosep_jax.data.embeddings import (
    Modality,
    are_offsets,
    cache_directory,
    cache_paths,
    check_same_encoder,
    content_id,
    read_encoder_identity,
)
from audiosep_jax.data.layout import SplitInfo, read_split_info, read_summary, split_names
from audiosep_jax.data.records import decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.errors import AudioSepError, ConfigError, DataError
from audiosep_jax.storage.buckets import is_bucket
from audiosep_jax.storage.json_files import read_json, write_json
from audiosep_jax.storage.locks import AtWork, locked
from audiosep_jax.storage.npy_files import read_npy, read_npy_header, write_npy

# Batch sizes of the encoder: large enough to fill an accelerator, small enough for any memory.
_TEXTS_PER_CALL = 256
_SOUNDS_PER_CALL = 32
_PICTURES_PER_CALL = 64
# Number of caption embeddings kept in memory, about 1.5 kB each. A caption that is frequent enough to matter occurs
# again within this many others.
_CAPTIONS_KEPT = 131_072
_METHODS = {'text': 'encode_text', 'audio': 'encode_audio', 'image': 'encode_image', 'variants': 'encode_text'}

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The result of a call of `embed_dataset`."""

    num_rows: int  # rows written
    num_encoded: int  # rows that the encoder computed; the others are repeated captions
    num_missing: int  # shards that other calls have not written yet; 0 if the splits are complete


def embed_captions(
    directory: str | os.PathLike,
    encoder: QueryEncoder,
    *,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
) -> int:
    """Embeds all captions with `embed_dataset` and returns the number of rows that this call wrote."""
    return embed_dataset(directory, encoder, splits=splits, progress=progress).num_rows


def embed_dataset(
    directory: str | os.PathLike,
    encoder: QueryEncoder,
    *,
    what: Modality = 'text',
    splits: Sequence[str] = (),
    shard_range: tuple[int, int | None] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    progress: Progress | None = None,
) -> Embedded:
    """Embeds what is still missing in the given splits.

    Args:
        directory: directory of the dataset.
        encoder: the query encoder.
        what: what to embed: captions, their variants, whole sounds, or the pictures of videos that the records hold.
        splits: names of the splits; by default all complete ones.
        shard_range: the shards of each split that this call embeds, (first, last + 1); other calls do the others.
        process_index: number of this host among those that run the same call.
        process_count: number of these hosts; this one embeds the shards index, index + count, index + 2 count …
        progress: called with (clips done, clips in total) for the shards of this call.

    Raises:
        ConfigError: the encoder has no such embeddings, or the share of the shards is out of range.
        DataError: there is no dataset or no complete split, records or summaries are damaged, or the encoder gives NaN.
        EncoderMismatchError: the directory has embeddings of another version or setting of this encoder.
    """
    _check_encoder(encoder, what)
    infos = _complete_splits(directory, splits)
    source = _SOURCES[what](directory, encoder)
    folder = cache_directory(directory, encoder.name, what)
    work = [(info, _shards_of(info, shard_range, process_index, process_count)) for info in infos]
    total = sum(info.shard_lengths[shard] for info, shards in work for shard in shards)
    done, num_rows, num_missing, has_rows = 0, 0, 0, False

    def tick(clips: int) -> None:
        nonlocal done
        done += clips
        if progress:
            progress(done, total)

    try:
        _claim(directory, encoder)
        for info, shards in work:
            folder.mkdir(parents=True, exist_ok=True)
            with AtWork(folder / f'.{info.split}.lock') as at_work:
                content = content_id(directory, info, what)
                _begin(folder, content, info, directory, encoder, what)
                for shard in shards:
                    saved = _load(directory, encoder, info, shard, what)
                    if saved is not None and source.is_done(info, shard, saved):
                        has_rows |= saved[0] > 0
                        tick(info.shard_lengths[shard])
                        continue
                    _write_status(folder, content, info, complete=False)
                    rows, counts = source.embed(info, shard, tick)
                    _save_shard(cache_paths(directory, encoder.name, info, shard, what), rows, counts)
                    num_rows += len(rows)
                    has_rows |= len(rows) > 0
                others = [shard for shard in range(len(info.shard_lengths)) if shard not in shards]
                missing = [k for k in others if not _fits(info, k, _load(directory, encoder, info, k, what))]
                num_missing += len(missing)
                if what == 'image' and not (has_rows or others):
                    raise DataError(f'{directory}: no clip has a picture: build it with --frames N, from videos')
                if not missing:
                    _finish(folder, content, info, alone=at_work.alone() or (at_work.alone() is None and not others))
    except OSError as error:
        raise DataError(f'{folder}: cannot be written: {error}') from error
    return Embedded(num_rows, source.num_encoded, num_missing)


def _check_encoder(encoder: QueryEncoder, what: Modality) -> None:
    """Raises ConfigError if the encoder has no embeddings of `what`, or another error if it cannot be loaded."""
    if not hasattr(encoder, _METHODS[what]):
        raise ConfigError(f'encoder {encoder.name!r} has no embeddings of {what}: use clap (audio) or clip (image)')
    if what in ('text', 'variants'):
        _ = getattr(encoder, 'tokenizer', None)  # fails here, before anything is written, if it cannot be fetched


def _complete_splits(directory: str | os.PathLike, splits: Sequence[str]) -> list[SplitInfo]:
    if is_bucket(directory):
        raise DataError(f'{directory}: is in a bucket: bring it here with `python -m data_prep stage`, and embed there')
    infos = [read_split_info(directory, split) for split in splits or split_names(directory)]
    if not splits:
        infos = [info for info in infos if info.complete]
    if not infos or not all(info.complete for info in infos):
        names = ', '.join(info.split for info in infos if not info.complete)
        problem = f'split {names} is not complete' if names else 'no dataset with a complete split here'
        raise DataError(f'{directory}: {problem}: run `python -m data_prep build` first')
    return infos


def _shards_of(info: SplitInfo, shard_range: tuple[int, int | None] | None, index: int, count: int) -> range:
    first, end = shard_range or (0, None)
    if first < 0 or (end is not None and end <= first):
        raise ConfigError(f'--shard-range {first}:{end}: give FIRST:END without END itself, such as 0:10, 10:20')
    if count < 1 or not 0 <= index < count:
        raise ConfigError(f'--process-index {index} of --process-count {count}: give 0 to count - 1')
    return range(first, len(info.shard_lengths))[: None if end is None else end - first][index::count]


def _claim(directory: str | os.PathLike, encoder: QueryEncoder) -> None:
    folder = cache_directory(directory, encoder.name)
    if (folder / 'encoder.json').is_file():
        found = read_encoder_identity(directory, encoder.name)
        check_same_encoder(folder, found, encoder.identity(), 'the one installed', remedy=f'delete {folder}')
    else:
        write_json(folder / 'encoder.json', encoder.identity())


def _begin(
    folder: pathlib.Path, content: str, info: SplitInfo, directory, encoder: QueryEncoder, what: Modality
) -> None:
    """Removes embeddings of another build of the split or of other variants, before a host could reuse them."""
    with locked(folder / f'.{info.split}.begin.lock'):
        if _content(folder, info) != content:
            for shard in range(info.num_shards):
                for path in cache_paths(directory, encoder.name, info, shard, what):
                    path.unlink(missing_ok=True)
            _write_status(folder, content, info, complete=False)


def _finish(folder: pathlib.Path, content: str, info: SplitInfo, *, alone: bool) -> None:
    if alone:
        for leftover in folder.glob(f'.{info.split}[.-]*.tmp-*'):  # left by runs that were killed
            leftover.unlink(missing_ok=True)
    _write_status(folder, content, info, complete=True)


def _write_status(folder: pathlib.Path, content: str, info: SplitInfo, *, complete: bool) -> None:
    path, note = folder / f'{info.split}.json', {'content': content, 'complete': complete}
    with contextlib.suppress(DataError):
        if read_json(path) == note:
            return
    write_json(path, note)


def _content(folder: pathlib.Path, info: SplitInfo) -> str | None:
    """Returns which build of the split the existing rows belong to; None if unknown, and they are made again."""
    try:
        return read_json(folder / f'{info.split}.json', dict).get('content')
    except DataError:
        return None


_Saved = tuple[int, np.ndarray] | None  # number of rows, and offsets; None if missing or damaged


def _load(directory, encoder: QueryEncoder, info: SplitInfo, shard: int, what: Modality) -> _Saved:
    rows_path, offsets_path = cache_paths(directory, encoder.name, info, shard, what)
    try:
        with open(rows_path, 'rb') as file:
            rows = read_npy_header(file)
            is_whole = os.fstat(file.fileno()).st_size == rows.start + rows.num_bytes
        offsets = read_npy(offsets_path)
    except (OSError, ValueError):
        return None
    fits = rows.shape[1:] == (encoder.embedding_size,) and rows.dtype == np.float16 and not rows.fortran_order
    return (rows.shape[0], offsets) if fits and is_whole else None


def _fits(info: SplitInfo, shard: int, saved: _Saved) -> bool:
    """Whether the rows of a shard are complete, as far as can be seen without its summary."""
    return saved is not None and are_offsets(saved[1], info.shard_lengths[shard], saved[0])


def _save_shard(paths: tuple[pathlib.Path, pathlib.Path], rows: np.ndarray, counts: Sequence[int]) -> None:
    """Writes the rows of a shard after their offsets: `paths` are those of both files, `counts` the rows per clip."""
    rows_path, offsets_path = paths
    write_npy(offsets_path, np.cumsum([0, *counts], dtype=np.int64))
    write_npy(rows_path, rows)


class _SoundEncoder(Protocol):
    """A query encoder that also embeds sounds."""

    def encode_audio(self, audio: list[np.ndarray], *, sample_rate: int) -> np.ndarray:
        """Returns the embeddings [n, E] of n mono waveforms."""


class _PictureEncoder(Protocol):
    """A query encoder that also embeds pictures."""

    def encode_image(self, images: list[Any]) -> np.ndarray:
        """Returns the embeddings [n, E] of n PIL images."""


class _Source(Protocol):
    """The captions, sounds or pictures of the shards."""

    num_encoded: int

    def is_done(self, info: SplitInfo, shard: int, saved: _Saved) -> bool:
        """Whether these rows and offsets are all that the shard needs."""

    def embed(self, info: SplitInfo, shard: int, tick: Callable[[int], None]) -> tuple[np.ndarray, Sequence[int]]:
        """Returns float16 [rows, E] and the number of rows of each clip; calls `tick` with numbers of clips done."""


class _Captions:
    """Embeds captions. It reads no audio and does not encode a repeated caption again."""

    def __init__(self, directory: str | os.PathLike, encoder: QueryEncoder):
        self.directory, self.encoder, self.num_encoded = directory, encoder, 0
        self._known: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

    def is_done(self, info: SplitInfo, shard: int, saved: _Saved) -> bool:
        if saved is None:
            return False
        texts = self.texts(info, shard)
        return _fits(info, shard, saved) and np.array_equal(np.diff(saved[1]), [len(clip) for clip in texts])

    def texts(self, info: SplitInfo, shard: int) -> list[list[str]]:
        """Returns the texts of each clip."""
        return read_summary(self.directory, info, shard)['captions']

    def embed(self, info: SplitInfo, shard: int, tick: Callable[[int], None]) -> tuple[np.ndarray, Sequence[int]]:
        by_clip = self.texts(info, shard)
        texts = [text for clip in by_clip for text in clip]
        rows, new = {}, []
        for text in dict.fromkeys(texts):
            if text in self._known:
                self._known.move_to_end(text)
                rows[text] = self._known[text]
            else:
                new.append(text)
        for start in range(0, len(new), _TEXTS_PER_CALL):
            part = new[start : start + _TEXTS_PER_CALL]
            embeddings = _to_float16(self.encoder, self.encoder.encode_text(part), part)
            for text, row in zip(part, embeddings, strict=True):
                rows[text] = self._known[text] = row.copy()  # a view would keep the whole batch in memory
        self.num_encoded += len(new)
        while len(self._known) > _CAPTIONS_KEPT:
            self._known.popitem(last=False)
        tick(len(by_clip))
        return _stack(self.encoder, [rows[text] for text in texts]), [len(clip) for clip in by_clip]


class _Variants(_Captions):
    """Embeds the variants of captions."""

    def __init__(self, directory: str | os.PathLike, encoder: QueryEncoder):
        super().__init__(directory, encoder)
        self._variants = read_variants(directory)
        if not self._variants:
            raise DataError(f'{directory}: no caption variants: add them with `python -m data_prep caption-variants`')

    def texts(self, info: SplitInfo, shard: int) -> list[list[str]]:
        return [variants_of(clip, self._variants) for clip in super().texts(info, shard)]


class _Recordings(abc.ABC):
    """Embeds what is read from the records; threads read some batches ahead of the encoder."""

    per_call: int

    def __init__(self, directory: str | os.PathLike, encoder: QueryEncoder):
        self.directory, self.encoder, self.num_encoded = directory, encoder, 0
        self._shards: dict[str, Shards] = {}

    def embed(self, info: SplitInfo, shard: int, tick: Callable[[int], None]) -> tuple[np.ndarray, Sequence[int]]:
        if info.split not in self._shards:
            self._shards[info.split] = Shards(self.directory, info.split)
        shards = self._shards[info.split]
        first = sum(info.shard_lengths[:shard])
        clips = range(first, first + info.shard_lengths[shard])
        rows: list[np.ndarray] = []
        counts: list[int] = []
        batch: list[tuple[str, Any]] = []  # the clip's name and the sound or picture

        def encode() -> None:
            names = [name for name, _ in batch]
            try:
                embeddings = self.encode([one for _, one in batch], info)
            except AudioSepError as error:
                raise DataError(f'{names[0]} … {names[-1]}: cannot be embedded: {error}') from error
            rows.extend(_to_float16(self.encoder, embeddings, names))
            batch.clear()

        for name, found in _read_ahead(lambda clip: self.read(shards, clip), clips, 2 * self.per_call):
            counts.append(len(found))
            for one in found:
                batch.append((name, one))
                if len(batch) == self.per_call:
                    encode()
            tick(1)
        if batch:
            encode()
        self.num_encoded += len(rows)
        return _stack(self.encoder, rows), counts

    @abc.abstractmethod
    def read(self, shards: Shards, clip: int) -> tuple[str, list[Any]]:
        """Returns the clip's name for messages and its sound or pictures. Raises DataError if the record is damaged."""

    @abc.abstractmethod
    def encode(self, batch: list[Any], info: SplitInfo) -> np.ndarray:
        """Returns the embeddings [n, E] of n sounds or pictures."""


class _Sounds(_Recordings):
    per_call = _SOUNDS_PER_CALL

    def is_done(self, info: SplitInfo, shard: int, saved: _Saved) -> bool:
        return saved is not None and _fits(info, shard, saved) and saved[0] == info.shard_lengths[shard]

    def read(self, shards: Shards, clip: int) -> tuple[str, list[Any]]:
        record = shards.read(clip)
        return f'clip {record.id!r}', [decode_audio(record).astype(np.float32) / INT16_SCALE]

    def encode(self, batch: list[Any], info: SplitInfo) -> np.ndarray:
        return cast(_SoundEncoder, self.encoder).encode_audio(batch, sample_rate=info.sample_rate)


class _Pictures(_Recordings):
    per_call = _PICTURES_PER_CALL

    def is_done(self, info: SplitInfo, shard: int, saved: _Saved) -> bool:
        return _fits(info, shard, saved)

    def read(self, shards: Shards, clip: int) -> tuple[str, list[Any]]:
        from PIL import Image, UnidentifiedImageError

        record = shards.read(clip)
        try:
            pictures = [Image.open(io.BytesIO(frame)) for frame in record.frames]
            for picture in pictures:
                picture.load()  # decodes here, in a worker thread
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
            raise DataError(f'clip {record.id!r}: one of its pictures does not decode: {error}') from error
        return f'clip {record.id!r}', pictures

    def encode(self, batch: list[Any], info: SplitInfo) -> np.ndarray:
        return cast(_PictureEncoder, self.encoder).encode_image(batch)


_SOURCES: dict[str, Callable[[str | os.PathLike, QueryEncoder], _Source]] = {
    'text': _Captions,
    'audio': _Sounds,
    'image': _Pictures,
    'variants': _Variants,
}


def _read_ahead(read: Callable[[int], Any], clips: Iterable[int], depth: int) -> Iterator[Any]:
    """Yields `read(clip)` for each clip in order; threads read at most `depth` clips ahead."""
    clips = iter(clips)
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting = collections.deque(pool.submit(read, clip) for clip in itertools.islice(clips, depth))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(read, clip) for clip in itertools.islice(clips, 1))
        finally:
            for future in waiting:
                future.cancel()


def _to_float16(encoder: QueryEncoder, embeddings: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns the embeddings as float16 [rows, E]. Raises DataError if one is not finite."""
    with np.errstate(over='ignore'):
        embeddings = np.asarray(embeddings).astype(np.float16)
    bad = ~np.isfinite(embeddings).all(axis=-1)
    if bad.any():
        raise DataError(f'encoder {encoder.name!r} gives non-finite embeddings for {names[bad.argmax()]!r}')
    return embeddings


def _stack(encoder: QueryEncoder, rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, encoder.embedding_size), np.float16)
