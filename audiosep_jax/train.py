"""Training, top to bottom: one configuration in, a workdir with checkpoints and a log out.

    WORKDIR/config.json   the configuration of the latest start
           /log.jsonl     one line per `log_every` steps
           /checkpoints/  see checkpoint.py

Started again with the same workdir, a run continues after its newest checkpoint, bit for bit on the same devices.
"""

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from audiosep_jax.checkpoint import Checkpointer, describe
from audiosep_jax.data import DataConfig, encoder_identity, make_batches
from audiosep_jax.encoders import load_encoder
from audiosep_jax.errors import CheckpointError, ConfigError, TrainingDivergedError
from audiosep_jax.evaluate import evaluate_music
from audiosep_jax.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.model import ModelConfig
from audiosep_jax.optim import OptimizerConfig, make_optimizer, make_schedule
from audiosep_jax.progress import TrainingProgress
from audiosep_jax.separate import Separator
from audiosep_jax.sharding import check_batch_size, make_mesh, put_batch, replicated
from audiosep_jax.state import TrainState, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run. The defaults are the article's recipe; `experiments/` holds the others.

    Attributes:
        workdir: folder of checkpoints and log; a run found there is continued.
        input: what to train on.
        steps: optimizer steps of the whole run, those before a restart included.
        batch_size: clips per step over all devices of all hosts.
        seed: of weights, order of the data, crops and mixtures.
        ema_decay: of the moving average of the weights, which evaluation and separation then use; 0: none.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep: newest checkpoints kept; the best one is kept besides.
        max_skipped_in_row: so many non-finite steps in a row end the run.
        validation: folder in the MUSIC benchmark's layout, evaluated at every checkpoint; its SDRi tells which
            checkpoint is best (without it: the mean loss since the one before).
    """

    workdir: str = ''
    input: Annotated[DataConfig, tyro.conf.arg(name='')] = dataclasses.field(default_factory=DataConfig)
    steps: int = 1_000_000
    batch_size: int = 96
    seed: int = 0
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mixing: SegmentMixer = dataclasses.field(default_factory=lambda: SegmentMixer(mix_group=4))
    absent: AbsentQueries = dataclasses.field(default_factory=AbsentQueries)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema_decay: float = 0.0
    log_every: int = 50
    checkpoint_every: int = 5000
    keep: int = 2
    max_skipped_in_row: int = 20
    validation: str = ''

    def __post_init__(self):
        for name in ('steps', 'batch_size', 'log_every', 'checkpoint_every', 'keep', 'max_skipped_in_row'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} must be at least 1, got {getattr(self, name)}')
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f'ema_decay must be at least 0 and below 1, got {self.ema_decay}')


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended: its last step, the mean loss of its last logged steps, and whether a signal stopped it."""

    step: int
    loss: float
    stopped: bool
    checkpoints: Path


def train(config: TrainConfig) -> TrainResult:
    """Trains, or continues, the run in `config.workdir`.

    Raises:
        ConfigError: settings that do not fit together.
        DataError: shards or embeddings that are missing or damaged.
        CheckpointError: a workdir whose checkpoints belong to another model, or that cannot be written.
        TrainingDivergedError: `max_skipped_in_row` steps in a row had a non-finite loss or gradient.
    """
    # ---- What to train, on what, and where ----
    if not config.workdir:
        raise ConfigError('no workdir: give --workdir DIR')
    mesh = make_mesh()
    check_batch_size(config.batch_size, config.mixing.mix_group, mesh)
    encoder = encoder_identity(config.input)
    if encoder['embedding_size'] != config.model.condition_size:
        raise ConfigError(
            f'model.condition_size is {config.model.condition_size}, but the embeddings of {encoder["name"]!r} '
            f'have {encoder["embedding_size"]} numbers: set --model.condition-size {encoder["embedding_size"]}'
        )
    batches = make_batches(
        config.input,
        sample_rate=config.model.sample_rate,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    workdir = Path(config.workdir)
    record = describe(config, encoder)
    _write_config(workdir, record)

    # ---- The step: one compiled function of state and batch ----
    optimizer = make_optimizer(config.optimizer, config.steps)
    schedule = make_schedule(config.optimizer, config.steps)
    on_all = replicated(mesh)
    init = jax.jit(
        lambda key: init_state(config.model, optimizer, key, ema=bool(config.ema_decay)), out_shardings=on_all
    )
    step_fn = make_train_step(
        config.model,
        optimizer,
        config.mixing,
        seed=config.seed,
        ema_decay=config.ema_decay,
        absent=config.absent,
    )
    train_step = jax.jit(step_fn, donate_argnums=0, out_shardings=on_all)

    with (
        batches,
        Checkpointer(workdir / 'checkpoints', keep=config.keep) as checkpointer,
        _stop_signals() as stop_requested,
    ):
        # ---- Start, or continue ----
        state = init(jax.random.key(config.seed))
        step = 0
        if checkpointer.steps():
            _check_same_run(checkpointer.record(), record, workdir)
            state, position, _ = checkpointer.restore(state)
            batches.set_state(position)
            step = int(jax.device_get(state.step))
        log = _Log(workdir / 'log.jsonl', after_step=step)
        progress = TrainingProgress(step, config.steps)

        # ---- The loop ----
        pending: list[dict[str, jax.Array]] = []  # metrics still on the devices: fetching each would stall them
        losses_since_save: list[float] = []
        loss = float('nan')
        started = time.perf_counter()
        with progress:
            while step < config.steps and not stop_requested():
                batch = next(batches)
                with jax.transfer_guard('disallow'):
                    state, metrics = train_step(state, put_batch(batch, mesh))
                pending.append(metrics)
                step += 1
                saving = step % config.checkpoint_every == 0 or step == config.steps
                if step % config.log_every == 0 or saving:
                    fetched = jax.device_get(pending)
                    pending.clear()
                    seconds, started = time.perf_counter() - started, time.perf_counter()
                    line = _summary(step, fetched, seconds, config.batch_size)
                    line['learning_rate'] = float(schedule(step - 1 - line['skipped']))
                    line['corrupt_records'] = batches.corrupt_records
                    log.write(line)
                    losses_since_save += [float(m['loss']) for m in fetched if np.isfinite(m['loss'])]
                    loss = float('nan') if line['loss'] is None else line['loss']
                    progress.update(step, loss, line['clips_per_second'], line['skipped'])
                    _check_finite(fetched, config.max_skipped_in_row, step)
                if saving:
                    score = -float(np.mean(losses_since_save)) if losses_since_save else -np.inf
                    if config.validation:
                        score = _validate(config, state, encoder)
                        progress.note(f'step {step}: SDRi {score:.2f} dB on {config.validation}')
                    losses_since_save.clear()
                    checkpointer.save(state, data=batches.get_state(), record=record, score=score)
            if stop_requested() and step % config.checkpoint_every and step < config.steps:
                checkpointer.save(state, data=batches.get_state(), record=record, score=-np.inf)
            checkpointer.wait()
        return TrainResult(step, loss, bool(stop_requested()), workdir / 'checkpoints')


def _summary(step: int, metrics: list[dict[str, np.ndarray]], seconds: float, batch_size: int) -> dict:
    """A line of the log, of the steps since the one before."""
    finite = [float(m['loss']) for m in metrics if np.isfinite(m['loss'])]
    grad_norm = float(metrics[-1]['grad_norm'])
    return {
        'step': step,
        'loss': float(np.mean(finite)) if finite else None,  # JSON has no NaN
        'grad_norm': grad_norm if np.isfinite(grad_norm) else None,
        'skipped': int(metrics[-1]['skipped']),
        'clips_per_second': len(metrics) * batch_size / seconds,
        'seconds': seconds,
    }


def _check_finite(metrics: list[dict[str, np.ndarray]], limit: int, step: int) -> None:
    in_row = max(int(m['skipped_in_row']) for m in metrics)
    if in_row >= limit:
        raise TrainingDivergedError(
            f'stopped at step {step}: the loss or its gradient was not finite for {in_row} steps in a row; '
            'the last checkpoint is intact; lower --optimizer.learning-rate or set --optimizer.clip-norm 1'
        )


def _validate(config: TrainConfig, state: TrainState, encoder: dict) -> float:
    variables = state.ema or {'params': state.params, 'batch_stats': state.batch_stats}
    separator = Separator(config.model, variables, load_encoder(encoder))
    return evaluate_music(separator, config.validation).sdri


def _check_same_run(stored: dict, record: dict, workdir: Path) -> None:
    """Refuses to continue a run with another network, encoder or optimizer, and names what differs."""
    for part in ('model', 'optimizer', 'encoder'):
        old, new = (r['encoder'] if part == 'encoder' else r['config'][part] for r in (stored, record))
        if part == 'model':  # how it computes may change; what it is may not
            old, new = ({k: v for k, v in d.items() if k not in ('dtype', 'remat')} for d in (old, new))
        changed = [f'{part}.{k} was {old.get(k)}, is {new.get(k)}' for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            raise CheckpointError(
                f'{workdir} holds a run of another configuration ({"; ".join(changed)}): choose another --workdir'
            )
    if bool(stored['config']['ema_decay']) != bool(record['config']['ema_decay']):
        raise CheckpointError(f'{workdir} holds a run with ema_decay {stored["config"]["ema_decay"]}: keep it')


def _write_config(workdir: Path, record: dict) -> None:
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / 'config.json.tmp'
        temporary.write_text(json.dumps(record, indent=2) + '\n')
        os.replace(temporary, workdir / 'config.json')
    except OSError as error:
        raise CheckpointError(f'cannot write to the workdir {workdir}: {error.strerror or error}') from error


class _Log:
    """`log.jsonl`, of which a continued run drops the lines after its checkpoint: it is about to write them again."""

    def __init__(self, path: Path, *, after_step: int):
        self._path = path
        self._is_writer = jax.process_index() == 0
        if self._is_writer and path.exists():
            lines = [line for line in path.read_text().splitlines() if _logged_step(line) <= after_step]
            temporary = path.with_suffix('.tmp')
            temporary.write_text(''.join(f'{line}\n' for line in lines))
            os.replace(temporary, path)

    def write(self, line: dict) -> None:
        if self._is_writer:
            with self._path.open('a') as file:
                file.write(json.dumps(line) + '\n')


def _logged_step(line: str) -> float:
    try:
        return json.loads(line)['step']
    except (ValueError, KeyError, TypeError):  # the half line of a run that was killed while writing it
        return float('inf')


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint; a second one ends it at once."""
    received: list[int] = []

    def handler(number, frame):
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

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
