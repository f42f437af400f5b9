"""`audiosep-jax models`: what it lists, for people and for programs."""

import json

import pytest

from audiosep_jax.checkpoints.named import NAMED, conversion_folder
from audiosep_jax.cli.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


def keep(name):
    """Makes the folder that a conversion would."""
    conversion_folder(NAMED[name].separator.address).mkdir(parents=True)
    return NAMED[name].kept


def test_the_table(capsys):
    kept = keep('audiosep-hive')
    assert main(['models']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split('  ')[0] == 'NAME'
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.startswith('audiosep')}
    assert cells == {
        'audiosep': ['1.26', 'GB', 'MIT', 'no'],
        'audiosep-hive': ['1.26', 'GB', 'Apache-2.0', 'yes'],
        'audiosep-dcase2024': ['not', 'known', 'not', 'known', 'no'],
    }
    assert f'    kept in {kept}' in lines
    assert any('SDR in dB: Hive 5.67, ' in line for line in lines)
    for checkpoint in NAMED.values():
        assert f'    {checkpoint.url}' in lines
        assert f'    {checkpoint.description}' in lines


def test_json(capsys):
    kept = keep('audiosep')
    assert main(['models', '--json']) == 0
    models = {model['name']: model for model in json.loads(capsys.readouterr().out)}
    assert list(models) == list(NAMED)
    assert models['audiosep']['kept'] == str(kept)
    assert models['audiosep']['separator']['size'] == 1_264_844_076
    dcase = models['audiosep-dcase2024']
    assert (dcase['kept'], dcase['license'], dcase['separator']['size']) == (None, None, None)
    assert dcase['scores'][0]['values'] == {'DCASE 2024 task 9, validation': 5.708}
