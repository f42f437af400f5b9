"""The file `equalizer.safetensors` of a run or a published checkpoint: the equalizer of its training set.

It lies beside the checkpoints, because it is the same for all steps of a run.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.encoders.base import comparable
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.storage.buckets import is_bucket, reaching, writing
from audiosep_jax.weights.tensor_files import SafeTensors, write_tensors

FILE = 'equalizer.safetensors'
_ARRAYS = ('embeddings', 'power', 'counts')
_NUMBERS = ('temperature', 'share')
_ENCODER = 'encoder'


def write_equalizer(folder: Path, equalizer: Equalizer, encoder: dict[str, Any] | None) -> None:
    """Writes the equalizer of the checkpoints in a folder, which may be in a bucket, and replaces the one before.

    Args:
        folder: of a run, a converted checkpoint or a repository.
        equalizer: to write.
        encoder: the identity of the query encoder that made its embeddings.

    Raises:
        CheckpointError: the file cannot be written.
        DataError: the bucket cannot be reached.
    """
    tensors = {name: getattr(equalizer, name) for name in _ARRAYS}
    tensors |= {name: np.float32(getattr(equalizer, name)) for name in _NUMBERS}
    try:
        with reaching(folder), writing(folder / FILE) as temporary:
            write_tensors(temporary, tensors, {_ENCODER: _comparable(encoder)})
    except OSError as error:
        raise CheckpointError(f'{folder / FILE}: cannot be written: {error.strerror or error}') from error


def remove_equalizer(folder: Path) -> bool:
    """Removes the equalizer of the checkpoints in a folder, and returns whether there was one.

    Raises:
        CheckpointError: it cannot be removed.
        DataError: the bucket cannot be reached.
    """
    path = folder / FILE
    try:
        with reaching(folder):
            found = path.exists()
            if found:
                path.unlink()
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be removed: {error.strerror or error}') from error
    return found


def read_equalizer(folder: Path, model: ModelConfig, encoder: dict[str, Any] | None) -> Equalizer | None:
    """Reads the equalizer of the checkpoints in a folder, which may be in a bucket; None if they have none.

    Args:
        folder: of a run, a converted checkpoint or a repository.
        model: the configuration of the network that it is for.
        encoder: the identity of the checkpoint's query encoder.

    Raises:
        CheckpointError: the file is damaged, or for another network or encoder.
        DataError: the bucket cannot be reached.
    """
    path = folder / FILE
    try:
        with reaching(path), tempfile.TemporaryDirectory(prefix='audiosep-') as scratch:
            if not path.exists():
                return None
            local = path
            if is_bucket(path):
                local = Path(scratch) / FILE
                local.write_bytes(path.read_bytes())
            return _parsed(SafeTensors(local), model, encoder)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error
    except (CheckpointError, ConfigError) as error:
        reason = str(error).removeprefix(f'{local}: ').removeprefix(f'{local} ')
        remedy = 'remove it, and the network works alone; the command of its run makes it again'
        raise CheckpointError(f'{path}: the equalizer cannot be used: {reason}: {remedy}') from error


def _parsed(tensors: SafeTensors, model: ModelConfig, encoder: dict[str, Any] | None) -> Equalizer:
    try:
        embeddings, power, counts = (np.array(tensors[name], np.float32) for name in _ARRAYS)
        temperature, share = (float(tensors[name]) for name in _NUMBERS)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'it is not one: {error}') from error
    captions, bins = counts.size, model.window_size // 2 + 1
    shapes = [(captions, model.condition_size), (captions, bins), (captions,)]
    if not captions or [array.shape for array in (embeddings, power, counts)] != shapes:
        found = ', '.join(str(list(array.shape)) for array in (embeddings, power, counts))
        raise CheckpointError(f'it is of another network: its arrays are {found}')
    if tensors.metadata.get(_ENCODER) != _comparable(encoder):
        raise CheckpointError('it is of another query encoder')
    usable = all(np.isfinite(array).all() for array in (embeddings, power, counts))
    if not (usable and (counts > 0).all() and (power >= 0).all() and temperature > 0):
        raise CheckpointError('it has numbers that are negative or not finite')
    return Equalizer(embeddings, power, counts, temperature, share)


def _comparable(encoder: dict[str, Any] | None) -> str:
    return json.dumps(None if encoder is None else comparable(encoder), sort_keys=True)
