"""Co-occurrence tables: which labels are heard together, so that training mixes clips that may meet.

A `.json` file holds `{label: [label, …], …}`. In a `.csv` or `.tsv` file, each row holds a label and any number of
others; a first row that begins with `label` is a header. Pairs hold in both directions, so each may be written once. A
label without others meets none. Labels are compared without regard to case and spaces, as everywhere in training.

`python -m data_prep co-occurrence` counts such a table in datasets whose clips have several labels.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from audiosep_jax.data.layout import read_split_info, read_summary
from audiosep_jax.data.segments import label_number
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.json_files import MAX_LIST_BYTES, read_json, write_json
from audiosep_jax.storage.tables import read_text, rows_of

_MAX_LABELS = 46340  # the square of their number must fit into 31 bits
_SHOWN = 3


@dataclasses.dataclass(frozen=True, eq=False)
class CoOccurrence:
    """A table, in the numbers that stand for labels in batches (`segments.label_number`).

    Attributes:
        names: the labels, by their numbers.
        numbers: int32 [N], the numbers in ascending order.
        pairs: int32 [P], in ascending order: i * N + j for each pair of `numbers[i]` and `numbers[j]`, both ways round.
    """

    names: Mapping[int, str]
    numbers: Int32[np.ndarray, ' N']
    pairs: Int32[np.ndarray, ' P']

    @property
    def digest(self) -> str:
        """16 hex digits that depend on what the table says, and not on how it is written."""
        return hashlib.sha256(self.numbers.tobytes() + self.pairs.tobytes()).hexdigest()[:16]


@functools.lru_cache(maxsize=8)
def read_co_occurrence(file: str) -> CoOccurrence:
    """Returns the table of a file. A process reads a file once, because all that it computes must agree.

    Raises:
        DataError: the file is missing or damaged, has another ending, holds no pair or too many labels, or a label in
            it is empty.
    """
    names: dict[int, str] = {}
    found: set[tuple[int, int]] = set()
    for label, others in _rows(pathlib.Path(file)):
        texts = [' '.join(text.split()) for text in (label, *others)]
        if not all(texts):
            raise DataError(f'{file}: an empty label at {label!r}: remove it')
        numbers = [label_number(text) for text in texts]
        for number, text in zip(numbers, texts, strict=True):
            names.setdefault(number, text)
        found.update((a, b) for other in numbers[1:] for a, b in ((numbers[0], other), (other, numbers[0])))
    if not found:
        raise DataError(f'{file}: holds no pair of labels: give {{"label": ["label", …], …}}')
    if len(names) > _MAX_LABELS:
        raise DataError(f'{file}: holds {len(names)} labels, more than {_MAX_LABELS}: leave out the rare ones')
    known = np.array(sorted(names), np.int32)
    places = np.searchsorted(known, np.array(sorted(found), np.int32))
    return CoOccurrence(names, known, (places[:, 0] * len(known) + places[:, 1]).astype(np.int32))


def write_co_occurrence(file: str | os.PathLike, together: Mapping[str, Sequence[str]]) -> None:
    """Writes a table as JSON. Raises OSError if that fails."""
    write_json(pathlib.Path(file), {label: list(others) for label, others in together.items()}, indent=1)


def compare_labels(file: str, directories: Sequence[str | os.PathLike], split: str) -> str | None:
    """Returns a note about the labels that only a table or only the datasets know; None if there are none.

    The labels of a dataset without any are its captions, as in training. Some datasets were built by a version that did
    not count labels; these are passed over.

    Args:
        file: the table.
        directories: the datasets.
        split: their split.

    Raises:
        DataError: as `read_co_occurrence`, or a dataset cannot be read.
        ConfigError: no label of the datasets is in the table, so it would change nothing.
    """
    table = read_co_occurrence(file)
    labels = [_labels_of(directory, split) for directory in directories]
    known = {label_number(label): label for some in labels for label in some or ()}
    unknown = [label for number, label in known.items() if number not in table.names]
    counted = all(some is not None for some in labels)
    if counted and len(unknown) == len(known):
        raise ConfigError(
            f'{file}: none of its labels, such as {_examples(table.names.values())}, is one of the data, '
            f'such as {_examples(known.values())} (--mixing.together)'
        )
    unused = [label for number, label in table.names.items() if number not in known] if counted else []
    parts = [f'{len(unknown)} of {len(known)} labels of the data are not in it ({_examples(unknown)})'] * bool(unknown)
    parts += [f'{len(unused)} of its {len(table.names)} labels have no clip ({_examples(unused)})'] * bool(unused)
    return f'{file}: {"; ".join(parts)}; a clip without a label of the table may meet any' if parts else None


def _rows(file: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    suffix = file.suffix.lower()
    if suffix == '.json':
        remedy = 'give {"label": ["label", …], …}'
        yield from read_json(file, dict[str, list[str]], remedy=remedy, max_bytes=MAX_LIST_BYTES).items()
        return
    if suffix not in ('.csv', '.tsv'):
        raise DataError(f'{file}: give a .json, .csv or .tsv file')
    delimiter = ',' if suffix == '.csv' else '\t'
    for number, (_, row) in enumerate(rows_of(file, read_text(file), delimiter=delimiter)):
        while row and not row[-1].strip():  # programs fill shorter rows up with empty fields
            row = row[:-1]
        if row and not (number == 0 and row[0].strip().casefold() == 'label'):
            yield row[0], row[1:]


def _labels_of(directory: str | os.PathLike, split: str) -> set[str] | None:
    """Returns all labels of a dataset's split, or its captions if no clip has any; None if they were not counted."""
    info = read_split_info(directory, split)
    labels: set[str] = set()
    captions: set[str] = set()
    for shard in range(len(info.shard_lengths)):
        summary = read_summary(directory, info, shard)
        if 'labels' not in summary:
            return None
        labels.update(summary['labels'])
        captions.update(caption for clip in summary['captions'] for caption in clip)
    return labels or captions


def _examples(labels: Iterable[str]) -> str:
    shown = sorted(labels)
    return ', '.join(map(repr, shown[:_SHOWN])) + ', …' * (len(shown) > _SHOWN)
