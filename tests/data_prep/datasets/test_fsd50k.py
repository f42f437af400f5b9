import json
import shutil

import numpy as np
import pytest
from support.small_media import noise, write_sound

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.fsd50k import audioset_name, read_fsd50k

DEV = [
    '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train',
    '16399,Chirp_and_tweet,/m/07pggtn,train',
    '21914,"Sink_(filling_or_washing),Dishes_and_pots_and_pans","/m/01jt3m,/m/04brg2",val',
]
EVAL = ['37199,"Electric_guitar,Music","/m/02sgy,/m/04rlf"', '175151,"Bark,Dog","/m/05tny_,/m/0bt9lr"']


def tree(
    folder, *, dev=DEV, evaluation=EVAL, files=('64760', '16399', '21914', '37199', '175151'), ending='\n', bom=''
):
    """FSD50K as Zenodo has it, its archives unpacked."""
    for name in ('ground_truth', 'metadata', 'dev_audio', 'eval_audio'):
        (folder / f'FSD50K.{name}').mkdir(parents=True)
    for name, header, rows in (('dev', 'fname,labels,mids,split', dev), ('eval', 'fname,labels,mids', evaluation)):
        text = bom + ending.join([header, *rows, ''])
        (folder / f'FSD50K.ground_truth/{name}.csv').write_bytes(text.encode())
        for row in rows:
            if row.split(',')[0] in files:
                write_sound(folder / f'FSD50K.{name}_audio' / f'{row.split(",")[0]}.wav', 0.1, 44100)
    (folder / 'FSD50K.ground_truth/vocabulary.csv').write_text('0,Bark,/m/05tny_\n')
    info = {'64760': {'title': 'dist_guitar 3.wav', 'tags': ['e-guitar'], 'description': 'x'}, '16399': {'title': ''}}
    (folder / 'FSD50K.metadata/dev_clips_info_FSD50K.json').write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize('nested', ['', 'fsd50k'])
@pytest.mark.parametrize(
    ('table', 'sounds', 'metadata'),
    [  # Hugging Face, Kaggle, and mixtures of them and of Zenodo
        ('labels', 'clips/{part}', 'metadata'),
        (
            'FSD50K.ground_truth/FSD50K.ground_truth',
            'FSD50K.{part}_audio/FSD50K.{part}_audio',
            'FSD50K.metadata',
        ),
        ('FSD50K.ground_truth/FSD50K.ground_truth', 'FSD50K.{part}_audio', 'FSD50K.metadata/FSD50K.metadata'),
        ('', 'FSD50K.{part}_audio', 'FSD50K.metadata'),
    ],
)
def test_mirrors_are_found(tmp_path, nested, table, sounds, metadata):
    """With a folder of clips beside the dataset, which does not belong to it."""
    zenodo, folder = tree(tmp_path / 'zenodo'), tmp_path / 'mirror' / nested
    for old, new in (('ground_truth', table), ('metadata', metadata)):
        shutil.copytree(zenodo / f'FSD50K.{old}', folder / new, dirs_exist_ok=True)
    for part in ('dev', 'eval'):
        shutil.copytree(zenodo / f'FSD50K.{part}_audio', folder / sounds.format(part=part), dirs_exist_ok=True)
    (tmp_path / 'clips' / 'dev').mkdir(parents=True)
    for split in ('train', 'val', 'test'):
        right = read_fsd50k(zenodo, split, titles=split != 'test')
        found = read_fsd50k(tmp_path / 'mirror', split, titles=split != 'test')
        assert [(e.id, e.captions, e.labels) for e in found.entries] == [
            (e.id, e.captions, e.labels) for e in right.entries
        ]
        assert found.read(0, 16000).audio.shape == right.read(0, 16000).audio.shape


@pytest.mark.parametrize(('ending', 'bom'), [('\n', ''), ('\r\n', '\ufeff')])
def test_labels_become_captions(tmp_path, ending, bom):
    files = read_fsd50k(tree(tmp_path, ending=ending, bom=bom))
    assert [(entry.id, entry.path) for entry in files.entries] == [
        ('64760', 'FSD50K.dev_audio/64760.wav'),
        ('16399', 'FSD50K.dev_audio/16399.wav'),
    ]
    assert files.entries[0].labels == ('Electric guitar', 'Guitar', 'Music')
    assert files.entries[0].captions == (
        *('Electric guitar', 'Guitar', 'Music'),
        'the sounds of electric guitar, guitar and music',
    )
    assert files.entries[1].captions == ('Chirp, tweet', 'the sound of chirp (tweet)')
    assert files.left_out == []
    assert len(files.read(0, 44100).audio) == 4410


def test_captions_of_several_sounds_name_all_of_them(tmp_path):
    """Of a class and its parents each is a name of the one sound."""
    dev = ['1,"Bark,Dog",a,train', '2,"Speech,Human",a,train', '3,"Bark,Speech,Dog,Human",a,train', '4,"Human",a,train']
    files = read_fsd50k(tree(tmp_path, dev=dev, files='1234'))
    assert [entry.captions for entry in files.entries] == [
        ('Bark', 'Dog', 'the sounds of bark and dog'),
        ('Speech', 'Human', 'the sounds of speech and human'),
        ('Bark, Speech, Dog, Human', 'the sounds of bark, speech, dog and human'),
        ('Human', 'the sound of human'),
    ]


def test_a_bad_row_is_left_out_and_the_others_are_not(tmp_path):
    dev = [*DEV, ',Dog,/m/0bt9lr,train', '1,Dog,Bark,/m/0bt9lr,train', '2,Dog,/m/0bt9lr,dev']
    files = read_fsd50k(tree(tmp_path, dev=dev))
    assert [entry.id for entry in files.entries] == ['64760', '16399']
    assert {clip.id: clip.reason for clip in files.left_out} == {f'dev.csv:{n}': 'unreadable' for n in (5, 6, 7)}


def test_names_of_classes_are_those_of_audioset():
    names = {
        'Male_speech_and_man_speaking': 'Male speech, man speaking',
        'Scratching_(performance_technique)': 'Scratching (performance technique)',
        'Fixed-wing_aircraft_and_airplane': 'Fixed-wing aircraft, airplane',
        'Dishes_and_pots_and_pans': 'Dishes, pots, and pans',
        'Hands': 'Hands',
    }
    assert {label: audioset_name(label) for label in names} == names


@pytest.mark.parametrize(
    ('split', 'ids'),
    [
        ('train', ['64760', '16399']),
        ('val', ['21914']),
        ('dev', ['64760', '16399', '21914']),
        ('test', ['37199', '175151']),
        ('eval', ['37199', '175151']),
    ],
)
def test_splits(tmp_path, split, ids):
    tree(tmp_path / 'FSD50K')
    files = read_fsd50k(tmp_path / 'FSD50K', split)
    assert [entry.id for entry in files.entries] == ids
    with pytest.raises(ConfigError, match='FSD50K has train, val'):
        read_fsd50k(tmp_path / 'FSD50K', split + 'x')


def test_titles_on_request(tmp_path):
    tree(tmp_path)
    entries = read_fsd50k(tmp_path, titles=True).entries
    assert entries[0].captions[-1] == 'dist guitar 3'
    assert entries[0].captions[:-1] == read_fsd50k(tmp_path).entries[0].captions
    assert entries[1].captions == ('Chirp, tweet', 'the sound of chirp (tweet)')
    with pytest.raises(DataError, match=r'eval_clips_info_FSD50K\.json: no such file'):
        read_fsd50k(tmp_path, 'test', titles=True)
    for text, message in (('[', 'not valid JSON'), ('[]', 'expected'), ('{"1": 2}', 'expected')):
        (tmp_path / 'FSD50K.metadata/dev_clips_info_FSD50K.json').write_text(text)
        with pytest.raises(DataError, match=message):
            read_fsd50k(tmp_path, titles=True)


def test_what_is_left_out(tmp_path):
    dev = [*DEV, '1,"","",train', '2,Dog,/m/0bt9lr,train', DEV[1], DEV[1].replace('Chirp_and_tweet', 'Bird')]
    files = read_fsd50k(tree(tmp_path, dev=dev, files=('64760', '16399', '1')), excluded=frozenset({'64760'}))
    assert [(entry.id, entry.labels) for entry in files.entries] == [('16399', ('Chirp, tweet', 'Bird'))]
    assert {clip.id: clip.reason for clip in files.left_out} == {'64760': 'excluded', '1': 'excluded', '2': 'missing'}


@pytest.mark.parametrize(
    ('dev', 'message'),
    [
        ([], "lists no clips of split 'train'"),
        (DEV[2:], "lists no clips of split 'train'"),
        (['1,Dog,/m/0bt9lr,dev'], "line 2: split 'dev': expected train or val"),
        ([',Dog,/m/0bt9lr,train'], 'line 2: no fname'),
        (['1,Dog,Bark,/m/0bt9lr,train'], 'line 2: more fields'),
        (['9,Dog,/m/0bt9lr,train'], 'none of the 1 listed clips can be used'),
    ],
)
def test_damaged_ground_truth(tmp_path, dev, message):
    with pytest.raises(DataError, match=message):
        read_fsd50k(tree(tmp_path, dev=dev))


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r'no FSD50K\.ground_truth/dev\.csv in it'):
        read_fsd50k(tmp_path)
    (tmp_path / 'FSD50K.ground_truth').mkdir()
    (tmp_path / 'FSD50K.ground_truth/dev.csv').write_text('fname,labels,mids\n1,Dog,/m/0bt9lr\n')
    with pytest.raises(DataError, match="no column 'split'"):
        read_fsd50k(tmp_path)


def test_build(tmp_path):
    """From the command line to records, with every fault."""
    source = tree(tmp_path / 'FSD50K', dev=[*DEV, '1,Dog,d,train', '2,Dog,d,train', '3,Dog,d,train'])
    write_sound(source / 'FSD50K.dev_audio/1.wav', 0.2, 16000, channels=2, subtype='PCM_24')
    (source / 'FSD50K.dev_audio/2.wav').touch()
    (tmp_path / 'ids.csv').write_text('fname,labels,mids\n16399,Bird,b\n')
    out = tmp_path / 'out'
    flags = ['--out', str(out), '--sample-rate', '16000', '--jobs', '1']
    assert main(['build', 'fsd50k', '--source', str(source), *flags, '--exclude', str(tmp_path / 'ids.csv')]) == 0
    shards = Shards(out)
    records = [shards.read(index) for index in range(len(shards))]
    assert [(record.id, record.labels, record.num_samples) for record in records] == [
        ('64760', ('Electric guitar', 'Guitar', 'Music'), 1600),
        ('1', ('Dog',), 3200),
    ]
    assert records[0].captions == (*records[0].labels, 'the sounds of electric guitar, guitar and music')
    assert np.abs(shards.waveform(1) - noise(0.2, 16000, '1.wav', 2).mean(axis=1)).max() < 1e-4
    report = (out / 'splits/train-skipped.csv').read_text()
    reasons = {line.split(',')[0]: line.split(',')[1] for line in report.splitlines()[1:]}
    assert reasons == {'16399': 'excluded', '2': 'unreadable', '3': 'missing'}
