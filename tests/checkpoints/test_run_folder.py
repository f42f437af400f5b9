"""Run folders: which steps are kept, what inference reads, and the messages about damage."""

import shutil

import jax
import numpy as np
import pytest
from support.saved_steps import ENCODER, Run, initial_state, state_at

from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.errors import CheckpointError
from audiosep_jax.separation.loading import load
from audiosep_jax.storage.checksums import CHECKSUMS
from audiosep_jax.training.checkpointer import Checkpointer


@pytest.fixture(scope='module')
def state():
    return initial_state()


def save(directory, state, steps, *, scores=None, keep=2):
    with Checkpointer(directory, keep=keep) as checkpointer:
        for i, step in enumerate(steps):
            score = scores[i] if scores else 0.0
            record = describe(Run(), ENCODER)
            checkpointer.save(state_at(step), data={'position': step}, record=record, score=score)
        checkpointer.wait()
        return checkpointer.steps()


@pytest.fixture(scope='module')
def saved(tmp_path_factory, state):
    directory = tmp_path_factory.mktemp('run') / 'checkpoints'
    save(directory, state, [10, 20])
    return directory


@pytest.mark.slow
def test_newest_and_best_are_kept(tmp_path, state):
    assert save(tmp_path, state, [1, 2, 3, 4, 5], scores=[0.0, 9.0, 1.0, 2.0, -1.0]) == [2, 4, 5]


def test_everything_is_restored(saved, state):
    with Checkpointer(saved) as checkpointer:
        restored, data, record = checkpointer.restore(state)
    expected = state_at(20)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert data == {'position': 20}
    assert record['config']['model']['hop_size'] == 64


def test_loading_warns_of_nothing(saved, caplog):
    load_for_inference(saved)
    assert not caplog.records


def test_inference_takes_the_moving_average_or_the_raw_weights(saved, state):
    path = ('resunet', 'after_conv', 'kernel')

    def kernel(tree):
        for key in path:
            tree = tree[key]
        return tree

    average, raw = load_for_inference(saved.parent), load_for_inference(saved.parent, step=10, raw=True)
    np.testing.assert_allclose(kernel(average.variables['params']), kernel(state.params) + 120, rtol=1e-6)
    np.testing.assert_allclose(kernel(raw.variables['params']), kernel(state.params) + 10, rtol=1e-6)
    assert (average.step, raw.step) == (20, 10)
    assert average.model == Run.model
    assert average.encoder == ENCODER


@pytest.mark.parametrize('which', ['', 'checkpoints', 'checkpoints/10'])
def test_any_of_a_run_s_folders_can_be_loaded(saved, which):
    separator = load(saved.parent / which)
    assert separator.info['step'] == (10 if which.endswith('10') else 20)
    assert separator.encoder.name == 'words'


def test_other_paths_are_refused(tmp_path, saved):
    with pytest.raises(CheckpointError, match='no such checkpoint'):
        load(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='is not a checkpoint'):
        load(tmp_path)
    (tmp_path / 'file.ckpt').write_text('x')
    with pytest.raises(CheckpointError, match='convert it with'):
        load(tmp_path / 'file.ckpt')
    with pytest.raises(CheckpointError, match='has no step 7; it has 10, 20'):
        load(saved, step=7)
    with pytest.raises(CheckpointError, match='to choose step 20'):
        load(saved / '10', step=20)


def test_a_step_s_folder_under_another_name(tmp_path, saved):
    shutil.copytree(saved / '10', tmp_path / 'best')
    assert load(tmp_path / 'best').info['step'] == 10


def test_an_encoder_of_a_later_version_is_a_checkpoint_error(tmp_path, state):
    with Checkpointer(tmp_path) as checkpointer:
        record = describe(Run(), {**ENCODER, 'name': 'telepathy'})
        checkpointer.save(state_at(1), data={}, record=record, score=0.0)
    with pytest.raises(CheckpointError, match="unknown query encoder 'telepathy'"):
        load(tmp_path)


# When one read fails, Orbax abandons the futures of the others, and Python warns when it collects them.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_checkpoint_is_one_line(tmp_path, saved):
    run = tmp_path / 'run'
    shutil.copytree(saved, run)
    # Truncate the arrays' data, as a full disk might without Orbax noticing.
    chunks = [p for p in (run / '20' / 'ema').rglob('*') if p.is_file() and '/d/' in str(p)]
    assert chunks
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(CheckpointError, match='cannot be read') as caught:
        load(run)
    assert '\n' not in str(caught.value)
    (run / '20' / CHECKSUMS).unlink()  # as older versions wrote it
    with pytest.raises(CheckpointError, match='cannot be read') as caught:
        load(run)
    assert '\n' not in str(caught.value)
    assert load(run, step=10).info['step'] == 10


def test_a_damaged_configuration_is_one_line(tmp_path, saved):
    run = tmp_path / 'run'
    shutil.copytree(saved, run)
    (run / '20' / CHECKSUMS).unlink()  # as older versions wrote it
    (config,) = [p for p in (run / '20' / 'config').iterdir() if p.is_file() and p.read_bytes().startswith(b'{"format')]
    config.write_text(config.read_text().replace('hop_size', 'hop_sise'))
    with pytest.raises(CheckpointError, match="did you mean 'hop_size'"):
        load(run)
    config.write_text('{')
    with pytest.raises(CheckpointError, match='cannot be read'):
        load(run)


def test_a_half_written_checkpoint_is_ignored(tmp_path, state, saved):
    run = tmp_path / 'run'
    shutil.copytree(saved, run)
    (run / '20').rename(run / '30.orbax-checkpoint-tmp')
    assert load(run).info['step'] == 10
    with Checkpointer(run) as checkpointer:
        assert checkpointer.steps() == [10]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot write checkpoints'):
        Checkpointer(tmp_path / 'file' / 'checkpoints')
