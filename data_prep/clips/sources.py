"""Sources of clips: files, clips in memory, and the long enough clips of another source."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from audiosep_jax.errors import ConfigError, LeftOut, LeftOutError
from data_prep.clips.base import Clip, ClipSource, Entry, check_unique
from data_prep.clips.media import read_frames, read_sound


class Files:
    """Clips that are files, or parts of files, in a folder.

    Args:
        entries: the clips.
        folder: the folder to which their paths are relative.
        kind: the name of the dataset, for the record's `source` and the build's fingerprint.
        left_out: the clips that the metadata lists but that are not among the entries.
        shortest: clips shorter than this, in seconds, are left out.
        frames: how many evenly spaced pictures to take of a clip's video; 0 for sound only.

    Raises:
        ConfigError: `frames` is negative.
        DataError: two entries have the same id.
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
        """Accepts any rate, since files are resampled."""

    def clip_id(self, index: int) -> str:
        return self.entries[index].id

    def read(self, index: int, sample_rate: int) -> Clip:
        """Returns a clip.

        Raises:
            AudioFileError: the file is unreadable.
            LeftOutError: the file is missing or too short.
        """
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
        # Without the folder, so that a build can be resumed after the corpus was moved. `dataclasses.astuple` would
        # take a quarter of a minute for two million entries, in each job of an array.
        values = [(e.id, e.path, e.captions, e.labels, e.start, e.seconds) for e in self.entries]
        text = json.dumps(values, ensure_ascii=False)
        settings = {'kind': self.kind, 'shortest': self.shortest, 'frames': self.frames}
        return settings | {'sha256': hashlib.sha256(text.encode()).hexdigest()}


class ClipsInMemory:
    """Clips that are already decoded, at the rate that the shards shall have.

    Raises:
        DataError: two clips have the same id.
    """

    def __init__(self, clips: Iterable[Any]):
        self._clips = list(clips)
        check_unique([clip.id for clip in self._clips])

    def __len__(self) -> int:
        return len(self._clips)

    def check(self, sample_rate: int) -> None:
        """Accepts any rate: the caller vouches for it."""

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

    Args:
        source: the other source.
        shortest: in seconds.

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
