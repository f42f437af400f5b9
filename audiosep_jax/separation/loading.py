"""Loads a separator from a checkpoint, with its query encoder."""

import dataclasses
from pathlib import Path
from typing import Literal

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.encoders.base import QueryEncoder, UnavailableEncoder
from audiosep_jax.encoders.registry import encoder_names, load_encoder
from audiosep_jax.errors import CheckpointError, ConfigError, DownloadError, EncoderMismatchError
from audiosep_jax.models.equalizer import Equalizer, check_share
from audiosep_jax.separation.level import LevelRule
from audiosep_jax.separation.separator import Separator


def load(
    path: str | Path | None = None,
    *,
    step: int | None = None,
    max_whole_seconds: float | None = None,
    level: LevelRule | None = None,
    dtype: Literal['float32', 'bfloat16'] | None = None,
    equalizer: float | None = None,
) -> Separator:
    """Loads a Separator from a checkpoint.

    Args:
        path: a name of `audiosep-jax models`, which is fetched and converted once; a run's workdir, its `checkpoints`
            folder, one step's folder, a converted checkpoint, or a repository of the hub. None means `audiosep`.
        step: which step to load, by default the newest.
        max_whole_seconds: see `Separator`.
        level: see `Separator`; by default `auto` if the checkpoint says at which level it was trained.
        dtype: of the network's activations; by default the checkpoint's. bfloat16 is for accelerators, and costs some
            accuracy (docs/separate.md has it measured).
        equalizer: share of the checkpoint's equalizer in the results, 0 to 1; by default the checkpoint's own, which
            is 0 for one without an equalizer.

    Raises:
        ConfigError: an unknown level or dtype, or a share of an equalizer that the checkpoint does not have.
        CheckpointError: the path is not a checkpoint, the checkpoint is damaged, or this version does not have its
            encoder.
        DownloadError: the checkpoint is in the hub, which cannot be reached.
        EncoderMismatchError: this version has the checkpoint's encoder, but gives other embeddings.
    """
    if equalizer is not None:
        check_share(equalizer)
    checkpoint = open_checkpoint(path, step=step)
    chosen = _equalizer_of(checkpoint, equalizer)
    info = {
        'step': checkpoint.step,
        'encoder': checkpoint.encoder,
        'config': checkpoint.record['config'],
        'path': str(checkpoint.path),
        'equalizer': 0.0 if chosen is None else chosen.share,
    }
    return Separator(
        checkpoint.model if dtype is None else dataclasses.replace(checkpoint.model, dtype=dtype),
        checkpoint.variables,
        load_encoder_of(checkpoint),
        info=info,
        max_whole_seconds=max_whole_seconds,
        trained_level=checkpoint.level,
        level=level,
        equalizer=chosen,
    )


def _equalizer_of(checkpoint: InferenceCheckpoint, share: float | None) -> Equalizer | None:
    if share is None or checkpoint.equalizer is None:
        if share:
            raise ConfigError(
                f'{checkpoint.root} has no equalizer: omit --equalizer {share:g} (training makes one by that flag)'
            )
        return checkpoint.equalizer
    return dataclasses.replace(checkpoint.equalizer, share=share)


def load_encoder_of(checkpoint: InferenceCheckpoint) -> QueryEncoder | None:
    """Returns the query encoder of a checkpoint; one that only has an identity if its weights are missing.

    Raises:
        CheckpointError: this version does not have the encoder.
        EncoderMismatchError: this version has the encoder, but gives other embeddings.
    """
    if checkpoint.encoder is None:
        return None
    try:
        return load_encoder(checkpoint.encoder, folders=[checkpoint.root / 'encoder'])
    except EncoderMismatchError:
        raise
    except (ConfigError, DownloadError, CheckpointError) as error:
        if checkpoint.encoder.get('name') not in encoder_names():
            raise CheckpointError(f'{checkpoint.path}: {error}') from error
        # Queries by embedding work without the encoder. A query by text will raise this error.
        if 'source' in checkpoint.encoder:
            place = checkpoint.root / 'encoder'
            error = type(error)(f'the weights of its query encoder are missing: put them into {place} ({error})')
        return UnavailableEncoder(checkpoint.encoder, error)
