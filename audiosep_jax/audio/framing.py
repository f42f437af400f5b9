"""Cuts a signal that comes in blocks into STFT frames, padded at its ends as if it were transformed as a whole."""

from collections.abc import Callable

import numpy as np

from audiosep_jax.audio.stft import num_frames, reflect_pad

_UNKNOWN = 2**30  # frames; fits int32, and is over a hundred days at the default hop

# (padded samples [..., S], first frame, how many frames the signal has) -> finished padded samples [..., N * hop]
Compute = Callable[[np.ndarray, int, int], np.ndarray]


class FrameStream:
    """Cuts a signal into pieces of N frames, applies `compute` to each, and returns the resulting samples in order.

    Args:
        compute: called for each piece. It returns samples from frame `first - late` on, as far as no later frame
            overlaps them.
        shape: the shape of the signal without its last axis, time.
        window_size: of the STFT, in samples.
        hop_size: of the STFT, in samples.
        frames: N, the number of frames in a piece.
        late: by how many frames the output of `compute` lags behind its input.
    """

    def __init__(
        self, compute: Compute, shape: tuple[int, ...], window_size: int, hop_size: int, frames: int, *, late: int = 0
    ):
        self._compute, self._window, self._hop, self._frames, self._late = compute, window_size, hop_size, frames, late
        self._waiting = np.zeros((*shape, 0), np.float32)  # padded samples from the next frame's first one on
        self._recent = np.zeros((*shape, 0), np.float32)  # the signal's last samples, which are reflected at its end
        self._num_in = self._num_out = self._next_frame = 0

    def push(self, samples: np.ndarray) -> list[np.ndarray]:
        """Takes float32 [..., n] and returns the pieces that are finished, in order."""
        half = self._window // 2
        started = self._num_in > half
        self._num_in += samples.shape[-1]
        self._recent = np.concatenate([self._recent, samples], axis=-1)
        if not started and self._num_in <= half:
            return []
        if not started:
            self._waiting = np.concatenate([self._recent[..., half:0:-1], self._recent], axis=-1)
        else:
            self._waiting = np.concatenate([self._waiting, samples], axis=-1)
        self._recent = self._recent[..., -(half + 1) :]
        pieces = []
        while self._waiting.shape[-1] >= self._piece_samples():
            pieces.append(self._compute_piece(_UNKNOWN))
        return pieces

    def finish(self) -> list[np.ndarray]:
        """Returns the remaining pieces; in total there are as many samples as were pushed."""
        half, length = self._window // 2, self._num_in
        if not length:
            return []
        if length <= half:
            self._waiting = reflect_pad(self._recent, self._window)
        else:
            self._waiting = np.concatenate([self._waiting, self._recent[..., -2 : -half - 2 : -1]], axis=-1)
        pieces = []
        while self._num_out < length:
            missing = max(self._piece_samples() - self._waiting.shape[-1], 0)
            self._waiting = np.pad(self._waiting, [(0, 0)] * (self._waiting.ndim - 1) + [(0, missing)])
            piece = self._compute_piece(num_frames(length, self._hop))
            pieces.append(piece[..., : piece.shape[-1] - max(self._num_out - length, 0)])
        return pieces

    def _piece_samples(self) -> int:
        return (self._frames - 1) * self._hop + self._window

    def _compute_piece(self, frame_count: int) -> np.ndarray:
        piece = self._compute(self._waiting[..., : self._piece_samples()], self._next_frame, frame_count)
        self._waiting = self._waiting[..., self._frames * self._hop :]
        # In samples of the signal, before whose first one there is half a window of padding.
        begin = (self._next_frame - self._late) * self._hop - self._window // 2
        self._next_frame += self._frames
        piece = piece[..., max(-begin, 0) :]
        self._num_out += piece.shape[-1]
        return piece
