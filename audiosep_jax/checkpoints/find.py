"""Opens a checkpoint by whatever names it: a folder, a repository of the hub, or nothing for the official weights.

Files of the original code that come from the hub are converted once, into the user's cache.
"""

import hashlib
import logging
import re
from pathlib import Path

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.checkpoints.hub_folder import check_config, is_hub_folder, is_hub_repository, read_hub_folder
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import as_path, is_bucket
from audiosep_jax.storage.cache import cache_folder, expanded, is_kept
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import SUFFIXES

OFFICIAL = 'spaces/Audio-AGI/AudioSep:checkpoint/audiosep_base_4M_steps.ckpt'
_log = logging.getLogger(__name__)


def open_checkpoint(path: str | Path | None, *, step: int | None = None) -> InferenceCheckpoint:
    """Finds a checkpoint and reads its weights.

    Args:
        path: see `find_checkpoint`.
        step: the step to read, by default the newest.

    Raises:
        CheckpointError: the path is not a checkpoint, it is damaged, or it has no such step.
        DownloadError: the checkpoint has to be downloaded, which fails.
    """
    folder = find_checkpoint(path)
    if not is_bucket(folder):
        if is_hub_folder(folder):
            return read_hub_folder(folder, step=step)
        check_config(folder)
    return load_for_inference(folder, step=step)


def find_checkpoint(path: str | Path | None) -> Path:
    """Returns the folder of a checkpoint, downloaded and converted if necessary.

    Args:
        path: a folder, possibly in a bucket; `organisation/name` or `organisation/name:FILE` of the hub, which holds a
            checkpoint of this project or of the original code; None for the official weights. A file of the original
            code is converted once, into `~/.cache/audiosep_jax/checkpoints`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is a file that has to be converted first.
        DownloadError: the checkpoint has to be downloaded, which fails.
    """
    if path is None:
        return _converted(OFFICIAL)
    if is_bucket(path):
        return as_path(path)
    found = expanded(path)
    if found.is_dir():
        return found
    if found.exists():
        if found.suffix in SUFFIXES:
            raise CheckpointError(
                f'{path} is for PyTorch: convert it with `audiosep-jax convert {path} DIR`, then give DIR'
            )
        raise CheckpointError(f'{found.absolute()} is not a checkpoint: it is a file, and a checkpoint is a folder')
    reference = hub.parse_reference(str(path))
    if reference is None:
        raise CheckpointError(f'no such checkpoint: {found.absolute()}')
    if reference.file is None and not _conversion_folder(str(path)).exists():
        place = f'a folder of your choice, and give that (there is no folder {found.absolute()} either)'
        names = hub.list_files(reference, place=place, suffixes=(*SUFFIXES, '_METADATA'))
        is_run_folder = any(Path(name).parent.name == 'params' for name in names)
        if is_run_folder or is_hub_repository(reference, names, place=place):
            return hub.snapshot(reference, names, place=place)
    return _converted(str(path))


def _converted(reference: str) -> Path:
    """Returns the folder of a converted file of the original code; downloads and converts it the first time."""
    folder = _conversion_folder(reference)
    if not folder.exists():
        # Imported late: it imports CLAP's modules, which a checkpoint of this project may not need.
        from audiosep_jax.checkpoints.convert import from_torch

        folder.parent.mkdir(parents=True, exist_ok=True)
        place = f'any path FILE, and run `audiosep-jax convert FILE {folder if is_kept() else "DIR"}`'
        converted = from_torch(reference, folder, place=place if is_kept() else f'{place}, then give DIR')
        for note in converted.notes:
            _log.warning('%s: %s', reference, note)
    return folder


def _conversion_folder(reference: str) -> Path:
    # The digest distinguishes references that differ only in the characters replaced here.
    digest = hashlib.sha256(reference.encode()).hexdigest()[:8]
    return cache_folder() / 'checkpoints' / f'{re.sub("[/:.]+", "-", reference)}-{digest}'
