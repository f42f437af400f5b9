import json

import numpy as np
import pytest
import soundfile

from audiosep_jax.errors import AudioFileError, DataError, LeftOutError
from data_prep.datasets.manifest import BuildManifest, read_manifest


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding='utf-8')
    return path


def captions_of(manifest) -> dict[str, tuple[str, ...]]:
    return {entry.id: entry.captions for entry in manifest.entries}


TWO = [{'wav': 'a.wav', 'caption': 'a dog'}, {'wav': 'sub/b.flac', 'caption': 'rain, heavy'}]


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('m.json', json.dumps({'data': TWO})),
        ('m.json', json.dumps(TWO)),
        ('m.json', '\ufeff' + json.dumps({'data': TWO})),
        ('m.csv', 'wav,caption\na.wav,a dog\nsub/b.flac,"rain, heavy"\n'),
        ('m.CSV', '\ufeffwav,caption\r\na.wav,a dog\r\nsub/b.flac,"rain, heavy"\r\n'),
        ('m.csv', 'caption,wav\n  a dog ,a.wav\n"rain, heavy",sub/b.flac'),
        ('m.csv', 'wav;caption\na.wav;a dog\nsub/b.flac;rain, heavy\n'),
        ('m.csv', '\ufeffwav\tcaption\r\na.wav\ta dog\r\nsub/b.flac\train, heavy\r\n'),
        ('m.tsv', 'wav\tcaption\na.wav\ta dog\nsub/b.flac\t"rain, heavy"\n'),
        (
            'm.jsonl',
            '\ufeff{"wav": "a.wav", "caption": "a dog"}\n\n{"wav": "sub/b.flac", "captions": ["rain, heavy"]}\n',
        ),
    ],
)
def test_formats_agree(tmp_path, name, text):
    manifest = read_manifest(write(tmp_path / name, text))
    assert captions_of(manifest) == {'a.wav': ('a dog',), 'sub/b.flac': ('rain, heavy',)}
    assert manifest.folder == tmp_path


def test_captions_and_labels_of_one_file_are_united(tmp_path):
    rows = [
        {'wav': 'a.wav', 'caption': 'a dog', 'labels': ['Dog']},
        {'wav': 'b.wav', 'captions': ['rain', 'heavy rain', 'rain'], 'label': 'Rain'},
        {'wav': 'a.wav', 'caption': 'barking', 'labels': ['Bark', 'Dog']},
    ]
    manifest = read_manifest(write(tmp_path / 'm.json', rows))
    assert captions_of(manifest) == {'a.wav': ('a dog', 'barking'), 'b.wav': ('rain', 'heavy rain')}
    assert [entry.labels for entry in manifest.entries] == [('Dog', 'Bark'), ('Rain',)]
    text = 'wav,caption,labels\na.wav,a dog,Dog;Bark\nb.wav,rain,\n'
    assert [e.labels for e in read_manifest(write(tmp_path / 'm.csv', text)).entries] == [('Dog', 'Bark'), ()]


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('m.json', json.dumps({'data': [TWO[0] | {'seconds': 3.5, 'level': None}, TWO[1] | {'split': ['train']}]})),
        ('m.jsonl', '\n'.join(json.dumps(row) for row in (TWO[0] | {'level': 1}, TWO[1] | {'seconds': 2, 'split': 0}))),
        ('m.csv', ' wav, caption,level,seconds,split\na.wav,a dog,,3.5,\nsub/b.flac,"rain, heavy",,,train\n'),
    ],
)
def test_further_columns_are_passed_over_and_named(tmp_path, capsys, name, text):
    path = write(tmp_path / name, text)
    manifest = BuildManifest(source=path, out=str(tmp_path / 'out')).clips()
    assert captions_of(manifest) == {'a.wav': ('a dog',), 'sub/b.flac': ('rain, heavy',)}
    assert sorted(manifest.passed_over) == ['level', 'seconds', 'split']
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f'note: {path}: passed over ')
    assert all(repr(column) in note for column in manifest.passed_over)
    assert note.endswith('known names are wav, caption (or captions), label (or labels), id')


def test_a_column_without_meaning_may_resemble_a_known_one(tmp_path, capsys):
    text = 'wav,caption,caption_source,lable,\na.wav,a dog,web,Dog,\nb.wav,,web,,\n'
    manifest = BuildManifest(source=write(tmp_path / 'm.csv', text), out=str(tmp_path / 'out')).clips()
    assert captions_of(manifest) == {'a.wav': ('a dog',), 'b.wav': ()}
    assert "passed over 'caption_source', 'lable', ''; " in capsys.readouterr().err
    known = write(tmp_path / 'known.csv', 'wav,caption,captions,label,labels,id\na.wav,x,y,A,B;C,one\nb.wav,x,,,,\n')
    manifest = BuildManifest(source=known, out=str(tmp_path / 'out')).clips()
    assert [(e.id, e.captions, e.labels) for e in manifest.entries] == [
        ('one', ('x', 'y'), ('A', 'B', 'C')),
        ('b.wav', ('x',), ()),
    ]
    assert not capsys.readouterr().err


def test_ids_name_clips(tmp_path):
    rows = [{'wav': 'a.wav', 'caption': 'x', 'id': 'one'}, {'wav': 'a.wav', 'caption': 'y', 'id': 'two'}]
    assert captions_of(read_manifest(write(tmp_path / 'm.json', rows))) == {'one': ('x',), 'two': ('y',)}


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('m.json', '{"data": [', 'not valid JSON'),
        ('m.json', 'wav,caption\na.wav,x\n', 'a CSV manifest must be named .csv'),
        ('m.json', {'clips': []}, 'expected {"data"'),
        ('m.json', {'data': {}}, 'expected {"data"'),
        ('m.json', '', 'not valid JSON'),
        ('m.json', {'data': []}, 'lists no clips'),
        ('m.csv', 'wav,caption\n', 'lists no clips'),
        ('m.csv', '', "no key 'wav'"),
        ('m.json', ['a.wav'], 'entry 1: expected'),
        ('m.json', [{'wav': 'a.wav', 'caption': 'half a \ud83d'}], "'caption' must be a text"),
        ('m.json', [{'wav': 'half a \ud83d', 'caption': 'x'}], "'wav' must name an audio file"),
        ('m.json', [TWO[0], {'wav': 'b.wav', 'capton': 'x'}], "entry 2: unknown key 'capton': did you mean 'caption'"),
        ('m.json', [{'wav': 'b.wav', 'zzz': 'x'}], "entry 1: unknown key 'zzz': known: wav, caption"),
        ('m.json', [TWO[0] | {'text': 'x'}, {'wav': 'b.wav', 'caption_': 'x'}], "entry 2: unknown key 'caption_'"),
        (
            'm.json',
            [{'wav': 'b.wav'}, {'wav': 'c.wav', 'text': 'x'}],
            "entry 2: unknown key 'text': known: wav, caption",
        ),
        ('m.csv', 'wav,text\na.wav,x\n', "line 2: unknown key 'text': known: wav, caption"),
        ('m.csv', 'path,caption\na.wav,x\n', "header: no key 'wav', the audio file: found path, caption; known: wav"),
        ('m.json', [{'caption': 'x'}], "entry 1: no key 'wav'"),
        ('m.json', [{'wav': 3, 'caption': 'x'}], "'wav' must name an audio file"),
        ('m.json', [{'wav': ' ', 'caption': 'x'}], "'wav' must name an audio file"),
        ('m.json', [{'wav': 'a.wav', 'caption': 3}], "'caption' must be a text or a list of texts"),
        ('m.json', [{'wav': 'a.wav', 'caption': ['x', 3]}], "'caption' must be a text or a list of texts"),
        ('m.json', [{'wav': 'a.wav', 'caption': 'x', 'id': 7}], "'id' must be a text"),
        ('m.json', [{**row, 'id': 'same'} for row in TWO], "the id 'same' is taken by another file, a.wav"),
        ('m.jsonl', '{"wav": "a.wav", "caption": "x"}\n{"wav"\n', 'line 2: not valid JSON'),
        ('m.jsonl', '[1]\n', 'line 1: expected an object'),
        ('m.jsonl', '{"wav": "a.wav", "capton": "x"}\n', "line 1: unknown key 'capton'"),
        ('m.csv', 'wav;capton\na.wav;x\n', "header: unknown key 'capton'"),
        ('m.csv', 'wav,capton\na.wav,x\n', "header: unknown key 'capton'"),
        ('m.csv', 'caption\nx\n', "header: no key 'wav'"),
        ('m.csv', 'wav,caption\na.wav,rain, heavy\n', 'line 2: more fields than the header'),
        ('m.csv', 'wav,caption\na.wav,x\nb.wav\n', 'line 3: fewer fields than the header'),
        ('m.csv', 'wav,caption\n,x\n', "line 2: 'wav' must name"),
        ('m.csv', 'wav,caption\na.wav,"x\n', 'not valid CSV'),
    ],
)
def test_a_manifest_with_a_mistake_is_one_clear_error(tmp_path, name, value, message):
    with pytest.raises(DataError) as caught:
        read_manifest(write(tmp_path / name, value))
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_unreadable_manifests_are_errors(tmp_path):
    with pytest.raises(DataError, match='no such manifest'):
        read_manifest(tmp_path / 'm.json')
    with pytest.raises(DataError, match='is a folder; give the JSON or CSV'):
        read_manifest(tmp_path)
    (tmp_path / 'latin1.csv').write_bytes('wav,caption\na.wav,sirène\n'.encode('latin1'))
    with pytest.raises(DataError, match='UTF-8'):
        read_manifest(tmp_path / 'latin1.csv')


def test_audio_is_read_beside_the_manifest_mono_and_resampled(tmp_path):
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    soundfile.write(tmp_path / 'a.wav', stereo, 16000)
    manifest = read_manifest(write(tmp_path / 'm.json', [{'wav': 'a.wav', 'caption': 'x'}]))
    clip = manifest.read(0, 8000)
    assert (clip.id, clip.captions, clip.source) == ('a.wav', ('x',), 'a.wav')
    assert (clip.audio.shape, clip.audio.dtype) == ((400,), np.float32)
    np.testing.assert_allclose(clip.audio[150:250], 0.125, atol=1e-3)


def test_bad_files_are_errors_of_their_clip(tmp_path):
    (tmp_path / 'empty.wav').write_bytes(b'')
    (tmp_path / 'text.wav').write_text('not a sound')
    soundfile.write(tmp_path / 'none.wav', np.zeros(0), 8000)
    soundfile.write(tmp_path / 'nan.wav', np.array([0.0, np.nan]), 8000, subtype='FLOAT')
    soundfile.write(tmp_path / 'cut.flac', np.random.default_rng(0).uniform(-1, 1, 8000), 8000)
    (tmp_path / 'cut.flac').write_bytes((tmp_path / 'cut.flac').read_bytes()[:3000])
    names = ['empty.wav', 'text.wav', 'none.wav', 'nan.wav', 'cut.flac']
    manifest = read_manifest(write(tmp_path / 'm.json', [{'wav': name, 'caption': 'x'} for name in names]))
    for index, name in enumerate(names):
        with pytest.raises(AudioFileError, match=name):
            manifest.read(index, 8000)


def test_missing_files_are_told_from_unreadable_ones(tmp_path):
    manifest = read_manifest(write(tmp_path / 'm.json', [{'wav': 'missing.wav', 'caption': 'x'}]))
    with pytest.raises(LeftOutError, match='no such file') as caught:
        manifest.read(0, 8000)
    assert caught.value.reason == 'missing'


def test_entry_without_caption_is_an_error_of_its_clip(tmp_path):
    manifest = read_manifest(write(tmp_path / 'm.csv', 'wav,caption\na.wav,\n'))
    with pytest.raises(LeftOutError, match=r'a\.wav: no caption') as caught:
        manifest.read(0, 8000)
    assert caught.value.reason == 'excluded'


def test_description_tells_lists_apart_but_not_places(tmp_path):
    (tmp_path / 'moved').mkdir()
    here, moved = (read_manifest(write(p / 'm.json', TWO)) for p in (tmp_path, tmp_path / 'moved'))
    assert here.description() == moved.description()
    other = read_manifest(write(tmp_path / 'n.json', [TWO[0], {**TWO[1], 'caption': 'snow'}]))
    assert other.description() != here.description()
    assert here.part(1, 2).entries == here.entries[1:]
