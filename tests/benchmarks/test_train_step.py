"""The pieces of benchmarks/train_step.py, small: PyTorch's network is ours, and each row is what it says."""

import jax
import numpy as np
import pytest

from audiosep_jax.models import cost

torch = pytest.importorskip('torch', reason='compares with PyTorch: pip install -e .[parity]')


@pytest.fixture(scope='module')
def benchmark(benchmarks_on_path):
    import train_step

    return train_step


@pytest.fixture(scope='module')
def size(benchmark):
    return benchmark.Size(widths=(4, 4, 6, 6, 8, 8), window_size=128, hop_size=32, num_samples=2000)


def test_the_network_in_pytorch_is_ours(benchmark, size):
    differences = benchmark.difference_of_outputs(size)
    assert set(differences) == {'DFT matrices', 'torch.stft'}
    assert all(0 < difference < 1e-4 for difference in differences.values())


def test_gradients_that_jax_derives(benchmark):
    """Every gradient of our own is left out, whatever function has it."""

    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, None), lambda _, g: (0 * g,))
    assert jax.grad(square)(3.0) == 0
    with benchmark.derived_gradients():
        assert jax.grad(square)(3.0) == 6
    assert jax.grad(square)(3.0) == 0


def test_pytorch_s_step_trains(benchmark, size):
    from torch_resunet import Separator, make_step

    torch.manual_seed(0)
    separator = Separator(size.config(benchmark.Case(benchmark.EAGER)), dft_matrices=False)
    step = make_step(separator, autocast=False, fused=False)
    arrays = benchmark.batch(benchmark.Case(benchmark.EAGER, batch_size=2), size)
    waveforms = torch.as_tensor(arrays['waveforms']).float() / 32768
    losses = [step(waveforms, torch.as_tensor(arrays['embeddings'])).item() for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_a_row_s_figures(benchmark, size):
    case = benchmark.Case(benchmark.OURS, batch_size=8, dtype='bfloat16')
    found = {'first': 30.0, 'seconds': [0.5, 0.1, 0.2], 'cpu_seconds': [1.0], 'peak_bytes': 3_000_000_000}
    row = benchmark.row(case, size, found, 'NVIDIA H200')
    assert row['clips_per_second'] == 8 / 0.2
    assert row['mfu'] == 40 * cost.training_flops(size.config(case), 2000) / 989.4e12
    assert 0 < row['mfu'] < row['of_bound'] < 1
    assert benchmark.row(case, size, found, 'cpu')['mfu'] is None
    assert benchmark.table([row]).row_count == 1


def test_sweeps_grow_and_cover_both_programs(benchmark):
    sweeps = benchmark.gpu_sweeps((2, 4))
    assert all([case.batch_size for case in sweep] == [2, 4] for sweep in sweeps)
    kinds = {(sweep[0].program, sweep[0].dtype, sweep[0].remat) for sweep in sweeps}
    ours = {(benchmark.OURS, dtype, remat) for dtype in ('float32', 'bfloat16') for remat in benchmark.REMAT}
    assert kinds == ours | {(benchmark.EAGER, 'float32', 'none'), (benchmark.COMPILED, 'bfloat16', 'none')}
