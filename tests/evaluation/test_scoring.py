"""Compares the scores of batches with the original's functions and with known separators."""

import numpy as np
import pytest
from support.band_separator import (
    CONFIG,
    HERTZ,
    KINDS,
    OTHERS,
    BandSeparator,
    NoQuerySeparator,
    make_music,
    mixtures_of,
    rows_of,
    write_table,
)
from support.original_metrics import calculate_sdr, calculate_sisdr

from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate, evaluate_arrays
from audiosep_jax.evaluation.scoring import sdr_family


def test_items_of_different_lengths_are_scored_as_each_alone():
    rng = np.random.default_rng(0)
    targets, mixtures, estimates = (
        [rng.normal(size=n).astype(np.float32) for n in (300, 20000, 700)] for _ in range(3)
    )
    rows = {'all': estimates, 'some': [estimates[0], None, estimates[2]]}
    scores = sdr_family(targets, mixtures, rows, batch_size=4)
    assert [list(item) for item in scores] == [['all', 'some'], ['all'], ['all', 'some']]
    for target, mixture, estimate, item in zip(targets, mixtures, estimates, scores, strict=True):
        sdr, before = calculate_sdr(target, estimate), calculate_sdr(target, mixture)
        assert item['all']['SDR'] == pytest.approx(sdr, abs=1e-4)
        assert item['all']['SDRi'] == pytest.approx(sdr - before, abs=1e-4)
        assert item.get('some', item['all']) == item['all']


def test_scores_are_the_originals():
    rng = np.random.default_rng(0)
    target, mixture = rng.normal(size=(2, 1000)).astype(np.float32)
    results = evaluate_arrays(NoQuerySeparator(), [mixture], [target], ['hiss'])
    estimate = mixture / 2
    assert results.sdri == pytest.approx(calculate_sdr(target, estimate) - calculate_sdr(target, mixture), abs=1e-4)
    assert results.si_sdr == pytest.approx(calculate_sisdr(target, estimate), abs=1e-4)
    scores = results.items[0].scores
    assert scores['separated']['SDR'] == pytest.approx(calculate_sdr(target, estimate), abs=1e-4)
    improvement = calculate_sisdr(target, estimate) - calculate_sisdr(target, mixture)
    assert scores['separated']['SI-SDRi'] == pytest.approx(improvement, abs=1e-4)
    assert 'shuffled query' not in scores  # one label: no wrong query exists


class BandEncoder(WordsEncoder):
    """Maps a sound to the embedding of its name, which it knows by the band."""

    def encode_audio(self, waveforms, *, sample_rate):
        heard = []
        for waveform in waveforms:
            spectrum = np.abs(np.fft.rfft(waveform))
            frequency = np.fft.rfftfreq(len(waveform), 1 / sample_rate)[int(np.argmax(spectrum))]
            heard.append(min(HERTZ, key=lambda kind: abs(HERTZ[kind] - frequency)))
        return self.encode_text(heard)


def test_similarity_of_query_and_output_needs_no_target(tmp_path):
    make_music(tmp_path)
    write_table(
        tmp_path / 'own' / 'mine.csv', 'mixture,query', [['../mixture-0.wav', 'low hum'], ['../mixture-2.wav', 'hiss']]
    )
    benchmark = read_benchmark(tmp_path / 'own', 'csv')
    with pytest.raises(ConfigError, match='name CLAP weights'):
        evaluate(BandSeparator(), benchmark)
    results = evaluate(BandSeparator(), benchmark, Options(clap=BandEncoder(CONFIG.condition_size)))
    assert list(rows_of(results)['separated'].scores) == ['CLAP']
    assert rows_of(results)['separated'].scores['CLAP'].value == pytest.approx(1, abs=1e-3)
    with_targets = evaluate(BandSeparator(), read_benchmark(tmp_path), Options(clap=BandEncoder(CONFIG.condition_size)))
    rows = rows_of(with_targets)
    assert rows['target'].scores['CLAP'].value == pytest.approx(1, abs=1e-3)
    assert rows['shuffled query'].scores['CLAP'].value == pytest.approx(1, abs=1e-3)  # compared with the wrong text
    assert rows['no separation'].scores['CLAP'].value < 0.9
    assert list(rows['target'].scores) == ['CLAP']


def test_a_diverged_model_is_named():
    class Diverged(BandSeparator):
        def separate_batch(self, mixtures, embeddings, *, batch_size):
            return [np.full_like(m, np.nan) for m in mixtures]

    mixtures, targets = mixtures_of(KINDS, OTHERS)
    with pytest.raises(CheckpointError, match='NaN'):
        evaluate_arrays(Diverged(), mixtures, targets, KINDS)
