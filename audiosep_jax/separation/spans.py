"""Separating only some parts of a recording: outside of them the targets are silent and the mixture stays as it is."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.errors import AudioFileError, ConfigError

if TYPE_CHECKING:
    from audiosep_jax.separation.queries import Embedded
    from audiosep_jax.separation.separator import Separation, Separator

_FADE = 0.01  # seconds within a span's ends, against clicks
_CONTEXT = 4.0  # seconds around a span that the network hears: as far as it looks, 350 frames of the default model
_TIME = re.compile(r'(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)')


@dataclasses.dataclass(frozen=True, order=True)
class Span:
    """A part of a recording, from `start` to `stop` seconds."""

    start: float
    stop: float

    @classmethod
    def parse(cls, text: str) -> 'Span':
        """`0:10-0:25`, `1:02:03.5-1:02:10`, `12.5-20`, `90-` (to the end). Raises ConfigError for another text."""
        start, dash, stop = text.partition('-')
        times = _seconds(start), math.inf if dash and not stop.strip() else _seconds(stop)
        if not dash or None in times:
            raise ConfigError(f'{text!r} is no segment: write START-STOP, for example 0:10-0:25 or 1:02:03.5-1:02:10')
        if times[0] >= times[1]:
            raise ConfigError(f'the segment {text!r} ends before it begins')
        return cls(*times)

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
    """As `Separator.stream`, within the spans alone. There the result is that of the whole recording.

    Raises:
        AudioFileError: as `stream`; the recording ends before a span begins.
    """
    blocks = _Blocks(blocks)
    for start, stop, inside in _runs(spans, separator.config, sample_rate):
        for block in blocks.until(start):
            yield _silent(block, len(queries.queries))
        if blocks.ended:
            raise _ends_before(inside[0])
        position = start
        for piece in separator.stream(
            blocks.until(stop), queries, sample_rate=sample_rate, per_channel=per_channel, live=live
        ):
            envelope = _envelope(position, piece.residual.shape[-1], inside, sample_rate)
            mixture = piece.residual + piece.targets.sum(0)
            position += piece.residual.shape[-1]
            targets = piece.targets * envelope
            yield dataclasses.replace(piece, targets=targets, residual=mixture - targets.sum(0))
        for span in inside:
            if position <= span.start * sample_rate:
                raise _ends_before(span)
    for block in blocks.until(math.inf):
        yield _silent(block, len(queries.queries))


class _Blocks:
    """A recording's blocks, taken up to one place after the other."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self._rest, self._position = iter(blocks), None, 0
        self.ended = False

    def until(self, stop: float) -> Iterator[np.ndarray]:
        while self._position < stop and self._fill():
            count = int(min(stop - self._position, self._rest.shape[-1]))
            block, rest = self._rest[..., :count], self._rest[..., count:]
            self._position += count
            self._rest = rest if rest.shape[-1] else None
            yield block
        self.ended = not self._fill()

    def _fill(self) -> bool:
        if self._rest is None:
            self._rest = next(self._blocks, None)
        return self._rest is not None


def _runs(spans: Sequence[Span], config, rate: int) -> Iterator[tuple[int, float, list[Span]]]:
    """Parts of the recording that go through the network, first and last sample; and the spans inside of each.

    They begin where the pieces of the whole recording could begin, too, and where both sample rates have a sample.
    """
    from audiosep_jax.models.layers import TIME_DOWNSAMPLING

    common = math.gcd(rate, config.sample_rate)
    piece = TIME_DOWNSAMPLING * config.hop_size
    step = rate // common * (piece // math.gcd(piece, config.sample_rate // common))
    context = max(_CONTEXT, 350 * config.hop_size / config.sample_rate)
    start, stop, inside = 0, -math.inf, []
    for span in sorted(spans):
        begin = max(0, math.floor((span.start - context) * rate / step)) * step
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
    """float32 [count] for samples from `position` on: one inside of the spans, which fade at their ends."""
    time = (position + np.arange(count) + 0.5) / rate
    gains = [
        np.minimum(
            # A recording begins and ends without a fade.
            (time - span.start) / _FADE if span.start > 0 else np.ones(count),
            (span.stop - time) / _FADE,
        )
        for span in spans
    ]
    return np.clip(np.max(gains, axis=0), 0, 1).astype(np.float32)


def _silent(block: np.ndarray, queries: int) -> 'Separation':
    from audiosep_jax.separation.separator import Separation

    block = np.atleast_2d(block)
    return Separation(np.zeros((queries, *block.shape), np.float32), block)


def _ends_before(span: Span) -> AudioFileError:
    return AudioFileError(f'the recording ends before the segment {span} begins')
