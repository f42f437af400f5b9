"""What a run says of itself: `config.json`, `log.jsonl`, TensorBoard, Weights & Biases. The first process writes."""

import contextlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax.errors import CheckpointError, ConfigError, first_line
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.buckets import is_bucket, reaching, write_bytes

_TENSORBOARD = 'tensorboard'
_MIRROR_SECONDS = 60  # between copies into a bucket, where nothing can be appended to


def check_wandb(project: str) -> None:
    """Raises ConfigError where Weights & Biases is asked for and not installed."""
    if project and importlib.util.find_spec('wandb') is None:
        raise ConfigError("--wandb takes `pip install -e '.[wandb]'`")


class TrainingLog:
    """The log of one run, from its (re)start on: a context manager.

    A continued run drops what was written after its checkpoint: it is about to write that again. Where the workdir is
    in a bucket, files grow in a folder of this machine and are copied there once a minute, and at `flush`.

    Args:
        workdir: the run's folder, made if it is not there.
        record: what `checkpoint.describe` made.
        after_step: the step that the run continues from.
        tensorboard: whether to write TensorBoard's files, to WORKDIR/tensorboard.
        wandb: a project of Weights & Biases that gets the same numbers; '': none.

    Raises:
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, record: dict, *, after_step: int, tensorboard: bool = True, wandb: str = ''):
        self._is_writer = jax.process_index() == 0
        self._workdir = workdir
        self._tensorboard = self._wandb = self._scratch = None
        if not self._is_writer:
            return
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

    def _begin(self, record: dict, after_step: int) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        with replacing(self._local / 'config.json') as temporary:
            temporary.write_text(json.dumps(record, indent=2) + '\n')
        old = self._workdir / 'log.jsonl'
        if old.exists():
            lines = [line for line in old.read_text().splitlines() if _logged_step(line) <= after_step]
            with replacing(self._path) as temporary:
                temporary.write_text(''.join(f'{line}\n' for line in lines))

    def __enter__(self) -> 'TrainingLog':
        return self

    def __exit__(self, kind, *exception) -> None:
        if not self._is_writer:
            return
        try:
            # An error on its way is worth more than the one of a full disk here.
            with contextlib.suppress(CheckpointError) if kind else contextlib.nullcontext():
                self.flush()
        finally:
            self._close()
            if self._wandb:
                self._wandb.finish(exit_code=0 if kind is None else 1)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            if self._tensorboard:
                self._tensorboard.close()
        if self._scratch:
            self._scratch.cleanup()

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of `log.jsonl`; its numbers also to TensorBoard and W&B, under `train/`. It holds `step`."""
        self._append(line)
        self._scalars('train', line)

    def validation(
        self, step: int, scores: Mapping[str, float], panels: Mapping[str, Mapping[str, np.ndarray]]
    ) -> None:
        """Scores and a few separations of fixed mixtures.

        Args:
            scores: such as `SDRi`, in dB.
            panels: title -> {'mixture', 'target', 'separated': float [T], 'sample_rate': Hz}.
        """
        self._append({'step': step, 'validation': dict(scores)})
        self._scalars('validation', {'step': step, **scores})
        if not self._tensorboard:
            return
        for number, (title, sounds) in enumerate(panels.items()):
            rate = int(sounds['sample_rate'])
            waves = {name: sounds[name] for name in ('mixture', 'target', 'separated')}
            with self._writing_to(self._workdir):
                self._tensorboard.add_image(
                    f'validation/{number}', _picture(waves, rate, title), step, dataformats='HWC'
                )
                for name, wave in waves.items():
                    self._tensorboard.add_audio(f'validation/{number}/{name}', wave[:, None], step, sample_rate=rate)

    def flush(self) -> None:
        """Everything written so far is where the user looks for it. Raises CheckpointError."""
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
        # Opened anew each time: at 2 a.m. somebody may have moved the file.
        with self._writing_to(self._workdir / 'log.jsonl'), self._path.open('a') as file:
            file.write(json.dumps(line) + '\n')
        if self._scratch and time.monotonic() - self._mirrored > _MIRROR_SECONDS:
            self.flush()

    def _scalars(self, group: str, line: Mapping[str, Any]) -> None:
        numbers = {f'{group}/{k}': v for k, v in line.items() if k != 'step' and isinstance(v, int | float)}
        if self._tensorboard:
            with self._writing_to(self._workdir):
                for name, value in numbers.items():
                    self._tensorboard.add_scalar(name, value, line['step'])
        if self._wandb:
            self._wandb.log(numbers, step=line['step'])

    @contextlib.contextmanager
    def _writing_to(self, path: Path) -> Iterator[None]:
        try:
            with reaching(path):
                yield
        except OSError as error:
            raise CheckpointError(f'cannot write to {path}: {error.strerror or error}') from error


def _summary_writer(folder: Path, after_step: int) -> Any:
    from tensorboardX import SummaryWriter  # late: protobuf, and nobody else needs it

    purge_step = after_step + 1 if after_step else None
    return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=f'.from-{after_step}')


def _picture(waves: Mapping[str, np.ndarray], sample_rate: int, title: str) -> np.ndarray:
    """uint8 [H, W, 3], the spectrograms of some sounds."""
    import PIL.Image

    from audiosep_jax.plots import spectrogram_panels

    with tempfile.TemporaryDirectory(prefix='audiosep-') as folder:
        path = Path(folder) / 'panels.png'
        spectrogram_panels(path, waves, sample_rate, title)
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert('RGB'))


def _wandb_run(project: str, workdir: Path, record: dict) -> Any:
    """The run of this workdir at Weights & Biases: a continued run continues there."""
    import wandb

    path = workdir / 'wandb_run_id'
    known = path.read_text().strip() if path.exists() else None
    try:
        run = wandb.init(project=project, dir=str(workdir), id=known, resume='allow', config=record['config'])
    except Exception as error:  # no account, no network …
        raise ConfigError(f'--wandb {project}: {first_line(error)}') from error
    with replacing(path) as temporary:
        temporary.write_text(run.id)
    return run


def _logged_step(line: str) -> float:
    try:
        return json.loads(line)['step']
    except (ValueError, KeyError, TypeError):  # the half line of a run that was killed while writing it
        return float('inf')
