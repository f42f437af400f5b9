"""Builds shards with Apache Beam, which runs the same function as a local worker, on any runner of Beam.

Only shard numbers move through Beam, no audio. The list of a shard's clips is in a file beside the shards, so all
workers must have access to the output folder or bucket and to the dataset's files. Apache Beam is the extra `[beam]`,
in a separate environment, because it needs protobuf < 7.
"""

import logging
import pathlib
import pickle
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from audiosep_jax.data.layout import SplitInfo, shard_path
from audiosep_jax.errors import AudioSepError, ConfigError, DataError
from audiosep_jax.storage.buckets import as_path, is_bucket, write_bytes
from data_prep.clips.base import ClipSource

# Seconds between counts of the finished shards, the only progress that a remote pipeline shows.
_LOOK_SECONDS = 2.0
_REQUESTS = 16  # requests to a bucket at once

# Short names that Beam itself does not know.
_RUNNERS = {'DaskRunner': 'apache_beam.runners.dask.dask_runner.DaskRunner'}


def pipeline_options(beam_args: Sequence[str]) -> Any:
    """Returns Beam's `PipelineOptions` for flags such as '--runner=DirectRunner', '--direct_num_workers=2'.

    Raises:
        ConfigError: Apache Beam is not installed, or it does not accept these flags.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise ConfigError(
            "--runner beam: Apache Beam is not installed: pip install 'audiosep_jax[beam]' in a separate environment"
        ) from error
    for argument in beam_args:
        if not argument.startswith('--'):
            raise ConfigError(f"--beam-args: {argument!r}: give Beam's flags as --flag=value")
    try:
        runner = PipelineOptions(list(beam_args)).get_all_options().get('runner') or 'DirectRunner'
        runner = _RUNNERS.get(runner, runner)
        create_runner(runner)
    except SystemExit as error:  # argparse exits after printing the reason
        raise ConfigError(f'--beam-args: Beam does not take {" ".join(beam_args)}') from error
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f'--beam-args: {_last_line(error)}') from error
    more = [f'--runner={runner}']
    if runner.endswith('DirectRunner'):
        # Without this flag the runner would first try Prism, a program that it downloads. The pipeline has no triggers,
        # so the flag has no other effect.
        more.append('--allow_unsafe_triggers')
        if not any(argument.startswith('--default_sdk_harness_log_level') for argument in beam_args):
            more.append('--default_sdk_harness_log_level=WARNING')  # otherwise each process logs its start and end
    if runner.endswith('DaskRunner') and not any(a.startswith(('--dask_npart', '--dask_part')) for a in beam_args):
        more.append('--dask_partition_size=1')  # the default would give one worker 128 shards in a row
    return PipelineOptions([*beam_args, *more])


def run_on_beam(
    function: Callable[..., None],
    parts: Sequence[tuple[int, ClipSource]],
    out: pathlib.Path,
    plan: SplitInfo,
    options: Any,
    report: Callable[[int], None],
) -> None:
    """Calls `function(clips, out, plan, shard, tick)` for every (shard, clips) of `parts` in a Beam pipeline.

    Args:
        function: a function in a module that Beam's workers can import.
        parts: the shard numbers and their clips.
        out: directory of the dataset.
        plan: the split to build.
        options: the result of `pipeline_options`.
        report: called from another thread with the number of clips in the shards finished so far.

    Raises:
        DataError: a shard or the pipeline failed.
    """
    import apache_beam as beam

    if not parts:
        return
    folder = out / 'splits' / f'.{plan.split}-tasks-{uuid.uuid4().hex[:12]}'
    try:
        with futures.ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(lambda task: write_bytes(_task_path(folder, task[0]), pickle.dumps(task[1])), parts))
        make = _make_shard_class(beam.DoFn)(function, str(out), str(folder), plan)
        with _ProgressThread(out, plan, parts, report):
            try:
                with beam.Pipeline(options=options) as pipeline:
                    shards = pipeline | 'Shards' >> beam.Create([shard for shard, _ in parts])
                    # Without a reshuffle Beam fuses the steps, and one worker would get all shards.
                    _ = shards | 'Spread' >> beam.Reshuffle() | 'Make' >> beam.ParDo(make)
            except Exception as error:
                raise DataError(_reason(folder) or f'Beam: {_last_line(error)}') from error
    finally:
        _remove(folder)


def _make_shard_class(base: type) -> type:
    """Returns a subclass of `beam.DoFn`, which is known only once Beam is imported."""

    class MakeShard(base):
        """Makes one shard from its number."""

        def __init__(self, function, out: str, folder: str, plan: SplitInfo):
            self._function, self._out, self._folder, self._plan = function, out, folder, plan

        def process(self, shard: int):
            folder = as_path(self._folder)
            clips = pickle.loads(_task_path(folder, shard).read_bytes())
            try:
                self._function(clips, as_path(self._out), self._plan, shard, _no_tick)
            except AudioSepError as error:
                # Runners change exceptions in different ways, so the message is also written to a file.
                write_bytes(_error_path(folder, shard), str(error).encode())
                raise
            yield shard

    return MakeShard


def _no_tick() -> None:
    pass


def _task_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f'{shard:05d}.pickle'


def _error_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f'{shard:05d}.error'


def _reason(folder: pathlib.Path) -> str | None:
    """Returns the message of the first shard that failed, if there is one."""
    for path in sorted(folder.glob('*.error'))[:1]:
        return path.read_text()
    return None


def _last_line(error: Exception) -> str:
    """Returns the last line of a message: Beam puts whole tracebacks into it, which end with the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _remove(folder: pathlib.Path) -> None:
    for path in list(folder.glob('*')):
        path.unlink(missing_ok=True)
    if not is_bucket(folder) and folder.is_dir():
        folder.rmdir()


class _ProgressThread:
    """While it is entered, a thread counts the clips of the finished shards and reports them."""

    def __init__(
        self,
        out: pathlib.Path,
        plan: SplitInfo,
        parts: Sequence[tuple[int, ClipSource]],
        report: Callable[[int], None],
    ):
        self._clips = {shard_path(out, plan, shard).name: len(clips) for shard, clips in parts}
        self._out, self._plan, self._report = out, plan, report
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._before = set(self._there())  # damaged shards, which are made again
        self._thread.start()

    def __exit__(self, kind, *exception):
        self._ended.set()
        self._thread.join()
        if kind is None:
            self._report(sum(self._clips.values()))

    def _there(self) -> list[str]:
        pattern = f'{self._plan.name}-{self._plan.split}.array_record-*'
        return [path.name for path in self._out.glob(pattern) if path.name in self._clips]

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                self._report(sum(self._clips[name] for name in self._there() if name not in self._before))
            except Exception as error:  # a failed count must not end the pipeline
                logging.getLogger(__name__).debug('%s: %s', self._out, error)
