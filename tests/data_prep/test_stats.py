import json
import subprocess
import sys

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small

from audiosep_jax.data.layout import summary_path
from audiosep_jax.errors import ConfigError, DataError, LeftOut
from audiosep_jax.storage.json_files import write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.clips.sources import ClipsInMemory
from data_prep.stats import dataset_stats, draw, table


def sine(amplitude: float, seconds: float) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 400 * np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)


def build(directory):
    """Six clips of known loudness, of two corpora and a loose file; two were left out."""
    clips = [
        Clip('a', sine(1.0, 1), ('x', 'y'), ('dog', 'bark'), 'clotho:a.wav'),
        Clip('b', sine(0.1, 1), ('x',), ('dog',), 'clotho:b.wav'),
        Clip('c', sine(0.01, 2), ('x',), (), 'esc50:c.wav'),
        Clip('d', sine(0.1, 1), ('x',), ('猫',), 'some/d.wav'),
        Clip('e', np.zeros(SAMPLE_RATE, np.float32), ('x',), ('dog',), 'clotho:e.wav'),
        Clip('f', np.zeros(0, np.float32), ('x',), ('dog',), 'clotho:f.wav'),
    ]
    source = ClipsInMemory(clips)
    source.left_out = [LeftOut('g', 'missing', 'g.wav: no such file')]
    return build_shards(source, directory, sample_rate=SAMPLE_RATE, name='small', clips_per_shard=4)


def test_counts_loudness_and_lengths(tmp_path):
    build(tmp_path)
    calls = []
    (found,) = dataset_stats(tmp_path, jobs=2, progress=lambda *call: calls.append(call))
    assert (found.clips, found.captions, found.hours) == (5, 6, 6 / 3600)
    assert found.sources == {'clotho': 3, 'esc50': 1, 'files': 1}
    assert found.labels == {'dog': 3, 'bark': 1, '猫': 1}
    assert found.left_out == {'missing': 1, 'too short': 1}
    # The RMS of a sine is 3.01 dB below its amplitude.
    np.testing.assert_allclose(found.levels_db, [-3.01, -23.01, -43.01, -23.01], atol=0.02)
    assert found.silent == 1
    np.testing.assert_array_equal(found.seconds, [1, 1, 2, 1, 1])
    assert calls == [(n, 5) for n in range(1, 6)]
    values = json.loads(json.dumps(found.as_json()))
    assert sum(values['levels_db_histogram'].values()) == 4
    assert values['levels_db_histogram']['-24'] == 2
    assert values['seconds']['p50'] == 1.0


def test_the_table_names_all_of_it(tmp_path):
    build(tmp_path)
    text = table(dataset_stats(tmp_path), rows=2)
    for part in ('clips      5, 6 captions', '3  clotho', '1  in 1 others', 'missing 1'):
        assert part in text
    assert '-23.0' in text
    assert '1 silent' in text


def test_shards_of_earlier_versions_are_counted_by_their_records(tmp_path):
    info = build(tmp_path).info
    expected = dataset_stats(tmp_path)[0]
    for shard in range(info.num_shards):
        path = summary_path(tmp_path, info, shard)
        summary = json.loads(path.read_text())
        del summary['labels'], summary['sources']
        write_json(path, summary)
    found = dataset_stats(tmp_path)[0]
    assert (found.sources, found.labels) == (expected.sources, expected.labels)


def test_only_some_clips_are_measured_in_large_splits(tmp_path):
    build_small(tmp_path, 30, embed=False)
    build_small(tmp_path, 3, split='validation', embed=False)
    train, validation = dataset_stats(tmp_path, measure=7)
    assert (train.clips, train.measured) == (30, 7)
    assert (validation.clips, validation.measured) == (3, 3)
    nothing = dataset_stats(tmp_path, measure=0)
    assert nothing[0].measured == 0
    assert 'loudness' not in table(nothing)
    draw(nothing, tmp_path / 'x.png')


def test_the_picture_is_one(tmp_path):
    build(tmp_path)
    draw(dataset_stats(tmp_path), tmp_path / 'x.png', 'of $this')
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(DataError, match='the picture cannot be written'):
        draw(dataset_stats(tmp_path), tmp_path / 'no' / 'x.png')


def test_mistakes(tmp_path):
    with pytest.raises(DataError, match='no dataset with a complete split'):
        dataset_stats(tmp_path)
    with pytest.raises(ConfigError, match='--measure'):
        dataset_stats(tmp_path, measure=-1)
    with pytest.raises(ConfigError, match='--jobs'):
        dataset_stats(tmp_path, jobs=0)


def test_without_a_picture_matplotlib_stays_away(tmp_path):
    build(tmp_path)
    code = (
        'import sys; from data_prep.__main__ import main; '
        f'main(["stats", {str(tmp_path)!r}]); print("matplotlib" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith('False\n')
