"""The list of published checkpoints: consistent with the rest of the code."""

import hashlib

import pytest

from audiosep_jax.checkpoints.convert import PRESETS
from audiosep_jax.checkpoints.named import DEFAULT, NAMED, at_address, nearest_name
from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.weights import hub


def test_every_entry_can_be_fetched_and_converted():
    assert DEFAULT in NAMED
    for name, checkpoint in NAMED.items():
        assert checkpoint.name == name
        assert hub.parse_reference(name) is None  # no name means a repository as well
        assert checkpoint.preset in PRESETS
        assert at_address(checkpoint.separator.address) is checkpoint
        for file in (checkpoint.separator, checkpoint.clap):
            assert file.name.endswith(('.ckpt', '.pt'))
            assert file.is_on_hub == (hub.parse_reference(file.address) is not None)
            kind, _, digest = (file.checksum or 'sha256:' + '0' * 64).partition(':')
            assert len(digest) == 2 * hashlib.new(kind).digest_size
    assert at_address('some/model:x.ckpt') is None


def test_a_file_s_name_is_without_escapes():
    assert NAMED['audiosep-dcase2024'].separator.name == 'audiosep_16k,baseline,step=200000.ckpt'
    assert NAMED['audiosep'].separator.name == 'audiosep_base_4M_steps.ckpt'


def test_scores_are_those_of_the_benchmarks():
    """Evaluations show the same published scores beside their own."""
    names = {protocol.title: protocol for protocol in PROTOCOLS.values()}
    own = {scores.metric: scores.values for scores in NAMED['audiosep'].scores if 'github' in scores.source}
    for benchmark, value in own['SDRi'].items():
        assert round(names[benchmark].published[0].scores['SDRi'], 2) == pytest.approx(value)
    (dcase,) = PROTOCOLS['dcase2024'].published
    listed = {scores.metric: next(iter(scores.values.values())) for scores in NAMED['audiosep-dcase2024'].scores}
    assert listed == dcase.scores


def test_mistyped_names():
    assert nearest_name('audiosep-hives') == 'audiosep-hive'
    assert nearest_name('AUDIOSEP') == 'audiosep'
    assert nearest_name('audiosep-dcase24') == 'audiosep-dcase2024'
    assert nearest_name('runs/base') is None
