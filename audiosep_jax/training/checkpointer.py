"""The checkpoints of a run that is training: writes them in the background, prunes and restores them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from audiosep_jax.checkpoints.run_folder import absolute_path, item_handlers, read_record
from audiosep_jax.errors import CheckpointError, first_line
from audiosep_jax.training.train_step import TrainState


class Checkpointer:
    """Writes the checkpoints of one run in the background, and reads them. Keeps the newest ones and the best one.

    Use it as a context manager; leaving it waits for the last write.

    Args:
        directory: the folder of the checkpoints.
        keep: how many of the newest checkpoints are kept.

    Raises:
        CheckpointError: the folder cannot be written.
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

    def __enter__(self) -> 'Checkpointer':
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            # `wait` has reported a failed write, or a more useful exception is already propagating.
            with contextlib.suppress(Exception):
                self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, *, data: Mapping[str, Any], record: Mapping[str, Any], score: float) -> None:
        """Starts writing the state as the checkpoint of its step.

        It waits for the previous write to end, and returns as soon as the arrays are copied.

        Args:
            state: the state.
            data: the input pipeline's position, JSON-ready.
            record: configuration and encoder, from `describe`.
            score: a higher score is better; the best checkpoint is kept.

        Raises:
            CheckpointError: this write, or the previous one in the background, failed.
        """
        self.wait()
        step = int(state.step)
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _split(state).items()}
        args = ocp.args.Composite(
            **arrays, data=ocp.args.JsonSave(dict(data)), config=ocp.args.JsonSave({**record, 'step': step})
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
            CheckpointError: the write failed, for example because the disk is full; earlier checkpoints are intact.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax passes on any exception of its background thread
            raise CheckpointError(f'a checkpoint could not be written: {first_line(error, 300)}') from error

    def restore(
        self, like: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """Returns (state, data position, record) of a checkpoint.

        Args:
            like: a state of the same configuration, of arrays or of `jax.ShapeDtypeStruct`s with shardings; the
                restored state is distributed over devices in the same way.
            step: the checkpoint's step, by default the newest.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
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
        except Exception as error:  # for a damaged folder, Orbax and tensorstore raise a dozen kinds
            raise CheckpointError(
                f'{self.directory / str(step)} cannot be restored: {first_line(error, 300)}'
            ) from error
        return _join(like, restored), restored['data'], restored['config']

    def record(self, step: int | None = None) -> dict[str, Any]:
        """Returns the configuration and encoder that are stored with a step, by default the newest.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
        """
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
