"""Caption variants: other wordings of a dataset's captions, stored beside its shards.

    caption_variants.json   {caption: [variant, …]}, written by `python -m data_prep caption-variants`

Their embeddings are a cache like that of the captions (`embeddings.py`, modality `variants`): a clip has the variants
of all its captions, in their order. So new wordings need no new shards.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from audiosep_jax.storage.buckets import as_path
from audiosep_jax.storage.json_files import MAX_LIST_BYTES, read_json

FILE = 'caption_variants.json'


def variants_path(directory: str | os.PathLike) -> pathlib.Path:
    """Returns the path of the file with a dataset's caption variants, which need not exist."""
    return as_path(directory) / FILE


def read_variants(directory: str | os.PathLike) -> dict[str, list[str]]:
    """Returns the variants of each caption that has any; empty if the dataset has none.

    Raises:
        DataError: the file is damaged.
    """
    path = variants_path(directory)
    if not path.is_file():
        return {}
    remedy = 'not caption variants: run `python -m data_prep caption-variants` again'
    return read_json(path, dict[str, list[str]], remedy=remedy, max_bytes=MAX_LIST_BYTES)


def variants_digest(directory: str | os.PathLike) -> str:
    """Returns 16 hex digits that depend on the variants; '' if the dataset has none. Raises DataError as above."""
    variants = read_variants(directory)
    return hashlib.sha256(json.dumps(variants, sort_keys=True).encode()).hexdigest()[:16] if variants else ''


def variants_of(captions: Iterable[str], variants: Mapping[str, list[str]]) -> list[str]:
    """Returns the variants of a clip's captions, each once and without the captions themselves."""
    captions = list(captions)
    found = (variant for caption in captions for variant in variants.get(caption, ()))
    return [variant for variant in dict.fromkeys(found) if variant not in captions]
