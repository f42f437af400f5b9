"""The command that counts which labels clips have together."""

import json

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small

from audiosep_jax.data.co_occurrence import read_co_occurrence
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.co_occurrence import count_together


def build(directory, labels, **settings):
    clips = [Clip(f'{n}', np.ones(10, np.float32), ('one', 'two'), some) for n, some in enumerate(labels)]
    build_shards(clips, directory, sample_rate=SAMPLE_RATE, name='small', clips_per_shard=2, **settings)
    return directory


@pytest.fixture
def dataset(tmp_path):
    return build(
        tmp_path / 'dataset',
        [('Dog', 'rain', 'wind'), ('dog', 'Rain'), ('theremin',), (), ('wind', 'wind  '), ('Wind', 'rain')],
    )


def test_pairs_of_clips_become_a_table(dataset, tmp_path, capsys):
    out = tmp_path / 'together.json'
    assert main(['co-occurrence', str(dataset), '-o', str(out)]) == 0
    assert json.loads(out.read_text()) == {
        'Dog': ['rain', 'wind'],
        'rain': ['Dog', 'wind'],
        'theremin': [],
        'wind': ['Dog', 'rain'],
    }
    said = capsys.readouterr().out
    assert '3 pairs of 4 labels, from 3 of 6 clips with several labels' in said
    assert "note: 1 labels meet no other: 'theremin'" in said
    assert len(read_co_occurrence(str(out)).pairs) == 6


def test_rare_pairs_are_left_out(dataset, tmp_path):
    made = count_together([dataset], tmp_path / 'a.json', min_clips=2, jobs=2)
    assert (made.num_pairs, made.num_labels, made.alone) == (2, 4, ('theremin',))
    assert json.loads((tmp_path / 'a.json').read_text())['Dog'] == ['rain']
    with pytest.raises(DataError, match='no pair of labels is in 3 clips'):
        count_together([dataset], tmp_path / 'b.json', min_clips=3)
    assert not (tmp_path / 'b.json').exists()


def test_several_datasets_and_splits_are_counted_together(dataset, tmp_path):
    other = build(tmp_path / 'other', [('dog', 'whale')], split='test')
    calls = []
    made = count_together([dataset, other], tmp_path / 'a.json', progress=lambda *call: calls.append(call))
    assert (made.num_clips, made.num_several, made.num_pairs) == (7, 4, 4)
    assert calls[-1] == (7, 7)
    assert count_together([other], tmp_path / 'b.json', splits=['test']).num_pairs == 1
    with pytest.raises(DataError, match="no split 'train' here: it has the splits test"):
        count_together([dataset, other], tmp_path / 'c.json', splits=['train'])


def test_what_gives_no_table_is_refused(tmp_path):
    build_small(tmp_path / 'single', 3, embed=False)
    with pytest.raises(DataError, match='no clip has several labels, so the table would hold no pair'):
        count_together([tmp_path / 'single'], tmp_path / 'a.json')
    with pytest.raises(ConfigError, match='must be at least 1'):
        count_together([tmp_path / 'single'], tmp_path / 'a.json', min_clips=0)
    with pytest.raises(ConfigError, match=r'ends in \.json'):
        count_together([tmp_path / 'single'], tmp_path / 'a.csv')
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(DataError, match='no dataset with a complete split here'):
        count_together([tmp_path / 'nothing'], tmp_path / 'a.json')
