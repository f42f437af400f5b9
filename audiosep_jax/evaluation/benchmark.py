"""Defines a benchmark: items (a mixture, a target, texts that describe it), and how their scores become one number."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from audiosep_jax.errors import LeftOut

# The original's ways to aggregate: over all items, or within each class and then over the classes.
Statistic = Literal['mean', 'mean of class means', 'mean of class medians']


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    Attributes:
        name: unique in the benchmark, and used in reports.
        queries: the texts that describe the target, by query type.
        mixture: the mixture's file; None if the mixture is made by adding `noise` to the target.
        target: the target's file; None if there is none, which leaves only the scores that need no reference.
        label: the class, or ''.
        group: equal for all items with the same target; a bootstrap resample takes all of them or none.
        noise: the file that is added to the target at `snr_db` to make the mixture.
        snr_db: ratio of the target's energy to the noise's in the mixture, in dB.
        other: the class of what the target is mixed with; '' if the table does not tell.
        unwanted: a text that describes what the target is mixed with, to exclude it; '' if there is none.
        seconds: the length to which target and noise are cut, or padded with zeros; None: theirs, which are equal.
    """

    name: str
    queries: Mapping[str, str]
    mixture: Path | None
    target: Path | None
    label: str = ''
    group: str = ''
    noise: Path | None = None
    snr_db: float | None = None
    other: str = ''
    unwanted: str = ''
    seconds: float | None = None

    @property
    def kind(self) -> str:
        """What a wrong query must differ in: the class, or the target if there are no classes."""
        return self.label or self.group or self.name


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of published scores by metric, shown for comparison."""

    name: str
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark on disk. Its tables have been read, its audio has not.

    Attributes:
        name: the name on the command line.
        title: the name in tables and reports; a neutral one for other data in the benchmark's layout.
        items: all items, in the order of the benchmark's table.
        bad_rows: rows of the table that do not describe an item.
        statistic: how the scores of items become one number.
        query_types: the types of text that the items have, the protocol's own first.
        sample_rate: rate in Hz at which the protocol mixes and scores; None: the model's rate.
        speech: whether to score PESQ and the other measures of speech as well.
        published: published scores; none for other data in the benchmark's layout.
        notes: what a reader of the scores should know about this copy of the benchmark.
    """

    name: str
    title: str
    items: tuple[Item, ...]
    bad_rows: tuple[LeftOut, ...] = ()
    statistic: Statistic = 'mean'
    query_types: tuple[str, ...] = ('caption',)
    sample_rate: int | None = None
    speech: bool = False
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
