"""A dry run: what it prints, and that it refuses what the run would refuse."""

import dataclasses
import re

import jax
import pytest
from support.small_dataset import build_small
from support.training_runs import config_of

from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.checkpoints.run_folder import save_for_inference
from audiosep_jax.data.batches import DataConfig, encoder_identity
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.parallel.launch import Detected
from audiosep_jax.parallel.mesh import MeshConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.planning.dry_run import dry_run
from audiosep_jax.training.train_step import Program


@pytest.fixture
def uncompiled(monkeypatch):
    """Skips the compilation, which is the same as in training."""

    class Compiled:
        def memory_analysis(self):
            return None

    monkeypatch.setattr(Program, 'compile_step', lambda self: Compiled())


def test_full_size_on_eight_devices(uncompiled, capsys):
    config = TrainConfig(model=ModelConfig(dtype='bfloat16'), ema_decay=0.999, mesh=MeshConfig(fsdp=2))
    dry_run(config, Detected('slurm', {}))
    said = capsys.readouterr().out
    for line in (
        'launch   1 process, found by slurm',
        'mesh     8 × cpu: data 4 × fsdp 2',
        '25.6 M parameters, bfloat16, remat none, 32000 Hz, window 2048, hop 320',
        'waveforms int16 [96, 160000], [12, 160000] on each device',
        'embeddings float32 [96, 512], [12, 512] on each device',
        '128.2 M numbers, 99.9% of them split over fsdp',
        'none given: --data DIR',
        '6.2 GB of activations (12 clips at a time)',  # 0.52 GB a clip
        '700 GFLOP a clip, 1,000,000 steps, 96.0 M clips',
        'loss     l1\n',
        '200 checkpoints, every 5,000 steps; kept: the newest 2, and the best',
    ):
        assert line in said


def test_data_and_another_memory(uncompiled, capsys, tmp_path):
    build_small(tmp_path / 'data', 6)
    (tmp_path / 'table.csv').write_text('l0,l1\n')
    config = dataclasses.replace(config_of(tmp_path / 'data', tmp_path / 'run', steps=30, loss='snr'), accumulate=2)
    dry_run(dataclasses.replace(config, mixing=SegmentMixer(mix_group=2, together=str(tmp_path / 'table.csv'))))
    said = capsys.readouterr().out
    assert 'loss     snr\n' in said
    assert '4 of 6 labels of the data are not in it' in said
    assert '6 clips, embeddings of words: 80.0 passes in 30 steps' in said
    assert '(1 clips at a time)' in said
    # A network of this size needs smaller units.
    assert re.search(r'model    [1-9][\d,]* parameters, float32', said)
    assert re.search(r'work     [1-9]\d* MFLOP a clip, 30 steps, 480 clips', said)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'batch_size': 20}, 'use 16 or 32'),
        ({'mesh': MeshConfig(fsdp=3)}, 'use one of 1, 2, 4, 8'),
        ({'model': ModelConfig(condition_size=64)}, 'set --model.condition-size'),
    ],
)
def test_what_the_run_would_refuse_is_refused(uncompiled, tmp_path, settings, says):
    build_small(tmp_path / 'data', 6)
    with pytest.raises(ConfigError, match=says):
        dry_run(dataclasses.replace(config_of(tmp_path / 'data', ''), **settings))


def test_the_weights_to_start_from_are_checked(uncompiled, capsys, tmp_path):
    build_small(tmp_path / 'data', 6)
    config = config_of(tmp_path / 'data', tmp_path / 'run', init_from=str(tmp_path / 'other'))
    with pytest.raises(CheckpointError, match='no such checkpoint'):
        dry_run(config)
    assert capsys.readouterr().out == ''
    words = encoder_identity(config.input)
    variables = init_variables(config.model, jax.random.key(0))
    save_for_inference(tmp_path / 'other', variables=variables, record=describe(config, words), step=7)
    dry_run(config)
    assert f'init     {tmp_path / "other"}, step 7\n' in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r'does not fit this run: model\.hop_size was 64, is 32'):
        dry_run(dataclasses.replace(config, model=dataclasses.replace(config.model, hop_size=32)))
    record = describe(config, {**words, 'name': 'clap'})
    save_for_inference(tmp_path / 'clap', variables=variables, record=record, step=7)
    other = dataclasses.replace(config, init_from=str(tmp_path / 'clap'))
    with pytest.raises(CheckpointError, match=r'encoder\.name was clap, is words'):
        dry_run(other)
    dry_run(dataclasses.replace(other, input=DataConfig()))  # without data there is no encoder to compare
    # An existing run is resumed from its own checkpoint.
    save_for_inference(tmp_path / 'run' / 'checkpoints' / '3', variables=variables, record=record, step=3)
    dry_run(dataclasses.replace(config, init_from='nowhere'))
