"""One part of a measuring session on a GPU. `gpu_session.sh` runs all of them, each in a process of its own:

    python benchmarks/gpu_session.py DIR PART [--rehearse]

Results go to `DIR/results.jsonl`, a line as soon as each is known: `{"part": PART, …}`, and at last its `status`.

- `parity`: the network's output and gradients in float32, against the original's golden values (tests/reference);
- `ours-B`, `eager-B`, `compiled-B`, `autotuned-B`: the time of a training step on B clips, by `train_step.py`: ours in
  bfloat16; PyTorch eager, as the original is shipped; PyTorch compiled, in channels-last bfloat16, with the compiler's
  default mode or with `max-autotune`, which compiles for minutes. `ours-B` also keeps the compiled program;
- `traffic`: the bytes that the instructions of those programs move, and the roofline bound, against the times;
- `separation`: seconds of sound per second, of the network on arrays;
- `recordings`: the same from a file to a file (`separate.py`);
- `quickstart`: its time and scores.

The parts down to `separation` import nothing but JAX, Flax, Optax, NumPy and PyTorch. A part that lacks a package is
skipped, and says so. `--rehearse` runs a part with a tiny network on any device.
"""

import argparse
import dataclasses
import gzip
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import train_step
from gpu_summary import RESULTS
from placeholders import put_placeholders
from train_step import Case, Size

ROOT = Path(__file__).parents[1]
DONE, FAILED, SKIPPED = 0, 10, 11  # exit codes; with any other, the process could not say what became of it
MOST_OUTPUT_ERROR = 1e-5
MOST_GRADIENT_ERROR = (
    5e-4  # the median over the tensors; where rounding flips an activation's sign, single ones are off
)
FULL = Size()
TINY = Size(widths=(4, 4, 6, 6, 8, 8), window_size=128, hop_size=32, num_samples=2000)
DEAREST = 20
OUR_PACKAGES = ('audiosep_jax', 'data_prep', 'support')


class Unavailable(Exception):
    """What the part measures is not there."""


@dataclasses.dataclass(frozen=True)
class Session:
    """Where a part writes, and what it measures.

    Attributes:
        folder: of the results.
        part: its name.
        rehearsal: whether a tiny network shows only that the part works.
    """

    folder: Path
    part: str
    rehearsal: bool = False

    @property
    def size(self) -> Size:
        return TINY if self.rehearsal else FULL

    @property
    def repeats(self) -> int:
        return 2 if self.rehearsal else 10

    def record(self, **figures: Any) -> None:
        """Appends a line to the results, and prints it."""
        line = json.dumps({'part': self.part, **figures})
        with (self.folder / RESULTS).open('a') as file:
            file.write(line + '\n')
        print(line[:2000], flush=True)

    def results(self) -> list[dict]:
        """The lines so far."""
        return [json.loads(line) for line in (self.folder / RESULTS).read_text().splitlines()]

    def program(self, batch_size: int) -> Path:
        """The file of a compiled program."""
        return self.folder / f'program-{batch_size}.txt.gz'


# ---- parity ----------------------------------------------------------------------------------------------------------


def parity(session: Session) -> None:
    import jax
    import numpy as np
    from gpu_reference import golden_reference, gradient_errors, tiny_reference
    from support.parity import relative_error, value_and_grad_of

    from audiosep_jax.models.audiosep import AudioSep
    from audiosep_jax.models.torch_names import tensors_from_variables

    session.record(device=machine())
    reference = tiny_reference(session.size) if session.rehearsal else golden_reference()
    config, arrays = reference.config, reference.arrays
    variables = jax.device_put(reference.variables)
    apply = jax.jit(AudioSep(config).apply)

    def compare_output(which: str) -> None:
        output = apply(variables, arrays[f'wave_{which}'], arrays[f'cond_{which}'])
        error = float(relative_error(output, arrays[f'out_{which}']))
        session.record(output=which, error=error, most=MOST_OUTPUT_ERROR, equal=error < MOST_OUTPUT_ERROR)

    compare_output('a')
    _, gradients = value_and_grad_of(config, arrays)(variables['params'], variables['batch_stats'])
    found = {'params': jax.device_get(gradients), 'batch_stats': reference.variables['batch_stats']}
    errors, overall = gradient_errors(tensors_from_variables(found, config), reference.gradients)
    worst, median = max(errors, key=errors.get), float(np.median([*errors.values()]))
    session.record(
        gradients=len(errors),
        overall_error=overall,
        median_error=median,
        most=MOST_GRADIENT_ERROR,
        equal=median < MOST_GRADIENT_ERROR,
        worst=worst,
        worst_error=errors[worst],
    )
    compare_output('b')


def machine() -> dict[str, Any]:
    """The card and the versions behind the figures."""
    versions = {}
    for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total,clocks.max.sm', '--format=csv,noheader']
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = None
    return {**train_step.device(), 'nvidia_smi': driver, 'python': platform.python_version(), **versions}


# ---- time of a step --------------------------------------------------------------------------------------------------


def ours(session: Session, batch_size: int) -> None:
    session.record(device=machine())  # parity may not have run
    case = Case(train_step.OURS, batch_size, dtype='bfloat16')
    started = time.perf_counter()
    run, compiled = train_step.jax_step(case, session.size)
    record_step(session, case, train_step.timed(run, case, session.repeats, started))
    # The time is known; now what the part `traffic` reads.
    session.program(batch_size).write_bytes(gzip.compress(compiled.as_text().encode()))
    memory = compiled.memory_analysis()
    sizes = {name: getattr(memory, name) for name in dir(memory) if name.endswith('_in_bytes')}
    counted = {name: (compiled.cost_analysis() or {}).get(name) for name in ('bytes accessed', 'flops')}
    session.record(program=batch_size, memory=sizes, counted=counted)


def eager(session: Session, batch_size: int) -> None:
    torch_step(session, Case(train_step.EAGER, batch_size), {})


def compiled(session: Session, batch_size: int) -> None:
    torch_step(session, Case(train_step.COMPILED, batch_size, dtype='bfloat16'), {'mode': 'default'})


def autotuned(session: Session, batch_size: int) -> None:
    torch_step(session, Case(train_step.COMPILED, batch_size, dtype='bfloat16'), train_step.MAX_AUTOTUNE)


def torch_step(session: Session, case: Case, compiler: dict[str, Any]) -> None:
    if session.rehearsal:
        compiler = {'backend': 'aot_eager'}  # the default would need a C++ compiler, and a minute
    started = time.perf_counter()
    run = train_step.torch_step(case, session.size, compiler)
    record_step(session, case, train_step.timed(run, case, session.repeats, started))


def record_step(session: Session, case: Case, found: dict) -> None:
    session.record(step=train_step.row(case, session.size, found, card(case)))


def card(case: Case) -> str:
    """The name of the GPU, from the program that uses it."""
    if case.program != train_step.OURS:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
    return train_step.device()['kind']


# ---- traffic ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SavedProgram:
    """What `read_compiled` asks a compiled program for."""

    text: str
    memory: dict[str, int]
    counted: dict[str, float | None]

    def as_text(self) -> str:
        return self.text

    def memory_analysis(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(**self.memory)

    def cost_analysis(self) -> dict[str, float | None]:
        return self.counted


def traffic(session: Session) -> None:
    """Compares what the programs of `ours-B` must move with the time that they took."""
    from audiosep_jax.training.planning.compiled import read_compiled

    results = session.results()
    saved = {line['program']: line for line in results if 'program' in line}
    steps = {line['step']['batch_size']: line['step'] for line in results if is_ours(line)}
    kind = next((line['device']['kind'] for line in reversed(results) if 'device' in line), '')
    if session.rehearsal:
        kind = 'NVIDIA H200'  # as if: nothing is known of a CPU
    if not saved:
        raise Unavailable('no program of ours has been compiled')
    for batch_size, line in sorted(saved.items()):
        text = gzip.decompress(session.program(batch_size).read_bytes()).decode()
        program = read_compiled(SavedProgram(text, line['memory'], line['counted']))
        session.record(traffic=expectation(program, steps[batch_size], session.size, kind))


def is_ours(line: dict) -> bool:
    return 'step' in line and line['step']['program'] == train_step.OURS


def expectation(program: Any, step: dict, size: Size, kind: str) -> dict[str, Any]:
    """What a program should take on a card, and what it took; None where nothing is known of the card."""
    from audiosep_jax.models import cost
    from audiosep_jax.training.planning.estimate import step_seconds

    chip, clips, seconds = cost.find_device(kind), step['batch_size'], step['median']
    bound = cost.clips_per_second_bound(size.config(Case(**case_of(step))), size.num_samples, kind)
    estimated = step_seconds(program, chip, step['dtype']) if chip else None
    by_kind: dict[str, int] = {}
    for instruction in program.instructions:
        by_kind[instruction.kind] = by_kind.get(instruction.kind, 0) + instruction.bytes
    dearest = sorted(program.instructions, key=lambda instruction: -instruction.bytes)[:DEAREST]
    return {
        'batch_size': clips,
        'measured_seconds': seconds,
        'bytes': program.traffic,
        'bytes_by_kind': dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        'bandwidth': program.traffic / seconds,
        'share_of_bandwidth': chip and program.traffic / seconds / chip.bandwidth,
        'estimated_seconds': estimated,
        'estimated_over_measured': estimated and estimated / seconds,
        'bound_seconds': bound and clips / bound,
        'share_of_bound': bound and clips / bound / seconds,
        'compiled_memory': program.memory,
        'temporary_memory': program.temporary,
        'peak_memory': step['peak_bytes'],
        'dearest': [dataclasses.asdict(instruction) for instruction in dearest],
    }


def case_of(step: dict) -> dict[str, Any]:
    return {field.name: step[field.name] for field in dataclasses.fields(Case)}


# ---- separation ------------------------------------------------------------------------------------------------------


def separation(session: Session) -> None:
    """The network as the separator runs it, on arrays at the model's rate: recordings at once, and a batch of them."""
    import jax
    import numpy as np

    from audiosep_jax.models.folded import fold
    from audiosep_jax.separation.network import Network, separate_batch, separate_whole

    config = session.size.config(Case(train_step.OURS))
    rate = 2000 if session.rehearsal else config.sample_rate
    weights = jax.jit(lambda variables: fold(config, variables))(train_step.random_variables(config))
    network = Network(config, weights)
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((1, config.condition_size)).astype(np.float32)
    embedded = types.SimpleNamespace(queries=queries, unwanted=queries[:0], excluded=((),))

    def once(recordings: int, seconds: int) -> Callable[[], Any]:
        mixture = (0.1 * rng.standard_normal((1, seconds * rate))).astype(np.float32)
        if recordings == 1:
            return lambda: separate_whole(network, mixture, embedded, per_channel=False)
        return lambda: separate_batch(network, [mixture[0]] * recordings, np.repeat(queries, recordings, 0))

    for recordings, seconds in ((1, 10), (1, 30), (16, 10)):
        run = once(recordings, 1 if session.rehearsal else seconds)
        run()
        times = []
        for _ in range(session.repeats):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        median = float(np.median(times))
        factor = recordings * (1 if session.rehearsal else seconds) / median
        session.record(recordings=recordings, sound_seconds=seconds, seconds=median, realtime_factor=factor)


def recordings(session: Session) -> None:
    """From a WAV file to a WAV file, as `separate.py` measures it."""
    import separate

    lengths, network = ((1,), separate.SIZES['small']) if session.rehearsal else ((60, 180), separate.SIZES['article'])
    for seconds in lengths:
        with tempfile.TemporaryDirectory() as folder:
            case = separate.Case('default', seconds, queries=1)
            found = separate.work(case, network, Path(folder))
        session.record(recording=found, realtime_factor=1 / found['seconds_per_second'])


# ---- quickstart ------------------------------------------------------------------------------------------------------


def quickstart(session: Session) -> None:
    """Synthesizes the corpus, trains, evaluates and separates."""
    spec = importlib.util.spec_from_file_location('quickstart_experiment', ROOT / 'experiments' / 'quickstart.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    steps = {}
    if session.rehearsal:
        full, steps = script.get_config, {'steps': 2}
        script.get_config = lambda *arguments: shrunk(full(*arguments))
        script.CLIP_SECONDS, script.TRAINING_CLIPS, script.TEST_CLIPS = 0.25, 16, 8
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        script.main(Path(folder), seed=0, **steps)
        seconds = time.perf_counter() - started
        rows = json.loads((Path(folder) / 'results.json').read_text())['rows']
    session.record(quickstart_seconds=seconds, sdri={name: row['SDRi'] for name, row in rows.items()})


def shrunk(config: Any) -> Any:
    """A quickstart's configuration with the least network."""
    model = dataclasses.replace(config.model, window_size=128, hop_size=64, widths=(2,) * 6)
    return dataclasses.replace(config, model=model)


# ---- program ---------------------------------------------------------------------------------------------------------

# Those of the second kind import what a complete installation has.
BARE: dict[str, Callable] = {
    'parity': parity,
    'ours': ours,
    'eager': eager,
    'compiled': compiled,
    'autotuned': autotuned,
    'traffic': traffic,
    'separation': separation,
}
COMPLETE: dict[str, Callable] = {'recordings': recordings, 'quickstart': quickstart}


def find_gpu(part: str) -> None:
    """Fails where the program would run on the CPU instead, for hours."""
    if part in ('eager', 'compiled', 'autotuned'):
        import torch

        if not torch.cuda.is_available():
            raise Unavailable('PyTorch sees no GPU')
    elif part != 'traffic':
        found = train_step.device()
        if found['platform'] != 'gpu':
            raise Unavailable(f'JAX sees no GPU, but {found["kind"]}')


def run(session: Session) -> int:
    """Runs a part; returns the exit code. Its last line of results says what became of it."""
    name, _, batch_size = session.part.partition('-')
    started = time.perf_counter()

    def ended(status: str, **reason: str) -> None:
        session.record(status=status, seconds=round(time.perf_counter() - started, 1), **reason)

    try:
        if name in BARE:
            put_placeholders()
        if not session.rehearsal:
            find_gpu(name)
        (BARE | COMPLETE)[name](session, *([int(batch_size)] if batch_size else []))
    except Exception as error:
        traceback.print_exc()
        if (missing := missing_package(error)) is not None:
            ended('skipped', reason=f'it needs the package {missing}')
            return SKIPPED
        message = (str(error).strip() or 'no message').splitlines()[0]
        ended('failed', reason=f'{type(error).__name__}: {message[:300]}')
        return FAILED
    ended('done')
    return DONE


def missing_package(error: Exception) -> str | None:
    """The package that is not installed, if that is the error."""
    name = (error.name or '').partition('.')[0] if isinstance(error, ModuleNotFoundError) else ''
    return name if name and name not in OUR_PACKAGES else None


def main() -> int:
    parser = argparse.ArgumentParser(description='One part of a measuring session; gpu_session.sh runs all of them.')
    parser.add_argument('folder', type=Path, help='where results.jsonl is')
    parser.add_argument('part', help='parity, ours-B, eager-B, compiled-B, autotuned-B, traffic, …')
    parser.add_argument('--rehearse', action='store_true', help='a tiny network, on any device')
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    return run(Session(arguments.folder, arguments.part, arguments.rehearse))


if __name__ == '__main__':
    sys.exit(main())
