"""Compares the CLAP encoder with LAION's outputs, and tests its texts, token ids and sounds."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from support.paths import REFERENCE
from support.reference_weights import clap_tensor
from support.tiny_clap import hugging_face_tensors, laion_tensors, noise, text_and_audio, write_laion, write_tokenizer

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.clap import encoder as clap
from audiosep_jax.encoders.clap import htsat
from audiosep_jax.encoders.clap.encoder import ClapEncoder, windows_of
from audiosep_jax.encoders.clap.htsat import SAMPLE_RATE, WINDOW_SAMPLES, HtsatConfig
from audiosep_jax.encoders.clap.roberta import RobertaConfig
from audiosep_jax.encoders.clap.sizes import sizes_from_tensors
from audiosep_jax.encoders.clap.weights import ClapTensors
from audiosep_jax.errors import AudioFileError, AudioSepError, CheckpointError, DownloadError, QueryError
from audiosep_jax.weights import hub
from audiosep_jax.weights.tensor_files import write_tensors


@pytest.fixture(scope='session')
def laion_folder(tmp_path_factory):
    return write_laion(tmp_path_factory.mktemp('clap'))


@pytest.fixture(scope='session')
def encoder(laion_folder):
    return ClapEncoder.open(laion_folder, source='laion/tiny')


@pytest.fixture(scope='module')
def reference():
    """The outputs of LAION's code (tests/reference/README.md)."""
    with np.load(REFERENCE / 'clap_reference.npz') as archive:
        return dict(archive)


@pytest.fixture(scope='module')
def reference_encoder(reference):
    """The encoder at full size with the weights of the reference."""
    entries = zip(reference['state_names'], reference['state_shapes'], reference['not_random'], strict=True)
    state = {str(n): clap_tensor(str(n), tuple(json.loads(str(s)))) for n, s, buffer in entries if not buffer}
    tensors = ClapTensors(state, 'reference')
    sizes = sizes_from_tensors(tensors, 'reference')
    assert sizes == (RobertaConfig(), HtsatConfig())
    return ClapEncoder(tensors, *sizes, Path('reference'))


def test_laions_log_mel(reference):
    sound = reference['waveform_48k_int16'].astype(np.float32) / 32768
    (_, window), *_ = windows_of(sound)
    log_mel = np.asarray(htsat.log_mel(window[None]))[0, :100]
    np.testing.assert_allclose(log_mel, reference['log_mel_first_100_frames'], atol=1e-3)  # dB, of 50 dB


def test_laions_text_embeddings(reference, reference_encoder):
    embeddings = reference_encoder.encode_token_ids(reference['input_ids'], reference['attention_mask'])
    assert (embeddings.shape, embeddings.dtype) == ((4, 512), np.float32)
    np.testing.assert_allclose(embeddings, reference['text_embedding'], atol=1e-6)


def test_laions_audio_embedding(reference, reference_encoder):
    sound = reference['waveform_48k_int16'].astype(np.float32) / 32768
    embedding = reference_encoder.encode_audio(sound, sample_rate=48000)
    np.testing.assert_allclose(embedding, reference['audio_embedding'], atol=1e-6)


@pytest.fixture(scope='module')
def expected(encoder):
    return text_and_audio(encoder)


def test_identity(encoder, tmp_path):
    assert isinstance(encoder, QueryEncoder)
    identity = encoder.identity()
    assert {**identity, 'weights': ''} == {
        'name': 'clap',
        'version': 1,
        'embedding_size': 16,
        'weights': '',
        'source': 'laion/tiny',
    }
    assert json.loads(json.dumps(identity)) == identity
    changed = laion_tensors()['audio_branch.layers.1.blocks.0.attn.qkv.weight'] + 1e-3
    other = write_laion(tmp_path, **{'audio_branch.layers.1.blocks.0.attn.qkv.weight': changed})
    assert ClapEncoder.open(other).identity()['weights'] != identity['weights']


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match='nowhere'):
        ClapEncoder.open(tmp_path / 'nowhere')
    write_tensors(tmp_path / 'model.safetensors', {'weight': np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match='no CLAP weights'):
        ClapEncoder.open(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type":')
    write_tensors(tmp_path / 'model.safetensors', hugging_face_tensors())
    with pytest.raises(CheckpointError, match=r'config\.json: not valid JSON: Expecting value'):
        ClapEncoder.open(tmp_path)


def test_weights_that_overflow_are_refused(tmp_path):
    folder = write_laion(tmp_path, **{'text_projection.0.weight': np.full((16, 64), np.inf, np.float32)})
    with pytest.raises(CheckpointError, match='not finite'):
        ClapEncoder.open(folder).encode_text(['dog'])


def test_each_tower_is_loaded_on_first_use(laion_folder, monkeypatch):
    def no_tower(*_):
        raise AssertionError('this tower is not needed')

    with monkeypatch.context() as patch:
        patch.setattr(clap, 'TextTower', no_tower)
        patch.setattr(clap, 'AudioTower', no_tower)
        encoder = ClapEncoder.open(laion_folder)
        encoder.identity()
    monkeypatch.setattr(clap, 'AudioTower', no_tower)
    encoder.encode_text(['dog'])
    monkeypatch.undo()
    monkeypatch.setattr(clap, 'TextTower', no_tower)
    encoder.encode_audio(noise(0.1), sample_rate=SAMPLE_RATE)
    encoder.encode_text(['cat'])  # the text tower stays loaded


def token_ids(*lengths: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), 1)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [0, *rng.integers(5, 300, length - 2), 2]
    return ids, (ids != 1).astype(int)


def test_embeddings_have_length_1(encoder, expected):
    for embeddings in expected:
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
        assert embeddings.dtype == np.float32


def test_padding_changes_nothing(encoder):
    ids, mask = token_ids(5, 9)
    fill = ((0, 0), (0, 503))
    padded = encoder.encode_token_ids(np.pad(ids, fill, constant_values=1), np.pad(mask, fill))
    np.testing.assert_allclose(padded, encoder.encode_token_ids(ids, mask), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode_token_ids(ids), encoder.encode_token_ids(ids, mask))


def test_shapes_that_are_compiled(encoder, monkeypatch):
    """There are few lengths, batches are powers of two, and a long text does not make the others long."""
    shapes = []

    def tower(ids, mask):
        assert ids.shape == mask.shape
        shapes.append(ids.shape)
        return np.ones((len(ids), 16), np.float32)

    monkeypatch.setitem(encoder.__dict__, '_text_tower', tower)
    for lengths in ((4,), (16, 3, 3), (17,), (33,), (100, 5), (129,), (512,)):
        encoder.encode_token_ids(*token_ids(*lengths))
    assert shapes == [(1, 16), (4, 16), (1, 32), (1, 64), (2, 128), (1, 512), (1, 512)]
    shapes.clear()
    encoder.encode_token_ids(*token_ids(*[200] * 3, *[5] * 64))
    assert shapes == [(64, 16), (4, 512)]


def test_rows_keep_their_order(encoder):
    ids, mask = token_ids(30, 4, 12, 70, 5)
    together = encoder.encode_token_ids(ids, mask)
    alone = [encoder.encode_token_ids(ids[i : i + 1], mask[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode_text([]).shape == (0, 16)
    assert encoder.encode_token_ids(np.zeros((0, 7), int), np.zeros((0, 7), int)).shape == (0, 16)


def test_a_long_text_loses_its_end(encoder):
    long, longer = 'dog ' * 400, 'dog ' * 500 + 'cat'  # two tokens each
    np.testing.assert_array_equal(encoder.encode_text([long]), encoder.encode_text([longer]))


@pytest.mark.parametrize('texts', [[''], ['dog', ' \n'], 'dog'])
def test_empty_queries_are_refused(encoder, texts):
    with pytest.raises(QueryError):
        encoder.encode_text(texts)


@pytest.mark.parametrize(
    ('ids', 'mask', 'message'),
    [
        ([[0, 300, 2]], [[1, 1, 1]], 'outside the vocabulary of 300'),
        ([[0, -1, 2]], [[1, 1, 1]], 'outside the vocabulary'),
        ([[0, 5, 2], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]], 'has no token'),
        ([0, 5, 2], [1, 1, 1], r'expected integers \[Q, L\]'),
        ([[0.0, 5.0, 2.0]], [[1, 1, 1]], 'expected integers'),
        ([[0, 5, 2]], [[1, 1]], 'expected integers'),
        (np.full((1, 513), 5), np.ones((1, 513)), '513 tokens: CLAP takes at most 512'),
        (np.zeros((1, 0), int), np.zeros((1, 0), int), 'has no token'),
    ],
)
def test_wrong_token_ids_are_refused(encoder, ids, mask, message):
    with pytest.raises(QueryError, match=message):
        encoder.encode_token_ids(np.asarray(ids), np.asarray(mask))


def test_rows_of_different_lengths(encoder):
    with pytest.raises(QueryError, match='different lengths'):
        encoder.encode_token_ids([[0, 5, 2], [0, 2]])


def test_all_transfers_to_the_device_are_explicit(encoder):
    with jax.transfer_guard('disallow'):
        encoder.encode_token_ids(np.array([[0, 5, 2]]))
        encoder.encode_audio(noise(0.1), sample_rate=SAMPLE_RATE)


def test_unknown_tensors_are_named(encoder, tmp_path):
    assert encoder.unknown_tensors() == []
    folder = write_laion(tmp_path, **{'text_branch.extra': np.zeros(1), 'decoder.weight': np.zeros(1)})
    assert sorted(ClapEncoder.open(folder).unknown_tensors()) == ['decoder.weight', 'text_branch.extra']


def test_a_tokenizer_that_is_not_there_is_fetched_and_kept(tmp_path, monkeypatch, expected):
    from audiosep_jax.encoders.tokenizer import open_tokenizer

    store = tmp_path / 'hub'
    store.mkdir()
    write_tokenizer(store)
    open_tokenizer(store, 'roberta')._backend.save(str(store / 'tokenizer.json'))
    folder = tmp_path / 'clap'
    folder.mkdir()
    write_tensors(folder / 'model.safetensors', laion_tensors())
    asked = []

    def fetch(repository, name, *, place):
        asked.append((repository, name, place))
        return store / name

    monkeypatch.setattr(hub, 'fetch', fetch)
    encoder = ClapEncoder.open(folder)
    np.testing.assert_allclose(encoder.encode_text(['dog', 'rain cat']), expected[0], atol=1e-6)
    assert asked == [('FacebookAI/roberta-base', 'tokenizer.json', folder / 'tokenizer.json')]
    ClapEncoder.open(folder).encode_text(['dog'])
    assert len(asked) == 1


def test_without_a_tokenizer_token_ids_still_work(tmp_path, monkeypatch):
    def fetch(*_, **__):
        raise DownloadError('offline')

    monkeypatch.setattr(hub, 'fetch', fetch)
    write_tensors(tmp_path / 'model.safetensors', laion_tensors())
    encoder = ClapEncoder.open(tmp_path)
    assert encoder.encode_token_ids(*token_ids(5)).shape == (1, 16)
    with pytest.raises(DownloadError):
        encoder.encode_text(['dog'])


def test_the_tokenizer_of_another_vocabulary(tmp_path):
    folder = write_laion(tmp_path)
    vocabulary = json.loads((folder / 'vocab.json').read_text('utf-8'))
    (folder / 'vocab.json').write_text(json.dumps(vocabulary | {f'more{i}': 400 + i for i in range(200)}), 'utf-8')
    with pytest.raises(CheckpointError, match='do not belong together'):
        ClapEncoder.open(folder).encode_text(['dog'])


def test_forms_of_sounds(encoder):
    sound = noise(0.5)
    one = encoder.encode_audio(sound, sample_rate=SAMPLE_RATE)
    assert one.shape == (1, 16)
    rows = encoder.encode_audio(np.stack([sound, noise(0.5, 1)]), sample_rate=SAMPLE_RATE)
    ragged = encoder.encode_audio([sound, noise(0.7, 2)], sample_rate=SAMPLE_RATE)
    np.testing.assert_allclose(rows[0], one[0], atol=1e-6)
    np.testing.assert_allclose(ragged[0], one[0], atol=1e-6)
    assert np.abs(rows[1] - rows[0]).max() > 1e-4
    assert encoder.encode_audio([], sample_rate=SAMPLE_RATE).shape == (0, 16)
    np.testing.assert_allclose(encoder.encode_audio(sound.astype(np.float64), sample_rate=48000), one, atol=1e-6)


def test_a_sound_shorter_than_a_sample(encoder):
    with pytest.raises(AudioFileError, match='too short'):
        encoder.encode_audio(np.ones(1, np.float32), sample_rate=192_000)


def test_a_short_sound_is_repeated_whole_times_and_then_silence():
    sound = noise(3)
    ((weight, window),) = windows_of(sound)
    assert (weight, len(window)) == (1, WINDOW_SAMPLES)
    np.testing.assert_array_equal(window[: 3 * len(sound)], np.tile(sound, 3))
    assert not window[3 * len(sound) :].any()
    ((_, window),) = windows_of(np.array([0.5], np.float32))
    assert (window == 0.5).all()


@pytest.mark.parametrize(
    ('samples', 'windows'),
    [
        (WINDOW_SAMPLES, [(1, 0)]),
        (2 * WINDOW_SAMPLES, [(1, 0), (1, WINDOW_SAMPLES)]),
        (WINDOW_SAMPLES + 480, [(1, 0), (0.001, 480)]),
        (5 * WINDOW_SAMPLES // 2, [(1, 0), (1, WINDOW_SAMPLES), (0.5, 3 * WINDOW_SAMPLES // 2)]),
    ],
)
def test_a_long_sound_has_windows_of_which_the_last_ends_with_it(samples, windows):
    sound = np.arange(samples, dtype=np.float32)
    assert [(weight, window[0]) for weight, window in windows_of(sound)] == windows
    assert all(len(window) == WINDOW_SAMPLES for _, window in windows_of(sound))


def test_a_long_sound_is_the_mean_of_its_windows(encoder):
    sound = np.concatenate([noise(10, 1), 0.2 * np.sin(np.arange(round(15 * SAMPLE_RATE)) / 9).astype(np.float32)])
    pieces = [sound[:480000], sound[480000:960000], sound[-480000:]]
    windows = encoder.encode_audio(pieces, sample_rate=SAMPLE_RATE)
    assert np.abs(windows[0] - windows[2]).max() > 1e-2
    mean = np.array([1, 1, 0.5]) @ windows
    long, _ = encoder.encode_audio([sound, noise(0.3)], sample_rate=SAMPLE_RATE)
    np.testing.assert_allclose(long, mean / np.linalg.norm(mean), atol=1e-6)


def test_more_windows_than_a_batch_holds(encoder, monkeypatch):
    shapes = []

    def tower(windows):
        shapes.append(windows.shape)
        return windows[:, :16]

    monkeypatch.setitem(encoder.__dict__, '_audio_tower', tower)
    sounds = [noise(0.1, seed) for seed in range(11)]
    embeddings = encoder.encode_audio(sounds, sample_rate=SAMPLE_RATE)
    assert [shape[0] for shape in shapes] == [8, 4]
    for sound, embedding in zip(sounds, embeddings, strict=True):
        np.testing.assert_allclose(embedding, sound[:16] / np.linalg.norm(sound[:16]), rtol=1e-5)


def test_a_little_longer_is_nearly_the_same(encoder):
    sound = noise(10.02)
    exact, longer = encoder.encode_audio([sound[:WINDOW_SAMPLES], sound], sample_rate=SAMPLE_RATE)
    np.testing.assert_allclose(longer, exact, atol=0.01)


def test_other_sample_rates_are_resampled(encoder):
    time = np.arange(48000) / 48000
    sound = (0.3 * np.sin(2 * np.pi * 900 * time) + 0.1 * np.sin(2 * np.pi * 4100 * time)).astype(np.float32)
    full = encoder.encode_audio(sound, sample_rate=48000)
    resampled, misread = (encoder.encode_audio(sound[::2], sample_rate=rate) for rate in (24000, 48000))
    assert np.abs(resampled - full).max() < 0.1 * np.abs(misread - full).max()


@pytest.mark.parametrize('sound', [np.zeros(4800, np.float32), np.ones(1, np.float32), np.full(700, 1e6)])
def test_odd_sounds_have_an_embedding(encoder, sound):
    embedding = encoder.encode_audio(sound, sample_rate=SAMPLE_RATE)
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ('sounds', 'rate', 'error', 'message'),
    [
        (np.zeros(0, np.float32), 48000, AudioFileError, 'audio example: has no samples'),
        ([noise(0.1), np.zeros(0)], 48000, AudioFileError, '2 of 2: has no samples'),
        (np.ones(1), 192000, AudioFileError, 'audio example: too short'),
        (np.array([0.1, np.nan, np.inf]), 48000, AudioFileError, '2 samples are NaN'),
        (np.array([0.1, -1e30]), 48000, AudioFileError, 'samples up to 1e\\+30, where full scale is 1'),
        (np.zeros(100, np.int16), 48000, QueryError, 'int16, expected floats'),
        (np.zeros((1, 2, 100)), 48000, QueryError, r'got shape \[1, 2, 100\]'),
        ([np.zeros((2, 100))], 48000, QueryError, 'mono'),
        (noise(0.1), 0, QueryError, 'sample rate 0'),
        (noise(0.1), float('nan'), QueryError, 'sample rate nan'),
        (noise(0.1), '48k', QueryError, 'sample rate'),
    ],
)
def test_wrong_sounds_are_refused(encoder, sounds, rate, error, message):
    with pytest.raises(error, match=message) as caught:
        encoder.encode_audio(sounds, sample_rate=rate)
    assert isinstance(caught.value, AudioSepError)
    assert '\n' not in str(caught.value)
