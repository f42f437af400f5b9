"""Query encoders: what turns a sentence into the embedding that the separator is conditioned on.

One file each. An encoder is named in caches and checkpoints by its `identity()`, and `load_encoder` builds it again
from that alone, so that a model is never asked with embeddings it was not trained on.
"""

import difflib
import importlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from audiosep_jax.errors import ConfigError, EncoderMismatchError, QueryError

# name -> (module, class): imported on first use, so that one encoder does not cost the imports of another.
_ENCODERS = {'words': ('audiosep_jax.encoders.words', 'WordsEncoder')}


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


def encoder_names() -> tuple[str, ...]:
    """The names that `load_encoder` knows."""
    return tuple(_ENCODERS)


def load_encoder(name_or_identity: str | dict[str, Any]) -> QueryEncoder:
    """The encoder of a name (with its default settings) or of the identity that a cache or checkpoint recorded.

    Raises:
        ConfigError: an unknown name (the nearest is named).
        EncoderMismatchError: an identity that the installed version of the encoder cannot reproduce.
    """
    identity = {'name': name_or_identity} if isinstance(name_or_identity, str) else dict(name_or_identity)
    name = identity.get('name')
    if name not in _ENCODERS:
        near = difflib.get_close_matches(str(name), _ENCODERS, n=1)
        hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(_ENCODERS)}'
        raise ConfigError(f'unknown query encoder {name!r}: {hint}')
    module, cls = _ENCODERS[name]
    encoder_class = getattr(importlib.import_module(module), cls)
    settings = {k: v for k, v in identity.items() if k not in ('name', 'version')}
    try:
        encoder = encoder_class(**settings)
    except TypeError as error:
        raise EncoderMismatchError(
            f'query encoder {identity} has settings that the installed {name!r} does not know: use the version of '
            'audiosep_jax that wrote it'
        ) from error
    if identity.get('version', encoder.identity()['version']) != encoder.identity()['version']:
        raise EncoderMismatchError(
            f'query encoder {name!r} version {identity["version"]} was asked for, installed is version '
            f'{encoder.identity()["version"]}: use the version of audiosep_jax that wrote it, or embed and train again'
        )
    return encoder


def check_texts(texts: list[str]) -> None:
    """Raises QueryError for a text without a visible character, and for one string where a list is meant."""
    if isinstance(texts, str):
        raise QueryError(f'expected a list of queries, got the one string {texts!r}: put it into a list')
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            where = f' (number {index + 1} of {len(texts)})' if len(texts) > 1 else ''
            raise QueryError(f'empty query{where}: describe the sound in words, such as "a dog barking"')
