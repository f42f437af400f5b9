"""Checkpoints of the original PyTorch code to this project's, and back, bit for bit, with no torch.

    DST/checkpoints/STEP/   what this project reads (`checkpoint.py`)
       /encoder/            the query encoder of the same file: weights in its own naming, tokenizer
       /original/           what neither needs, for the way back (`originals.py`)

The way back puts the *present* weights in their places: what was trained on is what comes out.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.checkpoints import originals
from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint, describe
from audiosep_jax.checkpoints.hub_folder import CONFIG, is_ours
from audiosep_jax.checkpoints.originals import TorchFile
from audiosep_jax.checkpoints.run_folder import load_for_inference, save_for_inference
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.pretrained import kind_of, locate, store
from audiosep_jax.encoders.registry import encoder_class, load_encoder
from audiosep_jax.errors import CheckpointError, ConfigError, DownloadError, listed
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.torch_names import (
    check_tensors,
    sizes_from_torch,
    tensors_from_variables,
    torch_tensors,
    variables_from_torch,
)
from audiosep_jax.storage.atomic import check_writable, new_folder
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import (
    SAFETENSORS,
    SUFFIXES,
    SafeTensors,
    open_tensors,
    state_dict_place,
    write_tensors,
)
from audiosep_jax.weights.torch_files import read_torch, write_torch

# Any of them tells where the separator's tensors, and the encoder's, are among the others.
_SEPARATOR_ANCHORS = ('base.bn0.weight', 'base.pre_conv.weight', 'base.after_conv.weight', 'base.bn0.bias')
_ENCODER_ANCHORS = ('text_branch.embeddings.word_embeddings.weight', 'audio_branch.bn0.weight', 'logit_scale_a')
_SS_MODEL = 'ss_model.'
_QUERY_ENCODER = 'query_encoder.model.'
_STEP = 'audiosep_jax.step'  # in a safetensors file's metadata, which knows no training
_OF_A_CONVERTED = {'checkpoints', 'encoder', 'original'}


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
        encoder: path or repository of the query encoder, or `words`, for a file that holds the separator alone.
        force: replace a converted checkpoint that is there.
        place: where a user without a network should put the file; only for the message.

    Raises:
        ConfigError: a front end that no network can have, or an encoder for a file that brings its own.
        CheckpointError: a file that is not such a checkpoint: the tensors that are missing, unknown or misshapen are
            listed; or a destination that is there or cannot be written.
    """
    destination = Path(destination)
    _check_free(destination, force=force)
    ModelConfig(**dataclasses.asdict(front_end))  # the flags' own mistakes, before any file's
    file = _read(find_source(str(source), place=place))
    groups = _groups(file)
    if groups.encoder and encoder is not None:
        raise ConfigError(f'{file.path} brings its own query encoder: leave --encoder {encoder} away')
    model = _model_config(groups.separator, front_end, file.path)
    variables = _named(file.path, variables_from_torch, groups.separator)
    step = _step_of(file)
    notes = []
    with new_folder(destination) as folder:
        identity, stored = None, folder / 'encoder'
        if groups.encoder:
            stored.mkdir()
            write_tensors(stored / 'model.safetensors', groups.encoder)
            identity = _checked_encoder(stored, str(file.path), file.path.name, notes, destination)
        elif encoder == 'words':
            identity = load_encoder({'name': encoder, 'embedding_size': model.condition_size}).identity()
        elif encoder is not None:
            store(locate(encoder), stored)
            identity = _checked_encoder(stored, encoder, encoder, notes, destination)
        else:
            notes.append('the file holds no query encoder: only embeddings can be asked; --encoder PATH adds one')
        if identity is not None and identity['embedding_size'] != model.condition_size:
            raise CheckpointError(
                f'{file.path}: the encoder gives {identity["embedding_size"]} numbers, the separator takes '
                f'{model.condition_size}: it is another encoder'
            )
        (folder / 'original').mkdir()
        ours = tensors_from_variables(variables, model, step=step)
        num_kept, dropped = originals.keep(
            folder / 'original',
            file,
            ours,
            separator_prefix=groups.separator_prefix,
            encoder_prefix=groups.encoder_prefix,
        )
        if dropped:
            notes.append(f'left out for the way back, being objects of Python classes: {listed(dropped)}')
        record = describe(ConvertedConfig(model, file.path.name), identity)
        save_for_inference(folder / 'checkpoints' / str(step), variables=variables, record=record, step=step)
    return Converted(destination, model, step, identity, num_kept, tuple(notes))


def to_torch(
    source: str | Path, destination: str | Path, *, step: int | None = None, force: bool = False
) -> tuple[int, list[str]]:
    """One of our checkpoints as a file for PyTorch: (the number of its tensors, remarks that its user should read).

    A converted checkpoint gets back the names and all the other tensors of its file. A run of ours gets the names of
    the original's Lightning module (`ss_model.*`, `query_encoder.model.*`), and the moving average of the weights where
    it has one.

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
    encoder, notes = _encoder_tensors(checkpoint), []
    folder, original = checkpoint.root / 'original', None
    if folder.is_dir():
        used = {tensor.name for tensor in torch_tensors(checkpoint.model) if tensor.path is not None}
        original = originals.restore(folder, fresh, used, encoder)
        state = original.state
    else:
        state = {_SS_MODEL + name: value for name, value in fresh.items()}
        state |= {_QUERY_ENCODER + name: value for name, value in encoder.items()}
        if not encoder:
            model = checkpoint.model
            words = (checkpoint.encoder or {}).get('name') == 'words'  # which needs no files
            notes.append(
                f'the file holds the separator alone{"" if words else ", its query encoder is elsewhere"}; '
                f'converted back it needs --encoder {"words" if words else "PATH"} --sample-rate {model.sample_rate} '
                f'--window-size {model.window_size} --hop-size {model.hop_size}'
            )
    wants_training_checkpoint = destination.suffix == '.ckpt'
    try:
        if destination.suffix == SAFETENSORS:
            metadata = (original and original.metadata) or {'format': 'pt', _STEP: str(checkpoint.step)}
            write_tensors(destination, state, metadata)
        elif original and original.tree is not None and wants_training_checkpoint == (original.suffix == '.ckpt'):
            write_torch(destination, original.tree)
        elif wants_training_checkpoint:
            write_torch(destination, _lightning(state, checkpoint.step))
        else:
            write_torch(destination, OrderedDict(state))
    except OSError as error:
        raise CheckpointError(f'{destination}: cannot be written: {error.strerror or error}') from error
    return len(state), notes


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
        if is_ours(path / CONFIG):
            raise CheckpointError(f'{path} is a checkpoint of this project already: use it as it is')
        for name in ('model.safetensors', 'pytorch_model.bin'):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f'{path} is a folder without model.safetensors or pytorch_model.bin: give the file')
    reference = hub.parse_reference(source)
    if reference is None:
        raise CheckpointError(f'no such file: {source}')
    if reference.file is not None:
        return hub.fetch(reference, reference.file, place=place)
    found = hub.list_files(reference, place=place, suffixes=SUFFIXES)
    names = [name for name in found if Path(name).suffix in SUFFIXES]
    if not names:
        raise CheckpointError(f'{reference.url} holds no checkpoint')
    if 'model.safetensors' in names and CONFIG in found and is_ours(hub.fetch(reference, CONFIG, place=place)):
        raise CheckpointError(f'{source} is a checkpoint of this project already: use it as it is')
    if 'model.safetensors' not in names and len(names) > 1:
        raise CheckpointError(f'{reference.url} holds several checkpoints ({listed(names)}): say {source}:FILE')
    return hub.fetch(reference, 'model.safetensors' if 'model.safetensors' in names else names[0], place=place)


# ---- the original's file ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The tensors of a state dict by what they belong to, names without the prefixes."""

    separator: dict[str, np.ndarray]
    encoder: dict[str, np.ndarray]
    separator_prefix: str
    encoder_prefix: str


def _read(path: Path) -> TorchFile:
    if path.suffix == SAFETENSORS:
        file = TorchFile(path, None, None, open_tensors(path))
    else:
        tree = read_torch(path)
        place, state = state_dict_place(tree, path)
        tensors = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        strange = [name for name in tensors if not isinstance(name, str) or not name.isprintable()]
        if strange:
            raise CheckpointError(f'{path}: a tensor of its state dict has the name {strange[0]!r}')
        file = TorchFile(path, tree, place, tensors)
    file.check_size()
    return file


def _step_of(file: TorchFile) -> int:
    """The training step that a file says, 0 where it says none."""
    if isinstance(file.tensors, SafeTensors):
        said = file.tensors.metadata.get(_STEP, '')
        step = int(said) if said.isascii() and said.isdigit() and len(said) < 20 else None
    else:
        step = file.tree.get('global_step') if isinstance(file.tree, dict) else None
    return step if isinstance(step, int) and 0 <= step < 1 << 62 else 0


def _groups(file: TorchFile) -> _Groups:
    names = list(file.tensors)
    separator_prefix = _prefix(names, _SEPARATOR_ANCHORS)
    if separator_prefix is None:
        anchors = ', '.join(_SEPARATOR_ANCHORS)
        raise CheckpointError(f'{file.path}: not a separator of the original code: none of {anchors} in it')
    encoder_prefix = _prefix(names, _ENCODER_ANCHORS)
    separator, encoder, unknown = {}, {}, []
    for name in names:
        short = name.removeprefix(separator_prefix)
        if name.startswith(separator_prefix) and short.startswith(('base.', 'film.')):
            separator[short] = file.tensors[name]
        elif encoder_prefix is not None and name.startswith(encoder_prefix):
            encoder[name.removeprefix(encoder_prefix)] = file.tensors[name]
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f'{file.path}: {len(unknown)} unknown tensors, neither of the separator nor of CLAP: {listed(unknown)}'
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
    found = sizes.pop('window_size')
    if found != front_end.window_size:
        preset = next((f'--preset {name}' for name, p in PRESETS.items() if p.window_size == found), None)
        remedy = preset or f'--window-size {found} with its --sample-rate and --hop-size'
        raise CheckpointError(
            f'{path}: its bn0 has {found // 2 + 1} entries, which is window {found} and not {front_end.window_size}: '
            f'is it meant for {remedy}?'
        )
    try:
        model = ModelConfig(**dataclasses.asdict(front_end), **sizes)
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
        if unknown:
            raise CheckpointError(f'{where}: {len(unknown)} unknown tensors, not of CLAP: {listed(unknown)}')
        _ = encoder.tokenizer  # fetches it where it is missing
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), where)) from error
    except DownloadError as error:
        place = str((destination / 'encoder').absolute())
        notes.append(f'text queries need a tokenizer first: {str(error).replace(str(folder), place)}')
    return encoder.identity()


def _encoder_tensors(checkpoint: InferenceCheckpoint) -> Mapping[str, np.ndarray]:
    """The stored encoder's tensors in LAION's naming; none where there is no such encoder."""
    file = checkpoint.root / 'encoder' / 'model.safetensors'
    tensors = SafeTensors(file) if file.is_file() else {}
    prefix = _prefix(list(tensors), _ENCODER_ANCHORS[:2])
    return {} if prefix is None else {name.removeprefix(prefix): value for name, value in tensors.items()}


def _lightning(state: dict[str, np.ndarray], step: int) -> dict[str, Any]:
    """A training checkpoint as small as `load_from_checkpoint` of Lightning 2 accepts."""
    return {'epoch': 0, 'global_step': step, 'pytorch-lightning_version': '2.0.0', 'state_dict': OrderedDict(state)}


def _check_free(destination: Path, *, force: bool) -> None:
    """Whether a destination may be made: nothing of anybody's is replaced but, on demand, what a conversion made."""
    check_writable(destination, '', kind='either', error=CheckpointError)
    if not destination.exists():
        return
    if destination.is_dir():
        if destination.suffix in SUFFIXES:
            raise CheckpointError(f'{destination} is a folder: choose another name')
        names = {path.name for path in destination.iterdir()}
        if not names:
            return
        if not {'checkpoints', 'original'} <= names <= _OF_A_CONVERTED:
            raise CheckpointError(f'{destination} is there and no converted checkpoint: choose another name')
    if not force:
        raise CheckpointError(f'{destination} is there already: choose another name, or --force')
