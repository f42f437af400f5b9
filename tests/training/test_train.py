"""Training: what a run leaves behind, that it resumes exactly, and where it may start from."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.processes import command_of
from support.training_runs import BATCH_SIZE, MIXER, MODEL, config_of, losses_in, variables_of

import audiosep_jax.training.train as train_module
from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.errors import CheckpointError, ConfigError, DataError, TrainingDivergedError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.separation.loading import load
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.monitoring import profiling, speed
from audiosep_jax.training.optim import OptimizerConfig
from audiosep_jax.training.train import train

pytestmark = pytest.mark.usefixtures('shared_programs')


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


@pytest.fixture(scope='module')
def continued(dataset, tmp_path_factory):
    """A run that was down for half a second after its fourth step."""
    workdir = tmp_path_factory.mktemp('continued')
    assert train(config_of(dataset, workdir, steps=4)).step == 4
    # A run that died after its checkpoint had logged more, and was cut off in the middle of a line.
    with (workdir / 'log.jsonl').open('a') as log:
        log.write('{"step": 5, "loss": 0.123}\n{"step": 6, "lo')
    time.sleep(0.5)
    train(config_of(dataset, workdir))
    return workdir


def test_continued_run_is_the_uninterrupted_one_bit_for_bit(continued, uninterrupted):
    assert_same_run(continued, uninterrupted)


def test_an_equalizer_leaves_the_network_as_it_is_and_a_finished_run_gets_one(dataset, tmp_path, uninterrupted):
    workdir = tmp_path / 'run'
    train(config_of(dataset, workdir))
    assert load(workdir).equalizer is None
    train(config_of(dataset, workdir, equalizer=0.5))
    assert_same_run(workdir, uninterrupted)
    separator = load(workdir)
    assert separator.equalizer.share == 0.5
    assert len(separator.equalizer.counts) == 24  # all captions
    train(config_of(dataset, workdir, equalizer=0.25))
    assert load(workdir).equalizer.share == 0.25
    train(config_of(dataset, workdir))
    assert load(workdir).equalizer is None


@pytest.mark.slow
def test_goodput_follows_from_the_log_over_all_starts(continued):
    lines = [json.loads(line) for line in (continued / 'log.jsonl').read_text().splitlines()]
    in_steps = 0.0
    for line in lines:
        in_steps += line['seconds'] * (1 - line['input_wait'])
        assert line['goodput'] == pytest.approx(in_steps / line['elapsed'])
        assert line['time'] - line['elapsed'] == pytest.approx(lines[0]['time'] - lines[0]['elapsed'])
        assert 0 < line['goodput'] < 1
    assert lines[4]['elapsed'] - lines[3]['elapsed'] > 0.5
    assert lines[4]['goodput'] < lines[3]['goodput'], 'while the run was down, it took no steps'


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def largest_file(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize('damage', ['arrays', 'position', 'record'])
def test_a_damaged_newest_checkpoint_is_passed_over(dataset, tmp_path, uninterrupted, capsys, damage):
    train(config_of(dataset, tmp_path, steps=4))
    step = tmp_path / 'checkpoints' / '4'
    if damage == 'record':
        shutil.rmtree(step / 'config')
    else:
        flip(largest_file(step / {'arrays': 'optimizer', 'position': 'data'}[damage]))
    train(config_of(dataset, tmp_path))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'going back' in line]
    assert line.startswith(f'going back to step 2, since {step} cannot be read: damaged: ')
    assert line.endswith('; it is now 4.damaged')
    assert (tmp_path / 'checkpoints' / '4').is_dir()
    assert_same_run(tmp_path, uninterrupted)


def test_where_no_checkpoint_is_whole_nothing_is_deleted(dataset, tmp_path):
    train(config_of(dataset, tmp_path, steps=4))
    for step in (2, 4):
        flip(largest_file(tmp_path / 'checkpoints' / str(step) / 'params'))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(
        CheckpointError,
        match=r'no checkpoint is whole \(.*/4 cannot be read: damaged: the checksum of params/.*differs',
    ):
        train(config_of(dataset, tmp_path))
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.slow
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


@pytest.mark.slow
def test_non_finite_steps_in_a_row_end_the_run(dataset, tmp_path, monkeypatch):
    make_batches = train_module.make_batches

    class Poisoned:
        def __init__(self, batches):
            self.batches, self.count = batches, 0

        def __getattr__(self, name):
            return getattr(self.batches, name)

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


@pytest.mark.slow
def test_a_run_says_its_loss_and_which_labels_its_table_lacks(dataset, uninterrupted, tmp_path, capsys):
    (tmp_path / 'table.csv').write_text('l0,l1,l2\nl3\n')
    mixing = dataclasses.replace(MIXER, together=str(tmp_path / 'table.csv'))
    config = dataclasses.replace(config_of(dataset, tmp_path / 'run', steps=2, loss='si-sdr'), mixing=mixing)
    assert train(config).step == 2
    said = capsys.readouterr().err
    assert 'the loss is si-sdr, in place of l1' in said
    assert 'labels of the data are not in it' in said
    for workdir, name in ((tmp_path / 'run', 'si-sdr'), (uninterrupted, 'l1')):
        lines = [json.loads(line) for line in (workdir / 'log.jsonl').read_text().splitlines()]
        assert {line['loss_function'] for line in lines} == {name}
        assert json.loads((workdir / 'config.json').read_text())['config']['loss'] == name
    assert all(-30 <= loss <= 30 for loss in losses_in(tmp_path / 'run').values())
    (tmp_path / 'other.csv').write_text('owl,whale\n')
    mixing = dataclasses.replace(MIXER, together=str(tmp_path / 'other.csv'))
    with pytest.raises(ConfigError, match="none of its labels, such as 'owl', 'whale', is one of the data"):
        train(dataclasses.replace(config, mixing=mixing, workdir=str(tmp_path / 'other')))
    assert not (tmp_path / 'other' / 'checkpoints').exists()


def test_a_run_of_an_earlier_version_had_the_loss_l1():
    record = describe(TrainConfig(), None)
    older = json.loads(json.dumps(record))
    del older['config']['loss']
    train_module._check_same_run(older, record, Path('run'))
    with pytest.raises(CheckpointError, match='loss was l1, is snr'):
        train_module._check_same_run(older, describe(TrainConfig(loss='snr'), None), Path('run'))


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


def test_another_configuration_in_the_same_workdir_is_refused(dataset, uninterrupted):
    other = ModelConfig(**{**MODEL.__dict__, 'hop_size': 32})
    with pytest.raises(CheckpointError, match=r'model\.hop_size was 64, is 32'):
        train(config_of(dataset, uninterrupted, model=other))
    with pytest.raises(CheckpointError, match=r'optimizer\.amsgrad was True, is False'):
        train(config_of(dataset, uninterrupted, optimizer=OptimizerConfig(schedule='constant', amsgrad=False)))
    with pytest.raises(CheckpointError, match='ema_decay above 0 was True, is False'):
        train(config_of(dataset, uninterrupted, ema_decay=0.0))
    with pytest.raises(CheckpointError, match='loss was l1, is snr'):
        train(config_of(dataset, uninterrupted, loss='snr'))
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


@pytest.mark.slow
@pytest.mark.nightly
def test_rate_and_clipping_may_change_where_a_run_is_continued(dataset, tmp_path):
    """What the error of a diverged run advises."""
    train(config_of(dataset, tmp_path, steps=2))
    tamer = OptimizerConfig(schedule='constant', learning_rate=1e-4, clip_norm=1.0, weight_decay=0.01)
    assert train(config_of(dataset, tmp_path, steps=4, optimizer=tamer)).step == 4
    assert load(tmp_path).info['config']['optimizer']['clip_norm'] == 1.0


# ---- Starting weights, a profile, speed, and nothing compiled twice ----


@pytest.fixture(scope='module')
def run(dataset, tmp_path_factory):
    """A run of six steps on devices of a known peak, with what was compiled meanwhile. Steps 3 and 5 are traced."""
    workdir = tmp_path_factory.mktemp('run')
    compiled, at_step = [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if 'backend_compile' in event else None
    )
    update = train_module.TrainingProgress.update

    def counting(self, step, *args):
        update(self, step, *args)
        at_step[step] = len(compiled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module.TrainingProgress, 'update', counting)
        patch.setattr(speed, 'peak_flops', lambda kind, dtype: 1e9)
        patch.setattr(profiling, '_WARM_UP', 2)
        patch.setattr(profiling, '_STEPS', 1)
        train(config_of(dataset, workdir, profile=True, profile_every=4))
    return workdir, at_step


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step(run):
    _, at_step = run
    assert at_step[1] > 0
    # From the second step on: with the first checkpoint, made after it, Orbax copies the arrays.
    assert at_step[6] - at_step[3] == 0
    assert at_step[2] - at_step[1] == 0


def test_log_tells_speed_utilisation_and_waiting(run):
    workdir, _ = run
    lines = [json.loads(line) for line in (workdir / 'log.jsonl').read_text().splitlines()]
    for line in lines:
        assert line['clips_per_second_per_device'] == pytest.approx(line['clips_per_second'] / 8)
        assert 0 <= line['input_wait'] <= 1
        flops = speed.training_flops(MODEL, 400)
        assert line['mfu'] == pytest.approx(line['clips_per_second'] * flops / 8e9)
    assert (workdir / 'tensorboard').is_dir()


def test_profile_is_a_trace_of_some_steps(run):
    workdir, _ = run
    for folder in ('profile', 'profile/step-4'):
        assert [*(workdir / folder / 'plugins').rglob('*.xplane.pb')]


@pytest.mark.slow
def test_new_run_starts_from_the_averaged_weights_of_another(dataset, run, tmp_path):
    source, _ = run
    still = OptimizerConfig(schedule='constant', learning_rate=1e-30)
    train(config_of(dataset, tmp_path / 'new', steps=1, init_from=str(source), optimizer=still, ema_decay=0.0))
    found = train_module.open_checkpoint(tmp_path / 'new').variables['params']
    same = jax.tree.map(np.array_equal, found, jax.device_get(variables_of(source)['params']))
    assert jax.tree.all(same)
    # A run resumes from its own checkpoint, whatever weights it started from.
    train(config_of(dataset, tmp_path / 'new', steps=2, init_from='nowhere', optimizer=still, ema_decay=0.0))
    assert [*losses_in(tmp_path / 'new')] == [1, 2]


def test_weights_of_another_network_are_refused(dataset, run, tmp_path):
    source, _ = run
    other = dataclasses.replace(MODEL, hop_size=32)
    with pytest.raises(CheckpointError, match=r'--init-from .* does not fit this run: model\.hop_size was 64, is 32'):
        train(config_of(dataset, tmp_path / 'new', init_from=str(source), model=other))
    with pytest.raises(CheckpointError, match='no such checkpoint'):
        train(config_of(dataset, tmp_path / 'new', init_from=str(tmp_path / 'nothing')))
    assert not (tmp_path / 'new').exists()


def test_a_used_port_for_the_profiler_is_refused(dataset, tmp_path):
    with socket.create_server(('', 0)) as other:
        config = config_of(dataset, tmp_path / 'run', profiler_port=other.getsockname()[1])
        with pytest.raises(ConfigError, match='cannot be used: Address already in use; choose another port'):
            train(config)
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_finished_run_is_left_as_it_is(dataset, run, capsys):
    workdir, _ = run
    before = (workdir / 'log.jsonl').read_bytes()
    assert train(config_of(dataset, workdir)).step == 6
    assert (workdir / 'log.jsonl').read_bytes() == before
    assert 'compiling' not in capsys.readouterr().err


@pytest.mark.parametrize('settings', [{'accumulate': 0}, {'wandb': 'project'}, {'accumulate': 3}])
def test_settings_out_of_range(dataset, tmp_path, settings):
    with pytest.raises(ConfigError):
        train(TrainConfig(**{**config_of(dataset, tmp_path / 'run').__dict__, **settings}))
    assert not (tmp_path / 'run').exists()
