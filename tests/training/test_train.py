"""Training: what a run leaves behind, and that nothing stops it from being continued exactly."""

import dataclasses
import json
import os
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from support.processes import command_of
from support.small_dataset import SAMPLE_RATE
from support.training_runs import BATCH_SIZE, MIXER, MODEL, OPTIMIZER, config_of, losses_in, variables_of

import audiosep_jax.training.train as train_module
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import CheckpointError, ConfigError, DataError, TrainingDivergedError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.parallel.mesh import make_mesh
from audiosep_jax.separation.separator import load
from audiosep_jax.training.config import TrainConfig, check_batch_size
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig, make_optimizer
from audiosep_jax.training.train import train
from audiosep_jax.training.train_step import init_state, make_train_step


@pytest.fixture(scope='module')
def uninterrupted(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('uninterrupted')
    result = train(config_of(dataset, workdir))
    assert (result.step, result.stopped) == (6, False)
    return workdir


def assert_same_run(workdir, uninterrupted):
    assert losses_in(workdir) == losses_in(uninterrupted)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables_of(workdir), variables_of(uninterrupted))
    assert jax.tree.all(same)


def test_run_leaves_a_log_a_config_and_checkpoints(uninterrupted):
    losses = losses_in(uninterrupted)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert all(0 < loss < 1 for loss in losses.values())
    assert json.loads((uninterrupted / 'config.json').read_text())['config']['batch_size'] == BATCH_SIZE
    kept = sorted(int(p.name) for p in (uninterrupted / 'checkpoints').iterdir())
    assert kept[-2:] == [4, 6]
    assert len(kept) <= 3


def test_continued_run_is_the_uninterrupted_one_bit_for_bit(dataset, tmp_path, uninterrupted):
    assert train(config_of(dataset, tmp_path, steps=4)).step == 4
    # A run that died after its checkpoint had logged more, and was cut off in the middle of a line.
    with (tmp_path / 'log.jsonl').open('a') as log:
        log.write('{"step": 5, "loss": 0.123}\n{"step": 6, "lo')
    train(config_of(dataset, tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_sigterm_ends_with_a_checkpoint_and_the_run_continues(dataset, tmp_path, uninterrupted, monkeypatch):
    update = train_module.TrainingProgress.update

    def stop_after_3(self, step, *args):
        update(self, step, *args)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train_module.TrainingProgress, 'update', stop_after_3)
    before = signal.getsignal(signal.SIGTERM)
    result = train(config_of(dataset, tmp_path))
    assert (result.step, result.stopped) == (3, True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / 'checkpoints' / '3').is_dir()
    monkeypatch.undo()
    train(config_of(dataset, tmp_path))
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_run_continues_bit_for_bit(dataset, tmp_path, uninterrupted):
    """The real program, ended by SIGKILL after its first checkpoint, at whatever it was doing."""
    command = command_of(dataset, tmp_path)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 600
    while not (tmp_path / 'checkpoints' / '2').is_dir():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert_same_run(tmp_path, uninterrupted)


@pytest.fixture(scope='module')
def single_step():
    """A compiled step on one device, and a state to give it."""
    optimizer = make_optimizer(OPTIMIZER, 10)
    state = init_state(MODEL, optimizer, jax.random.key(0), ema=True)
    return jax.jit(make_train_step(MODEL, optimizer, MIXER, seed=0, ema_decay=0.9)), state


def make_batch(embedding=0.05):
    waveforms = np.random.default_rng(0).integers(-9000, 9000, (2, 400)).astype(np.int16)
    return {'waveforms': waveforms, 'embeddings': np.full((2, MODEL.condition_size), embedding, np.float32)}


def test_non_finite_step_changes_nothing_but_the_counts(single_step):
    step, state = single_step
    after, metrics = step(state, make_batch(np.nan))
    assert not np.isfinite(metrics['loss'])
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (1, 1, 1)
    for part in ('params', 'batch_stats', 'opt_state', 'ema'):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), getattr(after, part), getattr(state, part))
        assert jax.tree.all(same), part
    again, _ = step(after, make_batch(np.nan))
    assert (int(again.skipped), int(again.skipped_in_row)) == (2, 2)
    healthy, metrics = step(again, make_batch())
    assert np.isfinite(metrics['loss'])
    assert (int(healthy.step), int(healthy.skipped), int(healthy.skipped_in_row)) == (3, 2, 0)
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), healthy.params, state.params))


def test_silence_is_finite(single_step):
    step, state = single_step
    batch = make_batch()
    batch['waveforms'][:] = 0
    _, metrics = step(state, batch)
    assert float(metrics['loss']) == 0
    assert int(metrics['skipped']) == 0


def test_moving_average_lies_between_old_and_new_weights(single_step):
    step, state = single_step
    after, _ = step(state, make_batch())
    old, new = state.params['resunet']['after_conv']['bias'], after.params['resunet']['after_conv']['bias']
    average = after.ema['params']['resunet']['after_conv']['bias']
    np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, rtol=1e-5)  # young: (1 + 0) / (10 + 0) of the old


def test_non_finite_steps_in_a_row_end_the_run(dataset, tmp_path, monkeypatch):
    make_batches = train_module.make_batches

    class Poisoned:
        corrupt_records = 0

        def __init__(self, batches):
            self.batches, self.count = batches, 0
            self.get_state, self.set_state = batches.get_state, batches.set_state

        def __enter__(self):
            return self.batches.__enter__()

        def __exit__(self, *exception):
            self.batches.__exit__(*exception)

        def __next__(self):
            self.count += 1
            batch = next(self.batches)
            if self.count > 2:
                batch['embeddings'][:] = np.nan
            return batch

    monkeypatch.setattr(train_module, 'make_batches', lambda *a, **k: Poisoned(make_batches(*a, **k)))
    with pytest.raises(TrainingDivergedError, match='not finite for 3 steps in a row'):
        train(config_of(dataset, tmp_path, steps=50, max_skipped_in_row=3))
    assert load(tmp_path).info['step'] == 4  # still there, and with the weights of step 2
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [line['loss'] is None for line in lines] == [False, False, True, True, True]


def test_labels_reach_a_mixer_that_avoids_them(dataset, tmp_path, monkeypatch):
    avoiding = SegmentMixer(mix_group=2, avoid_same_label=True)
    asked = []

    def make_batches(*arguments, labels, **settings):
        asked.append(labels)
        raise DataError('enough')

    monkeypatch.setattr(train_module, 'make_batches', make_batches)
    for mixer in (MIXER, avoiding):
        with pytest.raises(DataError, match='enough'):
            train(dataclasses.replace(config_of(dataset, tmp_path), mixing=mixer))
    assert asked == [False, True]

    optimizer = make_optimizer(OPTIMIZER, 1)
    state = jax.eval_shape(lambda: init_state(MODEL, optimizer, jax.random.key(0), ema=False))
    shapes = {'waveforms': ((4, 400), np.int16), 'embeddings': ((4, 512), np.float32), 'labels': ((4, 16), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    step = make_train_step(MODEL, optimizer, avoiding, seed=0, absent=AbsentQueries())
    assert jax.eval_shape(step, state, batch)[1]['loss'].shape == ()
    del batch['labels']
    with pytest.raises(ValueError, match='avoid_same_label needs labels'):
        jax.eval_shape(step, state, batch)


def test_another_configuration_in_the_same_workdir_is_refused(dataset, uninterrupted):
    other = ModelConfig(**{**MODEL.__dict__, 'hop_size': 32})
    with pytest.raises(CheckpointError, match=r'model\.hop_size was 64, is 32'):
        train(config_of(dataset, uninterrupted, model=other))
    with pytest.raises(CheckpointError, match=r'optimizer\.amsgrad was True, is False'):
        train(config_of(dataset, uninterrupted, optimizer=OptimizerConfig(schedule='constant', amsgrad=False)))
    with pytest.raises(CheckpointError, match='ema_decay above 0 was True, is False'):
        train(config_of(dataset, uninterrupted, ema_decay=0.0))
    assert json.loads((uninterrupted / 'config.json').read_text())['config']['model']['hop_size'] == 64
    assert load(uninterrupted).info['step'] == 6


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'workdir': ''}, '--workdir'),
        ({'batch_size': 20}, 'use 16 or 32'),
        ({'batch_size': 2}, 'use 16'),
        ({'model': ModelConfig(condition_size=7)}, '--model.condition-size 512'),
        ({'absent': AbsentQueries(share=0.1)}, 'absent.share needs a mix_group above max_mix_num'),
    ],
)
def test_settings_that_do_not_fit_are_refused(dataset, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        train(TrainConfig(**{**config_of(dataset, tmp_path).__dict__, **settings}))
    assert not list(tmp_path.iterdir())


def test_workdir_that_cannot_be_one(dataset, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot write checkpoints to'):
        train(config_of(dataset, tmp_path / 'file' / 'run'))


def test_batch_size_of_whole_groups_per_device():
    mesh = make_mesh()
    check_batch_size(64, SegmentMixer(mix_group=4), mesh)
    check_batch_size(8, SegmentMixer(), mesh)
    with pytest.raises(ConfigError, match='use 32 or 64'):
        check_batch_size(40, SegmentMixer(mix_group=4), mesh)
    with pytest.raises(ConfigError, match='max_mix_num 9 needs'):
        check_batch_size(8, SegmentMixer(max_mix_num=9), mesh)


def test_rate_and_clipping_may_change_where_a_run_is_continued(dataset, tmp_path):
    """What the error of a diverged run advises."""
    train(config_of(dataset, tmp_path, steps=2))
    tamer = OptimizerConfig(schedule='constant', learning_rate=1e-4, clip_norm=1.0, weight_decay=0.01)
    assert train(config_of(dataset, tmp_path, steps=4, optimizer=tamer)).step == 4
    assert load(tmp_path).info['config']['optimizer']['clip_norm'] == 1.0


def test_validation_scores_checkpoints_and_its_faults_cost_none(dataset, tmp_path, capsys):
    bench = tmp_path / 'bench'
    bench.mkdir()
    with pytest.raises(DataError, match=r'music_eval\.csv'):
        train(config_of(dataset, tmp_path / 'run', validation=str(bench)))
    assert not (tmp_path / 'run').exists()

    lines = ['idx,caption,src_wav,noise_wav', '0,sound 1 take 0,a,b', '1,sound 2 take 0,b,a']
    (bench / 'music_eval.csv').write_text('\n'.join(lines))
    train(config_of(dataset, tmp_path / 'run', steps=2, validation=str(bench)))
    assert 'not validated' in capsys.readouterr().err
    assert load(tmp_path / 'run').info['step'] == 2

    rng = np.random.default_rng(0)
    for name in ('segment-0', 'segment-1', 'mixture-0', 'mixture-1'):
        write_audio(bench / f'{name}.wav', rng.uniform(-0.5, 0.5, (1, 2000)).astype(np.float32), SAMPLE_RATE)
    train(config_of(dataset, tmp_path / 'run', steps=4, validation=str(bench)))
    assert 'SDRi' in capsys.readouterr().err
