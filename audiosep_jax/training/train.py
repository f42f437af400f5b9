"""Training, top to bottom: one configuration in, a workdir with checkpoints and a log out.

    WORKDIR/config.json   the configuration of the latest start
           /log.jsonl     one line per `log_every` steps, and one per validation
           /tensorboard/  the same as curves, with sounds and spectrograms of some validation mixtures
           /checkpoints/  see checkpoint.py
           /profile/      with `profile`: a trace of a few steps

Started again with the same workdir, a run continues after its newest checkpoint: bit for bit on the same devices, and
with the same clips in the same order on any others. The same program runs on one device and on all hosts of a cluster
(launch.py), which share the workdir.
"""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint, describe
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.run_folder import complete_steps
from audiosep_jax.data.batches import encoder_identity, make_batches, staged
from audiosep_jax.encoders.base import comparable
from audiosep_jax.errors import CheckpointError, ConfigError, TrainingDivergedError
from audiosep_jax.models.cost import peak_flops, training_flops
from audiosep_jax.parallel.hosts import Votes, check_same, check_shared, wait_for_all
from audiosep_jax.parallel.mesh import make_mesh, place_of_process, put_batch
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.training.checkpointer import Checkpointer
from audiosep_jax.training.config import TrainConfig, check_batch_size
from audiosep_jax.training.log import TrainingLog, check_wandb
from audiosep_jax.training.optim import make_schedule
from audiosep_jax.training.progress import TrainingProgress
from audiosep_jax.training.train_step import make_program
from audiosep_jax.training.validation import Validation

# Steps dispatched and not yet done: enough that the devices never wait for the host, and no more, for each holds its
# batch on them.
_IN_FLIGHT = 2
# The steps that a profile shows, counted from the start: past the warm-up.
_PROFILED = range(10, 15)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended: its last step, the mean loss of its last logged steps, and whether a signal stopped it."""

    step: int
    loss: float
    stopped: bool
    checkpoints: Path


def train(config: TrainConfig) -> TrainResult:
    """Trains, or continues, the run in `config.workdir`. Every process of the run calls it.

    Raises:
        ConfigError: settings that do not fit together.
        DataError: shards or embeddings that are missing or damaged.
        CheckpointError: a workdir whose checkpoints belong to another model, or that cannot be written.
        TrainingDivergedError: `max_skipped_in_row` steps in a row had a non-finite loss or gradient.
    """
    # ---- What to train, on what, and where: whatever can be refused is refused before anything is written ----
    if not config.workdir:
        raise ConfigError('no workdir: give --workdir DIR')
    check_wandb(config.wandb)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, config.mixing, mesh, accumulate=config.accumulate)
    config.absent.check(config.mixing, config.batch_size)
    data = staged(config.input)
    encoder = encoder_identity(data)
    if encoder['embedding_size'] != config.model.condition_size:
        raise ConfigError(
            f'model.condition_size is {config.model.condition_size}, but the embeddings of {encoder["name"]!r} '
            f'have {encoder["embedding_size"]} numbers: set --model.condition-size {encoder["embedding_size"]}'
        )
    record = describe(config, encoder)
    workdir = as_path(config.workdir)
    found = starting_checkpoint(config, encoder)
    beginning = jax.device_get(found.variables) if found else None
    del found  # its arrays are on a device
    validation = Validation(config.validation, config.model, encoder) if config.validation else None
    process_index, process_count = place_of_process(mesh)
    batches = make_batches(
        data,
        sample_rate=config.model.sample_rate,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=process_index,
        process_count=process_count,
        labels=config.mixing.avoid_same_label,
    )
    wait_for_all('data is here')
    check_same({**record, 'data': batches.get_state()})
    check_shared(workdir)
    program = make_program(config, mesh)
    schedule = make_schedule(config.optimizer, config.steps)
    speedometer = _Speedometer(config, mesh.size)

    with (
        batches,
        Checkpointer(workdir / 'checkpoints', keep=config.keep) as checkpointer,
        _stop_signals() as stop_requested,
    ):
        # ---- Start, or continue ----
        first = step = checkpointer.steps()[-1] if checkpointer.steps() else 0
        if step:
            _check_same_run(checkpointer.record(), record, workdir)
            state, position, _ = checkpointer.restore(program.state)
            batches.set_state(position)
        else:
            state = program.initial_state(beginning)
        if step >= config.steps:
            return TrainResult(step, float('nan'), False, workdir / 'checkpoints')
        votes = Votes(mesh)
        progress = TrainingProgress(step, config.steps, quiet=jax.process_index() > 0)
        log = TrainingLog(workdir, record, after_step=step, tensorboard=config.tensorboard, wandb=config.wandb)

        # ---- The loop ----
        pending: list[dict[str, jax.Array]] = []  # metrics still on the devices: fetching each would stall them
        losses_since_save: list[float] = []
        loss, stopping = float('nan'), False
        with log, progress, _Trace(config.profile, workdir / 'profile') as trace:
            train_step = program.compile_step()
            wait_for_all('compiled')
            speedometer.start()
            while step < config.steps and not stopping:
                with speedometer.waiting_for_input():
                    batch = put_batch(next(batches), mesh)
                trace.begin_step(step - first)
                with jax.transfer_guard('disallow'):
                    state, metrics = train_step(state, batch)
                pending.append(metrics)
                step += 1
                if len(pending) > _IN_FLIGHT:
                    jax.block_until_ready(pending[-1 - _IN_FLIGHT])
                stopping = votes.cast(stop_requested(), batches.corrupt_records) and step < config.steps
                saving = step % config.checkpoint_every == 0 or step == config.steps or stopping
                if step % config.log_every == 0 or saving:
                    fetched = jax.device_get(pending)
                    pending.clear()
                    line = _summary(step, fetched) | speedometer.read(len(fetched))
                    line['learning_rate'] = float(schedule(step - 1 - line['skipped']))
                    line['corrupt_records'] = votes.corrupt_records
                    log.write(line)
                    losses_since_save += [float(m['loss']) for m in fetched if np.isfinite(m['loss'])]
                    loss = float('nan') if line['loss'] is None else line['loss']
                    progress.update(step, loss, line['clips_per_second'], line['skipped'])
                    _check_finite(fetched, config.max_skipped_in_row, step)
                if saving:
                    score = -np.inf if validation or not losses_since_save else -float(np.mean(losses_since_save))
                    if validation and not stopping:  # whoever is asked to stop may not have the time
                        scores = validation.run(state, mesh)
                        score = scores.sdri
                        log.validation(step, scores.values, scores.panels)
                        progress.note(
                            f'not validated: {scores.problem}'
                            if scores.problem
                            else f'SDRi {scores.sdri:.2f} dB on {config.validation}'
                        )
                    losses_since_save.clear()
                    checkpointer.save(state, data=batches.get_state(), record=record, score=score)
                    log.flush()
                    speedometer.start()
        return TrainResult(step, loss, stopping, workdir / 'checkpoints')


def starting_checkpoint(config: TrainConfig, encoder: dict | None) -> InferenceCheckpoint | None:
    """The checkpoint of `init_from`; None without one, and where the workdir has a run to continue, which needs none.

    Args:
        config: of the new run.
        encoder: the identity of its query encoder; None: not known yet, any is taken for the same.

    Raises:
        CheckpointError: nothing there, or it is of another network or query encoder.
        DownloadError: it has to be fetched and cannot be.
    """
    if not config.init_from or (config.workdir and complete_steps(as_path(config.workdir) / 'checkpoints')):
        return None
    checkpoint = open_checkpoint(config.init_from)
    differing = _differences(checkpoint.record, describe(config, encoder), training_state=False)
    if differing:
        raise CheckpointError(f'--init-from {config.init_from} does not fit this run: {"; ".join(differing)}')
    return checkpoint


def _check_same_run(stored: dict, record: dict, workdir: Path) -> None:
    """Refuses to continue a run with another network, encoder or kind of state, and names what differs."""
    changed = _differences(stored, record, training_state=True)
    if changed:
        raise CheckpointError(
            f'{workdir} holds a run of another configuration ({"; ".join(changed)}): choose another --workdir'
        )


def _differences(stored: dict, record: dict, *, training_state: bool) -> list[str]:
    """What makes weights unusable, and a state of training. How it is computed and optimized may change: precision,
    rates, clipping, mixing, mesh. An encoder that is not recorded is taken for the same."""
    encoders_known = stored['encoder'] is not None and record['encoder'] is not None

    def fixed(record):
        config = record['config']
        found = {f'model.{k}': v for k, v in config['model'].items() if k not in ('dtype', 'remat')}
        if training_state:
            found['optimizer.amsgrad'] = config['optimizer']['amsgrad']
            found['ema_decay above 0'] = config['ema_decay'] > 0
        if encoders_known:
            found |= {f'encoder.{k}': v for k, v in comparable(record['encoder']).items()}
        return found

    old, new = fixed(stored), fixed(record)
    return [f'{k} was {old.get(k)}, is {new.get(k)}' for k in {**old, **new} if old.get(k) != new.get(k)]


def _summary(step: int, metrics: list[dict[str, np.ndarray]]) -> dict:
    """A line of the log, of the steps since the one before."""
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


class _Speedometer:
    """What the log says of speed, of the steps since it was last read. Saving and validating are not counted."""

    def __init__(self, config: TrainConfig, num_devices: int):
        self._batch_size, self._num_devices = config.batch_size, num_devices
        num_samples = round(config.input.segment_seconds * config.model.sample_rate)
        peak = peak_flops(jax.devices()[0].device_kind, config.model.dtype)
        # Of each clip a second, the share of what all the devices could compute; None where that is not known.
        self._utilisation = peak and training_flops(config.model, num_samples) / (peak * num_devices)
        self.start()

    def start(self) -> None:
        self._started, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def read(self, steps: int) -> dict[str, float]:
        """`input_wait` is the share of the time in which the loop waited for the next batch; the devices are busy with
        earlier ones meanwhile. `mfu` counts the model's own work, whatever `remat` does twice."""
        seconds = time.perf_counter() - self._started
        rate = steps * self._batch_size / seconds
        found = {
            'clips_per_second': rate,
            'clips_per_second_per_device': rate / self._num_devices,
            'input_wait': self._waited / seconds,
            'seconds': seconds,
        }
        if self._utilisation:
            found['mfu'] = rate * self._utilisation
        self.start()
        return found


class _Trace:
    """A context manager that traces the steps of `_PROFILED`, where that is wanted."""

    def __init__(self, wanted: bool, folder: Path):
        self._wanted, self._folder, self._running = wanted, folder, False

    def __enter__(self) -> '_Trace':
        return self

    def begin_step(self, step: int) -> None:
        """`step` counts from the start of the program."""
        if self._wanted and step == _PROFILED.start:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and step == _PROFILED.stop:
            self.__exit__()

    def __exit__(self, *exception) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint; a second one ends it at once."""
    received: list[int] = []

    def handler(number, frame):
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        print('stopping after this step, with a checkpoint; once more to stop at once', file=sys.stderr, flush=True)

    try:
        previous = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: the caller owns the signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
