"""What a clip is, and what a dataset is to a build."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from audiosep_jax.errors import DataError, LeftOut, LeftOutError, printable

# Readers of datasets import from here whatever they make or raise.
__all__ = ['Clip', 'ClipSource', 'Entry', 'LeftOut', 'LeftOutError', 'check_unique', 'printable']


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip, decoded. `data_prep.synthetic.Clip` will do as well: what it lacks has a default here."""

    id: str
    audio: np.ndarray  # float32 [T], mono, in [-1, 1]
    captions: Sequence[str]  # at least one
    labels: Sequence[str] = ()
    source: str = ''
    frames: Sequence[bytes] = ()  # JPEG, of its video


@dataclasses.dataclass(frozen=True, slots=True)  # there may be two million of them
class Entry:
    """One clip of a dataset, not read yet.

    Attributes:
        id: unique in the dataset.
        path: relative to the dataset's folder, with '/'; `archive.tar::member` for a member of an archive.
        captions: at least one.
        labels: class names.
        start: where in the file it begins, seconds.
        seconds: how long it is; None: to the end.
    """

    id: str
    path: str
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    start: float = 0.0
    seconds: float | None = None


class ClipSource(Protocol):
    """A dataset to build shards from. Cheap to pickle: a worker gets the `part` that its shard is made of."""

    def __len__(self) -> int: ...

    def check(self, sample_rate: int) -> None:
        """Raises ConfigError where no clip can be had at this rate (Hz); asked before anything is written."""
        ...

    def clip_id(self, index: int) -> str:
        """Unique in the dataset; known without reading the clip."""
        ...

    def read(self, index: int, sample_rate: int) -> Any:
        """The clip, its audio at `sample_rate` Hz. Raises AudioFileError or DataError for one to leave out: the build
        reports it and goes on."""
        ...

    def part(self, start: int, stop: int) -> 'ClipSource':
        """Clips start to stop - 1 alone."""
        ...

    def description(self) -> Any:
        """JSON-ready, equal for equal datasets: what tells a resumed build from one of other inputs."""
        ...


def check_unique(ids: Sequence[str]) -> None:
    """Raises DataError for an id that occurs twice."""
    seen = set()
    for clip_id in ids:
        if clip_id in seen:
            raise DataError(f'two clips have the id {clip_id!r}: ids must differ')
        seen.add(clip_id)
