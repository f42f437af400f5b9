"""benchmarks/recipes.py: its mixtures, its table, and that it does nothing twice."""

import json
import re

import numpy as np
import pytest
from support.small_separator import CONFIG, save_small

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.checkpoints.equalizer_file import write_equalizer
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.models.equalizer import Equalizer
from data_prep.clips.base import Clip

SAMPLE_RATE = 8000
LABELS = ('dog', 'rain', 'bell')
# Stands in for a training: gives a separator that is there already, and leaves a mark for each start.
TRAINS_NOTHING = """
import pathlib, shutil, sys
workdir = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])
shutil.copytree({small!r}, workdir)
with open(workdir.parent.parent / 'starts', 'a') as starts:
    starts.write(workdir.parent.name + '\\n')
sys.exit(3 if '--fail' in sys.argv else 0)
"""


@pytest.fixture(scope='module')
def recipes(benchmarks_on_path):
    import recipes

    return recipes


def clips(count=6, seconds=0.25):
    rng = np.random.default_rng(0)
    return [
        Clip(
            f'clip-{n}',
            rng.uniform(-0.5, 0.5, int(SAMPLE_RATE * seconds)).astype(np.float32),
            (f'a {LABELS[n % 3]}',),
            (LABELS[n % 3],),
        )
        for n in range(count)
    ]


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp('small') / 'run'
    save_small(folder)
    return folder


@pytest.fixture
def arguments(tmp_path, small):
    """Manifests of six clips of three labels, two settings, and an experiment that trains nothing."""
    for clip in clips():
        write_audio(tmp_path / f'{clip.id}.wav', clip.audio[None], SAMPLE_RATE)
    entries = [{'wav': f'{c.id}.wav', 'caption': c.captions[0], 'label': c.labels[0]} for c in clips()]
    (tmp_path / 'clips.json').write_text(json.dumps({'data': entries}))
    (tmp_path / 'settings.json').write_text(json.dumps({'plain': '', 'other': '--steps 9'}))
    (tmp_path / 'paraphrases.json').write_text(json.dumps({'dog': {'paraphrases': ['a hound']}}))
    (tmp_path / 'experiment.py').write_text(TRAINS_NOTHING.format(small=str(small)))
    return {
        'data': tmp_path / 'clips.json',
        'validation': tmp_path / 'clips.json',
        'settings': tmp_path / 'settings.json',
        'out': tmp_path / 'out',
        'experiment': tmp_path / 'experiment.py',
        'encoder': 'words',
        'sample_rate': SAMPLE_RATE,
        'count': 6,
        'paraphrases': tmp_path / 'paraphrases.json',
    }


def test_mixtures_are_of_two_labels_at_equal_energy(recipes):
    made = recipes.mix(clips(), 8, {'dog': {'paraphrases': ['a hound']}})
    assert len(made.mixtures) == len(made.targets) == len(made.labels) == 8
    for mixture, target in zip(made.mixtures, made.targets, strict=True):
        assert np.mean((mixture - target) ** 2) == pytest.approx(np.mean(target**2), rel=1e-4)
        assert np.abs(mixture).max() <= 0.9 + 1e-6
    assert made.queries['caption'] == [f'a {label}' for label in made.labels]
    assert made.queries['new words'] == ['a hound' if label == 'dog' else '' for label in made.labels]
    for label, wrong in zip(made.labels, made.queries['wrong'], strict=True):
        assert wrong != f'a {label}'
    again = recipes.mix(clips(), 8, {})
    assert all(np.array_equal(a, b) for a, b in zip(made.mixtures, again.mixtures, strict=True))


def test_every_run_is_made_once_and_compared(recipes, arguments, capsys):
    recipes.main(**arguments, seeds=(0,))
    recipes.main(**arguments, seeds=(0, 1))
    starts = (arguments['out'] / 'starts').read_text().split()
    assert starts == ['plain-0', 'other-0', 'plain-1', 'other-1']
    printed = ' '.join(capsys.readouterr().out.split())
    assert '+0.00 (+0.00 … +0.00)' in printed, 'both are the same network'
    assert float(re.search(r'half of the mixture │ 1 │ ([\d.]+)', printed)[1]) == pytest.approx(3.01, abs=0.3)


def test_scores_of_other_flags_are_not_taken(recipes, arguments):
    recipes.main(**arguments)
    with pytest.raises(ConfigError, match=r'plain-0.*is of other flags, --seed 0 --encoder words'):
        recipes.main(**arguments, flags='--steps 5')


def test_a_failed_training_ends_it_and_leaves_no_scores(recipes, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        recipes.main(**arguments, flags='--fail')
    assert ended.value.code == 3
    assert 'plain-0: ended with exit code 3' in capsys.readouterr().err
    assert not (arguments['out'] / 'plain-0' / 'scores.json').exists()


def test_clips_without_a_label_are_refused(recipes, arguments):
    entries = json.loads(arguments['data'].read_text())['data']
    del entries[1]['label']
    arguments['data'].write_text(json.dumps({'data': entries}))
    with pytest.raises(DataError, match=r'clip-1\.wav has no label'):
        recipes.main(**arguments)


def test_three_labels_are_needed(recipes):
    with pytest.raises(DataError, match='at least three labels'):
        recipes.mix(clips(2), 2, {})


def test_settings_must_name_one(recipes, arguments):
    arguments['settings'].write_text('{}')
    with pytest.raises(ConfigError, match=r'settings\.json: has no settings'):
        recipes.main(**arguments)


def test_labels_with_capitals_get_their_equalizer(recipes, arguments, tmp_path):
    """Shards keep labels in lower case, and manifests do not."""
    shards = tmp_path / 'shards'
    recipes.build_shards(recipes.read_manifest(arguments['data']), shards, sample_rate=SAMPLE_RATE, name='clips')
    mixtures = recipes.mix(clips(), 6, {})
    fixed = recipes.fit_training_mask([shards], sample_rate=SAMPLE_RATE, window_size=1024, hop_size=256)
    plain = recipes.floors(mixtures, fixed)
    mixtures.labels[:] = [label.title() for label in mixtures.labels]
    assert recipes.floors(mixtures, fixed) == plain
    assert plain['fixed mask'] != plain['half of the mixture']


def test_the_network_is_scored_alone_and_with_its_equalizer(recipes, small, tmp_path):
    mixtures = recipes.mix(clips(), 6, {})
    assert set(recipes.score(small, mixtures)) == {'caption', 'blended', 'wrong'}
    run = tmp_path / 'run'
    save_small(run)
    bins = CONFIG.window_size // 2 + 1
    embeddings = np.eye(2, CONFIG.condition_size, dtype=np.float32)
    # Of two captions with the same spectra, every query gets half of the mixture.
    same = Equalizer(embeddings, np.ones((2, bins), np.float32), np.ones(2, np.float32), 0.1, 1.0)
    write_equalizer(run, same, load_encoder('words').identity())
    scores = recipes.score(run, mixtures)
    assert scores['caption'] == recipes.score(small, mixtures)['caption']
    half = recipes._scores([x / 2 for x in mixtures.mixtures], mixtures, range(6))
    for metric in recipes.METRICS:
        np.testing.assert_allclose(scores['caption + equalizer'][metric], half[metric], atol=1e-3)
        np.testing.assert_allclose(scores['wrong + equalizer'][metric], half[metric], atol=1e-3)
