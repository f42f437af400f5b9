"""The validation of a run: it scores checkpoints, and its problems cost no checkpoint."""

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE
from support.training_runs import config_of

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import DataError
from audiosep_jax.separation.loading import load
from audiosep_jax.training.train import train

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_validation_scores_checkpoints_and_its_faults_cost_none(dataset, tmp_path, capsys):
    bench = tmp_path / 'bench'
    bench.mkdir()
    with pytest.raises(DataError, match=r'music_eval\.csv'):
        train(config_of(dataset, tmp_path / 'run', validation=str(bench)))
    assert not (tmp_path / 'run').exists()

    lines = ['idx,caption,src_wav,noise_wav', '0,sound 1 take 0,a,b', '1,sound 2 take 0,b,a']
    (bench / 'music_eval.csv').write_text('\n'.join(lines))
    train(config_of(dataset, tmp_path / 'run', steps=2, validation=str(bench)))
    assert 'not validated' in capsys.readouterr().err
    assert load(tmp_path / 'run').info['step'] == 2

    rng = np.random.default_rng(0)
    for name in ('segment-0', 'segment-1', 'mixture-0', 'mixture-1'):
        write_audio(bench / f'{name}.wav', rng.uniform(-0.5, 0.5, (1, 2000)).astype(np.float32), SAMPLE_RATE)
    train(config_of(dataset, tmp_path / 'run', steps=4, validation=str(bench)))
    assert 'SDRi' in capsys.readouterr().err
