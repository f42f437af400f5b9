"""The checkpoints of a run that is training: writes them in the background, prunes and restores them."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from audiosep_jax.checkpoints.orbax_errors import BackgroundErrors, reason_of, silence_abandoned_futures
from audiosep_jax.checkpoints.run_folder import absolute_path, item_handlers
from audiosep_jax.checkpoints.steps import delete_leftovers, delete_step
from audiosep_jax.errors import CheckpointError, first_line
from audiosep_jax.storage.buckets import is_bucket
from audiosep_jax.storage.checksums import write_checksums
from audiosep_jax.training.train_step import TrainState


class Checkpointer:
    """Writes the checkpoints of one run in the background, and reads them. Keeps the newest ones and the best one.

    Use it as a context manager; leaving it waits for the last write.

    Args:
        directory: the folder of the checkpoints.
        keep: how many of the newest checkpoints are kept.
        before_commit: called in the background, on process 0, before a written checkpoint appears under its name; what
            it raises prevents that, and is raised by the next call here.

    Raises:
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, before_commit: Callable[[], None] = lambda: None):
        self.directory = absolute_path(directory)
        silence_abandoned_futures()
        self._errors = BackgroundErrors(self.directory)
        self._saving: int | None = None  # the step that is being written, as far as is known
        self._check_before_commit = before_commit
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # If the folder of a step cannot be made in the background, Orbax's other threads wait 300 seconds for it.
        background = ocp.AsyncOptions(
            post_finalization_callback=self._before_commit, create_directories_asynchronously=False
        )
        try:
            if jax.process_index() == 0:
                delete_leftovers(self.directory)
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers=item_handlers(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=kept,
                    best_fn=_score,  # without it the scores are not written, and a resumed run forgets the best step
                    cleanup_tmp_directories=True,
                    save_root_metadata=False,
                    async_options=background,
                ),
            )
            # Orbax's own deletes the files of a step that still looks whole, and no option changes that everywhere.
            self._manager._checkpoint_deleter = _Deleter(self.directory)
            self._inode = _inode(self.directory)
        except OSError as error:
            raise CheckpointError(f'cannot write checkpoints to {directory}: {error.strerror or error}') from error

    def __enter__(self) -> 'Checkpointer':
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # If an exception is propagating already, it is more useful than one about a failed write.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        if self._errors.first is None:
            with contextlib.suppress(Exception):
                self._manager.close()
            self._errors.remove()
        # After a failed write, `close` would wait for threads that wait for each other, and then they have more to say.

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
        self._check_folder()
        self._saving = step = int(state.step)
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _split(state).items()}
        args = ocp.args.Composite(
            **arrays, data=ocp.args.JsonSave(dict(data)), config=ocp.args.JsonSave({**record, 'step': step})
        )
        try:
            self._manager.save(step, args=args, metrics={'score': float(score)})
        except Exception as error:  # of the system, of Orbax or of tensorstore
            raise self._failure(error) from error

    def check(self) -> None:
        """Looks whether the last save has failed meanwhile, without waiting for it.

        Raises:
            CheckpointError: it has failed, or the folder of the checkpoints is gone.
        """
        if self._errors.first is not None:
            raise self._failure(self._errors.first)
        if self._saving is None:
            return
        self._check_folder()
        if not self._manager.is_saving_in_progress():
            try:
                self._manager.wait_until_finished()
            except Exception as error:  # Orbax passes on any exception of its background thread
                raise self._failure(error) from error
            self._saving = None

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
            CheckpointError: the write failed, for example because the disk is full; earlier checkpoints are intact.
        """
        # Orbax itself would wait for the other processes, even when the write has failed in this one.
        while self._saving is not None:
            self.check()
            time.sleep(0.01)

    def _before_commit(self) -> None:
        """Completes a step whose files are written. All of them are: also those of the other processes."""
        self._check_before_commit()
        names = [path.name for path in self.directory.iterdir()]
        temporary = [name for name in names if name.startswith(f'{self._saving}.orbax-checkpoint-tmp')]
        # In a bucket, Orbax writes a step in its place.
        write_checksums(self.directory / (temporary[0] if temporary else str(self._saving)))

    def _failure(self, error: BaseException) -> CheckpointError:
        first = self._errors.first = self._errors.first or error
        if isinstance(first, CheckpointError):  # of `before_commit`
            return first
        # Orbax makes parts of a renamed folder again, so it may seem to be there. Numbers of inodes change on some file
        # systems, so they only explain a failure and are never one.
        if _inode(self.directory) != self._inode:
            return self._gone()
        return CheckpointError(
            f'the checkpoint of step {self._saving} could not be written to {self.directory}: {reason_of(first)}; '
            'earlier checkpoints are intact'
        )

    def _check_folder(self) -> None:
        if not is_bucket(self.directory) and not self.directory.is_dir():
            raise self._gone()

    def _gone(self) -> CheckpointError:
        return CheckpointError(f'{self.directory} is gone: it was removed or renamed while the run was writing there')

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


def _inode(folder: Path) -> int | None:
    """Returns what stays the same when a folder is renamed; None in a bucket and without a folder."""
    try:
        return None if is_bucket(folder) else folder.stat().st_ino
    except OSError:
        return None


class _Deleter:
    """Deletes old steps, in the background and on process 0, as Orbax's own deleter does."""

    def __init__(self, directory: Path):
        self._directory = directory

    def delete_steps(self, steps: Sequence[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                delete_step(self._directory, step)

    def close(self) -> None:
        pass


def _score(metrics: Mapping[str, float]) -> float:
    return metrics['score']


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
