"""Thousands of damaged PyTorch files: a short run of benchmarks/fuzz_torch_checkpoint.py."""

import importlib.util
import os
import pickle

import pytest
from support.paths import ROOT


@pytest.fixture(scope='module')
def fuzzing():
    spec = importlib.util.spec_from_file_location(
        'fuzz_torch_checkpoint', ROOT / 'benchmarks' / 'fuzz_torch_checkpoint.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_thousands_of_damaged_files(fuzzing, tmp_path):
    """Each is read or refused, without an import, a program or another file, and the memory does not grow."""
    found = fuzzing.fuzz(3_000, 7, tmp_path / 'failures')
    assert len(found['counts']) == 6
    for kind, counts in found['counts'].items():
        assert counts['FAILED'] == 0, kind
        assert counts['refused'] > 100, kind
    assert sum(counts['read'] for counts in found['counts'].values()) > 200
    assert found['grown'] < 200  # MB


def test_the_watch_detects_what_runs(fuzzing, tmp_path, monkeypatch):
    """Otherwise the test above would prove nothing."""
    watch = fuzzing.Watch(tmp_path / 'file.pt')
    for run in (lambda p: os.system('true'), lambda p: open(os.devnull).close(), lambda p: eval('1'), pickle_find):
        monkeypatch.setattr(fuzzing, 'read_torch', run)
        assert watch.read(b'')[0].startswith('executed: ')


def pickle_find(path):
    pickle.loads(b'cos\nsystem\n.')
