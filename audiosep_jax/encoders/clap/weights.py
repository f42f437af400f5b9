"""Reads CLAP's weights in either of their published namings, LAION's and Hugging Face's."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from audiosep_jax.errors import CheckpointError, listed

_TOWERS = re.compile(r'(?P<prefix>(?:.*\.)?)(?:text_branch|audio_branch|text_model|audio_model)\.')
# Fragments of Hugging Face's names and of LAION's, in the order in which they have to be replaced.
_BOTH_TOWERS = (
    ('text_model.', 'text_branch.'),
    ('_projection.linear1.', '_projection.0.'),
    ('_projection.linear2.', '_projection.2.'),
)
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
_QKV = ('query', 'key', 'value')  # separate tensors in Hugging Face's files, one stacked tensor in LAION's
_ONE_OF_QKV = re.compile(r'(^audio_branch\..*\.attn\.)(?:query|key|value)\.')
_FLOATS = {'float16', 'bfloat16', 'float32', 'float64'}
_MAX_NAMED = 3  # tensors that a message names; it counts the others


class ClapTensors(Mapping[str, np.ndarray]):
    """The tensors of a file under LAION's names, with query, key and value of the audio tower separated.

    LAION's names begin with `text_branch.` or `audio_branch.`; AudioSep's checkpoints have them, too, with a prefix.
    Hugging Face's begin with `text_model.` or `audio_model.`. A prefix of either is detected.

    Args:
        tensors: the tensors of a file.
        where: its path, for messages.

    Attributes:
        laion: whether the file has LAION's names.
        shapes: the shapes of all tensors, by LAION's name.

    Raises:
        CheckpointError: the file has neither naming.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], where: str):
        self._tensors, self._where = tensors, where
        prefixes = Counter(match['prefix'] for match in map(_TOWERS.match, tensors) if match)
        if not prefixes:
            raise CheckpointError(f'{where}: no CLAP weights: it has no tensor of a text_branch or text_model')
        prefix = prefixes.most_common(1)[0][0]
        names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
        self.laion = any(name.startswith(('text_branch.', 'audio_branch.')) for name in names)
        # LAION's name -> name in the file, and which third of that tensor (None: all of it).
        self._place: dict[str, tuple[str, int | None]] = {}
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
        if third is None or not tensor.ndim or len(tensor) % 3:  # `check` refuses tensors that cannot be divided
            return tensor
        rows = len(tensor) // 3
        return tensor[rows * third : rows * (third + 1)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Checks the tensors' shapes and types.

        Args:
            expected: the shapes by LAION's name.

        Raises:
            CheckpointError: tensors are missing, have another shape, or are not floats.
        """
        missing = list(dict.fromkeys(self._stored_name(name) for name in expected if name not in self._place))
        if missing:
            tensors = f'{len(missing)} tensor{"s" * (len(missing) > 1)}'
            raise CheckpointError(
                f'{self._where}: {tensors} of CLAP missing: {listed(missing, _MAX_NAMED)}; download the file again'
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
            raise CheckpointError(f'{self._where}: tensors do not fit a CLAP: {listed(wrong, _MAX_NAMED)}')

    def _stored_name(self, name: str) -> str:
        """Returns the name that a tensor would have in the file, without the prefix."""
        return _ONE_OF_QKV.sub(r'\1qkv.', name) if self.laion else _hugging_face_name(name)


def _laion_name(name: str) -> str:
    """Converts Hugging Face's name of a tensor."""
    fragments = _BOTH_TOWERS + (_AUDIO_TOWER if name.startswith('audio_model.') else ())
    for hugging_face, laion in fragments:
        name = name.replace(hugging_face, laion)
    return name


def _hugging_face_name(name: str) -> str:
    """Converts LAION's name of a tensor."""
    fragments = _BOTH_TOWERS + (_AUDIO_TOWER if name.startswith('audio_branch.') else ())
    for hugging_face, laion in reversed(fragments):
        name = name.replace(laion, hugging_face)
    return name
