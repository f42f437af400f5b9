"""No network: the hub is a cache that the tests fill as `huggingface_hub` does."""

import socket

import pytest
from huggingface_hub import constants


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No name resolves, no proxy, an empty cache; `add(repository, {file: text})` fills it."""

    def fail(*_, **__):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    for name in ('HTTPS_PROXY', 'https_proxy', 'ALL_PROXY', 'all_proxy'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))

    def add(repository, files, kind='models'):
        folder = tmp_path / 'hub' / f'{kind}--{repository.replace("/", "--")}'
        snapshot = folder / 'snapshots' / ('0' * 40)
        for name, text in files.items():
            path = snapshot / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (folder / 'refs').mkdir(exist_ok=True)
        (folder / 'refs' / 'main').write_text('0' * 40)
        return snapshot

    return add
