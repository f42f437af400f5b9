"""Which clips of a group are mixed: those that a table lets meet, in what order, and with how many others."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.data.co_occurrence import read_co_occurrence
from audiosep_jax.data.segments import label_number
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer, may_meet

COLLECTIVE = re.compile(r'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter')
# Dogs are heard in rain and among people, a theremin with nothing.
TOGETHER = {'dog': ['rain', 'speech'], 'rain': ['wind'], 'theremin': []}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('table') / 'together.json'
    path.write_text(json.dumps(TOGETHER))
    return str(path)


def labelled(*clips):
    """int32 [B, 3] of tuples of names."""
    return np.array([[*map(label_number, names), -1, -1, -1][:3] for names in clips], np.int32)


def clips(seed, batch_size=8, num_samples=64):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.uniform(-1, 1, (batch_size, num_samples))).astype(np.float32)


def partners_of(mixer, labels):
    """[B, g - 1]: the clips of the batch in the order in which clip n would be mixed with them."""
    count = len(labels)
    partner, group = mixer.partners(count, labels), mixer.group_size(count)
    places = jnp.arange(count).reshape(-1, group)
    return np.stack([np.asarray(partner(places, i)).reshape(-1) for i in range(1, group)], axis=1)


def meet(a, b):
    """Whether two clips may meet by `TOGETHER`, in Python."""
    pairs = {frozenset((label, other)) for label, others in TOGETHER.items() for other in others}
    known = {*TOGETHER, *(other for others in TOGETHER.values() for other in others)}
    some, others = known & set(a), known & set(b)
    return not some or not others or any(frozenset((x, y)) in pairs for x in some for y in others)


NAMES = ['dog', 'rain', 'speech', 'wind', 'theremin', 'whale']


def test_partners_are_the_next_clips_that_may_meet(file):
    mixer = SegmentMixer(mix_group=4, together=file)
    labels = labelled(
        ('dog',), ('theremin',), ('wind',), ('rain', 'whale'), ('whale',), ('dog',), ('Dog',), ('theremin',)
    )
    np.testing.assert_array_equal(
        partners_of(mixer, labels),
        [[3, 1, 2], [2, 3, 0], [3, 0, 1], [0, 2, 1], [5, 6, 7], [4, 6, 7], [4, 7, 5], [4, 5, 6]],
    )


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.sampled_from(NAMES), max_size=3, unique=True), min_size=5, max_size=5),
    st.booleans(),
)
def test_the_order_is_by_table_and_labels_and_then_by_distance(file, names, avoid):
    mixer = SegmentMixer(together=file, avoid_same_label=avoid)
    for n, found in enumerate(partners_of(mixer, labelled(*names))):

        def rank(k, n=n):
            shares = avoid and bool(set(names[n]) & set(names[k]))
            return shares, not meet(names[n], names[k]), (k - n) % 5

        assert found.tolist() == sorted((k for k in range(5) if k != n), key=rank)


@settings(max_examples=30)
@given(*(st.lists(st.sampled_from(NAMES), max_size=3, unique=True) for _ in range(2)))
def test_may_meet_is_what_the_table_says_both_ways_round(file, a, b):
    table, (one, other) = read_co_occurrence(file), jnp.asarray(labelled(a, b))
    assert bool(may_meet(table, one, other)) == bool(may_meet(table, other, one)) == meet(a, b)


def test_where_none_or_all_may_meet_the_usual_order_holds(file):
    key, waveforms = jax.random.key(2), clips(5)
    usual = SegmentMixer(3, mix_group=4)(key, waveforms)
    for names in [('theremin',)] * 8, [('whale',)] * 8, [()] * 8:
        mixed = SegmentMixer(3, mix_group=4, together=file)(key, waveforms, labelled(*names))
        for ours, theirs in zip(mixed, usual, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_table_leaves_the_draws_and_the_targets_alone(file):
    plain, mixer = SegmentMixer(3, mix_group=4), SegmentMixer(3, mix_group=4, together=file)
    key, waveforms = jax.random.key(1), clips(1)
    for a, b in zip(plain.draw(key, 8), mixer.draw(key, 8), strict=True):
        np.testing.assert_array_equal(a, b)
    labels = labelled(('dog',), ('theremin',), ('rain',), ('speech',), *[()] * 4)
    mixtures, targets = jax.jit(mixer)(key, waveforms, labels)
    # Clip 0 is mixed with 2 and 3, as if clip 1 were the last of its group.
    moved = np.concatenate([waveforms[[0, 2, 3, 1]], waveforms[4:]])
    for found, expected in zip((mixtures, targets), plain(key, moved), strict=True):
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-7)


def test_a_table_costs_no_communication_inside_a_device(file):
    mesh = Mesh(np.array(jax.devices()[:8]), ('data',))
    split, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    mixer = SegmentMixer(3, mix_group=4, together=file, avoid_same_label=True)
    mix = jax.jit(mixer, in_shardings=(whole, split, split), out_shardings=split)
    rng, key, waveforms = np.random.default_rng(0), jax.random.key(0), clips(3, batch_size=32)
    labels = labelled(*(rng.choice(NAMES, 2, replace=False) for _ in range(32)))
    assert not COLLECTIVE.search(mix.lower(key, waveforms, labels).compile().as_text())
    for ours, alone in zip(mix(key, waveforms, labels), mixer(key, waveforms, labels), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=0, atol=1e-6)


def test_absent_queries_know_the_partners_that_a_table_chooses(file):
    mixer = SegmentMixer(mix_group=4, together=file)
    labels = labelled(('dog',), ('theremin',), ('wind',), ('rain',))
    asked, silenced = AbsentQueries(share=1.0)(jax.random.key(0), 0, mixer, jnp.eye(4), jnp.ones((4, 3)), labels)
    # Clip 0 is mixed with 3, and 1 is absent; clip 1 with 2, and 3; clip 2 with 3, and 0; clip 3 with 0, and 2.
    np.testing.assert_array_equal(asked, np.eye(4)[[1, 3, 0, 2]])
    assert not np.any(silenced)


def test_labels_and_a_file_are_needed(file):
    with pytest.raises(ValueError, match=r'together needs labels of the shape \[8, L\], got none'):
        SegmentMixer(together=file)(jax.random.key(0), clips(0))
    # Only using the mixer reads its file: a checkpoint's record may name one of another machine.
    elsewhere = SegmentMixer(together='/nowhere/table.json')
    with pytest.raises(DataError, match='cannot be read'):
        elsewhere(jax.random.key(0), clips(0), labelled(*[()] * 8))
    assert from_dict(SegmentMixer, to_dict(elsewhere)) == elsewhere
    assert hash(SegmentMixer(together=file)) == hash(SegmentMixer(together=str(file)))
    assert [SegmentMixer(**s).needs_labels for s in ({}, {'together': file}, {'avoid_same_label': True})] == [0, 1, 1]


# ---- The number of sources ----


def test_two_to_five_sources():
    mixer = SegmentMixer(5, mix_group=8, min_mix_num=3)
    numbers, source_gains, _ = (np.asarray(d) for d in mixer.draw(jax.random.key(0), 2000))
    assert [round(np.mean(numbers == n), 1) for n in range(2, 7)] == [0, 0.3, 0.3, 0.3, 0]
    # The gains are those of any other least number.
    np.testing.assert_array_equal(source_gains, SegmentMixer(5, mix_group=8).draw(jax.random.key(0), 2000)[1])
    fixed = SegmentMixer(5, min_mix_num=5).draw(jax.random.key(0), 100)[0]
    assert set(fixed.tolist()) == {5}


def test_the_least_number_of_two_changes_nothing():
    for ours, theirs in zip(
        SegmentMixer(4, min_mix_num=2)(jax.random.key(3), clips(3)),
        SegmentMixer(4)(jax.random.key(3), clips(3)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('max_mix_num', [2, 3, 4, 5])
def test_mixtures_of_up_to_five_sources_are_the_scaled_sums(max_mix_num):
    mixer = SegmentMixer(max_mix_num, mix_group=8, min_mix_num=max_mix_num)
    key, waveforms = jax.random.key(max_mix_num), clips(max_mix_num, batch_size=16)
    mixtures, targets = mixer(key, waveforms)
    _, source_gains, noise_gains = (np.asarray(draw, np.float64) for draw in mixer.draw(key, 16))
    clean = waveforms.astype(np.float64)

    def scaled_to(x, reference, decibels):
        return x * np.sqrt(np.mean(reference**2) / np.mean(x**2)) * 10 ** (decibels / 20)

    for n in range(16):
        group = n // 8 * 8
        others = [clean[group + (n - group + i) % 8] for i in range(1, max_mix_num)]
        noise = sum(scaled_to(x, clean[n], g) for x, g in zip(others, source_gains[n], strict=True))
        mixture = clean[n] + scaled_to(noise, clean[n], noise_gains[n])
        scale = 0.9 / np.max(np.abs(mixture)) if np.max(np.abs(mixture)) > 1 else 1
        np.testing.assert_allclose(mixtures[n], scale * mixture, rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets[n], scale * clean[n], rtol=0, atol=1e-6)


@pytest.mark.parametrize('least', [1, 3])
def test_a_least_number_out_of_range_is_refused(least):
    with pytest.raises(ConfigError, match=f'min_mix_num must be between 2 and max_mix_num 2, got {least}'):
        SegmentMixer(min_mix_num=least)
