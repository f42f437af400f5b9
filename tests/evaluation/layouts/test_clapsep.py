"""CLAPSep's tables: how they are recognized and mixed, and what is asked of each mixture."""

import numpy as np
import pytest
from support.band_separator import BandSeparator, make_music, rows_of, sound, write_table

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.layouts.clapsep import TABLES
from audiosep_jax.evaluation.loading import load_item
from audiosep_jax.evaluation.protocols import PROTOCOLS, detect, read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate
from audiosep_jax.separation.exclusion import exclude
from audiosep_jax.separation.queries import embed

HEADER = 'source_file,positive_caption,noise_file,negative_caption'
ROWS = [
    ['hum.wav', 'low hum', 'whistle.wav', 'whistle'],
    ['hum.wav', 'low hum', 'hiss.wav', 'hiss'],
    ['hiss.wav', 'The sound of hiss', 'whistle.wav', 'the sound of whistle'],
]


class AskedSeparator(BandSeparator):
    """Also takes queries that exclude sounds."""

    def prepare(self, queries):
        return embed(queries, self.encoder, self.config.condition_size)


@pytest.fixture
def clips(tmp_path):
    """Clips of 0.25, 0.5 and 12 s in sub-folders, one of them stereo, and the table beside them."""
    for i, (name, seconds) in enumerate({'low hum': 12, 'whistle': 0.5, 'hiss': 0.25}.items()):
        path = tmp_path / 'clips' / ('test' if i else 'val') / f'{name.split()[-1]}.{"flac" if i == 2 else "wav"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, np.tile(sound(name, samples=int(8000 * seconds)), (1 + i % 2, 1)), 8000)
    write_table(tmp_path / 'clips' / 'audiocaps_eval.csv', HEADER, ROWS)
    return tmp_path / 'clips'


@pytest.mark.parametrize('name', TABLES)
def test_the_columns_say_whose_table_it_is(tmp_path, name):
    """AudioSep has tables of the same names."""
    write_table(tmp_path / 'x' / TABLES[name].file, HEADER, ROWS)
    assert detect(tmp_path / 'x') == name
    assert detect(tmp_path, tmp_path / 'x') == name
    assert PROTOCOLS[name].num_items == TABLES[name].num_items
    make_music(tmp_path / 'y')
    assert detect(tmp_path / 'y') == 'music'


def test_items(clips, tmp_path):
    benchmark = read_benchmark(clips)
    assert benchmark.name == 'clapsep-audiocaps'
    first, _, last = benchmark.items
    assert (first.target, first.noise) == (clips / 'val' / 'hum.wav', clips / 'test' / 'whistle.wav')
    assert (first.queries, first.unwanted) == ({'caption': 'low hum'}, 'whistle')
    assert (first.label, first.other, first.group, first.snr_db) == ('', '', 'hum.wav', 0)
    assert (last.label, last.other) == ('hiss', 'whistle')
    assert last.target == clips / 'test' / 'hiss.flac'
    assert len({item.name for item in benchmark.items}) == 3
    assert benchmark.notes[0] == '3 items here, the complete benchmark has 4785'
    (clips / 'audiocaps_eval.csv').rename(tmp_path / 'audiocaps_eval.csv')
    assert read_benchmark(clips, 'clapsep-audiocaps', metadata=tmp_path).items == benchmark.items


def test_mixtures_are_ten_seconds_at_0_db(clips):
    for item, audible in zip(read_benchmark(clips).items, (10, 10, 0.25), strict=True):
        loaded = load_item(item, 8000)
        assert loaded.mixture.shape == loaded.target.shape == (80_000,)
        noise = loaded.mixture - loaded.target
        assert np.mean(noise**2) == pytest.approx(np.mean(loaded.target**2), rel=1e-3)
        assert np.abs(loaded.mixture).max() <= 0.9001 or np.abs(loaded.mixture).max() <= 1
        assert not loaded.target[int(8000 * audible) :].any()


def test_bad_rows_and_missing_clips(clips):
    write_table(
        clips / 'audiocaps_eval.csv',
        HEADER,
        [
            *ROWS,
            ['hum.wav', '', 'whistle.wav', 'x'],
            ['none.wav', 'a', 'hum.wav', 'b'],
            ['hum.wav', 'a', 'gone.wav', 'b'],
        ],
    )
    results = evaluate(AskedSeparator(), read_benchmark(clips), Options(shuffled=False))
    assert [left.reason for left in results.left_out] == ['bad row', 'missing', 'missing']
    assert 'none.wav' in results.left_out[1].message
    write_table(clips / 'audiocaps_eval.csv', 'source_file,caption', [['hum.wav', 'x']])
    with pytest.raises(DataError, match='no column positive_caption and noise_file and negative_caption'):
        read_benchmark(clips, 'clapsep-audiocaps')


def test_each_mixture_is_asked_three_times(clips):
    separator, benchmark = AskedSeparator(), read_benchmark(clips)
    results = evaluate(separator, benchmark)
    rows = rows_of(results)
    excluded, removed = 'separated, the other excluded', 'separated, the other removed'
    assert list(rows)[:3] == ['separated', excluded, removed]
    assert [rows[row].n for row in (excluded, removed)] == [3, 3]
    # It knows all three sounds: what is left without the other is the target.
    assert min(rows[row].sdri for row in ('separated', excluded, removed)) > 15

    # By hand, for the first mixture.
    loaded = load_item(benchmark.items[0], 8000)
    target, other = separator.separate_batch(
        [loaded.mixture] * 2, separator.embed(['low hum', 'whistle']), batch_size=2
    )
    sizes = {'window_size': separator.config.window_size, 'hop_size': separator.config.hop_size}
    expected = exclude(target[None], other[None, None], **sizes)[0]

    def sdr(estimate):
        return 10 * np.log10(np.sum(loaded.target**2) / np.sum((loaded.target - estimate) ** 2))

    scores = results.items[0].scores
    assert scores[excluded]['SDR'] == pytest.approx(sdr(expected), abs=0.02)
    assert scores[removed]['SDR'] == pytest.approx(sdr(loaded.mixture - other), abs=0.02)
    assert results.items[0].texts == {
        'separated': 'low hum', excluded: 'low hum', removed: 'whistle',
        'shuffled query': results.items[0].texts['shuffled query'],
    }  # fmt: skip


def test_a_query_that_excludes_itself_is_left_out_of_that_row_alone(clips):
    write_table(clips / 'audiocaps_eval.csv', HEADER, [*ROWS, ['hum.wav', 'low hum', 'hiss.wav', 'low hum']])
    results = evaluate(AskedSeparator(), read_benchmark(clips), Options(shuffled=False))
    rows = rows_of(results)
    assert rows['separated'].n == 4
    assert rows['separated, the other excluded'].n == 3
    assert len(results.left_out) == 0


def test_scores_are_kept(clips, tmp_path):
    benchmark, separator = read_benchmark(clips), AskedSeparator()
    first = evaluate(separator, benchmark, journal=tmp_path / 'journal')
    calls = separator.calls
    again = evaluate(separator, benchmark, journal=tmp_path / 'journal')
    assert separator.calls == calls
    assert again.to_dict() == first.to_dict()


def test_own_tables_may_name_what_to_exclude(tmp_path):
    make_music(tmp_path / 'music')
    rows = [['mixture-0.wav', 'segment-0.wav', 'low hum', 'whistle'], ['mixture-1.wav', 'segment-1.wav', 'low hum', '']]
    write_table(tmp_path / 'music' / 'own.csv', 'mixture,target,query,unwanted', rows)
    results = evaluate(AskedSeparator(), read_benchmark(tmp_path / 'music' / 'own.csv'), Options(shuffled=False))
    rows = rows_of(results)
    assert rows['separated'].n == 2
    assert rows['separated, the other excluded'].n == rows['separated, the other removed'].n == 1
