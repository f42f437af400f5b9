"""Publishing: a checkpoint as a repository of the hub (`hub_folder.py`), with a model card and its scores."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.checkpoints.find import find_checkpoint
from audiosep_jax.checkpoints.hub_folder import write_hub_folder
from audiosep_jax.checkpoints.model_card import _read_results, model_card
from audiosep_jax.checkpoints.run_folder import load_for_inference
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
    """Uploads a checkpoint to the hub, from where `load(repository)` gets it; returns the repository's address.

    The repository is made if it is not there. The token is that of `hf auth login`, or `HF_TOKEN`.

    Args:
        checkpoint: see `load`.
        repository: `organisation/name` or `user/name`.
        private: of a repository that is made by this.
        results: files of `audiosep-jax evaluate --json`, for the table of the model card.
        license: for the model card, as the hub abbreviates it (`mit`, `cc-by-nc-4.0`).
        step: which one, by default the newest.

    Raises:
        ConfigError: not the name of a repository.
        CheckpointError: see `load`; or its encoder's files are not here.
        DataError: results that are none, or of another checkpoint.
        DownloadError: no network, no token, no permission.
    """
    name = check_repository(repository)
    with tempfile.TemporaryDirectory(prefix='audiosep-jax-') as folder:
        write_repository(checkpoint, Path(folder), repository, results=results, license=license, step=step)
        return hub.upload(name, Path(folder), private=private)


def check_repository(repository: str) -> hub.Reference:
    """The repository of a name. Raises ConfigError for what is none."""
    reference = hub.parse_repository(repository)
    if reference is None:
        raise ConfigError(f'{repository!r} is not the name of a repository: say organisation/name')
    return reference


def make_repository(checkpoint: str | Path, folder: Path, repository: str, **options: Any) -> list[Path]:
    """As `push`, into a folder that is not there yet, complete or not at all; uploads nothing. Returns its files.

    Args:
        options: those of `push`, `private` excepted.

    Raises:
        CheckpointError: see `push`; or the folder exists or cannot be made.
    """
    check_repository(repository)
    if folder.exists():
        raise CheckpointError(f'{folder} is there already: choose another name')
    try:
        with new_folder(folder) as temporary:
            write_repository(checkpoint, temporary, repository, **options)
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be made: {error.strerror or error}') from error
    return sorted(path for path in folder.rglob('*') if path.is_file())


def write_repository(
    source: str | Path,
    folder: Path,
    repository: str,
    *,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    step: int | None = None,
) -> None:
    """All files of the repository, into an empty folder. Raises as `push` does."""
    found = [(path, table) for path in results for table in _read_results(Path(path))]
    tables = [table for _, table in found]
    checkpoint = load_for_inference(find_checkpoint(source), step=step)
    for path, table in found:
        scored = (table.get('checkpoint') or {}).get('step')
        if scored not in (None, checkpoint.step):
            raise DataError(f'{path}: scores of step {scored}, but the checkpoint is of step {checkpoint.step}')
    encoder = _with_encoder(checkpoint, folder / 'encoder')
    write_hub_folder(folder, checkpoint, encoder)
    if (checkpoint.root / 'examples').is_dir():
        shutil.copytree(checkpoint.root / 'examples', folder / 'examples')
    (folder / 'README.md').write_text(model_card(checkpoint, repository, tables, license), 'utf-8')


def _with_encoder(checkpoint: InferenceCheckpoint, folder: Path) -> dict | None:
    """The encoder's identity as others can use it: its files are put into the folder unless the hub has them."""
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
                f'its query encoder is not here, and nobody else could load it: put it into {stored} ({error})'
            ) from error
    # A path of this machine is nobody else's business.
    return {**identity, 'source': identity['name']} if folder.is_dir() else identity


# ---- the model card --------------------------------------------------------------------------------------------------
