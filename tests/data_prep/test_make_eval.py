"""`python -m data_prep make-eval`: each benchmark from small trees of its source dataset."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.band_separator import BandSeparator

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import ConfigError, DataError, LeftOutError
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate
from data_prep import make_eval as module
from data_prep.__main__ import main
from data_prep.make_eval import make_eval, mix

RATE = 8000
ESC50 = 'idx,caption,src_wav,noise_wav'


def write_sound(path, seed, seconds=0.1, rate=16000, level=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = np.random.default_rng(seed).uniform(-level, level, (1, int(seconds * rate)))
    write_audio(path, audio.astype(np.float32), rate)


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([header.split(','), *rows])


def energy(path):
    return float(np.mean(read_audio(path)[0].astype(np.float64) ** 2))


def ratio_db(folder, target, mixture):
    parts = [read_audio(folder / name)[0].astype(np.float64) for name in (target, mixture)]
    return 10 * np.log10(np.mean(parts[0] ** 2) / np.mean((parts[1] - parts[0]) ** 2))


def make_esc50(folder):
    for i in range(4):
        write_sound(folder / 'ESC-50-master' / 'audio' / f'{i}-A.wav', i, seconds=0.1 + 0.02 * i)
    write_table(folder / 'esc50_eval.csv', ESC50, [[i, 'dog', f'{i}-A.wav', f'{(i + 1) % 4}-A.wav'] for i in range(4)])


def test_esc50_is_mixed_and_evaluated(tmp_path):
    make_esc50(tmp_path / 'source')
    made = make_eval('esc50', tmp_path / 'source', tmp_path / 'out', sample_rate=RATE)
    assert (made.num_made, made.num_there, made.left_out) == (4, 0, ())
    for i in range(4):
        assert ratio_db(tmp_path / 'out', f'segment-{i}.wav', f'mixture-{i}.wav') == pytest.approx(0, abs=0.02)
        # As long as the target, whatever the noise's length.
        assert read_audio(tmp_path / 'out' / f'mixture-{i}.wav')[0].shape == (1, round((0.1 + 0.02 * i) * RATE))
    benchmark = read_benchmark(tmp_path / 'out')
    assert (benchmark.name, len(benchmark.items)) == ('esc50', 4)
    assert len(evaluate(BandSeparator(), benchmark, Options(shuffled=False)).items) == 4


def test_the_ratio_is_a_setting_and_stays_that_of_the_folder(tmp_path):
    make_esc50(tmp_path / 'source')
    make_eval('esc50', tmp_path / 'source', tmp_path / 'out', sample_rate=RATE, snr_db=-5)
    assert ratio_db(tmp_path / 'out', 'segment-1.wav', 'mixture-1.wav') == pytest.approx(-5, abs=0.05)
    with pytest.raises(ConfigError, match=r'begun with other settings \(snr_db was -5, is 0\.0\)'):
        make_eval('esc50', tmp_path / 'source', tmp_path / 'out', sample_rate=RATE)


def test_a_killed_run_continues_to_the_same_bytes(tmp_path, monkeypatch):
    make_esc50(tmp_path / 'source')
    make_eval('esc50', tmp_path / 'source', tmp_path / 'whole', sample_rate=RATE)
    real, count = module.write_together, []

    def killed(files, rate):
        count.append(files)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(files, rate)

    monkeypatch.setattr(module, 'write_together', killed)
    with pytest.raises(KeyboardInterrupt):
        make_eval('esc50', tmp_path / 'source', tmp_path / 'out', sample_rate=RATE)
    monkeypatch.setattr(module, 'write_together', real)
    made = make_eval('esc50', tmp_path / 'source', tmp_path / 'out', sample_rate=RATE, jobs=3)
    assert made.num_there in (2, 3)
    assert made.num_made == 4 - made.num_there
    contents = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ('whole', 'out')]
    assert contents[0] == contents[1]


def test_audiocaps_finds_videos_under_their_downloaders_names(tmp_path):
    source = tmp_path / 'source'
    for i, name in enumerate(['Yaaaaaaaaaaa.wav', 'bbbbbbbbbbb_30.flac', 'Yccccccccccc_000010.wav', 'ddddddddddd.ogg']):
        write_sound(source / 'test' / name, i)
    for name in ('eeeeeeeeeee_10.wav', 'eeeeeeeeeee_20.wav'):
        write_sound(source / name, 9)
    ids = [letter * 11 for letter in 'abcde']
    rows = [[i, 'x', 'y', f'Y{ids[i]}.wav', f'Y{ids[i + 1]}.wav'] for i in range(4)]
    write_table(tmp_path / 'meta' / 'audiocaps_eval.csv', 'idx,caption,labels,src_wav,noise_wav', rows)
    made = make_eval('audiocaps', source, tmp_path / 'out', metadata=tmp_path / 'meta', sample_rate=RATE)
    assert made.num_made == 3
    [left] = made.left_out
    assert (left.reason, left.id) == ('missing', 'audiocaps 3')
    assert 'several files may be meant' in left.message


def test_clotho_has_two_noises_of_the_same_energy(tmp_path):
    names = ['Santa Motor.wav', 'Foz, fisherman.wav', 'hum .wav']
    for i, name in enumerate(names):
        write_sound(tmp_path / 'evaluation' / name, i, level=(0.2, 0.01, 0.5)[i])
    header = 'idx,caption,src_wav,noise_wav1,noise_wav1'
    write_table(tmp_path / 'clotho_eval.csv', header, [[0, 'A machine whines.', *names]])
    assert make_eval('clotho', tmp_path, tmp_path / 'out', sample_rate=16000).num_made == 1
    assert ratio_db(tmp_path / 'out', 'segment-0.wav', 'mixture-0.wav') == pytest.approx(0, abs=0.02)
    target, mixture, *noises = (
        read_audio(path)[0][0].astype(np.float64)
        for path in [tmp_path / 'out' / 'segment-0.wav', tmp_path / 'out' / 'mixture-0.wav']
        + [tmp_path / 'evaluation' / name for name in names[1:]]
    )
    shares = [np.dot(mixture - target, noise) / np.linalg.norm(noise) for noise in noises]
    assert shares[0] == pytest.approx(shares[1], rel=0.05)


def test_music_is_cut_from_videos(tmp_path):
    write_sound(tmp_path / 'violin' / 'aaaaaaaaaaa.wav', 0, seconds=25, rate=2000)
    write_sound(tmp_path / 'tuba' / 'Ybbbbbbbbbbb_3.wav', 1, seconds=10, rate=2000)
    rows = [[0, 'violin', 'Yaaaaaaaaaaa_1.wav', 'Ybbbbbbbbbbb_3.wav'], [1, 'violin', 'Yaaaaaaaaaaa_7.wav', 'x.wav']]
    write_table(tmp_path / 'music_eval.csv', ESC50, rows)
    made = make_eval('music', tmp_path, tmp_path / 'out', sample_rate=2000)
    assert made.num_made == 1
    assert 'ends before the part that begins at 70 s' in made.left_out[0].message
    whole = read_audio(tmp_path / 'violin' / 'aaaaaaaaaaa.wav')[0]
    target = read_audio(tmp_path / 'out' / 'segment-0.wav')[0]
    np.testing.assert_allclose(target, whole[:, 20000:40000], atol=1e-4)


def test_vggsound_has_both_sounds(tmp_path):
    write_sound(tmp_path / 'aaaaaaaaaaa_000030.wav', 0)
    write_sound(tmp_path / 'bbbbbbbbbbb_1_11.wav', 1)
    stem = 'aaaaaaaaaaa_000030+++bbbbbbbbbbb_000001'
    header = 'file_id,mix_wav,s0_wav,s0_text,s1_wav,s1_text'
    good = [stem, *(f'data/{kind}/{stem}.wav' for kind in ('mix_wav', 's0_wav'))]
    rows = [[*good, 'playing accordion', f'data/s1_wav/{stem}.wav', 'sea lion barking']]
    rows.append([f'{stem}x', '../../outside.wav', 'a.wav', 'x', 'b.wav', 'y'])
    write_table(tmp_path / 'vggsound_eval.csv', header, rows)
    made = make_eval('vggsound', tmp_path, tmp_path / 'out', sample_rate=RATE)
    assert made.num_made == 1
    assert [left.reason for left in made.left_out] == ['unreadable']
    assert not list(tmp_path.rglob('outside.wav'))
    data = tmp_path / 'out' / 'data'
    assert energy(data / 's0_wav' / f'{stem}.wav') == pytest.approx(energy(data / 's1_wav' / f'{stem}.wav'), rel=0.01)
    parts = [read_audio(data / kind / f'{stem}.wav')[0] for kind in ('mix_wav', 's0_wav', 's1_wav')]
    np.testing.assert_allclose(parts[0], parts[1] + parts[2], atol=1e-4)
    results = evaluate(BandSeparator(), read_benchmark(tmp_path / 'out'), Options(shuffled=False))
    assert ([item.item.name for item in results.items], results.counts) == ([stem], {'missing': 1})


def test_audioset_mixes_clips_that_share_no_class(tmp_path):
    mids = {'/m/0': 'Speech', '/m/1': 'Dog', '/m/2': 'Rain'}
    rows = [[i, mid, name] for i, (mid, name) in enumerate(mids.items())]
    write_table(tmp_path / 'class_labels_indices.csv', 'index,mid,display_name', rows)
    lines = ['# a', '# b', '# YTID, start_seconds, end_seconds, positive_labels']
    labels = {}
    for i in range(24):
        name = f'{i:011d}'
        labels[i] = [f'/m/{i % 3}'] + (['/m/1'] if i % 5 == 0 and i % 3 != 1 else [])
        lines.append(f'{name}, 30.000, 40.000, "{",".join(labels[i])}"')
        write_sound(tmp_path / 'eval' / f'{name}_30.wav', i)
    (tmp_path / 'eval_segments.csv').write_text('\n'.join(lines) + '\n')
    first = make_eval('audioset', tmp_path, tmp_path / 'out', sample_rate=RATE)
    names = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.wav'))
    assert first.num_made == 8 + 10 + 8
    assert len(names) == 2 * first.num_made
    benchmark = read_benchmark(tmp_path / 'out')
    assert (benchmark.name, len(benchmark.items), benchmark.bad_rows) == ('audioset', 26, ())
    table = tmp_path / 'class_labels_indices.csv'
    for seed in (0, 1):
        recipes, find = module._audioset_recipes(tmp_path, table, seed, [])
        for recipe in recipes:
            target, noise = (int(find(n).path.stem.split('_')[0]) for n in (recipe.target, *recipe.noises))
            assert not set(labels[target]) & set(labels[noise])
    again, _ = module._audioset_recipes(tmp_path, table, 1, [])
    assert again == recipes != module._audioset_recipes(tmp_path, table, 0, [])[0]


@settings(max_examples=30)
@given(
    st.integers(1, 300), st.lists(st.integers(1, 400), min_size=1, max_size=3), st.floats(-20, 20), st.integers(0, 9)
)
def test_mixtures_have_the_ratio_and_do_not_clip(samples, lengths, snr_db, seed):
    rng = np.random.default_rng(samples)
    target = rng.uniform(-1, 1, samples).astype(np.float32)
    noises = [rng.uniform(0.1, 1, n).astype(np.float32) for n in lengths]
    try:
        scaled, mixture, noise = mix(target, noises, snr_db)
    except LeftOutError:
        assert np.mean(target.astype(np.float64) ** 2) <= 1e-10
        return
    powers = [np.mean(x.astype(np.float64) ** 2) for x in (scaled, noise)]
    assert 10 * np.log10(powers[0] / powers[1]) == pytest.approx(snr_db, abs=1e-3)
    np.testing.assert_allclose(mixture, scaled + noise, atol=1e-6)
    assert max(np.abs(x).max() for x in (scaled, mixture, noise)) <= 1


def test_silence_cannot_be_mixed():
    silence, sound = np.zeros(9, np.float32), np.ones(9, np.float32)
    for target, noises, says in (
        (silence, [sound], 'target is silent'),
        (sound, [silence], 'noise is silent'),
        (sound, [np.zeros(0, np.float32)], 'noise is silent'),
        (sound, [np.array([0] * 9 + [1], np.float32)], 'as far as the target lasts'),
        (sound, [sound, -sound], 'cancel'),
    ):
        with pytest.raises(LeftOutError, match=says):
            mix(target, noises, 0.0)


def test_the_command_reports_what_is_missing(tmp_path, capsys):
    make_esc50(tmp_path / 'source')
    (tmp_path / 'source' / 'ESC-50-master' / 'audio' / '2-A.wav').unlink()
    flags = ['make-eval', 'esc50', '--source', str(tmp_path / 'source'), '--out', str(tmp_path / 'out')]
    assert main(flags) == 1
    captured = capsys.readouterr()
    assert '2 mixtures made now, 0 were there, 2 left out' in captured.out
    assert 'left out (missing): esc50 1: 2-A.wav: no such sound below' in captured.err
    with (tmp_path / 'out' / 'left_out.csv').open() as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [['esc50 1', 'missing'], ['esc50 2', 'missing']]
    write_sound(tmp_path / 'source' / 'found' / '2-A.wav', 2)
    assert main(flags) == 0
    assert '2 mixtures made now, 2 were there, 0 left out' in capsys.readouterr().out
    assert not (tmp_path / 'out' / 'left_out.csv').exists()
    assert json.loads((tmp_path / 'out' / 'make_eval.json').read_text())['sample_rate'] == 32000


@pytest.mark.parametrize(
    ('spoil', 'error', 'says'),
    [
        (lambda source: (source / 'esc50_eval.csv').unlink(), DataError, 'no esc50_eval.csv in it: give --metadata'),
        (lambda source: (source / 'esc50_eval.csv').write_text('a,b\n'), DataError, '2 columns, expected the 4'),
        (lambda source: (source / 'esc50_eval.csv').write_text(ESC50), DataError, 'lists no mixture'),
        (lambda source: (source / 'esc50_eval.csv').write_text(f'{ESC50}\n,x,y,z\n'), DataError, 'no mixture.*line 2'),
        (lambda source: (source / 'esc50_eval.csv').write_text(''), DataError, '0 columns'),
    ],
)
def test_tables_that_are_none(tmp_path, spoil, error, says):
    make_esc50(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=says):
        make_eval('esc50', tmp_path, tmp_path / 'out')


def test_settings_that_cannot_be(tmp_path):
    make_esc50(tmp_path / 'source')
    for wrong, says in (({'snr_db': float('nan')}, '--snr nan'), ({'sample_rate': 0}, '--sample-rate 0')):
        with pytest.raises(ConfigError, match=says):
            make_eval('esc50', tmp_path / 'source', tmp_path / 'out', **wrong)
    with pytest.raises(ConfigError, match='make-eval knows audiocaps'):
        make_eval('dcase2024', tmp_path / 'source', tmp_path / 'out')
    with pytest.raises(DataError, match='cannot be written'):
        make_eval('esc50', tmp_path / 'source', tmp_path / 'a' / 'b')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='no sounds in it'):
        make_eval('esc50', tmp_path / 'empty', tmp_path / 'out', metadata=tmp_path / 'source')
