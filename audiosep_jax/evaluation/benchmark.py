"""What a benchmark is: items (a mixture, a target, texts that ask for it), and how their scores become one number."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

# As the original aggregates: over all items; per class and then over the classes, with means or with medians.
Statistic = Literal['mean', 'mean of class means', 'mean of class medians']
QueryType = Literal['caption', 'label']
Reason = Literal['bad row', 'missing', 'unreadable', 'length', 'silent noise']


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    Attributes:
        name: unique in the benchmark; what reports call it.
        queries: the texts that ask for the target, by type.
        mixture: its file; None where `noise` is mixed to the target instead.
        target: its file; None: there is none, only reference-free scores are to be had.
        label: its class, or ''.
        group: items with the same target have it in common: a resample takes all of them or none.
        noise: what is added to the target to make the mixture, at `snr_db`.
        snr_db: the target's energy over the noise's in the mixture, dB.
    """

    name: str
    queries: Mapping[str, str]
    mixture: Path | None
    target: Path | None
    label: str = ''
    group: str = ''
    noise: Path | None = None
    snr_db: float | None = None

    @property
    def kind(self) -> str:
        """What a wrong query must differ in: the class, or the target where there are no classes."""
        return self.label or self.group or self.name


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An item that could not be scored, and why in one line."""

    name: str
    reason: Reason
    message: str


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of somebody's article: scores by metric, for the reader to compare."""

    name: str
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark on disk, read but for its audio.

    Attributes:
        name: as on the command line.
        title: as in a table.
        items: in the order of its table.
        bad: rows of the table that are no items.
        statistic: how scores of items become one.
        query_types: of its texts, the protocol's own first.
        sample_rate: Hz at which the protocol mixes and scores whatever the model's rate; None: at the model's.
        speech: score PESQ and its like, too.
        published: others' scores.
        notes: what a reader of the scores should know of this copy of the benchmark.
    """

    name: str
    title: str
    items: tuple[Item, ...]
    bad: tuple[LeftOut, ...] = ()
    statistic: Statistic = 'mean'
    query_types: tuple[str, ...] = ('caption',)
    sample_rate: int | None = None
    speech: bool = False
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
