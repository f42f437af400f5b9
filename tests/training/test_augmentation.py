"""Tests the changes of clips against formulas, and what all of them keep: bounds, silence, keys and devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.parallel.mesh import batch_sharded, by_clip, make_mesh
from audiosep_jax.training.augmentation import Augmentation, change_speed, draw_response, equalize, reverberate
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.train_step import mix_batch, step_keys

KEY = jax.random.key(3)
RATE = 16000
EACH = {
    'gain_db': (-6.0, 3.0),
    'polarity': 0.5,
    'equalizer_db': 6.0,
    'pitch_semitones': 3.0,
    'reverberation_ms': 80.0,
}
ALL = Augmentation(**EACH, share=0.7)
SPEED = jax.jit(change_speed, static_argnums=2)
EQUALIZE = jax.jit(equalize, static_argnums=2)
REVERBERATE = jax.jit(reverberate)


def noise_of(rows: int, samples: int = 1600, level: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(rows).standard_normal((rows, samples)) * level).astype(np.float32)


def sine(frequency: float, samples: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * frequency / RATE * np.arange(samples))


def augmented(augmentation: Augmentation, clips, key=KEY) -> np.ndarray:
    return np.asarray(jax.jit(augmentation, static_argnums=2)(key, clips, RATE))


def faster(clip, factor: float, rate: int = RATE) -> np.ndarray:
    return np.asarray(SPEED(jnp.asarray(clip, jnp.float32), factor, rate))


def responses(count: int, longest_ms: float, samples: int) -> np.ndarray:
    draw = jax.jit(jax.vmap(lambda key: draw_response(key, longest_ms, RATE, samples)))
    return np.asarray(draw(jax.random.split(KEY, count)))


def db(ratio) -> np.ndarray:
    return 20 * np.log10(np.asarray(ratio, np.float64))


# ---- Pitch ----


@pytest.mark.parametrize('semitones', [-12, -2.6, 0.4, 3, 12])
@pytest.mark.parametrize('frequency', [100, 1000, 3500])
def test_pitch_moves_the_frequency_of_a_sine_by_the_factor(frequency, semitones):
    factor = round(2 ** (semitones / 12) * 4096) / 4096
    changed = faster(sine(frequency), 2 ** (semitones / 12))
    length = min(RATE, int(RATE / factor))
    inside = slice(100, length - 200)  # where neither end is near
    np.testing.assert_allclose(changed[inside], sine(frequency * factor)[inside], atol=1e-3)
    assert not changed[length + 1 :].any()


@pytest.mark.parametrize(('frequency', 'semitones'), [(7500, 1.5), (6000, 6), (4100, 12)])
def test_what_would_exceed_the_nyquist_frequency_is_removed(frequency, semitones):
    clip = sine(frequency) * np.hanning(RATE)
    changed = faster(clip, 2 ** (semitones / 12))
    assert db(np.std(changed) / np.std(clip)) < -75


def test_the_sound_fades_out_before_the_silence():
    changed = faster(np.ones(RATE), 1.25)
    end = RATE * 4 // 5
    np.testing.assert_allclose(changed[100 : end - 70], 1, atol=0.02)
    assert np.abs(np.diff(changed[end - 60 :])).max() < 0.03


def test_a_long_clip_is_read_at_exact_positions():
    samples, factor = 480_000, 1.5  # 10 s at 48 kHz, where float32 positions are no finer than an eighth of a sample
    time = np.arange(samples)
    clip = np.sin(0.5 * np.pi * time)
    inside = slice(300_000, 319_000)
    expected = np.sin(0.5 * np.pi * factor * time)[inside]
    np.testing.assert_allclose(faster(clip, factor, 48000)[inside], expected, atol=2e-3)


def test_a_clip_with_more_positions_than_integers_is_refused():
    with pytest.raises(ValueError, match='up to 2097152 samples'):
        jax.eval_shape(lambda clip: change_speed(clip, 1.0, RATE), jax.ShapeDtypeStruct((2**21 + 1,), jnp.float32))


# ---- Equalizer ----


def test_the_gain_of_a_sine_is_on_the_line_between_the_points():
    gains_db = np.array([6, -3, 2, -6, 5], np.float32)
    points = np.log2([60, 240, 960, 3840, 15360])
    for frequency in (30, 60, 120, 240, 700, 960, 2000, 3840, 6000):
        clip = sine(frequency) * np.hanning(RATE)
        changed = np.asarray(EQUALIZE(jnp.asarray(clip, jnp.float32), jnp.asarray(gains_db), RATE))
        expected = np.interp(np.log2(frequency), points, gains_db)
        assert db(np.std(changed) / np.std(clip)) == pytest.approx(expected, abs=0.1)
        np.testing.assert_allclose(changed, clip * 10 ** (expected / 20), atol=0.02)  # with the phase that it had


def test_the_equalizer_stays_within_its_bounds_and_reaches_out_to_them():
    gains = []
    for frequency in (60, 500, 3840):
        clips = jnp.asarray(np.tile(0.2 * sine(frequency) * np.hanning(RATE), (64, 1)), jnp.float32)
        gains.append(db(np.std(augmented(Augmentation(equalizer_db=9), clips), axis=1) / np.std(clips[0])))
    assert np.abs(gains).max() < 9.05
    assert np.min(gains[0]) < -7
    assert np.max(gains[0]) > 7
    assert abs(np.corrcoef(gains[0], gains[2])[0, 1]) < 0.4


def test_the_end_of_a_clip_does_not_ring_into_its_start():
    clip = np.zeros(RATE, np.float32)
    clip[-1] = 1
    changed = np.asarray(EQUALIZE(jnp.asarray(clip), jnp.array([12.0, -12, 12, -12, 12]), RATE))
    assert np.abs(changed[: RATE // 2]).max() < 1e-3


# ---- Reverberation ----


def test_reverberation_is_a_convolution_at_the_energy_of_the_clip():
    clip = noise_of(1)[0]
    response = responses(1, 50, len(clip))[0]
    expected = np.convolve(clip.astype(np.float64), response)[: len(clip)]
    expected *= np.linalg.norm(clip) / np.linalg.norm(expected)
    np.testing.assert_allclose(REVERBERATE(clip, response), expected, atol=1e-6)


def test_it_is_causal_and_keeps_the_direct_sound():
    clip = np.zeros(2000, np.float32)
    clip[700] = 0.5
    for response in responses(5, 60, 2000):
        wet = np.asarray(REVERBERATE(clip, response))
        assert np.abs(wet[:700]).max() < 1e-6
        assert 0.3 < wet[700] < 0.5
        assert np.linalg.norm(wet) == pytest.approx(0.5, rel=1e-5)


def test_responses_decay_by_60_db_within_the_longest_time():
    decays, levels = [], []
    for response in responses(60, 200, RATE).astype(np.float64):
        assert len(response) == 3201
        assert response[0] == 1
        levels.append(db(np.linalg.norm(response[1:])))
        energy = np.cumsum(response[:0:-1] ** 2)[::-1]  # Schroeder's integral, a line in dB
        start = energy[0]
        until = np.flatnonzero(energy > start / 1000)[-1]
        decays.append(until * 1000 / RATE * 2)  # it falls by 30 dB in half of the time
    assert -20.01 < min(levels) < -18
    assert -5 < max(levels) < -2.99
    assert 17 < min(decays) < 50
    assert 150 < max(decays) < 230


# ---- Gain and polarity ----


def test_gain_is_uniform_in_db():
    clips = noise_of(400, 64, 0.01)
    gains = db(np.linalg.norm(augmented(Augmentation(gain_db=(-12, 6)), clips), axis=1) / np.linalg.norm(clips, axis=1))
    assert -12.01 < gains.min() < -11.5
    assert 5.5 < gains.max() < 6.01
    assert gains.mean() == pytest.approx(-3, abs=1)


def test_polarity_flips_a_share_of_the_clips():
    clips = noise_of(400, 16)
    changed = augmented(Augmentation(polarity=0.3), clips)
    flipped = (changed == -clips).all(axis=1)
    assert ((changed == clips).all(axis=1) | flipped).all()
    assert flipped.mean() == pytest.approx(0.3, abs=0.08)


# ---- All of them ----


@pytest.mark.parametrize('option', ['equalizer_db', 'pitch_semitones', 'reverberation_ms'])
def test_share_leaves_the_other_clips_as_they_are(option):
    clips = noise_of(100, 400)
    changed = augmented(Augmentation(**{option: EACH[option]}, share=0.4), clips)
    same = (changed == clips).all(axis=1)
    assert same.mean() == pytest.approx(0.6, abs=0.15)
    whole = augmented(Augmentation(**{option: EACH[option]}), clips)
    np.testing.assert_allclose(changed[~same], whole[~same], atol=1e-6)


@pytest.mark.parametrize(
    'augmentation', [*(Augmentation(**{name: value}) for name, value in EACH.items()), ALL], ids=[*EACH, 'all']
)
def test_draws_depend_on_the_key_and_the_row_alone(augmentation):
    clips = noise_of(8)
    first = augmented(augmentation, clips)
    np.testing.assert_array_equal(first, augmented(augmentation, clips))
    np.testing.assert_allclose(first[:3], augmented(augmentation, clips[:3]), atol=2e-6)
    assert not np.allclose(first, augmented(augmentation, clips, jax.random.key(4)))
    equal = augmented(augmentation, np.tile(clips[:1], (8, 1)))
    assert len({row.tobytes() for row in np.asarray(equal)}) >= 2  # two, if only the sign differs


def test_no_option_changes_the_draws_of_another():
    clips = noise_of(50, 64)
    alone = augmented(Augmentation(polarity=0.5), clips)
    louder = augmented(Augmentation(polarity=0.5, gain_db=(-3, -1)), clips)
    np.testing.assert_array_equal(np.sign(louder), np.sign(alone))


@pytest.mark.parametrize('level', [1e-30, 3e-5, 0.1, 1.0])
def test_results_are_finite_and_within_full_scale(level):
    clips = np.clip(noise_of(32, 800, 1.0), -1, 1) * np.float32(level)
    clips[0] = level  # constant
    clips[1, 1:] = 0  # a click
    for seed in range(3):
        loud = Augmentation((0, 40), 0.5, 24, 12, 3000)
        changed = augmented(loud, clips, jax.random.key(seed))
        assert np.isfinite(changed).all()
        assert np.abs(changed).max() <= 1


def test_silence_stays_silence():
    assert not augmented(ALL, np.zeros((4, 400), np.float32)).any()


def test_other_types_become_float32():
    clips = jnp.asarray(noise_of(2, 400), jnp.bfloat16)
    assert jax.eval_shape(lambda key: ALL(key, clips, RATE), KEY).dtype == jnp.float32


@pytest.mark.parametrize(('samples', 'longest'), [(1, 80.0), (7, 80.0), (400, 0.01), (400, 5000.0)])
def test_short_clips_and_all_lengths_of_reverberation(samples, longest):
    changed = augmented(Augmentation(**{**EACH, 'reverberation_ms': longest}), noise_of(4, samples))
    assert changed.shape == (4, samples)
    assert np.isfinite(changed).all()


def test_off_changes_nothing():
    clips = noise_of(4)
    for off in (Augmentation(), Augmentation(equalizer_db=6, pitch_semitones=2, reverberation_ms=100, share=0)):
        assert off.is_off
        assert off(KEY, clips, RATE) is clips
    assert not any(Augmentation(**{name: value}).is_off for name, value in EACH.items())
    assert hash(ALL) == hash(Augmentation(**EACH, share=0.7))


@pytest.mark.parametrize(
    'settings',
    [
        {'polarity': 1.1},
        {'equalizer_db': -1},
        {'pitch_semitones': 13},
        {'reverberation_ms': float('nan')},
        {'share': -0.1},
        {'gain_db': (3, -3)},
        {'gain_db': (0, float('inf'))},
        {'gain_db': (0,)},
    ],
)
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=rf'augmentation\.{next(iter(settings))} (must be|needs)'):
        Augmentation(**settings)


# ---- In a training step ----


def batch_of(rows: int) -> dict[str, jax.Array]:
    return {'waveforms': jnp.asarray(noise_of(rows, 400) * 32768, jnp.int16)}


def test_off_gives_the_bits_of_a_step_without_it():
    mixer, batch, keys = SegmentMixer(mix_group=2), batch_of(8), step_keys(7, 5)
    key = jax.random.fold_in(jax.random.key(7), 5)
    mix, absent = jax.random.split(key)
    for drawn, expected in zip(keys[:3], (mix, absent, jax.random.fold_in(key, 2)), strict=True):
        assert jax.random.key_data(drawn).tolist() == jax.random.key_data(expected).tolist()
    expected = mixer(mix, batch['waveforms'].astype(jnp.float32) * (1 / 32768))
    for a, b in zip(mix_batch(mixer, Augmentation(), keys, batch, RATE), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_changes_no_draw_of_the_mixer():
    mixer, batch, keys = SegmentMixer(mix_group=2, level_db=(-9, 0)), batch_of(8), step_keys(7, 5)
    flipped = mix_batch(mixer, Augmentation(polarity=1), keys, batch, RATE)
    for a, b in zip(flipped, mix_batch(mixer, Augmentation(), keys, batch, RATE), strict=True):
        np.testing.assert_array_equal(a, -b)


def test_devices_change_their_own_clips():
    mesh, clips = make_mesh(), noise_of(16, 400)
    sharding = batch_sharded(mesh)
    step = jax.jit(lambda key, clips: ALL(key, clips, RATE, by_clip(mesh)), out_shardings=sharding)
    compiled = step.lower(KEY, jax.device_put(clips, sharding)).compile()
    assert not re.search('all-gather|all-to-all|all-reduce|collective-permute', compiled.as_text())
    np.testing.assert_allclose(compiled(KEY, jax.device_put(clips, sharding)), augmented(ALL, clips), atol=2e-6)
