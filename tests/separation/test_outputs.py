"""Names of output files: safe, distinct, and refused before any work if they cannot be written."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.separation.outputs import plan_outputs, query_names, removed_name


@settings(max_examples=200)
@given(st.lists(st.text(st.characters(exclude_categories=['Cs']), max_size=120), min_size=1, max_size=4, unique=True))
def test_any_query_is_a_safe_and_unique_name(queries):
    names = query_names(queries)
    assert len({name.casefold() for name in names} | {'residual'}) == len(queries) + 1
    for name in names:
        assert 0 < len(name.encode()) < 100
        assert not set(name) & set('/\\:*?"<>|\0\n\t .$`\'')
        assert all(c in '\u200c\u200d' or unicodedata.category(c)[0] != 'C' for c in name)
    assert names == query_names(queries)


def test_readable_names():
    names = query_names(['a dog barking!', 'A dog barking', '犬が吠える', '🐶 / 🐱', '???', '...', 'residual'])
    assert names == ['a_dog_barking', 'A_dog_barking-2', '犬が吠える', '🐶_🐱', 'query', 'query-2', 'residual-2']


def test_the_name_of_what_is_left():
    assert removed_name(['a dog', 'rain']) == 'without_a_dog_and_rain'


def test_inputs_of_one_name_are_told_apart(folder):
    inputs = [Path(name) for name in ('talk.wav', 'talk.mp3', 'in/a.wav', 'in/sub/a.wav')]
    plans = plan_outputs(Path('out'), inputs, ['dog', 'residual'], num_queries=1, suffix='.flac')
    stems = {source: [path.name for path in paths] for source, paths in plans.items()}
    assert stems == {
        source: [f'{stem}__dog.flac', f'{stem}__residual.flac']
        for source, stem in zip(inputs, ['talk.wav', 'talk.mp3', 'a', 'sub-a'], strict=True)
    }


def test_a_file_has_the_other_outputs_next_to_it(folder):
    plans = plan_outputs(Path('dog.flac'), [Path('in.wav')], ['dog', 'residual'], num_queries=1)
    assert plans == {Path('in.wav'): [Path('dog.flac'), Path('dog__residual.flac')]}


@pytest.mark.parametrize(
    ('out', 'inputs', 'error', 'message'),
    [
        ('out', [], ConfigError, 'no input'),
        ('out.wav', ['a.wav', 'b.wav'], ConfigError, 'with several inputs or queries -o is a folder'),
        ('out', ['a.wav', 'a.wav'], ConfigError, 'given twice'),
        ('a.wav', ['a.wav'], ConfigError, 'is an input and would be overwritten'),
        ('no/such/folder', ['a.wav'], AudioFileError, 'does not exist'),
    ],
)
def test_impossible_outputs_are_refused(folder, out, inputs, error, message):
    with pytest.raises(error, match=message):
        plan_outputs(Path(out), [Path(name) for name in inputs], ['dog'], num_queries=1)
