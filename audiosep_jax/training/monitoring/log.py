"""The logs of a run, which the first process writes: `config.json`, `log.jsonl`, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax

from audiosep_jax.errors import CheckpointError, ConfigError, DataError, first_line
from audiosep_jax.plots import spectrogram_image
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.buckets import is_bucket, reaching, write_bytes
from audiosep_jax.storage.json_files import parse_json, write_json
from audiosep_jax.training.monitoring.speed import Goodput

_TENSORBOARD = 'tensorboard'
_QUEUED_EVENTS = 1000
_MIRROR_SECONDS = 60  # between copies into a bucket, whose objects cannot be appended to


def check_wandb(project: str) -> None:
    """Raises ConfigError if a project of Weights & Biases is given, but its package is not installed."""
    if project and importlib.util.find_spec('wandb') is None:
        raise ConfigError("--wandb needs `pip install -e '.[wandb]'`")


class _Line(TypedDict):
    """What is read of a line of `log.jsonl`."""

    step: int


class TrainingLog:
    """The log of one run since its start or restart. A context manager.

    A resumed run drops the lines written after its checkpoint, because it will write them again. If the workdir is in a
    bucket, the files grow in a local folder and are copied to the bucket once a minute and by `flush`.

    Args:
        workdir: the run's folder; it is made if it does not exist.
        record: the run's configuration and encoder, from `describe`.
        after_step: the step after which the run resumes.
        started: when this start began, in seconds since 1970; None: now.
        tensorboard: whether to write TensorBoard's files, to WORKDIR/tensorboard.
        wandb: a project of Weights & Biases that gets the same numbers; '' for none.
        before_writing: called before anything is written; what it raises prevents that.

    Attributes:
        goodput: of the whole run, from the lines that are in the log already.

    Raises:
        CheckpointError: the folder cannot be written.
        ConfigError: Weights & Biases cannot be used.
    """

    def __init__(
        self,
        workdir: Path,
        record: dict[str, Any],
        *,
        after_step: int,
        started: float | None = None,
        tensorboard: bool = True,
        wandb: str = '',
        before_writing: Callable[[], None] = lambda: None,
    ):
        self._is_writer = jax.process_index() == 0
        self._workdir = workdir
        self._before_writing = before_writing
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._started = time.time() if started is None else started
        self.goodput = Goodput([], after_step=after_step, started=self._started)
        if not self._is_writer:
            return
        self._errors = _ThreadErrors()
        if is_bucket(workdir):
            self._scratch = tempfile.TemporaryDirectory(prefix='audiosep-')
        self._local = Path(self._scratch.name) if self._scratch else workdir
        self._path = self._local / 'log.jsonl'
        self._mirrored = time.monotonic()
        try:
            with self._writing_to(workdir):
                self._begin(record, after_step)
                if tensorboard:
                    self._tensorboard = _summary_writer(self._local / _TENSORBOARD, after_step)
            if wandb:
                self._wandb = _wandb_run(wandb, self._local, record)
            self.flush()
        except BaseException:
            self._close()
            raise

    def _begin(self, record: dict[str, Any], after_step: int) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        write_json(self._local / 'config.json', record, indent=2)
        old = self._workdir / 'log.jsonl'
        if old.exists():
            # As bytes, because a damaged line may hold anything.
            lines = old.read_bytes().split(b'\n')
            self.goodput = Goodput(lines, after_step=after_step, started=self._started)
            kept = [line for line in lines if _logged_step(line) <= after_step]
            with replacing(self._path) as temporary:
                temporary.write_bytes(b''.join(line + b'\n' for line in kept))

    def __enter__(self) -> 'TrainingLog':
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if not self._is_writer:
            return
        try:
            # An exception that is already propagating is more useful than one about a full disk.
            with contextlib.suppress(CheckpointError) if kind else contextlib.nullcontext():
                self.flush()
        finally:
            self._close()
            if self._wandb:
                self._wandb.finish(exit_code=0 if kind is None else 1)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            if self._tensorboard and not self._errors.first:
                self._tensorboard.close()
        self._errors.remove()
        if self._scratch:
            self._scratch.cleanup()

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes one line to `log.jsonl`, and its numbers to TensorBoard and W&B under `train/`.

        Args:
            line: names and values, among them `step`.

        Raises:
            CheckpointError: the files cannot be written.
        """
        self._append(line)
        self._scalars('train', line)

    def validation(self, step: int, scores: Mapping[str, float], panels: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the scores of a validation, and to TensorBoard a few separations of fixed mixtures.

        Args:
            step: the step that was validated.
            scores: for example `SDRi`, in dB.
            panels: title -> {'mixture', 'target', 'separated': float [T], 'sample_rate': Hz}.

        Raises:
            CheckpointError: the files cannot be written.
        """
        self._append({'step': step, 'validation': dict(scores)})
        self._scalars('validation', {'step': step, **scores})
        if not self._tensorboard:
            return
        for number, (title, sounds) in enumerate(panels.items()):
            rate = int(sounds['sample_rate'])
            waves = {name: sounds[name] for name in ('mixture', 'target', 'separated')}
            with self._writing_to(self._workdir):
                picture = spectrogram_image(waves, rate, title)
                self._tensorboard.add_image(f'validation/{number}', picture, step, dataformats='HWC')
                for name, wave in waves.items():
                    self._tensorboard.add_audio(f'validation/{number}/{name}', wave[:, None], step, sample_rate=rate)

    def flush(self) -> None:
        """Brings everything written so far to the workdir. Raises CheckpointError if that fails."""
        if not self._is_writer:
            return
        with self._writing_to(self._workdir):
            if self._tensorboard:
                self._tensorboard.flush()
            if self._scratch:
                self._mirrored = time.monotonic()
                for path in sorted(self._local.rglob('*')):
                    if path.is_file():
                        write_bytes(self._workdir / str(path.relative_to(self._local)), path.read_bytes())

    def _append(self, line: Mapping[str, Any]) -> None:
        if not self._is_writer:
            return
        # Reopened for each line, in case the file was rotated.
        with self._writing_to(self._workdir / 'log.jsonl'), self._path.open('a') as file:
            file.write(json.dumps(line) + '\n')
        if self._scratch and time.monotonic() - self._mirrored > _MIRROR_SECONDS:
            self.flush()

    def _scalars(self, group: str, line: Mapping[str, Any]) -> None:
        # TensorBoard and W&B know the time of each number themselves.
        line_only = ('step', 'time')
        numbers = {f'{group}/{k}': v for k, v in line.items() if k not in line_only and isinstance(v, int | float)}
        if self._tensorboard:
            with self._writing_to(self._workdir):
                for name, value in numbers.items():
                    self._tensorboard.add_scalar(name, value, line['step'])
        if self._wandb:
            self._wandb.log(numbers, step=line['step'])

    @contextlib.contextmanager
    def _writing_to(self, path: Path) -> Iterator[None]:
        self._before_writing()
        try:
            if self._errors.first:
                raise self._errors.first
            with reaching(path):
                yield
        except OSError as error:
            raise CheckpointError(f'cannot write to {path}: {error.strerror or error}') from error


def _summary_writer(folder: Path, after_step: int) -> Any:
    from tensorboardX import SummaryWriter  # slow to import, and only this process needs it

    purge_step = after_step + 1 if after_step else None
    # A full queue would block the run once the thread that empties it has failed.
    return SummaryWriter(
        str(folder), purge_step=purge_step, filename_suffix=f'.from-{after_step}', max_queue=_QUEUED_EVENTS
    )


class _ThreadErrors:
    """Keeps the first error of TensorBoard's thread, which would end with a traceback that nobody notices."""

    def __init__(self) -> None:
        self.first: OSError | None = None
        self._previous = threading.excepthook
        threading.excepthook = self._keep

    def remove(self) -> None:
        threading.excepthook = self._previous

    def _keep(self, arguments: Any) -> None:
        if isinstance(arguments.exc_value, OSError) and type(arguments.thread).__name__ == '_EventLoggerThread':
            self.first = self.first or arguments.exc_value
        else:
            self._previous(arguments)


def _wandb_run(project: str, workdir: Path, record: dict[str, Any]) -> Any:
    """Returns the run of this workdir at Weights & Biases; a resumed run resumes there, too."""
    import wandb

    path = workdir / 'wandb_run_id'
    known = path.read_text().strip() if path.exists() else None
    try:
        run = wandb.init(project=project, dir=str(workdir), id=known, resume='allow', config=record['config'])
    except Exception as error:  # for example, no account or no network
        raise ConfigError(f'--wandb {project}: {first_line(error)}') from error
    with replacing(path) as temporary:
        temporary.write_text(run.id)
    return run


def _logged_step(line: bytes) -> float:
    try:
        return parse_json(line, 'log.jsonl', _Line, strict=False)['step']
    except DataError:  # a run was killed while it wrote the line
        return float('inf')
