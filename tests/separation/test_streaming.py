"""A recording in blocks gives what the whole recording gives, for every rate, length and number of channels."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.noisy_separator import noisy_separator, sound

from audiosep_jax.audio.resampling import Resampler, resample
from audiosep_jax.errors import AudioFileError, QueryError
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.separator import Separator

QUERIES = ['a dog barking', Query.text('rain').without('a man speaking')]


@pytest.fixture(scope='module')
def separator() -> Separator:
    return noisy_separator()


def joined(pieces):
    pieces = list(pieces)
    return tuple(np.concatenate([getattr(p, name) for p in pieces], axis=-1) for name in ('targets', 'residual'))


def cut(x, sizes):
    """Cuts x into blocks whose sizes repeat."""
    start, i = 0, 0
    while start < x.shape[-1]:
        yield x[..., start : start + sizes[i % len(sizes)]]
        start += sizes[i % len(sizes)]
        i += 1


@settings(max_examples=20)
@given(
    length=st.integers(1, 8_000),
    sizes=st.lists(st.integers(50, 5_000), min_size=1, max_size=4),
    rate=st.sampled_from([8000, 11025, 44100]),
    channels=st.sampled_from([1, 2]),
)
def test_any_blocks_give_the_whole(separator, length, sizes, rate, channels):
    x = sound(channels, length) if length > 8 else np.full((channels, length), 0.1, np.float32)
    expected = separator.separate(x, QUERIES, sample_rate=rate)
    targets, residual = joined(separator.stream(cut(x, sizes), QUERIES, sample_rate=rate))
    assert targets.shape == (2, channels, length)
    # The last samples may be large, because little of a window reaches them: hence a relative tolerance as well.
    np.testing.assert_allclose(targets, expected.targets, atol=1e-5, rtol=2e-6)
    np.testing.assert_array_equal(residual, x - targets.sum(0))


def test_per_channel(separator):
    x = sound(2, 30_000)
    expected = separator.separate(x, 'rain', sample_rate=8000, per_channel=True).targets
    targets, _ = joined(separator.stream(cut(x, [5000]), 'rain', sample_rate=8000, per_channel=True))
    np.testing.assert_allclose(targets, expected, atol=1e-5)


@pytest.mark.parametrize('seconds', [3, 11])
def test_not_live_it_is_the_same(separator, seconds):
    x = sound(seconds * 8000)
    expected = separator.separate(x, 'rain', sample_rate=8000).targets
    pieces = list(separator.stream(cut(x, [4096]), 'rain', sample_rate=8000, live=False))
    np.testing.assert_allclose(joined(pieces)[0], expected, atol=1e-5)
    assert (len(pieces) == 1) == (seconds == 3)  # a short recording is one piece


def test_it_is_never_later_than_the_latency(separator):
    x, given, taken, most = sound(60_000), 0, 0, 0.0

    def blocks():
        nonlocal taken
        for block in cut(x, [100]):
            taken += block.shape[-1]
            yield block

    for piece in separator.stream(blocks(), 'rain', sample_rate=8000):
        if taken < x.shape[-1]:  # at the end, everything left comes out together
            most = max(most, (taken - given) / 8000)
        given += piece.residual.shape[-1]
    assert most <= separator.latency + 100 / 8000
    assert most > separator.latency - 0.3  # the bound is tight to a block and a piece


@pytest.mark.parametrize(
    ('blocks', 'says'),
    [
        ([], 'no blocks'),
        ([np.zeros((2, 10), np.float32), np.zeros((1, 10), np.float32)], '1 channels follows blocks of 2'),
        ([np.zeros(10, np.int16)], 'must be float'),
        ([np.zeros(10, np.float32), np.full(10, np.nan, np.float32)], 'NaN'),
    ],
)
def test_invalid_blocks_are_refused(separator, blocks, says):
    with pytest.raises(AudioFileError, match=says):
        list(separator.stream(blocks, 'rain', sample_rate=8000))


def test_a_bad_query_is_refused_before_the_first_block(separator):
    with pytest.raises(QueryError):
        separator.stream(iter(()), '', sample_rate=8000)


@given(
    st.integers(0, 3000),
    st.sampled_from([(44100, 32000), (8000, 48000), (11025, 8000), (16000, 16000)]),
    st.integers(1, 999),
)
def test_resampling_in_blocks_is_resampling(length, rates, size):
    x = sound(2, length) if length > 8 else np.full((2, length), 0.1, np.float32)
    resampler = Resampler(*rates, channels=2)
    pieces = [resampler.push(block) for block in cut(x, [size])]
    actual = np.concatenate([*pieces, resampler.finish()], axis=-1)
    np.testing.assert_allclose(actual, resample(x, *rates), atol=1e-5)


def test_threads_share_a_separator(separator):
    sounds = [sound(9000 + 100 * i, seed=i) for i in range(6)]
    queries = ['rain', 'a dog', 'a siren'] * 2
    expected = [separator.separate(x, q, sample_rate=8000).targets for x, q in zip(sounds, queries, strict=True)]
    found = [None] * len(sounds)

    def work(i):
        streamed = joined(separator.stream(cut(sounds[i], [1000]), queries[i], sample_rate=8000))[0]
        found[i] = separator.separate(sounds[i], queries[i], sample_rate=8000).targets, streamed

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, (whole, streamed) in zip(expected, found, strict=True):
        np.testing.assert_allclose(whole, own, atol=1e-6)
        np.testing.assert_allclose(streamed, own, atol=1e-5)
