"""benchmarks/package_split.py: no package on both sides, and every class in training."""

import csv
import json
from collections import defaultdict

import pytest

from audiosep_jax.errors import DataError
from data_prep.datasets.manifest import read_manifest

CLASSES = {
    'dog': {'game': 4, 'toys': 2, 'school': 1},
    'bird': {'game': 3, 'school': 3},
    'crash': {'cars': 5},
    'piano': {'font program 0 phrase 0': 1, 'font program 0 phrase 1': 1},
    'gun': {'game': 5, 'toys': 5},
}


@pytest.fixture
def split(benchmarks_on_path):
    import package_split

    return package_split


def rows():
    table = []
    for name, packages in CLASSES.items():
        for package, count in packages.items():
            for _ in range(count):
                table.append({'file': f'clips/{len(table):02}.flac', 'class': name, 'package': package})
    return table


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('share', [0.1, 0.2, 0.5, 0.9])
def test_no_package_is_on_both_sides_and_every_class_in_training(split, share, seed):
    training, validation = split.split_by_package(rows(), share, seed)
    assert sorted(training + validation, key=lambda row: row['file']) == rows()
    assert training == [row for row in rows() if row in training]
    sides = [{split.package_of(row) for row in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert {row['class'] for row in training} == set(CLASSES)
    assert not {'crash', 'piano'} & {row['class'] for row in validation}
    assert len(validation) <= share * len(rows())


def test_as_many_classes_are_validated_as_the_share_allows(split):
    _, validation = split.split_by_package(rows(), 0.5, 0)
    assert {row['class'] for row in validation} == {'dog', 'bird', 'gun'}


def test_the_seed_decides(split):
    table = [
        {'file': f'{package}{name}', 'class': name, 'package': package} for package in 'abcdefgh' for name in 'xyz'
    ]
    splits = {str(split.split_by_package(table, 0.3, seed)[1]) for seed in range(4)}
    assert len(splits) > 1
    assert split.split_by_package(table, 0.3, 1) == split.split_by_package(table, 0.3, 1)


@pytest.mark.parametrize('share', [0, 1, -0.1, float('nan')])
def test_a_share_out_of_range_is_refused(split, share):
    with pytest.raises(DataError, match='share of validation must be between 0 and 1'):
        split.split_by_package(rows(), share, 0)


def test_a_share_too_small_for_any_package_leaves_validation_empty(split):
    training, validation = split.split_by_package(rows(), 0.01, 0)
    assert (training, validation) == (rows(), [])


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / 'sounds'
    (folder / 'clips').mkdir(parents=True)
    with (folder / 'sources.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, ['file', 'class', 'package', 'path'])
        writer.writeheader()
        writer.writerows({**row, 'path': 'a.ogg'} for row in rows())
    entries = [{'wav': row['file'], 'caption': f'a {row["class"]}'} for row in rows()]
    entries.append({'wav': rows()[0]['file'], 'caption': 'barks'})
    (folder / 'train.json').write_text(json.dumps({'data': entries}))
    return folder


def test_the_program_writes_two_datafiles_beside_the_sounds(split, sounds, tmp_path, capsys):
    split.main(sounds, tmp_path / 'out', share=0.5)
    captions, labels = defaultdict(list), {}
    for name in ('train', 'validation'):
        manifest = read_manifest(tmp_path / 'out' / f'{name}.json')
        for entry in manifest.entries:
            file = (manifest.folder / entry.wav).resolve().relative_to(sounds.resolve()).as_posix()
            captions[file] += entry.captions
            labels[file] = entry.labels
    expected = {row['file']: [f'a {row["class"]}'] for row in rows()}
    expected[rows()[0]['file']].append('barks')
    assert captions == expected
    assert labels == {row['file']: (row['class'],) for row in rows()}
    printed = capsys.readouterr().out
    assert 'in training' in printed
    assert 'classes in training alone: crash, piano\n' in printed


def test_the_list_that_is_split_is_never_replaced(split, sounds):
    before = (sounds / 'train.json').read_bytes()
    with pytest.raises(DataError, match='choose another folder'):
        split.main(sounds, sounds / '..' / 'sounds')
    assert (sounds / 'train.json').read_bytes() == before


@pytest.mark.parametrize('text', ['', 'file,class\na,b\n', 'file,class,package\n'])
def test_a_table_of_sources_that_is_none_is_refused(split, sounds, tmp_path, text):
    (sounds / 'sources.csv').write_text(text)
    with pytest.raises(DataError, match='must have the columns file, class and package'):
        split.main(sounds, tmp_path / 'out')


def test_a_missing_table_of_sources_is_named(split, sounds, tmp_path):
    (sounds / 'sources.csv').unlink()
    with pytest.raises(DataError, match=r'sources\.csv: cannot be read as a table'):
        split.main(sounds, tmp_path / 'out')


def test_a_sound_without_a_caption_is_named(split, sounds, tmp_path):
    (sounds / 'train.json').write_text('[{"wav": "clips/00.flac", "caption": "a dog"}]')
    with pytest.raises(DataError, match=r'does not list clips/01\.flac'):
        split.main(sounds, tmp_path / 'out')
