"""What a program's request computes beyond the page's: lists of descriptions, no picture, progress."""

import numpy as np
import pytest
import soundfile
from support.small_separator import CONFIG, small_variables

from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioFileError, QueryError
from audiosep_jax.separation import separator as separator_module
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.extraction import Limits, extract, refusal

RATE, SECONDS = 16000, 8
STEP = 2**-23  # of 24 bits


@pytest.fixture(scope='module')
def separator():
    """It takes at most half a second at once, so that a second comes in pieces."""
    return Separator(CONFIG, small_variables(), load_encoder('words'), max_whole_seconds=0.5)


@pytest.fixture
def in_small_blocks(monkeypatch):
    """Progress is reported after each second."""
    monkeypatch.setattr(separator_module, '_BLOCK', CONFIG.sample_rate)


@pytest.fixture
def recording(tmp_path):
    sound = np.random.default_rng(0).integers(-(2**19), 2**19, (SECONDS * RATE, 2)) / 2**23
    soundfile.write(tmp_path / 'street.wav', sound, RATE, subtype='PCM_24')
    return tmp_path / 'street.wav'


def ask(separator, recording, queries=('a dog', 'rain'), unwanted=(), **options):
    (place := recording.parent / 'out').mkdir(exist_ok=True)
    return extract(separator, recording, queries, unwanted, 1.0, folder=place, limits=Limits(), **options)


@pytest.mark.usefixtures('in_small_blocks')
def test_progress_is_reported_and_changes_nothing(separator, recording):
    reports = []
    found = ask(separator, recording, has_picture=False, progress=lambda *numbers: reports.append(numbers))
    assert found.picture is None
    assert reports[-1] == (SECONDS, SECONDS)
    assert len(reports) > 3
    assert reports == sorted(reports)
    mixture = soundfile.read(recording, dtype='float32')[0].T
    whole = separator.separate(mixture, ['a dog', 'rain'], sample_rate=RATE)
    for path, expected in zip([*found.targets.values(), found.residual], [*whole.targets, whole.residual], strict=True):
        np.testing.assert_allclose(soundfile.read(path, dtype='float32')[0].T, expected, atol=2 * STEP)


@pytest.mark.usefixtures('in_small_blocks')
def test_what_reports_may_end_the_work(separator, recording):
    def stop(done, length):
        if done:
            raise AudioFileError('enough')

    with pytest.raises(AudioFileError, match='enough'):
        ask(separator, recording, progress=stop)
    assert list((recording.parent / 'out').iterdir()) == []


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        ({'queries': []}, 'nothing to extract'),
        ({'queries': ['a dog', ' ']}, 'a description is empty'),
        ({'unwanted': ['']}, 'a description is empty'),
        ({'queries': list('abcdefg')}, '7 descriptions are too many; at most 6'),
    ],
)
def test_mistakes_are_said(separator, recording, wrong, says):
    with pytest.raises(QueryError, match=says):
        ask(separator, recording, **wrong)


def test_a_refusal_names_no_folder_of_this_machine(tmp_path):
    upload, place = tmp_path / 'abc' / 'street.wav', tmp_path / 'request'
    error = AudioFileError(f'{upload}: no audio; see {place}/x.wav and {tmp_path}/y')
    assert refusal(error, upload, place) == 'street.wav: no audio; see x.wav and y'
    assert refusal(ZeroDivisionError(), upload, place) is None
