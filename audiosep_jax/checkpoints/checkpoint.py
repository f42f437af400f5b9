"""What a checkpoint holds, wherever it is stored."""

import dataclasses
from pathlib import Path
from typing import Any

from audiosep_jax import config as configs
from audiosep_jax.models.audiosep import ModelConfig

FORMAT_VERSION = 2  # 1: `model.remat` was a bool


def describe(config: Any, encoder: dict | None) -> dict:
    """The JSON record that makes a checkpoint self-contained: the run's configuration and its encoder's identity (None:
    only embeddings can be asked)."""
    return {'format_version': FORMAT_VERSION, 'config': configs.to_dict(config), 'encoder': encoder}


@dataclasses.dataclass(frozen=True)
class InferenceCheckpoint:
    """What separating needs: the model, its weights (the moving average where there is one) and its encoder."""

    model: ModelConfig
    variables: dict
    encoder: dict | None
    step: int
    record: dict
    path: Path

    @property
    def root(self) -> Path:
        """The run's folder, or that of the converted checkpoint."""
        return self.path.parent.parent if self.path.parent.name == 'checkpoints' else self.path
