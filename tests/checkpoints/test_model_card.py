"""The model card: metadata, table of scores, and which results are refused."""

import json

import pytest
from huggingface_hub import ModelCard
from support.evaluation_results import RESULTS
from support.small_separator import CONFIG, save_small

from audiosep_jax.checkpoints.publish import make_repository
from audiosep_jax.errors import DataError


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('run'))


def test_the_model_card(checkpoint, tmp_path):
    (tmp_path / 'results.json').write_text(json.dumps(RESULTS))
    results = [tmp_path / 'results.json']
    make_repository(checkpoint, tmp_path / 'repo', 'me/small', results=results, license='mit')
    card = ModelCard.load(tmp_path / 'repo' / 'README.md')
    assert card.data.library_name == 'audiosep_jax'
    assert card.data.license == 'mit'
    assert card.data.pipeline_tag == 'audio-to-audio'
    scores = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert scores == {('music', 'sdri'): 8.13, ('music', 'si-sdr'): 5.5}
    assert '| music | separated | 8.13 (7.00 … 9.00) | 5.50 (4.00 … 7.00) | 12 |' in card.text
    assert '| music | no separation | 0.00 |  | 12 |' in card.text
    assert 'Mean and 95 % interval; mean over labels.' in card.text
    assert "asj.load('me/small')" in card.text
    assert f'{CONFIG.sample_rate} Hz' in card.text


def test_the_scores_of_all_benchmarks(checkpoint, tmp_path):
    """What `evaluate --benchmark all --json` writes."""
    tables = {name: {**RESULTS, 'benchmark': name} for name in ('music', 'esc50')}
    (tmp_path / 'all.json').write_text(json.dumps({'benchmarks': tables}))
    make_repository(checkpoint, tmp_path / 'repo', 'me/small', results=[tmp_path / 'all.json'])
    card = ModelCard.load(tmp_path / 'repo' / 'README.md')
    assert {r.dataset_name for r in card.data.eval_results} == {'music', 'esc50'}
    for name in tables:
        assert f'| {name} | separated | 8.13 (7.00 … 9.00) | 5.50 (4.00 … 7.00) | 12 |' in card.text


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'not results'),
        ('[]', 'not results'),
        ('{"benchmarks": {}}', 'not results'),
        ('{"benchmarks": [1]}', 'not results'),
        (json.dumps({'benchmarks': {'a': RESULTS, 'b': {**RESULTS, 'checkpoint': {'step': 8}}}}), 'scores of step 8'),
        ('{"benchmark": "x", "rows": {}}', 'not results'),
        (json.dumps({**RESULTS, 'rows': {'separated': {'n': 3}}}), 'not results'),
        (json.dumps({**RESULTS, 'checkpoint': {'step': 8}}), 'scores of step 8, but the checkpoint is of step 7'),
    ],
)
def test_results_that_do_not_fit_are_refused(checkpoint, tmp_path, content, message):
    (tmp_path / 'x.json').write_text(content)
    with pytest.raises(DataError, match=message):
        make_repository(checkpoint, tmp_path / 'repo', 'me/small', results=[tmp_path / 'x.json'])
    assert not (tmp_path / 'repo').exists()
