"""Checkpoints by name: the official weights, and the hub's repositories, converted once into the user's cache."""

import hashlib
import logging
import re
from pathlib import Path

from audiosep_jax.checkpoints.hub_folder import CONFIG, WEIGHTS, is_ours
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import as_path, is_bucket
from audiosep_jax.storage.cache import cache_folder
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import SUFFIXES

OFFICIAL = 'spaces/Audio-AGI/AudioSep:checkpoint/audiosep_base_4M_steps.ckpt'
_log = logging.getLogger(__name__)


def find_checkpoint(path: str | Path | None) -> Path:
    """The folder of a checkpoint of ours: where it is, or where it was put.

    Args:
        path: a folder, also in a bucket; `organisation/name` or `organisation/name:FILE` of the hub, with a checkpoint
            of ours or of the original code; None: the official weights. What comes from the hub is converted once, into
            `~/.cache/audiosep_jax/checkpoints`.

    Raises:
        CheckpointError: nothing there, or a file that has to be converted first.
        DownloadError: it has to be fetched and cannot be.
    """
    if path is None:
        return _converted(OFFICIAL)
    if is_bucket(path):
        return as_path(path)
    found = Path(path).expanduser()
    if found.is_dir():
        return found
    if found.exists():
        if found.suffix in SUFFIXES:
            raise CheckpointError(
                f'{path} is for PyTorch: convert it with `audiosep-jax convert {path} DIR`, then give DIR'
            )
        raise CheckpointError(f'{found.absolute()} is not a checkpoint: it is a file, and one of ours is a folder')
    reference = hub.parse_reference(str(path))
    if reference is None:
        raise CheckpointError(f'no such checkpoint: {found.absolute()}')
    if reference.file is None and not _cached(str(path)).exists():
        place = f'a folder of your choice, and give that (there is no folder {found.absolute()} either)'
        names = hub.list_files(reference, place=place, suffixes=(*SUFFIXES, '_METADATA'))
        if any(Path(name).parent.name == 'params' for name in names):
            return hub.snapshot(reference, names, place=place)
        if {CONFIG, WEIGHTS} <= set(names) and is_ours(hub.fetch(reference, CONFIG, place=place)):
            return hub.snapshot(reference, names, place=place)
    return _converted(str(path))


def _cached(reference: str) -> Path:
    digest = hashlib.sha256(reference.encode()).hexdigest()[:8]
    return cache_folder() / 'checkpoints' / f'{re.sub("[/:.]+", "-", reference)}-{digest}'


def _converted(reference: str) -> Path:
    folder = _cached(reference)
    if not folder.exists():
        from audiosep_jax.checkpoints.convert import from_torch

        folder.parent.mkdir(parents=True, exist_ok=True)
        converted = from_torch(reference, folder, place=f'any path FILE, and run `audiosep-jax convert FILE {folder}`')
        for note in converted.notes:
            _log.warning('%s: %s', reference, note)
    return folder
