"""The file `equalizer.safetensors` of a run or a published checkpoint: the equalizer of its training set.

It lies beside the checkpoints, because it is the same for all steps of a run.
"""

import tempfile
from pathlib import Path

import numpy as np

from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.storage.buckets import is_bucket, reaching, writing
from audiosep_jax.weights.tensor_files import SafeTensors, write_tensors

FILE = 'equalizer.safetensors'
_ARRAYS = ('embeddings', 'power', 'counts')
_NUMBERS = ('temperature', 'share')


def write_equalizer(folder: Path, equalizer: Equalizer) -> None:
    """Writes the equalizer of the checkpoints in a folder, which may be in a bucket, and replaces the one before.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {name: getattr(equalizer, name) for name in _ARRAYS}
    tensors |= {name: np.float32(getattr(equalizer, name)) for name in _NUMBERS}
    try:
        with reaching(folder), writing(folder / FILE) as temporary:
            write_tensors(temporary, tensors)
    except OSError as error:
        raise CheckpointError(f'{folder / FILE}: cannot be written: {error.strerror or error}') from error


def read_equalizer(folder: Path, model: ModelConfig) -> Equalizer | None:
    """Reads the equalizer of the checkpoints in a folder, which may be in a bucket; None if they have none.

    Args:
        folder: of a run, a converted checkpoint or a repository.
        model: the configuration of the network that it is for.

    Raises:
        CheckpointError: the file is damaged, or for another network.
    """
    path = folder / FILE
    if not path.exists():
        return None
    if not is_bucket(path):
        return _parsed(path, path, model)
    with tempfile.TemporaryDirectory(prefix='audiosep-') as scratch:
        local = Path(scratch) / FILE
        with reaching(path):
            local.write_bytes(path.read_bytes())
        return _parsed(local, path, model)


def _parsed(path: Path, named: Path, model: ModelConfig) -> Equalizer:
    remedy = 'remove it; the command of its run makes it again'
    tensors = SafeTensors(path)
    try:
        embeddings, power, counts = (np.array(tensors[name], np.float32) for name in _ARRAYS)
        temperature, share = (float(tensors[name]) for name in _NUMBERS)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{named}: not an equalizer: {error}: {remedy}') from error
    arrays, captions, bins = (embeddings, power, counts), len(counts), model.window_size // 2 + 1
    shapes = [(captions, model.condition_size), (captions, bins), (captions,)]
    if not captions or [array.shape for array in arrays] != shapes:
        found = ', '.join(str(list(array.shape)) for array in arrays)
        raise CheckpointError(f'{named}: of another network: its arrays are {found}: {remedy}')
    usable = all(np.isfinite(array).all() for array in arrays) and (counts > 0).all() and (power >= 0).all()
    if not (usable and temperature > 0):
        raise CheckpointError(f'{named}: not an equalizer: it has numbers that are not finite or negative: {remedy}')
    try:
        return Equalizer(embeddings, power, counts, temperature, share)
    except ConfigError as error:
        raise CheckpointError(f'{named}: not an equalizer: {error}: {remedy}') from error
