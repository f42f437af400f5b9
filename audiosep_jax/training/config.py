"""The configuration of a training run, and the checks that it needs before it starts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import tyro
from jax.sharding import Mesh

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.data.co_occurrence import read_co_occurrence
from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import check_share
from audiosep_jax.parallel.mesh import MeshConfig
from audiosep_jax.training.augmentation import Augmentation
from audiosep_jax.training.losses import LossName
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig
from audiosep_jax.training.query_augmentation import QueryAugmentation


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are the article's recipe; `experiments/` holds the others.

    Attributes:
        workdir: folder of checkpoints and logs, or an address in a bucket; if it holds a run, that run is resumed.
        input: what to train on.
        steps: optimizer steps of the whole run, including those before a restart.
        batch_size: clips per step over all devices of all hosts.
        accumulate: number of parts of the batch that go through the network one after the other; more parts take less
            memory and more time.
        seed: seed of the weights, the order of the data, the crops and the mixtures.
        init_from: checkpoint (a run, a converted one, a name of `audiosep-jax models`, a repository on the hub) whose
            weights a new run starts from.
        loss: how estimates are compared with their targets: by the mean absolute error (`l1`), as in the article, or by
            another loss (docs/train.md); a run that is resumed keeps its loss.
        equalizer: how much of what the checkpoints of this run separate comes from an equalizer, 0 to 1; it knows the
            mean spectra of the clips by caption, and the network is trained as without it (docs/train.md).
        ema_decay: decay of the moving average of the weights, which evaluation and separation then use; 0: no average.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep: how many of the newest checkpoints are kept; the best one is kept as well.
        max_skipped_in_row: the run ends after this many non-finite steps in a row.
        validation: folder of any benchmark (docs/evaluate.md), evaluated at every checkpoint; its SDRi decides which
            checkpoint is best (without it, the mean loss since the previous checkpoint does).
        tensorboard: write TensorBoard's files.
        wandb: project of Weights & Biases that gets the same numbers (extra `wandb`).
        profile: write a trace of five steps, soon after the start, to WORKDIR/profile.
        profile_every: steps between further such traces, to WORKDIR/profile/step-N; the newest ten are kept; 0: none.
        profiler_port: port where each process lets TensorBoard take a trace while the run goes on, to anybody who can
            reach it; 0: none. Further processes on a host take the next ports.
        deterministic: on GPUs, compute the same bits each time, which costs speed; CPUs and TPUs always do.
    """

    workdir: str = ''
    input: Annotated[DataConfig, tyro.conf.arg(name='')] = dataclasses.field(default_factory=DataConfig)
    steps: int = 1_000_000
    batch_size: int = 96
    accumulate: int = 1
    seed: int = 0
    init_from: str = ''
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    mixing: SegmentMixer = dataclasses.field(default_factory=lambda: SegmentMixer(mix_group=4))
    absent: AbsentQueries = dataclasses.field(default_factory=AbsentQueries)
    query: QueryAugmentation = dataclasses.field(default_factory=QueryAugmentation)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loss: LossName = 'l1'
    equalizer: float = 0.0
    ema_decay: float = 0.0
    log_every: int = 50
    checkpoint_every: int = 5000
    keep: int = 2
    max_skipped_in_row: int = 20
    validation: str = ''
    tensorboard: bool = True
    wandb: Annotated[str, tyro.conf.arg(metavar='PROJECT')] = ''
    profile: bool = False
    profile_every: Annotated[int, tyro.conf.arg(metavar='STEPS')] = 0
    profiler_port: Annotated[int, tyro.conf.arg(metavar='PORT')] = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
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
        if self.loss not in get_args(LossName):
            raise ConfigError(f'loss {self.loss!r} is none of {", ".join(get_args(LossName))} (--loss)')
        if self.profile_every < 0:
            raise ConfigError(f'profile_every must be at least 0, got {self.profile_every} (--profile-every)')
        if not 0 <= self.profiler_port < 1 << 16:
            raise ConfigError(
                f'profiler_port must be at least 0 and below 65536, got {self.profiler_port} (--profiler-port)'
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f'ema_decay must be at least 0 and below 1, got {self.ema_decay} (--ema-decay)')
        check_share(self.equalizer)

    def check(self, mesh: Mesh, encoder: Mapping[str, Any] | None = None) -> None:
        """Checks that the parts of the configuration fit together, on these devices and with these embeddings.

        A run and its dry run call it twice: before the data are copied to this host, and with the encoder afterwards.

        Args:
            mesh: the devices to train on.
            encoder: the identity of the encoder of the data's embeddings; None if it is not known.

        Raises:
            ConfigError: the batch does not divide over the devices, the mixing groups are too small, or the network
                takes embeddings of another size.
            DataError: the table of labels that may meet cannot be read.
        """
        check_batch_size(self.batch_size, self.mixing, mesh, accumulate=self.accumulate)
        if self.mixing.together:
            read_co_occurrence(self.mixing.together)
        if self.equalizer and not self.input.use_text_ratio:
            raise ConfigError('an equalizer is made from captions, and use_text_ratio is 0: omit --equalizer')
        self.absent.check(self.mixing, self.batch_size)
        self.query.check(self.mixing, self.batch_size)
        if encoder is not None and encoder['embedding_size'] != self.model.condition_size:
            raise ConfigError(
                f'model.condition_size is {self.model.condition_size}, but the embeddings of {encoder["name"]!r} '
                f'have {encoder["embedding_size"]} numbers: set --model.condition-size {encoder["embedding_size"]}'
            )


def check_batch_size(batch_size: int, mixer: SegmentMixer, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Refuses a batch that does not divide over the devices in whole mixing groups, and names the nearest that do.

    Args:
        batch_size: B, over all devices.
        mixer: its mixing groups must not cross devices.
        mesh: the devices.
        accumulate: parts of a device's share that go through the network one after the other.

    Raises:
        ConfigError: batch_size is not a multiple of devices * lcm(mix_group, accumulate), or too small for the mixer.
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
