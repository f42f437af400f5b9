"""STFT frames of a signal that comes in blocks: padded at its ends as the whole is, given back sample for sample."""

from collections.abc import Callable

import numpy as np

from audiosep_jax.audio.stft import num_frames, reflect_pad

_NOT_KNOWN = 2**30  # frames; int32, and over a hundred days at the default hop

# (padded samples [..., S], first frame, how many frames the signal has) -> finished padded samples [..., N * hop]
Compute = Callable[[np.ndarray, int, int], np.ndarray]


class FrameStream:
    """Cuts a signal into pieces of N frames, has something computed of each, and puts the results together.

    Args:
        compute: of each piece; what it returns are samples from frame `start - late` on, as far as no later frame
            reaches them.
        shape: of the signal, but for its length.
        window_size: of the STFT, samples.
        hop_size: of the STFT, samples.
        frames: N.
        late: frames.
    """

    def __init__(
        self, compute: Compute, shape: tuple[int, ...], window_size: int, hop_size: int, frames: int, *, late: int = 0
    ):
        self._compute, self._window, self._hop, self._frames, self._late = compute, window_size, hop_size, frames, late
        self._waiting = np.zeros((*shape, 0), np.float32)  # padded samples that no frame has begun with
        self._recent = np.zeros((*shape, 0), np.float32)  # the last of the signal: reflected at its end
        self._taken = self._given = self._start = 0

    def push(self, samples: np.ndarray) -> list[np.ndarray]:
        """float32 [..., n] -> what is finished by now, one after the other."""
        half = self._window // 2
        began = self._taken > half
        self._taken += samples.shape[-1]
        self._recent = np.concatenate([self._recent, samples], axis=-1)
        if not began and self._taken <= half:
            return []
        if not began:
            self._waiting = np.concatenate([self._recent[..., half:0:-1], self._recent], axis=-1)
        else:
            self._waiting = np.concatenate([self._waiting, samples], axis=-1)
        self._recent = self._recent[..., -(half + 1) :]
        pieces = []
        while self._waiting.shape[-1] >= self._piece_samples():
            pieces.append(self._next(_NOT_KNOWN))
        return pieces

    def finish(self) -> list[np.ndarray]:
        """The rest: in all, as many samples as were pushed."""
        half, length = self._window // 2, self._taken
        if not length:
            return []
        if length <= half:
            self._waiting = reflect_pad(self._recent, self._window)
        else:
            self._waiting = np.concatenate([self._waiting, self._recent[..., -2 : -half - 2 : -1]], axis=-1)
        pieces = []
        while self._given < length:
            missing = max(self._piece_samples() - self._waiting.shape[-1], 0)
            self._waiting = np.pad(self._waiting, [(0, 0)] * (self._waiting.ndim - 1) + [(0, missing)])
            piece = self._next(num_frames(length, self._hop))
            pieces.append(piece[..., : piece.shape[-1] - max(self._given - length, 0)])
        return pieces

    def _piece_samples(self) -> int:
        return (self._frames - 1) * self._hop + self._window

    def _next(self, count: int) -> np.ndarray:
        piece = self._compute(self._waiting[..., : self._piece_samples()], self._start, count)
        self._waiting = self._waiting[..., self._frames * self._hop :]
        # In padded samples, of which half a window is before the beginning.
        begin = (self._start - self._late) * self._hop - self._window // 2
        self._start += self._frames
        piece = piece[..., max(-begin, 0) :]
        self._given += piece.shape[-1]
        return piece
