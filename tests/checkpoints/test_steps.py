"""The steps of a run: which are whole, how they go away, and random damage of everything that is written."""

import random
import shutil

import jax
import numpy as np
import pytest
from support.saved_steps import save_step

from audiosep_jax.checkpoints.hub_folder import read_hub_folder, write_hub_folder
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.checkpoints.steps import complete_steps, delete_step, newest_whole_step, set_aside
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.storage.checksums import CHECKSUMS
from audiosep_jax.training.checkpointer import Checkpointer

# Orbax abandons the other futures when a read fails, and Python warns when it collects them.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp('run') / 'checkpoints'
    with Checkpointer(directory) as checkpointer:
        for step in (10, 20):
            save_step(checkpointer, step)
    return directory


@pytest.fixture
def run(tmp_path, saved):
    return shutil.copytree(saved, tmp_path / 'checkpoints')


def files_in(folder) -> list:
    return sorted(path for path in folder.rglob('*') if path.is_file())


def damage(file) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def array_chunk(folder):
    return max((path for path in files_in(folder) if '/d/' in str(path)), key=lambda path: path.stat().st_size)


def test_whole_steps(run):
    assert newest_whole_step(run) == newest_whole_step(run.absolute())
    assert newest_whole_step(run).step == 20
    assert newest_whole_step(run.parent / 'nothing').step is None
    for step in (10, 20):
        (run / str(step) / CHECKSUMS).unlink()
    assert newest_whole_step(run).step == 20  # as older versions wrote it


@pytest.mark.parametrize('item', ['params', 'batch_stats', 'ema', 'optimizer', 'data', 'config'])
def test_damage_of_any_item_is_noticed(run, item):
    damage(max(files_in(run / '20' / item), key=lambda path: path.stat().st_size))
    newest = newest_whole_step(run)
    assert newest.step == 10
    assert f'20 cannot be read: damaged: the checksum of {item}/' in newest.damaged[20]
    shutil.rmtree(run / '20' / item)
    assert f'20 cannot be read: damaged: {item}' in newest_whole_step(run).damaged[20]


@pytest.mark.parametrize('item', ['params', 'optimizer'])
def test_without_checksums_what_cannot_be_read_is_damaged(run, item):
    (run / '20' / CHECKSUMS).unlink()
    for chunk in files_in(run / '20' / item):  # some of which nobody reads
        if '/d/' in str(chunk):
            chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    newest = newest_whole_step(run)
    assert newest.step == 10
    assert '\n' not in newest.damaged[20]


def test_if_no_step_is_whole_that_is_an_error(run):
    for step in (10, 20):
        damage(array_chunk(run / str(step) / 'optimizer'))
    with pytest.raises(
        CheckpointError, match=r'no checkpoint is whole \(.*20 cannot be read: damaged: .* move this folder away'
    ):
        newest_whole_step(run)


def test_a_step_that_was_set_aside_is_none(run):
    assert set_aside(run, 20).name == '20.damaged'
    assert complete_steps(run) == [10]
    shutil.copytree(run / '10', run / '20')
    assert set_aside(run, 20).name.startswith('20.damaged-')
    assert newest_whole_step(run).damaged == {}


def test_deletion(run):
    delete_step(run, 10)
    delete_step(run, 10)
    assert [path.name for path in run.iterdir()] == ['20']


def test_in_a_bucket_a_step_counts_when_it_is_committed(bucket):
    directory = as_path('gs://b/run/checkpoints')
    for step in (1, 2):
        for name in ('config/metadata', 'params/x'):
            (directory / str(step) / name).write_text('{}')
    assert complete_steps(directory) == []
    for step in (1, 2):
        (directory / str(step) / 'commit_success.txt').write_text('')
    assert complete_steps(directory) == [1, 2]
    delete_step(directory, 1)
    assert complete_steps(directory) == [2]
    assert not [name for name in bucket.contents('b/run') if '/1/' in name]
    set_aside(directory, 2)
    assert complete_steps(directory) == []


def same(left, right) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), left, right))


def loaded(read, *arguments, **settings):
    """What is read; None if it is refused in one line."""
    try:
        return read(*arguments, **settings)
    except CheckpointError as error:
        if '\n' in str(error):
            raise
        return None


def mutations(file, count: int, generator: random.Random):
    """Yields damaged contents: a flipped bit, a changed byte, a shorter file, a lost and a doubled range."""
    whole = file.read_bytes()
    if not whole:
        return
    for _ in range(count):
        position = generator.randrange(len(whole))
        yield whole[:position] + bytes([whole[position] ^ 1 << generator.randrange(8)]) + whole[position + 1 :]
        yield whole[:position]
        yield whole[:position] + whole[position + 3 :]
        yield whole[:position] + whole[position // 2 :]


@pytest.mark.slow
def test_random_damage_is_refused_or_changes_nothing(run):
    """Of a step as inference reads it."""
    generator, expected = random.Random(0), load_for_inference(run, step=20)
    assert expected.verified
    read = [*files_in(run / '20' / 'ema'), *files_in(run / '20' / 'config'), run / '20' / CHECKSUMS]
    others = [path for path in files_in(run / '20') if path.parent == run / '20' and path.name != CHECKSUMS]
    refused = 0
    for file in read + others:
        whole = file.read_bytes()
        for data in mutations(file, 2 if file in read else 1, generator):
            file.write_bytes(data)
            found = loaded(load_for_inference, run, step=20)
            if found is None:
                refused += 1
            else:
                # A checksum of what is not read, or something that Orbax does not need.
                assert data == whole or file in others or file.name == CHECKSUMS
                assert same(found.variables, expected.variables)
                assert (found.record, found.model) == (expected.record, expected.model)
        file.write_bytes(whole)
    assert refused > len(read)


def test_random_damage_of_a_published_folder(run, tmp_path):
    checkpoint = load_for_inference(run)
    folder = tmp_path / 'published'
    folder.mkdir()
    write_hub_folder(folder, checkpoint, checkpoint.encoder)
    expected, generator = read_hub_folder(folder), random.Random(0)
    assert expected.verified
    for file in files_in(folder):
        whole = file.read_bytes()
        for data in mutations(file, 60, generator):
            file.write_bytes(data)
            found = loaded(read_hub_folder, folder)
            if found is not None:
                assert same(found.variables, expected.variables)
                assert (found.record, found.model) == (expected.record, expected.model)
        file.write_bytes(whole)
