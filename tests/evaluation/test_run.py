"""Evaluates small separators whose scores are known."""

import dataclasses

import jax
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
    make_numbered,
    mixtures_of,
    rows_of,
    sound,
    write_pair,
    write_table,
)
from support.original_metrics import calculate_sdr

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.evaluation.benchmark import Benchmark
from audiosep_jax.evaluation.loading import load_item
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate, evaluate_arrays, score_estimates, validate
from audiosep_jax.models.audiosep import init_variables
from audiosep_jax.separation.separator import Separator

ROWS = ['separated', 'no separation', 'half of the mixture', 'oracle ratio mask', 'shuffled query']


def test_rows_for_known_separators():
    mixtures, targets = mixtures_of(KINDS, OTHERS)
    good = rows_of(evaluate_arrays(BandSeparator(), mixtures, targets, KINDS))
    assert list(good) == ROWS
    assert good['separated'].sdri > 15
    assert good['separated'].si_sdr > 15
    assert (good['no separation'].sdri, good['no separation'].scores['SDRi'].interval) == (0.0, (0.0, 0.0))
    assert good['no separation'].si_sdr == pytest.approx(0, abs=0.1)
    assert good['half of the mixture'].sdri == pytest.approx(3.01, abs=0.05)
    assert good['half of the mixture'].si_sdr == pytest.approx(good['no separation'].si_sdr, abs=1e-4)
    assert good['oracle ratio mask'].sdri > 15
    assert good['shuffled query'].sdri < 0.1  # silence, or the interfering sound, in another band
    assert all(row.n == 4 for row in good.values())

    # At 0 dB, the error of half the mixture has half the target's energy, which is 3.01 dB for any query.
    half = rows_of(evaluate_arrays(NoQuerySeparator(), mixtures, targets, KINDS))
    assert half['separated'].sdri == pytest.approx(3.01, abs=0.05)
    assert half['shuffled query'].scores == half['separated'].scores
    without = evaluate_arrays(NoQuerySeparator(), mixtures, targets, KINDS, options=Options(shuffled=False))
    assert list(rows_of(without)) == ROWS[:4]


def test_a_network_in_uneven_batches_over_all_devices():
    """Items of three lengths have the same scores in batches on one device and on all eight."""
    separator = Separator(CONFIG, init_variables(CONFIG, jax.random.key(0)), WordsEncoder(CONFIG.condition_size))
    lengths = [900, 400, 900, *[420] * 8]
    kinds = [list(HERTZ)[i % 3] for i in range(len(lengths))]
    targets = [sound(kind, samples=n) for kind, n in zip(kinds, lengths, strict=True)]
    mixtures = [t + sound('hiss', samples=n, level=0.1) for t, n in zip(targets, lengths, strict=True)]
    together = evaluate_arrays(separator, mixtures, targets, kinds, options=Options(batch_size=8))
    small = evaluate_arrays(separator, mixtures, targets, kinds, options=Options(batch_size=2))
    for a, b in zip(together.items, small.items, strict=True):
        assert a.item == b.item
        for row in ROWS:
            assert a.scores[row] == pytest.approx(b.scores[row], abs=1e-3)
    estimate = separator.separate_batch(mixtures[:1], separator.embed(kinds[:1]))[0]
    assert together.items[0].scores['separated']['SDR'] == pytest.approx(calculate_sdr(targets[0], estimate), abs=1e-3)


def test_wrong_captions_come_from_another_label():
    mixtures, targets = mixtures_of(KINDS, OTHERS)
    captions = ['a low hum', 'low humming', 'someone whistles', 'the hiss of steam']
    results = evaluate_arrays(BandSeparator(), mixtures, targets, captions, labels=KINDS)
    label_of = dict(zip(captions, KINDS, strict=True))
    assert all(label_of[item.texts['shuffled query']] != item.item.label for item in results.items)


def test_a_row_of_estimates():
    targets = [sound('low hum')] * 3 + [sound('hiss')]
    errors = [1.0, 1.0, 1.0, 0.1]
    mixtures = [t + sound('whistle') for t in targets]
    estimates = [t + e * sound('whistle') for t, e in zip(targets, errors, strict=True)]
    row = score_estimates('x', estimates, targets, mixtures)
    assert (row.name, row.n, row.sdri) == ('x', 4, pytest.approx(20 / 4, abs=1e-3))


def test_a_folder(tmp_path):
    make_music(tmp_path)
    seen = []
    results = evaluate(
        BandSeparator(), read_benchmark(tmp_path, 'music'), progress=lambda done, total: seen.append((done, total))
    )
    assert results.sdri > 15
    assert len(results.items) == 4
    assert (seen[0], seen[-1]) == ((0, 4), (4, 4))
    by_class = [[i.scores['separated']['SDRi'] for i in results.items if i.item.label == kind] for kind in HERTZ]
    assert results.sdri == pytest.approx(np.mean([np.mean(values) for values in by_class]), abs=1e-6)


def test_items_that_cannot_be_scored_are_named_and_counted_by_reason(tmp_path):
    make_music(tmp_path, kinds=KINDS + ['hiss'] * 5, others=OTHERS + ['low hum'] * 5)
    (tmp_path / 'mixture-4.wav').unlink()
    (tmp_path / 'segment-5.wav').write_text('not a sound')
    write_audio(tmp_path / 'segment-6.wav', np.zeros((1, 5)), 16000)
    write_audio(tmp_path / 'segment-7.wav', np.zeros((1, 8000)), 16000)
    for name in ('segment-8.wav', 'mixture-8.wav'):
        write_audio(tmp_path / name, np.zeros((1, 0)) if name[0] == 's' else np.zeros((1, 1)), 48000)
    with (tmp_path / 'music_eval.csv').open('a') as file:
        file.write('9,,x,y\n1,hiss,x,y\n10\n\n11,a,b,c,d\n')
    results = evaluate(BandSeparator(), read_benchmark(tmp_path))
    # Row 1 occurs twice, with two captions: the original scores both.
    assert [item.item.name for item in results.items] == ['0', '1', '2', '3', '7', '1 (line 12)']
    assert results.counts == {'bad row': 3, 'length': 1, 'missing': 1, 'unreadable': 2}
    expected = ['line 13', 'line 15', 'line 11', 'mixture-4.wav: no such', 'segment-5', 'segment-6', 'segment-8']
    for part, left in zip(expected, results.left_out, strict=True):
        assert part in left.message
        assert '\n' not in left.message
    assert 'the mixture has 4000 samples at 8000 Hz, but its target segment-6.wav has 3' in results.left_out[5].message


def test_rows_exist_with_and_without_silent_targets(tmp_path):
    make_music(tmp_path)
    write_audio(tmp_path / 'segment-0.wav', np.zeros((1, 8000)), 16000)
    results = evaluate(BandSeparator(), read_benchmark(tmp_path))
    assert results.silent_targets == ('0',)
    own = [item.scores['separated']['SDRi'] for item in results.items]
    # The original averages within classes ('low hum' has items 0 and 1), and then over the three classes.
    assert results.sdri == pytest.approx(np.mean([np.mean(own[:2]), own[2], own[3]]), abs=1e-6)
    [row, *_] = results.rows_without_silent
    assert row.n == 3
    assert row.sdri == pytest.approx(np.mean(own[1:]), abs=1e-6)
    names = [name for name, _ in results.lines()]
    assert 'separated, without 1 silent target' in names
    # The original's floor: the power of the target counts as 1e-10.
    loaded = load_item(results.items[0].item, CONFIG.sample_rate)
    sdr = results.items[0].scores['no separation']['SDR']
    assert sdr == pytest.approx(calculate_sdr(loaded.target, loaded.mixture), abs=1e-3)


def test_several_types_of_query_are_one_table(tmp_path):
    header = 'idx,caption,labels,src_wav,noise_wav'
    make_numbered(tmp_path, 'audiocaps_eval.csv', header, lambda i, kind: [f'sound of a {kind}', OTHERS[i]])
    write_table(tmp_path / 'mine.csv', 'idx,caption', [[0, 'low hum'], [2, 'whistle'], [9, 'hiss']])
    benchmark = read_benchmark(tmp_path, 'audiocaps', captions=tmp_path / 'mine.csv')
    results = evaluate(BandSeparator(), benchmark, query_types=benchmark.query_types)
    rows = rows_of(results)
    names = ['separated, caption', 'separated, label', 'separated, captions of mine.csv']
    assert list(rows) == [*names, *ROWS[1:]]
    assert rows[names[0]].sdri > 15
    assert rows[names[1]].sdri < 1  # the labels here name the other sound
    assert rows[names[2]].n == 2
    assert results.sdri == rows[names[0]].sdri
    assert any('2 of 4 items' in note for note in results.notes)
    with pytest.raises(ConfigError, match=r'has no x queries, but caption, label, captions of mine\.csv'):
        evaluate(BandSeparator(), benchmark, query_types=['x'])


def test_a_killed_evaluation_continues(tmp_path):
    make_music(tmp_path / 'data')

    class Killed(BandSeparator):
        def separate_batch(self, mixtures, embeddings, *, batch_size):
            if self.calls == 1:
                raise KeyboardInterrupt
            return super().separate_batch(mixtures, embeddings, batch_size=batch_size)

    benchmark, options = read_benchmark(tmp_path / 'data'), Options(batch_size=1)
    whole = evaluate(BandSeparator(), benchmark, options)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Killed(), benchmark, options, journal=tmp_path / 'out')
    with (tmp_path / 'out' / 'scores-00000.jsonl').open('a') as file:
        file.write('{"key": "0123", "sco')
    separator = BandSeparator()
    continued = evaluate(separator, benchmark, options, journal=tmp_path / 'out')
    assert separator.calls == 3
    assert continued.to_dict() == whole.to_dict()
    again = BandSeparator()
    assert evaluate(again, benchmark, options, journal=tmp_path / 'out').to_dict() == whole.to_dict()
    assert again.calls == 0


def test_damaged_scores_are_computed_again_with_a_note(tmp_path):
    make_music(tmp_path / 'data')
    benchmark, options = read_benchmark(tmp_path / 'data'), Options(batch_size=1)
    whole = evaluate(BandSeparator(), benchmark, options, journal=tmp_path / 'out')
    path = tmp_path / 'out' / 'scores-00000.jsonl'
    lines = path.read_bytes().splitlines(keepends=True)
    digit = lines[1].index(b'"SDR": ') + 7
    lines[1] = lines[1][:digit] + b'9' + lines[1][digit:]
    lines[2] = b'{"key": ' + lines[2].split()[1] + b' "scores": [1, 2]}\n'  # of another shape
    path.write_bytes(b''.join(lines))
    separator = BandSeparator()
    results = evaluate(separator, benchmark, options, journal=tmp_path / 'out')
    assert separator.calls == 2
    assert results.rows == whole.rows
    assert results.notes == (*whole.notes, 'kept scores that do not match their checksums were computed again: 1')
    assert evaluate(BandSeparator(), benchmark, options, journal=tmp_path / 'out').notes == whole.notes


def test_stored_scores_are_of_these_weights_texts_and_files(tmp_path):
    make_music(tmp_path / 'data')
    benchmark, out = read_benchmark(tmp_path / 'data'), tmp_path / 'out'
    evaluate(BandSeparator(), benchmark, Options(batch_size=1), journal=out)

    def computed(separator, benchmark, **options):
        evaluate(separator, benchmark, Options(batch_size=1, **options), journal=out)
        return separator.calls

    assert computed(NoQuerySeparator(), benchmark) == 4
    assert computed(BandSeparator(), benchmark, shuffled=False) == 4
    assert computed(BandSeparator(), read_benchmark(tmp_path / 'data', query='a far whistle')) == 4
    write_pair(tmp_path / 'data' / 'segment-2.wav', tmp_path / 'data' / 'mixture-2.wav', 'hiss', 'low hum')
    assert computed(BandSeparator(), benchmark) == 1
    assert computed(BandSeparator(), benchmark) == 0


def test_dcase_is_scored_at_its_own_rate(tmp_path):
    """The model works at 8 kHz, but mixtures are made and scored at 16 kHz, at the SNR in the table."""
    sounds = tmp_path / 'lass_validation'
    for kind in HERTZ:
        write_pair(sounds / f'{kind}.wav', tmp_path / 'unused.wav', kind, kind, rate=16000, channels=1)
    rows = [['low hum', 'hiss', 0, 'low hum'], ['hiss', 'whistle', -5, 'hiss'], ['whistle', 'low hum', 10, 'whistle']]
    write_table(tmp_path / 'lass_synthetic_validation.csv', 'source,noise,snr,query', rows)
    results = evaluate(BandSeparator(), read_benchmark(tmp_path))
    assert results.sample_rate == 16000
    before = [item.scores['no separation']['SDR'] for item in results.items]
    assert before == pytest.approx([0, -5, 10], abs=1e-2)
    assert rows_of(results)['separated'].scores['SDR'].value > 15
    assert any("separated at the model's rate of 8000 Hz" in note for note in results.notes)


def test_validation_while_training(tmp_path):
    make_music(tmp_path)
    assert validate(BandSeparator(), tmp_path).sdri > 15
    few = validate(BandSeparator(), tmp_path, benchmark='music', most_items=2)
    assert [item.item.name for item in few.items] == ['0', '2']


def test_a_training_state_on_all_devices_can_be_validated(tmp_path):
    from audiosep_jax.parallel.mesh import make_mesh, replicated

    make_music(tmp_path, samples=2000)
    variables = jax.jit(lambda: init_variables(CONFIG, jax.random.key(0)), out_shardings=replicated(make_mesh()))()
    encoder = WordsEncoder(CONFIG.condition_size)
    alone = validate(Separator(CONFIG, jax.device_get(variables), encoder), tmp_path)
    assert validate(Separator(CONFIG, variables, encoder), tmp_path).sdri == pytest.approx(alone.sdri, abs=1e-4)


def test_weights_have_a_fingerprint():
    variables = init_variables(CONFIG, jax.random.key(0))
    separator = Separator(CONFIG, variables)
    assert separator.fingerprint() == Separator(CONFIG, jax.device_get(variables)).fingerprint()
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed['batch_stats'] = jax.tree.map(lambda leaf: leaf + 1, changed['batch_stats'])
    assert separator.fingerprint() != Separator(CONFIG, changed).fingerprint()


def test_nothing_to_evaluate(tmp_path):
    with pytest.raises(DataError, match='no items'):
        evaluate(BandSeparator(), Benchmark('x', 'x', ()))
    with pytest.raises(ValueError, match='differ in number'):
        evaluate_arrays(BandSeparator(), [np.zeros(9)], [np.zeros(9)], [])
    make_music(tmp_path)
    for path in tmp_path.glob('*.wav'):
        path.unlink()
    with pytest.raises(DataError, match=r'none of the 4 items could be scored; the first: .*no such file'):
        evaluate(BandSeparator(), read_benchmark(tmp_path))
    for wrong in ({'batch_size': 0}, {'seed': -1}):
        with pytest.raises(ConfigError):
            Options(**wrong)


def test_long_items_are_scored_too(tmp_path):
    make_music(tmp_path)

    class Short(BandSeparator):
        max_whole_seconds = 0.1

    results = evaluate(Short(), read_benchmark(tmp_path))
    assert results.sdri > 15
    assert dataclasses.asdict(results.rows[0]) == dataclasses.asdict(
        evaluate(BandSeparator(), read_benchmark(tmp_path)).rows[0]
    )


def test_an_item_without_a_text_of_the_query_type_is_left_out(tmp_path):
    header = 'idx,caption,labels,src_wav,noise_wav'
    make_numbered(tmp_path, 'audiocaps_eval.csv', header, lambda i, kind: ['' if i == 0 else kind, kind])
    benchmark = read_benchmark(tmp_path)
    results = evaluate(BandSeparator(), benchmark, Options(batch_size=1, shuffled=False))
    assert results.counts == {'bad row': 1}
    assert 'has no text of the query type' in results.left_out[0].message
    both = rows_of(evaluate(BandSeparator(), benchmark, Options(shuffled=False), query_types=['caption', 'label']))
    assert next(iter(both)) == 'separated, caption'
    assert (both['separated, caption'].n, both['separated, label'].n, both['no separation'].n) == (3, 4, 4)
