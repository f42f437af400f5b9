"""The token that requests must carry: where it comes from, and which headers show it."""

import base64

import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.web.token import Token, read_token

SECRET = 'aZ9-._~+/='


def basic(text: str) -> str:
    return f'Basic {base64.b64encode(text.encode()).decode()}'


@pytest.mark.parametrize(
    'header', [f'Bearer {SECRET}', f'bearer  {SECRET} ', basic(f':{SECRET}'), basic(f'me:{SECRET}')]
)
def test_the_token_is_recognised(header):
    assert Token(SECRET).admits(header)


@pytest.mark.parametrize(
    'header',
    [
        None,
        '',
        'Bearer',
        'Bearer ',
        SECRET,
        f'Bearer {SECRET}x',
        f'Bearer {SECRET[:-1]}',
        f'Bearer {SECRET.lower()}',
        f'Digest {SECRET}',
        f'Bearer é{SECRET}',
        'Bearer \udcff',
        basic(SECRET),
        basic(f'{SECRET}:'),
        basic(f'a:b:{SECRET}'),
        'Basic é',
        'Basic !!!!',
    ],
)
def test_nothing_else_is(header):
    assert not Token(SECRET).admits(header)


@pytest.mark.parametrize('header', [None, '', 'Bearer x'])
def test_without_a_token_everything_passes(header):
    assert Token().admits(header)


def test_it_comes_from_the_flag_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv('AUDIOSEP_JAX_TOKEN', raising=False)
    assert read_token(None) == ''
    (tmp_path / 'token').write_text(f'{SECRET}\n')
    monkeypatch.setenv('AUDIOSEP_JAX_TOKEN', 'other')
    assert read_token(None) == 'other'
    assert read_token(SECRET) == SECRET
    assert read_token(f'@{tmp_path / "token"}') == SECRET


@pytest.mark.parametrize('value', ['', ' ', 'two words', 'tab\t', 'naïve', 'line\nline', '\udcff'])
def test_what_is_no_token_is_refused_without_quoting_it(monkeypatch, value):
    monkeypatch.setenv('AUDIOSEP_JAX_TOKEN', value)
    for flag in (None, value):
        with pytest.raises(ConfigError) as error:
            read_token(flag)
        assert not value.strip() or value not in str(error.value)


@pytest.mark.parametrize('content', [b'', b' \n', b'two words', 'naïve'.encode(), b'\xff'])
def test_a_file_without_a_token_is_refused(tmp_path, content):
    (tmp_path / 'token').write_bytes(content)
    with pytest.raises(ConfigError, match='token') as error:
        read_token(f'@{tmp_path / "token"}')
    assert 'words' not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r'--token @.*nowhere: cannot be read: No such file'):
        read_token(f'@{tmp_path / "nowhere"}')
