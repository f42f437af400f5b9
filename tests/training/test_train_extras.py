"""What a run can be asked for besides training: starting weights, a profile, its speed, nothing compiled twice."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from support.training_runs import MODEL, config_of, losses_in, variables_of

import audiosep_jax.training.train as train_module
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.optim import OptimizerConfig
from audiosep_jax.training.train import train


@pytest.fixture(scope='module')
def run(dataset, tmp_path_factory):
    """A run of six steps, profiled from its third on, on devices of a known peak, with what was compiled meanwhile."""
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
        patch.setattr(train_module, 'peak_flops', lambda kind, dtype: 1e9)
        patch.setattr(train_module, '_PROFILED', range(2, 4))
        train(config_of(dataset, workdir, profile=True))
    return workdir, at_step


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
        flops = train_module.training_flops(MODEL, 400)
        assert line['mfu'] == pytest.approx(line['clips_per_second'] * flops / 8e9)
    assert (workdir / 'tensorboard').is_dir()


def test_profile_is_a_trace_of_some_steps(run):
    workdir, _ = run
    assert [*(workdir / 'profile').rglob('*.xplane.pb')]


def test_new_run_starts_from_the_averaged_weights_of_another(dataset, run, tmp_path):
    source, _ = run
    still = OptimizerConfig(schedule='constant', learning_rate=1e-30)
    train(config_of(dataset, tmp_path / 'new', steps=1, init_from=str(source), optimizer=still, ema_decay=0.0))
    found = train_module.open_checkpoint(tmp_path / 'new').variables['params']
    same = jax.tree.map(np.array_equal, found, jax.device_get(variables_of(source)['params']))
    assert jax.tree.all(same)
    # A run that has begun goes on from its own checkpoint, wherever it began.
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
