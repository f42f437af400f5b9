"""A checkpoint file of the original code: where it is, what it holds, and which of its tensors belong to what."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.checkpoints.hub_folder import is_hub_folder, is_hub_repository
from audiosep_jax.encoders.pretrained import encoder_in
from audiosep_jax.errors import CheckpointError, listed
from audiosep_jax.storage.cache import expanded
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import (
    SAFETENSORS,
    SUFFIXES,
    TORCH_WEIGHTS,
    WEIGHTS,
    SafeTensors,
    find_state_dict,
    open_tensors,
)
from audiosep_jax.weights.torch_files import read_torch

# The training step in the metadata of a safetensors file, which has no other place for it.
STEP_KEY = 'audiosep_jax.step'
# Names that identify the separator's tensors, and the encoder's, among all others. What precedes them is the prefix.
_SEPARATOR_ANCHORS = ('base.bn0.weight', 'base.pre_conv.weight', 'base.after_conv.weight', 'base.bn0.bias')
_CLAP_ANCHORS = ('text_branch.embeddings.word_embeddings.weight', 'audio_branch.bn0.weight', 'logit_scale_a')


def find_source(source: str, *, place: str) -> Path:
    """Returns the file that a path or a reference to the hub means. Downloads it if necessary.

    Args:
        source: a file, a folder with weights, `organisation/name`, or `organisation/name:FILE`, also after `spaces/`.
        place: see `hub.fetch`.

    Raises:
        CheckpointError: there is no such file, or several candidates, or it is already a checkpoint of this project.
        DownloadError: the hub cannot be reached.
    """
    path = expanded(source)
    if path.is_file():
        return path
    if path.is_dir():
        if is_hub_folder(path):
            raise CheckpointError(f'{path} is already a checkpoint of this project: use it as it is')
        for name in (WEIGHTS, TORCH_WEIGHTS):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f'{path} is a folder without {WEIGHTS} or {TORCH_WEIGHTS}: give the file')
    reference = hub.parse_reference(source)
    if reference is None:
        raise CheckpointError(f'no such file: {source}')
    if reference.file is not None:
        return hub.fetch(reference, reference.file, place=place)
    found = hub.list_files(reference, place=place, suffixes=SUFFIXES)
    names = [name for name in found if Path(name).suffix in SUFFIXES]
    if not names:
        raise CheckpointError(f'{reference.url} holds no checkpoint')
    if is_hub_repository(reference, found, place=place):
        raise CheckpointError(f'{source} is already a checkpoint of this project: use it as it is')
    if WEIGHTS in names:
        return hub.fetch(reference, WEIGHTS, place=place)
    if len(names) > 1:
        raise CheckpointError(f'{reference.url} holds several checkpoints ({listed(names)}): choose {source}:FILE')
    return hub.fetch(reference, names[0], place=place)


@dataclasses.dataclass(frozen=True)
class TorchSource:
    """The contents of a checkpoint file of the original code.

    Attributes:
        path: the file.
        tree: everything in a PyTorch file; None for a safetensors file.
        state_key: the key of the state dict in the tree; None if the tree is the state dict.
        tensors: those of the state dict, by name.
    """

    path: Path
    tree: Any
    state_key: str | None
    tensors: Mapping[str, np.ndarray]

    @property
    def metadata(self) -> dict[str, str]:
        """The strings of a safetensors file; empty for a PyTorch file."""
        return self.tensors.metadata if isinstance(self.tensors, SafeTensors) else {}

    @property
    def step(self) -> int:
        """The training step that the file records, or 0 if it records none."""
        if isinstance(self.tensors, SafeTensors):
            text = self.metadata.get(STEP_KEY, '')
            step = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
        else:
            step = self.tree.get('global_step') if isinstance(self.tree, dict) else None
        return step if isinstance(step, int) and 0 <= step < 1 << 62 else 0


def read_source(path: Path) -> TorchSource:
    """Reads a checkpoint file of the original code.

    Raises:
        CheckpointError: the file is damaged, or has no state dict.
    """
    if path.suffix == SAFETENSORS:
        return TorchSource(path, None, None, open_tensors(path))
    tree = read_torch(path)
    state_key, state = find_state_dict(tree, path)
    tensors = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    for name in tensors:
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(f'{path}: a tensor of its state dict has the name {name!r}')
    return TorchSource(path, tree, state_key, tensors)


@dataclasses.dataclass(frozen=True)
class TensorGroups:
    """The tensors of a state dict by what they belong to, under their names without the prefixes.

    Attributes:
        separator: the separator's tensors.
        encoder: the query encoder's tensors; empty if the file holds only the separator.
        separator_prefix: what precedes the separator's names in the file.
        encoder_prefix: what precedes the encoder's names in the file.
        ignored: the names of the tensors that belong to neither.
    """

    separator: dict[str, np.ndarray]
    encoder: dict[str, np.ndarray]
    separator_prefix: str
    encoder_prefix: str
    ignored: tuple[str, ...] = ()


def group_tensors(source: TorchSource, *, ignore_unknown: bool = False) -> TensorGroups:
    """Divides the tensors of a file into the separator's and CLAP's.

    Args:
        source: the file.
        ignore_unknown: go past tensors that belong to neither. Without it, they are an error.

    Raises:
        CheckpointError: the file has no separator, or tensors that belong to neither.
    """
    separator_prefix = _find_prefix(source.tensors, _SEPARATOR_ANCHORS)
    if separator_prefix is None:
        other = encoder_in(source.tensors)
        if other is not None:
            raise CheckpointError(
                f'{source.path}: not a separator of the original code but {other}, a query encoder: convert the '
                f'separator, and give this with --encoder {source.path}'
            )
        anchors = ', '.join(_SEPARATOR_ANCHORS)
        raise CheckpointError(f'{source.path}: not a separator of the original code: it has none of {anchors}')
    encoder_prefix = _find_prefix(source.tensors, _CLAP_ANCHORS)
    separator, encoder, unknown = {}, {}, []
    for name, value in source.tensors.items():
        short = name.removeprefix(separator_prefix)
        if name.startswith(separator_prefix) and short.startswith(('base.', 'film.')):
            separator[short] = value
        elif encoder_prefix is not None and name.startswith(encoder_prefix):
            encoder[name.removeprefix(encoder_prefix)] = value
        else:
            unknown.append(name)
    if unknown and not ignore_unknown:
        raise CheckpointError(
            f'{source.path}: {len(unknown)} unknown tensors, neither of the separator nor of CLAP: {listed(unknown)}; '
            '--ignore-unknown goes past them'
        )
    return TensorGroups(separator, encoder, separator_prefix, encoder_prefix or '', tuple(unknown))


def clap_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors in LAION's naming of CLAP without their prefix; none if they are in another naming."""
    prefix = _find_prefix(tensors, _CLAP_ANCHORS[:2])
    return {} if prefix is None else {name.removeprefix(prefix): value for name, value in tensors.items()}


def _find_prefix(names: Collection[str], anchors: tuple[str, ...]) -> str | None:
    """Returns what precedes the first anchor that is among the names; None if no anchor is.

    A moving average of the weights (EMA) has the same names after a longer prefix, and may come first. It counts only
    if nothing else has the anchor.
    """
    for anchor in anchors:
        found = [name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f'.{anchor}')]
        if found:
            return min(found, key=lambda prefix: 'ema' in re.split('[._]', prefix.lower()))
    return None
