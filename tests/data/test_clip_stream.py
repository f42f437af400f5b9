import pickle

import numpy as np
import pytest

from audiosep_jax.data import clip_stream as module
from audiosep_jax.data.clip_stream import clip_stream, independent_seeds


def clips(stream, start: int, stop: int) -> list[int]:
    return [stream[position][2] for position in range(start, stop)]


@pytest.mark.parametrize('size', [1, 2, 7, 1000])
def test_every_epoch_has_every_clip_once(size):
    stream = clip_stream([size], [1.0], seed=5)
    epochs = [clips(stream, e * size, (e + 1) * size) for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 7 or len({tuple(epoch) for epoch in epochs}) == 3


def test_large_datasets_have_every_clip_once_as_well(monkeypatch):
    """Grain's own shuffle serves larger datasets."""
    monkeypatch.setattr(module, '_MAX_PERMUTATION', 50)
    stream = clip_stream([60], [1.0], seed=5)
    epochs = [clips(stream, e * 60, (e + 1) * 60) for e in range(3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_proportions_hold_over_every_window_in_random_order():
    stream = clip_stream([10, 2_000_000, 300], [1, 2, 5], seed=0)
    for start in (0, 3000, 10**9):
        datasets = [stream[start + p][1] for p in range(1000)]
        np.testing.assert_array_equal(np.bincount(datasets), [125, 250, 625])
        pairs = set(zip(datasets[::8], datasets[1::8], strict=True))  # in a fixed pattern of eight these were one
        assert len(pairs) == 9


def test_a_position_is_the_same_wherever_reading_starts():
    stream = clip_stream([100, 70_000], [1, 3], seed=3)
    whole = [stream[p] for p in range(990, 1010)]
    assert [position for position, _, _ in whole] == list(range(990, 1010))
    assert list(stream[995:1010:5]) == whole[5:20:5]
    assert pickle.loads(pickle.dumps(stream))[1003] == whole[13]


def test_what_a_position_means_does_not_change():
    """If it did, `_STREAM_VERSION` would have to change, because runs resume from a position."""
    assert clips(clip_stream([10], [1.0], seed=1), 0, 10) == [8, 7, 2, 1, 4, 6, 9, 3, 0, 5]
    stream = clip_stream([5, 100_000], [1, 1], seed=1)
    assert [stream[p][1:] for p in range(10**6, 10**6 + 4)] == [(0, 1), (0, 3), (1, 68460), (0, 2)]


def test_seeds_are_independent():
    assert len(set(independent_seeds(0, 4) + independent_seeds(1, 4))) == 8
    assert clips(clip_stream([100], [1.0], 0), 0, 100) != clips(clip_stream([100], [1.0], 1), 0, 100)
