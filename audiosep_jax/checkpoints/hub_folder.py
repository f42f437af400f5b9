"""A separator as a repository of the hub holds it: tensors in safetensors, settings in JSON, and no code.

    model.safetensors      the separator's tensors under the original's names (`ss_model.*`), so PyTorch reads them too
    config.json            the network's configuration, the query encoder's identity, the step, the training's level
    equalizer.safetensors  the equalizer of the training set, if there is one (`equalizer_file.py`)
    encoder/               the query encoder's own files, if they cannot be downloaded elsewhere
    examples/              sounds to try out (`audiosep-jax serve`)
    README.md              the model card (`model_card.py`)

The run's configuration is left out, because it names folders of the machine that trained.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np

from audiosep_jax import config as configs
from audiosep_jax.checkpoints.checkpoint import SEPARATOR_PREFIX, InferenceCheckpoint, Level, LevelRecord, errors_about
from audiosep_jax.checkpoints.equalizer_file import read_equalizer, write_equalizer
from audiosep_jax.encoders.base import Identity
from audiosep_jax.errors import CheckpointError, ConfigError, DataError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.torch_names import check_tensors, tensors_from_variables, variables_from_torch
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.checksums import check_seal, sealed
from audiosep_jax.storage.json_files import check_shape, read_json
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import WEIGHTS, SafeTensors, write_tensors

_CONFIG = 'config.json'
_MODEL_TYPE = 'audiosep_jax'
_FORMAT_VERSION = 1
_AGAIN = 'download it again'


class _Version(TypedDict):
    format_version: int


class _Settings(_Version):
    """What `config.json` holds."""

    model: dict[str, Any]
    encoder: Identity | None
    step: int
    level: NotRequired[LevelRecord]
    equalizer: NotRequired[bool]


def is_hub_folder(folder: Path) -> bool:
    """Whether a local folder is a repository of this format."""
    return (folder / WEIGHTS).is_file() and _is_our_config(folder / _CONFIG)


def check_config(folder: Path) -> None:
    """Checks that the `config.json` of a folder with weights can be read, so that damage is not taken for another kind.

    Raises:
        CheckpointError: it cannot be read.
    """
    if (folder / WEIGHTS).is_file() and (folder / _CONFIG).is_file():
        read_json(folder / _CONFIG, dict, error=CheckpointError, remedy=_AGAIN, strict=False)


def is_hub_repository(reference: hub.Reference, names: Iterable[str], *, place: str) -> bool:
    """Whether a repository of the hub has this format. Fetches its `config.json` to find out.

    Args:
        reference: the repository.
        names: the names of its files.
        place: see `hub.fetch`.

    Raises:
        DownloadError: the hub cannot be reached.
    """
    return {_CONFIG, WEIGHTS} <= set(names) and _is_our_config(hub.fetch(reference, _CONFIG, place=place))


def _is_our_config(path: Path) -> bool:
    """Whether a `config.json` describes a separator of this project; other projects have files of that name too."""
    try:
        return read_json(path, dict, strict=False).get('model_type') == _MODEL_TYPE
    except DataError:
        return False


def write_hub_folder(folder: Path, checkpoint: InferenceCheckpoint, encoder: dict[str, Any] | None) -> None:
    """Writes the settings and the weights into an existing folder.

    Args:
        folder: where to write them.
        checkpoint: the separator.
        encoder: the query encoder's identity to record; None if queries can only be embeddings.

    Raises:
        CheckpointError: a file cannot be written.
    """
    tensors = tensors_from_variables(checkpoint.variables, checkpoint.model, step=checkpoint.step)
    named = {SEPARATOR_PREFIX + name: value for name, value in tensors.items()}
    write_tensors(folder / WEIGHTS, named, {'format': 'pt'})
    if checkpoint.equalizer is not None:
        write_equalizer(folder, checkpoint.equalizer, encoder)
    settings = {
        'model_type': _MODEL_TYPE,
        'format_version': _FORMAT_VERSION,
        'model': configs.to_dict(checkpoint.model),
        'encoder': encoder,
        'step': checkpoint.step,
        # An upload deletes nothing, so a repository may hold the equalizer of an earlier one.
        'equalizer': checkpoint.equalizer is not None,
        **(checkpoint.level.record() if checkpoint.level is not None else {}),
    }
    try:
        with replacing(folder / _CONFIG) as temporary:
            temporary.write_text(json.dumps(sealed(settings), indent=2) + '\n', 'utf-8')
    except OSError as error:
        raise CheckpointError(f'{folder / _CONFIG}: cannot be written: {error.strerror or error}') from error


def read_hub_folder(folder: Path, *, step: int | None = None) -> InferenceCheckpoint:
    """Reads the separator in a folder for which `is_hub_folder` is true.

    Args:
        folder: the repository's local folder.
        step: the step that it must be of; None for any.

    Raises:
        CheckpointError: its files are damaged, of a later version, of another step, or do not fit together.
    """
    path = folder / _CONFIG
    settings = read_json(path, _Version, error=CheckpointError, remedy=_AGAIN)
    version = settings['format_version']
    if version != _FORMAT_VERSION:
        raise CheckpointError(f'{path} has format {version}; this version reads {_FORMAT_VERSION}')
    check_shape(settings, _Settings, path, error=CheckpointError, remedy=_AGAIN)
    with errors_about(path):
        verified = check_seal(settings)
        level = Level.read(settings)
    found, encoder = settings['step'], settings['encoder']
    if found < 0:
        raise CheckpointError(f'{path}: the step {found} is negative: {_AGAIN}')
    try:
        model = configs.from_dict(ModelConfig, settings['model'])
    except ConfigError as error:
        raise CheckpointError(f'{path}: not usable: {error}: {_AGAIN}') from error
    if step not in (None, found):
        raise CheckpointError(f'{folder} has no step {step}; it has {found}')
    file = SafeTensors(folder / WEIGHTS)
    tensors = {name.removeprefix(SEPARATOR_PREFIX): np.asarray(value) for name, value in file.items()}
    with errors_about(folder / WEIGHTS):
        check_tensors({name: value.shape for name, value in tensors.items()}, model)
        variables = variables_from_torch(tensors)
    # Copy: the file is only memory-mapped, and may be replaced while the separator is in use.
    variables = jax.tree.map(np.array, variables)
    record = {'config': {'model': settings['model']}, 'encoder': encoder, 'step': found}
    equalizer = read_equalizer(folder, model, encoder) if settings.get('equalizer') else None
    return InferenceCheckpoint(
        model, variables, encoder, found, record, folder.absolute(), verified and file.verified, level, equalizer
    )
