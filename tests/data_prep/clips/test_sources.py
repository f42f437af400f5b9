"""Sources of clips: what a build asks of them. tests/data_prep/test_build.py builds shards from them."""

import pickle

import numpy as np
import pytest
from support.small_dataset import small_clips
from support.small_media import write_sound

from audiosep_jax.errors import AudioFileError, ConfigError, DataError, LeftOutError
from data_prep.clips.base import Entry
from data_prep.clips.sources import ClipsInMemory, Files, LongEnough

RATE = 16000


@pytest.fixture
def files(tmp_path):
    """Three clips: a file, half a second of it, and a file that does not exist."""
    write_sound(tmp_path / 'sounds' / 'a.wav', 1.0, RATE)
    entries = [
        Entry('a', 'sounds/a.wav', ('a dog',), ('Dog',)),
        Entry('half', 'sounds/a.wav', ('rain',), start=0.25, seconds=0.5),
        Entry('missing', 'sounds/b.wav', ('wind',)),
    ]
    return Files(entries, tmp_path, kind='toy', shortest=0.4)


def test_files_are_read_with_all_that_is_known_of_them(files):
    files.check(RATE)
    assert len(files) == 3
    assert [files.clip_id(i) for i in range(3)] == ['a', 'half', 'missing']
    whole, half = files.read(0, RATE), files.read(1, RATE)
    assert (whole.id, whole.captions, whole.labels, whole.source) == ('a', ('a dog',), ('Dog',), 'toy:sounds/a.wav')
    np.testing.assert_allclose(half.audio, whole.audio[RATE // 4 : 3 * RATE // 4], atol=1e-6)
    with pytest.raises(LeftOutError, match='no such file'):
        files.read(2, RATE)


def test_files_that_are_too_short_or_damaged_are_left_out(files, tmp_path):
    write_sound(tmp_path / 'sounds' / 'a.wav', 0.3, RATE)
    with pytest.raises(LeftOutError, match=r'a\.wav: 0\.30 s') as caught:
        files.read(0, RATE)
    assert caught.value.reason == 'too short'
    (tmp_path / 'sounds' / 'a.wav').write_text('no sound')
    with pytest.raises(AudioFileError):
        files.read(0, RATE)


def test_a_part_has_its_clips_and_travels_to_a_worker(files):
    part = pickle.loads(pickle.dumps(files.part(1, 3)))
    assert [part.clip_id(i) for i in range(len(part))] == ['half', 'missing']
    assert (part.kind, part.shortest, part.folder) == (files.kind, files.shortest, files.folder)


def test_the_description_tells_other_clips_apart_but_not_other_folders(files, tmp_path):
    def description(entries=files.entries, folder=tmp_path, **settings):
        return Files(entries, folder, **{'kind': 'toy', 'shortest': 0.4, **settings}).description()

    assert description() == files.description() == description(folder=tmp_path / 'moved')
    others = [description(files.entries[:2]), description(kind='other'), description(shortest=0), description(frames=1)]
    assert files.description() not in others


def test_files_refuse_equal_ids_and_negative_numbers_of_pictures(files, tmp_path):
    with pytest.raises(DataError, match="two clips have the id 'a'"):
        Files([files.entries[0]] * 2, tmp_path, kind='toy')
    with pytest.raises(ConfigError, match='--frames -1'):
        Files(files.entries, tmp_path, kind='toy', frames=-1)


def test_clips_in_memory_are_what_was_given():
    clips = small_clips(4)
    source = ClipsInMemory(clips)
    source.check(RATE)
    assert len(source) == 4
    assert source.read(2, RATE) is clips[2]
    part = source.part(1, 3)
    assert [part.clip_id(i) for i in range(2)] == [clips[1].id, clips[2].id]
    assert source.description() == ClipsInMemory(small_clips(4)).description() != part.description()


def test_clips_that_are_long_enough():
    clips = small_clips(3)
    rate = 1000
    seconds = len(clips[0].audio) / rate
    source = LongEnough(ClipsInMemory(clips), seconds)
    assert source.read(0, rate) is clips[0]
    too_long = LongEnough(ClipsInMemory(clips), seconds + 0.01).part(1, 3)
    assert (len(too_long), too_long.clip_id(0)) == (2, clips[1].id)
    with pytest.raises(LeftOutError) as caught:
        too_long.read(0, rate)
    assert caught.value.reason == 'too short'
    assert source.description() != too_long.description()
    for shortest in (-1.0, float('nan'), float('inf')):
        with pytest.raises(ConfigError, match='--shortest'):
            LongEnough(ClipsInMemory(clips), shortest)
