"""Fills the embedding cache of a dataset: every caption through one query encoder. Audio is neither read nor written.

The layout is described in `audiosep_jax/embedding_cache.py`. Each file is renamed into place, and `SPLIT.json` says
`complete` last: a killed run, started again, continues with the next shard.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from audiosep_jax.embedding_cache import cache_directory, cache_paths, check_same_encoder, read_encoder_identity
from audiosep_jax.encoders import QueryEncoder
from audiosep_jax.errors import DataError
from audiosep_jax.files import replacing
from audiosep_jax.records import (
    SplitInfo,
    read_json,
    read_split_info,
    read_summary,
    split_names,
    write_json,
)

_TEXTS_PER_CALL = 256  # of the encoder: enough to fill an accelerator, little enough for any memory


def embed_captions(
    directory: str | os.PathLike,
    encoder: QueryEncoder,
    *,
    splits: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embeds what is missing of the given splits (all complete ones, by default); returns the rows made by this call.

    Args:
        progress: called with (clips done, clips in all).

    Raises:
        DataError: no dataset, no complete split, a shard summary that is damaged, an encoder that gives NaN.
        EncoderMismatchError: the directory has embeddings of another version or setting of this encoder.
    """
    infos = [read_split_info(directory, split) for split in splits or split_names(directory)]
    if not splits:
        infos = [info for info in infos if info.complete]
    if not infos or not all(info.complete for info in infos):
        names = ', '.join(info.split for info in infos if not info.complete)
        what = f'split {names} is not complete' if names else 'no dataset with a complete split here'
        raise DataError(f'{directory}: {what}: run `python -m data_prep build` first')
    folder = cache_directory(directory, encoder.name)
    try:
        if (folder / 'encoder.json').is_file():
            found = read_encoder_identity(directory, encoder.name)
            check_same_encoder(folder, found, encoder.identity(), 'the one installed', remedy=f'delete {folder}')
        else:
            write_json(folder / 'encoder.json', encoder.identity())
        total, done, made = sum(info.num_clips for info in infos), 0, 0
        for info in infos:
            state_path = folder / f'{info.split}.json'
            resume = _content(state_path) == info.content
            write_json(state_path, {'content': info.content, 'complete': False})
            for shard in range(info.num_shards):
                captions = read_summary(directory, info, shard)['captions']
                if not (resume and _is_done(directory, encoder, info, shard, captions)):
                    _embed_shard(directory, encoder, info, shard, captions)
                    made += sum(map(len, captions))
                done += len(captions)
                if progress:
                    progress(done, total)
            for leftover in folder.glob(f'.{info.split}[.-]*.tmp-*'):  # of runs that were killed
                leftover.unlink(missing_ok=True)
            write_json(state_path, {'content': info.content, 'complete': True})
    except OSError as error:
        raise DataError(f'{folder}: cannot be written: {error}') from error
    return made


def _content(state_path: pathlib.Path) -> str | None:
    """Which build of the split the rows that are there were made from; None: nobody knows, they are made again."""
    try:
        return read_json(state_path)['content']
    except (DataError, KeyError, TypeError):
        return None


def _is_done(directory, encoder: QueryEncoder, info: SplitInfo, shard: int, captions: list) -> bool:
    rows_path, offsets_path = cache_paths(directory, encoder.name, info, shard)
    try:
        rows, offsets = np.load(rows_path, mmap_mode='r'), np.load(offsets_path)
    except (OSError, ValueError, EOFError):  # missing, or damaged since: made again
        return False
    return rows.shape == (sum(map(len, captions)), encoder.embedding_size) and np.array_equal(
        offsets, _offsets(captions)
    )


def _embed_shard(directory, encoder: QueryEncoder, info: SplitInfo, shard: int, captions: list) -> None:
    texts = [text for clip in captions for text in clip]
    distinct = list(dict.fromkeys(texts))  # corpora repeat their captions
    embeddings = np.zeros((0, encoder.embedding_size), np.float16)
    if distinct:
        parts = [
            encoder.encode_text(distinct[i : i + _TEXTS_PER_CALL]) for i in range(0, len(distinct), _TEXTS_PER_CALL)
        ]
        embeddings = np.concatenate(parts).astype(np.float16)
    bad = ~np.isfinite(embeddings).all(axis=-1)
    if bad.any():
        raise DataError(f'encoder {encoder.name!r} gives non-finite embeddings for {distinct[bad.argmax()]!r}')
    place = {text: row for row, text in enumerate(distinct)}
    rows_path, offsets_path = cache_paths(directory, encoder.name, info, shard)
    _save(offsets_path, _offsets(captions))
    _save(rows_path, embeddings[[place[text] for text in texts]])


def _offsets(captions: list) -> np.ndarray:
    return np.cumsum([0, *map(len, captions)], dtype=np.int64)


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    # An open file: to a name that does not end in .npy numpy would append it.
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        np.save(file, array)
