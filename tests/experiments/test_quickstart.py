"""The quickstart from end to end, with a tiny network and corpus, which test that its parts fit together."""

import dataclasses
import importlib.util
import json
import re

import numpy as np
import pytest
import soundfile
from support.paths import ROOT

from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.web.page import find_examples
from data_prep import synthetic

SCRIPT = ROOT / 'experiments' / 'quickstart.py'


@pytest.fixture
def quickstart(monkeypatch):
    spec = importlib.util.spec_from_file_location('quickstart', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    full = module.get_config

    def small(*args):
        config = full(*args)
        model = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 2)
        return dataclasses.replace(config, model=model)

    monkeypatch.setattr(module, 'get_config', small)
    monkeypatch.setattr(module, 'CLIP_SECONDS', 0.25)
    monkeypatch.setattr(module, 'TRAINING_CLIPS', 16)
    monkeypatch.setattr(module, 'TEST_CLIPS', 8)
    return module


@pytest.mark.slow
def test_it_leaves_what_it_says_and_ends_with_the_score(quickstart, tmp_path, capsys):
    workdir = tmp_path / 'quick start'
    quickstart.main(workdir, seed=1, steps=3)
    printed = capsys.readouterr().out
    score = re.fullmatch(r'SDRi (-?\d+\.\d\d) dB .*', printed.splitlines()[-1])
    results = json.loads((workdir / 'results.json').read_text())
    assert float(score[1]) == pytest.approx(results['SDRi'], abs=0.01)
    assert set(results['rows']) == {
        'separated', 'fixed spectral mask', 'no separation', 'half of the mixture', 'oracle ratio mask',
        'shuffled query',
    }  # fmt: skip
    lines = printed.splitlines()
    assert f'SI-SDR {results["SI-SDR"]:.2f} dB' in lines[-1]
    for floor in ('half of the mixture', 'fixed spectral mask'):
        row = results['rows'][floor]
        assert f'{floor}: SDRi {row["SDRi"]:.2f} dB, SI-SDR {row["SI-SDR"]:.2f} dB' in lines[-2]
    assert all(row['n'] == 8 for row in results['rows'].values())
    for name in ('mixture', 'target', 'separated'):
        samples, rate = soundfile.read(workdir / f'{name}.wav')
        assert (samples.shape, rate) == ((2000,), 8000)
    examples = find_examples(workdir / 'examples')
    assert {example.path.stem for example in examples} == set(quickstart.CLASSES[:4])
    assert (workdir / 'separation.png').read_bytes().startswith(b'\x89PNG')
    assert (workdir / 'checkpoints' / '3').is_dir()

    quickstart.main(workdir, seed=1, steps=3)  # finished already: the same scores again, no training
    assert capsys.readouterr().out.splitlines()[-1] == printed.splitlines()[-1]


def test_mixtures_are_of_two_classes_equally_loud(quickstart):
    clips = list(synthetic.clips(6, 0, sample_rate=8000, seconds=0.3, classes=('dog', 'rain', 'clock')))
    mixtures, targets = quickstart.mix_pairs(clips, seed=0)
    noise = mixtures - targets
    np.testing.assert_allclose(np.mean(noise**2, axis=-1), np.mean(targets**2, axis=-1), rtol=1e-4)
    assert np.abs(mixtures).max() <= 0.9001
    for clip, target, rest in zip(clips, targets, noise, strict=True):
        assert np.corrcoef(clip.audio, target)[0, 1] > 0.9999
        matches = [other for other in clips if abs(np.corrcoef(other.audio, rest)[0, 1]) > 0.999]
        assert len(matches) == 1
        assert matches[0].labels != clip.labels
