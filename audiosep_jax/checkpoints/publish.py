"""Publishes a checkpoint as a repository of the hub (`hub_folder.py`), with a model card and its scores."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint, check_free
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.hub_folder import write_hub_folder
from audiosep_jax.checkpoints.model_card import model_card, read_results
from audiosep_jax.encoders.pretrained import REPOSITORIES, locate, store
from audiosep_jax.errors import CheckpointError, ConfigError, DataError, DownloadError
from audiosep_jax.storage.atomic import new_folder
from audiosep_jax.weights import hub


def push(
    checkpoint: str | Path,
    repository: str,
    *,
    private: bool = False,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    step: int | None = None,
) -> str:
    """Uploads a checkpoint to the hub, where `load(repository)` finds it, and returns the repository's address.

    The repository is created if it does not exist. The token is that of `hf auth login`, or `HF_TOKEN`.

    Args:
        checkpoint: see `load`.
        repository: `organisation/name` or `user/name`.
        private: whether a newly created repository is private.
        results: files written by `audiosep-jax evaluate --json`, for the table in the model card.
        license: for the model card, as the hub abbreviates it (`mit`, `cc-by-nc-4.0`).
        step: the step to publish, by default the newest.

    Raises:
        ConfigError: `repository` is not the name of a repository.
        CheckpointError: see `load`; or its encoder's files are missing.
        DataError: a file of results is damaged, or belongs to another step.
        DownloadError: there is no network, no token or no permission.
    """
    reference = _check_repository(repository)
    with tempfile.TemporaryDirectory(prefix='audiosep-jax-') as temporary:
        folder = Path(temporary)
        _write_repository(checkpoint, folder, repository, results=results, license=license, step=step)
        return hub.upload(reference, folder, private=private)


def make_repository(
    checkpoint: str | Path,
    folder: Path,
    repository: str,
    *,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    step: int | None = None,
) -> list[Path]:
    """Writes the files that `push` would upload into a new folder, and returns their paths.

    Args:
        checkpoint: see `load`.
        folder: the folder to make, which appears only when it is complete.
        repository: see `push`.
        results: see `push`.
        license: see `push`.
        step: see `push`.

    Raises:
        ConfigError: see `push`.
        CheckpointError: see `push`; or the folder is taken or cannot be made.
        DataError: see `push`.
    """
    _check_repository(repository)
    check_free(folder)
    try:
        with new_folder(folder) as temporary:
            _write_repository(checkpoint, temporary, repository, results=results, license=license, step=step)
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be made: {error.strerror or error}') from error
    return sorted(path for path in folder.rglob('*') if path.is_file())


def _check_repository(repository: str) -> hub.Reference:
    reference = hub.parse_repository(repository)
    if reference is None:
        raise ConfigError(f'{repository!r} is not the name of a repository: give organisation/name')
    return reference


def _write_repository(
    source: str | Path,
    folder: Path,
    repository: str,
    *,
    results: Sequence[str | Path],
    license: str | None,
    step: int | None,
) -> None:
    """Writes all files of the repository into an empty folder."""
    tables = [(path, table) for path in results for table in read_results(Path(path))]
    checkpoint = open_checkpoint(source, step=step)
    for path, table in tables:
        scored = (table.get('checkpoint') or {}).get('step')
        if scored not in (None, checkpoint.step):
            raise DataError(f'{path}: scores of step {scored}, but the checkpoint is of step {checkpoint.step}')
        share = (table.get('checkpoint') or {}).get('equalizer')
        own = checkpoint.equalizer.share if checkpoint.equalizer is not None else 0.0
        if share not in (None, own):
            raise DataError(f'{path}: scores with an equalizer of {share:g}, but that of the checkpoint is {own:g}')
    encoder = _add_encoder(checkpoint, folder / 'encoder')
    write_hub_folder(folder, checkpoint, encoder)
    if (checkpoint.root / 'examples').is_dir():
        shutil.copytree(checkpoint.root / 'examples', folder / 'examples')
    card = model_card(checkpoint, repository, [table for _, table in tables], license)
    (folder / 'README.md').write_text(card, 'utf-8')


def _add_encoder(checkpoint: InferenceCheckpoint, folder: Path) -> dict[str, Any] | None:
    """Copies the query encoder into a folder unless the hub has it, and returns the identity to publish."""
    identity = checkpoint.encoder
    if identity is None or ('source' not in identity and identity['name'] not in REPOSITORIES):
        return identity
    source, stored = str(identity.get('source', identity['name'])), checkpoint.root / 'encoder'
    if stored.is_dir():
        store(stored, folder)
    elif source not in REPOSITORIES and hub.parse_reference(source) is None:
        try:
            store(locate(source), folder)
        except (ConfigError, DownloadError) as error:
            raise CheckpointError(
                f'its query encoder is not on this machine, and nobody else could load it: put it into {stored} '
                f'({error})'
            ) from error
    # The source may be a local path, which must not be published.
    return {**identity, 'source': identity['name']} if folder.is_dir() else identity
