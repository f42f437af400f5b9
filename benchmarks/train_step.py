"""Training steps of the full-size separator on the device at hand: clips a second, memory, utilisation; and PyTorch's.

    python benchmarks/train_step.py --json-file train_step.json

Each row is a separate process: one step to compile, one to warm up, then the median of `repeats`. Ours is the
project's whole step (mixing, STFT, network, loss, gradients, AdamW with AMSGrad, donated state); PyTorch's is that of
`benchmarks/torch_resunet.py`, which mixes by a plain sum, as its users run it:

- on a CPU, one clip: eager float32 with the C library's malloc as it is, and told to keep memory; ours beside it also
  with the gradients that JAX derives;
- on a GPU: eager float32 in the original's layout with its DFT matrices, and compiled (`max-autotune`) in channels-last
  under bfloat16 autocast with `torch.stft` and a fused optimizer; both with `cudnn.benchmark`, each at growing batches
  until memory is full. Ours in float32 (which is not TF32) and bfloat16, and all kinds of remat.

`CPU s` adds up the threads: where other programs share the cores, it says more than the time that passes. Peak memory
is the allocator's on a GPU and the process's on a CPU. MFU is the model's operations (`audiosep_jax.models.cost`)
by the device's published peak, the last column the share of the roofline bound; both are empty where none is known.
"""

import contextlib
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    import jax
    from rich.table import Table

# For glibc: large blocks from the heap, which grows in large steps and never shrinks.
KEEP_MEMORY = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(16 << 30), 'MALLOC_TOP_PAD_': str(64 << 20)}
REMAT = ('none', 'norms', 'blocks')
BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)
EAGER, COMPILED = 'PyTorch eager', 'PyTorch compiled'
OURS, DERIVED = 'audiosep_jax', 'audiosep_jax, gradients as JAX derives them'
MAX_AUTOTUNE = {'mode': 'max-autotune'}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: what runs, on how many clips, in which precision, and whether malloc is told to keep memory."""

    program: str
    batch_size: int = 1
    dtype: str = 'float32'
    remat: str = 'none'
    keep_memory: bool = False


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the network and its clips; anything but the default is for tests."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    window_size: int = 2048
    hop_size: int = 320
    num_samples: int = 160_000

    def config(self, case: Case):
        from audiosep_jax.models.audiosep import ModelConfig

        return ModelConfig(
            window_size=self.window_size, hop_size=self.hop_size, widths=self.widths, dtype=case.dtype, remat=case.remat
        )


def cpu_cases() -> list[Case]:
    cases = [Case(program) for program in (OURS, DERIVED, EAGER)]
    return [*cases, Case(OURS, keep_memory=True), Case(EAGER, keep_memory=True)]


def gpu_sweeps(batch_sizes: tuple[int, ...]) -> list[list[Case]]:
    """Rows of growing batches; each list ends where memory does."""
    kinds = [Case(OURS, dtype=dtype, remat=remat) for dtype in ('float32', 'bfloat16') for remat in REMAT]
    kinds += [Case(EAGER), Case(COMPILED, dtype='bfloat16')]
    return [[dataclasses.replace(kind, batch_size=size) for size in batch_sizes] for kind in kinds]


def batch(case: Case, size: Size) -> dict[str, np.ndarray]:
    """int16 noise and random embeddings."""
    rng = np.random.default_rng(0)
    waveforms = (3000 * rng.standard_normal((case.batch_size, size.num_samples))).astype(np.int16)
    return {'waveforms': waveforms, 'embeddings': rng.standard_normal((case.batch_size, 512)).astype(np.float32)}


def doubled(key, waveforms, labels=None):
    """The mixer of a single clip, which has no neighbour: the clip and itself, as PyTorch's step has it."""
    del key, labels
    return 2 * waveforms, waveforms


def derived_gradients():
    """A context in which JAX derives the gradients of functions that have their own (`jax.custom_vjp`)."""
    import jax

    return mock.patch.object(jax.custom_vjp, '__call__', lambda function, *arguments: function.fun(*arguments))


def jax_step(case: Case, size: Size) -> tuple[Callable[[], None], 'jax.stages.Compiled']:
    """A function that takes one step and waits for it, and the compiled step that it calls."""
    import jax

    from audiosep_jax.training.mixing import SegmentMixer
    from audiosep_jax.training.optim import OptimizerConfig, make_optimizer
    from audiosep_jax.training.train_step import make_train_step, state_from_variables

    config = size.config(case)
    optimizer = make_optimizer(OptimizerConfig(schedule='constant'), total_steps=1000)
    state = jax.jit(lambda weights: state_from_variables(weights, optimizer, ema=False))(random_variables(config))
    arrays = jax.device_put(batch(case, size))
    mixer = SegmentMixer() if case.batch_size > 1 else doubled
    jitted = jax.jit(make_train_step(config, optimizer, mixer, seed=0), donate_argnums=0)
    with derived_gradients() if case.program == DERIVED else contextlib.nullcontext():
        step = jitted.lower(state, arrays).compile()

    def run():
        nonlocal state
        state, metrics = step(state, arrays)
        if not np.isfinite(jax.device_get(metrics['loss'])):
            raise FloatingPointError('the loss is not finite')

    return run, step


def torch_step(case: Case, size: Size, compiler: dict[str, Any] = MAX_AUTOTUNE) -> Callable[[], None]:
    """The same in PyTorch.

    Args:
        case: of the row.
        size: of the network.
        compiler: the options of `torch.compile`, where the case says that PyTorch compiles.
    """
    import jax
    import torch
    from torch_resunet import Separator, make_step

    from audiosep_jax.models.torch_names import tensors_from_variables

    # JAX says which weights there are. If it saw the GPU, it would take three quarters of the memory from PyTorch.
    jax.config.update('jax_platforms', 'cpu')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    compiled = case.program == COMPILED
    config = size.config(dataclasses.replace(case, dtype='float32'))
    separator = Separator(config, dft_matrices=False)
    if not compiled:
        separator = Separator(config, dft_matrices=True)
        separator.load_tensors(tensors_from_variables(random_variables(config), config))
    separator.to(device, memory_format=torch.channels_last if compiled else torch.contiguous_format)
    if compiled:
        # The network alone: complex arithmetic would break the graph.
        separator.maps = torch.compile(separator.maps, **compiler)
    step = make_step(separator, autocast=compiled, fused=compiled and device == 'cuda')
    arrays = batch(case, size)
    waveforms = torch.as_tensor(arrays['waveforms'], device=device).float() / 32768
    embeddings = torch.as_tensor(arrays['embeddings'], device=device)

    def run():
        if not torch.isfinite(step(waveforms, embeddings)).item():
            raise FloatingPointError('the loss is not finite')

    return run


def random_variables(config) -> dict[str, Any]:
    """Random weights as arrays of NumPy. The network's own `init` takes longer to compile than a short session has."""
    import jax

    from audiosep_jax.models.audiosep import init_variables

    rng = np.random.default_rng(0)

    def values(path, leaf) -> np.ndarray:
        if path[-1].key in ('bias', 'mean'):
            return np.zeros(leaf.shape, np.float32)
        if path[-1].key in ('scale', 'var'):
            return np.ones(leaf.shape, np.float32)
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))

    shapes = jax.eval_shape(lambda key: init_variables(config, key), jax.random.key(0))
    return jax.tree.map_with_path(values, shapes)


def difference_of_outputs(size: Size) -> dict[str, float]:
    """How far PyTorch's separated clips are from ours with the same weights, as a share of our greatest value."""
    import jax
    import torch
    from torch_resunet import Separator

    from audiosep_jax.models.audiosep import AudioSep
    from audiosep_jax.models.torch_names import tensors_from_variables

    config = size.config(Case(OURS))
    variables = random_variables(config)
    with jax.default_device(jax.devices('cpu')[0]):
        arrays = batch(Case(OURS, batch_size=2), size)
        mixtures = arrays['waveforms'].astype(np.float32) / 32768
        apply = jax.jit(lambda *inputs: AudioSep(config).apply(*inputs, train=True, mutable=['batch_stats'])[0])
        ours = np.asarray(apply(variables, mixtures, arrays['embeddings']))
    differences = {}
    for name, dft_matrices in (('DFT matrices', True), ('torch.stft', False)):
        separator = Separator(config, dft_matrices=dft_matrices)
        separator.load_tensors(tensors_from_variables(variables, config))
        with torch.no_grad():
            theirs = separator(torch.as_tensor(mixtures), torch.as_tensor(arrays['embeddings'])).numpy()
        differences[name] = float(np.abs(theirs - ours).max() / np.abs(ours).max())
    return differences


def measure(case: Case, size: Size, repeats: int) -> dict:
    """Measures in a separate process: seconds of the first and the later steps, their CPU time, peak bytes."""
    started = time.perf_counter()
    run = torch_step(case, size) if case.program in (EAGER, COMPILED) else jax_step(case, size)[0]
    return timed(run, case, repeats, started)


def timed(run: Callable[[], None], case: Case, repeats: int, started: float) -> dict:
    """The figures of `measure`, of a step that began to be made at `started`."""
    run()
    first = time.perf_counter() - started
    run()
    times, processor_times = [], []
    for _ in range(repeats):
        started, processor_started = time.perf_counter(), time.process_time()
        run()
        times.append(time.perf_counter() - started)
        processor_times.append(time.process_time() - processor_started)
    return {'first': first, 'seconds': times, 'cpu_seconds': processor_times, 'peak_bytes': peak_bytes(case)}


def peak_bytes(case: Case) -> int:
    """The most memory that this process has held: of the GPU's allocator, or of the system."""
    if case.program in (EAGER, COMPILED):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    else:
        import jax

        if statistics_of_memory := jax.devices()[0].memory_stats():
            return statistics_of_memory['peak_bytes_in_use']
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device() -> dict[str, str]:
    import jax

    return {'platform': jax.devices()[0].platform, 'kind': jax.devices()[0].device_kind, 'cpus': str(os.cpu_count())}


def elsewhere(what: str, *arguments, keep_memory: bool = False) -> dict | None:
    """What another process of this program finds out; None where it runs out of memory.

    Raises:
        RuntimeError: it fails in another way, with the end of what it said.
    """
    program = [sys.executable, __file__, '--worker', json.dumps([what, *arguments])]
    environment = os.environ | (KEEP_MEMORY if keep_memory else {})
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if 'RESOURCE_EXHAUSTED' in done.stderr or 'OutOfMemoryError' in done.stderr or done.returncode == -9:
        return None
    raise RuntimeError(done.stderr[-2000:])


def work(what: str, *arguments) -> dict:
    """In the process that `elsewhere` starts."""
    if what == 'device':
        return device()
    *rest, size = arguments
    size = Size(**{**size, 'widths': tuple(size['widths'])})
    if what == 'difference':
        return difference_of_outputs(size)
    case, repeats = rest
    return measure(Case(**case), size, repeats)


def row(case: Case, size: Size, found: dict, kind: str) -> dict:
    """A measurement with what follows from it."""
    from audiosep_jax.models import cost

    config, seconds = size.config(case), statistics.median(found['seconds'])
    clips = case.batch_size / seconds
    # Eager PyTorch lets cuDNN compute float32 convolutions as TF32, and the bound is of float32.
    peak = cost.peak_flops(kind, 'tensorfloat32' if case.program == EAGER else case.dtype)
    bound = None if case.program == EAGER else cost.clips_per_second_bound(config, size.num_samples, kind)
    return {
        **dataclasses.asdict(case),
        **found,
        'median': seconds,
        'clips_per_second': clips,
        'mfu': peak and clips * cost.training_flops(config, size.num_samples) / peak,
        'of_bound': bound and clips / bound,
    }


def main(
    json_file: Path | None = None,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    repeats: int = 5,
    worker: str = '',
) -> None:
    """Measures and prints the table.

    Args:
        json_file: where to write the figures as well.
        batch_sizes: clips a step, growing; on a GPU.
        repeats: steps timed for each row.
        worker: measure one row in this process; for the program itself.
    """
    if worker:
        print(json.dumps(work(*json.loads(worker))))
        return
    from rich.console import Console

    console, size = Console(), Size()
    sized = dataclasses.asdict(size)
    at_hand, difference = elsewhere('device'), elsewhere('difference', sized)
    sweeps = [[case] for case in cpu_cases()] if at_hand['platform'] == 'cpu' else gpu_sweeps(batch_sizes)
    rows = []
    for sweep in sweeps:
        for case in sweep:
            found = elsewhere('case', dataclasses.asdict(case), repeats, sized, keep_memory=case.keep_memory)
            if found is None:
                console.print(f'out of memory: {case}')
                break
            rows.append(row(case, size, found, at_hand['kind']))
            console.print(f'{case}: {rows[-1]["median"]:.3f} s')
    console.print(f"{at_hand['kind']}, {at_hand['cpus']} CPUs; PyTorch's outputs beside ours: {difference}")
    console.print(table(rows))
    if json_file:
        json_file.write_text(json.dumps({'device': at_hand, 'difference': difference, 'rows': rows}, indent=2) + '\n')


def table(rows: list[dict]) -> 'Table':
    """The best first; the ratio is of clips a second to those of the best row of eager PyTorch as it comes."""
    from rich.table import Table

    plain = [r['clips_per_second'] for r in rows if r['program'] == EAGER and not r['keep_memory']]
    result = Table(
        'program', 'malloc', 'type', 'remat', 'batch', 's', 'CPU s', 'clips/s', 'ratio', 'GB', 'MFU', 'of bound'
    )
    for r in sorted(rows, key=lambda r: -r['clips_per_second']):
        result.add_row(
            r['program'],
            'kept' if r['keep_memory'] else '',
            r['dtype'],
            '' if r['remat'] == 'none' else r['remat'],
            str(r['batch_size']),
            f'{r["median"]:.2f}',
            f'{statistics.median(r["cpu_seconds"]):.2f}',
            f'{r["clips_per_second"]:.2f}',
            f'{r["clips_per_second"] / max(plain):.2f}' if plain else '',
            f'{r["peak_bytes"] / 1e9:.1f}',
            f'{r["mfu"]:.0%}' if r['mfu'] else '',
            f'{r["of_bound"]:.0%}' if r['of_bound'] else '',
        )
    return result


if __name__ == '__main__':
    import tyro

    tyro.cli(main)
