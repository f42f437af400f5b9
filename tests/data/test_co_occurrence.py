"""Co-occurrence tables: what their files say, and the labels of datasets that they know."""

import json

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small

from audiosep_jax.data.co_occurrence import compare_labels, read_co_occurrence, write_co_occurrence
from audiosep_jax.data.layout import summary_path
from audiosep_jax.data.segments import label_number
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.json_files import write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip

FILES = {
    'table.json': json.dumps({'Dog': ['rain', 'male  speech'], 'rain': ['dog'], 'theremin': []}),
    'table.csv': 'label,others\ndog,rain,male speech\nMale Speech,dog,,\ntheremin\n\n',
    'table.tsv': 'dog\train\nDOG\tmale speech\ntheremin\t\n',
}


def pairs_of(table):
    """The pairs of a table as sorted tuples of two names in lower case."""
    count = len(table.numbers)
    named = [table.names[int(number)].lower() for number in table.numbers]
    found = [(named[pair // count], named[pair % count]) for pair in table.pairs.tolist()]
    assert all((b, a) in found for a, b in found)
    return sorted({tuple(sorted(pair)) for pair in found})


@pytest.mark.parametrize('name', FILES)
def test_each_kind_of_file_says_the_same(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    table = read_co_occurrence(str(tmp_path / name))
    assert pairs_of(table) == [('dog', 'male speech'), ('dog', 'rain')]
    labels = ('dog', 'rain', 'male speech', 'theremin')
    assert table.numbers.tolist() == sorted(map(label_number, labels))
    assert np.all(np.diff(table.pairs) > 0)
    assert {text.lower() for text in table.names.values()} == set(labels)
    write_co_occurrence(tmp_path / 'again.json', {'Rain': ['dog'], 'male speech': ['dog'], 'Theremin': []})
    assert read_co_occurrence(str(tmp_path / 'again.json')).digest == table.digest
    write_co_occurrence(tmp_path / 'other.json', {'rain': ['dog'], 'male speech': ['rain'], 'theremin': []})
    assert read_co_occurrence(str(tmp_path / 'other.json')).digest != table.digest


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('a.json', '{"dog": "rain"}', 'give {"label": ["label", …], …}'),
        ('a.json', '[["dog", "rain"]]', 'give {"label": ["label", …], …}'),
        ('a.json', '{"dog": []}', 'holds no pair of labels'),
        ('a.json', '{"dog": [" "]}', "an empty label at 'dog'"),
        ('a.csv', 'dog\nrain\n', 'holds no pair of labels'),
        ('a.csv', 'dog,,rain\n', "an empty label at 'dog'"),
        ('a.txt', 'dog: rain', 'give a .json, .csv or .tsv file'),
        ('a.csv', None, 'no such file'),
        ('a.json', json.dumps({'dog': [f'sound {n}' for n in range(46341)]}), 'more than 46340'),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as refused:
        read_co_occurrence(str(tmp_path / name))
    assert says in str(refused.value)
    assert '\n' not in str(refused.value)


@pytest.fixture
def dataset(tmp_path):
    labels = ('Dog', 'bark'), ('rain',), (), ('Male  speech', 'dog')
    clips = [Clip(f'{n}', np.ones(10, np.float32), ('a sound',), some) for n, some in enumerate(labels)]
    build_shards(clips, tmp_path / 'dataset', sample_rate=SAMPLE_RATE, name='small', clips_per_shard=2)
    return tmp_path / 'dataset'


def compared(tmp_path, together, directories, split='train'):
    path = tmp_path / f'{len(list(tmp_path.glob("*.json")))}.json'
    write_json(path, together)
    return compare_labels(str(path), directories, split)


def test_labels_that_only_one_side_knows_are_noted(dataset, tmp_path):
    assert compared(tmp_path, {'dog': ['rain', 'bark'], 'male speech': []} | {'rain': ['bark']}, [dataset]) is None
    note = compared(tmp_path, {'dog': ['rain', 'whale']}, [dataset])
    assert "2 of 4 labels of the data are not in it ('Male  speech', 'bark')" in note
    assert "1 of its 3 labels have no clip ('whale')" in note
    assert 'a clip without a label of the table may meet any' in note
    assert '\n' not in note


def test_a_table_of_other_labels_is_refused(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"such as 'owl', 'whale', is one of the data, such as .*mixing\.together"):
        compared(tmp_path, {'owl': ['whale']}, [dataset])


def test_captions_are_the_labels_of_a_dataset_without_any(tmp_path):
    clips = [Clip('0', np.ones(10, np.float32), ('a dog',)), Clip('1', np.ones(10, np.float32), ('rain',))]
    build_shards(clips, tmp_path / 'dataset', sample_rate=SAMPLE_RATE, name='small')
    assert compared(tmp_path, {'A dog': ['rain']}, [tmp_path / 'dataset']) is None


def test_datasets_of_earlier_versions_are_passed_over(dataset, tmp_path):
    info = Shards(dataset).info
    for shard in range(2):
        path = summary_path(dataset, info, shard)
        write_json(path, {k: v for k, v in json.loads(path.read_text()).items() if k != 'labels'})
    assert compared(tmp_path, {'owl': ['whale']}, [dataset]) is None
    build_small(tmp_path / 'other', 2, embed=False)
    note = compared(tmp_path, {'l0': ['whale']}, [dataset, tmp_path / 'other'])
    assert "1 of 2 labels of the data are not in it ('l1')" in note
    assert 'have no clip' not in note
