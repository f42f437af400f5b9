"""Clips of a list of files, in memory, and of another source."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from audiosep_jax.errors import ConfigError
from data_prep.clips.base import Clip, ClipSource, Entry, LeftOut, LeftOutError, check_unique


class Files:
    """The clips of a list of entries under `folder`.

    Args:
        kind: name of the dataset, for the record's `source` and the build's fingerprint.
        left_out: what the metadata lists and is not among the entries.
        shortest: clips of less than so many seconds are left out.
        frames: pictures to take of a clip's video, evenly spaced; 0 for sound alone.

    Raises:
        ConfigError: fewer than no pictures.
        DataError: no entry at all, or two with the same id.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        folder: str | os.PathLike,
        *,
        kind: str,
        left_out: Sequence[LeftOut] = (),
        shortest: float = 0.0,
        frames: int = 0,
    ):
        if frames < 0:
            raise ConfigError(f'--frames {frames}: must be a number of pictures, 0 for none')
        self.entries, self.folder, self.kind = list(entries), pathlib.Path(folder), kind
        self.left_out = list(left_out)
        self.shortest, self.frames = shortest, frames
        check_unique([entry.id for entry in self.entries])

    def __len__(self) -> int:
        return len(self.entries)

    def check(self, sample_rate: int) -> None:
        """Files are resampled to any rate. Raises ConfigError where PyAV is needed and not installed."""
        from data_prep.clips.media import check_pyav

        check_pyav((entry.path for entry in self.entries), self.frames)

    def clip_id(self, index: int) -> str:
        return self.entries[index].id

    def read(self, index: int, sample_rate: int) -> 'Clip':
        """Raises AudioFileError for a bad file, LeftOutError for a missing or short one."""
        from data_prep.clips.media import read_frames, read_sound

        entry = self.entries[index]
        path = self.folder / entry.path
        audio = read_sound(path, sample_rate=sample_rate, start=entry.start, seconds=entry.seconds)
        if len(audio) < self.shortest * sample_rate:
            raise LeftOutError('too short', f'{path}: {len(audio) / sample_rate:.2f} s')
        frames = read_frames(path, self.frames, start=entry.start, seconds=entry.seconds) if self.frames else ()
        return Clip(entry.id, audio, entry.captions, entry.labels, f'{self.kind}:{entry.path}', frames)

    def part(self, start: int, stop: int) -> 'Files':
        return Files(self.entries[start:stop], self.folder, kind=self.kind, shortest=self.shortest, frames=self.frames)

    def description(self) -> Any:
        # Not the folder: a corpus may be moved, and the rest of the build goes on.
        # Of two million entries, `dataclasses.astuple` alone would take a quarter of a minute, in each job of an array.
        values = [(e.id, e.path, e.captions, e.labels, e.start, e.seconds) for e in self.entries]
        text = json.dumps(values, ensure_ascii=False)
        settings = {'kind': self.kind, 'shortest': self.shortest, 'frames': self.frames}
        return settings | {'sha256': hashlib.sha256(text.encode()).hexdigest()}


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


class LongEnough:
    """The clips of another source that last at least `shortest` seconds; the others are left out as too short.

    Raises:
        ConfigError: `shortest` is negative or not finite.
    """

    def __init__(self, source: ClipSource, shortest: float):
        if not (math.isfinite(shortest) and shortest >= 0):
            raise ConfigError(f'--shortest {shortest}: must be a number of seconds, 0 or more')
        self._source, self._shortest = source, shortest

    def __len__(self) -> int:
        return len(self._source)

    def check(self, sample_rate: int) -> None:
        self._source.check(sample_rate)

    def clip_id(self, index: int) -> str:
        return self._source.clip_id(index)

    def read(self, index: int, sample_rate: int) -> Any:
        clip = self._source.read(index, sample_rate)
        if len(clip.audio) < self._shortest * sample_rate:
            raise LeftOutError('too short', f'{clip.id}: {len(clip.audio) / sample_rate:.2f} s')
        return clip

    def part(self, start: int, stop: int) -> 'LongEnough':
        return LongEnough(self._source.part(start, stop), self._shortest)

    def description(self) -> Any:
        return {'shortest': self._shortest, 'of': self._source.description()}
