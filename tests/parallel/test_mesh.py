"""Where arrays are stored: the mesh, the split of the state, and the rows of a process."""

import types

import jax
import numpy as np
import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.parallel.mesh import (
    MeshConfig,
    make_mesh,
    place_of_process,
    state_shardings,
)
from audiosep_jax.training.optim import OptimizerConfig, make_optimizer
from audiosep_jax.training.train_step import init_state

MODEL = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(4, 4), condition_size=16)


def abstract_state(model, ema=True):
    optimizer = make_optimizer(OptimizerConfig(schedule='constant'), 3)
    return jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), ema=ema))


def test_mesh_of_two_axes():
    assert dict(make_mesh().shape) == {'data': 8, 'fsdp': 1}
    mesh = make_mesh(MeshConfig(fsdp=4))
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 4}
    assert [device.id for device in mesh.devices[0]] == [0, 1, 2, 3], 'neighbours share the weights'
    with pytest.raises(ConfigError, match='does not divide 8 devices: use one of 1, 2, 4, 8'):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match='at least 1'):
        MeshConfig(fsdp=0)


def test_weights_optimizer_and_average_are_split_alike():
    mesh = make_mesh(MeshConfig(fsdp=4))
    state = abstract_state(ModelConfig())
    shardings = state_shardings(state, mesh)
    kernel = ('resunet', 'encoder_block1', 'conv_block', 'conv1')

    def of(tree):
        for key in kernel:
            tree = tree[key]
        return tree.spec

    amsgrad = shardings.opt_state[1]
    for tree in (shardings.params, amsgrad.mu, amsgrad.nu_max, shardings.ema['params']):
        assert of(tree) == jax.P(None, None, None, 'fsdp')
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    mine = sum(np.prod(s.shard_shape(a.shape)) for s, a in zip(*map(jax.tree.leaves, (shardings, state)), strict=True))
    assert mine == pytest.approx(whole / 4, rel=0.01)
    # Three maps do not divide by four.
    assert shardings.params['resunet']['after_conv']['kernel'].is_fully_replicated


def mesh_of(owners):
    devices = np.array([types.SimpleNamespace(process_index=p) for p in owners], object)
    return types.SimpleNamespace(devices=devices.reshape(-1, 1))


def test_rows_of_a_process_are_where_its_devices_stand():
    assert place_of_process(make_mesh()) == (0, 1)
    assert place_of_process(mesh_of([2, 2, 0, 0, 1, 1])) == (1, 3)
    for owners in ([0, 1, 0, 1], [0, 0, 0, 1]):
        with pytest.raises(ConfigError, match='equal, connected parts'):
            place_of_process(mesh_of(owners))
