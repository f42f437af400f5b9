"""benchmarks/levels.py, with a tiny network and corpus: what it prints and writes."""

import dataclasses
import json

import pytest

from audiosep_jax.models.audiosep import ModelConfig


@pytest.fixture
def benchmark(benchmarks_on_path, monkeypatch):
    import levels

    import_quickstart = levels.import_quickstart

    def small():
        module = import_quickstart()
        full = module.get_config

        def get_config(*args):
            model = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 2)
            return dataclasses.replace(full(*args), model=model)

        main = module.main
        for name, value in {
            'get_config': get_config,
            'CLIP_SECONDS': 0.25,
            'TRAINING_CLIPS': 16,
            'TEST_CLIPS': 8,
        }.items():
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, 'main', lambda workdir, seed: main(workdir, seed, steps=3))
        return module

    monkeypatch.setattr(levels, 'import_quickstart', small)
    return levels


@pytest.mark.slow
@pytest.mark.nightly
def test_a_row_for_each_level_and_a_column_for_each_rule(benchmark, tmp_path, capsys):
    levels = (-20.0, 0.0)
    benchmark.main((1,), levels, json_file=tmp_path / 'figures.json')
    rows = json.loads((tmp_path / 'figures.json').read_text())
    assert [(row['seed'], row['level_db']) for row in rows] == [(1, -20.0), (1, 0.0)]
    assert all(-60 < row[rule] < 60 for row in rows for rule in benchmark.RULES)
    # However loud: `auto` brings all of these to the same level or leaves them in the range that was trained.
    assert rows[0]['off'] != rows[1]['off']
    printed = capsys.readouterr().out
    assert 'SDRi, auto, dB' in printed
    assert '-20' in printed
    assert '+0' in printed
