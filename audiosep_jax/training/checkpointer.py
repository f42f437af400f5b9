"""The checkpoints of a run that is training: written in the background, pruned, restored."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from audiosep_jax.checkpoints.run_folder import absolute_path, item_handlers, read_record
from audiosep_jax.errors import CheckpointError, first_line
from audiosep_jax.training.train_step import TrainState


class Checkpointer:
    """Writes and reads the checkpoints of one run, asynchronously, keeping the newest `keep` and the best one.

    Use as a context manager: leaving it waits for the last write.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory = absolute_path(directory)
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(get_metric_fn=lambda m: m['score'], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers=item_handlers(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=kept, cleanup_tmp_directories=True, save_root_metadata=False
                ),
            )
        except OSError as error:
            raise CheckpointError(f'cannot write checkpoints to {directory}: {error.strerror or error}') from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        try:
            if kind is None:
                self.wait()
        finally:
            # Whatever a failed write left behind, `wait` has said it or the exception on its way is worth more.
            with contextlib.suppress(Exception):
                self._manager.close()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, *, data: dict, record: dict, score: float) -> None:
        """Starts writing the state at its step, after the previous write has ended; returns once the arrays are copied.

        Args:
            data: the input pipeline's position, JSON-able.
            record: what `describe` made: configuration and encoder.
            score: higher is better; the best one is kept.

        Raises:
            CheckpointError: this write, or the previous one in the background, failed.
        """
        self.wait()
        step = int(state.step)
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _split(state).items()}
        args = ocp.args.Composite(
            **arrays, data=ocp.args.JsonSave(data), config=ocp.args.JsonSave({**record, 'step': step})
        )
        try:
            self._manager.save(step, args=args, metrics={'score': float(score)})
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f'the checkpoint of step {step} could not be written: {first_line(error, 300)}'
            ) from error

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
            CheckpointError: the write failed (a full disk, say); earlier checkpoints are intact.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax hands on whatever its background thread met
            raise CheckpointError(f'a checkpoint could not be written: {first_line(error, 300)}') from error

    def restore(self, like: TrainState, *, step: int | None = None) -> tuple[TrainState, dict, dict]:
        """(state, data position, record) of `step`, by default the newest, laid out over devices as `like` is.

        Args:
            like: a state of the same configuration, arrays or `jax.ShapeDtypeStruct`s with shardings.
        """
        step = self._manager.latest_step() if step is None else step
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _split(like))
        args = ocp.args.Composite(
            **{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()},
            data=ocp.args.JsonRestore(),
            config=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and tensorstore raise a dozen kinds for a damaged directory
            raise CheckpointError(
                f'{self.directory / str(step)} cannot be restored: {first_line(error, 300)}'
            ) from error
        return _join(like, restored), restored['data'], restored['config']

    def record(self, step: int | None = None) -> dict:
        """The configuration and encoder stored with a step, by default the newest."""
        step = self._manager.latest_step() if step is None else step
        return read_record(self.directory / str(step))


def _split(state: TrainState) -> dict[str, Any]:
    optimizer = {
        'state': state.opt_state,
        'step': state.step,
        'skipped': state.skipped,
        'skipped_in_row': state.skipped_in_row,
    }
    items = {'params': state.params, 'batch_stats': state.batch_stats, 'optimizer': optimizer}
    return items if state.ema is None else {**items, 'ema': state.ema}


def _join(like: TrainState, items: Any) -> TrainState:
    optimizer = items['optimizer']
    return like.replace(
        step=optimizer['step'],
        params=items['params'],
        batch_stats=items['batch_stats'],
        opt_state=optimizer['state'],
        ema=None if like.ema is None else items['ema'],
        skipped=optimizer['skipped'],
        skipped_in_row=optimizer['skipped_in_row'],
    )
