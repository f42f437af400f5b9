"""Small training runs: their configuration, and what they leave behind."""

import json
from pathlib import Path

from support.small_dataset import SAMPLE_RATE

from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.data.batches import DataConfig
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig

MODEL = ModelConfig(sample_rate=SAMPLE_RATE, window_size=128, hop_size=64, widths=(2, 2, 2, 2, 2, 2))
OPTIMIZER = OptimizerConfig(schedule='constant')
MIXER = SegmentMixer(mix_group=2)
BATCH_SIZE = 16  # 8 devices, groups of 2


def config_of(dataset, workdir, **settings) -> TrainConfig:
    settings = {'steps': 6, 'checkpoint_every': 2, 'log_every': 1, 'ema_decay': 0.9, **settings}
    return TrainConfig(
        workdir=str(workdir),
        input=DataConfig(data=(str(dataset),), segment_seconds=0.05, threads=2, read_ahead=2),
        batch_size=BATCH_SIZE,
        model=settings.pop('model', MODEL),
        mixing=MIXER,
        optimizer=settings.pop('optimizer', OPTIMIZER),
        **settings,
    )


def losses_in(workdir) -> dict[int, float]:
    lines = [json.loads(line) for line in (Path(workdir) / 'log.jsonl').read_text().splitlines()]
    steps = [line['step'] for line in lines]
    assert steps == sorted(set(steps)), 'each step is logged once'
    return {line['step']: line['loss'] for line in lines}


def variables_of(workdir):
    checkpoint = load_for_inference(workdir)
    assert checkpoint.step == 6
    return checkpoint.variables
