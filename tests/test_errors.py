"""What the shell makes of errors: one line and an exit code where the user can help, a traceback where only we can."""

import pytest

from audiosep_jax import errors
from audiosep_jax.errors import reported


def fail(error: BaseException) -> None:
    with reported('program'):
        raise error


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (errors.ConfigError('no such key'), 2, 'program: error: no such key'),
        (errors.QueryError('empty'), 2, 'program: error: empty'),
        (errors.AudioFileError('a.wav: no'), 1, 'program: error: a.wav: no'),
        (errors.DataError('shard'), 1, 'program: error: shard'),
        (errors.EncoderMismatchError('other'), 1, 'program: error: other'),
        (errors.CheckpointError('none'), 1, 'program: error: none'),
        (errors.TrainingDivergedError('NaN'), 1, 'program: error: NaN'),
        (OSError(28, 'No space left', 'log.jsonl'), 1, 'program: error: log.jsonl: No space left'),
        (RuntimeError('RESOURCE_EXHAUSTED: Out of memory\nmany lines'), 1, 'program: error: out of memory'),
        (MemoryError(), 1, 'program: error: out of memory'),
        (KeyboardInterrupt(), 130, 'program: interrupted'),
    ],
)
def test_errors_that_the_user_can_fix_are_one_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as stopped:
        fail(error)
    assert stopped.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count('\n') == 1


def test_a_message_is_one_line_whatever_it_quotes():
    for cell in ('two\nlines', 'two\r\nlines', '\x1b[2J', '\x00', '\x85', '\u2028', '\u202e', '\ud800'):
        message = str(errors.LeftOutError('unreadable', f'a.csv: line 3: {cell} é 猫 👩\u200d🎤'))
        assert message.splitlines() == [message]
        assert message.startswith('a.csv: line 3: ')
        assert message.endswith(' é 猫 👩\u200d🎤')
        assert cell not in message
        assert cell not in errors.LeftOut('x', 'unreadable', cell).message
    message = str(errors.DataError(f'a.csv: {"x" * 200_000}: delete it'))
    assert len(message) < 2100
    assert message.startswith('a.csv: xxx')
    assert message.endswith('xxx: delete it')


@pytest.mark.parametrize('error', [RuntimeError('a bug'), ValueError('a bug'), TypeError('a bug')])
def test_bugs_are_not_hidden(error):
    with pytest.raises(type(error), match='a bug'):
        fail(error)


def test_without_an_error_nothing_is_said(capsys):
    with reported('program'):
        pass
    assert capsys.readouterr() == ('', '')


def test_files_whose_names_begin_with_a_dash_are_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '-takes').mkdir()
    for arguments in (['-takes'], ['x', '-o', '-new.WAV'], ['--query', 'dog', '-a b.m4a', '--', '-c.wav']):
        assert 'begins with a dash' in errors.dash_hint(arguments)
    for arguments in ([], ['-'], ['--'], ['-o', 'x.wav'], ['--weights', '-0.5'], ['--a.b', '1'], ['--', '-takes']):
        assert errors.dash_hint(arguments) is None
