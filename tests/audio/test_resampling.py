"""Resampling: the exact length, a tone, and that blocks give what the whole gives."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_media import sine

from audiosep_jax.audio.resampling import Resampler, resample


@settings(max_examples=60)
@given(
    st.integers(0, 300),
    st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000]),
    st.sampled_from([8000, 32000, 44100, 96000]),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
)
def test_resampled_length_is_exact(length, from_rate, to_rate, lead):
    out = resample(np.ones((*lead, length), np.float32), from_rate, to_rate)
    assert out.shape == (*lead, round(length * to_rate / from_rate))
    assert out.dtype == np.float32


def test_resampling_keeps_a_tone():
    out = resample(sine(rate=44100, seconds=0.5), 44100, 32000)
    expected = sine(rate=32000, seconds=0.5)
    assert np.abs(out - expected)[:, 500:-500].max() < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3000),
    st.sampled_from([(44100, 32000), (8000, 48000), (11025, 8000), (16000, 16000)]),
    st.integers(1, 999),
    st.sampled_from([None, 0, 700, 5000]),
)
def test_blocks_give_what_the_whole_gives(length, rates, size, wanted):
    sound = np.random.default_rng(length).uniform(-0.5, 0.5, (2, length)).astype(np.float32)
    resampler = Resampler(*rates, channels=2)
    pieces = [resampler.push(sound[:, i : i + size]) for i in range(0, length, size)]
    pushed = sum(piece.shape[1] for piece in pieces)
    expected = resample(sound, *rates)
    actual = np.concatenate([*pieces, resampler.finish(wanted)], axis=-1)
    assert actual.shape[1] == (expected.shape[1] if wanted is None else max(wanted, pushed))
    kept = min(actual.shape[1], expected.shape[1])
    np.testing.assert_allclose(actual[:, :kept], expected[:, :kept], atol=1e-5)
    assert not actual[:, kept:].any() or actual.shape[1] == pushed
