"""What the web page computes, without a server and without Gradio."""

import numpy as np
import pytest
import soundfile
from support.small_separator import CONFIG, small_variables

from audiosep_jax.audio.reading import SoundInput
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioFileError, AudioSepError, ConfigError, QueryError
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.extraction import Limits
from audiosep_jax.web.page import answer, find_examples

RATE = 16000


@pytest.fixture(scope='module')
def separator():
    return Separator(CONFIG, small_variables(), load_encoder('words'))


@pytest.fixture
def recording(tmp_path):
    """A quiet stereo recording, of whole 24-bit steps."""
    sound = np.random.default_rng(0).integers(-(2**19), 2**19, (4000, 2)) / 2**23
    soundfile.write(tmp_path / 'street.wav', sound, RATE, subtype='PCM_24')
    return tmp_path / 'street.wav'


def ask(separator, recording, queries='a dog\nrain', unwanted='', strength=1.0, limits=None):
    folder = recording.parent / 'out'
    folder.mkdir(exist_ok=True)
    return answer(separator, recording, queries, unwanted, strength, folder=folder, limits=limits or Limits())


def read(path):
    sound, rate = soundfile.read(path, dtype='float32', always_2d=True)
    assert rate == RATE
    return sound.T


STEP = 2**-23  # of 24 bits


def test_the_files_are_what_the_separator_gives(separator, recording):
    found = ask(separator, recording, ' a dog \n\nrain\na dog\n', 'wind')
    mixture = read(recording)
    expected = separator.separate(
        mixture, [Query.text('a dog').without('wind'), Query.text('rain').without('wind')], sample_rate=RATE
    )
    assert list(found.targets) == ['a dog', 'rain']
    assert [path.name for path in found.targets.values()] == ['street__a_dog.wav', 'street__rain.wav']
    for path, target in zip(found.targets.values(), expected.targets, strict=True):
        np.testing.assert_allclose(read(path), target, atol=STEP)
    np.testing.assert_allclose(read(found.residual), expected.residual, atol=STEP)
    assert found.residual.name == 'street__residual.wav'
    assert found.picture.name == 'street__spectrograms.png'
    assert found.picture.read_bytes().startswith(b'\x89PNG')
    assert found.note == ''


def test_strength_blends_with_the_recording(separator, recording):
    mixture, whole = read(recording), ask(separator, recording)
    (alone, _), rest = map(read, whole.targets.values()), read(whole.residual)
    half = ask(separator, recording, strength=0.5)
    np.testing.assert_allclose(read(half.targets['a dog']), (alone + mixture) / 2, atol=2 * STEP)
    np.testing.assert_allclose(read(half.residual), (rest + mixture) / 2, atol=2 * STEP)
    nothing = ask(separator, recording, strength=0.0)
    np.testing.assert_array_equal(read(nothing.targets['a dog']), mixture)


def test_a_loud_answer_is_attenuated_and_said(separator, recording):
    sound = np.sign(np.random.default_rng(0).standard_normal((4000, 1)))
    soundfile.write(recording, sound, RATE, subtype='FLOAT')
    found = ask(separator, recording)
    assert 'attenuated by' in found.note
    assert max(np.abs(read(path)).max() for path in (*found.targets.values(), found.residual)) <= 1


def test_channels_that_cancel_are_said(separator, recording):
    sound = 0.1 * np.random.default_rng(0).standard_normal(4000)
    soundfile.write(recording, np.stack([sound, -sound], axis=1), RATE, subtype='FLOAT')
    assert 'The channels cancel in their mean' in ask(separator, recording).note


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        ({'queries': ''}, 'describe a sound'),
        ({'queries': ' \n\t\n'}, 'describe a sound'),
        ({'queries': None}, 'describe a sound'),
        ({'queries': '\n'.join('abcdefg')}, '7 descriptions are too many; at most 6'),
        ({'queries': 'x' * 501}, '501 characters'),
        ({'queries': 'a\ud800b'}, 'not valid text'),
        ({'unwanted': 'x' * 501}, '501 characters'),
        ({'queries': 'rain', 'unwanted': 'rain'}, 'exactly what it excludes'),
        ({'strength': 1.5}, 'between 0 and 1'),
        ({'strength': float('nan')}, 'between 0 and 1'),
        ({'strength': None}, 'between 0 and 1'),
        ({'limits': Limits(seconds=0.2)}, 'cut it'),
    ],
)
def test_mistakes_are_said(separator, recording, wrong, says):
    with pytest.raises(AudioSepError, match=says):
        ask(separator, recording, **wrong)
    assert list((recording.parent / 'out').iterdir()) == []


def test_no_recording_and_bad_ones(separator, tmp_path):
    with pytest.raises(AudioFileError, match='no recording yet'):
        answer(separator, None, 'rain', '', 1.0, folder=tmp_path, limits=Limits())
    for name, content in (('text.wav', b'hello'), ('empty.mp3', b''), ('cut.wav', b'RIFF\0\0\0\0WAVE')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioFileError, match=name):
            ask(separator, tmp_path / name)


def test_what_is_too_long_is_not_decoded(separator, tmp_path, monkeypatch):
    """Eleven minutes of silence: 35 kB of FLAC."""
    soundfile.write(tmp_path / 'long.flac', np.zeros(11 * 60 * 8000, np.int16), 8000)

    def decoded(*_):
        raise AssertionError('decoded')

    monkeypatch.setattr(SoundInput, 'blocks', decoded)
    with pytest.raises(AudioFileError, match=r'11\.0 minutes long, this page accepts up to 10;'):
        ask(separator, tmp_path / 'long.flac')
    soundfile.write(tmp_path / 'wide.flac', np.zeros((30000, 8), np.int16), 192000)
    with pytest.raises(AudioFileError, match='8 channels at 192000 Hz'):
        ask(separator, tmp_path / 'wide.flac', limits=Limits(seconds=0.2))


def test_odd_descriptions_have_files_and_panels_of_their_own(separator, recording):
    queries = ['recording', 'left over', 'residual', '🐕', 'a' * 200 + 'b', 'a' * 200 + 'c']
    found = ask(separator, recording, '\n'.join(queries))
    assert list(found.targets) == queries
    assert len({*found.targets.values(), found.residual}) == 7
    assert all(path.is_file() for path in found.targets.values())


def test_limits_are_checked_where_they_are_made():
    for wrong in ({'seconds': 0}, {'seconds': float('inf')}, {'megabytes': 0}, {'queries': 0}, {'characters': 0}):
        with pytest.raises(ConfigError):
            Limits(**wrong)


def test_examples_are_sounds_with_a_text_beside_them(tmp_path, recording):
    (tmp_path / 'street.txt').write_text('a dog\nrain\n')
    (tmp_path / 'notes.txt').write_text('no sound of that name')
    (tmp_path / 'other.wav').write_bytes(recording.read_bytes())
    (example,) = find_examples(tmp_path)
    assert (example.path, example.queries) == (recording, 'a dog\nrain')
    assert str(example) == 'street: a dog, rain'
    (tmp_path / 'other.txt').write_text(' ')
    with pytest.raises(QueryError, match=r'empty; write the queries for other\.wav'):
        find_examples(tmp_path)
    (tmp_path / 'other.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(QueryError, match='not UTF-8'):
        find_examples(tmp_path)
    with pytest.raises(AudioFileError, match='nowhere'):
        find_examples(tmp_path / 'nowhere')
