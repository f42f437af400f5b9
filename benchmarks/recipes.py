"""Trains a list of settings over several seeds on any recordings, and compares how well they separate other ones.

    python benchmarks/recipes.py --data train.json --validation validation.json --settings benchmarks/recipes.json \\
        --seeds 0 1 2 --out recipes

The recordings are listed in manifests (docs/data.md) with a label for each clip. Those for validation should come from
other sources. The settings are a JSON file of `{name: flags}`, with flags of `--experiment`; the others are compared
with the first. What is finished is not done again, so the same command resumes, and more seeds or settings add to the
table.

Each clip for validation is mixed at equal energy with a random one of another label. It is asked for by its caption, by
words that are in no caption (`--paraphrases`), and by the caption of a label that is not in the mixture. `blended` is
what its caption gives with a tenth of the mixture left in, as by the web page's strength of 0.9. `+ equalizer` is what
the whole checkpoint gives if it has an equalizer; the other columns are of the network alone.
"""

import dataclasses
import functools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import ConfigError, DataError, reported
from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.scoring import sdr_family
from audiosep_jax.evaluation.statistics import bootstrap_interval
from audiosep_jax.evaluation.training_mask import TrainingMask, fit_training_mask
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.strength import blended
from audiosep_jax.storage.cache import enable_compilation_cache
from audiosep_jax.storage.json_files import read_json, write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.datasets.manifest import read_manifest
from data_prep.embed import embed_captions

HERE = Path(__file__).parent
METRICS = ('sdri', 'si_sdr')
_VERSION = 2  # of the scores: increases when a column comes to mean something else
STRENGTH = 0.9  # see `blended`
Scores = dict[str, dict[str, list[float]]]  # kind of query -> metric -> dB, for each mixture


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Mixtures for validation; lists have one entry for each.

    Attributes:
        mixtures: float32 [T_i].
        targets: float32 [T_i].
        labels: of the targets.
        queries: kind of query -> texts; '' where there is none.
    """

    mixtures: list[np.ndarray]
    targets: list[np.ndarray]
    labels: list[str]
    queries: dict[str, list[str]]


def main(
    data: Path,
    validation: Path,
    settings: Path,
    out: Path,
    experiment: Path = HERE.parent / 'experiments' / 'laptop.py',
    seeds: tuple[int, ...] = (0,),
    flags: str = '',
    encoder: str = 'wordllama',
    sample_rate: int = 16000,
    count: int = 200,
    paraphrases: Path = HERE / 'paraphrases.json',
) -> None:
    """Trains what is not trained yet, and prints the table.

    Args:
        data: manifest of the clips to train on.
        validation: manifest of the clips to mix for validation.
        settings: JSON file of names and flags.
        out: folder for shards, runs and results.
        experiment: script to which the flags are given.
        seeds: of the weights, the order of the data and the mixtures.
        flags: further flags for all settings, such as "--steps 900".
        encoder: query encoder.
        sample_rate: of the shards and the networks, in Hz.
        count: mixtures for validation.
        paraphrases: JSON file of `{label: {"paraphrases": [texts]}}`.
    """
    enable_compilation_cache()
    chosen = read_json(settings, dict[str, str], error=ConfigError)
    if not chosen:
        raise ConfigError(f'{settings}: has no settings: give at least one name and its flags')
    shards = out / 'shards'
    build_shards(read_manifest(data), shards, sample_rate=sample_rate, name='recipes')
    embed_captions(shards, load_encoder(encoder))
    mixtures = mix(read_clips(validation, sample_rate), count, read_json(paraphrases, dict, error=ConfigError))
    results = {}
    for seed in seeds:
        for name, own in chosen.items():
            arguments = [*shlex.split(own), *shlex.split(flags), '--seed', str(seed), '--encoder', encoder]
            results[name, seed] = scores_of_run(experiment, shards, arguments, out / f'{name}-{seed}', mixtures)
    fixed = fit_training_mask([shards], sample_rate=sample_rate, window_size=1024, hop_size=256)
    results |= {(name, 0): scores for name, scores in floors(mixtures, fixed).items()}
    # A file has no width, for which rich takes 80 columns.
    Console(width=None if sys.stdout.isatty() else 320).print(table(results, next(iter(chosen))))


def read_clips(manifest: Path, sample_rate: int) -> list[Clip]:
    """Reads the clips of a manifest.

    Raises:
        DataError: a clip has no label, or there are fewer than two labels.
    """
    listed = read_manifest(manifest)
    clips = [listed.read(i, sample_rate) for i in range(len(listed))]
    if unlabeled := [clip.id for clip in clips if not clip.labels]:
        raise DataError(f'{manifest}: {unlabeled[0]} has no label (nor do {len(unlabeled) - 1} more)')
    if len({clip.labels[0] for clip in clips}) < 2:
        raise DataError(f'{manifest}: has fewer than two labels to mix')
    return clips


def mix(clips: Sequence[Clip], count: int, paraphrases: dict[str, dict[str, list[str]]]) -> Mixtures:
    """Mixes clips of different labels at equal energy, always the same ones. The noise is repeated or cut to fit."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(clips)) for _ in range(-(-count // len(clips)))])[:count]
    made = Mixtures([], [], [], {'caption': [], 'new words': [], 'wrong': []})
    for i in order:
        target = clips[i]
        noise = _another(clips, {*target.labels}, rng)
        wrong = _another(clips, {*target.labels, *noise.labels}, rng)
        sound = np.resize(noise.audio, len(target.audio))
        sound = sound * np.sqrt(np.mean(target.audio**2) / max(np.mean(sound**2), 1e-10))
        gain = min(1, 0.9 / np.max(np.abs(target.audio + sound)))
        made.mixtures.append((gain * (target.audio + sound)).astype(np.float32))
        made.targets.append((gain * target.audio).astype(np.float32))
        made.labels.append(target.labels[0])
        other_words = paraphrases.get(target.labels[0], {}).get('paraphrases') or ['']
        for kind, texts in (('caption', target.captions), ('new words', other_words), ('wrong', wrong.captions)):
            made.queries[kind].append(texts[rng.integers(len(texts))])
    return made


def _another(clips: Sequence[Clip], labels: set[str], rng: np.random.Generator) -> Clip:
    others = [clip for clip in clips if not labels & {*clip.labels}]
    if not others:
        raise DataError('the mixtures for validation need clips of at least three labels')
    return others[rng.integers(len(others))]


def scores_of_run(experiment: Path, shards: Path, arguments: list[str], folder: Path, mixtures: Mixtures) -> Scores:
    """Trains one run and scores it, or reads the scores that it has.

    Raises:
        ConfigError: the scores are of other flags.
        SystemExit: the training failed; it has said why.
    """
    path = folder / 'scores.json'
    if path.exists():
        stored = read_json(path, dict, error=DataError)
        if stored.get('version') != _VERSION:
            raise DataError(f'{path}: was scored by another version: remove it, and the run is scored again')
        if stored['arguments'] != arguments:
            raise ConfigError(f'{path}: is of other flags, {shlex.join(stored["arguments"])}: use another --out')
        return stored['scores']
    command = [sys.executable, experiment, '--workdir', folder / 'run', '--data', shards, *arguments]
    print(f'{folder.name}: {shlex.join(arguments)}', flush=True)
    with (folder.parent / f'{folder.name}.log').open('w') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        print(f'{folder.name}: ended with exit code {code}; see {log.name}', file=sys.stderr)
        raise SystemExit(code)
    scores = score(folder / 'run', mixtures)
    write_json(path, {'version': _VERSION, 'arguments': arguments, 'scores': scores})
    return scores


def score(run: Path, mixtures: Mixtures) -> Scores:
    """Separates the mixtures by each kind of query, by the network alone and with its equalizer."""
    network, whole = load(run, equalizer=0), load(run)
    scores = {}
    for kind, texts in mixtures.queries.items():
        some = [i for i, text in enumerate(texts) if text]
        if not some:
            continue
        embeddings = network.embed([texts[i] for i in some])
        sounds = [mixtures.mixtures[i] for i in some]
        estimates = network.separate_batch(sounds, embeddings)
        scores[kind] = _scores(estimates, mixtures, some)
        if kind == 'caption':
            blends = [blended(x, sound, STRENGTH) for x, sound in zip(estimates, sounds, strict=True)]
            scores['blended'] = _scores(blends, mixtures, some)
        if whole.equalizer is not None:
            scores[f'{kind} + equalizer'] = _scores(whole.separate_batch(sounds, embeddings), mixtures, some)
    return scores


def _scores(estimates: Sequence[np.ndarray], mixtures: Mixtures, which: Sequence[int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for estimate, i in zip(estimates, which, strict=True):
        (scores,) = sdr_family([mixtures.targets[i]], [mixtures.mixtures[i]], {'estimate': [estimate]})
        found['sdri'].append(scores['estimate']['SDRi'])
        found['si_sdr'].append(scores['estimate']['SI-SDR'])
    return found


def floors(mixtures: Mixtures, fixed: TrainingMask) -> dict[str, Scores]:
    """Scores two methods that need no training: half of the mixture, and an equalizer that is told the label."""
    everything = range(len(mixtures.labels))
    classes = [fixed.class_of(Item('', {}, None, None, label)) for label in mixtures.labels]
    estimates = [
        fixed.separate(mixture[None], [name])[0] for mixture, name in zip(mixtures.mixtures, classes, strict=True)
    ]
    return {
        'half of the mixture': {'caption': _scores([x / 2 for x in mixtures.mixtures], mixtures, everything)},
        'fixed mask': {'caption': _scores(estimates, mixtures, everything)},
    }


def table(results: dict[tuple[str, int], Scores], first: str) -> Table:
    """Returns means with 95 % intervals over the mixtures, each averaged over the seeds; differences are paired."""
    kinds = 'caption', 'blended', 'caption + equalizer', 'new words', 'new words + equalizer'
    columns = [(kind, metric) for kind in kinds for metric in METRICS]
    columns += [('wrong', 'sdri'), ('wrong + equalizer', 'sdri')]
    titles = {'sdri': 'SDRi', 'si_sdr': 'SI-SDR'}
    made = Table('setting', 'seeds', *(f'{kind}, {titles[metric]}' for kind, metric in columns), title='dB')
    for name in dict.fromkeys(name for name, _ in results):
        seeds = [seed for other, seed in results if other == name]
        cells = []
        for kind, metric in columns:
            mean = functools.partial(_mean_over_seeds, results, kind=kind, metric=metric)
            own, reference = mean(name), mean(first)
            if own is None:
                cells.append('')
                continue
            cells.append(_with_interval(own))
            if name != first and reference is not None:
                cells[-1] += f'\n{_with_interval(own - reference, sign="+")}'
        made.add_row(name, str(len(seeds)), *cells)
    return made


def _mean_over_seeds(results: dict[tuple[str, int], Scores], name: str, *, kind: str, metric: str) -> np.ndarray | None:
    runs = [scores[kind][metric] for (other, _), scores in results.items() if other == name and kind in scores]
    return np.mean(runs, axis=0) if runs else None


def _with_interval(values: np.ndarray, sign: str = '') -> str:
    low, high = bootstrap_interval(values, None, seed=0)
    return f'{values.mean():{sign}.2f} ({low:{sign}.2f} … {high:{sign}.2f})'


if __name__ == '__main__':
    with reported('recipes'):
        tyro.cli(main)
