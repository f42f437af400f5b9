"""Copies datasets to a local disk before training, from a bucket or from a network file system.

The copy of DIR is `STAGE_DIR/NAME-xxxxxxxx`, with the name of DIR and a hash of its whole address. An interrupted copy
resumes with the missing files, and if the dataset was built or embedded again, the copy is updated. The files that mark
a split or a cache as complete are copied last.
"""

import hashlib
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import get_args

from audiosep_jax.data import caption_variants
from audiosep_jax.data.embeddings import Modality
from audiosep_jax.data.layout import read_split_info, split_names
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.buckets import as_path, is_bucket, reaching, size, write_bytes, writing
from audiosep_jax.storage.json_files import read_json, write_json
from audiosep_jax.storage.locks import locked

_DESCRIPTIONS = ('features.json', 'dataset_info.json', caption_variants.FILE)
_ENCODER = 'encoder.json'
_STAMP = '.staged.json'  # in a copy: the states of the splits and caches that its files belong to
_REQUESTS = 16  # files at a time, because one stream from a bucket does not fill a network card
_CHUNK = 8 << 20


def staged_directory(dataset_dir: str | os.PathLike, stage_dir: str | os.PathLike) -> pathlib.Path:
    """Returns the folder to which `stage` copies a dataset."""
    address = os.fspath(dataset_dir) if is_bucket(dataset_dir) else os.path.realpath(dataset_dir)
    name = address.rstrip('/').rpartition('/')[2] or 'dataset'
    return pathlib.Path(stage_dir) / f'{name}-{hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:8]}'


def stage(
    dataset_dir: str | os.PathLike,
    stage_dir: str | os.PathLike,
    *,
    splits: Sequence[str] = (),
    encoders: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pathlib.Path:
    """Copies a dataset, or its missing files, into a sub-folder of `stage_dir`, and returns that sub-folder.

    If several processes of a host do this at the same time, one copies and the others wait. When this returns, every
    file has the size of its original.

    Args:
        dataset_dir: a dataset with a complete split; a path, gs://… or s3://….
        stage_dir: folder on a local disk; it is made if it does not exist.
        splits: copy only these splits (default: all complete ones).
        encoders: copy only the embeddings of these encoders (default: all).
        progress: called with (megabytes copied, megabytes in total).

    Raises:
        ConfigError: `stage_dir` is in a bucket.
        DataError: there is no dataset or complete split, too little space, or a file cannot be read or written.
    """
    if is_bucket(stage_dir):
        raise ConfigError(f'--stage-dir {stage_dir}: give a folder on a local disk')
    source, target = as_path(dataset_dir), staged_directory(dataset_dir, stage_dir)
    try:
        with reaching(source):
            splits = _complete_splits(source, splits)
            target.mkdir(parents=True, exist_ok=True)
            with locked(target.with_name(f'.{target.name}.lock')):
                _copy_dataset(source, target, splits, encoders, progress)
    except OSError as error:
        raise DataError(f'{source}: cannot be copied to {target}: {error}') from error
    return target


def _complete_splits(source: pathlib.Path, splits: Sequence[str]) -> list[str]:
    infos = [read_split_info(source, split) for split in splits or split_names(source)]
    complete = [info.split for info in infos if info.complete]
    for info in infos:
        if splits and not info.complete:
            raise DataError(f'{source}: split {info.split!r} is not complete: run the same `data_prep build` again')
    if not complete:
        raise DataError(f'{source}: no dataset with a complete split here')
    return complete


def _copy_dataset(
    source: pathlib.Path,
    target: pathlib.Path,
    splits: Sequence[str],
    encoders: Sequence[str] | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    groups = _group_files(source, splits, encoders)
    with futures.ThreadPoolExecutor(_REQUESTS) as pool:
        paths = [path for files in groups.values() for path in files]
        lengths = dict(zip(paths, pool.map(lambda path: size(source / path), paths), strict=True))
        markers = {path: (source / path).read_bytes() for path in paths if _is_marker(path)}
        _drop_outdated(target, groups, markers)
        missing = [path for path in paths if path not in markers and _length(target / path) != lengths[path]]
        needed, free = sum(lengths[path] for path in missing), shutil.disk_usage(target).free
        if needed > free:
            raise DataError(f'{target}: the copy needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free')
        total = sum(lengths.values())
        done, lock = total - needed, threading.Lock()

        def count(number: int) -> None:
            nonlocal done
            with lock:
                done += number
                if progress:
                    progress(done >> 20, total >> 20)

        count(0)
        copies = [pool.submit(_copy, source / path, target / path, lengths[path], count) for path in missing]
        try:
            for copy in copies:
                copy.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    # Caches come before splits, because readers look for the split first.
    for path in sorted(markers, key=lambda path: (path.startswith('splits/'), path)):
        if not (target / path).is_file() or (target / path).read_bytes() != markers[path]:
            write_bytes(target / path, markers[path])


def _group_files(source: pathlib.Path, splits: Sequence[str], encoders: Sequence[str] | None) -> dict[str, list[str]]:
    """Returns the relative paths of the files to copy, by the split or cache that they belong to ('' for neither)."""
    groups = {'': [name for name in _DESCRIPTIONS if (source / name).exists()]}
    groups |= {split: [] for split in splits}
    for name in _names(source):
        split = name.partition('.array_record-')[0].partition('-')[2]
        if '.array_record-' in name and split in splits:
            groups[split].append(name)
    for name in _names(source / 'splits'):
        split = name.partition('.')[0].partition('-')[0]
        if split in splits:
            groups[split].append(f'splits/{name}')
    for encoder in _names(source / 'embeddings') if (source / 'embeddings').is_dir() else ():
        if encoders is not None and encoder not in encoders:
            continue
        for what in ('', *(f'{what}/' for what in get_args(Modality) if what != 'text')):
            folder = source / 'embeddings' / encoder / what
            for name in _names(folder) if folder.is_dir() else ():
                split = name.partition('.')[0].partition('-')[0]
                if split in splits:
                    groups.setdefault(f'embeddings/{encoder}/{what}{split}', []).append(
                        f'embeddings/{encoder}/{what}{name}'
                    )
                elif name == _ENCODER:
                    groups[''].append(f'embeddings/{encoder}/{name}')
    return groups


def _names(folder: pathlib.Path) -> Iterator[str]:
    """Yields the names of a folder's entries, without temporary files and locks."""
    yield from sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))


def _is_marker(path: str) -> bool:
    """Returns whether a file names the build of its group's files: a short JSON file, without a shard's number."""
    return path.endswith('.json') and '-of-' not in path


def _drop_outdated(target: pathlib.Path, groups: dict[str, list[str]], markers: dict[str, bytes]) -> None:
    """Removes copies of an earlier state of the dataset, because their sizes may be the same."""
    states = {}
    for group, files in groups.items():
        texts = [markers[path] for path in files if path in markers]
        if group.startswith('embeddings/'):  # another encoder with the same name makes other rows
            texts.append(markers.get(f'{"/".join(group.split("/")[:2])}/{_ENCODER}', b''))
        states[group] = hashlib.sha256(b'\0'.join(texts)).hexdigest()
    stamp = target / _STAMP
    if not stamp.is_file() and any(target.iterdir()):
        raise DataError(f'{target}: is not empty and not a copy of a dataset: give another --stage-dir')
    try:
        known = read_json(stamp, dict[str, str]) if stamp.is_file() else {}
    except DataError:  # nothing is known about the copies, so they are made again
        known = {}
    for group, state in states.items():
        if group and known.get(group) != state:
            for path in groups[group]:
                (target / path).unlink(missing_ok=True)
    if caption_variants.FILE not in markers:  # they may have been removed since the last copy
        (target / caption_variants.FILE).unlink(missing_ok=True)
    write_json(stamp, known | states)
    for leftover in target.glob('**/.*.tmp-*'):  # left by processes that were killed while copying
        leftover.unlink(missing_ok=True)


def _length(path: pathlib.Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _copy(source: pathlib.Path, target: pathlib.Path, length: int, count: Callable[[int], None]) -> None:
    try:
        with reaching(source), source.open('rb') as original, writing(target) as temporary:
            with open(temporary, 'wb') as copy:
                while chunk := original.read(_CHUNK):
                    copy.write(chunk)
                    count(len(chunk))
            if size(temporary) != length:
                raise DataError(f'{source}: {size(temporary)} of {length} bytes arrived: run the same command again')
    except OSError as error:
        raise DataError(f'{source}: cannot be copied to {target}: {error}') from error
