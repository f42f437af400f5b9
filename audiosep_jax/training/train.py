"""Training from top to bottom: takes a configuration and leaves a workdir with checkpoints and logs.

    WORKDIR/config.json   the configuration of the latest start
           /log.jsonl     one line per `log_every` steps, and one per validation
           /tensorboard/  the same as curves, with audio and spectrograms of some validation mixtures
           /checkpoints/  see checkpoints/run_folder.py
           /profile/      with `profile` or `profile_every`, traces of a few steps
           /equalizer.safetensors   with `equalizer`, the one that the checkpoints are loaded with

Started again with the same workdir, a run resumes after its newest checkpoint: bit for bit on the same devices, and
with the same clips in the same order on any others. The same program runs on one device and on all hosts of a cluster
(parallel/launch.py), which share the workdir.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint, describe
from audiosep_jax.checkpoints.equalizer_file import remove_equalizer, write_equalizer
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.run_folder import absolute_path, read_record
from audiosep_jax.checkpoints.steps import complete_steps
from audiosep_jax.data.batches import Batches, DataConfig, encoder_identity, make_batches, staged
from audiosep_jax.data.co_occurrence import compare_labels, read_co_occurrence
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.base import comparable
from audiosep_jax.errors import CheckpointError, ConfigError, TrainingDivergedError
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.parallel.hosts import Votes, check_same, check_shared, wait_for_all
from audiosep_jax.parallel.mesh import make_mesh, place_of_process
from audiosep_jax.progress import explained_compilation
from audiosep_jax.separation.fit_equalizer import fit_equalizer
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.training.checkpointer import Checkpointer
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.determinism import make_deterministic
from audiosep_jax.training.monitoring.levels import MixtureLevels
from audiosep_jax.training.monitoring.log import TrainingLog, check_wandb
from audiosep_jax.training.monitoring.profiling import Traces, profiler_server
from audiosep_jax.training.monitoring.progress import TrainingProgress
from audiosep_jax.training.monitoring.speed import Speedometer
from audiosep_jax.training.optim import make_schedule
from audiosep_jax.training.stopping import data_failure, end_together, may_begin, next_batch, stop_signals
from audiosep_jax.training.train_step import TrainState, make_program
from audiosep_jax.training.validation import Validation
from audiosep_jax.training.workdir import agree_on_newest_step, go_back_to, only_run_in

# How many steps are dispatched before the host waits for the oldest: enough to keep the devices busy, and no more,
# because each holds its batch in their memory.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: the last step.
        loss: the mean loss of the last logged steps; NaN if none was finite or taken.
        stopped: whether a signal stopped it.
        checkpoints: the folder of its checkpoints.
    """

    step: int
    loss: float
    stopped: bool
    checkpoints: Path


def train(config: TrainConfig) -> TrainResult:
    """Trains the run in `config.workdir`, or resumes it. Every process of the run calls this.

    Raises:
        ConfigError: settings do not fit together.
        DataError: shards or embeddings are missing or damaged, or a data worker was killed; after the first step, there
            is a checkpoint of the last one.
        EncoderMismatchError: the datasets have embeddings of different encoders.
        CheckpointError: the workdir's checkpoints belong to another model, it cannot be written, or another run is
            writing it.
        DownloadError: the checkpoint to start from cannot be downloaded.
        TrainingDivergedError: `max_skipped_in_row` steps in a row had a non-finite loss or gradient.
    """
    if not config.workdir:
        raise ConfigError('no workdir: give --workdir DIR')
    if config.deterministic:
        make_deterministic()
    with only_run_in(as_path(config.workdir)) as check_lock, profiler_server(config.profiler_port):
        return _train(config, check_lock)


def _train(config: TrainConfig, check_lock: Callable[[], None]) -> TrainResult:
    """Trains in a workdir that no other run writes; `check_lock` raises CheckpointError once that has changed."""
    run = _prepare(config)
    batches, mesh, checkpoints = run.batches, run.mesh, run.workdir / 'checkpoints'
    step, program = _step_to_resume(run), make_program(config, mesh)

    with (
        stop_signals() as stop_requested,  # until the last checkpoint is on disk
        batches,
        Checkpointer(checkpoints, keep=config.keep, before_commit=check_lock) as checkpointer,
    ):
        saved = step
        # ---- Start, or resume ----
        if step:
            state, position, resumed = checkpointer.restore(program.state, step=step)
            batches.set_state(position)
        else:
            state, resumed = program.initial_state(run.variables), None
        _keep_equalizer(run, check_lock)
        if step >= config.steps:
            return TrainResult(step, float('nan'), False, checkpoints)
        votes = Votes(mesh)
        progress = TrainingProgress(step, config.steps, quiet=jax.process_index() > 0)
        log = _open_log(config, run, step, check_lock)
        report, levels = _Report(config, run, log, progress), MixtureLevels(config, mesh, resumed, run.record)

        # ---- The loop ----
        pending: list[dict[str, Array]] = []  # metrics that stay on the devices, which fetching them would stall
        with log, progress, Traces(config, run.workdir, step, progress.note, before_writing=check_lock) as traces:
            with explained_compilation(progress.note, then='now training'):
                train_step = program.compile_step()
            stopping = not may_begin(batches, votes, stop_requested)
            report.speed.start()
            while step < config.steps and not stopping:
                with report.speed.waiting_for_input():
                    batch = next_batch(batches, votes, stop_requested, mesh)
                stopping = batch is None
                if batch is not None:
                    levels.push(step, batch)
                    traces.begin_step(step)
                    with jax.transfer_guard('disallow'):
                        state, metrics = train_step(state, batch)
                    pending.append(metrics)
                    step += 1
                    if len(pending) > _IN_FLIGHT:
                        jax.block_until_ready(pending[-1 - _IN_FLIGHT])
                    stopping = votes.cast(stop_requested(), batches.corrupt_records, batches.failure)
                    stopping = stopping and step < config.steps
                saving = step % config.checkpoint_every == 0 or step == config.steps or stopping
                if pending and (step % config.log_every == 0 or saving):
                    checkpointer.check()
                    report.steps(step, jax.device_get(pending), votes.corrupt_records)
                    pending.clear()
                if saving and step > saved:
                    # A run that is asked to stop may not have the time to validate.
                    score = report.score(step, state, run.validation, skip_validation=stopping)
                    checkpointer.save(state, data=batches.get_state(), record=run.record | levels.record(), score=score)
                    saved = step
                    log.flush()
                    report.speed.start()
            failure = None if stop_requested() else data_failure(batches, votes, step)
    end_together(stopping, failure)
    return TrainResult(step, report.loss, stopping, checkpoints)


def _open_log(config: TrainConfig, run: '_Run', step: int, check_lock: Callable[[], None]) -> TrainingLog:
    return TrainingLog(
        run.workdir,
        run.record,
        after_step=step,
        started=run.started,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        before_writing=check_lock,
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What `_prepare` makes of a configuration.

    `started` is when it began, in seconds since 1970, `variables` are the weights to start from, on the host, and
    `notes` are lines for the user.
    """

    started: float
    mesh: Mesh
    batches: Batches
    record: dict[str, Any]
    workdir: Path
    variables: dict[str, Any] | None
    equalizer: Equalizer | None
    validation: Validation | None
    notes: list[str]


def _prepare(config: TrainConfig) -> _Run:
    """Refuses everything that can be refused before anything is written into the workdir."""
    started = time.time()
    check_wandb(config.wandb)
    mesh = make_mesh(config.mesh)
    config.check(mesh)
    data = staged(config.input)
    encoder = encoder_identity(data)
    config.check(mesh, encoder)
    record = describe(config, encoder)
    notes = [f'the loss is {config.loss}, in place of l1'] * (config.loss != 'l1')
    table, together = config.mixing.together, ''
    if table:
        together = read_co_occurrence(table).digest
        notes += filter(None, [compare_labels(table, data.data, data.split)])
    workdir = as_path(config.workdir)
    checkpoint = starting_checkpoint(config, encoder)
    variables = jax.device_get(checkpoint.variables) if checkpoint else None
    del checkpoint  # frees the device memory of its arrays
    equalizer = _fit_equalizer(config, data, encoder['name'])
    validation = Validation(config.validation, config.model, encoder) if config.validation else None
    process_index, process_count = place_of_process(mesh)
    batches = make_batches(
        data,
        sample_rate=config.model.sample_rate,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=process_index,
        process_count=process_count,
        labels=config.mixing.needs_labels,
    )
    wait_for_all('data is here')
    check_same({**record, 'data': batches.get_state(), 'together': together})
    check_shared(workdir)
    return _Run(started, mesh, batches, record, workdir, variables, equalizer, validation, notes)


def _fit_equalizer(config: TrainConfig, data: DataConfig, encoder: str) -> Equalizer | None:
    if not config.equalizer:
        return None
    shards = [Shards(directory, data.split) for directory in data.data]
    return fit_equalizer(shards, encoder, data.weights, config.model, config.equalizer)


def _keep_equalizer(run: '_Run', check_lock: Callable[[], None]) -> None:
    """Writes the run's equalizer beside its checkpoints, or removes the one that it had before."""
    if jax.process_index():
        return
    check_lock()
    if run.equalizer is not None:
        write_equalizer(run.workdir, run.equalizer, run.record['encoder'])
    elif remove_equalizer(run.workdir):
        run.notes.append('the equalizer of this run was removed, because --equalizer is 0')


def starting_checkpoint(config: TrainConfig, encoder: dict[str, Any] | None) -> InferenceCheckpoint | None:
    """Returns the checkpoint of `init_from`, or None if none is given or the workdir has a run to resume.

    Args:
        config: the new run.
        encoder: the identity of its query encoder; None if it is not known, and then any encoder is accepted.

    Raises:
        CheckpointError: there is no checkpoint, or it has another network or query encoder.
        DownloadError: it cannot be downloaded.
    """
    if not config.init_from or (config.workdir and complete_steps(as_path(config.workdir) / 'checkpoints')):
        return None
    checkpoint = open_checkpoint(config.init_from)
    differing = _differences(checkpoint.record, describe(config, encoder), training_state=False)
    if differing:
        raise CheckpointError(f'--init-from {config.init_from} does not fit this run: {"; ".join(differing)}')
    return checkpoint


def _step_to_resume(run: _Run) -> int:
    """Returns the newest whole step, 0 if there is none, and puts damaged ones that are newer out of the way."""
    checkpoints = absolute_path(run.workdir / 'checkpoints')
    newest = agree_on_newest_step(checkpoints)
    if newest.step is None:
        return 0
    _check_same_run(read_record(checkpoints / str(newest.step)), run.record, run.workdir)
    go_back_to(newest, checkpoints)
    return newest.step


def _check_same_run(stored: dict[str, Any], record: dict[str, Any], workdir: Path) -> None:
    """Refuses to resume a run with another network, encoder or kind of state, and names what differs."""
    changed = _differences(stored, record, training_state=True)
    if changed:
        raise CheckpointError(
            f'{workdir} holds a run of another configuration ({"; ".join(changed)}): choose another --workdir'
        )


def _differences(stored: dict[str, Any], record: dict[str, Any], *, training_state: bool) -> list[str]:
    """Lists the differences that make stored weights unusable, and with `training_state` a stored state of training.

    How a run computes and optimizes may change: precision, rates, clipping, mixing, mesh. The loss may not, because the
    checkpoint with the least is kept as the best. An encoder that is not recorded counts as the same.
    """
    encoders_known = stored['encoder'] is not None and record['encoder'] is not None

    def fixed(record: dict[str, Any]) -> dict[str, Any]:
        config = record['config']
        found = {f'model.{k}': v for k, v in config['model'].items() if k not in ('dtype', 'remat')}
        if training_state:
            found['optimizer.amsgrad'] = config['optimizer']['amsgrad']
            found['ema_decay above 0'] = config['ema_decay'] > 0
            found['loss'] = config.get('loss', 'l1')  # all that earlier versions had
        if encoders_known:
            found |= {f'encoder.{k}': v for k, v in comparable(record['encoder']).items()}
        return found

    old, new = fixed(stored), fixed(record)
    return [f'{k} was {old.get(k)}, is {new.get(k)}' for k in {**old, **new} if old.get(k) != new.get(k)]


class _Report:
    """Reports the steps of a run in its log and on the terminal, and scores its checkpoints."""

    def __init__(self, config: TrainConfig, run: _Run, log: TrainingLog, progress: TrainingProgress):
        self._config, self._mesh, self._log, self._progress = config, run.mesh, log, progress
        for note in run.notes:
            progress.note(note)
        self._schedule = make_schedule(config.optimizer, config.steps)
        self._losses: list[float] = []  # since the last checkpoint
        self.speed = Speedometer(config, run.mesh.size)
        self.loss = float('nan')  # the mean of the last reported steps

    def steps(self, step: int, metrics: list[dict[str, np.ndarray]], corrupt_records: int) -> None:
        """Reports the metrics of the steps since the last report, up to `step`.

        Raises:
            CheckpointError: the log cannot be written.
            TrainingDivergedError: too many of the steps in a row were not finite.
        """
        line = _summary(step, metrics) | self.speed.read(len(metrics))
        line['learning_rate'] = float(self._schedule(step - 1 - line['skipped']))
        line |= {'corrupt_records': corrupt_records, 'loss_function': self._config.loss}
        self._log.write(line | self._log.goodput.add(line))
        self._losses += [float(m['loss']) for m in metrics if np.isfinite(m['loss'])]
        self.loss = float('nan') if line['loss'] is None else line['loss']
        self._progress.update(step, self.loss, line['clips_per_second'], line['skipped'])
        _check_finite(metrics, self._config.max_skipped_in_row, step)

    def score(self, step: int, state: TrainState, validation: Validation | None, *, skip_validation: bool) -> float:
        """Returns the score of a checkpoint: its SDRi, or without validation the negative mean loss since the last one.

        A run that is validated must not compare the two, so a checkpoint that is not validated gets -inf.
        """
        score = -np.inf if validation or not self._losses else -float(np.mean(self._losses))
        self._losses.clear()
        if validation and not skip_validation:
            scores = validation.run(state, self._mesh)
            score = scores.sdri
            self._log.validation(step, scores.values, scores.panels)
            self._progress.note(
                f'not validated: {scores.problem}'
                if scores.problem
                else f'SDRi {scores.sdri:.2f} dB, SI-SDR {scores.values["SI-SDR"]:.2f} dB on {self._config.validation}'
            )
        return score


def _summary(step: int, metrics: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the line of the log for the steps since the previous line, up to `step`."""
    finite = [float(m['loss']) for m in metrics if np.isfinite(m['loss'])]
    grad_norm = float(metrics[-1]['grad_norm'])
    return {
        'step': step,
        'loss': float(np.mean(finite)) if finite else None,  # JSON has no NaN
        'grad_norm': grad_norm if np.isfinite(grad_norm) else None,
        'skipped': int(metrics[-1]['skipped']),
    }


def _check_finite(metrics: list[dict[str, np.ndarray]], limit: int, step: int) -> None:
    in_row = max(int(m['skipped_in_row']) for m in metrics)
    if in_row >= limit:
        raise TrainingDivergedError(
            f'stopped at step {step}: the loss or its gradient was not finite for {in_row} steps in a row; '
            'the last checkpoint is intact; lower --optimizer.learning-rate or set --optimizer.clip-norm 1'
        )
