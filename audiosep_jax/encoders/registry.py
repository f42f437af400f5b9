"""Builds query encoders from a name, a path, a repository of the hub, or a recorded identity."""

import difflib
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.pretrained import kind_of, locate
from audiosep_jax.errors import ConfigError, EncoderMismatchError

# name -> (module, class). They are imported on first use, so that one encoder does not cost the imports of another.
_ENCODERS = {
    'words': ('audiosep_jax.encoders.words', 'WordsEncoder'),
    'wordllama': ('audiosep_jax.encoders.wordllama', 'WordLlamaEncoder'),
    'minilm': ('audiosep_jax.encoders.minilm', 'MiniLMEncoder'),
    'clap': ('audiosep_jax.encoders.clap.encoder', 'ClapEncoder'),
    'clip': ('audiosep_jax.encoders.clip.encoder', 'ClipEncoder'),
}
_PRETRAINED = ('clap', 'clip', 'minilm')


def encoder_names() -> tuple[str, ...]:
    """Returns the names that `load_encoder` knows."""
    return tuple(_ENCODERS)


def load_encoder(
    reference: str | os.PathLike | dict[str, Any], *, folders: Iterable[str | os.PathLike] = ()
) -> QueryEncoder:
    """Returns the encoder of a name, of a path or hub repository with its weights, or of a recorded identity.

    Args:
        reference: `words`, `wordllama`, `minilm`, `clap` or `clip`; a folder or file of weights of the last three;
            `organization/name` on the hub; or the identity that a cache or checkpoint recorded.
        folders: folders in which to look first for the weights of an identity; missing folders are skipped.

    Raises:
        ConfigError: the name is unknown (the message suggests the nearest), or its package is not installed.
        CheckpointError: the weights are missing, damaged or of another kind.
        DownloadError: the weights have to be fetched from the hub, which cannot be reached.
        EncoderMismatchError: the installed version or the weights found cannot reproduce the identity.
    """
    if isinstance(reference, dict):
        return _from_identity(dict(reference), [Path(folder) for folder in folders])
    name = str(reference)
    if name in _PRETRAINED:
        return _open_pretrained(name, name)
    if name in _ENCODERS:
        return encoder_class(name)()
    if os.path.exists(name) or '/' in name:
        return _open_pretrained(name)
    raise _unknown_encoder(name)


def encoder_class(name: str) -> Any:
    """Imports and returns the class of one of `encoder_names()`."""
    module, cls = _ENCODERS[name]
    return getattr(importlib.import_module(module), cls)


def _unknown_encoder(name: Any) -> ConfigError:
    near = difflib.get_close_matches(str(name), _ENCODERS, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(_ENCODERS)}, or a path of CLAP or CLIP weights'
    return ConfigError(f'unknown query encoder {name!r}: {hint}')


def _open_pretrained(reference: str | Path, name: str | None = None, **settings: Any) -> QueryEncoder:
    """Opens a pretrained encoder from a path or repository; without a name, the weights say which one it is."""
    path, source = locate(str(reference)), str(reference)
    if os.path.exists(source):  # the identity needs a path that is valid in any working directory
        source = os.path.abspath(source)
    return encoder_class(name or kind_of(path)).open(path, source=source, **settings)


def _from_identity(identity: dict[str, Any], folders: list[Path]) -> QueryEncoder:
    """Builds the encoder of an identity, and checks that it is the same one."""
    name = identity.get('name')
    if name not in _ENCODERS:
        raise _unknown_encoder(name)
    settings = {
        k: v for k, v in identity.items() if k not in ('name', 'version', 'embedding_size', 'weights', 'source')
    }
    try:
        if name in _PRETRAINED:
            stored = [folder for folder in folders if folder.exists()]
            source = identity.get('source') or name
            encoder = _open_pretrained(stored[0] if stored else source, name, **settings)
        else:
            sizes = {k: v for k, v in identity.items() if k == 'embedding_size'}
            encoder = encoder_class(name)(**sizes, **settings)
    except TypeError as error:
        raise EncoderMismatchError(
            f'query encoder {identity} has settings that the installed {name!r} does not have: use the version of '
            'audiosep_jax that wrote it'
        ) from error
    found = encoder.identity()
    if identity.get('version', found['version']) != found['version']:
        raise EncoderMismatchError(
            f'query encoder {name!r} is installed in version {found["version"]}, but version {identity["version"]} was '
            'recorded: use the version of audiosep_jax that wrote it, or embed and train again'
        )
    if identity.get('weights', found.get('weights')) != found.get('weights'):
        place = f' in {found["source"]}' if 'source' in found else ', which are installed,'
        raise EncoderMismatchError(
            f'the weights of query encoder {name!r}{place} are not those that were recorded '
            f'({found["weights"]} instead of {identity["weights"]}): replace them by the right ones'
        )
    return encoder
