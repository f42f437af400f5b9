"""Evaluation against small separators whose scores are known."""

import csv
import io
import json

import jax
import numpy as np
import pytest
from audiosep_jax.evaluate import (
    Pair,
    bootstrap_interval,
    evaluate_arrays,
    evaluate_music,
    evaluate_pairs,
    read_music,
    score_estimates,
    write_json,
    wrong_queries,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio import write_audio
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import CheckpointError, DataError
from audiosep_jax.model import ModelConfig, init_variables
from audiosep_jax.separate import Separator

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(1,) * 6, condition_size=64)
HERTZ = {'low hum': 200.0, 'whistle': 1500.0, 'hiss': 3000.0}


class BandSeparator:
    """Knows three sounds by their frequency band; a query with another word finds nothing. Stands in for a model."""

    config = CONFIG
    encoder = WordsEncoder(CONFIG.condition_size)
    info = {'path': 'somewhere', 'step': 3, 'encoder': encoder.identity(), 'config': {'steps': 3}}  # noqa: RUF012

    def embed(self, queries):
        return self.encoder.encode_text(list(queries))

    def separate_batch(self, mixtures, embeddings, *, batch_size):
        known = self.embed(HERTZ)
        return [self._band(m, list(HERTZ.values())[int(np.argmax(known @ e))]) for m, e in zip(mixtures, embeddings)]  # noqa: B905

    def _band(self, mixture, hertz):
        spectrum = np.fft.rfft(mixture)
        frequencies = np.fft.rfftfreq(len(mixture), 1 / CONFIG.sample_rate)
        spectrum[abs(frequencies - hertz) > 400] = 0
        return np.fft.irfft(spectrum, len(mixture)).astype(np.float32)


class NoQuerySeparator(BandSeparator):
    """Halves the mixture, whatever it is asked."""

    def separate_batch(self, mixtures, embeddings, *, batch_size):
        return [m / 2 for m in mixtures]


def sound(kind, samples=4000, level=0.3):
    return (level * np.sin(2 * np.pi * HERTZ[kind] * np.arange(samples) / 8000)).astype(np.float32)


def mixtures_of(kinds, others, **options):
    targets = [sound(kind, **options) for kind in kinds]
    return [t + sound(other, **options) for t, other in zip(targets, others, strict=True)], targets


def rows(results):
    return {row.name: row for row in results.rows}


KINDS, OTHERS = ['low hum', 'low hum', 'whistle', 'hiss'], ['whistle', 'hiss', 'hiss', 'low hum']


def test_three_rows_for_known_separators():
    mixtures, targets = mixtures_of(KINDS, OTHERS)
    good = rows(evaluate_arrays(BandSeparator(), mixtures, targets, KINDS))
    assert list(good) == ['separated', 'no separation', 'shuffled query']
    assert good['separated'].sdri > 15
    assert good['separated'].si_sdr > 15
    assert (good['no separation'].sdri, good['no separation'].sdri_interval) == (0.0, (0.0, 0.0))
    assert good['no separation'].si_sdr == pytest.approx(0, abs=0.1)
    assert good['shuffled query'].sdri < 0.1  # another band: silence, or the interfering sound
    assert all(row.n == 4 for row in good.values())

    # At 0 dB, half of the mixture has an error of half the target's energy: 3.01 dB, with any query at all.
    half = rows(evaluate_arrays(NoQuerySeparator(), mixtures, targets, KINDS))
    assert half['separated'].sdri == pytest.approx(3.01, abs=0.05)
    assert half['shuffled query'] == half['separated'].__class__(
        **{**vars(half['separated']), 'name': 'shuffled query'}
    )


def test_mean_per_label_or_over_items():
    """Three items of one label and one of another: the two means are different, and each is what it says."""
    targets = [sound('low hum')] * 3 + [sound('hiss')]
    errors = [1.0, 1.0, 1.0, 0.1]
    mixtures = [t + sound('whistle') for t in targets]
    estimates = [t + e * sound('whistle') for t, e in zip(targets, errors, strict=True)]
    labels = ['low hum'] * 3 + ['hiss']
    assert score_estimates('x', estimates, targets, mixtures).sdri == pytest.approx(20 / 4, abs=1e-3)
    assert score_estimates('x', estimates, targets, mixtures, labels=labels).sdri == pytest.approx(20 / 2, abs=1e-3)


def test_scores_are_the_originals():
    """SDR and SI-SDR of `utils.py` of the original, written out once more in numpy."""
    rng = np.random.default_rng(0)
    target, mixture = rng.normal(size=(2, 1000)).astype(np.float32)

    def sdr(reference, estimate):
        return 10 * np.log10(np.mean(reference**2) / np.mean((estimate - reference) ** 2))

    estimate = mixture / 2
    scale = target @ estimate / (target @ target)
    si_sdr = 10 * np.log10(np.sum((scale * target) ** 2) / np.sum((estimate - scale * target) ** 2))
    results = evaluate_arrays(NoQuerySeparator(), [mixture], [target], ['hiss'])
    assert results.sdri == pytest.approx(sdr(target, estimate) - sdr(target, mixture), abs=1e-3)
    assert results.si_sdr == pytest.approx(si_sdr, abs=1e-3)
    assert [row.name for row in results.rows] == ['separated', 'no separation']  # one label: no wrong query exists


def test_a_real_network_in_uneven_batches():
    separator = Separator(CONFIG, init_variables(CONFIG, jax.random.key(0)), WordsEncoder(CONFIG.condition_size))
    lengths = [900, 400, 900]
    targets = [sound('low hum', samples=n) for n in lengths]
    mixtures = [t + sound('hiss', samples=n) for t, n in zip(targets, lengths, strict=True)]
    captions = ['low hum', 'hiss', 'whistle']
    together = evaluate_arrays(separator, mixtures, targets, captions, batch_size=2)
    for i in range(len(lengths)):
        alone = evaluate_arrays(separator, mixtures[i : i + 1], targets[i : i + 1], captions[i : i + 1])
        assert together.items[i].sdri == pytest.approx(alone.items[0].sdri, abs=1e-3)
        assert together.items[i].si_sdr == pytest.approx(alone.items[0].si_sdr, abs=1e-3)


def test_captions_are_phrasings_and_wrong_ones_come_from_another_label():
    mixtures, targets = mixtures_of(KINDS, OTHERS)
    captions = ['a low hum', 'low humming', 'someone whistles', 'the hiss of steam']
    results = evaluate_arrays(BandSeparator(), mixtures, targets, captions, labels=KINDS)
    label_of = dict(zip(captions, KINDS, strict=True))
    assert all(label_of[item.wrong_caption] != item.label for item in results.items)


@settings(max_examples=100)
@given(st.lists(st.sampled_from('abcd'), min_size=1, max_size=30), st.integers(0, 3))
def test_wrong_queries_are_wrong_and_as_frequent_as_the_right_ones(labels, seed):
    partner = wrong_queries(labels, seed)
    if len(set(labels)) == 1:
        assert partner is None
        return
    assert all(labels[p] != label for p, label in zip(partner, labels, strict=True))
    assert partner == wrong_queries(labels, seed)
    if 2 * max(map(labels.count, labels)) <= len(labels):
        assert sorted(partner) == list(range(len(labels)))


def test_wrong_queries_of_a_label_are_of_many_others():
    labels = [label for label in 'abcdefgh' for _ in range(20)]
    partner = wrong_queries(labels, 0)
    for label in 'abcdefgh':
        assert len({labels[p] for p, own in zip(partner, labels, strict=True) if own == label}) >= 5


def test_bootstrap_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(values, None, seed=0)
    # The normal approximation: the mean ± 1.96 standard errors.
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.03)
    assert high == pytest.approx(values.mean() + error, abs=0.03)
    assert (low, high) == bootstrap_interval(values, None, seed=0)
    assert (low, high) != bootstrap_interval(values, None, seed=1)
    assert bootstrap_interval(values, ['one'] * 400, seed=0) == pytest.approx((low, high))


def test_bootstrap_interval_is_that_of_the_mean_over_labels():
    """A rare label weighs as much as a frequent one, in the interval as in the mean."""
    low, high = bootstrap_interval(np.array([0.0] * 30 + [10.0] * 3), ['a'] * 30 + ['b'] * 3, seed=0)
    assert high == 5.0
    assert low in (0.0, 5.0)


def make_music(folder, kinds=KINDS, others=OTHERS, suffix='.wav', rate=16000, channels=2):
    """A folder in the benchmark's layout, stereo and at another rate than the model's."""
    with (folder / 'music_eval.csv').open('w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['idx', 'caption', 'src_wav', 'noise_wav'])
        for i, (kind, other) in enumerate(zip(kinds, others, strict=True)):
            table.writerow([i, kind, f'{kind}-{i}', f'{other}-{i}'])
            time = np.arange(rate // 2) / rate
            target, noise = (0.3 * np.sin(2 * np.pi * HERTZ[k] * time) for k in (kind, other))
            for name, audio in (('segment', target), ('mixture', target + noise)):
                write_audio(folder / f'{name}-{i}{suffix}', np.tile(audio, (channels, 1)), rate)


@pytest.mark.parametrize('suffix', ['.wav', '.flac'])
def test_music_folder(tmp_path, suffix):
    make_music(tmp_path, suffix=suffix)
    seen = []
    results = evaluate_music(BandSeparator(), tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert results.sdri > 15
    assert len(results.items) == 4
    assert seen == [(4, 4)]
    # Mean per caption, then of those: the original's aggregation.
    by_caption = [[i.sdri for i in results.items if i.caption == c] for c in ('low hum', 'whistle', 'hiss')]
    assert results.sdri == pytest.approx(np.mean([np.mean(values) for values in by_caption]), abs=1e-6)


def test_results_as_json(tmp_path):
    make_music(tmp_path)
    results = evaluate_music(BandSeparator(), tmp_path)
    write_json(tmp_path / 'r.json', results.to_dict())
    record = json.loads((tmp_path / 'r.json').read_text())
    assert record['SDRi'] == results.sdri == record['rows']['separated']['SDRi']
    assert record['SI-SDR'] == results.si_sdr
    assert record['checkpoint'] == {'path': 'somewhere', 'step': 3, 'encoder': BandSeparator.encoder.identity()}
    assert record['config'] == {'steps': 3}
    assert [item['name'] for item in record['items']] == ['0', '1', '2', '3']
    assert record['items'][0]['SDRi'] == results.items[0].sdri
    assert {'SI-SDR', 'mixture_SI-SDR', 'wrong_SDRi', 'wrong_SI-SDR', 'wrong_caption'} <= set(record['items'][0])
    assert record['labels']['low hum']['n'] == 2
    low, high = record['rows']['separated']['SDRi_interval']
    assert low <= record['SDRi'] <= high
    with pytest.raises(DataError, match='cannot be written'):
        write_json(tmp_path / 'missing' / 'r.json', {})


def test_bad_items_are_named_and_the_rest_is_scored(tmp_path):
    make_music(tmp_path, KINDS + ['hiss'] * 4, OTHERS + ['low hum'] * 4)
    (tmp_path / 'mixture-4.wav').unlink()
    (tmp_path / 'segment-5.wav').write_text('not a sound')
    write_audio(tmp_path / 'segment-6.wav', np.zeros((1, 5)), 16000)
    write_audio(tmp_path / 'segment-7.wav', np.zeros((1, 8000)), 16000)
    with (tmp_path / 'music_eval.csv').open('a') as file:
        file.write('8,,x,y\n1,hiss,x,y\n9\n\n10,a,b,c,d\n')
    results = evaluate_music(BandSeparator(), tmp_path)
    assert len(results.items) == 5
    assert results.silent_targets == ('7',)
    assert np.isfinite([results.sdri, results.si_sdr]).all()
    expected = ['line 10', 'idx 1 was there', 'line 12', 'line 14', 'mixture-4.wav: no such', 'segment-5', 'segment-6']
    assert len(results.left_out) == len(expected)
    for part, line in zip(expected, results.left_out, strict=True):
        assert part in line
        assert '\n' not in line


def test_files_of_less_than_a_sample_at_the_model_s_rate_are_left_out(tmp_path):
    make_music(tmp_path)
    for name in ('mixture-0.wav', 'segment-0.wav'):
        write_audio(tmp_path / name, np.zeros((1, 1)), 48000)
    results = evaluate_music(BandSeparator(), tmp_path)
    assert len(results.items) == 3
    assert results.left_out == (f'{tmp_path}/mixture-0.wav: less than one sample at 8000 Hz',)


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (None, 'No such file'),
        (b'', 'no column idx and caption'),
        (b'idx,text\n0,a dog\n', 'no column caption'),
        (b'idx,caption\n', 'no usable row'),
        (b'idx,caption\n0,\n', 'no usable row.*line 2'),
        (b'idx,caption\n0,\xff\xfe\n', 'music_eval.csv: .*codec'),
        (b'idx,caption\n0,a dog\n', 'none of the 1 items could be scored.*no such file'),
    ],
)
def test_folders_that_are_no_benchmark(tmp_path, content, says):
    if content is not None:
        (tmp_path / 'music_eval.csv').write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        evaluate_music(BandSeparator(), tmp_path)
    assert '\n' not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / 'music_eval.csv').write_text('idx,caption\n0,a dog\n', 'utf-8-sig')
    pairs, bad = read_music(tmp_path)
    assert bad == []
    assert pairs == [Pair('0', 'a dog', 'a dog', tmp_path / 'mixture-0.wav', tmp_path / 'segment-0.wav')]


def test_a_diverged_model_is_named(tmp_path):
    class Diverged(BandSeparator):
        def separate_batch(self, mixtures, embeddings, *, batch_size):
            return [np.full_like(m, np.nan) for m in mixtures]

    mixtures, targets = mixtures_of(KINDS, OTHERS)
    with pytest.raises(CheckpointError, match='NaN'):
        evaluate_arrays(Diverged(), mixtures, targets, KINDS)


def test_nothing_to_evaluate():
    with pytest.raises(DataError, match='no items'):
        evaluate_pairs(BandSeparator(), [], per_label=True)
    with pytest.raises(ValueError, match='differ in number'):
        evaluate_arrays(BandSeparator(), [np.zeros(9)], [np.zeros(9)], [])


def test_table_shows_every_row():
    from rich.console import Console

    mixtures, targets = mixtures_of(KINDS, OTHERS)
    console = Console(width=80, file=io.StringIO())
    console.print(evaluate_arrays(BandSeparator(), mixtures, targets, KINDS).table('the title'))
    text = console.file.getvalue()
    for part in ('the title', 'separated', 'no separation', 'shuffled query', 'SDRi', 'SI-SDR', 'mean over items'):
        assert part in text
