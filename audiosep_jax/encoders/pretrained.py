"""Where the weights of pretrained encoders are: a folder, a file, or a repository of the hub; and storing them."""

import json
import shutil
from pathlib import Path

from audiosep_jax import hub
from audiosep_jax.encoders.tokenizer import TOKENIZER_FILES
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.files import replacing
from audiosep_jax.tensor_files import open_tensors, write_tensors

# All that an encoder reads of a folder.
_SETTINGS = ('config.json', 'preprocessor_config.json', 'processor_config.json')
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


def locate(reference: str) -> Path:
    """The folder or file that a path or hub reference (`organisation/name`, `organisation/name:FILE`) means.

    Of a checkpoint's folder it is the encoder in it.

    Raises:
        ConfigError: it is neither.
        DownloadError: it is not in the cache and the hub cannot be reached.
    """
    path = Path(reference).expanduser()
    if path.exists():
        stored = path / 'encoder'
        return stored if (stored / _WEIGHTS[0]).is_file() else path
    repository, _, file = reference.partition(':')
    if not hub.is_repo_id(repository):
        raise ConfigError(f'no query encoder at {reference}: no such file or folder, nor a name of the hub')
    if file:
        return hub.fetch(repository, file, place='a path of your choice, and give that path instead')
    place = f'a folder of your choice ({", ".join((*_SETTINGS, _WEIGHTS[0], TOKENIZER_FILES[0]))}), and give that'
    names = hub.list_files(repository, place=place)
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        raise CheckpointError(f'https://huggingface.co/{repository} has no {" or ".join(_WEIGHTS)}')
    wanted = [name for name in (*_SETTINGS, *TOKENIZER_FILES, weights) if name in names]
    return hub.snapshot(repository, wanted, place=place)


def kind_of(path: Path) -> str:
    """Which encoder the weights at a path belong to.

    Raises:
        CheckpointError: none that is known.
    """
    settings = path / 'config.json'
    if settings.is_file():
        try:
            kind = json.loads(settings.read_text('utf-8')).get('model_type')
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f'{settings}: cannot be read: {error}') from error
        if kind in ('clap', 'clip'):
            return kind
        raise CheckpointError(f'{settings}: model_type {kind!r} is neither clap nor clip')
    names = list(open_tensors(path))
    if any('audio_branch.' in name or 'audio_model.' in name for name in names):
        return 'clap'
    if any('vision_model.' in name for name in names):
        raise CheckpointError(f'{path}: CLIP weights without their config.json, which gives their sizes: add it')
    raise CheckpointError(f'{path}: no CLAP or CLIP weights: there is neither an audio nor a vision tower in it')


def store(path: Path, folder: Path) -> None:
    """Copies an encoder, its weights as they are, its settings and its tokenizer, into a folder that is made.

    Raises:
        CheckpointError: it cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            write_tensors(folder / _WEIGHTS[0], open_tensors(path))
            path = path.parent
        elif (path / _WEIGHTS[0]).is_file():
            _copy(path / _WEIGHTS[0], folder)
        else:
            write_tensors(folder / _WEIGHTS[0], open_tensors(path))
        for name in (*_SETTINGS, *TOKENIZER_FILES):
            if (path / name).is_file():
                _copy(path / name, folder)
    except OSError as error:
        raise CheckpointError(f'{error.filename or folder}: {error.strerror or error}') from error


def _copy(file: Path, folder: Path) -> None:
    with replacing(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
