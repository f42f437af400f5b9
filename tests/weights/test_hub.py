"""The hub without a network: the tests fill its cache as `huggingface_hub` would."""

import socket

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from audiosep_jax.errors import DownloadError
from audiosep_jax.weights import hub


def test_cached_files_need_no_network(offline):
    offline('some/thing', {'a.json': 'A', 'sub/b.json': 'B'})
    assert hub.fetch('some/thing', 'a.json', place='nowhere').read_text() == 'A'
    assert sorted(hub.list_files('some/thing', place='nowhere', suffixes=['.json'])) == ['a.json', 'sub/b.json']
    folder = hub.snapshot('some/thing', ['a.json', 'sub/b.json'], place='nowhere')
    assert (folder / 'sub' / 'b.json').read_text() == 'B'
    offline('some/space', {'c': 'C'}, kind='spaces')
    assert hub.fetch(hub.Reference('some/space', 'space'), 'c', place='nowhere').read_text() == 'C'


@pytest.mark.parametrize(
    'call',
    [
        lambda: hub.fetch('some/thing', 'tokenizer.json', place='DST/encoder/tokenizer.json'),
        lambda: hub.list_files('some/thing', place='DST/encoder/tokenizer.json', suffixes=['']),
        lambda: hub.snapshot('some/thing', ['tokenizer.json'], place='DST/encoder/tokenizer.json'),
    ],
)
def test_offline_without_cache_the_message_names_the_file_and_its_place(offline, call):
    with pytest.raises(DownloadError) as error:
        call()
    message = str(error.value)
    assert '\n' not in message
    assert 'https://huggingface.co/some/thing' in message
    assert 'Name or service not known' in message
    assert message.endswith('put it at DST/encoder/tokenizer.json')


def test_cached_settings_alone_are_not_a_listing(offline):
    offline('some/thing', {'config.json': '{}'})
    with pytest.raises(DownloadError, match='put it at there'):
        hub.list_files('some/thing', place='there', suffixes=['.safetensors'])


def test_offline_by_environment(offline, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(DownloadError, match='HF_HUB_OFFLINE is set'):
        hub.fetch('some/thing', 'a', place='there')


def test_errors_of_the_library_become_one_line(offline, monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: [])
    import httpx2

    response = httpx2.Response(404, request=httpx2.Request('GET', 'https://x'))
    for error, message in (
        (errors.RepositoryNotFoundError('many\nlines', response=response), 'no such repository'),
        (errors.GatedRepoError('many\nlines', response=response), 'accept its license'),
        (errors.RemoteEntryNotFoundError('many\nlines', response=response), 'no such file'),
        (OSError(28, 'No space left on device'), 'No space left'),
        (RuntimeError('first\nsecond'), '(first)'),
    ):

        def fail(*_, error=error, local_files_only=False, **__):
            raise errors.LocalEntryNotFoundError('x') if local_files_only else error

        monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
        with pytest.raises(DownloadError) as caught:
            hub.fetch('some/thing', 'a', place='there')
        assert message in str(caught.value)
        assert '\n' not in str(caught.value)


def test_references(folder):
    assert hub.parse_reference('a/b') == hub.Reference('a/b')
    assert hub.parse_reference('a-b/c.d_e:f/g.ckpt') == hub.Reference('a-b/c.d_e', file='f/g.ckpt')
    assert hub.parse_reference('spaces/a/b').url == 'https://huggingface.co/spaces/a/b'
    for path in ('a', 'a/b/c', '../a', 'a/..', '/a/b', '', 'a b/c', './a', 'a/b.ckpt', 'a/b.safetensors'):
        assert hub.parse_reference(path) is None
    (folder / 'runs').mkdir()
    assert hub.parse_reference('runs/bse') is None  # probably a mistyped path
