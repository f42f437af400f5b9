"""The fixed spectral mask of a training set: fitted on clips of any length, found by labels and captions, scored."""

import numpy as np
import pytest
from support.band_separator import CONFIG, HERTZ, BandSeparator, make_music, rows_of, sound

from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.baselines import SpectralMask
from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.loading import load_item
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate, score_estimates
from audiosep_jax.evaluation.training_mask import fit_training_mask
from data_prep.build import build_shards
from data_prep.clips.base import Clip

STFT = {'window_size': CONFIG.window_size, 'hop_size': CONFIG.hop_size}
# Beside its own tone, each class has some of another, so that no mask is all or nothing.
RECIPES = {'low hum': (1.0, 0.5, 0.0), 'whistle': (0.0, 1.0, 0.5), 'hiss': (0.5, 0.0, 1.0)}


def clip_of(kind, samples):
    return sum(share * sound(name, samples) for share, name in zip(RECIPES[kind], HERTZ, strict=True))


def build(folder, clips, **settings):
    build_shards(clips, folder, **{'sample_rate': 8000, 'name': 'small', 'clips_per_shard': 4, **settings})
    return folder


@pytest.fixture
def labelled(tmp_path):
    clips = [
        Clip(
            f'{kind}-{n}', gain * clip_of(kind, n), (f'the sound of a {kind}', f'{kind} {n}'), (kind.replace(' ', '_'),)
        )
        for kind in RECIPES
        for n, gain in ((4000, 1.0), (3000, 0.01), (70, 0.5))
    ]
    return build(tmp_path / 'shards', [*clips, Clip('silent', np.zeros(500, np.float32), ('nothing',), ('hiss',))])


def test_it_is_the_equalizer_of_the_classes(labelled):
    mask = fit_training_mask([labelled], sample_rate=8000, **STFT)
    direct = SpectralMask.fit({kind: clip_of(kind, 4000)[None] for kind in RECIPES}, **STFT)
    peaks = [round(hertz * STFT['window_size'] / 8000) for hertz in HERTZ.values()]
    for kind, gains in direct.masks.items():  # the clips' lengths and levels do not matter
        np.testing.assert_allclose(mask.mask.masks[kind.replace(' ', '_')][peaks], gains[peaks], atol=0.02)
    assert mask.about == f'9 clips of 3 classes in {labelled}'
    assert fit_training_mask([labelled], sample_rate=8000, **STFT).digest() == mask.digest()
    assert fit_training_mask([labelled], sample_rate=16000, **STFT).digest() != mask.digest()


def test_clips_of_one_length_give_the_masks_of_arrays(tmp_path):
    rng = np.random.default_rng(0)
    audio = {name: 0.1 * rng.standard_normal((3, 2000)).astype(np.float32) for name in 'abc'}
    audio['b'] = np.cumsum(audio['b'], axis=-1) / 30
    clips = [Clip(f'{name}{i}', one, (name,)) for name, some in audio.items() for i, one in enumerate(some)]
    mask = fit_training_mask([build(tmp_path / 'shards', clips)], sample_rate=8000, **STFT)
    for name, gains in SpectralMask.fit(audio, **STFT).masks.items():
        np.testing.assert_allclose(mask.mask.masks[name], gains, atol=1e-3)


def test_classes_are_found_by_labels_and_captions(labelled, tmp_path):
    mask = fit_training_mask([labelled], sample_rate=8000, **STFT)
    for label, text, found in (
        ('Low Hum', '', 'low_hum'),
        ('low_hum', 'hiss', 'low_hum'),
        ('', 'The sound of a  whistle', 'whistle'),
        ('unknown', 'hiss 3000', 'hiss'),
        ('unknown', 'a tuba', None),
    ):
        assert mask.class_of(Item('x', {'caption': text}, None, None, label)) == found
    mixtures = np.stack([sound('hiss'), sound('whistle')])
    half, own = mask.separate(mixtures, [None, 'whistle'])
    np.testing.assert_array_equal(half, mixtures[0] / 2)
    np.testing.assert_array_equal(own, mask.mask.separate(mixtures[1:], ['whistle'])[0])

    unlabelled = build(tmp_path / 'unlabelled', [Clip(kind, clip_of(kind, 4000), (kind,)) for kind in RECIPES])
    assert set(fit_training_mask([unlabelled], sample_rate=8000, **STFT).mask.masks) == set(RECIPES)


def test_its_row_has_the_scores_of_the_masks(labelled, tmp_path):
    make_music(tmp_path / 'music')
    benchmark = read_benchmark(tmp_path / 'music')
    results = evaluate(BandSeparator(), benchmark, Options(train_data=(labelled,)))
    assert list(rows_of(results)) == [
        'separated', 'no separation', 'half of the mixture', 'fixed spectral mask', 'oracle ratio mask',
        'shuffled query',
    ]  # fmt: skip
    mask = fit_training_mask([labelled], sample_rate=8000, **STFT)
    sounds = [load_item(item, 8000) for item in benchmark.items]
    # Batches are padded with zeros, so the mask sees the last frames as if silence followed.
    padded = np.stack([np.pad(one.mixture, (0, 16384 - len(one.mixture))) for one in sounds])
    estimates = mask.separate(padded, [mask.class_of(item) for item in benchmark.items])
    estimates = [estimate[: len(one.mixture)] for estimate, one in zip(estimates, sounds, strict=True)]
    direct = score_estimates('x', estimates, [one.target for one in sounds], [one.mixture for one in sounds])
    by_item = [item.scores['fixed spectral mask'] for item in results.items]
    assert np.mean([scores['SDRi'] for scores in by_item]) == pytest.approx(direct.sdri, abs=1e-3)
    assert np.mean([scores['SI-SDR'] for scores in by_item]) == pytest.approx(direct.si_sdr, abs=1e-3)
    assert direct.sdri > 3.5
    assert f'fixed spectral mask: fitted on 9 clips of 3 classes in {labelled}' in results.notes


def test_items_without_a_class_get_half_of_the_mixture_and_are_counted(tmp_path):
    kinds = ['low hum', 'whistle']
    folder = build(tmp_path / 'shards', [Clip(kind, clip_of(kind, 4000), (kind,), (kind,)) for kind in kinds])
    make_music(tmp_path / 'music')
    results = evaluate(BandSeparator(), read_benchmark(tmp_path / 'music'), Options(train_data=(folder,)))
    assert any('1 of 4 items have no class there, and get half of the mixture' in note for note in results.notes)
    scores = results.items[3].scores
    assert scores['fixed spectral mask'] == pytest.approx(scores['half of the mixture'], abs=1e-3)


def test_scores_are_kept_for_each_mask(labelled, tmp_path):
    make_music(tmp_path / 'music')
    benchmark, separator = read_benchmark(tmp_path / 'music'), BandSeparator()
    for options, calls in (({}, 2), ({'train_data': (labelled,)}, 4), ({'train_data': (labelled,)}, 4), ({}, 4)):
        evaluate(separator, benchmark, Options(**options), journal=tmp_path / 'out')
        assert separator.calls == calls


def test_sets_that_cannot_be_used_are_one_line(labelled, tmp_path):
    with pytest.raises(DataError, match='needs clips of at least two classes'):
        fit_training_mask([build(tmp_path / 'one', [Clip('a', sound('hiss'), ('hiss',))])], sample_rate=8000, **STFT)
    with pytest.raises(DataError):
        fit_training_mask([tmp_path / 'nowhere'], sample_rate=8000, **STFT)
    make_music(tmp_path / 'music')
    other = build(tmp_path / 'other', [Clip(name, sound('hiss'), (name,)) for name in ('a', 'b')])
    with pytest.raises(DataError, match=r"label or caption of the 2 clips of 2 classes in .*; the first is 'low hum'"):
        evaluate(BandSeparator(), read_benchmark(tmp_path / 'music'), Options(train_data=(other,)))
