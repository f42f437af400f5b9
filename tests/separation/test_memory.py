"""A recording six times as long takes no more memory."""

import subprocess
import sys

import pytest
from support.paths import TESTS

CODE = """
import resource, sys
import numpy as np, soundfile
sys.path.insert(0, {tests!r})
from support.noisy_separator import noisy_variables
from audiosep_jax.cli import main as cli, terminal
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.separation.separator import Separator

config = ModelConfig(sample_rate=4000, window_size=256, hop_size=128, widths=(1,) * 2)
separator = Separator(config, noisy_variables(config), load_encoder('words'))
terminal.load = lambda path, **options: separator
noise = np.random.default_rng(0).uniform(-0.1, 0.1, 8000).astype(np.float32)
for minutes in (10, 60):
    with soundfile.SoundFile('in.wav', 'w', 8000, 1, 'PCM_16') as file:
        for _ in range(60 * minutes):
            file.write(noise)
    assert cli.main(['separate', 'in.wav', '--query', 'rain', '-o', 'out.wav', '--residual', '--force']) == 0
    assert soundfile.info('out.wav').frames == 60 * minutes * 8000
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_memory_does_not_grow_with_the_length(folder):
    code = CODE.format(tests=str(TESTS))
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    ten, sixty = (int(line) for line in run.stdout.splitlines() if line.isdigit())
    # As float32 the 50 minutes more are 92 MiB, in the mixture, the target and the residual each.
    assert sixty - ten < 30
