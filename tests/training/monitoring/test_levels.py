"""The level in a checkpoint's record is that of the mixtures that the run trained on."""

import dataclasses

import jax
import numpy as np
import pytest
from support.training_runs import MIXER, MODEL, config_of

from audiosep_jax.checkpoints.checkpoint import Level, describe
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.parallel.mesh import make_mesh, put_batch
from audiosep_jax.separation.loading import load
from audiosep_jax.training.augmentation import Augmentation
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.monitoring.levels import MixtureLevels
from audiosep_jax.training.train import train
from audiosep_jax.training.train_step import mix_batch, step_keys

pytestmark = pytest.mark.usefixtures('shared_programs')
SAMPLES = 400
AS_RECORDED = Augmentation()


def config(mixing=MIXER, augmentation=AS_RECORDED):
    return dataclasses.replace(config_of('nowhere', 'nowhere'), mixing=mixing, augmentation=augmentation)


def batch_of(level_db, mesh, seed=0):
    noise = np.random.default_rng(seed).standard_normal((16, SAMPLES))
    waveforms = (noise * 10 ** (level_db / 20) * 32767).clip(-32768, 32767).astype(np.int16)
    return put_batch({'waveforms': waveforms}, mesh)


def measured(mixing, batches, known=None, augmentation=AS_RECORDED):
    mesh, settings = make_mesh(), config(mixing, augmentation)
    levels = MixtureLevels(settings, mesh, known, describe(settings, None))
    for step, level_db in enumerate(batches):
        levels.push(step, batch_of(level_db, mesh, step))
    return levels.record()


def test_they_are_percentiles_of_the_mixtures_of_the_step():
    mesh, settings = make_mesh(), config()
    squares = []
    for step in range(3):
        mixtures, _ = mix_batch(MIXER, AS_RECORDED, step_keys(settings.seed, step), batch_of(-20, mesh, step), 8000)
        squares += np.mean(np.square(np.asarray(mixtures, np.float64)), axis=-1).tolist()
    expected = np.percentile(10 * np.log10(squares), [10, 50, 90])
    record = measured(MIXER, [-20] * 3)['level']
    np.testing.assert_allclose([record[f'{name}_db'] for name in ('low', 'median', 'high')], expected, atol=0.006)
    assert record['mixtures'] == 48
    assert Level.read({'level': record}) == Level(**record)


def test_the_drawn_levels_are_in_them():
    plain = Level.read(measured(MIXER, [-20] * 16))
    drawn = Level.read(measured(dataclasses.replace(MIXER, level_db=(-30, 0)), [-20] * 16))
    assert drawn.median_db == pytest.approx(plain.median_db - 15, abs=4)
    assert drawn.high_db - drawn.low_db > plain.high_db - plain.low_db + 10


def test_they_are_those_of_the_augmented_clips():
    plain = Level.read(measured(MIXER, [-40] * 2))
    louder = Level.read(measured(MIXER, [-40] * 2, augmentation=Augmentation(gain_db=(12, 12))))
    for name in ('low_db', 'median_db', 'high_db'):
        assert getattr(louder, name) == pytest.approx(getattr(plain, name) + 12, abs=0.02)


def test_only_the_first_mixtures_are_measured_and_silent_ones_do_not_count():
    assert measured(MIXER, [-20] * 16)['level'] == measured(MIXER, [-20] * 16 + [0] * 3)['level']
    assert measured(MIXER, [-300] * 3) == {}
    assert measured(MIXER, [-300, -20])['level']['mixtures'] == 16


def test_a_resumed_run_keeps_its_level_unless_it_mixes_otherwise():
    settings, level = config(), Level(-40.0, -30.0, -20.0, 256).record()
    known = {**describe(settings, None), **level}
    assert measured(MIXER, [-10], known) == level
    louder = SegmentMixer(mix_group=2, level_db=(10, 10))
    assert measured(louder, [-30], known) != level
    quieter = Augmentation(gain_db=(-10, -10))
    assert measured(MIXER, [-10], known, quieter) != level
    known['config'].pop('augmentation')  # as versions before it wrote it
    assert measured(MIXER, [-10], known) == level
    assert measured(MIXER, [-10], known, quieter) != level
    older = describe(settings, None)
    assert measured(MIXER, [-30], older) == measured(MIXER, [-30])
    older['config']['mixing'].pop('level_db')  # as versions before it wrote it
    assert measured(MIXER, [-30], older) == measured(MIXER, [-30])


def test_a_run_records_it_and_separation_takes_it(dataset, tmp_path):
    train(config_of(dataset, tmp_path / 'run', steps=4))
    level = open_checkpoint(tmp_path / 'run').level
    assert level.mixtures == 64
    assert -60 < level.low_db < level.median_db < level.high_db < 0
    train(config_of(dataset, tmp_path / 'run'))
    assert open_checkpoint(tmp_path / 'run').level == level
    separator = load(tmp_path / 'run')
    assert (separator.level, separator.trained_level) == ('auto', level)
    assert load(tmp_path / 'run', level='off').level == 'off'
    assert separator.config == MODEL


def test_measuring_changes_no_weight(dataset, tmp_path, monkeypatch):
    train(config_of(dataset, tmp_path / 'measured', steps=2))
    monkeypatch.setattr(MixtureLevels, 'push', lambda *_: None)
    train(config_of(dataset, tmp_path / 'not', steps=2))
    measured, without = (open_checkpoint(tmp_path / name) for name in ('measured', 'not'))
    jax.tree.map(np.testing.assert_array_equal, measured.variables, without.variables)
    assert without.level is None
