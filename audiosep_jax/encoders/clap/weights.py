"""CLAP's weights in the two namings that they are published in, LAION's and Hugging Face's, as one."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from audiosep_jax.errors import CheckpointError, listed

_TOWERS = re.compile(r'(?P<prefix>(?:.*\.)?)(?:text_branch|audio_branch|text_model|audio_model)\.')
# Hugging Face's fragments of names and LAION's, in the order in which they turn the one into the other.
_BOTH_TOWERS = (('text_model.', 'text_branch.'), ('_projection.linear1.', '_projection.0.'))
_BOTH_TOWERS += (('_projection.linear2.', '_projection.2.'),)
_AUDIO_TOWER = (
    ('.batch_norm.', '.bn0.'),
    ('audio_model.audio_encoder.', 'audio_branch.'),
    ('.layernorm_before.', '.norm1.'),
    ('.layernorm_after.', '.norm2.'),
    ('.attention.self.', '.attn.'),
    ('.attention.output.dense.', '.attn.proj.'),
    ('.intermediate.dense.', '.mlp.fc1.'),
    ('.output.dense.', '.mlp.fc2.'),
)
_QKV = ('query', 'key', 'value')  # apart in Hugging Face's files, one on top of the other in LAION's
_ONE_OF_QKV = re.compile(r'(^audio_branch\..*\.attn\.)(?:query|key|value)\.')
_FLOATS = {'float16', 'bfloat16', 'float32', 'float64'}
_NAMED = 3  # tensors that a message names; the rest it counts


class ClapTensors(Mapping):
    """The tensors of a file under LAION's names, with query, key and value of the audio tower apart.

    LAION's (`text_branch.*`, `audio_branch.*`) are also those inside AudioSep's checkpoints, behind a prefix; Hugging
    Face's are `text_model.*` and `audio_model.*`. Either may be behind a prefix, which is found.

    Attributes:
        laion: whether the file itself has LAION's names.
        shapes: of all tensors.

    Raises:
        CheckpointError: neither naming is in the file.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], where: str):
        self._tensors, self._where = tensors, where
        prefixes = Counter(match['prefix'] for match in map(_TOWERS.match, tensors) if match)
        if not prefixes:
            raise CheckpointError(f'{where}: no CLAP weights in it: no tensor of a text_branch or text_model')
        prefix = prefixes.most_common(1)[0][0]
        names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
        self.laion = any(name.startswith(('text_branch.', 'audio_branch.')) for name in names)
        self._place: dict[str, tuple[str, int | None]] = {}  # name -> name in the file, which third of that tensor
        for name in names:
            if self.laion and name.startswith('audio_branch.') and '.attn.qkv.' in name:
                parts = {name.replace('.qkv.', f'.{part}.'): (prefix + name, i) for i, part in enumerate(_QKV)}
                self._place |= parts
            else:
                self._place[name if self.laion else _laion_name(name)] = prefix + name, None
        kinds = {name: (tuple(tensor.shape), tensor.dtype.name) for name, tensor in self.items()}
        self.shapes = {name: shape for name, (shape, _) in kinds.items()}
        self._dtypes = {name: dtype for name, (_, dtype) in kinds.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        stored, third = self._place[name]
        tensor = self._tensors[stored]
        if third is None or not tensor.ndim or len(tensor) % 3:  # what does not divide is for `check` to refuse
            return tensor
        rows = len(tensor) // 3
        return tensor[rows * third : rows * (third + 1)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError, in one line, where expected tensors are missing, misshapen or not of floats."""
        missing = [self._stored_name(name) for name in expected if name not in self._place]
        if missing:
            missing = list(dict.fromkeys(missing))
            tensors = f'{len(missing)} tensor{"s" * (len(missing) > 1)}'
            raise CheckpointError(
                f'{self._where}: {tensors} of CLAP missing: {listed(missing, _NAMED)}; get the file anew'
            )
        wrong = [
            f'{self._place[name][0]} {list(self.shapes[name])} where {list(shape)} is expected'
            for name, shape in expected.items()
            if self.shapes[name] != shape
        ]
        wrong += [
            f'{self._place[name][0]} of {self._dtypes[name]}' for name in expected if self._dtypes[name] not in _FLOATS
        ]
        if wrong:
            raise CheckpointError(f'{self._where}: tensors that do not fit a CLAP: {listed(wrong, _NAMED)}')

    def _stored_name(self, name: str) -> str:
        """What the file would call a tensor, the prefix aside."""
        return _ONE_OF_QKV.sub(r'\1qkv.', name) if self.laion else _hugging_face_name(name)


def _laion_name(name: str) -> str:
    fragments = _BOTH_TOWERS + (_AUDIO_TOWER if name.startswith('audio_model.') else ())
    for theirs, ours in fragments:
        name = name.replace(theirs, ours)
    return name


def _hugging_face_name(name: str) -> str:
    fragments = _BOTH_TOWERS + (_AUDIO_TOWER if name.startswith('audio_branch.') else ())
    for theirs, ours in reversed(fragments):
        name = name.replace(ours, theirs)
    return name
