"""Parts of a recording: how they are written, and that inside of them the result is that of the whole."""

import math

import numpy as np
import pytest
from support.noisy_separator import noisy_separator, sound

from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.separation.spans import Span, stream_spans


@pytest.mark.parametrize(
    ('text', 'start', 'stop'),
    [
        ('0:10-0:25', 10, 25),
        ('1:02:03.5-1:02:10', 3723.5, 3730),
        ('12.5-20', 12.5, 20),
        ('90-600', 90, 600),
        ('59:59-', 3599, math.inf),
    ],
)
def test_written(text, start, stop):
    assert Span.parse(text) == Span(start, stop)


@pytest.mark.parametrize(
    'text', ['', '-', '10', '-10', 'a-b', '10-5', '5-5', '0:60-1:10', '1:2:3:4-5', '1:70:00-2', 'nan-5']
)
def test_not_written_so(text):
    with pytest.raises(ConfigError):
        Span.parse(text)


@pytest.fixture(scope='module')
def separator():
    return noisy_separator()


@pytest.mark.parametrize('rate', [8000, 11025])
def test_inside_it_is_the_whole_and_outside_nothing(separator, rate):
    x = sound(2, 20 * rate)
    whole = separator.separate(x, 'rain', sample_rate=rate).targets
    spans = [Span(0, 0.5), Span(6.2, 7.5), Span(17, math.inf)]
    blocks = (x[:, start : start + 3000] for start in range(0, x.shape[1], 3000))
    pieces = list(stream_spans(separator, blocks, separator.prepare('rain'), spans, sample_rate=rate))
    targets = np.concatenate([piece.targets for piece in pieces], axis=-1)
    residual = np.concatenate([piece.residual for piece in pieces], axis=-1)
    assert targets.shape == whole.shape
    np.testing.assert_allclose(targets.sum(0) + residual, x, atol=1e-6)
    time = np.arange(x.shape[1]) / rate
    inside = np.any([(time >= s.start + 0.02 * (s.start > 0)) & (time < s.stop - 0.02) for s in spans], axis=0)
    outside = ~np.any([(time >= s.start) & (time < s.stop) for s in spans], axis=0)
    np.testing.assert_allclose(targets[..., inside], whole[..., inside], atol=2e-5)
    assert not targets[..., outside].any()


@pytest.mark.parametrize('span', [Span(3, 4), Span(30, 40)])
def test_past_the_end(separator, span):
    with pytest.raises(AudioFileError, match='ends before the segment'):
        list(stream_spans(separator, [sound(8000)], separator.prepare('rain'), [span], sample_rate=8000))
