"""The configuration of a training run."""

import dataclasses
import math
from typing import Annotated

import tyro
from jax.sharding import Mesh

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.parallel.mesh import MeshConfig
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run. The defaults are the article's recipe; `experiments/` holds the others.

    Attributes:
        workdir: folder of checkpoints and log, or an address in a bucket; a run found there is continued.
        input: what to train on.
        steps: optimizer steps of the whole run, those before a restart included.
        batch_size: clips per step over all devices of all hosts.
        accumulate: parts of the batch that go through the network one after the other: less memory, more time.
        seed: of weights, order of the data, crops and mixtures.
        init_from: a checkpoint (a run, a converted one, a repository of the hub) whose weights a new run starts from.
        ema_decay: of the moving average of the weights, which evaluation and separation then use; 0: none.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep: newest checkpoints kept; the best one is kept besides.
        max_skipped_in_row: so many non-finite steps in a row end the run.
        validation: folder of any benchmark (docs/evaluate.md), evaluated at every checkpoint; its SDRi tells which
            checkpoint is best (without it: the mean loss since the one before).
        tensorboard: write TensorBoard's files.
        wandb: a project of Weights & Biases that gets the same numbers (extra `wandb`).
        profile: write a trace of five steps, soon after the start.
    """

    workdir: str = ''
    input: Annotated[DataConfig, tyro.conf.arg(name='')] = dataclasses.field(default_factory=DataConfig)
    steps: int = 1_000_000
    batch_size: int = 96
    accumulate: int = 1
    seed: int = 0
    init_from: str = ''
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mixing: SegmentMixer = dataclasses.field(default_factory=lambda: SegmentMixer(mix_group=4))
    absent: AbsentQueries = dataclasses.field(default_factory=AbsentQueries)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    ema_decay: float = 0.0
    log_every: int = 50
    checkpoint_every: int = 5000
    keep: int = 2
    max_skipped_in_row: int = 20
    validation: str = ''
    tensorboard: bool = True
    wandb: Annotated[str, tyro.conf.arg(metavar='PROJECT')] = ''
    profile: bool = False

    def __post_init__(self):
        for name in (
            'steps',
            'batch_size',
            'accumulate',
            'log_every',
            'checkpoint_every',
            'keep',
            'max_skipped_in_row',
        ):
            if getattr(self, name) < 1:
                flag = f'--{name.replace("_", "-")}'
                raise ConfigError(f'{name} must be at least 1, got {getattr(self, name)} ({flag})')
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f'ema_decay must be at least 0 and below 1, got {self.ema_decay} (--ema-decay)')


def check_batch_size(batch_size: int, mixer: SegmentMixer, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Refuses a batch that does not divide over the devices in whole mixing groups, and names the nearest that do.

    Args:
        batch_size: B, over all devices.
        accumulate: parts of a device's share that go through the network one after the other.

    Raises:
        ConfigError: batch_size is no multiple of devices * lcm(mix_group, accumulate), or too small for the mixer.
    """
    unit = mesh.size * math.lcm(max(mixer.mix_group, 1), accumulate)
    if batch_size <= 0 or batch_size % unit:
        below = batch_size // unit * unit
        nearest = ' or '.join(str(n) for n in (below, below + unit) if n > 0)
        parts = f' and {accumulate} parts each' if accumulate > 1 else ''
        raise ConfigError(
            f'batch_size (--batch-size) {batch_size} does not divide over {mesh.size} devices in mixing groups of '
            f'{mixer.mix_group or "any size"}{parts}: use {nearest}'
        )
    mixer.group_size(batch_size)
