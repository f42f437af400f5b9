"""The query encoders by name."""

import difflib
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.errors import ConfigError, EncoderMismatchError

# name -> (module, class): imported on first use, so that one encoder does not cost the imports of another.
_ENCODERS = {
    'words': ('audiosep_jax.encoders.words', 'WordsEncoder'),
    'clap': ('audiosep_jax.encoders.clap.encoder', 'ClapEncoder'),
    'clip': ('audiosep_jax.encoders.clip.encoder', 'ClipEncoder'),
}
_PRETRAINED = ('clap', 'clip')


def encoder_names() -> tuple[str, ...]:
    """The names that `load_encoder` knows."""
    return tuple(_ENCODERS)


def load_encoder(
    reference: str | os.PathLike | dict[str, Any], *, folders: Iterable[str | os.PathLike] = ()
) -> QueryEncoder:
    """The encoder of a name, of a path or hub repository with its weights, or of a recorded identity.

    Args:
        reference: `words`, `clap`, `clip`; a folder or file of CLAP or CLIP weights; `organisation/name` of the hub; or
            the identity that a cache or checkpoint recorded.
        folders: where to look first for the weights of an identity; those that do not exist are passed over.

    Raises:
        ConfigError: an unknown name (the nearest is named).
        CheckpointError: weights that are missing, damaged or of another kind.
        DownloadError: weights that are only in the hub, which cannot be reached.
        EncoderMismatchError: an identity that the installed version or the weights found cannot reproduce.
    """
    if isinstance(reference, dict):
        return _of_identity(dict(reference), [Path(folder) for folder in folders])
    name = str(reference)
    if name in _PRETRAINED:
        return _open(name, name)
    if name in _ENCODERS:
        return encoder_class(name)()
    if os.path.exists(name) or '/' in name:
        return _open(name)
    raise _unknown(name)


def encoder_class(name: str) -> type:
    """The class behind one of `encoder_names()`, imported now."""
    module, cls = _ENCODERS[name]
    return getattr(importlib.import_module(module), cls)


def _unknown(name: Any) -> ConfigError:
    near = difflib.get_close_matches(str(name), _ENCODERS, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(_ENCODERS)}, or a path of CLAP or CLIP weights'
    return ConfigError(f'unknown query encoder {name!r}: {hint}')


def _open(reference: str | Path, name: str | None = None, **settings: Any) -> QueryEncoder:
    """A pretrained encoder from a path or repository; `name` where it is known what it must be."""
    from audiosep_jax.encoders.pretrained import kind_of, locate

    path, source = locate(str(reference)), str(reference)
    if os.path.exists(source):  # a relative path would mean something else elsewhere
        source = os.path.abspath(source)
    return encoder_class(name or kind_of(path)).open(path, source=source, **settings)


def _of_identity(identity: dict[str, Any], folders: list[Path]) -> QueryEncoder:
    name = identity.get('name')
    if name not in _ENCODERS:
        raise _unknown(name)
    settings = {
        k: v for k, v in identity.items() if k not in ('name', 'version', 'embedding_size', 'weights', 'source')
    }
    try:
        if name in _PRETRAINED:
            stored = [folder for folder in folders if folder.exists()]
            source = identity.get('source') or name
            encoder = _open(stored[0] if stored else source, name, **settings)
        else:
            sizes = {k: v for k, v in identity.items() if k == 'embedding_size'}
            encoder = encoder_class(name)(**sizes, **settings)
    except TypeError as error:
        raise EncoderMismatchError(
            f'query encoder {identity} has settings that the installed {name!r} does not know: use the version of '
            'audiosep_jax that wrote it'
        ) from error
    found = encoder.identity()
    if identity.get('version', found['version']) != found['version']:
        raise EncoderMismatchError(
            f'query encoder {name!r} version {identity["version"]} was asked for, installed is version '
            f'{found["version"]}: use the version of audiosep_jax that wrote it, or embed and train again'
        )
    if identity.get('weights', found.get('weights')) != found.get('weights'):
        raise EncoderMismatchError(
            f'the weights of query encoder {name!r} in {found["source"]} are not those that were recorded '
            f'({found["weights"]} instead of {identity["weights"]}): put the right ones there'
        )
    return encoder
