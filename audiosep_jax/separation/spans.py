"""Spans: the parts of a recording to separate. Outside of them the targets are silent and the residual is the mixture.

The command line calls them `--segments`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.models.layers import TIME_DOWNSAMPLING

# The command line parses spans before it loads JAX, which the separator imports.
if TYPE_CHECKING:
    from audiosep_jax.models.audiosep import ModelConfig
    from audiosep_jax.separation.queries import Embedded
    from audiosep_jax.separation.separator import Separation, Separator

_FADE = 0.01  # seconds inside a span's ends, against clicks
# The network hears this much around a span, which is as far as it looks; before it as much more as its level is from.
_CONTEXT_FRAMES = 350
_MIN_CONTEXT = 4.0  # seconds
_TIME = re.compile(r'(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)')


@dataclasses.dataclass(frozen=True, order=True)
class Span:
    """A part of a recording, from `start` to `stop` seconds."""

    start: float
    stop: float

    @classmethod
    def parse(cls, text: str) -> 'Span':
        """Reads `0:10-0:25`, `1:02:03.5-1:02:10`, `12.5-20` or `90-` (to the end).

        Raises:
            ConfigError: a text of another form, or a stop that is not after the start.
        """
        begin, dash, end = text.partition('-')
        start, stop = _seconds(begin), math.inf if dash and not end.strip() else _seconds(end)
        if not dash or start is None or stop is None:
            raise ConfigError(
                f'{text!r} is not a segment: write START-STOP, for example 0:10-0:25 or 1:02:03.5-1:02:10'
            )
        if start >= stop:
            raise ConfigError(f'the segment {text!r} ends before it begins')
        return cls(start, stop)

    def __str__(self) -> str:
        return f'{self.start:g}-{self.stop:g} s'


def _seconds(text: str) -> float | None:
    found = _TIME.fullmatch(text.strip())
    if not found:
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    if found.group(2) and seconds >= 60:
        return None
    return 3600 * hours + 60 * minutes + seconds


def stream_spans(
    separator: 'Separator',
    blocks: Iterable[np.ndarray],
    queries: 'Embedded',
    spans: Sequence[Span],
    *,
    sample_rate: int,
    per_channel: bool = False,
    live: bool = False,
) -> Iterator['Separation']:
    """Separates a recording within the spans only, where the result equals that for the whole recording.

    Args:
        separator: the model.
        blocks: see `Separator.stream`.
        queries: what `Separator.prepare` returned.
        spans: the parts to separate, in any order.
        sample_rate: of the blocks, Hz.
        per_channel: see `Separator.stream`.
        live: see `Separator.stream`.

    Raises:
        AudioFileError: see `Separator.stream`; also if the recording ends before a span begins.
    """
    recording = _Recording(blocks)
    lead = _level_seconds(separator.config) if separator.level == 'auto' else 0.0
    for start, stop, inside in _runs(spans, separator.config, sample_rate, lead):
        for block in recording.until(start):
            yield _silent(block, len(queries.queries))
        if recording.ended:
            raise _ends_before(inside[0])
        position = start
        for piece in separator.stream(
            recording.until(stop), queries, sample_rate=sample_rate, per_channel=per_channel, live=live
        ):
            envelope = _envelope(position, piece.residual.shape[-1], inside, sample_rate)
            position += piece.residual.shape[-1]
            targets = piece.targets * envelope
            yield dataclasses.replace(piece, targets=targets, residual=piece.mixture - targets.sum(0))
        for span in inside:
            if position <= span.start * sample_rate:
                raise _ends_before(span)
    for block in recording.until(math.inf):
        yield _silent(block, len(queries.queries))


class _Recording:
    """Blocks of a recording, cut where parts of the recording end.

    Attributes:
        ended: whether the part read last reached the end of the recording.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self._position = iter(blocks), 0
        self._rest: np.ndarray | None = None
        self.ended = False

    def until(self, stop: float) -> Iterator[np.ndarray]:
        """Yields the blocks up to sample `stop`."""
        while self._position < stop and (current := self._peek()) is not None:
            count = int(min(stop - self._position, current.shape[-1]))
            block, rest = current[..., :count], current[..., count:]
            self._position += count
            self._rest = rest if rest.shape[-1] else None
            yield block
        self.ended = self._peek() is None

    def _peek(self) -> np.ndarray | None:
        """Returns the next block without taking it, or None at the end."""
        if self._rest is None:
            self._rest = next(self._blocks, None)
        return self._rest


def _level_seconds(config: 'ModelConfig') -> float:
    from audiosep_jax.separation.level import level_frames

    return level_frames(config) * config.hop_size / config.sample_rate


def _runs(
    spans: Sequence[Span], config: 'ModelConfig', rate: int, lead: float
) -> Iterator[tuple[int, float, list[Span]]]:
    """Yields the parts of the recording that go through the network: first sample, end, and the spans in the part.

    A part begins where a piece of the whole recording could begin and where both sample rates have a sample.
    """
    common = math.gcd(rate, config.sample_rate)
    piece = TIME_DOWNSAMPLING * config.hop_size
    step = rate // common * (piece // math.gcd(piece, config.sample_rate // common))
    context = max(_MIN_CONTEXT, _CONTEXT_FRAMES * config.hop_size / config.sample_rate)
    start, stop = 0, -math.inf
    inside: list[Span] = []
    for span in sorted(spans):
        begin = max(0, math.floor((span.start - context - lead) * rate / step)) * step
        if inside and begin > stop:
            yield start, stop, inside
            inside = []
        if not inside:
            start, stop = begin, -math.inf
        end = math.inf if math.isinf(span.stop) else math.ceil((span.stop + context) * rate)
        stop = max(stop, end)
        inside.append(span)
    if inside:
        yield start, stop, inside


def _envelope(position: int, count: int, spans: Sequence[Span], rate: int) -> np.ndarray:
    """Computes gains float32 [count] for the samples from `position` on: 1 inside the spans, which fade at the ends."""
    time = (position + np.arange(count) + 0.5) / rate
    gains = [
        np.minimum(
            # There is no fade at the beginning and the end of the recording.
            (time - span.start) / _FADE if span.start > 0 else np.ones(count),
            (span.stop - time) / _FADE,
        )
        for span in spans
    ]
    return np.clip(np.max(gains, axis=0), 0, 1).astype(np.float32)


def _silent(block: np.ndarray, queries: int) -> 'Separation':
    """Returns a block outside the spans."""
    from audiosep_jax.separation.separator import Separation

    block = np.atleast_2d(block)
    return Separation(np.zeros((queries, *block.shape), np.float32), block)


def _ends_before(span: Span) -> AudioFileError:
    return AudioFileError(f'the recording ends before the segment {span} begins')
