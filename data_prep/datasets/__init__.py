"""Where clips come from: one file per dataset, each reads its own metadata and yields clips.

A dataset is a `ClipSource`: it knows its clips' ids at once and reads a clip's audio when asked, in whichever process.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from audiosep_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip, decoded. `data_prep.synthetic.Clip` will do as well: what it lacks has a default here."""

    id: str
    audio: np.ndarray  # float32 [T], mono, in [-1, 1]
    captions: Sequence[str]  # at least one
    labels: Sequence[str] = ()
    source: str = ''


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


class ClipsInMemory:
    """Clips that are decoded already, at the rate the shards are to have.

    Raises:
        DataError: no clip, or two with the same id.
    """

    def __init__(self, clips: Iterable[Any]):
        self._clips = list(clips)
        check_unique([clip.id for clip in self._clips])

    def __len__(self) -> int:
        return len(self._clips)

    def check(self, sample_rate: int) -> None:
        """Their rate is the caller's word."""

    def clip_id(self, index: int) -> str:
        return self._clips[index].id

    def read(self, index: int, sample_rate: int) -> Any:
        return self._clips[index]

    def part(self, start: int, stop: int) -> 'ClipsInMemory':
        return ClipsInMemory(self._clips[start:stop])

    def description(self) -> Any:
        digest = hashlib.sha256()
        for clip in self._clips:
            digest.update(repr((clip.id, tuple(clip.captions), tuple(clip.labels), clip.audio.shape)).encode())
            digest.update(np.ascontiguousarray(clip.audio, '<f4').tobytes())
        return {'kind': 'clips in memory', 'sha256': digest.hexdigest()}


def check_unique(ids: Sequence[str]) -> None:
    """Raises DataError for an id that occurs twice."""
    seen = set()
    for clip_id in ids:
        if clip_id in seen:
            raise DataError(f'two clips have the id {clip_id!r}: ids must differ')
        seen.add(clip_id)
