"""Training, top to bottom: one configuration in, a workdir with checkpoints and a log out.

    WORKDIR/config.json   the configuration of the latest start
           /log.jsonl     one line per `log_every` steps
           /checkpoints/  see checkpoint.py

Started again with the same workdir, a run continues after its newest checkpoint, bit for bit on the same devices.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from audiosep_jax.checkpoint import Checkpointer, describe
from audiosep_jax.data import DataConfig, encoder_identity, make_batches, staged
from audiosep_jax.encoders import comparable, load_encoder
from audiosep_jax.errors import AudioSepError, CheckpointError, ConfigError, TrainingDivergedError
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import validate
from audiosep_jax.files import replacing
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
        validation: folder of any benchmark (docs/evaluate.md), evaluated at every checkpoint; its SDRi tells which
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
    # ---- What to train, on what, and where: whatever can be refused is refused before anything is written ----
    if not config.workdir:
        raise ConfigError('no workdir: give --workdir DIR')
    mesh = make_mesh()
    check_batch_size(config.batch_size, config.mixing, mesh)
    config.absent.check(config.mixing, config.batch_size)
    data = staged(config.input)
    encoder = encoder_identity(data)
    if encoder['embedding_size'] != config.model.condition_size:
        raise ConfigError(
            f'model.condition_size is {config.model.condition_size}, but the embeddings of {encoder["name"]!r} '
            f'have {encoder["embedding_size"]} numbers: set --model.condition-size {encoder["embedding_size"]}'
        )
    if config.validation:
        read_benchmark(config.validation)
    batches = make_batches(
        data,
        sample_rate=config.model.sample_rate,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        labels=config.mixing.avoid_same_label,
    )
    workdir = Path(config.workdir)
    record = describe(config, encoder)

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
        log = _Log(workdir, record, after_step=step)
        progress = TrainingProgress(step, config.steps)

        # ---- The loop ----
        pending: list[dict[str, jax.Array]] = []  # metrics still on the devices: fetching each would stall them
        losses_since_save: list[float] = []
        loss, stopping = float('nan'), False
        started = time.perf_counter()
        with progress:
            while step < config.steps and not stopping:
                batch = next(batches)
                with jax.transfer_guard('disallow'):
                    state, metrics = train_step(state, put_batch(batch, mesh))
                pending.append(metrics)
                step += 1
                stopping = stop_requested() and step < config.steps
                saving = step % config.checkpoint_every == 0 or step == config.steps or stopping
                if step % config.log_every == 0 or saving:
                    fetched = jax.device_get(pending)
                    pending.clear()
                    line = _summary(step, fetched, time.perf_counter() - started, config.batch_size)
                    line['learning_rate'] = float(schedule(step - 1 - line['skipped']))
                    line['corrupt_records'] = batches.corrupt_records
                    log.write(line)
                    losses_since_save += [float(m['loss']) for m in fetched if np.isfinite(m['loss'])]
                    loss = float('nan') if line['loss'] is None else line['loss']
                    progress.update(step, loss, line['clips_per_second'], line['skipped'])
                    _check_finite(fetched, config.max_skipped_in_row, step)
                    started = time.perf_counter()
                if saving:
                    score = -float(np.mean(losses_since_save)) if losses_since_save else -np.inf
                    if config.validation and not stopping:
                        score = _validate(config, state, encoder, progress)
                    losses_since_save.clear()
                    checkpointer.save(state, data=batches.get_state(), record=record, score=score)
                    started = time.perf_counter()
        return TrainResult(step, loss, stopping, workdir / 'checkpoints')


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


def _validate(config: TrainConfig, state: TrainState, encoder: dict, progress: TrainingProgress) -> float:
    """The SDRi on the validation folder; what is wrong with that folder is said, and does not cost the checkpoint."""
    variables = state.ema or {'params': state.params, 'batch_stats': state.batch_stats}
    separator = Separator(config.model, variables, load_encoder(encoder))
    try:
        sdri = validate(separator, config.validation).sdri
    except AudioSepError as error:
        progress.note(f'not validated: {error}')
        return -np.inf
    progress.note(f'SDRi {sdri:.2f} dB on {config.validation}')
    return sdri if np.isfinite(sdri) else -np.inf


def _check_same_run(stored: dict, record: dict, workdir: Path) -> None:
    """Refuses to continue a run with another network, encoder or kind of state, and names what differs.

    How it is computed and optimized may change: precision, rates, clipping, mixing.
    """

    def fixed(record):
        config = record['config']
        model = {f'model.{k}': v for k, v in config['model'].items() if k not in ('dtype', 'remat')}
        state = {'optimizer.amsgrad': config['optimizer']['amsgrad'], 'ema_decay above 0': config['ema_decay'] > 0}
        return model | state | {f'encoder.{k}': v for k, v in comparable(record['encoder']).items()}

    old, new = fixed(stored), fixed(record)
    changed = [f'{k} was {old.get(k)}, is {new.get(k)}' for k in {**old, **new} if old.get(k) != new.get(k)]
    if changed:
        raise CheckpointError(
            f'{workdir} holds a run of another configuration ({"; ".join(changed)}): choose another --workdir'
        )


class _Log:
    """`config.json`, and `log.jsonl`, of which a continued run drops the lines after its checkpoint: it is about to
    write them again. Only the first process writes."""

    def __init__(self, workdir: Path, record: dict, *, after_step: int):
        self._path = workdir / 'log.jsonl'
        self._is_writer = jax.process_index() == 0
        if not self._is_writer:
            return
        with _writing_to(workdir):
            with replacing(workdir / 'config.json') as temporary:
                temporary.write_text(json.dumps(record, indent=2) + '\n')
            if self._path.exists():
                lines = [line for line in self._path.read_text().splitlines() if _logged_step(line) <= after_step]
                with replacing(self._path) as temporary:
                    temporary.write_text(''.join(f'{line}\n' for line in lines))

    def write(self, line: dict) -> None:
        if self._is_writer:
            with _writing_to(self._path), self._path.open('a') as file:
                file.write(json.dumps(line) + '\n')


@contextlib.contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f'cannot write to {path}: {error.strerror or error}') from error


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
