"""Mean spectra of clips and of captions: equal energy, silence, equal captions, weights, limits."""

import numpy as np
import pytest
from support.data_batches import damage_clips
from support.small_dataset import SAMPLE_RATE

from audiosep_jax.data import mean_spectra
from audiosep_jax.data.mean_spectra import caption_spectra, mean_power
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import DataError
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions

WINDOW = 64


def tone(frequency, level=0.3, samples=2000):
    return (level * np.sin(2 * np.pi * frequency * np.arange(samples) / SAMPLE_RATE)).astype(np.float32)


def build(folder, clips):
    folder.mkdir()
    made = [Clip(f'clip-{n}', audio, captions) for n, (audio, captions) in enumerate(clips)]
    build_shards(made, folder, sample_rate=SAMPLE_RATE, name=folder.name, clips_per_shard=4)
    embed_captions(folder, load_encoder('words'))
    return Shards(folder)


def measure(*shards, weights=()):
    return caption_spectra(shards, 'words', weights, sample_rate=SAMPLE_RATE, window_size=WINDOW)


def test_power_is_of_unit_energy_and_silence_has_none():
    spectrum = mean_power(tone(1000), WINDOW, WINDOW // 2)
    np.testing.assert_allclose(mean_power(tone(1000, level=0.001), WINDOW, WINDOW // 2), spectrum, rtol=1e-3)
    assert spectrum.argmax() == 1000 * WINDOW // SAMPLE_RATE
    # Parseval: twice the sum over the bins is the energy of windowed frames, whose mean square is 1.
    assert 2 * spectrum.sum() / WINDOW == pytest.approx(np.sum(np.hanning(WINDOW + 1)[:-1] ** 2), rel=0.05)
    assert mean_power(np.zeros(500), WINDOW, 32) is None
    assert mean_power(np.zeros(0), WINDOW, 32) is None


def test_equal_captions_are_one_and_silent_clips_are_left_out(tmp_path):
    shards = build(
        tmp_path / 'a',
        [
            (tone(500), ('a low tone',)),
            (tone(600), ('a low tone', 'a hum')),
            (np.zeros(2000, np.float32), ('silence',)),
            (tone(3000), ('a whistle',)),
        ],
    )
    spectra = measure(shards)
    assert len(spectra.embeddings) == 3
    assert len(spectra.power) == 3
    np.testing.assert_allclose(np.linalg.norm(spectra.embeddings, axis=1), 1, atol=1e-6)
    assert spectra.uses.sum() == pytest.approx(1)
    low = load_encoder('words').encode_text(['a low tone'])[0]
    caption = np.argmax(spectra.embeddings @ low)
    of_low = spectra.captions == caption
    np.testing.assert_allclose(spectra.uses[of_low], [1 / 3, 1 / 6], rtol=1e-5)
    np.testing.assert_array_equal(spectra.clips[of_low], [0, 1])


def test_weights_say_how_much_a_dataset_counts(tmp_path):
    one = build(tmp_path / 'one', [(tone(500), ('a low tone',))])
    two = build(tmp_path / 'two', [(tone(3000), ('a whistle',)), (tone(2500), ('a bird',))])
    np.testing.assert_allclose(measure(one, two).uses, [1 / 3] * 3, rtol=1e-5)
    np.testing.assert_allclose(measure(one, two, weights=(3, 1)).uses, [3 / 4, 1 / 8, 1 / 8], rtol=1e-5)


def test_of_many_clips_and_captions_it_takes_some(tmp_path, monkeypatch):
    names = ['bird', 'car', 'dog', 'cat', 'rain', 'wind', 'sea', 'fire']
    shards = build(tmp_path / 'a', [(tone(300 + 400 * n), (name,)) for n, name in enumerate(names)])
    monkeypatch.setattr(mean_spectra, '_MOST_CAPTIONS', 5)
    spectra = measure(shards)
    assert len(spectra.embeddings) == len(set(spectra.captions)) == 5
    assert spectra.uses.sum() == pytest.approx(1)
    encoder = load_encoder('words')
    for use, clip in zip(spectra.captions, spectra.clips, strict=True):
        cosine = spectra.embeddings[use] @ encoder.encode_text([names[clip]])[0]
        assert cosine > 0.99 * np.linalg.norm(encoder.encode_text([names[clip]])[0])
    monkeypatch.setattr(mean_spectra, '_MOST_CLIPS', 2)
    assert len(measure(shards).power) == 2


def test_clips_that_cannot_be_read_are_left_out(tmp_path):
    clips = [(tone(500), ('a low tone',)), (tone(3000), ('a whistle',)), (tone(2500), ('a bird',))]
    shards = build(tmp_path / 'a', clips)
    damage_clips(tmp_path / 'a', ['clip-1'])
    spectra = measure(Shards(tmp_path / 'a'))
    assert len(spectra.power) == len(spectra.embeddings) == 2
    np.testing.assert_allclose(spectra.uses, [1 / 2] * 2, rtol=1e-5)
    assert len(shards) == 3


def test_nothing_but_silence_is_an_error(tmp_path):
    shards = build(tmp_path / 'quiet', [(np.zeros(2000, np.float32), ('silence',))])
    with pytest.raises(DataError, match='quiet: all clips are silent or unreadable'):
        measure(shards)
