"""Changes sample rates with soxr, of whole arrays and of sounds that come in blocks."""

import math

import numpy as np
import soxr


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples float `[..., T]` to float32 `[..., T']` with T' = round(T * to_rate / from_rate).

    Uses soxr's HQ recipe, librosa's default, with which the original evaluation reads its files. Rates are in Hz.
    """
    audio = np.asarray(audio, np.float32)
    if from_rate == to_rate:
        return audio
    length = round(audio.shape[-1] * to_rate / from_rate)
    flat = audio.reshape(math.prod(audio.shape[:-1]), audio.shape[-1])  # -1 is undefined where T = 0
    out = np.zeros((len(flat), length), np.float32)
    if flat.size:
        frames = soxr.resample(np.ascontiguousarray(flat.T), from_rate, to_rate, quality='HQ').T
        kept = min(length, frames.shape[-1])  # soxr rounds T' differently, to one sample more or less
        out[:, :kept] = frames[:, :kept]
    return out.reshape(*audio.shape[:-1], length)


class Resampler:
    """Resamples in blocks as `resample` does as a whole; T samples become round(T * to_rate / from_rate).

    Args:
        from_rate: rate of the input in Hz.
        to_rate: rate of the output in Hz.
        channels: how many channels the blocks, float32 [channels, n], have.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int):
        self._ratio = to_rate / from_rate
        self._channels = channels
        self._num_in = self._num_out = 0
        self._soxr = (
            soxr.ResampleStream(from_rate, to_rate, channels, 'float32', 'HQ') if from_rate != to_rate else None
        )

    def push(self, block: np.ndarray) -> np.ndarray:
        """Takes float32 [channels, n] and returns the samples that are finished, float32 [channels, n']."""
        self._num_in += block.shape[-1]
        return self._counted(block if self._soxr is None else _resample_chunk(self._soxr, block, last=False))

    def finish(self, length: int | None = None) -> np.ndarray:
        """Returns the remaining samples, float32 [channels, n'].

        Args:
            length: how many samples there shall be in total, cut or filled with zeros; None: as many as the input has,
                times the ratio of the rates.
        """
        length = round(self._num_in * self._ratio) if length is None else length
        rest = np.zeros((self._channels, 0), np.float32)
        if self._soxr is not None and self._num_in:
            rest = _resample_chunk(self._soxr, rest, last=True)
        rest = rest[:, : max(length - self._num_out, 0)]
        rest = np.pad(rest, [(0, 0), (0, max(length - self._num_out - rest.shape[-1], 0))])
        return self._counted(rest)

    def _counted(self, out: np.ndarray) -> np.ndarray:
        self._num_out += out.shape[-1]
        return out


def _resample_chunk(stream: soxr.ResampleStream, block: np.ndarray, *, last: bool) -> np.ndarray:
    return stream.resample_chunk(np.ascontiguousarray(block.T), last=last).T
