"""Where a separator fails: the numbers equal those computed directly from the scores of items."""

import math

import numpy as np
import pytest
from support.band_separator import BandSeparator, make_numbered, mixtures_of

from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.failures.analysis import (
    Case,
    binned,
    by_class,
    cases_of,
    confusions,
    worst,
)
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.results import ItemScore
from audiosep_jax.evaluation.run import Options, evaluate, evaluate_arrays
from audiosep_jax.evaluation.scoring import leak


def case(asked='dog', other='rain', *, sdri=1.0, si_sdr=2.0, snr=0.0, seconds=1.0, share=0.0, mask=None, target='x'):
    scores = {} if mask is None else {'fixed spectral mask': {'SDRi': mask, 'SI-SDR': mask - 1}}
    scored = ItemScore(Item(asked, {}, None, target), False, {}, scores)
    return Case(scored, asked, asked, other, sdri, si_sdr, snr, seconds, share)


def test_leak_is_the_share_of_the_rest():
    rng = np.random.default_rng(0)
    target, rest = rng.standard_normal((2, 4000))
    for share in (0.0, 0.3, 1.0):
        gains = np.sqrt([1 - share, share])
        estimate = 0.2 * (gains[0] * target / np.linalg.norm(target) + gains[1] * rest / np.linalg.norm(rest))
        assert leak(target, target + rest, estimate) == pytest.approx(share, abs=1e-6)
    noise = rng.standard_normal(4000)
    assert leak(target, target + 0.1 * rest, target + noise) < 0.01
    assert leak(target, target + rest, np.zeros(4000)) == 0.0
    assert leak(target, target, target) == pytest.approx(0)


def test_confusions_are_counted_by_pair():
    cases = [case(share=0.9), case(share=0.2), case(other='wind', share=0.6), case('cat', '', share=0.4)]
    cases += [case('cat', '', share=None)]
    found = [(c.asked, c.other, c.confused, c.n, pytest.approx(c.leak)) for c in confusions(cases)]
    assert found == [('dog', 'wind', 1, 1, 0.6), ('dog', 'rain', 1, 2, 0.55), ('cat', '', 0, 1, 0.4)]


def test_bins_hold_every_case_once():
    cases = [case(snr=snr, sdri=snr / 2) for snr in (-20, -2.5, 0, 2.5, 30)]
    groups = binned(cases, lambda case: case.input_snr, (-math.inf, -2.5, 2.5, math.inf), 'dB')
    assert [(g.name, g.n, g.sdri) for g in groups] == [
        ('below -2.5 dB', 1, -10),
        ('-2.5 to 2.5 dB', 2, pytest.approx(-0.625)),
        ('2.5 dB and more', 2, pytest.approx(8.125)),
    ]
    assert binned([], lambda case: case.seconds, (0, 1), 's') == []


def test_classes_and_items_that_fail_come_first():
    cases = [case(si_sdr=4, mask=3), case(si_sdr=2, mask=5), case('cat', si_sdr=-1), case('cat', si_sdr=0, mask=1)]
    cat, dog = by_class(cases)
    assert (cat.name, cat.n, cat.si_sdr, cat.mask_sdri) == ('cat', 2, -0.5, None)
    assert (dog.name, dog.si_sdr, dog.mask_sdri, dog.mask_si_sdr) == ('dog', 3, 4, 3)
    cases = [case(sdri=sdri) for sdri in (3, -2, 5)] + [case(sdri=-9, target=None)]
    assert [c.sdri for c in worst(cases, 2)] == [-2, 3]


def test_cases_are_those_of_the_scores(tmp_path):
    # The table names the rest of the second mixture as its target, so the output is that.
    header = 'idx,caption,src_wav,noise_wav'
    make_numbered(tmp_path, 'music_eval.csv', header, lambda i, kind: [kind])
    text = (tmp_path / 'music_eval.csv').read_text().splitlines()
    sources = ['low hum,a.wav,c.wav', 'hiss,b.wav,d.wav', 'whistle,c.wav,d.wav', 'hiss,d.wav,e.wav']
    (tmp_path / 'music_eval.csv').write_text('\n'.join([text[0], *(f'{i},{row}' for i, row in enumerate(sources))]))
    results = evaluate(BandSeparator(), read_benchmark(tmp_path), Options(shuffled=False))
    cases = cases_of(results)
    assert [(c.asked, c.other) for c in cases] == [
        ('low hum', 'whistle'), ('hiss', 'hiss'), ('whistle', 'hiss'), ('hiss', ''),
    ]  # fmt: skip
    for one, scored in zip(cases, results.items, strict=True):
        assert (one.sdri, one.si_sdr) == (scored.scores['separated']['SDRi'], scored.scores['separated']['SI-SDR'])
        assert one.input_snr == scored.scores['no separation']['SDR'] == pytest.approx(0, abs=0.05)
        assert one.seconds == 0.5
    assert [c.leak > 0.5 for c in cases] == [False, True, False, False]
    assert results.to_dict()['items'][1]['leak'] == cases[1].leak


def test_mixtures_in_memory_have_cases_too():
    mixtures, targets = mixtures_of(['hiss', 'low hum'], ['whistle', 'hiss'])
    cases = cases_of(evaluate_arrays(BandSeparator(), mixtures, [targets[0], np.zeros(4000)], ['hiss', 'low hum']))
    assert [(c.asked, c.other, c.seconds) for c in cases] == [('hiss', '', 0.0)]
