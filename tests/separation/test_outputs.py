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


# ---- templates -------------------------------------------------------------------------------------------------------


def planned(template, inputs=('in/a.wav', 'b.flac'), names=('a_dog', 'rain', 'residual'), suffix='.mp3'):
    queries = len(names) - ('residual' in names)
    plans = plan_outputs(
        Path('out'), [Path(name) for name in inputs], names, num_queries=queries, suffix=suffix, template=template
    )
    return [path.name for paths in plans.values() for path in paths]


@pytest.mark.parametrize(
    ('template', 'names'),
    [
        ('{stem}_{query}', ['a_a_dog', 'a_rain', 'a_residual', 'b_a_dog', 'b_rain', 'b_residual']),
        ('{input}-{index:02}', ['1-01', '1-02', '1-03', '2-01', '2-02', '2-03']),
        ('take 1 {{{stem}}} {index}.mp3', ['take 1 {a} 1', *(f'take 1 {{{x}}}' for x in ('a} 2', 'a} 3'))]),
        ('犬.{stem}.{query}', ['犬.a.a_dog', '犬.a.rain', '犬.a.residual']),
    ],
)
def test_names_by_template(folder, template, names):
    found = planned(template)
    if template.startswith('take'):
        assert found == [f'take 1 {{{stem}}} {index}.mp3' for stem in 'ab' for index in (1, 2, 3)]
    else:
        assert found[: len(names)] == [f'{name}.mp3' for name in names]


def test_a_long_name_is_cut_and_stays_distinct(folder):
    found = planned('{query}_{stem}' + 'x' * 250, inputs=['a.wav'])
    assert len(set(found)) == 3
    assert all(len(name.encode()) <= 240 and name.endswith('.mp3') for name in found)


@pytest.mark.parametrize(
    ('template', 'says'),
    [
        ('{stem}', r"--name '\{stem\}': needs \{query\} or \{index\}, because every input has 3 outputs"),
        ('{query}', r'needs \{stem\} or \{input\}, because there are 2 inputs'),
        ('{stem}/{query}', 'a name without folders and control characters is needed; -o names the folder'),
        ('{stem}\\{query}', 'a name without folders'),
        ('{stem}\n{query}', 'a name without folders'),
        ('../{stem}_{query}', 'a name without folders'),
        ('{stem}_{text}', r'no field \{text\}; use \{stem\}, \{query\}, \{index\}, \{input\}'),
        ('{stem}_{}', r'no field \{\}'),
        ('{stem}_{0}', r'no field \{0\}'),
        ('{stem.__class__}_{query}', r'no field \{stem.__class__\}'),
        ('{stem!r}_{query}', 'can be padded'),
        ('{stem}_{query', 'write, for example'),
        ('{stem}_{query:>99999999}', 'can be padded with zeros'),
        ('{stem}_{index:2}', 'can be padded'),
        ('{stem}_{index:d2}', 'can be padded with zeros'),
        ('{stem}_{query:{index}}', 'can be padded with zeros'),
        ('{stem}_{query:02}', 'can be padded'),
        ('{stem}_{query}.wav', 'the files are .mp3; use --format wav'),
        ('', 'the name is empty'),
        (' ', 'the name is empty'),
        ('.mp3', 'the name is empty'),
    ],
)
def test_a_template_that_cannot_work_is_refused_in_one_line(folder, template, says):
    with pytest.raises(ConfigError, match=says) as refused:
        planned(template)
    assert '\n' not in str(refused.value)


def test_a_template_may_not_make_two_inputs_one(folder):
    with pytest.raises(ConfigError, match='would both be written to'):
        planned('{stem}{index}', inputs=['a.wav', 'a1.wav'], names=['x'] * 11)
    with pytest.raises(ConfigError, match='is an input and would be overwritten'):
        plan_outputs(Path('.'), [Path('a_dog.wav')], ['dog'], num_queries=1, template='a_{query}')


def test_a_template_is_for_a_folder(folder):
    with pytest.raises(ConfigError, match=r'-o x.wav names the file already; give a folder'):
        plan_outputs(Path('x.wav'), [Path('a.wav')], ['dog'], num_queries=1, template='{stem}')
