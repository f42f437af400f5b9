"""The clip, and the interface of a dataset from which shards are built."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from audiosep_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Clip:
    """One decoded clip. `data_prep.synthetic.Clip` can take its place: what that lacks has a default here."""

    id: str
    audio: np.ndarray  # float32 [T], mono, in [-1, 1]
    captions: Sequence[str]  # at least one
    labels: Sequence[str] = ()
    source: str = ''
    frames: Sequence[bytes] = ()  # JPEG pictures of its video


@dataclasses.dataclass(frozen=True, slots=True)  # there may be two million of them
class Entry:
    """One clip of a dataset that has not been read yet.

    Attributes:
        id: unique in the dataset.
        path: relative to the dataset's folder, with '/'; `archive.tar::member` for a member of an archive.
        captions: at least one.
        labels: class names.
        start: where it begins in the file, in seconds.
        seconds: its length; None: to the end of the file.
    """

    id: str
    path: str
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    start: float = 0.0
    seconds: float | None = None


class ClipSource(Protocol):
    """A dataset from which shards are built. A worker gets the `part` for its shard, so it must be cheap to pickle."""

    def __len__(self) -> int: ...

    def check(self, sample_rate: int) -> None:
        """Raises ConfigError if no clip can be read at this rate (Hz). It is called before anything is written."""
        ...

    def clip_id(self, index: int) -> str:
        """Returns the clip's id, which is unique in the dataset, without reading the clip."""
        ...

    def read(self, index: int, sample_rate: int) -> Any:
        """Returns a `Clip`, or what can take its place, with its audio at `sample_rate` Hz.

        Raises:
            AudioFileError, DataError: the clip has to be left out; the build reports it and goes on.
        """
        ...

    def part(self, start: int, stop: int) -> 'ClipSource':
        """Returns a source of clips `start` to `stop` - 1 only."""
        ...

    def description(self) -> Any:
        """Returns a JSON-ready value, equal for equal datasets only, by which a resumed build checks its inputs."""
        ...


def check_unique(ids: Sequence[str]) -> None:
    """Raises DataError if an id occurs twice."""
    seen: set[str] = set()
    for clip_id in ids:
        if clip_id in seen:
            raise DataError(f'two clips have the id {clip_id!r}: ids must differ')
        seen.add(clip_id)
