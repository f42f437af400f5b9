"""Checkpoints of a separator of a few weights, for the tests of what loads one."""

from pathlib import Path

import jax

from audiosep_jax.checkpoints.checkpoint import Level, describe
from audiosep_jax.checkpoints.convert import ConvertedConfig
from audiosep_jax.checkpoints.run_folder import save_for_inference
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.models.audiosep import ModelConfig, init_variables

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 2)


def small_variables() -> dict:
    """Random weights, with biases that make the mask depend on the query."""
    fresh = init_variables(CONFIG, jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh['params'])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.device_get({**fresh, 'params': jax.tree.unflatten(tree, noisy)})


def save_small(folder: Path, *, step: int = 7, level: Level | None = None) -> Path:
    """Writes a checkpoint with the encoder `words`; returns its folder."""
    record = describe(ConvertedConfig(CONFIG, 'tests'), load_encoder('words').identity())
    record |= level.record() if level is not None else {}
    save_for_inference(folder / 'checkpoints' / str(step), variables=small_variables(), record=record, step=step)
    return folder
