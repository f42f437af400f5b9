"""Offers the procedural corpus of `data_prep.synthetic` as a dataset, which is rendered while the shards are built."""

import dataclasses
from typing import Annotated, Any

import tyro

from audiosep_jax.errors import ConfigError
from data_prep import synthetic
from data_prep.clips.base import ClipSource
from data_prep.options import BuildOptions


@dataclasses.dataclass(frozen=True)
class SyntheticClips:
    """Clips `first` to `first` + `num_clips` - 1 of the corpus `seed`, each `seconds` long.

    Raises:
        ConfigError: there is less than one clip, the seed is negative, or a class is unknown or none is given.
    """

    num_clips: int
    seed: int
    seconds: float
    classes: tuple[str, ...] = synthetic.CLASSES
    first: int = 0

    def __post_init__(self):
        if self.num_clips < 1 or self.seed < 0 or self.first < 0:
            raise ConfigError(f'synthetic: at least one clip and no negative seed, got {self.num_clips}, {self.seed}')
        unknown = [name for name in self.classes if name not in synthetic.CLASSES]
        if unknown or not self.classes:
            raise ConfigError(
                f'synthetic: unknown class {"".join(unknown[:1])!r}; known: {", ".join(synthetic.CLASSES)}'
            )

    def __len__(self) -> int:
        return self.num_clips

    def check(self, sample_rate: int) -> None:
        """Raises ConfigError if the rate or the length is too small to render the sounds."""
        self.read(0, sample_rate)

    def clip_id(self, index: int) -> str:
        n = self.first + index
        return f'{self.classes[n % len(self.classes)]}-{n:06d}'

    def read(self, index: int, sample_rate: int) -> synthetic.Clip:
        return synthetic.clip(
            self.first + index, self.seed, sample_rate=sample_rate, seconds=self.seconds, classes=self.classes
        )

    def part(self, start: int, stop: int) -> 'SyntheticClips':
        return dataclasses.replace(self, first=self.first + start, num_clips=stop - start)

    def description(self) -> Any:
        return {'kind': 'synthetic', **dataclasses.asdict(self), 'classes': list(self.classes)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSynthetic(BuildOptions):
    """Shards of procedural sounds with captions, which need no download."""

    num_clips: Annotated[int, tyro.conf.arg(name='clips')]
    """Number of clips."""
    seed: int = 0
    """Seed of the sounds: another seed gives other sounds of the same classes."""
    seconds: float = 5.0
    """Length of a clip in seconds."""

    def clips(self) -> ClipSource:
        return SyntheticClips(self.num_clips, self.seed, self.seconds)
