"""A separator as a repository of the hub holds it: tensors in safetensors, settings in JSON, nothing to run.

    model.safetensors   the separator's tensors under the original's names (`ss_model.*`), so PyTorch reads them too
    config.json         what the network is, which encoder it is asked through, the step
    encoder/            the encoder's own files, where they are not to be had elsewhere
    examples/           sounds to try (`audiosep-jax serve`)
    README.md           the model card (`publish.py`)

Of the run it says no more than the step: its configuration names folders of the machine that trained.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax import config as configs
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.torch_names import check_tensors, tensors_from_variables, variables_from_torch
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.weights.tensor_files import open_tensors, write_tensors

if TYPE_CHECKING:
    from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
_MODEL_TYPE = 'audiosep_jax'
_FORMAT_VERSION = 1
_PREFIX = 'ss_model.'


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder is one of these, by its settings."""
    return is_ours(folder / CONFIG) and (folder / WEIGHTS).is_file()


def is_ours(settings: Path) -> bool:
    """Whether a `config.json` is that of a separator of this project; others have files of that name too."""
    try:
        return json.loads(settings.read_text('utf-8')).get('model_type') == _MODEL_TYPE
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def write_hub_folder(folder: Path, checkpoint: 'InferenceCheckpoint', encoder: dict | None) -> None:
    """Writes the settings and the weights into a folder that exists.

    Args:
        encoder: the identity to record; None: only embeddings can be asked.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = tensors_from_variables(checkpoint.variables, checkpoint.model, step=checkpoint.step)
    write_tensors(folder / WEIGHTS, {_PREFIX + name: value for name, value in tensors.items()}, {'format': 'pt'})
    settings = {
        'model_type': _MODEL_TYPE,
        'format_version': _FORMAT_VERSION,
        'model': configs.to_dict(checkpoint.model),
        'encoder': encoder,
        'step': checkpoint.step,
    }
    try:
        with replacing(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + '\n', 'utf-8')
    except OSError as error:
        raise CheckpointError(f'{folder / CONFIG}: cannot be written: {error.strerror or error}') from error


def read_hub_folder(folder: Path) -> 'InferenceCheckpoint':
    """The separator in a folder for which `is_hub_folder`.

    Raises:
        CheckpointError: its files are damaged, of a later version, or do not fit each other.
    """
    import jax

    from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint

    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text('utf-8'))
        version, step, encoder = settings['format_version'], settings['step'], settings['encoder']
        if version != _FORMAT_VERSION:
            raise CheckpointError(f'{path} has format {version}; this version reads {_FORMAT_VERSION}')
        if not isinstance(step, int) or not isinstance(encoder, dict | None):
            raise CheckpointError(f'{path}: its step or its encoder is not usable')
        model = configs.from_dict(ModelConfig, settings['model'])
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f'{path}: not usable: {error}') from error
    tensors = open_tensors(folder / WEIGHTS)
    tensors = {name.removeprefix(_PREFIX): np.asarray(value) for name, value in tensors.items()}
    try:
        check_tensors({name: value.shape for name, value in tensors.items()}, model)
        variables = variables_from_torch(tensors)
    except CheckpointError as error:
        raise CheckpointError(f'{folder / WEIGHTS}: {error}') from error
    # Away from the file, which is only mapped: it may be replaced while the separator is in use.
    variables = jax.tree.map(np.array, variables)
    record = {'config': {'model': settings['model']}, 'encoder': encoder, 'step': step}
    return InferenceCheckpoint(model, variables, encoder, step, record, folder.absolute())
