"""What the modules that store checkpoints share: the run's root, and which paths are free."""

import os
import re
from pathlib import Path

import pytest
from support.small_separator import CONFIG

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint, Level, check_free, errors_about
from audiosep_jax.errors import CheckpointError


@pytest.mark.parametrize(
    ('path', 'root'), [('run/checkpoints/7', 'run'), ('converted/repo', 'converted/repo'), ('best', 'best')]
)
def test_the_root_is_the_folder_above_checkpoints(path, root):
    assert InferenceCheckpoint(CONFIG, {}, None, 7, {}, Path(path)).root == Path(root)


def test_a_missing_path_and_an_empty_folder_are_free(tmp_path):
    check_free(tmp_path / 'new')
    (tmp_path / 'empty').mkdir()
    check_free(tmp_path / 'empty')
    assert os.listdir(tmp_path) == ['empty']


def test_a_path_that_is_taken_gives_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match=f'^{re.escape(str(tmp_path))}/file already exists: use --force$'):
        check_free(tmp_path / 'file', remedy='use --force')
    with pytest.raises(CheckpointError, match=r'already exists: choose another name$'):
        check_free(tmp_path)
    with pytest.raises(
        CheckpointError, match=f'the folder {re.escape(str(tmp_path))}/a does not exist; make it first$'
    ):
        check_free(tmp_path / 'a' / 'b')


def test_errors_name_the_file():
    with pytest.raises(CheckpointError, match=r'^x\.pt: a tensor is missing$'), errors_about(Path('x.pt')):
        raise CheckpointError('a tensor is missing')


def test_a_level_survives_the_record_and_need_not_be_there():
    level = Level(-38.5, -27.0, -15.25, 256)
    assert Level.read({'step': 3, **level.record()}) == level
    assert Level.read({'step': 3}) is None


@pytest.mark.parametrize('numbers', [(-10, -20, -5, 1), (-30, float('nan'), -5, 1), (-30, -20, float('inf'), 1)])
def test_a_damaged_level_is_refused(numbers):
    with pytest.raises(CheckpointError, match='its record is damaged: no level has the percentiles'):
        Level(*numbers)
