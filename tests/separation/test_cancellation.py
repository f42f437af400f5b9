"""Channels that cancel in their mean are noticed, and others are not."""

import logging

import numpy as np
import pytest
from support.small_separator import CONFIG, small_variables

from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.separation.cancellation import Cancellation, cancels, warn_of_cancellation
from audiosep_jax.separation.separator import Separator

RATE = 8000
NOISE = np.random.default_rng(0).normal(0, 0.1, (16, 4 * RATE)).astype(np.float32)
ONE = NOISE[:1]


@pytest.mark.parametrize(
    ('audio', 'expected'),
    [
        (np.concatenate([ONE, -ONE]), True),
        (np.concatenate([ONE, -0.9 * ONE]), True),  # 26 dB below
        (np.concatenate([ONE, -0.7 * ONE]), False),
        (np.concatenate([ONE, ONE]), False),
        (np.concatenate([ONE, 0 * ONE]), False),
        (NOISE[:2], False),
        (NOISE, False),  # independent channels
        (np.concatenate([NOISE[:3], -NOISE[:3]]), True),
        (ONE, False),
        (np.zeros((2, RATE), np.float32), False),
        (np.concatenate([ONE, -ONE]) * np.float32(1e-5), False),  # dither, not a recording
        (np.zeros((2, 0), np.float32), False),
    ],
)
def test_what_cancels(audio, expected):
    assert cancels(audio) == expected


def test_the_message_names_the_way_out():
    heard = Cancellation()
    heard.push(np.concatenate([ONE, -0.9 * ONE]))
    message = heard.message()
    assert '26 dB quieter' in message
    assert '--per-channel' in message
    assert 'per_channel=True' in message
    assert '\n' not in message


def blocks(*seconds_and_signs):
    for seconds, sign in seconds_and_signs:
        for _ in range(seconds):
            yield np.concatenate([ONE, sign * ONE])[:, :RATE]


def logged(caplog):
    return [record for record in caplog.records if 'cancel' in record.getMessage()]


def test_a_stream_is_judged_once_by_its_first_ten_seconds(caplog):
    stream = warn_of_cancellation(blocks((60, -1)), RATE)
    for _ in range(9):
        next(stream)
    assert logged(caplog) == []
    next(stream)
    assert len(logged(caplog)) == 1
    assert sum(1 for _ in stream) == 50
    assert len(logged(caplog)) == 1
    caplog.clear()
    assert len(list(warn_of_cancellation(blocks((5, 1), (60, -1)), RATE))) == 65
    assert logged(caplog) == []
    assert len(list(warn_of_cancellation(blocks((3, -1)), RATE))) == 3  # a short one is judged at its end
    assert len(logged(caplog)) == 1


def test_a_separator_warns_unless_it_hears_each_channel(caplog):
    separator = Separator(CONFIG, small_variables(), load_encoder('words'), max_whole_seconds=1.0)
    audio = np.concatenate([ONE, -ONE])
    for seconds in (0.5, 3):  # whole and in pieces
        sound = audio[:, : int(seconds * RATE)]
        for per_channel, count in ((False, 1), (True, 0)):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                separator.separate(sound, 'a dog', sample_rate=RATE, per_channel=per_channel)
            assert len(logged(caplog)) == count
            for live in (False, True):
                caplog.clear()
                for _ in separator.stream([sound], 'a dog', sample_rate=RATE, per_channel=per_channel, live=live):
                    pass
                assert len(logged(caplog)) == count
