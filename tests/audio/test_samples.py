"""Float samples as integers: rounding, full scale, and what is beyond it."""

import numpy as np
import pytest

from audiosep_jax.audio.samples import INT16_SCALE, quantize, to_int16


def test_sixteen_bit_audio_passes_unchanged():
    samples = np.arange(-32768, 32768, 7).astype(np.int16)
    np.testing.assert_array_equal(to_int16(samples / np.float32(INT16_SCALE)), samples)


def test_overshoot_attenuates_the_whole_clip():
    waveform = np.sin(np.arange(1000) / 10) * 1.7
    samples = to_int16(waveform)
    np.testing.assert_allclose(samples / INT16_SCALE, waveform / np.abs(waveform).max(), atol=1 / INT16_SCALE)
    assert to_int16(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize('bits', [16, 24, 32])
def test_full_scale_never_wraps(bits):
    """float32 has no 2**31 - 1: without care, a sample at full scale would become its negative."""
    block = np.array([[1.0, -1.0, 0.5, -0.25, 0.0]], np.float32)
    left_aligned = quantize(block, f'PCM_{bits}')
    assert left_aligned.dtype == np.int32
    full = 2 ** (bits - 1)
    np.testing.assert_array_equal(left_aligned >> (32 - bits), [[full - 1, -full, full // 2, -full // 4, 0]])


def test_other_subtypes_keep_their_floats():
    block = np.array([[1.5, -0.1]], np.float32)
    for subtype in ('FLOAT', 'VORBIS', 'MPEG_LAYER_III'):
        assert quantize(block, subtype) is block
