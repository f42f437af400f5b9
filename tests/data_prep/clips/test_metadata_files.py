"""Tables of captions, as Hugging Face's audiofolder has them."""

import json

import pytest

from audiosep_jax.errors import DataError
from data_prep.clips.metadata_files import key_of, read_metadata


def read(tmp_path, name, content, inner=''):
    """The rows and what was left out."""
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    (tmp_path / inner / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    left_out = []
    table = read_metadata(tmp_path, inner, [name, 'a.wav'], left_out)
    return (None if table is None else table.rows), left_out


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('metadata.csv', 'file_name,text\na.wav,a dog\nsub/b.wav,"rain, heavy"\n'),
        ('metadata.csv', '\ufefffile_name;text\r\na.wav;a dog\r\nsub/b.wav;rain, heavy\r\n'),
        ('metadata.csv', 'text\tFile_Name\na dog\ta.wav\nrain, heavy\t./sub/b.wav\n'),
        ('metadata.tsv', 'file_name\ttranscription\na.wav\ta dog\nsub\\b.wav\train, heavy\n'),
        (
            'metadata.jsonl',
            '{"file_name": "a.wav", "caption": "a dog"}\n{"file_name": "sub/b.wav", "text": ["rain, heavy"]}',
        ),
        ('metadata.csv', 'audio_file_name,sentence,id\na.wav,a dog,1\nsub/b.wav,"rain, heavy",2\n'),
    ],
)
def test_formats_agree(tmp_path, name, content):
    rows, left_out = read(tmp_path, name, content)
    assert {path: captions for path, (captions, _) in rows.items()} == {
        'a.wav': ('a dog',),
        'sub/b.wav': ('rain, heavy',),
    }
    assert left_out == []


def test_paths_begin_at_the_table(tmp_path):
    rows, _ = read(tmp_path, 'metadata.csv', 'file_name,text\nx/a.wav,a dog\nü.wav,x\n', inner='data/train')
    assert list(rows) == ['data/train/x/a.wav', key_of('data/train/u\u0308.wav')]


@pytest.mark.parametrize(
    ('row', 'captions', 'labels'),
    [
        ({'text': 'said', 'caption': 'heard'}, ('heard',), ()),
        ({'caption': ' ', 'text': 'a dog'}, ('a dog',), ()),
        ({'caption_1': 'one', 'caption_2': 'two', 'keywords': 'x'}, ('one', 'two'), ()),
        ({'captions': ['one', 'two', 'one']}, ('one', 'two'), ()),
        ({'text': 'a dog', 'label': 'dog_bark'}, ('a dog',), ('dog_bark',)),
        ({'label': 'dog_bark'}, ('dog bark',), ('dog_bark',)),
        ({'text': 'a dog', 'label': 7}, ('a dog',), ()),
        ({'text': None, 'category': ['dog', 'rain']}, ('dog', 'rain'), ('dog', 'rain')),
    ],
)
def test_columns(tmp_path, row, captions, labels):
    rows, _ = read(tmp_path, 'metadata.jsonl', json.dumps({'file_name': 'a.wav', **row}))
    assert rows == {'a.wav': (captions, labels)}


def test_bad_rows_are_left_out_and_a_bad_table_is_refused(tmp_path):
    good = 'file_name,text\n' + ''.join(f'{k}.wav,a dog\n' for k in range(9))
    for bad in ('/etc/a.wav,x', '../a.wav,x', ',x', '.,x', 'a.wav,rain, heavy', 'b.wav'):
        rows, left_out = read(tmp_path, 'metadata.csv', f'{good}{bad}\n')
        assert len(rows) == 9
        assert [(clip.id, clip.reason) for clip in left_out] == [('metadata.csv:11', 'unreadable')]
    lines = '{"file_name": "a.wav", "text": "x"}\n'
    rows, left_out = read(tmp_path, 'metadata.jsonl', lines + '[' * 200_000)
    assert (list(rows), [clip.id for clip in left_out]) == (['a.wav'], ['metadata.jsonl:2'])
    for content in ('[1]\n5\n', lines + '{\n{\n', b'\xff\n'):
        with pytest.raises(DataError, match=r'metadata\.jsonl') as caught:
            read(tmp_path, 'metadata.jsonl', content)
        assert '\n' not in str(caught.value)


def test_other_tables_and_none(tmp_path):
    assert read(tmp_path, 'metadata.csv', 'speaker,age\nx,5\n')[0] is None
    assert read(tmp_path, 'metadata.csv', '')[0] is None
    assert read_metadata(tmp_path, '', ['a.wav'], []) is None
    with pytest.raises(DataError, match=r'no captions: expected a column caption, .* found file_name, age'):
        read(tmp_path, 'metadata.csv', 'file_name,age\na.wav,5\n')
    with pytest.raises(DataError, match='Parquet is not read'):
        read(tmp_path, 'metadata.parquet', b'PAR1')
