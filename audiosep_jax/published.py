"""Checkpoints by name: the official weights, and the hub's repositories, converted once into the user's cache."""

from pathlib import Path

from audiosep_jax import hub
from audiosep_jax.compilation import cache_folder
from audiosep_jax.errors import CheckpointError
from audiosep_jax.tensor_files import SUFFIXES

OFFICIAL = 'spaces/Audio-AGI/AudioSep:checkpoint/audiosep_base_4M_steps.ckpt'


def find_checkpoint(path: str | Path | None) -> Path:
    """The folder of a checkpoint of ours: where it is, or where it was put.

    Args:
        path: a folder; `organisation/name` or `organisation/name:FILE` of the hub, with a checkpoint of ours or of the
            original code; None: the official weights. What comes from the hub is converted once, into
            `~/.cache/audiosep_jax/checkpoints`.

    Raises:
        CheckpointError: nothing there, or a file that has to be converted first.
        DownloadError: it has to be fetched and cannot be.
    """
    if path is None:
        return _converted(OFFICIAL)
    found = Path(path).expanduser()
    if found.is_dir():
        return found
    if found.exists():
        if found.suffix in SUFFIXES:
            raise CheckpointError(
                f'{path} is for PyTorch: convert it with `audiosep-jax convert {path} DIR`, then give DIR'
            )
        raise CheckpointError(f'{found.absolute()} is not a checkpoint: it is a file, and a checkpoint of ours is a folder')
    repository, _, file = str(path).removeprefix('spaces/').partition(':')
    if not hub.is_repo_id(repository) or (found.suffix in SUFFIXES and not file):
        raise CheckpointError(f'no such checkpoint: {found.absolute()}')
    place = f'{cache_folder() / "checkpoints"} or elsewhere, and give that path'
    if not file and not _cached(str(path)).exists():
        names = hub.list_files(repository, place=place)
        if any(Path(name).parent.name == 'params' for name in names):
            return hub.snapshot(repository, names, place=place)
    return _converted(str(path))


def _cached(reference: str) -> Path:
    name = reference.replace('/', '--').replace(':', '--')
    for suffix in SUFFIXES:  # a folder that ended in .ckpt would look like a file for PyTorch
        name = name.removesuffix(suffix)
    return cache_folder() / 'checkpoints' / name


def _converted(reference: str) -> Path:
    folder = _cached(reference)
    if not folder.exists():
        from audiosep_jax.convert import from_torch

        from_torch(reference, folder, place=f'any path FILE, and run `audiosep-jax convert FILE {folder}`')
    return folder
