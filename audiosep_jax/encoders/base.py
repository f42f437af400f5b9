"""Defines what every query encoder does, and when two encoders are the same."""

from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np

from audiosep_jax.errors import AudioSepError, QueryError


class Identity(TypedDict):
    """The identity of an encoder in a JSON file. `version`, `weights` and further settings are only compared."""

    name: str
    embedding_size: int
    source: NotRequired[str | None]


@runtime_checkable
class QueryEncoder(Protocol):
    """What the rest of the library needs from an encoder. Letters: Q queries, E embedding size."""

    name: str
    embedding_size: int

    def identity(self) -> dict[str, Any]:
        """Returns JSON-ready settings from which `load_encoder` builds this encoder again.

        They include `name`, `version` and `embedding_size`. Encoders with equal identities give equal embeddings.
        """
        ...

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Returns the embeddings of sentences, float32 [Q, E].

        Raises:
            QueryError: a sentence is empty.
        """
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
    """Stands in for an encoder whose weights are missing. It has an identity, but encoding anything raises `error`.

    Args:
        identity: the identity that the checkpoint recorded.
        error: the error that loading the weights raised.
    """

    def __init__(self, identity: dict[str, Any], error: AudioSepError):
        self.name, self.embedding_size = identity['name'], identity['embedding_size']
        self._identity, self._error = identity, error

    def identity(self) -> dict[str, Any]:
        """Returns the identity that the checkpoint recorded."""
        return self._identity

    def _raise_error(self, *_: Any, **__: Any) -> np.ndarray:
        """Raises the error that loading the weights raised."""
        raise self._error

    encode_text = encode_audio = encode_image = encode_token_ids = _raise_error


def same_encoder(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Returns whether two identities give the same embeddings, no matter where their weights came from."""
    return comparable(a) == comparable(b)


def comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """Returns an identity without the source of the weights, which does not change the embeddings."""
    return {key: value for key, value in identity.items() if key != 'source'}


def check_texts(texts: list[str]) -> None:
    """Checks that texts are a list in which each text has a visible character.

    Raises:
        QueryError: a text is empty or not a string, or a single string was given instead of a list.
    """
    if isinstance(texts, str):
        raise QueryError(f'expected a list of queries, got the string {texts!r}: put it into a list')
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            where = f' (number {index + 1} of {len(texts)})' if len(texts) > 1 else ''
            raise QueryError(f'empty query{where}: describe the sound in words, such as "a dog barking"')
