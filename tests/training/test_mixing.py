"""Golden values: the original's SegmentMixer with its draws recorded (tests/reference/mixer_reference.npz)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.paths import REFERENCE

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.errors import ConfigError
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer

GOLDEN = REFERENCE / 'mixer_reference.npz'
COLLECTIVE = re.compile(r'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter')
few = settings(max_examples=10)
# `SegmentMixer(3).draw(jax.random.key(7), 3)` before there were levels: a resumed run must draw the same.
GOLDEN_DRAWS = (
    [2, 2, 2],
    [
        [9.751283645629883, -9.605281829833984],
        [-5.216796398162842, -2.242276668548584],
        [8.54896354675293, -4.675991535186768],
    ],
    [-9.756321907043457, 7.1414875984191895, 3.3288145065307617],
)


def clips(seed, batch_size=8, num_samples=64, peak=0.1):
    """float32 [B, T]: noise bursts of unlike levels, none beyond `peak`."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(-1, 1, (batch_size, num_samples)) * rng.uniform(0.2, 1, (batch_size, 1))
    return (peak * noise).astype(np.float32)


def decibels(numerator, denominator):
    energies = [np.mean(np.square(np.asarray(x, np.float64)), axis=-1) for x in (numerator, denominator)]
    return 10 * np.log10(energies[0] / energies[1])


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('max_mix_num', [2, 3])
def test_with_given_draws_it_is_the_original(max_mix_num, jit):
    with np.load(GOLDEN) as golden:
        draws = golden[f'draws_max{max_mix_num}']
        mix = SegmentMixer(max_mix_num).mix_with_draws
        mixtures, targets = (jax.jit(mix) if jit else mix)(
            golden['waveforms'], draws[:, 0], draws[:, 1:-1], draws[:, -1]
        )
        np.testing.assert_allclose(mixtures, golden[f'mixture_max{max_mix_num}'], rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets, golden[f'segment_max{max_mix_num}'], rtol=0, atol=1e-6)


@few
@given(seed=st.integers(0, 2**31), max_mix_num=st.integers(2, 4), integer_gains=st.booleans())
def test_the_noise_has_its_gain_and_nothing_clips(seed, max_mix_num, integer_gains):
    mixer = SegmentMixer(max_mix_num, integer_gains=integer_gains)
    key, waveforms = jax.random.key(seed), clips(seed, peak=1.0)
    mixtures, targets = mixer(key, waveforms)
    _, _, noise_gain_db = mixer.draw(key, len(waveforms))
    np.testing.assert_allclose(decibels(mixtures - targets, targets), noise_gain_db, rtol=0, atol=1e-3)
    assert np.max(np.abs(mixtures)) <= 1
    # A target is its clip, as it is or attenuated with its mixture to the peak 0.9.
    scales = np.sum(targets * waveforms, -1) / np.sum(waveforms**2, -1)
    np.testing.assert_allclose(targets, scales[:, None] * waveforms, rtol=0, atol=1e-6)
    peaks = np.max(np.abs(mixtures), -1)
    declipped = scales < 1 - 1e-5
    np.testing.assert_allclose(peaks[declipped], 0.9, rtol=1e-5)
    np.testing.assert_allclose(scales[~declipped], 1, rtol=1e-5)


@few
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 2.0))
def test_scaling_all_clips_scales_all_mixtures(seed, scale):
    mixer, key, waveforms = SegmentMixer(3), jax.random.key(seed), clips(seed)
    for scaled, plain in zip(mixer(key, scale * waveforms), mixer(key, waveforms), strict=True):
        np.testing.assert_allclose(scaled, scale * plain, rtol=1e-4, atol=1e-6)


@few
@given(seed=st.integers(0, 2**31))
def test_scaling_a_partner_changes_nothing(seed):
    # Clip 1 is the partner of clip 0 alone, which takes it at its own energy.
    mixer, key, waveforms = SegmentMixer(2), jax.random.key(seed), clips(seed, batch_size=4)
    louder = waveforms * np.array([1, 3, 1, 1], np.float32)[:, None]
    np.testing.assert_allclose(mixer(key, louder)[0][0], mixer(key, waveforms)[0][0], rtol=1e-4, atol=1e-6)


@few
@given(seed=st.integers(0, 2**31), max_mix_num=st.integers(2, 3))
def test_groups_are_mixed_as_if_alone(seed, max_mix_num):
    waveforms = clips(seed, batch_size=6)
    draws = SegmentMixer(max_mix_num).draw(jax.random.key(seed), 6)
    together = SegmentMixer(max_mix_num, mix_group=3).mix_with_draws(waveforms, *draws)
    for start in (0, 3):
        rows = slice(start, start + 3)
        alone = SegmentMixer(max_mix_num).mix_with_draws(waveforms[rows], *(d[rows] for d in draws))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[rows], b, rtol=0, atol=1e-7)


@pytest.mark.parametrize('silent', [[0], [1], [0, 1, 2], list(range(8))])
@pytest.mark.parametrize('max_mix_num', [2, 3])
def test_silent_clips_give_no_nan(silent, max_mix_num):
    waveforms = clips(0)
    waveforms[silent] = 0
    mixtures, targets = SegmentMixer(max_mix_num)(jax.random.key(0), waveforms)
    assert np.all(np.isfinite(mixtures))
    assert np.all(np.isfinite(targets))
    assert not np.any(targets[np.array(silent)])


def test_a_silent_partner_leaves_the_target_alone():
    waveforms = clips(0, batch_size=2)
    waveforms[1] = 0
    mixtures, targets = SegmentMixer()(jax.random.key(0), waveforms)
    np.testing.assert_array_equal(mixtures[0], targets[0])
    # Against the silent target the other clip keeps at least a fiftieth of itself, twice, at the gains drawn.
    assert np.any(mixtures[1])


def test_no_gradient_passes_not_even_nan():
    waveforms = jnp.asarray(clips(0)).at[2].set(0)
    gradient = jax.grad(lambda w: sum(jnp.sum(x) for x in SegmentMixer(3)(jax.random.key(0), w)))(waveforms)
    np.testing.assert_array_equal(gradient, 0)


def test_draws_of_a_row_do_not_depend_on_the_batch():
    mixer, key = SegmentMixer(4), jax.random.key(7)
    for few_rows, many_rows in zip(mixer.draw(key, 5), mixer.draw(key, 16), strict=True):
        np.testing.assert_array_equal(few_rows, many_rows[:5])


def test_draws_differ_between_rows_and_keys():
    # All gains of a row together: a single one is among 2 ** 23 values and may well come twice.
    mixer = SegmentMixer(3)
    draws = [mixer.draw(jax.random.key(k), 64) for k in range(2)]
    rows = np.concatenate([np.column_stack([source_gains, noise_gains]) for _, source_gains, noise_gains in draws])
    assert rows.shape == (128, 3)
    assert len(np.unique(rows, axis=0)) == 128


def test_draws_fill_their_ranges():
    mixer = SegmentMixer(4, lower_db=-3.0, upper_db=6.0)
    numbers, source_gains, noise_gains = (np.asarray(d) for d in mixer.draw(jax.random.key(0), 2000))
    assert [round(np.mean(numbers == n), 1) for n in (2, 3, 4)] == [0.3, 0.3, 0.3]
    assert np.all((numbers >= 2) & (numbers <= 4))
    for gains in (source_gains, noise_gains):
        assert -3 <= gains.min() < -2.9
        assert 5.9 < gains.max() <= 6
        np.testing.assert_allclose(gains.mean(), 1.5, atol=0.3)
    assert abs(np.corrcoef(source_gains[:, 0], noise_gains)[0, 1]) < 0.1


def test_integer_gains_take_both_bounds():
    mixer = SegmentMixer(2, lower_db=-2, upper_db=2, integer_gains=True)
    _, source_gains, noise_gains = mixer.draw(jax.random.key(0), 200)
    assert set(np.unique(source_gains)) == set(np.unique(noise_gains)) == {-2, -1, 0, 1, 2}


def test_equal_bounds_fix_the_gain():
    mixtures, targets = SegmentMixer(lower_db=4.0, upper_db=4.0)(jax.random.key(0), clips(0))
    np.testing.assert_allclose(decibels(mixtures - targets, targets), 4, atol=1e-3)


def on_devices(count):
    mesh = Mesh(np.array(jax.devices()[:count]), ('data',))
    return NamedSharding(mesh, P('data')), NamedSharding(mesh, P())


@pytest.mark.parametrize('max_mix_num', [2, 3])
def test_eight_devices_mix_as_one(max_mix_num):
    assert len(jax.devices()) >= 8
    mixer, key, waveforms = SegmentMixer(max_mix_num, mix_group=4), jax.random.key(3), clips(3, batch_size=32)
    results = []
    for count in (1, 8):
        split, whole = on_devices(count)
        mix = jax.jit(mixer, in_shardings=(whole, split), out_shardings=split)
        results.append(mix(jax.device_put(key, whole), jax.device_put(waveforms, split)))
    for one, eight in zip(*results, strict=True):
        assert len(eight.sharding.device_set) == 8
        np.testing.assert_allclose(one, eight, rtol=0, atol=1e-7)


def test_draws_are_the_same_bits_on_eight_devices():
    mixer, key = SegmentMixer(3), jax.random.key(3)
    split, whole = on_devices(8)
    sharded = jax.jit(lambda k: mixer.draw(k, 32), in_shardings=whole, out_shardings=split)(key)
    for a, b in zip(sharded, mixer.draw(key, 32), strict=True):
        np.testing.assert_array_equal(a, b)


def test_groups_inside_a_device_cost_no_communication():
    split, whole = on_devices(8)

    def compiled(mixer):
        mix = jax.jit(mixer, in_shardings=(whole, split), out_shardings=split)
        return mix.lower(jax.random.key(0), jax.ShapeDtypeStruct((32, 64), jnp.float32)).compile().as_text()

    assert not COLLECTIVE.search(compiled(SegmentMixer(3, mix_group=4)))
    assert not COLLECTIVE.search(compiled(SegmentMixer(2, mix_group=2)))
    # The whole batch as one group does communicate, so the search above would find it.
    assert COLLECTIVE.search(compiled(SegmentMixer(3)))


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'max_mix_num': 1}, 'max_mix_num must be at least 2'),
        ({'lower_db': 1.0, 'upper_db': 0.0}, 'must not exceed'),
        ({'lower_db': float('nan')}, 'finite'),
        ({'upper_db': float('inf')}, 'finite'),
        ({'mix_group': -1}, 'mix_group'),
        ({'max_mix_num': 3, 'mix_group': 2}, 'max_mix_num 3 needs'),
        ({'lower_db': -0.5, 'integer_gains': True}, 'whole decibels'),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message) as refused:
        SegmentMixer(**values)
    assert '\n' not in str(refused.value)


def test_groups_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(ConfigError, match='mix_group 3 does not divide the batch of 8 clips'):
        SegmentMixer(mix_group=3)(jax.random.key(0), clips(0))
    with pytest.raises(ConfigError, match='max_mix_num 2 needs as many clips'):
        SegmentMixer()(jax.random.key(0), clips(0, batch_size=1))
    assert SegmentMixer(mix_group=4).group_size(32) == 4
    assert SegmentMixer().group_size(16) == 16


def test_waveforms_and_draws_of_a_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r'floating point \[B, T\] in ±1, got int16'):
        SegmentMixer()(jax.random.key(0), np.zeros((4, 8), np.int16))
    with pytest.raises(ValueError, match=r'got float32 \[8\]'):
        SegmentMixer()(jax.random.key(0), np.zeros(8, np.float32))
    with pytest.raises(ValueError, match=r'source_gains_db must have the shape \[4, 1\], got \[4, 2\]'):
        SegmentMixer().mix_with_draws(np.zeros((4, 8), np.float32), np.full(4, 2), np.zeros((4, 2)), np.zeros(4))


def test_configuration_survives_the_way_through_json():
    mixer = SegmentMixer(3, mix_group=4, integer_gains=True)
    assert from_dict(SegmentMixer, to_dict(mixer)) == mixer


# ---- Pairs of the same label ----


def labelled(*labels):
    """int32 [B, 3] of tuples of numbers."""
    return np.array([[*numbers, -1, -1, -1][:3] for numbers in labels], np.int32)


def partners_of(mixer, labels):
    """[B, g - 1]: the clips of the batch in the order in which clip n would be mixed with them."""
    count = len(labels)
    partner = mixer.partners(count, labels)
    group = mixer.group_size(count)
    places = jnp.arange(count).reshape(-1, group)
    return np.stack([np.asarray(partner(places, i)).reshape(-1) for i in range(1, group)], axis=1)


def test_partners_are_the_next_clips_without_a_common_label():
    mixer = SegmentMixer(max_mix_num=2, mix_group=4, avoid_same_label=True)
    labels = labelled((7,), (7, 1), (2,), (3, 2), (5,), (6,), (5,), (5, 6, 9))
    np.testing.assert_array_equal(
        partners_of(mixer, labels)[:, :2], [[2, 3], [2, 3], [0, 1], [0, 1], [5, 6], [6, 4], [5, 7], [4, 5]]
    )


def test_where_all_share_a_label_the_usual_order_holds():
    mixer = SegmentMixer(max_mix_num=3, mix_group=4, avoid_same_label=True)
    same, none = labelled(*[(4, 8)] * 8), labelled(*[()] * 8)
    key, waveforms = jax.random.key(2), clips(5)
    usual = SegmentMixer(max_mix_num=3, mix_group=4)(key, waveforms)
    for labels in (same, none):  # clips without labels share none, because -1 is not a label
        for ours, theirs in zip(mixer(key, waveforms, labels), usual, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@few
@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=6, max_size=6), st.integers(2, 4))
def test_every_partner_is_another_clip_and_common_labels_come_last(labels, max_mix_num):
    mixer = SegmentMixer(max_mix_num=max_mix_num, avoid_same_label=True)
    for n, others in enumerate(partners_of(mixer, labelled(*labels))):
        assert sorted([n, *others]) == list(range(6))
        shared = [bool(set(labels[n]) & set(labels[k])) for k in others]
        assert shared == sorted(shared)
        for same in (False, True):
            steps = [(k - n) % 6 for k, s in zip(others, shared, strict=True) if s == same]
            assert steps == sorted(steps)


def test_avoiding_labels_leaves_the_draws_and_the_targets_alone():
    plain, avoiding = SegmentMixer(3, mix_group=4), SegmentMixer(3, mix_group=4, avoid_same_label=True)
    key, waveforms = jax.random.key(1), clips(1)
    labels = labelled((1,), (1,), (2,), (3,), (1,), (1,), (1,), (2,))
    for a, b in zip(plain.draw(key, 8), avoiding.draw(key, 8), strict=True):
        np.testing.assert_array_equal(a, b)
    mixtures, targets = jax.jit(avoiding)(key, waveforms, labels)
    # Clip 0 is mixed with 2 and 3, as if clip 1 were the last of its group.
    moved = np.concatenate([waveforms[[0, 2, 3, 1]], waveforms[4:]])
    expected = plain(key, moved)
    np.testing.assert_allclose(mixtures[0], expected[0][0], rtol=0, atol=1e-7)
    np.testing.assert_allclose(targets[0], expected[1][0], rtol=0, atol=1e-7)


def test_avoiding_labels_costs_no_communication_inside_a_device():
    split, whole = on_devices(8)
    mixer = SegmentMixer(3, mix_group=4, avoid_same_label=True)
    mix = jax.jit(mixer, in_shardings=(whole, split, split), out_shardings=split)
    key, waveforms = jax.random.key(0), clips(3, batch_size=32)
    labels = np.random.default_rng(0).integers(-1, 3, (32, 2))
    assert not COLLECTIVE.search(mix.lower(key, waveforms, labels).compile().as_text())
    for ours, alone in zip(mix(key, waveforms, labels), mixer(key, waveforms, labels), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=0, atol=1e-6)


def test_labels_that_are_missing_or_of_another_shape_are_refused():
    mixer, key = SegmentMixer(avoid_same_label=True), jax.random.key(0)
    for labels, found in ((None, 'none'), (np.zeros(8, int), r'\[8\]'), (np.zeros((4, 2), int), r'\[4, 2\]')):
        with pytest.raises(ValueError, match=rf'labels of the shape \[8, L\], got {found}'):
            mixer(key, clips(0), labels)


def test_absent_queries_know_the_partners_that_labels_choose():
    mixer = SegmentMixer(max_mix_num=2, mix_group=4, avoid_same_label=True)
    labels = labelled((1,), (1,), (2,), (3,))
    ask = AbsentQueries(share=1.0)
    asked, silenced = ask(jax.random.key(0), 0, mixer, jnp.eye(4), jnp.ones((4, 3)), labels)
    # Clip 0 is mixed with 2, and 3 is absent; clip 1 with 2, and 3; clip 2 with 3, and 0; clip 3 with 0, and 1: but 1
    # has the label of 0.
    np.testing.assert_array_equal(asked, np.eye(4)[[3, 3, 0, 3]])
    np.testing.assert_array_equal(silenced[:, 0], [0, 0, 0, 1])


# ---- Queries for absent sounds ----


def test_absent_queries_are_another_clip_s_and_their_targets_silent():
    mixer = SegmentMixer(max_mix_num=2, mix_group=4)
    embeddings, targets = jnp.eye(8), jnp.ones((8, 5))
    asked, silenced = AbsentQueries(share=1.0)(jax.random.key(0), 0, mixer, embeddings, targets)
    # Clip n is mixed with n + 1 of its group of four; n + 2 is the first that is not in the mixture.
    np.testing.assert_array_equal(asked, np.eye(8)[[2, 3, 0, 1, 6, 7, 4, 5]])
    assert not np.any(silenced)


def test_share_of_absent_queries():
    mixer = SegmentMixer(mix_group=4)
    embeddings, targets = jnp.eye(400), jnp.ones((400, 1))
    asked, silenced = AbsentQueries(share=0.2)(jax.random.key(1), 0, mixer, embeddings, targets)
    replaced = np.asarray(jnp.any(asked != embeddings, axis=1))
    assert 50 < replaced.sum() < 110
    np.testing.assert_array_equal(np.asarray(silenced[:, 0]) == 0, replaced)
    untouched = AbsentQueries()(jax.random.key(1), 0, mixer, embeddings, targets)
    assert untouched[0] is embeddings
    assert untouched[1] is targets


@pytest.mark.parametrize('resembles', [0, 1])
def test_query_that_resembles_a_clip_in_the_mixture_is_not_absent(resembles):
    """Clip 2 resembles clip 0 (the target) or clip 1 (its partner), so it is no absent query for their mixture."""
    mixer = SegmentMixer(max_mix_num=2, mix_group=4)
    embeddings = jnp.eye(4).at[2].set(0.6 * jnp.eye(4)[resembles] + 0.8 * jnp.eye(4)[2])
    asked, silenced = AbsentQueries(share=1.0)(jax.random.key(0), 0, mixer, embeddings, jnp.ones((4, 3)))
    np.testing.assert_array_equal(asked[0], embeddings[0])
    assert np.all(silenced[0] == 1)
    np.testing.assert_array_equal(asked[3], embeddings[1])  # 3 is mixed with 0; 1 is absent


def test_absent_queries_need_an_absent_clip():
    with pytest.raises(ConfigError, match='mix_group above max_mix_num 2, got 2'):
        AbsentQueries(share=0.1)(jax.random.key(0), 0, SegmentMixer(mix_group=2), jnp.eye(2), jnp.ones((2, 3)))
    with pytest.raises(ConfigError, match=r'absent\.share'):
        AbsentQueries(share=1.5)


def test_absent_queries_start_at_their_step():
    mixer = SegmentMixer(mix_group=4)
    late = jax.jit(
        lambda step: AbsentQueries(share=1.0, start=3)(jax.random.key(0), step, mixer, jnp.eye(4), jnp.eye(4))
    )
    np.testing.assert_array_equal(late(2)[0], np.eye(4))
    np.testing.assert_array_equal(late(2)[1], np.eye(4))
    assert not np.any(late(3)[1])


# ---- levels ----


def test_without_levels_the_draws_are_those_of_earlier_versions():
    number, sources, noise = SegmentMixer(3).draw(jax.random.key(7), 3)
    for found, expected in zip((number, sources, noise), GOLDEN_DRAWS, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    mixer, key, waveforms = SegmentMixer(3), jax.random.key(7), clips(7)
    by_hand = mixer.mix_with_draws(waveforms, *mixer.draw(key, len(waveforms)))
    for found, expected in zip(mixer(key, waveforms), by_hand, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('jit', [False, True])
def test_a_level_scales_mixture_and_target_alike_and_nothing_else(jit):
    key, waveforms = jax.random.key(5), clips(5, batch_size=16, peak=1.0)
    plain, drawn = SegmentMixer(3), SegmentMixer(3, level_db=(-30, 6))
    mixed, leveled = ((jax.jit(mixer) if jit else mixer)(key, waveforms) for mixer in (plain, drawn))
    gains = drawn.draw_levels(key, 16)[:, None]
    for before, after in zip(mixed, leveled, strict=True):
        # Compiled, XLA may multiply in another order.
        np.testing.assert_allclose(after, before * gains, rtol=1e-6 if jit else 0)
    assert np.max(np.abs(leveled[0])) > 1, 'nothing clips'


def test_levels_are_uniform_in_decibels_and_each_row_has_its_own():
    mixer, key = SegmentMixer(level_db=(-30, 6)), jax.random.key(2)
    levels = 20 * np.log10(mixer.draw_levels(key, 3000))
    assert -30 <= levels.min() < -29.5
    assert 5.5 < levels.max() <= 6.0001
    assert abs(np.mean(levels) + 12) < 0.6
    np.testing.assert_array_equal(mixer.draw_levels(key, 10), mixer.draw_levels(key, 3000)[:10])
    fixed = SegmentMixer(level_db=(-6, -6)).draw_levels(key, 4)
    np.testing.assert_allclose(fixed, 10 ** (-6 / 20), rtol=1e-6)


@pytest.mark.parametrize('values', [(1.0, 0.0), (float('nan'), 0.0), (0.0, float('inf')), (0.0,)])
def test_levels_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match='level_db needs a minimum and a maximum gain'):
        SegmentMixer(level_db=values)


def test_levels_survive_the_record():
    mixer = SegmentMixer(mix_group=4, level_db=(-30.0, 6.0))
    assert from_dict(SegmentMixer, to_dict(mixer)) == mixer
    assert hash(mixer) == hash(from_dict(SegmentMixer, to_dict(mixer)))
