"""Tests dropout, noise and mix-up of query embeddings against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.query_augmentation import QueryAugmentation, add_noise, drop_out, mix_up

KEY = jax.random.key(3)
MIXER = SegmentMixer(max_mix_num=2, mix_group=4)


def embeddings_of(rows: int, size: int = 64) -> jax.Array:
    rng = np.random.default_rng(rows)
    return jnp.asarray(rng.standard_normal((rows, size)) * rng.uniform(0.5, 2, (rows, 1)), jnp.float32)


def length(x) -> np.ndarray:
    return np.linalg.norm(np.asarray(x), axis=-1)


def test_off_changes_nothing_and_adds_nothing_to_the_program():
    x = embeddings_of(8)
    assert QueryAugmentation()(KEY, MIXER, x) is x
    program = jax.jit(lambda x: QueryAugmentation()(KEY, MIXER, x)).lower(x).as_text()
    assert not any(word in program for word in ('multiply', 'select', 'sqrt'))


def test_dropout_zeroes_a_share_and_keeps_the_mean():
    x = embeddings_of(400, 100)
    y = np.asarray(drop_out(jax.random.split(KEY, 400), x, 0.75))
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] * 4, rtol=1e-6)
    assert abs(kept.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / kept.size)
    assert len({row.tobytes() for row in kept}) == 400


def test_noise_has_the_given_energy_relative_to_the_embedding():
    x = embeddings_of(400, 100)
    noise = np.asarray(add_noise(jax.random.split(KEY, 400), x, 0.5) - x)
    ratio = length(noise) / length(x)
    assert np.sqrt(np.mean(ratio**2)) == pytest.approx(0.5, rel=0.01)
    unit = noise / length(x)[:, None] * 10 / 0.5
    assert abs(unit.mean()) < 4 / 200
    assert unit.std() == pytest.approx(1, rel=0.02)
    assert abs(np.corrcoef(unit[:-1].ravel(), unit[1:].ravel())[0, 1]) < 0.02


def test_mixup_is_between_both_queries_at_the_length_of_the_first():
    x, others = embeddings_of(300), jnp.roll(embeddings_of(300), 1, axis=0)
    y = np.asarray(mix_up(jax.random.split(KEY, 300), x, others, 0.4))
    np.testing.assert_allclose(length(y), length(x), rtol=1e-5)
    shares = []
    for row, first, second in zip(y, np.asarray(x), np.asarray(others), strict=True):
        weights, residual, *_ = np.linalg.lstsq(np.stack([first, second], 1), row, rcond=None)
        assert residual.item() < 1e-6
        shares.append(weights[1] / weights.sum())
    assert -1e-6 < min(shares) < 0.02
    assert 0.38 < max(shares) < 0.4 + 1e-6
    assert np.mean(shares) == pytest.approx(0.2, abs=0.03)


def test_the_other_query_is_of_a_clip_of_the_group_that_is_not_in_the_mixture():
    x = jnp.eye(8)
    y = np.asarray(QueryAugmentation(mixup=0.5)(KEY, MIXER, x))
    # Of groups of four, clip n is mixed with clip n + 1, so that clip n + 2 is the next one.
    for row in range(8):
        other = row // 4 * 4 + (row + 2) % 4
        assert set(np.flatnonzero(y[row])) == {row, other}


def test_clips_with_a_common_label_come_last():
    mixer = SegmentMixer(max_mix_num=2, mix_group=4, avoid_same_label=True)
    labels = jnp.array([[1], [2], [1], [3]])
    y = np.asarray(QueryAugmentation(mixup=0.5)(KEY, mixer, jnp.eye(4), labels))
    assert set(np.flatnonzero(y[0])) == {0, 3}  # clip 1 is in the mixture, and clip 2 is of the same kind


def test_silence_stays_finite():
    x = jnp.zeros((4, 16))
    assert np.isfinite(QueryAugmentation(mixup=0.5, noise=1, dropout=0.5)(KEY, MIXER, x)).all()


@pytest.mark.parametrize('option', ['mixup', 'noise', 'dropout'])
def test_each_is_keyed_and_independent_of_the_others_and_of_the_batch(option):
    augmentation = QueryAugmentation(**{option: 0.3})
    x = embeddings_of(8)
    jitted = jax.jit(lambda key, x: augmentation(key, MIXER, x))
    first = np.asarray(jitted(KEY, x))
    np.testing.assert_array_equal(first, jitted(KEY, x))
    np.testing.assert_allclose(first, augmentation(KEY, MIXER, x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(first, jitted(jax.random.key(4), x))
    np.testing.assert_allclose(first[:4], jitted(KEY, x[:4]), rtol=1e-5, atol=1e-6)


def test_the_draws_of_one_do_not_depend_on_another():
    x = embeddings_of(8)
    both = np.asarray(QueryAugmentation(noise=0.3, dropout=0.5)(KEY, MIXER, x))
    dropped = np.asarray(QueryAugmentation(dropout=0.5)(KEY, MIXER, x))
    np.testing.assert_array_equal(both == 0, dropped == 0)


@pytest.mark.parametrize(
    'settings', [{'mixup': -0.1}, {'mixup': 0.6}, {'noise': -1}, {'noise': float('nan')}, {'dropout': 1}]
)
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=rf'query\.{next(iter(settings))} must be'):
        QueryAugmentation(**settings)


def test_mixup_needs_a_clip_that_is_not_in_the_mixture():
    with pytest.raises(ConfigError, match=r'query\.mixup needs a mix_group above max_mix_num 2, got 2'):
        QueryAugmentation(mixup=0.1).check(SegmentMixer(max_mix_num=2, mix_group=2), 8)
    QueryAugmentation(noise=1).check(SegmentMixer(max_mix_num=2, mix_group=2), 8)
