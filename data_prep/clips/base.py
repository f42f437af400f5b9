"""What a clip is, and what a dataset is to a build."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from audiosep_jax.errors import DataError

Reason = Literal['missing', 'unreadable', 'too short', 'excluded']


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip, decoded. `data_prep.synthetic.Clip` will do as well: what it lacks has a default here."""

    id: str
    audio: np.ndarray  # float32 [T], mono, in [-1, 1]
    captions: Sequence[str]  # at least one
    labels: Sequence[str] = ()
    source: str = ''
    frames: Sequence[bytes] = ()  # JPEG, of its video


class LeftOutError(DataError):
    """A clip to leave out, for one of the four reasons. Any other AudioSepError of `read` counts as unreadable."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A clip that is not in the shards: `message` is one line that says why. Both texts are made printable."""

    id: str
    reason: Reason
    message: str

    def __post_init__(self):
        # Names of files that are not UTF-8 have no place in JSON and CSV files.
        for name in ('id', 'message'):
            if not getattr(self, name).isascii():
                object.__setattr__(self, name, printable(getattr(self, name)))


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


def printable(text: str) -> str:
    """The text; where it is the name of a file that is not UTF-8, with the bytes that are not spelled out."""
    return text if text.isascii() else text.encode('utf-8', 'backslashreplace').decode('utf-8')


def check_unique(ids: Sequence[str]) -> None:
    """Raises DataError for an id that occurs twice."""
    seen = set()
    for clip_id in ids:
        if clip_id in seen:
            raise DataError(f'two clips have the id {clip_id!r}: ids must differ')
        seen.add(clip_id)
