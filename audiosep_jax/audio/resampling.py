"""Changing sample rates: of whole arrays and of sounds that come in blocks, both by soxr."""

import math

import numpy as np
import soxr


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples float `[..., T]` to float32 `[..., T']` with T' = round(T * to_rate / from_rate), soxr's HQ recipe.

    Rates are in Hz. The same recipe as librosa's default, with which the original evaluation reads its files.
    """
    audio = np.asarray(audio, np.float32)
    if from_rate == to_rate:
        return audio
    length = round(audio.shape[-1] * to_rate / from_rate)
    flat = audio.reshape(math.prod(audio.shape[:-1]), audio.shape[-1])  # -1 is undefined where T = 0
    out = np.zeros((len(flat), length), np.float32)
    if flat.size:
        frames = soxr.resample(np.ascontiguousarray(flat.T), from_rate, to_rate, quality='HQ').T
        kept = min(length, frames.shape[-1])  # soxr rounds T' its own way: one sample more or less
        out[:, :kept] = frames[:, :kept]
    return out.reshape(*audio.shape[:-1], length)


class Resampler:
    """From one rate to another as audio.resample does, in blocks; T samples become round(T * to_rate / from_rate).

    Args:
        from_rate: Hz.
        to_rate: Hz.
        channels: of the blocks, float32 [channels, n].
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int):
        self._ratio = to_rate / from_rate
        self._channels = channels
        self._taken = self._given = 0
        self._soxr = (
            soxr.ResampleStream(from_rate, to_rate, channels, 'float32', 'HQ') if from_rate != to_rate else None
        )

    def push(self, block: np.ndarray) -> np.ndarray:
        """What is finished by now."""
        self._taken += block.shape[-1]
        return self._count(self._through(block, last=False) if self._soxr else block)

    def finish(self, length: int | None = None) -> np.ndarray:
        """The rest; of what comes out in all, `length` samples, cut or filled with zeros."""
        length = round(self._taken * self._ratio) if length is None else length
        rest = np.zeros((self._channels, 0), np.float32)
        if self._soxr and self._taken:
            rest = self._through(rest, last=True)
        rest = rest[:, : max(length - self._given, 0)]
        rest = np.pad(rest, [(0, 0), (0, max(length - self._given - rest.shape[-1], 0))])
        return self._count(rest)

    def _through(self, block: np.ndarray, *, last: bool) -> np.ndarray:
        return self._soxr.resample_chunk(np.ascontiguousarray(block.T), last=last).T

    def _count(self, out: np.ndarray) -> np.ndarray:
        self._given += out.shape[-1]
        return out
