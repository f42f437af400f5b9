"""Frames of a signal in blocks: the pieces are those of the padded whole, and no sample is lost or added."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio.framing import FrameStream
from audiosep_jax.audio.stft import num_frames, reflect_pad

WINDOW, HOP, FRAMES = 16, 4, 3


@settings(max_examples=80)
@given(st.integers(0, 120), st.integers(1, 40), st.integers(0, 2))
def test_pieces_are_those_of_the_whole(length, size, late):
    """`compute` returns its input, as late as it says, which must come back sample for sample."""
    signal = np.random.default_rng(length).uniform(-1, 1, (2, length)).astype(np.float32)
    padded = reflect_pad(signal, WINDOW) if length else signal
    counts = []

    def compute(piece, first, frame_count):
        begin, wanted = first * HOP, (FRAMES - 1) * HOP + WINDOW
        expected = padded[:, begin : begin + wanted]
        assert piece.shape == (2, wanted)
        np.testing.assert_array_equal(piece[:, : expected.shape[1]], expected)
        assert not piece[:, expected.shape[1] :].any()
        counts.append(frame_count)
        start = begin - late * HOP
        delayed = np.pad(padded, [(0, 0), (late * HOP, FRAMES * HOP + WINDOW)])
        return delayed[:, start + late * HOP : start + late * HOP + FRAMES * HOP]

    stream = FrameStream(compute, (2,), WINDOW, HOP, FRAMES, late=late)
    pieces = [piece for i in range(0, length, size) for piece in stream.push(signal[:, i : i + size])]
    pieces += stream.finish()
    np.testing.assert_array_equal(np.concatenate([signal[:, :0], *pieces], axis=-1), signal)
    if length:
        assert counts[-1] == num_frames(length, HOP)
