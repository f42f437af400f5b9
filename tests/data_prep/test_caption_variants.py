"""Tests the command that adds variants of captions to a dataset."""

import json

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small

from audiosep_jax.data.caption_variants import read_variants
from audiosep_jax.data.embeddings import EmbeddingCache
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import DataError
from data_prep.__main__ import main
from data_prep.build import build_shards
from data_prep.caption_variants import read_file
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions
from data_prep.merge import merge_datasets
from data_prep.verify import verify_dataset


@pytest.fixture
def dataset(tmp_path):
    clips = [
        Clip('dog', np.ones(10, np.float32), ('a dog barking', 'a puppy')),
        Clip('rain', np.ones(10, np.float32), ('Rain  falling',)),
        Clip('bell', np.ones(10, np.float32), ('a bell',)),
    ]
    build_shards(clips, tmp_path / 'dataset', sample_rate=SAMPLE_RATE, name='small', clips_per_shard=2)
    embed_captions(tmp_path / 'dataset', load_encoder('words'))
    return tmp_path / 'dataset'


FILES = {
    'variants.json': json.dumps({'a dog barking': ['a hound', 'A Dog barking'], 'rain falling': ['a downpour']}),
    'variants.csv': 'caption,variant\na dog barking,a hound\n"A dog barking",a hound,\nrain falling,a downpour\n\n',
    'variants.tsv': 'a dog barking\ta hound\nrain falling\ta downpour\t\n',
}


@pytest.mark.parametrize('name', FILES)
def test_variants_become_embeddings_beside_the_shards(dataset, tmp_path, capsys, name):
    (tmp_path / name).write_text(FILES[name])
    shards = {path: path.read_bytes() for path in dataset.glob('*.array_record-*')}
    assert main(['caption-variants', str(dataset), str(tmp_path / name)]) == 0
    assert 'now has 2 variants of 2 captions, embedded with words' in capsys.readouterr().out
    assert read_variants(dataset) == {'Rain  falling': ['a downpour'], 'a dog barking': ['a hound']}
    cache = EmbeddingCache(Shards(dataset, 'train'), 'words', 'variants')
    expected = load_encoder('words').encode_text(['a hound', 'a downpour']).astype(np.float16)
    np.testing.assert_array_equal(np.concatenate([cache.rows(n) for n in range(3)]), expected)
    assert [len(cache.rows(n)) for n in range(3)] == [1, 1, 0]
    assert {path: path.read_bytes() for path in shards} == shards
    assert verify_dataset(dataset).problems == []


def test_another_file_replaces_the_variants(dataset, tmp_path, capsys):
    (tmp_path / 'one.json').write_text('{"a bell": ["a gong"]}')
    (tmp_path / 'two.json').write_text('{"a bell": ["a chime", "ding"], "a whale": ["a song"]}')
    assert main(['caption-variants', str(dataset), str(tmp_path / 'one.json')]) == 0
    assert main(['caption-variants', str(dataset), str(tmp_path / 'two.json')]) == 0
    said = capsys.readouterr()
    assert 'replaced by 2 variants of 1 captions' in said.out
    assert 'note: 3 captions have no variants' in said.out
    assert '1 captions of' in said.err
    assert "'a whale'" in said.err
    assert len(EmbeddingCache(Shards(dataset, 'train'), 'words', 'variants').rows(2)) == 2


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('a.json', '{"a bell": "ding"}', 'give {"caption": ["variant"'),
        ('a.json', '{"a bell": []}', 'holds no variants'),
        ('a.json', '{"a bell": [" "]}', 'an empty caption or variant'),
        ('a.csv', 'a bell\n', "'a bell' has no variant"),
        ('a.csv', 'a whale,a song\n', 'none of its captions is one of'),
        ('a.txt', 'a bell: ding', 'give a .json, .csv or .tsv file'),
        ('a.csv', None, 'no such file'),
    ],
)
def test_files_that_cannot_be_used_are_one_line_and_change_nothing(dataset, tmp_path, capsys, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(['caption-variants', str(dataset), str(tmp_path / name)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert read_variants(dataset) == {}


def test_without_embeddings_the_command_says_how_to_make_them(tmp_path, capsys):
    build_small(tmp_path / 'dataset', 2, embed=False)
    (tmp_path / 'a.json').write_text('{"sound 1 take 0": ["one"]}')
    assert main(['caption-variants', str(tmp_path / 'dataset'), str(tmp_path / 'a.json')]) == 0
    assert '--what variants' in capsys.readouterr().out
    assert main(['embed', str(tmp_path / 'dataset')]) == 0
    assert main(['embed', str(tmp_path / 'dataset'), '--what', 'variants']) == 0
    assert '1 caption variants embedded now' in capsys.readouterr().out


def test_a_merged_dataset_has_the_variants_of_all(dataset, tmp_path):
    build_small(tmp_path / 'other', 2)
    (tmp_path / 'a.json').write_text('{"sound 1 take 0": ["one"], "a bell": ["a gong"]}')
    for directory in (dataset, tmp_path / 'other'):
        main(['caption-variants', str(directory), str(tmp_path / 'a.json')])
    merge_datasets([dataset, tmp_path / 'other'], tmp_path / 'both')
    assert read_variants(tmp_path / 'both') == {'a bell': ['a gong'], 'sound 1 take 0': ['one']}


def test_a_repeated_caption_has_the_variants_of_all_its_rows(tmp_path):
    (tmp_path / 'a.csv').write_text('a,b\na,c,d\n')
    assert read_file(tmp_path / 'a.csv') == {'a': ['b', 'c', 'd']}
    (tmp_path / 'a.csv').write_text('a,b\na,"c\n')
    with pytest.raises(DataError, match='line 2'):
        read_file(tmp_path / 'a.csv')
