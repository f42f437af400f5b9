"""What a checkpoint holds, wherever it is stored, and what the modules that store it share."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from audiosep_jax import config as configs
from audiosep_jax.errors import CheckpointError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.storage.atomic import check_writable

FORMAT_VERSION = 2  # version 1 stored `model.remat` as a bool
# What precedes the separator's tensors in the original's Lightning module, and so in every file made for PyTorch.
SEPARATOR_PREFIX = 'ss_model.'


class LevelRecord(TypedDict):
    """A `Level` in the JSON records."""

    low_db: float
    median_db: float
    high_db: float
    mixtures: int


@dataclasses.dataclass(frozen=True)
class Level:
    """How loud the mixtures were on which a network was trained: percentiles of their RMS levels over a segment.

    A level of 0 dB is a mean square of 1.

    Attributes:
        low_db: the 10th percentile.
        median_db: the 50th.
        high_db: the 90th.
        mixtures: how many mixtures were measured; 0 if the level is only assumed.

    Raises:
        CheckpointError: the numbers are not finite or not in order.
    """

    low_db: float
    median_db: float
    high_db: float
    mixtures: int

    def __post_init__(self) -> None:
        percentiles = (self.low_db, self.median_db, self.high_db)
        if not all(map(math.isfinite, percentiles)) or list(percentiles) != sorted(percentiles) or self.mixtures < 0:
            raise CheckpointError(f'its record is damaged: no level has the percentiles {percentiles}')

    @classmethod
    def read(cls, record: dict[str, Any]) -> 'Level | None':
        """Returns the level in a record; None if it has none, as those of older versions and of other programs."""
        found = record.get('level')
        return None if found is None else cls(*(found[field.name] for field in dataclasses.fields(cls)))

    def record(self) -> dict[str, Any]:
        """Returns the entry of a record that `read` reads."""
        return {'level': dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class InferenceCheckpoint:
    """What separating needs of a checkpoint.

    Attributes:
        model: the network's configuration.
        variables: `params` and `batch_stats`, the moving average of the weights where the run kept one.
        encoder: the query encoder's identity; None if queries can only be embeddings.
        step: the training step.
        record: what `describe` made, and the step; of a hub folder only the network's part of the configuration.
        path: the folder that the weights were read from.
        verified: whether checksums were stored with it, and are right.
        level: of the mixtures that the network was trained on, if the checkpoint says it.
        equalizer: of the training set, if there is one beside the checkpoint (`equalizer_file.py`).
    """

    model: ModelConfig
    variables: dict[str, Any]
    encoder: dict[str, Any] | None
    step: int
    record: dict[str, Any]
    path: Path
    verified: bool = False
    level: Level | None = None
    equalizer: Equalizer | None = None

    @property
    def root(self) -> Path:
        """The folder of the whole run, converted checkpoint or repository."""
        return self.path.parent.parent if self.path.parent.name == 'checkpoints' else self.path


def describe(config: Any, encoder: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the JSON record that makes a checkpoint self-contained.

    Args:
        config: the run's configuration, a dataclass with a field `model`.
        encoder: the query encoder's identity; None if queries can only be embeddings.
    """
    return {'format_version': FORMAT_VERSION, 'config': configs.to_dict(config), 'encoder': encoder}


def check_free(path: Path, *, remedy: str = 'choose another name') -> None:
    """Checks that a new file or folder can be made at `path`. An empty folder counts as free.

    Args:
        path: where to make it.
        remedy: what the user can do if the path is taken; the end of the message.

    Raises:
        CheckpointError: the path is taken, or the folder above it does not exist or is not writable.
    """
    check_writable(path, '', kind='either', error=CheckpointError)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f'{path} already exists: {remedy}')


@contextlib.contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Puts the path in front of the message of a CheckpointError raised inside."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
