"""Checkpoints: an Orbax directory per step that holds all of a run, and needs nothing else to be loaded.

    WORKDIR/checkpoints/STEP/params, batch_stats, ema   what inference reads
                             /optimizer                 what only training reads
                             /data                      where the input pipeline stands (JSON)
                             /config                    format version, configuration, query encoder (JSON)

Beside `checkpoints` may lie `encoder`, the query encoder's weights and tokenizer, and in a converted checkpoint
`original`, what only the way back to PyTorch needs (`convert.py`).

A step is written under a temporary name and renamed when it is complete: a run killed at any moment leaves whole
checkpoints, or a remnant that is never taken for one.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from audiosep_jax import config as configs
from audiosep_jax.checkpoints.checkpoint import FORMAT_VERSION, InferenceCheckpoint
from audiosep_jax.checkpoints.hub_folder import is_hub_folder, read_hub_folder
from audiosep_jax.errors import CheckpointError, ConfigError, first_line
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.storage.buckets import as_path, is_bucket


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    """How each item of a checkpoint is written. Named: whoever has not saved an item would not know how to read it."""
    handlers = {name: ocp.StandardCheckpointHandler() for name in ('params', 'batch_stats', 'ema', 'optimizer')}
    return handlers | {name: ocp.JsonCheckpointHandler() for name in ('data', 'config')}


def save_for_inference(folder: Path, *, variables: dict, record: dict, step: int) -> None:
    """Writes weights alone as the folder of one step: what `load_for_inference` reads, with nothing to train on from.

    Args:
        folder: made by this; not there yet.
        record: what `describe` made.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays = {name: ocp.args.StandardSave(variables[name]) for name in ('params', 'batch_stats')}
    args = ocp.args.Composite(**arrays, config=ocp.args.JsonSave({**record, 'step': step}))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as writer:
        try:
            writer.save(folder.absolute(), args)
        except (OSError, ValueError) as error:
            raise CheckpointError(f'{folder}: cannot be written: {first_line(error, 300)}') from error


def load_for_inference(path: str | Path, *, step: int | None = None, raw: bool = False) -> InferenceCheckpoint:
    """Reads a run's weights, and nothing of its optimizer.

    Args:
        path: a run's workdir, its `checkpoints` folder, one step's folder in it, or a repository of the hub's folder.
        step: which one, by default the newest.
        raw: the weights themselves rather than their moving average.

    Raises:
        CheckpointError: the path is not a checkpoint, or it is damaged.
    """
    if not is_bucket(path) and is_hub_folder(Path(path)):
        checkpoint = read_hub_folder(Path(path))
        if step not in (None, checkpoint.step):
            raise CheckpointError(f'{path} has no step {step}; it has {checkpoint.step}')
        return checkpoint
    folder = _locate(path, step)
    record = _read_record(folder)
    try:
        model = configs.from_dict(ModelConfig, record['config']['model'])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f'{folder}: its configuration is not usable: {error}') from error
    items = ['params', 'batch_stats'] if raw or not (folder / 'ema').exists() else ['ema']
    # On this process's first device, whatever devices the run was trained on.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def on_device(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as reader:
        try:
            metadata = reader.metadata(folder).item_metadata
            wanted = {name: jax.tree.map(on_device, metadata[name].tree) for name in items}
            args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()})
            restored = reader.restore(folder, args=args)
        except Exception as error:  # Orbax and tensorstore raise a dozen kinds for a damaged directory
            raise CheckpointError(f'{folder} cannot be read: {first_line(error, 300)}') from error
    variables = dict(restored['ema']) if items == ['ema'] else {name: restored[name] for name in items}
    return InferenceCheckpoint(model, variables, record['encoder'], record['step'], record, folder)


def complete_steps(directory: Path) -> list[int]:
    """The steps whose checkpoints lie in a folder, ascending; none where there is no such folder."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and (p / 'config').is_dir())


def _absolute(path: str | Path) -> Path:
    """Orbax wants it so; an address in a bucket is."""
    path = as_path(path)
    return path if is_bucket(path) else path.absolute()


def _locate(path: str | Path, step: int | None) -> Path:
    """The folder of the step that a user's path means."""
    path = _absolute(path)
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


def _read_record(folder: Path) -> dict:
    """What `describe` made, and the step, of one step's folder."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as reader:
        try:
            record = reader.restore(folder, args=ocp.args.Composite(config=ocp.args.JsonRestore()))['config']
            version = record['format_version']
        except Exception as error:  # Orbax and tensorstore raise a dozen kinds for a damaged directory
            raise CheckpointError(f'{folder} cannot be read: {first_line(error, 300)}') from error
    if version == 1:
        record = _of_version_2(record)
    elif version != FORMAT_VERSION:
        raise CheckpointError(f'{folder} has format {version}; this version reads 1 to {FORMAT_VERSION}')
    return record


def _of_version_2(record: dict) -> dict:
    model = record['config']['model']
    remat = 'blocks' if model.get('remat') else 'none'
    return {**record, 'format_version': 2, 'config': {**record['config'], 'model': {**model, 'remat': remat}}}
