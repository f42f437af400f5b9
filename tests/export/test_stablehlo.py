"""Programs of `jax.export`: they are what the separator computes, whatever the sizes, and need nothing but JAX."""

import subprocess
import sys

import numpy as np
import pytest
from jax import export
from support.noisy_separator import CONFIG, noisy_variables, sound

from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.export.network import MaskNetwork
from audiosep_jax.export.stablehlo import export_mask, export_separation
from audiosep_jax.separation.level import level_bounds
from audiosep_jax.separation.separator import Separator

LEVEL = Level(-40.0, -30.0, -20.0, 5)
EMBEDDING = np.random.default_rng(1).standard_normal(CONFIG.condition_size).astype(np.float32) / 20
PROGRAM = """
import sys
import jax, numpy as np
mask = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
real, imaginary = mask.call(np.ones((2, 5, 65), np.float32), np.ones((2, 512), np.float32))
assert real.shape == imaginary.shape == (2, 5, 65)
assert not real[..., -1].any() and real.any()
assert not any(name.startswith('audiosep_jax') for name in sys.modules)
"""


@pytest.fixture(scope='module')
def variables():
    return noisy_variables()


@pytest.mark.parametrize('level', [None, LEVEL], ids=['as it is', 'level'])
def test_targets_are_those_of_the_separator(variables, level):
    network = MaskNetwork.fold(CONFIG, variables)
    program = export.deserialize(bytearray(export_separation(network.config, network.weights, level_bounds(level))))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    separator = Separator(CONFIG, variables, None, trained_level=level)
    for channels, length in ((2, 2047), (1, 50)):
        mixture = sound(channels, length)
        wanted = separator.separate(mixture, EMBEDDING, sample_rate=CONFIG.sample_rate).targets[0]
        target = program.call(mixture[None], EMBEDDING[None])
        assert target.shape == (1, channels, length)
        np.testing.assert_allclose(target[0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_masks_need_nothing_but_jax(variables, tmp_path):
    network = MaskNetwork.fold(CONFIG, variables)
    (tmp_path / 'mask.stablehlo').write_bytes(export_mask(network.config, network.weights))
    subprocess.run([sys.executable, '-c', PROGRAM, tmp_path / 'mask.stablehlo'], check=True, cwd=tmp_path)
