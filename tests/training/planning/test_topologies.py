"""What a topology is called, and what is said where its compiler is missing."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from audiosep_jax.errors import ConfigError
from audiosep_jax.models.cost import DEVICES
from audiosep_jax.training.planning import topologies
from audiosep_jax.training.planning.topologies import (
    compile_lowered,
    compiler_options,
    parse_topology,
    topology_devices,
)

has_tpu_compiler = importlib.util.find_spec('libtpu') is not None


def test_names_and_shapes():
    slice_ = parse_topology('v5e:16x16')
    assert (slice_.chip.names[0], slice_.shape, slice_.size, str(slice_)) == ('TPU v5 lite', (16, 16), 256, 'v5e:16x16')
    assert parse_topology(' H100:8 ').size == 8
    assert {device.topology for device in DEVICES if device.topology} == {
        *('v4', 'v5e', 'v5p', 'v6e'),
        *('a100', 'h100', 'h200', 'b200'),
    }


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('v5e', "'v5e' is not CHIP:SHAPE, such as v5e:16x16 or h100:8"),
        ('v9:2x2', "there is no chip 'v9'; choose one of a100, h100, h200, b200, v4, v5e, v5p, v6e"),
        ('v5e:8', 'the shape of v5e is written like v5e:4x4'),
        ('v4:4x4', 'the shape of v4 is written like v4:4x4x4'),
        ('h100:2x4', 'the shape of h100 is written like h100:8'),
        ('v5e:32x32', 'v5e comes in 1 to 256 chips'),
        ('h100:0', 'h100 comes in 1 to'),
    ],
)
def test_what_is_no_topology_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match=f'^--topology .*{message}') as refused:
        parse_topology(text)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
    ('text', 'remedy'),
    [('v5e:2x4', "pip install 'audiosep_jax[aot]'"), ('h100:8', "pip install 'audiosep_jax[cuda12]'")],
)
def test_a_missing_compiler_is_named(text, remedy, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='needs the compiler') as refused:
        topology_devices(parse_topology(text))
    assert remedy in str(refused.value)


def test_gpus_of_several_hosts_come_in_eights(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: object())
    with pytest.raises(ConfigError, match='above 8 GPUs, use a multiple of 8'):
        topology_devices(parse_topology('h100:12'))


def test_nothing_is_timed_on_a_gpu_that_is_not_there():
    assert compiler_options(parse_topology('v5e:2x4')) == {}
    options = compiler_options(parse_topology('h200:1'))
    assert options['xla_gpu_autotune_level'] == 0
    assert options['xla_gpu_enable_triton_gemm'] is False


@pytest.mark.skipif(not has_tpu_compiler, reason='libtpu is not installed')
@pytest.mark.parametrize(('text', 'count'), [('v5e:16x16', 256), ('v4:2x2x2', 8), ('v5p:2x2x1', 4), ('v6e:1x1', 1)])
def test_the_devices_of_slices(text, count):
    topology = parse_topology(text)
    devices = topology_devices(topology)
    assert len(devices) == count
    assert {device.device_kind for device in devices} <= set(topology.chip.names)


@pytest.mark.skipif(not has_tpu_compiler, reason='libtpu is not installed')
def test_a_slice_that_does_not_exist_is_one_line():
    with pytest.raises(ConfigError, match=r'^--topology v5e:3x2: ') as refused:
        topology_devices(parse_topology('v5e:3x2'))
    assert '\n' not in str(refused.value)


@pytest.mark.skipif(not has_tpu_compiler, reason='libtpu is not installed')
def test_programs_for_absent_devices_are_not_cached(tmp_path):
    """JAX cannot read them again, and would warn at the second time."""
    topology = parse_topology('v6e:1x1')
    sharding = jax.sharding.SingleDeviceSharding(topology_devices(topology)[0])
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding)
    folder, seconds = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    compilation_cache.reset_cache()
    try:
        for _ in range(2):
            compile_lowered(jax.jit(lambda x: x + 1).lower(x), topology)
        assert not [*tmp_path.iterdir()]
        jax.jit(lambda x: x - 1)(jnp.zeros(3))  # those of devices that are there still are
        assert [*tmp_path.iterdir()]
    finally:
        jax.config.update('jax_compilation_cache_dir', folder)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)
        compilation_cache.reset_cache()


@pytest.mark.skipif(not has_tpu_compiler, reason='libtpu is not installed')
def test_the_compiler_for_tpus_does_not_complain_of_this_machine():
    program = (
        'from audiosep_jax.training.planning.topologies import *\n'
        'look_for_no_devices()\n'
        'print(len(topology_devices(parse_topology("v5e:2x4"))))'
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith('TPU_')}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ('8\n', '')


# An upsampling of the article's network, and the statistics of its result, at the size of 8 clips.
UPSAMPLED = """
import sys
import jax
import jax.numpy as jnp
from audiosep_jax.models.convolution import upsample
from audiosep_jax.models.normalization import batch_norm_shift_activate
from audiosep_jax.training.planning.topologies import *

look_for_no_devices()
topology = parse_topology(sys.argv[1])
sharding = jax.sharding.SingleDeviceSharding(topology_devices(topology)[0])


def program(x, kernel, vectors, shift):
    y = upsample(jax.nn.leaky_relu(x), kernel, (1, 2))
    scale, bias, center = vectors
    return batch_norm_shift_activate(y, scale, bias, shift, center, jnp.bfloat16)


like = (8, 128, 256, 64), (64, 2, 2, 64), (3, 64), (8, 64)
shapes = zip(like, [jnp.bfloat16] + 3 * [jnp.float32], strict=True)
arguments = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]
compile_lowered(jax.jit(program).lower(*arguments), topology)
"""


@pytest.mark.skipif(not has_tpu_compiler, reason='libtpu is not installed')
@pytest.mark.parametrize('text', ['v5e:1x1', 'v6e:1x1'])
def test_an_upsampling_and_its_statistics_compile(text):
    """The compiler of a v6e crashed when all of it was one operation."""
    done = subprocess.run([sys.executable, '-c', UPSAMPLED, text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
