"""`env`: what it says, that it says nothing personal, and that nothing missing stops it."""

import configparser
import importlib.metadata
import json
import os
import time
from pathlib import Path

import jax
import pytest
from support.paths import ROOT

import audiosep_jax
from audiosep_jax.cli import env
from audiosep_jax.cli.main import main


def test_versions_devices_and_caches(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    (tmp_path / 'audiosep_jax' / 'xla').mkdir(parents=True)
    (tmp_path / 'audiosep_jax' / 'xla' / 'program').write_bytes(bytes(3_200_000))
    assert main(['env', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['versions']['audiosep_jax'] == audiosep_jax.__version__
    assert found['versions']['jax'] == jax.__version__
    assert found['devices']['backend'] == 'cpu'
    assert len(found['devices']) == 1 + jax.local_device_count()
    assert found['caches']['audiosep_jax'].startswith('3.2 MB, ')
    assert found['caches']['compiled programs'] == f'3.2 MB, {env.private(str(tmp_path))}/audiosep_jax/xla'
    assert found['caches']['hub'].startswith('none, ')
    assert main(['env']) == 0
    text = capsys.readouterr().out
    for section, entries in found.items():
        assert f'{section}\n' in text
        for name, value in entries.items():
            if section not in ('system', 'caches'):
                assert any(line.split() == [name, *str(value).split()] for line in text.splitlines()), name


def test_nothing_personal_is_said(capsys, tmp_path, monkeypatch):
    home = tmp_path / 'homes' / 'ada.l'
    home.mkdir(parents=True)
    for name in ('HOME', 'XDG_CACHE_HOME'):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    monkeypatch.setenv('HF_HOME', '/scratch/lovelace/hf')
    monkeypatch.setenv('XLA_FLAGS', f'--xla_dump_to={home}/dump')
    monkeypatch.setattr(env.getpass, 'getuser', lambda: 'lovelace')
    assert main(['env']) == 0
    out = capsys.readouterr().out
    assert '~/audiosep_jax' in out
    assert '--xla_dump_to=~/dump' in out
    assert '/scratch/USER/hf' in out
    for secret in ('hf_secret', 'ada.l', 'lovelace', os.uname().nodename):
        assert len(secret) < 4 or secret not in out


def test_only_whole_names_are_hidden(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ada')
    monkeypatch.setattr(env.getpass, 'getuser', lambda: 'ada')
    texts = {
        '/home/ada/x': '~/x',
        '/home/ada': '~',
        '/home/adam/x': '/home/adam/x',
        '/data/ada/x': '/data/USER/x',
        'ada 1.0, /data/ada, /x': 'ada 1.0, /data/USER, /x',
    }
    assert {text: env.private(text) for text in texts} == texts
    assert env.private({'a': {'b': '/home/ada', 'c': 3}}) == {'a': {'b': '~', 'c': 3}}


def test_nothing_missing_stops_it(capsys, monkeypatch):
    def broken(*arguments):
        raise RuntimeError('no device\nand a long story')

    for module, name in ((jax, 'default_backend'), (env.platform, 'platform'), (env.os, 'sysconf')):
        monkeypatch.setattr(module, name, broken)
    for probe in ('_libsndfile', '_cpu', '_folder_size'):
        monkeypatch.setattr(env, probe, broken)
    monkeypatch.setattr(importlib.metadata, 'version', broken)
    monkeypatch.delenv('HOME')
    assert main(['env', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['devices'] == {'error': 'unknown (RuntimeError: no device)'}
    assert found['system']['platform'] == 'unknown (RuntimeError: no device)'
    assert found['versions']['flax'] == 'unknown (RuntimeError)'
    assert found['caches']['audiosep_jax'].startswith('unknown (RuntimeError: no device), ')


def test_a_driver_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(env, '_DEVICE_SECONDS', 0.05)
    monkeypatch.setattr(jax, 'default_backend', lambda: time.sleep(1))
    assert env._devices() == {'error': 'no answer within 0 s'}


def test_a_huge_cache_is_not_counted_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(env, '_CACHE_SECONDS', -1)
    (tmp_path / 'x').write_bytes(bytes(1000_000))
    (tmp_path / 'link').symlink_to('nowhere')
    assert env._folder_size(str(tmp_path)) == 'more than 1.0 MB'
    assert env._folder_size(str(tmp_path / 'x')) == 'none'


def test_the_extras_are_those_of_the_package():
    config = configparser.ConfigParser()
    config.read(Path(ROOT) / 'setup.cfg', 'utf-8')
    assert env.EXTRAS.keys() <= set(config['options.extras_require'])


@pytest.mark.parametrize('argument', ['--jsn', 'x'])
def test_wrong_flags(argument, capsys):
    assert main(['env', argument]) == 2
