"""Where the weights of pretrained encoders are: a folder, a file, or a repository of the hub; and storing them."""

import json
import shutil
from pathlib import Path

from audiosep_jax.encoders.tokenizer import TOKENIZER_FILES
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import open_tensors, write_tensors

# What the bare name of a pretrained encoder means.
REPOSITORIES = {'clap': 'laion/larger_clap_general', 'clip': 'openai/clip-vit-base-patch32'}
# All that an encoder reads of a folder.
_SETTINGS = ('config.json', 'preprocessor_config.json', 'processor_config.json')
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


def locate(reference: str) -> Path:
    """The folder or file that a name (`clap`, `clip`), a path or a hub reference means.

    Of a checkpoint's folder it is the encoder in it.

    Raises:
        ConfigError: it is none of them.
        DownloadError: it is not in the cache and the hub cannot be reached.
    """
    path = Path(reference).expanduser()
    if path.exists():
        stored = path / 'encoder'
        return stored if (stored / _WEIGHTS[0]).is_file() else path
    repository = hub.parse_reference(REPOSITORIES.get(reference, reference))
    if repository is None:
        raise ConfigError(f'no query encoder at {reference}: no such file or folder, nor a name of the hub')
    if repository.file is not None:
        return hub.fetch(repository, repository.file, place='a path of your choice, and give that path instead')
    place = f'a folder of your choice ({", ".join((*_SETTINGS, _WEIGHTS[0], TOKENIZER_FILES[0]))}), and give that'
    names = hub.list_files(repository, place=place, suffixes=_WEIGHTS)
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        raise CheckpointError(f'{repository.url} has no {" or ".join(_WEIGHTS)}')
    wanted = [name for name in (*_SETTINGS, *TOKENIZER_FILES, weights) if name in names]
    return hub.snapshot(repository, wanted, place=place)


def kind_of(path: Path) -> str:
    """Which encoder the weights at a path belong to: by its `config.json`, else by the tensors' names.

    Raises:
        CheckpointError: none that is known.
    """
    kind = _model_type(path / 'config.json')
    if kind in REPOSITORIES:
        return kind
    names = list(open_tensors(path))
    if any('audio_branch.' in name or 'audio_model.' in name for name in names):
        return 'clap'
    of = '' if kind is None else f' (its config.json says {kind!r})'
    if any('vision_model.' in name for name in names):
        raise CheckpointError(f'{path}: CLIP weights without their config.json, which gives their sizes{of}: add it')
    raise CheckpointError(f'{path}: no CLAP or CLIP weights: there is neither an audio nor a vision tower in it{of}')


def _model_type(settings: Path) -> str | None:
    """What a `config.json` says that its model is; None where there is none."""
    if not settings.is_file():
        return None
    try:
        return str(json.loads(settings.read_text('utf-8')).get('model_type'))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f'{settings}: cannot be read: {error}') from error


def store(path: Path, folder: Path) -> None:
    """Copies an encoder, its weights as they are, its settings and its tokenizer, into a folder that is made.

    Raises:
        CheckpointError: it cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (path / _WEIGHTS[0]).is_file():
            _copy(path / _WEIGHTS[0], folder)
        else:
            write_tensors(folder / _WEIGHTS[0], open_tensors(path))
        beside = path.parent if path.is_file() else path
        # Beside a file may lie what belongs to others.
        settings = _SETTINGS if path.is_dir() or _model_type(beside / 'config.json') in REPOSITORIES else ()
        for name in (*settings, *TOKENIZER_FILES):
            if (beside / name).is_file():
                _copy(beside / name, folder)
    except OSError as error:
        raise CheckpointError(f'{error.filename or folder}: {error.strerror or error}') from error


def _copy(file: Path, folder: Path) -> None:
    with replacing(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
