import dataclasses
import json
import os

import pytest

from audiosep_jax.errors import DataError, LeftOut, LeftOutError, printable
from data_prep.clips.base import Entry, check_unique


def test_names_that_are_not_utf8_become_printable():
    name = os.fsdecode(b'caf\xe9 \xc3\xbc.wav')
    assert printable(name) == 'caf\\udce9 ü.wav'
    assert printable('ü.wav') == 'ü.wav'
    clip = LeftOut(name, 'unreadable', f'{name}: damaged')
    assert json.dumps(dataclasses.astuple(clip), ensure_ascii=False).encode()
    assert clip.message == 'caf\\udce9 ü.wav: damaged'


def test_ids_must_differ():
    check_unique(['a', 'b', 'A'])
    with pytest.raises(DataError, match="two clips have the id 'a'"):
        check_unique(['a', 'b', 'a'])


def test_a_clip_that_is_left_out_has_a_reason():
    error = LeftOutError('too short', 'a.wav: 0.10 s')
    assert (error.reason, str(error)) == ('too short', 'a.wav: 0.10 s')
    assert isinstance(error, DataError)


def test_an_entry_is_the_whole_file_unless_it_says_otherwise():
    entry = Entry('a', 'a.wav', ('a dog',))
    assert (entry.start, entry.seconds, entry.labels) == (0.0, None, ())
