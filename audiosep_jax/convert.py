"""Checkpoints of the original PyTorch code to this project's, and back, bit for bit, with no torch.

    DST/checkpoints/STEP/             what this project reads (`checkpoint.py`)
       /encoder/                      the query encoder of the same file: weights in its own naming, tokenizer
       /original/tensors.safetensors  what neither needs: unused tensors, optimizer state
                /tree.json            how the file was built, with names where tensors stood

The way back puts the *present* weights in their places: what was trained on is what comes out.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from audiosep_jax import hub
from audiosep_jax.checkpoint import InferenceCheckpoint, describe, load_for_inference, save_for_inference
from audiosep_jax.encoders import encoder_class
from audiosep_jax.encoders.clap import ClapEncoder
from audiosep_jax.encoders.pretrained import kind_of, locate, store
from audiosep_jax.errors import CheckpointError, ConfigError, DownloadError
from audiosep_jax.json_trees import from_json, to_json
from audiosep_jax.model import ModelConfig
from audiosep_jax.tensor_files import (
    SAFETENSORS,
    SUFFIXES,
    SafeTensors,
    open_tensors,
    state_dict_place,
    write_tensors,
)
from audiosep_jax.torch_checkpoint import read_torch, write_torch
from audiosep_jax.torch_names import (
    check_tensors,
    listed,
    sizes_from_torch,
    tensors_from_variables,
    torch_tensors,
    variables_from_torch,
)

__all__ = ['PRESETS', 'FrontEnd', 'from_torch', 'tensors_from_variables', 'to_torch', 'variables_from_torch']

# Any of them tells where the separator's tensors, and the encoder's, are among the others.
_SEPARATOR_ANCHORS = ('base.bn0.weight', 'base.pre_conv.weight', 'base.after_conv.weight', 'base.bn0.bias')
_ENCODER_ANCHORS = ('text_branch.embeddings.word_embeddings.weight', 'audio_branch.bn0.weight', 'logit_scale_a')
_SS_MODEL = 'ss_model.'
_QUERY_ENCODER = 'query_encoder.model.'
_ORIGINAL_VERSION = 1


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """What a checkpoint does not say of its STFT: Hz, samples, samples."""

    sample_rate: int
    window_size: int
    hop_size: int


PRESETS = {
    'audiosep-32k': FrontEnd(32000, 2048, 320),  # `models/resunet.py` of the released code
    'dcase2024-16k': FrontEnd(16000, 1024, 160),  # the baseline of DCASE 2024, task 9
}


@dataclasses.dataclass(frozen=True)
class ConvertedConfig:
    """The configuration of a converted checkpoint: the model, and the name of the file that it came from."""

    model: ModelConfig
    source: str


@dataclasses.dataclass(frozen=True)
class Converted:
    """What `from_torch` made: where, of what, and remarks that its user should read."""

    path: Path
    model: ModelConfig
    step: int
    encoder: dict | None
    num_kept: int
    notes: tuple[str, ...]


def from_torch(
    source: str | Path,
    destination: str | Path,
    *,
    front_end: FrontEnd = PRESETS['audiosep-32k'],
    encoder: str | None = None,
    force: bool = False,
    place: str = 'a path of your choice, and convert that',
) -> Converted:
    """A checkpoint of the original code, or of its DCASE baseline, as one of ours.

    Args:
        source: a Lightning `.ckpt`, a `.pt`/`.pth` state dict, a `.safetensors`, or a hub reference.
        destination: the folder to make; complete or not there at all.
        front_end: rate, window and hop; the window is checked against the shapes.
        encoder: path or repository of the query encoder's weights, for a file that holds the separator alone.
        force: replace a destination that is there.
        place: where a user without a network should put the file; only for the message.

    Raises:
        CheckpointError: a file that is not such a checkpoint: the tensors that are missing, unknown or misshapen are
            listed; or a destination that is there or cannot be written.
    """
    destination = Path(destination)
    _check_free(destination, force=force)
    path = find_source(str(source), place=place)
    tree, tensors, place = _read(path)
    groups = _groups(tensors, path)
    if groups.encoder and encoder is not None:
        raise ConfigError(f'{path} brings its own query encoder: leave --encoder {encoder} away')
    model = _model_config(groups.separator, front_end, path)
    variables = _named(path, variables_from_torch, groups.separator)
    step = tree.get('global_step') if isinstance(tree, dict) else None
    step = step if isinstance(step, int) and step >= 0 else 0
    notes = []
    with _new_folder(destination) as folder:
        identity = None
        if groups.encoder:
            write_tensors(_made(folder / 'encoder') / 'model.safetensors', groups.encoder)
            identity = _checked_encoder(folder / 'encoder', str(path), path.name, notes, destination)
        elif encoder is not None:
            store(locate(encoder), folder / 'encoder')
            identity = _checked_encoder(folder / 'encoder', encoder, encoder, notes, destination)
        else:
            notes.append('the file holds no query encoder: only embeddings can be asked; --encoder PATH adds one')
        if identity is not None and identity['embedding_size'] != model.condition_size:
            raise CheckpointError(
                f'{path}: the encoder gives {identity["embedding_size"]} numbers, the separator takes '
                f'{model.condition_size}: it is another encoder'
            )
        ours = tensors_from_variables(variables, model, step=step)
        num_kept, dropped = _keep(_made(folder / 'original'), path, tree, place, tensors, groups, ours)
        if dropped:
            notes.append(f'left out for the way back, being objects of Python classes: {listed(dropped)}')
        record = describe(ConvertedConfig(model, path.name), identity)
        save_for_inference(folder / 'checkpoints' / str(step), variables=variables, record=record, step=step)
    return Converted(destination, model, step, identity, num_kept, tuple(notes))


def to_torch(source: str | Path, destination: str | Path, *, step: int | None = None, force: bool = False) -> int:
    """One of our checkpoints as a file for PyTorch; returns the number of its tensors.

    A converted checkpoint gets back the names and all the other tensors of its file. A run of ours gets the names of
    the original's Lightning module (`ss_model.*`, `query_encoder.model.*`).

    Args:
        source: a run's workdir or a checkpoint's folder.
        destination: `.ckpt`: a training checkpoint as Lightning reads it; `.pt`, `.pth`, `.bin`: a state dict (or, of a
            file with such a suffix, what it was); `.safetensors`.
        step: see `load_for_inference`.
        force: replace a destination that is there.

    Raises:
        CheckpointError: not a checkpoint, or a destination that is there or cannot be written.
    """
    destination = Path(destination)
    _check_free(destination, force=force)
    checkpoint = load_for_inference(source, step=step)
    fresh = tensors_from_variables(checkpoint.variables, checkpoint.model, step=checkpoint.step)
    encoder = _encoder_tensors(checkpoint)
    folder, original = checkpoint.root / 'original', None
    if folder.is_dir():
        used = {tensor.name for tensor in torch_tensors(checkpoint.model) if tensor.path is not None}
        original = _restored(folder, fresh, used, encoder)
        state = original.state
    else:
        state = {_SS_MODEL + name: value for name, value in fresh.items()}
        state |= {_QUERY_ENCODER + name: value for name, value in encoder.items()}
    wants_training_checkpoint = destination.suffix == '.ckpt'
    if destination.suffix == SAFETENSORS:
        metadata = original.metadata if original else {}
        write_tensors(destination, state, metadata or {'format': 'pt'})
    elif original and original.tree is not None and wants_training_checkpoint == (original.suffix == '.ckpt'):
        write_torch(destination, original.tree)
    elif wants_training_checkpoint:
        write_torch(destination, _lightning(state, checkpoint.step))
    else:
        write_torch(destination, OrderedDict(state))
    return len(state)


def find_source(source: str, *, place: str) -> Path:
    """The file that a path or hub reference means (`organisation/name`, `organisation/name:FILE`, `spaces/…:FILE`).

    Raises:
        CheckpointError: there is none, or a repository where it is not clear which.
        DownloadError: the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in ('model.safetensors', 'pytorch_model.bin'):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f'{path} is a folder without model.safetensors or pytorch_model.bin: give the file')
    repository, _, file = source.partition(':')
    kind = 'space' if repository.startswith('spaces/') else 'model'
    repository = repository.removeprefix('spaces/')
    if not hub.is_repo_id(repository) or (path.suffix in SUFFIXES and not file):
        raise CheckpointError(f'no such file: {source}')
    if not file:
        names = [n for n in hub.list_files(repository, place=place) if Path(n).suffix in SUFFIXES]
        file = 'model.safetensors' if 'model.safetensors' in names else names[0] if len(names) == 1 else ''
        if not file:
            what = f'several checkpoints ({listed(names)}): say which' if names else 'no checkpoint'
            raise CheckpointError(f'https://huggingface.co/{repository} holds {what}, as {repository}:FILE')
    return hub.fetch(repository, file, place=place, repo_type=kind)


# ---- the original's file ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The tensors of a state dict by what they belong to, names without the prefixes."""

    separator: dict[str, np.ndarray]
    encoder: dict[str, np.ndarray]
    separator_prefix: str
    encoder_prefix: str


def _read(path: Path) -> tuple[Any, Mapping[str, np.ndarray], str | None]:
    """(the tree of a torch file, or None; its state dict's tensors; where that stands in the tree)."""
    if path.suffix == SAFETENSORS:
        return None, open_tensors(path), None
    tree = read_torch(path)
    place, state = state_dict_place(tree, path)
    return tree, {k: v for k, v in state.items() if isinstance(v, np.ndarray)}, place


def _groups(tensors: Mapping[str, np.ndarray], path: Path) -> _Groups:
    names = list(tensors)
    separator_prefix = _prefix(names, _SEPARATOR_ANCHORS)
    if separator_prefix is None:
        raise CheckpointError(
            f'{path}: not a separator of the original code: none of {", ".join(_SEPARATOR_ANCHORS)} in it'
        )
    encoder_prefix = _prefix(names, _ENCODER_ANCHORS)
    separator, encoder, unknown = {}, {}, []
    for name in names:
        short = name.removeprefix(separator_prefix)
        if name.startswith(separator_prefix) and short.startswith(('base.', 'film.')):
            separator[short] = tensors[name]
        elif encoder_prefix is not None and name.startswith(encoder_prefix):
            encoder[name.removeprefix(encoder_prefix)] = tensors[name]
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f'{path}: {len(unknown)} unknown tensors, neither of the separator nor of CLAP: {listed(unknown)}'
        )
    return _Groups(separator, encoder, separator_prefix, encoder_prefix or '')


def _prefix(names: list[str], anchors: tuple[str, ...]) -> str | None:
    for anchor in anchors:
        for name in names:
            if name == anchor or name.endswith(f'.{anchor}'):
                return name.removesuffix(anchor)
    return None


def _model_config(separator: dict[str, np.ndarray], front_end: FrontEnd, path: Path) -> ModelConfig:
    sizes = _named(path, sizes_from_torch, separator)
    found = sizes['window_size']
    if found != front_end.window_size:
        preset = next((f'--preset {name}' for name, p in PRESETS.items() if p.window_size == found), None)
        remedy = preset or f'--window-size {found} with its --sample-rate and --hop-size'
        raise CheckpointError(
            f'{path}: its bn0 has {found // 2 + 1} entries, which is window {found} and not {front_end.window_size}: '
            f'is it meant for {remedy}?'
        )
    try:
        model = ModelConfig(
            **dataclasses.asdict(front_end), widths=sizes['widths'], condition_size=sizes['condition_size']
        )
    except ConfigError as error:
        raise CheckpointError(f'{path}: {error}') from error
    _named(path, check_tensors, {name: value.shape for name, value in separator.items()}, model)
    return model


def _named(path: Path, function, *arguments):
    """Puts the file before what is said of its tensors."""
    try:
        return function(*arguments)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error


def _checked_encoder(folder: Path, where: str, source: str, notes: list[str], destination: Path) -> dict:
    """The identity of the encoder just stored in a folder, its weights checked, its tokenizer fetched if it can be.

    Messages say where it came from, or where it will be: not the temporary folder.
    """
    try:
        encoder = encoder_class(kind_of(folder)).open(folder, source=source)
        unknown = encoder.unknown_tensors() if isinstance(encoder, ClapEncoder) else []
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), where)) from error
    if unknown:
        raise CheckpointError(f'{where}: {len(unknown)} unknown tensors, not of CLAP: {listed(unknown)}')
    try:
        _ = encoder.tokenizer  # fetches it where it is missing
    except DownloadError as error:
        place = str((destination / 'encoder').absolute())
        notes.append(f'text queries need a tokenizer first: {str(error).replace(str(folder), place)}')
    return encoder.identity()


# ---- what only the way back needs ------------------------------------------------------------------------------------


def _keep(
    folder: Path,
    path: Path,
    tree: Any,
    place: str | None,
    tensors: Mapping[str, np.ndarray],
    groups: _Groups,
    ours: dict[str, np.ndarray],
) -> tuple[int, list[str]]:
    """Writes `original/`: (how many tensors are in it, places of what is not kept)."""
    kept = {}
    for name, value in tensors.items():
        short = name.removeprefix(groups.separator_prefix)
        if short in groups.separator and _bits(ours[short].astype(value.dtype)) != _bits(value):
            kept[f'state/{name}'] = value
    root = () if place is None else (place,)

    def name_of(path: tuple, value: np.ndarray) -> str:
        if path[:-1] == root and path[-1] in tensors:
            return f'state/{path[-1]}'
        name = f'other/{len(kept)}/{"/".join(map(str, path))}'
        kept[name] = value
        return name

    skeleton, dropped = (None, []) if tree is None else to_json(tree, name_of)
    write_tensors(folder / 'tensors.safetensors', kept)
    description = {
        'version': _ORIGINAL_VERSION,
        'suffix': path.suffix,
        'separator_prefix': groups.separator_prefix,
        'encoder_prefix': groups.encoder_prefix,
        'tensors': [[name, value.dtype.name] for name, value in tensors.items()],
        'tree': skeleton,
        'metadata': tensors.metadata if isinstance(tensors, SafeTensors) else {},
    }
    (folder / 'tree.json').write_text(json.dumps(description))
    return len(kept), dropped


@dataclasses.dataclass(frozen=True)
class _Original:
    """What `original/` remembers of the file, filled with the present weights."""

    suffix: str
    tree: Any
    state: dict[str, np.ndarray]
    metadata: dict[str, str]


def _restored(
    folder: Path, fresh: dict[str, np.ndarray], used: set[str], encoder: Mapping[str, np.ndarray]
) -> _Original:
    """Args: the separator's present tensors; the names of those that the network uses; the encoder's tensors."""
    try:
        description = json.loads((folder / 'tree.json').read_text())
        if description['version'] != _ORIGINAL_VERSION:
            raise CheckpointError(f'{folder} has version {description["version"]}; this one reads {_ORIGINAL_VERSION}')
        kept = SafeTensors(folder / 'tensors.safetensors')
        state = {}
        for name, dtype in description['tensors']:
            short = name.removeprefix(description['separator_prefix'])
            if short in fresh and name.startswith(description['separator_prefix']):
                state[name] = _present(fresh[short].astype(_dtype(dtype)), kept.get(f'state/{name}'), short in used)
            else:
                state[name] = encoder[name.removeprefix(description['encoder_prefix'])]
        tree = from_json(
            description['tree'],
            lambda name: state[name.removeprefix('state/')] if name.startswith('state/') else kept[name],
        )
        return _Original(description['suffix'], tree, state, description['metadata'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{folder} is damaged ({error!r}): convert the original file again') from error


def _present(now: np.ndarray, kept: np.ndarray | None, is_used: bool) -> np.ndarray:
    """A tensor to give back: the file's own bits, unless the network uses it and it has been trained since."""
    if kept is None:
        return now
    untouched = not is_used or _bits(kept.astype(np.float32).astype(now.dtype)) == _bits(now)
    return kept if untouched else now


def _bits(value: np.ndarray) -> bytes:
    return np.ascontiguousarray(value).tobytes()


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def _encoder_tensors(checkpoint: InferenceCheckpoint) -> Mapping[str, np.ndarray]:
    """The stored encoder's tensors in LAION's naming; none where there is no such encoder."""
    file = checkpoint.root / 'encoder' / 'model.safetensors'
    tensors = SafeTensors(file) if file.is_file() else {}
    return tensors if any(name in tensors for name in _ENCODER_ANCHORS[:2]) else {}


def _lightning(state: dict[str, np.ndarray], step: int) -> dict[str, Any]:
    """A training checkpoint as small as `load_from_checkpoint` of Lightning 2 accepts."""
    return {'epoch': 0, 'global_step': step, 'pytorch-lightning_version': '2.0.0', 'state_dict': OrderedDict(state)}


# ---- folders ---------------------------------------------------------------------------------------------------------


def _check_free(destination: Path, *, force: bool) -> None:
    if not destination.exists():
        return
    if destination.is_dir() and destination.suffix not in SUFFIXES:
        if not any(destination.iterdir()):
            return
        if not (destination / 'original').is_dir():
            raise CheckpointError(f'{destination} is there and no converted checkpoint: choose another name')
    elif destination.is_dir():
        raise CheckpointError(f'{destination} is a folder: choose another name')
    if not force:
        raise CheckpointError(f'{destination} is there already: choose another name, or --force')


@contextlib.contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """Yields the path of a folder to make, which becomes `destination` at the end; on any exception it is removed."""
    destination = destination.absolute()
    mark = f'{os.getpid()}-{uuid.uuid4().hex[:12]}'
    temporary, old = (destination.with_name(f'.{destination.name}.{kind}-{mark}') for kind in ('tmp', 'old'))
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if destination.exists():
            os.replace(destination, old)
        os.replace(temporary, destination)
    except OSError as error:
        raise CheckpointError(f'{destination}: cannot be written: {error.strerror or error}') from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
