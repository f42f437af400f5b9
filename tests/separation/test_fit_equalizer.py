"""Equalizers that are fitted to bands of noise pass the band that a query asks for."""

import dataclasses

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE

from audiosep_jax.data.mean_spectra import caption_spectra
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import DataError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import gains
from audiosep_jax.separation import fit_equalizer as fitting
from audiosep_jax.separation.fit_equalizer import fit_equalizer
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions

MODEL = ModelConfig(sample_rate=SAMPLE_RATE, window_size=128, hop_size=64, widths=(2, 2))
BANDS = {'a dog barking': (200, 900), 'a bird singing': (2500, 3500)}


def noise(band, seed, samples=4000):
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum[(frequencies < band[0]) | (frequencies > band[1])] = 0
    return (0.1 * np.fft.irfft(spectrum) / np.fft.irfft(spectrum).std()).astype(np.float32)


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bands')
    clips = [
        Clip(f'{text}-{n}', noise(band, 10 * n + len(text)), (text + extra,))
        for text, band in BANDS.items()
        for n, extra in enumerate(('', ' loudly', ' far away', ' twice'))
    ]
    build_shards(clips, folder, sample_rate=SAMPLE_RATE, name='bands', clips_per_shard=8)
    embed_captions(folder, load_encoder('words'))
    return Shards(folder)


def test_a_query_passes_its_band(shards):
    equalizer = fit_equalizer([shards], 'words', (), MODEL, 0.5)
    assert equalizer.share == 0.5
    assert equalizer.power.shape == (8, 65)
    frequencies = np.arange(65) * SAMPLE_RATE / 128
    queries = load_encoder('words').encode_text(['the dog is barking', 'the bird is singing'])
    found = np.asarray(gains(equalizer.weights(), queries))
    inside = [(frequencies > low + 150) & (frequencies < high - 150) for low, high in BANDS.values()]
    for own, other in ((0, 1), (1, 0)):
        assert found[own, inside[own]].min() > 0.6  # at most 2/3, because the mean has half of the band
        assert found[own, inside[other]].max() < 0.05


def test_it_is_the_same_each_time(shards):
    first, second = (fit_equalizer([shards], 'words', (), MODEL, 0.5) for _ in range(2))
    for one, other in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True):
        np.testing.assert_array_equal(one, other)


def left_out(spectra, temperature):
    """The same without any tricks: the equalizer of all other clips, for each clip."""
    ratios = []
    mean = np.average(spectra.power[spectra.clips], axis=0, weights=spectra.uses)
    for clip in range(len(spectra.power)):
        use = np.flatnonzero(spectra.clips == clip)[0]
        others = np.flatnonzero(spectra.clips != clip)
        cosines = spectra.embeddings[spectra.captions] @ spectra.embeddings[spectra.captions[use]]
        nearness = spectra.uses[others] * np.exp((cosines[others] - cosines[others].max()) / temperature)
        power = nearness @ spectra.power[spectra.clips[others]] / nearness.sum()
        gain, target = power / (power + mean), spectra.power[clip].astype(float)
        ratios.append(10 * np.log10(target.sum() / np.sum((1 - gain) ** 2 * target + gain**2 * mean)))
    return np.mean(ratios)


@pytest.mark.parametrize('meanings', ['words', 'unrelated', 'equal'])
def test_the_temperature_is_the_one_that_predicts_clips_from_the_others(shards, meanings):
    spectra = caption_spectra([shards], 'words', (), sample_rate=SAMPLE_RATE, window_size=128)
    kept = spectra.clips < 7  # whose shares are not exact in binary
    uses = spectra.uses[kept] / spectra.uses[kept].sum()
    spectra = dataclasses.replace(spectra, uses=uses, captions=spectra.captions[kept], clips=spectra.clips[kept])
    spectra = dataclasses.replace(spectra, power=spectra.power[:7])
    captions, inverse = np.unique(spectra.captions, return_inverse=True)
    spectra = dataclasses.replace(spectra, embeddings=spectra.embeddings[captions], captions=inverse)
    if meanings == 'unrelated':
        spectra = dataclasses.replace(spectra, embeddings=np.eye(len(captions), 512, dtype=np.float32))
    if meanings == 'equal':
        spectra = dataclasses.replace(spectra, captions=np.zeros(len(spectra.captions), int))
    found = fitting._mean_sdrs(spectra, *fitting._by_caption(spectra))
    expected = [left_out(spectra, temperature) for temperature in fitting._TEMPERATURES]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_set_of_one_clip_says_nothing_of_temperatures(tmp_path):
    build_shards([Clip('a', noise((200, 900), 0), ('a dog',))], tmp_path / 'x', sample_rate=SAMPLE_RATE, name='x')
    embed_captions(tmp_path / 'x', load_encoder('words'))
    equalizer = fit_equalizer([Shards(tmp_path / 'x')], 'words', (), MODEL, 0.5)
    np.testing.assert_allclose(gains(equalizer.weights(), np.ones((1, 512)))[0, 5:14], 0.5, atol=1e-3)


def test_a_missing_embedding_is_one_line(tmp_path):
    build_shards([Clip('a', noise((200, 900), 0), ('a dog',))], tmp_path / 'x', sample_rate=SAMPLE_RATE, name='x')
    with pytest.raises(DataError, match='no embeddings of encoder'):
        fit_equalizer([Shards(tmp_path / 'x')], 'words', (), MODEL, 0.5)
