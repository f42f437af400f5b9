"""Compares aggregates with the original's expressions, and intervals with theory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.evaluation.statistics import aggregate, bootstrap_interval, interval_notes, intervals

SCORES = st.lists(st.tuples(st.sampled_from('abcd'), st.floats(-50, 50)), min_size=1, max_size=30)


@settings(max_examples=50)
@given(SCORES)
def test_aggregates_are_the_originals(scores):
    """As in `evaluate_audiocaps.py`, `evaluate_music.py`, and `benchmark.py` for AudioSet.

    A class without items has no median, and `get_mean_sdr_from_dict` skips it.
    """
    labels, values = zip(*scores, strict=True)
    by_class = {c: [v for label, v in scores if label == c] for c in 'abcde'}
    medians = [np.median(chosen) if chosen else np.nan for chosen in by_class.values()]
    column = np.array(values)[:, None]
    assert aggregate(column, labels, 'mean') == pytest.approx(np.mean(values))
    means = [np.mean(chosen) for chosen in by_class.values() if chosen]
    assert aggregate(column, labels, 'mean of class means') == pytest.approx(np.mean(means))
    assert aggregate(column, labels, 'mean of class medians') == pytest.approx(np.nanmean(medians))


@settings(max_examples=25)
@given(SCORES, st.sampled_from(['mean', 'mean of class means', 'mean of class medians']))
def test_intervals_are_within_the_values_and_depend_only_on_the_seed(scores, statistic):
    labels, values = zip(*scores, strict=True)
    column, groups = np.array(values)[:, None], [''] * len(values)
    ends = intervals(column, labels, groups, statistic, seed=0)
    np.testing.assert_array_equal(ends, intervals(column, labels, groups, statistic, seed=0))
    assert min(values) - 1e-9 <= ends[0, 0] <= ends[1, 0] <= max(values) + 1e-9


def test_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(values, None, seed=0)
    # The normal approximation is the mean ± 1.96 standard errors.
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.03)
    assert high == pytest.approx(values.mean() + error, abs=0.03)
    assert (low, high) != bootstrap_interval(values, None, seed=1)
    assert bootstrap_interval(values, ['one'] * 400, seed=0) == pytest.approx((low, high))


def test_items_of_one_target_are_drawn_together():
    """80 clips with five captions each, whose scores differ only by clip, are 80 observations, not 400."""
    clips = np.random.default_rng(0).normal(0, 2, 80)
    values, groups = np.repeat(clips, 5)[:, None], [f'clip {i // 5}' for i in range(400)]
    low, high = intervals(values, groups, groups, 'mean', seed=0)[:, 0]
    assert high - low == pytest.approx(2 * 1.96 * clips.std() / np.sqrt(80), rel=0.1)
    for alone in ('', 'the only target'):
        low, high = intervals(values, groups, [alone] * 400, 'mean', seed=0)[:, 0]
        assert high - low == pytest.approx(2 * 1.96 * clips.std() / np.sqrt(400), rel=0.1)


def test_classes_are_fixed_and_not_drawn():
    """If only the classes differ, and not the items within a class, the statistic has no uncertainty."""
    values, labels = np.array([[0.0]] * 30 + [[10.0]] * 3), ['a'] * 30 + ['b'] * 3
    for statistic in ('mean of class means', 'mean of class medians'):
        assert intervals(values, labels, [''] * 33, statistic, seed=0).tolist() == [[5.0], [5.0]]
    low, high = intervals(values, labels, [''] * 33, 'mean', seed=0)[:, 0]
    assert low < 10 / 11 < high


def test_a_note_where_many_classes_have_one_item():
    labels = ['a', 'b', 'b', 'c', 'c']
    assert interval_notes(labels, 'mean') == []
    (note,) = interval_notes(labels, 'mean of class means')
    assert note.startswith('1 of 3 classes have one item')
    assert interval_notes([f'{n % 20}' for n in range(39)], 'mean of class medians') == []
    assert interval_notes(['a'] * 3, 'mean of class means') == []
