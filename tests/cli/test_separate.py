"""`separate`: what may go in and come out besides one file, in a file or a pipe."""

import io
import json
import os
import sys

import numpy as np
import pytest
import soundfile
from support.quarter_separator import RATE, files, one_error, sound, write

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.cli.main import main
from audiosep_jax.separation.cancellation import warn_of_cancellation


def separate(*arguments):
    return main(['separate', *map(str, arguments), '--checkpoint', 'anything'])


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_folders_and_patterns(folder, quarter, capsys):
    for name in ('in/b.wav', 'in/a.flac', 'in/.hidden.wav', 'in/sub/c.wav', 'more/d[1].wav', 'more/e.wav'):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        write(name)
    (folder / 'in' / 'notes.txt').write_text('no sound')
    assert separate('in', 'more/*.wav', 'in/**/c.wav', '--query', 'a dog', '-o', 'out') == 0
    expected = [f'out/{stem}__a_dog.wav' for stem in ('a', 'b', 'd[1]', 'e', 'c')]
    assert capsys.readouterr().out.splitlines() == expected
    assert separate('more/d[1].wav', '--query', 'a dog', '-o', 'one.wav') == 0  # a file of that name is no pattern


def test_a_folder_without_sounds_and_a_pattern_without_matches(folder, quarter, capsys):
    (folder / 'empty').mkdir()
    write('a.wav')
    assert separate('empty', 'no*.wav', 'a.wav', '--query', 'a dog', '-o', 'out') == 1
    captured = capsys.readouterr()
    assert "empty: no sound files in this folder (sub-folders are not searched: use 'empty/**/*.wav')" in captured.err
    assert 'no*.wav: nothing matches' in captured.err
    assert captured.out == 'out/a__a_dog.wav\n'


def test_stems_that_are_alike_keep_their_suffixes(folder, quarter):
    write('talk.wav')
    write('Talk.flac')
    write('other.wav')
    assert separate('talk.wav', 'Talk.flac', 'other.wav', '--query', 'a dog', '-o', 'out') == 0
    assert files(folder / 'out') == ['Talk.flac__a_dog.wav', 'other__a_dog.wav', 'talk.wav__a_dog.wav']


def test_names_that_are_alike_keep_as_much_of_their_folders_as_tells_them_apart(folder, quarter):
    for name in ('in/a.wav', 'in/sub/A.wav', 'in/sub/deep/a.wav', 'in/sub/b.wav', 'in/sub/b.flac', 'other/b.wav'):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        write(name)
    assert separate('in/**/*.wav', 'in/sub/b.flac', 'other/b.wav', '--query', 'a dog', '-o', 'out') == 0
    stems = ['a', 'b.flac', 'in-sub-b.wav', 'other-b.wav', 'sub-A', 'sub-deep-a']
    assert files(folder / 'out') == [f'{stem}__a_dog.wav' for stem in stems]


@pytest.mark.parametrize(('container', 'codec'), [('m4a', 'aac'), ('mkv', 'pcm_s16le')])
def test_containers(folder, quarter, container, codec):
    av = pytest.importorskip('av')
    x = np.repeat(sound(samples=RATE), 2, axis=0)[::2]
    with av.open(f'in.{container}', 'w') as file:
        stream = file.add_stream(codec, rate=RATE, layout='stereo')
        for start in range(0, RATE, 1024):
            block = np.ascontiguousarray(x[:, start : start + 1024])
            if codec == 'aac':
                frame = av.AudioFrame.from_ndarray(block, format='fltp', layout='stereo')
            else:
                packed = np.round(block.T * 32768).astype(np.int16).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(packed, format='s16', layout='stereo')
            frame.sample_rate, frame.pts = RATE, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert separate(f'in.{container}', '--query', 'a dog', '-o', 'out.wav') == 0
    out, rate = read_audio('out.wav')
    assert rate == RATE
    whole, _ = read_audio(f'in.{container}')
    assert out.shape == whole.shape
    assert 0 <= out.shape[1] - RATE < 1024  # AAC's last frame is full
    np.testing.assert_allclose(out, whole / 4, atol=2e-5)
    if codec != 'aac':
        np.testing.assert_allclose(out, x / 4, atol=1e-4)


# ---- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['wav', 'flac', 'ogg', 'opus', 'mp3', 'aiff', 'caf', 'w64'])
def test_formats_of_a_folder(folder, quarter, form):
    write_audio('in.wav', sound(samples=RATE), RATE)
    assert separate('in.wav', '--query', 'a dog', '-o', 'out', '--format', form) == 0
    out, rate = read_audio(f'out/in__a_dog.{form}')
    assert rate == RATE
    assert out.shape == (2, RATE)  # lossy ones, too, begin and end where the input does
    if form not in ('ogg', 'opus', 'mp3'):
        np.testing.assert_allclose(out, sound(samples=RATE) / 4, atol=5e-5)
    elif form != 'opus':  # which changes the phase
        middle = slice(2000, -2000)
        assert np.corrcoef(out[0, middle], sound(samples=RATE)[0, middle])[0, 1] > 0.7


@pytest.mark.parametrize(('rate', 'held'), [(44100, 48000), (22050, 24000), (96000, 48000)])
def test_opus_of_a_rate_that_it_lacks(folder, quarter, capsys, monkeypatch, rate, held):
    """Its length is right to the sample at the rate of the file, and its pitch is the same."""

    def stream(blocks, embedded, *, sample_rate, **options):
        assert sample_rate == rate
        return quarter_stream(blocks, embedded, sample_rate=RATE, **options)

    quarter_stream = quarter.stream
    monkeypatch.setattr(quarter, 'stream', stream, raising=False)
    lengths = {'a': rate + 1, 'b': 999}
    for name, samples in lengths.items():
        x = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
        write_audio(f'{name}.wav', np.stack([x, x]), rate)
    flags = ['--query', 'a dog', '--residual', '-o', 'out', '--format', 'opus', '--json', 'what.json']
    assert separate('a.wav', 'b.wav', *flags) == 0
    says = f'.wav: .opus does not hold {rate} Hz; written at {held} Hz'
    assert capsys.readouterr().err.splitlines() == [f'audiosep-jax: note: {name}{says}' for name in lengths]
    for stem, samples in lengths.items():
        for name in ('a_dog', 'residual'):
            out, read_rate = read_audio(f'out/{stem}__{name}.opus')
            assert (out.shape, read_rate) == ((2, round(samples * held / rate)), held)
    out = read_audio('out/a__residual.opus')[0][0]
    assert abs(np.argmax(np.abs(np.fft.rfft(out))) * held / len(out) - 440) < 2
    first = json.loads((folder / 'what.json').read_text())['items'][0]
    assert (first['sample_rate'], first['output_sample_rate']) == (rate, held)


def test_m4a(folder, quarter, capfd):
    write_audio('in.wav', sound(samples=RATE), RATE)
    assert separate('in.wav', '--query', 'a dog', '--residual', '-o', 'out', '--format', 'm4a') == 0
    assert separate('in.wav', '--query', 'a dog', '-o', 'dog.m4a') == 0
    assert capfd.readouterr().err == ''
    for path in ('out/in__a_dog.m4a', 'dog.m4a'):
        out, rate = read_audio(path)
        assert rate == RATE
        assert 0 <= out.shape[1] - RATE < 1024
        middle = slice(2000, RATE - 2000)
        assert np.corrcoef(out[0, middle], sound(samples=RATE)[0, middle])[0, 1] > 0.7
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.m4a', '--subtype', 'PCM_16') == 2


def test_channels_that_cancel_are_said_once_for_each_input(folder, quarter, monkeypatch, capsys):
    """Also with several segments, each of which is a recording to the separator."""

    def stream(blocks, *arguments, **options):
        return quarter_stream(warn_of_cancellation(blocks, RATE), *arguments, **options)

    quarter_stream = quarter.stream
    monkeypatch.setattr(quarter, 'stream', stream, raising=False)
    x = sound(channels=1, samples=2 * RATE)
    for name, other in (('a.wav', -x), ('b.wav', x), ('c.wav', -x)):
        write_audio(name, np.concatenate([x, other]), RATE, subtype='FLOAT')
    for options in ([], ['--segments', '0-0.5', '1-1.5']):
        assert separate('a.wav', 'b.wav', 'c.wav', '--query', 'a dog', '-o', 'out', '--force', *options) == 0
        notes = capsys.readouterr().err.splitlines()
        assert [note[:26] for note in notes] == ['audiosep-jax: note: a.wav:', 'audiosep-jax: note: c.wav:']
        assert all('--per-channel' in note for note in notes)


def test_a_name_that_begins_with_a_dash_is_explained(folder, quarter, capsys):
    write('-in.wav')
    cases = [['-in.wav'], ['./-in.wav', '-o', '-new.flac'], ['./-in.wav', '--like', '-in.wav']]
    for arguments, name in zip(cases, ['-in.wav', '-new.flac', '-in.wav'], strict=True):
        assert separate(*arguments, '--query', 'a dog') == 2
        assert (
            f"note: {name} begins with a dash and is taken for an option: write './{name}'" in capsys.readouterr().err
        )
    assert main(['separate', '--query', 'a dog', '-o', 'out', '--checkpoint', 'anything', '--', '-in.wav']) == 0
    assert separate('./-in.wav', '--query', 'a dog', '-o', './-new.flac') == 0
    capsys.readouterr()
    assert separate('a.wav', '--wieghts', '-0.5', '--query', 'a dog') == 2
    assert 'begins with a dash' not in capsys.readouterr().err


def test_remove_is_the_mixture_less_all_targets_in_one_file(folder, quarter):
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '--query', 'rain', '--remove', '-o', 'rest.wav') == 0
    np.testing.assert_allclose(read_audio('rest.wav')[0], sound() / 2, atol=1e-6)
    assert separate('in.wav', '--query', 'a dog', '--query', 'rain', '--remove', '-o', 'out') == 0
    assert files(folder / 'out') == ['in__without_a_dog_and_rain.wav']


def test_segments_leave_the_rest_alone(folder, quarter):
    x = sound(samples=3 * RATE)
    write_audio('in.wav', x, RATE, subtype='FLOAT')
    flags = ['--query', 'a dog', '--residual', '-o', 'dog.wav']
    assert separate('in.wav', *flags, '--segments', '0:00.5-0:01', '2-') == 0
    target, residual = read_audio('dog.wav')[0], read_audio('dog__residual.wav')[0]
    time = np.arange(3 * RATE) / RATE
    inside = ((time >= 0.52) & (time < 0.98)) | (time >= 2.02)
    outside = (time < 0.5) | ((time >= 1.0) & (time < 2.0))
    np.testing.assert_allclose(target[:, inside], x[:, inside] / 4, atol=1e-6)
    assert not target[:, outside].any()
    np.testing.assert_allclose(target + residual, x, atol=1e-6)


def test_a_segment_past_the_end_is_said(folder, quarter, capsys):
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '-o', 'dog.wav', '--segments', '1:00-1:10') == 1
    assert 'in.wav: the recording ends before the segment 60-70 s begins' in one_error(capsys)
    assert files(folder) == ['in.wav']


def test_keep_loudness(folder, quarter, capsys):
    x = sound(samples=2 * RATE, level=0.2)
    write_audio('in.wav', x, RATE, subtype='FLOAT')
    flags = ['--query', 'a dog', '-o', 'dog.wav', '--keep-loudness', '--json', 'what.json']
    assert separate('in.wav', *flags) == 0
    np.testing.assert_allclose(read_audio('dog.wav')[0], x, atol=1e-4)
    assert json.loads((folder / 'what.json').read_text())['items'][0]['outputs'][0]['gain_db'] == pytest.approx(12.041)
    write_audio('silence.wav', np.zeros((1, 800)), RATE)
    assert separate('silence.wav', '--query', 'a dog', '-o', 'silent.wav', '--keep-loudness') == 0
    assert not read_audio('silent.wav')[0].any()


def test_json(folder, quarter, capsys):
    write('a.wav')
    assert separate('a.wav', 'missing.wav', '--query', 'a dog 🐶', '-o', 'out', '--residual', '--json', '-') == 1
    record = json.loads(capsys.readouterr().out)
    assert record['queries'] == ['a dog 🐶']
    done, failed = record['items']
    assert done == {
        'input': 'a.wav',
        'seconds': 0.05,
        'sample_rate': RATE,
        'channels': 2,
        'subtype': 'FLOAT',
        'outputs': [
            {'query': 'a dog 🐶', 'path': 'out/a__a_dog_🐶.wav', 'gain_db': 0.0},
            {'query': 'residual', 'path': 'out/a__residual.wav', 'gain_db': 0.0},
        ],
    }
    assert failed == {'input': 'missing.wav', 'error': 'missing.wav: no such file; check the name'}


def test_a_query_of_ten_thousand_characters(folder, quarter):
    write('a.wav')
    assert separate('a.wav', '--query', 'a dog and ' * 1000, '-o', 'out') == 0
    (name,) = os.listdir('out')
    assert len(name.encode()) < 120


def test_stopped_in_the_middle_nothing_is_left(folder, quarter, monkeypatch, capsys):
    write('a.wav', samples=200_000)

    def stopped(blocks, *_, **__):
        yield from quarter_stream([next(iter(blocks))], *_, **__)
        raise KeyboardInterrupt

    quarter_stream = quarter.stream
    monkeypatch.setattr(quarter, 'stream', stopped, raising=False)
    assert separate('a.wav', '--query', 'a dog', '-o', 'out') == 130
    one_error(capsys)
    assert [path.name for path in folder.iterdir()] == ['a.wav']


def test_names_strength_and_bit_rate(folder, quarter, capsys):
    write('a.wav')
    write('b.wav')
    flags = ['--query', 'a dog', '--residual', '--name', '{index:02}-{stem}.{query}', '--strength', 0.5]
    assert separate('a.wav', 'b.wav', *flags, '-o', 'out', '--format', 'flac') == 0
    expected = ['01-a.a_dog.flac', '01-b.a_dog.flac', '02-a.residual.flac', '02-b.residual.flac']
    assert files(folder / 'out') == expected
    dog, residual = (read_audio(f'out/{name}')[0] for name in (expected[0], expected[2]))
    np.testing.assert_allclose(dog, (0.5 * 0.25 + 0.5) * read_audio('a.wav')[0], atol=1e-4)
    np.testing.assert_allclose(residual, (0.5 * 0.75 + 0.5) * read_audio('a.wav')[0], atol=1e-4)
    write('long.wav', samples=5 * RATE)
    assert separate('long.wav', '--query', 'a dog', '-o', 'dog.mp3', '--bitrate', '96k') == 0
    assert separate('long.wav', '--query', 'a dog', '-o', 'good.ogg', '--quality', 9) == 0
    assert separate('long.wav', '--query', 'a dog', '-o', 'poor.ogg', '--quality', 1) == 0
    sizes = {name: (folder / name).stat().st_size for name in ('dog.mp3', 'good.ogg', 'poor.ogg')}
    assert 0.9 < sizes['dog.mp3'] / (5 * 96_000 / 8) < 1.1
    assert sizes['good.ogg'] > 1.5 * sizes['poor.ogg']
    assert capsys.readouterr().err == ''
    # The rate is known only once the file is open; it fails before it is separated.
    assert separate('long.wav', '--query', 'a dog', '-o', 'x.mp3', '--bitrate', '320k') == 1
    assert '320k is not one of .mp3 at 16000 Hz with 2 channels: 8k, ' in one_error(capsys)


# ---- pipes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(monkeypatch):
    """`pipe(bytes)` is standard input; what is written to standard output is in `pipe.out`."""
    out = io.BytesIO()

    def give(data: bytes):
        monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(out, 'utf-8'))
        return out

    return give


PIPE = ['--rate', RATE, '--channels', 2]


def test_from_pipe_to_pipe(folder, quarter, pipe):
    samples = np.round(sound(samples=5000) * 32768).astype('<i2')
    out = pipe(samples.T.tobytes())
    assert separate('-', '--query', 'a dog', '-o', '-', *PIPE, '--format', 's16le') == 0
    actual = np.frombuffer(out.getvalue(), '<i2').reshape(-1, 2).T
    assert np.abs(actual - samples / 4).max() <= 0.5


def test_half_a_frame_at_the_end_is_left_out_and_said(folder, quarter, pipe, capsys):
    out = pipe(sound(samples=100).T.astype('<f4').tobytes() + b'abc')
    assert separate('-', '--query', 'a dog', '-o', '-', *PIPE, '--format', 'f32le', '--remove') == 0
    np.testing.assert_allclose(np.frombuffer(out.getvalue(), '<f4').reshape(-1, 2).T, 0.75 * sound(samples=100))
    assert 'the last 3 bytes of standard input do not make a whole frame of 8 bytes' in capsys.readouterr().err


def test_clipping_in_a_pipe_is_said(folder, quarter, pipe, capsys):
    quarter.gain = 4.0
    out = pipe(sound(samples=100, level=0.9).T.astype('<f4').tobytes())
    assert separate('-', '--query', 'a dog', '-o', '-', *PIPE, '--format', 'f32le') == 0
    np.testing.assert_allclose(np.frombuffer(out.getvalue(), '<f4').max(), 4 * sound(samples=100, level=0.9).max())
    out = pipe(np.full((100, 2), 16384, '<i2').tobytes())
    out.seek(0)
    out.truncate()
    assert separate('-', '--query', 'a dog', '-o', '-', *PIPE, '--format', 's16le') == 0
    assert set(np.frombuffer(out.getvalue(), '<i2')) == {32767}
    assert 'clipped 200 samples beyond full scale' in capsys.readouterr().err


def test_from_a_pipe_to_files(folder, quarter, pipe):
    pipe(sound(samples=100).T.astype('<f4').tobytes())
    flags = ['--query', 'a dog', '--query', 'rain', '-o', 'out', *PIPE, '--format', 'f32le', '--json', 'x.json']
    assert separate('-', *flags) == 0
    assert files(folder / 'out') == ['stdin__a_dog.wav', 'stdin__rain.wav']
    np.testing.assert_array_equal(read_audio('out/stdin__rain.wav')[0], sound(samples=100) / 4)
    assert soundfile.info('out/stdin__rain.wav').subtype == 'FLOAT'


def test_from_a_file_to_a_pipe(folder, quarter, pipe):
    write('a.wav')
    out = pipe(b'')
    assert separate('a.wav', '--query', 'a dog', '-o', '-', '--format', 'f32le') == 0
    np.testing.assert_array_equal(np.frombuffer(out.getvalue(), '<f4').reshape(-1, 2).T, sound() / 4)


@pytest.mark.parametrize('data', [b'', b'abc'])
def test_a_pipe_without_sound(folder, quarter, pipe, capsys, data):
    pipe(data)
    assert separate('-', '--query', 'a dog', '-o', '-', *PIPE, '--format', 's16le') == 1
    assert f'standard input gave no sound: {len(data)} bytes' in one_error(capsys)


# ---- flags that do not go together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['-', '-o', '-'], '- needs the format of the raw samples: --format u8'),
        (['-', '-o', '-', '--format', 'wav', *PIPE], '- needs the format of the raw samples'),
        (['-', '-o', '-', '--format', 's16le'], '- as the input needs --rate and --channels'),
        (['-', '-o', '-', '--format', 's16le', '--rate', 0, '--channels', 1], '--rate 0: must be at least 1'),
        (['a.wav', '-o', 'x', '--format', 's16le'], 'is for raw samples in a pipe'),
        (['a.wav', '-o', 'x', '--rate', 8000], '--rate is for standard input only'),
        (['-', 'a.wav', '-o', '-', '--format', 's16le', *PIPE], 'carries a single sound'),
        (['a.wav', '-o', '-', '--format', 's16le', '--query', 'rain'], 'carries a single sound'),
        (['a.wav', '-o', '-', '--format', 's16le', '--residual'], 'carries a single sound'),
        (['a.wav', '-o', '-', '--format', 's16le', '--keep-loudness'], 'has to measure the whole recording'),
        (['a.wav', '-o', '-', '--format', 's16le', '--json', 'x'], 'are for files'),
        (['a.wav', '-o', 'x', '--remove', '--residual'], 'omit --residual'),
        (['a.wav', '-o', 'x.flac', '--format', 'mp3'], 'conflict: give only one'),
        (['a.wav', '-o', 'x.ogg', '--subtype', 'PCM_24'], '.ogg has no subtypes'),
        (['a.wav', '-o', 'x', '--subtype', 'PCM_8'], "unknown subtype 'PCM_8'"),
        (['a.wav', '-o', 'x', '--format', 'flac', '--subtype', 'FLOAT'], 'not FLOAT'),
        (['a.wav', '-o', 'x', '--segments', '0:10'], 'is not a segment'),
        (['a.wav', '-o', 'x', '--strength', '1.5'], 'the strength must be between 0 and 1, got 1.5'),
        (['a.wav', '-o', 'x', '--strength', 'nan'], 'the strength must be between 0 and 1'),
        (['a.wav', '-o', 'x', '--bitrate', '192k'], '.wav files in x: .wav is lossless'),
        (['a.wav', '-o', 'x', '--format', 'ogg', '--bitrate', '192k'], 'takes a quality from 0 to 10'),
        (['a.wav', '-o', 'x.opus', '--quality', '5'], 'x.opus: .opus takes a bit rate'),
        (['a.wav', '-o', 'x', '--format', 'mp3', '--bitrate', '190k'], '190k is not one of .mp3: 8k, 16k'),
        (['a.wav', '-o', 'x', '--format', 'mp3', '--bitrate', 'high'], 'is not a bit rate'),
        (['a.wav', '-o', 'x', '--format', 'mp3', '--bitrate', '192k', '--quality', '3'], 'give only one'),
        (['a.wav', '-o', '-', '--format', 's16le', '--quality', '3'], 'are for files'),
        (['a.wav', '-o', '-', '--format', 's16le', '--name', '{query}'], 'are for files'),
        (['a.wav', 'b.wav', '-o', 'x', '--name', '{query}'], 'needs {stem} or {input}'),
        (['a.wav', '-o', 'x', '--name', '{title}'], 'no field {title}'),
        (['a.wav', '-o', 'x.wav', '--name', '{query}'], 'names the file already'),
        (['a.wav', '-o', 'x', '--segments', '0:20-0:10'], 'ends before it begins'),
        (['.', '-o', '.'], 'is an input, too'),
    ],
)
def test_flags(folder, quarter, capsys, arguments, says):
    write('a.wav')
    assert separate('--query', 'a dog', *arguments) == 2
    assert says in one_error(capsys)
    assert files(folder) == ['a.wav']
