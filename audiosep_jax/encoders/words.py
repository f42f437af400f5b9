"""`words` embeds sentences as a hashed bag of words, without a download and without training.

Every word stem has a fixed random direction, drawn from a hash of its letters. An embedding is the sum over the
different stems of the sentence, with stop words damped, scaled to length 1. So 'a siren', 'sirens' and 'the sound of a
siren' nearly coincide, 'a dog barking' shares a direction with 'a dog', and unrelated words are close to orthogonal.

It suits closed vocabularies: a model learns what the words in its training captions sound like. It is not a language
model: an unknown synonym ('hound') means nothing to it, and it ignores word order ('man bites dog'). `wordllama` knows
synonyms, and CLAP handles both.
"""

import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

from audiosep_jax.encoders.base import check_texts
from audiosep_jax.errors import ConfigError

# Function words, and words that captions use for any sound ('a recording of …', '… in the foreground').
_STOP_TEXT = (
    'a an and are as at be been being by can could do does for from has have having he hear heard her his i in into is '
    'it its of off on onto or over she some somebody someone something that the their them then there these they this '
    'those to up was we were while who with you your '
    'audio background clip foreground hearing listen loud loudly nearby noise perform performed performing play played '
    'playing plays quiet quietly recorded recording recordings record solo sound sounding sounds'
)
STOP_WORDS = frozenset(_STOP_TEXT.split())
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_VOWEL = re.compile('[aeiouy]')


class WordsEncoder:
    """A hashed bag of words.

    Its vectors are the same on every machine and in every version of Python: bits of SHAKE-256 decide the signs.

    Args:
        embedding_size: E, a multiple of 8. Unrelated words have a cosine of about 1 / sqrt(E).
        stop_weight: weight of a stop word in (0, 1]; other words have the weight 1. It is above 0 so that a query of
            only stop words ('it is on') has an embedding.

    Raises:
        ConfigError: the size or the weight is out of range.
    """

    name = 'words'
    version = 1

    def __init__(self, embedding_size: int = 512, stop_weight: float = 0.1):
        if embedding_size < 8 or embedding_size % 8:
            raise ConfigError(f'encoder words: embedding_size {embedding_size} must be a positive multiple of 8')
        if not 0 < stop_weight <= 1:
            raise ConfigError(f'encoder words: stop_weight {stop_weight} must be in (0, 1]')
        self.embedding_size = embedding_size
        self.stop_weight = float(stop_weight)

    def identity(self) -> dict[str, Any]:
        """Returns the settings that caches and checkpoints record."""
        return {
            'name': self.name,
            'version': self.version,
            'embedding_size': self.embedding_size,
            'stop_weight': self.stop_weight,
        }

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Returns embeddings of length 1, float32 [Q, E].

        Raises:
            QueryError: a sentence is empty.
        """
        check_texts(texts)
        return np.stack([self._encode(text) for text in texts]) if texts else np.zeros((0, self.embedding_size), 'f4')

    def _encode(self, text: str) -> np.ndarray:
        weights: dict[str, float] = {}
        for word in words_of(text):
            weight = self.stop_weight if word in STOP_WORDS else 1.0
            weights[stem(word)] = max(weight, weights.get(stem(word), 0.0))
        # Sort, because float addition is not associative and word order must not change even the last bit.
        total = np.zeros(self.embedding_size)
        for s in sorted(weights):
            total += weights[s] * _direction(s, self.embedding_size)
        norm = np.linalg.norm(total)
        if norm == 0:  # two stop words with exactly opposite directions: practically impossible, but avoid NaN
            total = _direction(text, self.embedding_size)
            norm = np.linalg.norm(total)
        return (total / norm).astype(np.float32)


def words_of(text: str) -> list[str]:
    """Returns the words of a sentence in lower case; a text without letters and digits ('?!') is one word."""
    text = unicodedata.normalize('NFKC', text).casefold().replace('’', "'").strip()
    words = [word.removesuffix("'s") for word in _WORD.findall(text.replace('_', ' '))]
    return words or [text]


def stem(word: str) -> str:
    """Returns a word without the English endings that captions vary: 'barks', 'barking', 'barked' -> 'bark'.

    The stem need not be a word ('driving', 'drives' -> 'driv'), only the same for all forms. It is rarely the same for
    words with different meanings, which does little harm.
    """
    if word.endswith('ies') and len(word) > 4:
        word = word[:-3] + 'y'
    elif re.search('(ss|x|z|ch|sh)es$', word):
        word = word[:-2]
    elif word.endswith('s') and not re.search('(ss|us|is)$', word) and len(word) > 3:
        word = word[:-1]
    for ending in ('ing', 'ed'):
        root = word[: -len(ending)]
        if word.endswith(ending) and len(root) >= 3 and _VOWEL.search(root) and not word.endswith('eed'):
            # Rule 1b of Porter's stemmer: running -> run, but calling -> call.
            doubled = root[-1] == root[-2] and root[-1] not in 'lszaeiou'
            word = root[:-1] if doubled else root
            break
    return word[:-1] if word.endswith('e') and len(word) > 4 else word


def _direction(token: str, size: int) -> np.ndarray:
    """Returns the direction of a stem, float64 [E] of ±1, which depends only on its letters."""
    digest = hashlib.shake_256(b'audiosep_jax words 1:' + token.encode()).digest(size // 8)
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float64) * 2 - 1
