"""Converts checkpoints of the original PyTorch code to this project's, and back, bit for bit, without torch.

    DST/checkpoints/STEP/   what this project reads (`run_folder.py`)
       /encoder/            the query encoder from the same file: weights in their own naming, tokenizer
       /original/           everything else in the file, for the way back (`originals.py`)

The way back writes the *present* weights into the file's structure, so training on a converted checkpoint and
converting it back gives the trained weights.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.checkpoints import originals
from audiosep_jax.checkpoints.checkpoint import (
    SEPARATOR_PREFIX,
    InferenceCheckpoint,
    check_free,
    describe,
    errors_about,
)
from audiosep_jax.checkpoints.run_folder import save_for_inference
from audiosep_jax.checkpoints.torch_source import (
    STEP_KEY,
    TensorGroups,
    TorchSource,
    clap_tensors,
    find_source,
    group_tensors,
    read_source,
)
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.pretrained import kind_of, locate, store
from audiosep_jax.encoders.registry import encoder_class, load_encoder
from audiosep_jax.errors import CheckpointError, ConfigError, DownloadError, listed
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.layers import DOWNSAMPLING
from audiosep_jax.models.torch_names import (
    check_tensors,
    sizes_from_torch,
    tensors_from_variables,
    torch_tensors,
    variables_from_torch,
)
from audiosep_jax.storage.atomic import new_folder
from audiosep_jax.weights.tensor_files import (
    LIGHTNING,
    SAFETENSORS,
    SUFFIXES,
    WEIGHTS,
    SafeTensors,
    write_tensors,
)
from audiosep_jax.weights.torch_files import write_torch

_ENCODER_PREFIX = 'query_encoder.model.'  # in the original's Lightning module
_WITHOUT_FILES = ('words', 'wordllama')  # query encoders with no weights to store beside a checkpoint
_REQUIRED_ENTRIES = {'checkpoints', 'original'}
_CONVERTED_ENTRIES = {*_REQUIRED_ENTRIES, 'encoder'}


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """What a checkpoint file does not record of its STFT.

    Attributes:
        sample_rate: in Hz.
        window_size: in samples.
        hop_size: in samples.
    """

    sample_rate: int
    window_size: int
    hop_size: int


PRESETS = {
    'audiosep-32k': FrontEnd(32000, 2048, 320),  # `models/resunet.py` of the released code
    'dcase2024-16k': FrontEnd(16000, 1024, 160),  # the baseline of DCASE 2024, task 9
}


@dataclasses.dataclass(frozen=True)
class ConvertedConfig:
    """The configuration of a converted checkpoint.

    Attributes:
        model: the network's configuration.
        source: the name of the file that was converted.
    """

    model: ModelConfig
    source: str


@dataclasses.dataclass(frozen=True)
class Converted:
    """What `from_torch` made.

    Attributes:
        path: the new folder.
        model: the network's configuration.
        step: the training step.
        encoder: the query encoder's identity; None if there is no encoder.
        num_kept: the number of tensors kept only for the way back.
        notes: remarks for the user.
    """

    path: Path
    model: ModelConfig
    step: int
    encoder: dict[str, Any] | None
    num_kept: int
    notes: tuple[str, ...]


def from_torch(
    source: str | Path,
    destination: str | Path,
    *,
    front_end: FrontEnd = PRESETS['audiosep-32k'],
    encoder: str | None = None,
    default_encoder: str | None = None,
    force: bool = False,
    ignore_unknown: bool = False,
    place: str = 'a path of your choice, and convert that',
    encoder_place: str = 'a path of your choice, and give that with --encoder',
) -> Converted:
    """Converts a checkpoint of the original code, or of its DCASE baseline, to a checkpoint of this project.

    Args:
        source: a Lightning `.ckpt`, a `.pt`/`.pth` state dict, a `.safetensors`, or a reference to the hub.
        destination: the folder to make, which appears only when it is complete.
        front_end: rate, window and hop; the window is checked against the shapes of the tensors.
        encoder: path or repository of the query encoder, or `words`, for a file that holds only the separator.
        default_encoder: the same, for a file that may contain a query encoder; it is used only if there is none.
        force: replace an existing converted checkpoint.
        ignore_unknown: go past tensors that are neither the separator's nor CLAP's. They are kept for the way back.
        place: where a user without a network should put the file; used only in the message.
        encoder_place: the same, for the file of the default encoder.

    Raises:
        ConfigError: the front end is impossible, or `encoder` is given for a file that contains one.
        CheckpointError: the file is not such a checkpoint (missing, unknown and misshapen tensors are listed), or the
            destination is taken or cannot be written.
        DownloadError: the file or the encoder has to be downloaded, which fails.
    """
    destination = Path(destination)
    _check_destination(destination, force=force)
    ModelConfig(**dataclasses.asdict(front_end))  # reports mistakes in the flags before those in the file
    file = read_source(find_source(str(source), place=place))
    originals.check_unfolded_size(file)
    groups = group_tensors(file, ignore_unknown=ignore_unknown)
    if groups.encoder and encoder is not None:
        raise ConfigError(f'{file.path} already contains a query encoder: omit --encoder {encoder}')
    if not groups.encoder and encoder is None and default_encoder is not None:
        locate(default_encoder, place=encoder_place)  # downloads it, before any work
        encoder = default_encoder
    notes: list[str] = []
    model = _model_config(groups.separator, front_end, file.path, ignore_unknown, notes)
    with errors_about(file.path):
        variables = variables_from_torch(groups.separator)
    restored = tensors_from_variables(variables, model, step=file.step)
    unused = (groups.separator_prefix + name for name in groups.separator if name not in restored)
    ignored = (*groups.ignored, *unused)
    if ignored:
        notes.append(f'{len(ignored)} unknown tensors are not used, and kept for the way back: {listed(ignored)}')
    with new_folder(destination) as folder:
        identity = _add_encoder(
            folder / 'encoder', file, groups, encoder, model, notes, destination, ignore_unknown=ignore_unknown
        )
        (folder / 'original').mkdir()
        num_kept, dropped = originals.keep(
            folder / 'original',
            file,
            restored,
            separator_prefix=groups.separator_prefix,
            encoder_prefix=groups.encoder_prefix,
            ignored=frozenset(ignored),
        )
        if dropped:
            notes.append(f'not kept for the way back, because they are objects of Python classes: {listed(dropped)}')
        record = describe(ConvertedConfig(model, file.path.name), identity)
        save_for_inference(folder / 'checkpoints' / str(file.step), variables=variables, record=record, step=file.step)
    return Converted(destination, model, file.step, identity, num_kept, tuple(notes))


def to_torch(checkpoint: InferenceCheckpoint, destination: str | Path, *, force: bool = False) -> tuple[int, list[str]]:
    """Writes a checkpoint as a file for PyTorch.

    A converted checkpoint gets back the names and all the other tensors of its file. A run of this project gets the
    names of the original's Lightning module (`ss_model.*`, `query_encoder.model.*`), and the moving average of the
    weights if it kept one.

    Args:
        checkpoint: what `open_checkpoint` returned.
        destination: the file to write. `.ckpt` is a training checkpoint as Lightning reads it; `.pt`, `.pth` and `.bin`
            are a state dict, or whatever the converted file with such a suffix was; `.safetensors` is that format.
        force: replace an existing file.

    Returns:
        (the number of tensors in the state dict, remarks for the user).

    Raises:
        CheckpointError: the checkpoint is damaged, or the destination is taken or cannot be written.
    """
    destination = Path(destination)
    _check_destination(destination, force=force)
    separator = tensors_from_variables(checkpoint.variables, checkpoint.model, step=checkpoint.step)
    encoder = _stored_encoder(checkpoint)
    notes: list[str] = []
    if (blocks := len(checkpoint.model.widths)) != len(DOWNSAMPLING):
        notes.append(f'the original code reads only networks of {len(DOWNSAMPLING)} blocks, and this one has {blocks}')
    original = None
    if (checkpoint.root / 'original').is_dir():
        used = {tensor.name for tensor in torch_tensors(checkpoint.model) if tensor.path is not None}
        original = originals.restore(checkpoint.root / 'original', separator, used, encoder)
        state = original.state
    else:
        state = {SEPARATOR_PREFIX + name: value for name, value in separator.items()}
        state |= {_ENCODER_PREFIX + name: value for name, value in encoder.items()}
        if not encoder:
            notes.append(_separator_only_note(checkpoint))
    is_training_checkpoint = destination.suffix == LIGHTNING
    try:
        if destination.suffix == SAFETENSORS:
            metadata = (original and original.metadata) or {'format': 'pt', STEP_KEY: str(checkpoint.step)}
            write_tensors(destination, state, metadata)
        elif original and original.tree is not None and is_training_checkpoint == (original.suffix == LIGHTNING):
            write_torch(destination, original.tree)
        elif is_training_checkpoint:
            write_torch(destination, _lightning_checkpoint(state, checkpoint.step))
        else:
            write_torch(destination, OrderedDict(state))
    except OSError as error:
        raise CheckpointError(f'{destination}: cannot be written: {error.strerror or error}') from error
    return len(state), notes


def _check_destination(destination: Path, *, force: bool) -> None:
    """Checks that the destination can be made. Even with `force`, no folder but a converted checkpoint is replaced."""
    if destination.is_dir():
        if destination.suffix in SUFFIXES:
            raise CheckpointError(f'{destination} is a folder: choose another name')
        entries = {path.name for path in destination.iterdir()}
        if entries and not _REQUIRED_ENTRIES <= entries <= _CONVERTED_ENTRIES:
            raise CheckpointError(
                f'{destination} already exists and is not a converted checkpoint: choose another name'
            )
    if not (force and destination.exists()):
        check_free(destination, remedy='choose another name, or --force')


# ---- from PyTorch ----------------------------------------------------------------------------------------------------


def _model_config(
    separator: Mapping[str, np.ndarray], front_end: FrontEnd, path: Path, ignore_unknown: bool, notes: list[str]
) -> ModelConfig:
    """Returns the configuration that the front end and the shapes of the tensors give, once all of them fit it."""
    with errors_about(path):
        sizes = sizes_from_torch(separator)
    window_size = sizes.pop('window_size')
    if window_size != front_end.window_size:
        preset = next((f'--preset {name}' for name, p in PRESETS.items() if p.window_size == window_size), None)
        remedy = preset or f'--window-size {window_size} with its --sample-rate and --hop-size'
        raise CheckpointError(
            f'{path}: its bn0 has {window_size // 2 + 1} entries, which is window {window_size} and not '
            f'{front_end.window_size}: try {remedy}'
        )
    try:
        model = ModelConfig(**dataclasses.asdict(front_end), **sizes)
    except ConfigError as error:
        raise CheckpointError(f'{path}: {error}') from error
    with errors_about(path):
        shapes = {name: value.shape for name, value in separator.items()}
        computed = check_tensors(shapes, model, ignore_unknown=ignore_unknown)
    if computed:
        notes.append(f'{len(computed)} tensors that the file lacks are computed: {listed(computed)}')
    return model


def _add_encoder(
    folder: Path,
    file: TorchSource,
    groups: TensorGroups,
    reference: str | None,
    model: ModelConfig,
    notes: list[str],
    destination: Path,
    *,
    ignore_unknown: bool,
) -> dict[str, Any] | None:
    """Stores the query encoder in a folder and returns its identity; None if there is no encoder.

    Args:
        folder: where to store it.
        file: the file that is being converted.
        groups: its tensors.
        reference: the query encoder that the user gave for a file without one.
        model: the network's configuration.
        notes: remarks for the user are added here.
        destination: the final place of the checkpoint, for the remarks; `folder` is a temporary one.
        ignore_unknown: accept tensors that are not CLAP's in the file that is being converted.
    """
    if groups.encoder:
        folder.mkdir()
        write_tensors(folder / WEIGHTS, groups.encoder)
        identity = _check_encoder(
            folder, str(file.path), file.path.name, notes, destination, ignore_unknown=ignore_unknown
        )
    elif reference is None:
        notes.append('the file holds no query encoder, so queries can only be embeddings; --encoder PATH adds one')
        return None
    elif reference in _WITHOUT_FILES:
        identity = load_encoder({'name': reference, 'embedding_size': model.condition_size}).identity()
    else:
        store(locate(reference), folder)
        identity = _check_encoder(folder, reference, reference, notes, destination, ignore_unknown=ignore_unknown)
    if identity['embedding_size'] != model.condition_size:
        raise CheckpointError(
            f'{file.path}: the separator takes embeddings of size {model.condition_size}, but this encoder gives size '
            f'{identity["embedding_size"]}: give the encoder that it was trained with'
        )
    return identity


def _check_encoder(
    folder: Path, origin: str, source: str, notes: list[str], destination: Path, *, ignore_unknown: bool = False
) -> dict[str, Any]:
    """Checks the weights of the encoder just stored in a folder, and fetches its tokenizer if it can.

    Messages name the encoder's origin or its final place, never the temporary folder.

    Args:
        folder: the temporary folder.
        origin: what the user calls the encoder.
        source: the origin that the identity records.
        notes: remarks for the user are added here.
        destination: the final place of the checkpoint.
        ignore_unknown: accept tensors that are not CLAP's.

    Returns:
        The encoder's identity.
    """
    try:
        encoder = encoder_class(kind_of(folder)).open(folder, source=source)
        unknown = encoder.unknown_tensors() if isinstance(encoder, ClapEncoder) else []
        if unknown and not ignore_unknown:
            raise CheckpointError(
                f'{origin}: {len(unknown)} unknown tensors, not of CLAP: {listed(unknown)}; --ignore-unknown goes past '
                'them'
            )
        _ = encoder.tokenizer  # fetches it if it is missing
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), origin)) from error
    except DownloadError as error:
        place = str((destination / 'encoder').absolute())
        notes.append(f'text queries need a tokenizer first: {str(error).replace(str(folder), place)}')
    return encoder.identity()


# ---- to PyTorch ------------------------------------------------------------------------------------------------------


def _stored_encoder(checkpoint: InferenceCheckpoint) -> Mapping[str, np.ndarray]:
    """Returns the tensors of the query encoder stored with a checkpoint, in LAION's naming, empty if it has none."""
    file = checkpoint.root / 'encoder' / WEIGHTS
    return clap_tensors(SafeTensors(file)) if file.is_file() else {}


def _separator_only_note(checkpoint: InferenceCheckpoint) -> str:
    model = checkpoint.model
    name = (checkpoint.encoder or {}).get('name')
    is_complete = name in _WITHOUT_FILES
    what = 'the separator' if is_complete else 'the separator, not its query encoder'
    return (
        f'the file holds only {what}; to convert it back, give '
        f'--encoder {name if is_complete else "PATH"} --sample-rate {model.sample_rate} '
        f'--window-size {model.window_size} --hop-size {model.hop_size}'
    )


def _lightning_checkpoint(state: Mapping[str, np.ndarray], step: int) -> dict[str, Any]:
    """Returns the smallest training checkpoint that `load_from_checkpoint` of Lightning 2 accepts."""
    return {'epoch': 0, 'global_step': step, 'pytorch-lightning_version': '2.0.0', 'state_dict': OrderedDict(state)}
