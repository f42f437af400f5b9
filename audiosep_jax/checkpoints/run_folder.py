"""A run's folder: an Orbax directory per step, which holds the state of training and all that inference needs.

    WORKDIR/checkpoints/STEP/params, batch_stats, ema   the weights, which inference reads
                             /optimizer                 what only resuming reads
                             /data                      the position of the input pipeline (JSON)
                             /config                    format version, configuration, query encoder, level (JSON)
                             /checksums.sha256          of all these files

Next to `checkpoints` there may be two more folders: `encoder` holds the query encoder's weights and tokenizer, and
`original`, in a converted checkpoint, holds what only the way back to PyTorch needs (`originals.py`). The file
`equalizer.safetensors` is that of the run (`equalizer_file.py`).

A step is written under a temporary name and renamed when it is complete. A run that is killed at any moment therefore
leaves complete checkpoints, and perhaps a remnant that is never mistaken for one (`steps.py`).
"""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import orbax.checkpoint as ocp

from audiosep_jax import config as configs
from audiosep_jax.checkpoints.checkpoint import FORMAT_VERSION, InferenceCheckpoint, Level, LevelRecord, errors_about
from audiosep_jax.checkpoints.orbax_errors import silence_abandoned_futures
from audiosep_jax.checkpoints.steps import ARRAYS, RECORDS, complete_steps
from audiosep_jax.encoders.base import Identity
from audiosep_jax.errors import CheckpointError, ConfigError, first_line
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.storage.buckets import as_path, is_bucket
from audiosep_jax.storage.checksums import check_checksums, write_checksums
from audiosep_jax.storage.json_files import check_shape

_DAMAGED = 'its record is damaged: give another step'


class _RecordedConfig(TypedDict):
    model: dict[str, Any]


class _Record(TypedDict):
    """What `describe` makes, the step, and of a run the level. A run's configuration has further settings."""

    format_version: int
    config: _RecordedConfig
    encoder: Identity | None
    step: int
    level: NotRequired[LevelRecord]


def item_handlers() -> dict[str, ocp.CheckpointHandler]:
    """Returns Orbax's handler for each item of a checkpoint.

    They are given explicitly, because Orbax can infer the handler of an item only in the process that saved it.
    """
    silence_abandoned_futures()
    handlers = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
    return handlers | {name: ocp.JsonCheckpointHandler() for name in RECORDS}


def _reader() -> ocp.Checkpointer:
    # Orbax stores the score of a validation as one more item, and warns of items that have no handler.
    handlers = item_handlers() | {'metrics': ocp.JsonCheckpointHandler()}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))


def save_for_inference(folder: Path, *, variables: dict[str, Any], record: dict[str, Any], step: int) -> None:
    """Writes the weights of one step as `load_for_inference` reads them. Training cannot be resumed from them.

    Args:
        folder: the step's folder, which must not exist yet.
        variables: `params` and `batch_stats`.
        record: what `describe` made.
        step: the training step.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    arrays = {name: ocp.args.StandardSave(variables[name]) for name in ('params', 'batch_stats')}
    args = ocp.args.Composite(**arrays, config=ocp.args.JsonSave({**record, 'step': step}))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**item_handlers())) as writer:
        try:
            writer.save(folder.absolute(), args)
            write_checksums(folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f'{folder}: cannot be written: {first_line(error, 300)}') from error


def load_for_inference(path: str | Path, *, step: int | None = None, raw: bool = False) -> InferenceCheckpoint:
    """Reads the weights of a run, without its optimizer.

    Args:
        path: the run's workdir, its `checkpoints` folder, or the folder of one step.
        step: the step to read, by default the newest.
        raw: read the weights themselves instead of their moving average.

    Raises:
        CheckpointError: the path is not a checkpoint, or it is damaged.
    """
    folder = _locate_step(path, step)
    items = ['params', 'batch_stats'] if raw or not (folder / 'ema').exists() else ['ema']
    try:
        # A run without `ema` has none listed. If it is listed but lost, the raw weights must not take its place.
        verified = check_checksums(folder, ['config', *items] if raw else ['config', 'ema', *items])
    except OSError as error:
        raise CheckpointError(f'{folder} cannot be read: {error.strerror or error}') from error
    record = read_record(folder)
    try:
        model = configs.from_dict(ModelConfig, record['config']['model'])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f'{folder}: its configuration is not usable: {error}') from error
    with errors_about(folder):
        level = Level.read(record)
    # Restore to this process's first device, whatever devices the run was trained on.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def on_device(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)

    with _reader() as reader:
        try:
            metadata = reader.metadata(folder).item_metadata
            wanted = {name: jax.tree.map(on_device, metadata[name].tree) for name in items}
            args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()})
            restored = reader.restore(folder, args=args)
        except Exception as error:  # Orbax and tensorstore raise a dozen types for a damaged directory
            raise CheckpointError(f'{folder} cannot be read: {first_line(error, 300)}') from error
    variables = dict(restored['ema']) if items == ['ema'] else {name: restored[name] for name in items}
    return InferenceCheckpoint(model, variables, record['encoder'], record['step'], record, folder, verified, level)


def read_record(folder: Path) -> dict[str, Any]:
    """Returns what `describe` made for one step's folder, in the present format, and the step.

    Raises:
        CheckpointError: the folder is damaged, or a later version of this library wrote it.
    """
    with _reader() as reader:
        try:
            record = reader.restore(folder, args=ocp.args.Composite(config=ocp.args.JsonRestore()))['config']
            version = record['format_version']
        except Exception as error:  # Orbax and tensorstore raise a dozen types for a damaged directory
            raise CheckpointError(f'{folder} cannot be read: {first_line(error, 300)}') from error
    if version == 1:
        check_shape(record, _Record, folder, error=CheckpointError, remedy=_DAMAGED)
        record = _upgrade_v1(record)
    elif version != FORMAT_VERSION:
        raise CheckpointError(f'{folder} has format {version}; this version reads 1 to {FORMAT_VERSION}')
    check_shape(record, _Record, folder, error=CheckpointError, remedy=_DAMAGED)
    return record


def absolute_path(path: str | Path) -> Path:
    """Returns the absolute path, which Orbax requires. An address in a bucket is one already."""
    path = as_path(path)
    return path if is_bucket(path) else path.absolute()


def _locate_step(path: str | Path, step: int | None) -> Path:
    """Returns the folder of the step that the user's path means."""
    path = absolute_path(path)
    if not path.exists():
        raise CheckpointError(f'no such checkpoint: {path}')
    if (path / 'config').is_dir() and (path / 'params').is_dir():
        if step is not None:
            raise CheckpointError(
                f'{path} is the checkpoint of one step: give the folder above it to choose step {step}'
            )
        return path
    for directory in (path / 'checkpoints', path):
        steps = complete_steps(directory)
        if steps and step is None:
            return directory / str(steps[-1])
        if step in steps:
            return directory / str(step)
        if steps:
            raise CheckpointError(f'{directory} has no step {step}; it has {", ".join(map(str, steps))}')
    raise CheckpointError(f"{path} is not a checkpoint: give a run's workdir, or the folder of one of its steps")


def _upgrade_v1(record: dict[str, Any]) -> dict[str, Any]:
    model = record['config']['model']
    remat = 'blocks' if model.get('remat') else 'none'
    return {**record, 'format_version': 2, 'config': {**record['config'], 'model': {**model, 'remat': remat}}}
