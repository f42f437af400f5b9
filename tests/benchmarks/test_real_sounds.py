"""benchmarks/real_sounds.py: clips out of folders and tiny packages, without a network."""

import csv
import json
import zipfile

import numpy as np
import pytest

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import DataError
from data_prep.datasets.manifest import read_manifest

COLUMNS = ['file', 'class', 'package', 'path', 'caption', 'samples', 'start', 'stop', 'at']


@pytest.fixture
def real(benchmarks_on_path):
    import real_sounds

    return real_sounds


def tone(count, rate=32000, hertz=440.0, channels=1):
    sound = 0.5 * np.sin(2 * np.pi * hertz * np.arange(count) / rate)
    return np.repeat(sound[None].astype(np.float32), channels, axis=0)


def row(file, package, path, samples, at, label='dog', start=0, stop=None):
    stop = samples if stop is None else stop
    return [f'clips/{file}.flac', label, package, path, f'a {label}', samples, start, stop, at]


@pytest.fixture
def write_list(tmp_path):
    def write(*rows, columns=COLUMNS):
        with (tmp_path / 'list.csv').open('w', newline='') as file:
            csv.writer(file).writerows([columns, *rows])
        return tmp_path / 'list.csv'

    return write


@pytest.fixture
def packages(tmp_path):
    """A folder of two unpacked packages: one with a file, one with an archive."""
    folder = tmp_path / 'packages'
    for name in ('barks', 'game-data'):
        (folder / name / 'usr' / 'share').mkdir(parents=True)
    write_audio(folder / 'barks' / 'usr' / 'share' / 'dog.wav', tone(16000), 32000)
    write_audio(tmp_path / 'gun.flac', tone(44100, 44100, 1000.0, channels=2), 44100)
    with zipfile.ZipFile(folder / 'game-data' / 'usr' / 'share' / 'pak0.PK3', 'w') as archive:
        archive.write(tmp_path / 'gun.flac', 'sound/gun.flac')
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'


ROWS = [
    row('dog_00', 'barks', 'usr/share/dog.wav', 16000, '1000 40000 150000'),
    row('dog_01', 'barks', 'usr/share/dog.wav', 16000, '0', start=100, stop=9000),
    row('gun_00', 'game-data', 'sound/gun.flac', 32000, 'loop', label='gun'),
]


def test_clips_of_five_seconds_with_captions_and_sources(real, packages, write_list, out, capsys):
    real.main(out, packages, sounds=write_list(*ROWS))
    manifest = read_manifest(out / 'train.json')
    assert [(entry.wav, entry.captions, entry.labels) for entry in manifest.entries] == [
        ('clips/dog_00.flac', ('a dog',), ('dog',)),
        ('clips/dog_01.flac', ('a dog',), ('dog',)),
        ('clips/gun_00.flac', ('a gun',), ('gun',)),
    ]
    for entry in manifest.entries:
        audio, rate = read_audio(out / entry.wav)
        assert (audio.shape, rate) == ((1, 80000), 16000)
        # All are brought to the same level, unless a peak would be too large.
        assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.08, rel=1e-3) or np.abs(audio).max() == pytest.approx(
            0.95, rel=1e-2
        )
    with (out / 'sources.csv').open(newline='') as file:
        sources = list(csv.DictReader(file))
    assert [list(source.values()) for source in sources][2] == [
        'clips/gun_00.flac',
        'gun',
        'game-data',
        'sound/gun.flac',
    ]
    assert capsys.readouterr().out.splitlines()[-1].startswith('3 of 3 clips are in ')


def test_repeats_are_where_the_list_says_and_faded(real):
    part = np.ones(1000)
    clip = real.repeated(part, [100, 2000, real.LENGTH - 400])
    assert not clip[:100].any()
    np.testing.assert_allclose(clip[100:420], np.linspace(0, 1, 320))
    assert (clip[420:780] == 1).all()
    np.testing.assert_allclose(clip[780:1100], np.linspace(1, 0, 320))
    np.testing.assert_array_equal(clip[2000:3000], clip[100:1100])
    assert not clip[3000 : real.LENGTH - 400].any()
    assert clip[-1] == 1  # the clip's end cuts the last one
    assert (part == 1).all()


def test_repeats_may_be_shorter_than_two_fades(real):
    clip = real.repeated(np.ones(101), [0])
    np.testing.assert_allclose(clip[:50], np.linspace(0, 1, 50))
    assert clip[50] == 1
    assert not clip[101:].any()


def test_a_loop_keeps_its_power_where_it_is_cross_faded(real):
    noise = np.random.default_rng(0).standard_normal(20000)
    clip = real.looped(noise)
    assert len(clip) == real.LENGTH
    np.testing.assert_array_equal(clip[:18400], noise[:18400])
    np.testing.assert_array_equal(clip[20000:36800], noise[1600:18400])
    middle = np.mean([np.mean(clip[18400 * k : 18400 * k + 1600] ** 2) for k in range(1, 8)])
    assert middle == pytest.approx(1, rel=0.1)
    with pytest.raises(DataError, match='a loop needs more than 1600 samples'):
        real.looped(noise[:1600])


def test_the_sounds_of_a_clip_are_equally_loud_and_faded_where_the_first_begins(real, packages, write_list, out):
    write_audio(packages / 'barks' / 'usr' / 'share' / 'quiet.wav', 0.1 * tone(16000), 32000)
    parts = [
        row('dog_00', 'barks', 'usr/share/dog.wav', 16000, '0'),
        row('dog_00', 'barks', 'usr/share/quiet.wav', 16000, '80000', start=8000),
    ]
    real.main(out, packages, sounds=write_list(*parts))
    audio = read_audio(out / 'clips' / 'dog_00.flac')[0][0]
    whole = np.std(audio[1000:3000])
    assert whole > 0.1
    assert not np.abs(audio[8100:39900]).max() > 1e-3
    assert np.std(audio[40500:43500]) == pytest.approx(whole, rel=1e-2)
    assert np.std(audio[:80]) < 0.5 * whole
    for end in (audio[7900:7980], audio[40020:40100]):
        assert np.std(end) > 0.8 * whole
    assert len(json.loads((out / 'train.json').read_text())['data']) == 1


def test_what_cannot_be_had_is_named_and_left_out(real, packages, write_list, out, capsys):
    rows = [
        *ROWS,
        row('cow_00', 'farm', 'cow.ogg', 16000, '0'),
        row('cow_01', 'barks', 'usr/share/cow.ogg', 16000, '0'),
        row('cow_02', 'barks', 'usr/share/dog.wav', 15990, '0'),
        row('cow_03', 'barks', 'rcc/cow.ogg', 16000, '0'),
    ]
    real.main(out, packages, sounds=write_list(*rows))
    lines = capsys.readouterr().out.splitlines()
    left_out = [line for line in lines if line.startswith('left out: ')]
    assert len(left_out) == 4
    for line, end in zip(
        sorted(left_out),
        (
            f'farm: no farm_*.deb in {packages}',
            'usr/share/cow.ogg: is not in the package',
            'usr/share/dog.wav: is another version, 16000 samples long instead of 15990',
            'rcc/cow.ogg: is not in the package',
        ),
        strict=True,
    ):
        assert line.endswith(end)
    assert lines[-1].startswith('3 of 7 clips are in ')
    assert len(read_manifest(out / 'train.json')) == 3


def test_a_damaged_sound_is_named_by_its_path_in_the_package(real, packages, write_list, out, capsys):
    (packages / 'barks' / 'usr' / 'share' / 'dog.wav').write_bytes(b'RIFF no sound')
    real.main(out, packages, sounds=write_list(*ROWS))
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith('left out: clips/dog_00.flac: barks: usr/share/dog.wav: ')
    assert [entry.wav for entry in read_manifest(out / 'train.json').entries] == ['clips/gun_00.flac']


def test_the_next_run_goes_on_where_the_last_was_interrupted(real, packages, write_list, out, monkeypatch):
    sounds = write_list(*ROWS)
    make_clip = real.make_clip

    def interrupted(files, parts):
        if parts[0]['file'] == 'clips/dog_01.flac':
            raise KeyboardInterrupt
        return make_clip(files, parts)

    monkeypatch.setattr(real, 'make_clip', interrupted)
    with pytest.raises(KeyboardInterrupt):
        real.main(out, packages, sounds=sounds)
    assert [path.name for path in (out / 'clips').iterdir()] == ['dog_00.flac']
    before = (out / 'clips' / 'dog_00.flac').stat()
    made = []
    monkeypatch.setattr(real, 'make_clip', lambda files, parts: made.append(parts) or make_clip(files, parts))
    real.main(out, packages, sounds=sounds)
    assert [parts[0]['file'] for parts in made] == ['clips/dog_01.flac', 'clips/gun_00.flac']
    assert (out / 'clips' / 'dog_00.flac').stat().st_mtime_ns == before.st_mtime_ns
    # With all clips there, no package is needed.
    real.main(out, None, sounds=sounds)
    assert len(read_manifest(out / 'train.json')) == 3


def test_validation_has_packages_of_its_own(real, packages, write_list, out):
    rows = [*ROWS, row('dog_02', 'game-data', 'sound/gun.flac', 32000, '0')]
    real.main(out, packages, validation_share=0.6, sounds=write_list(*rows))
    sides = [[entry.wav for entry in read_manifest(out / f'{name}.json').entries] for name in ('train', 'validation')]
    assert sides == [['clips/gun_00.flac', 'clips/dog_02.flac'], ['clips/dog_00.flac', 'clips/dog_01.flac']]
    with pytest.raises(DataError, match='--validation-share must be between 0 and 1, got 1'):
        real.main(out, packages, validation_share=1.0, sounds=write_list(*rows))


@pytest.mark.parametrize(
    'bad',
    [
        row('../../dog', 'barks', 'dog.wav', 16000, '0'),
        row('dog', 'barks', 'dog.wav', 16000, 'often'),
        row('dog', 'barks', 'dog.wav', -1, '0'),
        row('dog', 'barks', 'dog.wav', '', '0'),
        row('dog', 'barks', 'dog.wav', 16000, ''),
        ['dog.flac', 'dog'],
    ],
)
def test_a_damaged_row_is_named(real, packages, write_list, out, bad):
    with pytest.raises(DataError, match='line 2: not a row of such a list'):
        real.main(out, packages, sounds=write_list(bad))


def test_another_table_is_refused(real, packages, write_list, out, tmp_path):
    with pytest.raises(DataError, match='must have the columns file, class, package'):
        real.main(out, packages, sounds=write_list(columns=['a', 'b']))
    with pytest.raises(DataError, match=r'none\.csv: cannot be read as a table'):
        real.main(out, packages, sounds=tmp_path / 'none.csv')


def test_the_list_is_whole_and_names_no_sound_twice(real):
    rows = real.read_list(real.LIST)
    assert real.LIST.stat().st_size < 200_000
    parts = [(row['file'], row['path']) for row in rows]
    assert len(set(parts)) == len(parts)
    assert len({row['class'] for row in rows}) >= 51
    for entry in rows:
        assert int(entry['start']) < int(entry['stop'])
        places = [] if entry['at'] == 'loop' else [int(text) for text in entry['at'].split()]
        assert all(place < real.LENGTH for place in places)
        assert places == sorted(places)
        assert entry['caption']
