"""What every query encoder is, and when two of them are the same."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from audiosep_jax.errors import AudioSepError, QueryError


@runtime_checkable
class QueryEncoder(Protocol):
    """What the rest of the library asks of an encoder. Letters: Q queries, E embedding size."""

    name: str
    embedding_size: int

    def identity(self) -> dict[str, Any]:
        """JSON-ready settings from which `load_encoder` builds this encoder again; has `name`, `version`,
        `embedding_size`. Two encoders with equal identities give equal embeddings."""
        ...

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """float32 [Q, E] of Q sentences. Raises QueryError for an empty one."""
        ...


@runtime_checkable
class AudioTextEncoder(QueryEncoder, Protocol):
    """A query encoder that maps sounds and texts to the same space."""

    def encode_audio(self, waveforms: np.ndarray | Sequence[np.ndarray], *, sample_rate: int) -> np.ndarray:
        """Returns the embeddings of mono sounds, float32 [Q, E].

        Args:
            waveforms: float at full scale 1.0: one sound [T], or [Q, T], or a list of [T].
            sample_rate: rate of the sounds, in Hz.
        """
        ...


class UnavailableEncoder:
    """Stands for an encoder whose weights are not here: it knows what it is, and raises `error` when it is used."""

    def __init__(self, identity: dict[str, Any], error: AudioSepError):
        self.name, self.embedding_size = identity['name'], identity['embedding_size']
        self._identity, self._error = identity, error

    def identity(self) -> dict[str, Any]:
        """What the checkpoint recorded."""
        return self._identity

    def _unavailable(self, *_: Any, **__: Any) -> np.ndarray:
        """Raises what kept the weights away."""
        raise self._error

    encode_text = encode_audio = encode_image = encode_token_ids = _unavailable


def same_encoder(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two identities give the same embeddings, wherever their weights came from."""
    return comparable(a) == comparable(b)


def comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity without what does not change an embedding: where the weights were found."""
    return {key: value for key, value in identity.items() if key != 'source'}


def check_texts(texts: list[str]) -> None:
    """Raises QueryError for a text without a visible character, and for one string where a list is meant."""
    if isinstance(texts, str):
        raise QueryError(f'expected a list of queries, got the one string {texts!r}: put it into a list')
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            where = f' (number {index + 1} of {len(texts)})' if len(texts) > 1 else ''
            raise QueryError(f'empty query{where}: describe the sound in words, such as "a dog barking"')
