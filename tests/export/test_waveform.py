"""The whole separation in ONNX Runtime against `Separator.separate`."""

import dataclasses

import numpy as np
import pytest
from support.noisy_separator import CONFIG, noisy_variables, sound
from support.onnx_runs import run, run_pieces, session_of

from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.export.network import MaskNetwork
from audiosep_jax.export.waveform import SeparationGraph
from audiosep_jax.models.folded import look_ahead
from audiosep_jax.separation.separator import Separator

LEVEL = Level(-40.0, -30.0, -20.0, 5)
WINDOW, HOP = CONFIG.window_size, CONFIG.hop_size
EMBEDDING = np.random.default_rng(1).standard_normal(CONFIG.condition_size).astype(np.float32) / 20


@pytest.fixture(scope='module')
def variables():
    return noisy_variables()


def graphs(variables, level=None, dtype='float32', config=CONFIG):
    return SeparationGraph(MaskNetwork.fold(config, variables, dtype), level)


def rising(channels, length):
    """Noise that becomes louder, so that the gains of the level change."""
    return sound(channels, length) * np.linspace(0, 3, length, dtype=np.float32)


@pytest.mark.parametrize('level', [None, LEVEL], ids=['as it is', 'level'])
def test_targets_are_those_of_the_separator_for_any_length_and_channels(variables, level):
    separator = Separator(CONFIG, variables, None, trained_level=level)
    session = session_of(graphs(variables, level).whole())
    for channels, length in ((2, 9001), (1, 2047), (1, 50), (1, 2)):
        mixture = rising(channels, length)
        wanted = separator.separate(mixture, EMBEDDING, sample_rate=CONFIG.sample_rate).targets[0]
        (target,) = run(session, mixture=mixture[None], embedding=EMBEDDING[None])
        assert target.shape == (1, channels, length)
        np.testing.assert_allclose(target[0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_hop_that_does_not_divide_the_window(variables):
    config = dataclasses.replace(CONFIG, hop_size=50)
    mixture = rising(1, 3210)
    wanted = Separator(config, variables, None).separate(mixture, EMBEDDING, sample_rate=config.sample_rate).targets[0]
    (target,) = run(
        session_of(graphs(variables, config=config).whole()), mixture=mixture[None], embedding=EMBEDDING[None]
    )
    np.testing.assert_allclose(target[0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_rows_of_a_batch_are_separated_by_their_own_queries(variables):
    session = session_of(graphs(variables, LEVEL).whole())
    mixtures, embeddings = np.stack([rising(1, 3000), sound(1, 3000, seed=3)]), np.stack([EMBEDDING, -EMBEDDING])
    (together,) = run(session, mixture=mixtures, embedding=embeddings)
    for row in range(2):
        (alone,) = run(session, mixture=mixtures[row : row + 1], embedding=embeddings[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-6)


def in_pieces(separation, mixture, frames=96):
    """The target [channels, T] from the graph for pieces."""
    config, (channels, length) = separation.network.config, mixture.shape
    count, late = 1 + length // HOP, look_ahead(config)
    padded = np.pad(mixture, [(0, 0), (WINDOW // 2, WINDOW // 2)], mode='reflect')
    padded = np.pad(padded, [(0, 0), (0, (late + 2 * frames) * HOP)])[None]
    pieces = [
        {
            'samples': padded[:, :, start * HOP : (start + frames - 1) * HOP + WINDOW],
            'embedding': EMBEDDING[None],
            'start': np.array([start]),
            'count': np.array([count]),
        }
        for start in range(0, count + late + WINDOW // HOP, frames)
    ]
    outputs = run_pieces(session_of(separation.pieces()), pieces, batch=1, channels=channels)
    first = late * HOP + WINDOW // 2
    return np.concatenate([piece[0][0] for piece in outputs], axis=-1)[:, first : first + length]


@pytest.mark.parametrize(('level', 'length'), [(LEVEL, 9001), (None, 64 * 32 * 12 - 1)])
def test_pieces_are_the_whole(variables, level, length):
    separation, mixture = graphs(variables, level), rising(2, length)
    (whole,) = run(session_of(separation.whole()), mixture=mixture[None], embedding=EMBEDDING[None])
    np.testing.assert_allclose(in_pieces(separation, mixture), whole[0], atol=1e-5 * np.abs(whole).max())


def test_a_network_of_fewer_blocks():
    config = dataclasses.replace(CONFIG, widths=(2, 3, 4))
    variables, mixture = noisy_variables(config), rising(1, 5000)
    wanted = Separator(config, variables, None).separate(mixture, EMBEDDING, sample_rate=config.sample_rate).targets[0]
    separation = graphs(variables, config=config)
    (whole,) = run(session_of(separation.whole()), mixture=mixture[None], embedding=EMBEDDING[None])
    for target in (whole[0], in_pieces(separation, mixture)):
        np.testing.assert_allclose(target, wanted, atol=1e-5 * np.abs(wanted).max())


def test_half_precision_changes_the_target_little(variables):
    mixture = rising(1, 9001)[None]
    targets = [
        run(session_of(graphs(variables, LEVEL, dtype).whole()), mixture=mixture, embedding=EMBEDDING[None])[0]
        for dtype in ('float32', 'float16')
    ]
    assert np.linalg.norm(targets[1] - targets[0]) < 0.003 * np.linalg.norm(targets[0])
