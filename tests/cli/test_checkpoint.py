"""The command line: what is no checkpoint, and a real checkpoint."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from support.band_separator import make_music
from support.quarter_separator import QuarterSeparator, one_error, sound, write
from support.random_equalizer import random_equalizer
from support.small_separator import CONFIG as SMALL
from support.small_separator import save_small

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.checkpoints.checkpoint import Level, describe
from audiosep_jax.checkpoints.equalizer_file import write_equalizer
from audiosep_jax.cli.main import main
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.training.checkpointer import Checkpointer
from audiosep_jax.training.optim import OptimizerConfig, make_optimizer
from audiosep_jax.training.train_step import init_state

# ---- what is no checkpoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('content', ['nothing', 'empty folder', 'other folder', 'file'])
@pytest.mark.parametrize('command', ['separate', 'evaluate', 'inspect'])
def test_what_is_no_checkpoint(folder, capsys, command, content):
    if content == 'file':
        (folder / 'c').write_text('not a checkpoint')
    elif content != 'nothing':
        (folder / 'c').mkdir()
    if content == 'other folder':
        (folder / 'c' / '100').mkdir()
    write('a.wav')
    make_music(folder / 'bench', samples=800)
    arguments = {
        'separate': ['a.wav', '--query', 'dog', '--checkpoint', 'c', '-o', 'x.wav'],
        'evaluate': ['--data', 'bench', '--checkpoint', 'c'],
        'inspect': ['c'],
    }[command]
    assert main([command, *arguments]) == 1
    assert str(folder / 'c') in one_error(capsys)
    assert not (folder / 'x.wav').exists()


# ---- a real checkpoint -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """As much of a training configuration as a checkpoint needs."""

    steps: int = 5
    model: ModelConfig = QuarterSeparator.config


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A workdir as training leaves it, of an untrained network."""
    workdir = tmp_path_factory.mktemp('run')
    optimizer = make_optimizer(OptimizerConfig(), 5)
    state = jax.jit(lambda key: init_state(Run.model, optimizer, key, ema=False))(jax.random.key(0))
    with Checkpointer(workdir / 'checkpoints') as checkpointer:
        record = describe(Run(), QuarterSeparator.encoder.identity())
        checkpointer.save(state.replace(step=state.step + 5), data={}, record=record, score=0.0)
    return workdir


def test_inspect(checkpoint, capsys):
    assert main(['inspect', str(checkpoint)]) == 0
    out = capsys.readouterr().out
    params = jax.eval_shape(lambda: init_variables(Run.model, jax.random.key(0)))['params']
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    for part in (str(checkpoint), 'step        5', 'name words', f'{count:,}', 'steps = 5', 'window_size = 128'):
        assert part in out


def test_inspect_says_whether_checksums_were_right(folder, checkpoint, capsys):
    shutil.copytree(checkpoint, folder / 'run')
    assert main(['inspect', 'run']) == 0
    assert 'checksums   verified\n' in capsys.readouterr().out
    (folder / 'run' / 'checkpoints' / '5' / 'checksums.sha256').unlink()
    assert main(['inspect', 'run']) == 0
    assert 'checksums   unverified (written without checksums)\n' in capsys.readouterr().out


def test_inspect_says_the_level_if_there_is_one(folder, capsys):
    save_small(folder / 'known', level=Level(-40.04, -30.0, -20.0, 256))
    save_small(folder / 'unknown')
    assert main(['inspect', 'known']) == main(['inspect', 'unknown']) == 0
    out = capsys.readouterr().out
    assert out.count('level  ') == 1
    assert 'level       -40.0, -30.0, -20.0 dBFS' in out


def test_the_equalizer_is_shown_and_has_the_share_that_a_flag_says(folder, capsys):
    save_small(folder / 'with')
    write_equalizer(folder / 'with', random_equalizer(SMALL, share=0.5), load_encoder('words').identity())
    save_small(folder / 'without')
    assert main(['inspect', 'with']) == main(['inspect', 'without']) == 0
    out = capsys.readouterr().out
    assert out.count('equalizer  ') == 1
    assert 'equalizer   share 0.5, 3 captions (see --equalizer)' in out
    write('in.wav', channels=1, samples=8000)

    def separated(checkpoint, *flags):
        command = ['separate', 'in.wav', '--query', 'rain', '--checkpoint', checkpoint, '-o', 'out.wav', '--force']
        assert main([*command, '--subtype', 'FLOAT', *flags]) == 0
        return read_audio('out.wav')[0]

    plain, half = separated('without'), separated('with')
    np.testing.assert_allclose(separated('with', '--equalizer', '0'), plain, atol=1e-7)
    alone = separated('with', '--equalizer', '1')
    np.testing.assert_allclose(half, (plain + alone) / 2, atol=1e-6)
    assert np.abs(half - plain).max() > 1e-4
    capsys.readouterr()
    assert main(['convert', 'with', 'network.ckpt']) == main(['convert', 'without', 'same.ckpt']) == 0
    assert capsys.readouterr().err.count('the equalizer was left out') == 1
    command = ['separate', 'in.wav', '--query', 'rain', '-o', 'out.wav', '--force']
    assert main([*command, '--checkpoint', 'without', '--equalizer', '0.5']) == 2
    assert 'without has no equalizer' in one_error(capsys)
    assert main([*command, '--checkpoint', 'with', '--equalizer', '2']) == 2
    assert 'between 0 and 1, got 2.0 (--equalizer)' in one_error(capsys)


def test_separate_at_the_level_of_the_training(folder, capsys):
    """The flag and its default; the sounds keep the level of the recording."""
    save_small(folder / 'known', level=Level(-40.0, -26.0, -20.0, 256))
    save_small(folder / 'unknown')
    write('loud.wav', channels=1, samples=8000, level=0.05)  # -31 dB
    write('quiet.wav', channels=1, samples=8000, level=0.05 / 32)
    found = {}
    for checkpoint in ('known', 'unknown'):
        for level in ('auto', 'off', None):
            for name in ('loud', 'quiet'):
                out = f'{checkpoint}-{level}-{name}.wav'
                flags = [] if level is None else ['--level', level]
                command = ['separate', f'{name}.wav', '--query', 'rain', '--checkpoint', checkpoint, '-o', out, *flags]
                assert main([*command, '--subtype', 'FLOAT']) == 0
                found[checkpoint, level, name] = read_audio(out)[0]
    for checkpoint in ('known', 'unknown'):
        loud, quiet = (found[checkpoint, 'auto', name] for name in ('loud', 'quiet'))
        np.testing.assert_allclose(32 * quiet, loud, atol=1e-4 * np.abs(loud).max())
        assert np.abs(32 * found[checkpoint, 'off', 'quiet'] - loud).max() > 1e-2 * np.abs(loud).max()
    np.testing.assert_array_equal(found['known', None, 'quiet'], found['known', 'auto', 'quiet'])
    np.testing.assert_array_equal(found['unknown', None, 'quiet'], found['unknown', 'off', 'quiet'])
    capsys.readouterr()
    assert main(['separate', 'loud.wav', '--query', 'rain', '--level', 'loud']) == 2


@pytest.mark.parametrize('item', ['params', 'config'])
def test_a_damaged_checkpoint_is_one_line(folder, checkpoint, capsys, item):
    shutil.copytree(checkpoint, folder / 'run')
    for path in (folder / 'run' / 'checkpoints' / '5' / item).rglob('*'):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    assert main(['inspect', 'run']) == 1
    assert 'run/checkpoints/5 cannot be read' in one_error(capsys)


@pytest.mark.slow
def test_separate_and_evaluate_with_a_real_checkpoint(folder, checkpoint, capsys):
    write('in.wav', channels=3)
    queries = ['--query', 'a dog barking', '--query', 'rain']
    flags = ['--checkpoint', str(checkpoint), '-o', 'out', '--residual', '--subtype', 'FLOAT']
    assert main(['separate', 'in.wav', *queries, *flags]) == 0
    parts = {path.name: read_audio(path)[0] for path in (folder / 'out').iterdir()}
    assert sorted(parts) == ['in__a_dog_barking.wav', 'in__rain.wav', 'in__residual.wav']
    np.testing.assert_allclose(sum(parts.values()), sound(channels=3), atol=1e-5)

    make_music(folder / 'bench', samples=800)
    assert main(['evaluate', '--data', 'bench', '--checkpoint', str(checkpoint), '--json', 'r.json']) == 0
    assert '"step": 5' in (folder / 'r.json').read_text()
    report = (folder / 'evaluation' / 'music' / 'report.md').read_text()
    assert 'example_good.png' in report
    assert 'error' not in capsys.readouterr().err
