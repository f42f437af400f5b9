"""`wordllama` embeds sentences by static vectors of their word pieces, which are close for words of similar meaning.

The vectors (32,000 of 256 numbers) were distilled from the token embeddings of large language models that share the
tokenizer of Llama 2. The package `wordllama` carries them with their tokenizer, so nothing is downloaded. Only these
two files are read; the package itself is never imported.

An embedding is the sum over the different words of the sentence, with stop words damped, scaled to length 1. So a query
may use words that were in no caption ('a hound' for 'a dog'), as long as they are close in meaning. Word order is
ignored. `benchmarks/paraphrases.py` compares the encoders: `minilm` understands more, and is larger.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.encoders.base import check_texts
from audiosep_jax.encoders.pretrained import package_folder
from audiosep_jax.encoders.tokenizer import read_tokenizer_file
from audiosep_jax.encoders.towers import fingerprint
from audiosep_jax.encoders.words import STOP_WORDS, words_of
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.weights.tensor_files import open_tensors

PACKAGE = 'wordllama'
_VECTORS = 'weights/l2_supercat_256.safetensors'
_TOKENIZER = 'tokenizers/l2_supercat_tokenizer_config.json'
_SIZE = 256
_REINSTALL = f'pip install --force-reinstall --no-deps {PACKAGE}'
# The identity depends on these pieces, which another tokenizer would cut differently.
_PROBE = 'a hound baying, a marimba'


class WordLlamaEncoder:
    """Static word vectors of the package `wordllama`.

    Args:
        embedding_size: E, which is that of the package's vectors.
        stop_weight: weight of a stop word in (0, 1]; other words have the weight 1. It is above 0 so that a query of
            only stop words ('it is on') has an embedding.
        folder: the folder with both files; None: that of the installed package.

    Raises:
        ConfigError: the package is not installed, or the size or the weight is out of range.
        CheckpointError: its files are missing or damaged.
    """

    name = 'wordllama'
    version = 1

    def __init__(self, embedding_size: int = _SIZE, stop_weight: float = 0.1, folder: Path | None = None):
        if embedding_size != _SIZE:
            raise ConfigError(f'encoder wordllama: embedding_size {embedding_size}: its vectors have {_SIZE} numbers')
        if not 0 < stop_weight <= 1:
            raise ConfigError(f'encoder wordllama: stop_weight {stop_weight} must be in (0, 1]')
        self.embedding_size = embedding_size
        self.stop_weight = float(stop_weight)
        folder = folder or package_folder(PACKAGE)
        if folder is None:
            raise ConfigError(
                f'query encoder {self.name!r} needs the package {PACKAGE}, which is not installed: '
                f'pip install {PACKAGE}'
            )
        self._tokenizer = read_tokenizer_file(folder / _TOKENIZER, remedy=_REINSTALL)
        self._vectors = _read_vectors(folder / _VECTORS, self._tokenizer.get_vocab_size())

    def identity(self) -> dict[str, Any]:
        """Returns the settings that caches and checkpoints record; `weights` is a fingerprint of the two files."""
        return {
            'name': self.name,
            'version': self.version,
            'embedding_size': self.embedding_size,
            'stop_weight': self.stop_weight,
            'weights': self._fingerprint,
        }

    @property
    def vectors(self) -> np.ndarray:
        """The vectors of the word pieces, [pieces, E]."""
        return self._vectors

    def tokenizer_json(self) -> str:
        """Returns the tokenizer as the contents of a `tokenizer.json`."""
        return self._tokenizer.to_str()

    @functools.cached_property
    def _fingerprint(self) -> str:
        return fingerprint({'embedding.weight': self._vectors}, settings=str(self._pieces(_PROBE)))

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Returns embeddings of length 1, float32 [Q, E].

        Raises:
            QueryError: a sentence is empty.
        """
        check_texts(texts)
        return np.stack([self._encode(text) for text in texts]) if texts else np.zeros((0, self.embedding_size), 'f4')

    def _encode(self, text: str) -> np.ndarray:
        total = np.zeros(self.embedding_size)
        # Sorted, because float addition is not associative and word order must not change even the last bit.
        for word in sorted(set(words_of(text))):
            weight = self.stop_weight if word in STOP_WORDS else 1.0
            for piece in self._pieces(word):
                total += weight * self._vectors[piece].astype(np.float64)
        return (total / np.linalg.norm(total)).astype(np.float32)

    def _pieces(self, word: str) -> list[int]:
        # The tokenizer raises TypeError for half a surrogate pair, which may come from JSON or a file name.
        return self._tokenizer.encode(word.encode('utf-8', 'replace').decode(), add_special_tokens=False).ids


def is_installed() -> bool:
    """Returns whether the package with the vectors is installed, without importing it."""
    return package_folder(PACKAGE) is not None


def _read_vectors(path: Path, vocabulary: int) -> np.ndarray:
    try:
        vectors = open_tensors(path).get('embedding.weight')
    except CheckpointError as error:
        raise CheckpointError(f'{error}: {_REINSTALL}') from error
    if vectors is None or vectors.shape != (vocabulary, _SIZE):
        raise CheckpointError(f'{path}: not {_SIZE} numbers for each of {vocabulary} word pieces: {_REINSTALL}')
    return vectors
