"""Opens a checkpoint by whatever names it: a folder, a published name, a repository of the hub, or nothing.

Files of the original code are converted once, into the user's cache.
"""

import dataclasses
import glob
import logging
import os
import shutil
from pathlib import Path

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.checkpoints.equalizer_file import read_equalizer
from audiosep_jax.checkpoints.hub_folder import check_config, is_hub_folder, is_hub_repository, read_hub_folder
from audiosep_jax.checkpoints.named import DEFAULT, NAMED, NamedCheckpoint, at_address, conversion_folder, nearest_name
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import as_path, is_bucket
from audiosep_jax.storage.cache import cache_folder, expanded, is_kept
from audiosep_jax.storage.locks import locked
from audiosep_jax.weights import hub
from audiosep_jax.weights.download import download
from audiosep_jax.weights.tensor_files import SUFFIXES

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
    found = load_for_inference(folder, step=step)
    return dataclasses.replace(found, equalizer=read_equalizer(found.root, found.model, found.encoder))


def find_checkpoint(path: str | Path | None) -> Path:
    """Returns the folder of a checkpoint, downloaded and converted if necessary.

    Args:
        path: a folder, possibly in a bucket; a name of `audiosep-jax models`, unless a folder has it; or
            `organisation/name` or `organisation/name:FILE` of the hub, which holds a checkpoint of this project or of
            the original code; None for the checkpoint named `audiosep`. A file of the original code is converted once,
            into `~/.cache/audiosep_jax/checkpoints`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is a file that has to be converted first.
        DownloadError: the checkpoint has to be downloaded, which fails.
    """
    if path is None:
        return _converted(NAMED[DEFAULT].separator.address)
    if is_bucket(path):
        return as_path(path)
    found = expanded(path)
    if found.is_dir():
        if path in NAMED:
            says = '%s is the folder %s, not the published checkpoint; rename it to get that'
            _log.warning(says, path, found.absolute())
        return found
    if (named := published(path)) is not None:
        return _converted(named.separator.address)
    if found.exists():
        if found.suffix in SUFFIXES:
            raise CheckpointError(
                f'{path} is for PyTorch: convert it with `audiosep-jax convert {path} DIR`, then give DIR'
            )
        raise CheckpointError(f'{found.absolute()} is not a checkpoint: it is a file, and a checkpoint is a folder')
    reference = hub.parse_reference(str(path))
    if reference is None:
        nearest = nearest_name(str(path))
        hint = '' if nearest is None else f'; did you mean {nearest}, of `audiosep-jax models`?'
        raise CheckpointError(f'no such checkpoint: {found.absolute()}{hint}')
    if reference.file is None and not conversion_folder(str(path)).exists():
        place = f'a folder of your choice, and give that (there is no folder {found.absolute()} either)'
        names = hub.list_files(reference, place=place, suffixes=(*SUFFIXES, '_METADATA'))
        is_run_folder = any(Path(name).parent.name == 'params' for name in names)
        if is_run_folder or is_hub_repository(reference, names, place=place):
            return hub.snapshot(reference, names, place=place)
    return _converted(str(path))


def published(path: str | Path) -> NamedCheckpoint | None:
    """Returns the published checkpoint of a name; None for any other path, and for a folder with such a name."""
    return NAMED.get(path) if isinstance(path, str) and not Path(path).is_dir() else None


def fetch_published(checkpoint: NamedCheckpoint, *, place: str) -> str:
    """Returns the file of a published checkpoint for `from_torch`: a reference to the hub, or the path of a download.

    Raises:
        DownloadError: the file is outside the hub and cannot be downloaded.
    """
    file = checkpoint.separator
    if file.is_on_hub:
        return file.address
    path = cache_folder() / 'downloads' / checkpoint.name / file.name
    return str(download(file.address, path, size=file.size, checksum=file.checksum, place=place))


def _converted(reference: str) -> Path:
    """Returns the folder of a converted file of the original code; downloads and converts it the first time."""
    folder = conversion_folder(reference)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f'.{folder.name}.lock')):
            if not folder.exists():  # another process may have converted it meanwhile
                _remove_leftovers(folder)
                _convert(reference, folder)
    return folder


def _convert(reference: str, folder: Path) -> None:
    # Imported late: it imports CLAP's modules, which a checkpoint of this project may not need.
    from audiosep_jax.checkpoints.convert import PRESETS, from_torch

    def place(file: str, arguments: str) -> str:
        target, then = (folder, '') if is_kept() else ('DIR', ', then give DIR')
        return f'any path {file}, and run `audiosep-jax convert {arguments.format(target)}`{then}'

    named = at_address(reference)
    if named is None:
        converted = from_torch(reference, folder, place=place('FILE', 'FILE {}'))
    else:
        preset = '' if named.preset == 'audiosep-32k' else f' --preset {named.preset}'
        file_place = place('FILE', 'FILE {}' + preset)
        source = fetch_published(named, place=file_place)
        try:
            converted = from_torch(
                source,
                folder,
                front_end=PRESETS[named.preset],
                default_encoder=named.clap.address,
                place=file_place,
                encoder_place=place('CLAP', f'{named.name} {{}} --encoder CLAP'),
            )
        except CheckpointError as error:
            if named.separator.is_on_hub:
                raise
            raise CheckpointError(f'{error} (to fetch the file again, remove it)') from error
        if not named.separator.is_on_hub:
            shutil.rmtree(Path(source).parent)  # the conversion has all of it
    for note in converted.notes:
        _log.warning('%s: %s', reference if named is None else named.name, note)


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of conversions into a folder. The caller holds the folder's lock."""
    for path in folder.parent.glob(f'.{glob.escape(folder.name)}.tmp-*'):
        pid = path.name.split('.tmp-')[-1].partition('-')[0]
        if not (pid.isdigit() and _is_running(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        pass
    return True
