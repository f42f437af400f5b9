"""Adds other wordings of its captions to an existing dataset, from a file, without building its shards again."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from audiosep_jax.data.caption_variants import read_variants, variants_path
from audiosep_jax.data.layout import read_split_info, read_summary, split_names
from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import MAX_LIST_BYTES, read_json, write_json
from audiosep_jax.storage.tables import read_text, rows_of


@dataclasses.dataclass(frozen=True)
class AddedVariants:
    """The result of `add_variants`.

    Attributes:
        num_variants: different variants of all captions.
        num_captions: captions of the dataset that have variants.
        num_without: captions of the dataset that have none.
        unknown: captions of the file that the dataset does not have.
        replaced: whether the dataset had variants before.
    """

    num_variants: int
    num_captions: int
    num_without: int
    unknown: tuple[str, ...]
    replaced: bool


def add_variants(directory: str | os.PathLike, file: str | os.PathLike) -> AddedVariants:
    """Writes the variants of a file beside a dataset's shards, in place of those that it had.

    Captions are compared without regard to case and spaces.

    Args:
        directory: directory of the dataset.
        file: see `read_file`.

    Raises:
        DataError: there is no dataset with a complete split, the file is damaged, or none of its captions occurs.
    """
    captions = sorted(_captions(directory))
    from_file = read_file(file)
    given: dict[str, list[str]] = {}
    for caption, variants in from_file.items():
        given.setdefault(_key(caption), []).extend(variants)
    known = {_key(caption) for caption in captions}
    found = {}
    for caption in captions:
        others = dict.fromkeys(v for v in given.get(_key(caption), ()) if _key(v) != _key(caption))
        if others:
            found[caption] = list(others)
    if not found:
        raise DataError(f'{file}: none of its captions is one of {directory}, such as {captions[0]!r}')
    replaced = bool(read_variants(directory))
    write_json(variants_path(directory), found)
    unknown = tuple(caption for caption in from_file if _key(caption) not in known)
    return AddedVariants(sum(map(len, found.values())), len(found), len(captions) - len(found), unknown, replaced)


def merge_variants(directories: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
    """Writes the variants of all the datasets beside the shards of the merged one; without any, writes nothing."""
    merged: dict[str, list[str]] = {}
    for directory in directories:
        for caption, variants in read_variants(directory).items():
            merged[caption] = list(dict.fromkeys([*merged.get(caption, ()), *variants]))
    if merged:
        write_json(variants_path(out), merged)


def read_file(file: str | os.PathLike) -> dict[str, list[str]]:
    """Returns the variants of each caption in a file.

    A `.json` file holds `{caption: [variant, …]}`. In a `.csv` or `.tsv` file, each row holds a caption and one or more
    variants; a first row that begins with `caption` is a header.

    Raises:
        DataError: the file is missing or damaged, has another ending, or a text in it is empty.
    """
    file = pathlib.Path(file)
    suffix = file.suffix.lower()
    if suffix == '.json':
        remedy = 'give {"caption": ["variant", …], …}'
        found: Mapping[str, list[str]] = read_json(file, dict[str, list[str]], remedy=remedy, max_bytes=MAX_LIST_BYTES)
        rows: Iterator[tuple[str, list[str]]] = iter(found.items())
    elif suffix in ('.csv', '.tsv'):
        rows = _table_rows(file, ',' if suffix == '.csv' else '\t')
    else:
        raise DataError(f'{file}: give a .json, .csv or .tsv file')
    variants: dict[str, list[str]] = {}
    for caption, texts in rows:
        texts = [' '.join(text.split()) for text in texts]
        if not caption.strip() or not all(texts):
            raise DataError(f'{file}: an empty caption or variant at {caption!r}: remove it')
        variants.setdefault(caption, []).extend(texts)
    if not any(variants.values()):
        raise DataError(f'{file}: holds no variants')
    return variants


def _table_rows(file: pathlib.Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    for number, (line, row) in enumerate(rows_of(file, read_text(file), delimiter=delimiter)):
        while row and not row[-1].strip():  # programs fill shorter rows up with empty fields
            row = row[:-1]
        if not row or (number == 0 and row[0].strip().casefold() == 'caption'):
            continue
        if len(row) < 2:
            raise DataError(f'{file}: line {line}: {row[0]!r} has no variant: give caption{delimiter}variant')
        yield row[0], row[1:]


def _captions(directory: str | os.PathLike) -> set[str]:
    """Returns all captions of a dataset's complete splits."""
    infos = [info for info in (read_split_info(directory, name) for name in split_names(directory)) if info.complete]
    if not infos:
        raise DataError(f'{directory}: no dataset with a complete split here: run `python -m data_prep build` first')
    return {
        caption
        for info in infos
        for shard in range(len(info.shard_lengths))
        for clip in read_summary(directory, info, shard)['captions']
        for caption in clip
    }


def _key(caption: str) -> str:
    return ' '.join(caption.casefold().split())
