"""Compares ways to keep an unwanted sound out of the target, on mixtures whose parts are known.

    python benchmarks/queries.py --checkpoint RUN --data DIR
    python benchmarks/queries.py --checkpoint quickstart

DIR has the layout of the MUSIC benchmark (music_eval.csv, mixture-IDX, segment-IDX). The unwanted sound is the mixture
minus its segment. Its name is the table's `noise_wav` without the number ('acoustic guitar-0'). Without DIR, the
mixtures are those on which the quick start is scored, of clips that it has not heard. There are four cases:

    named      query for the caption, exclude the other sound
    both       query for 'CAPTION and OTHER', exclude the other sound
    absent     query for the caption, exclude a sound that is not in the mixture: the cost of an unnecessary --not
    alike      query for the caption, exclude 'CAPTION outdoors': the cost of excluding nearly the target

For each method, the tables show the SDRi, its difference from the plain query with the 95 % bootstrap interval over
mixtures, and how much of the unwanted sound and of the target is left, in dB relative to the mixture (by least squares
per frequency on the two, as BSS-eval does with its filters). The tables are also written as JSON.
"""

import csv
import json
import re
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import DataError, reported
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.query_texts import wrong_queries
from audiosep_jax.evaluation.statistics import bootstrap_interval
from audiosep_jax.metrics import sdri
from audiosep_jax.separation.exclusion import exclude
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.queries import Query, embed
from audiosep_jax.separation.separator import Separator
from audiosep_jax.storage.cache import enable_compilation_cache
from data_prep.datasets.synthetic import SyntheticClips

DECIBELS = 10 / np.log(10)
# Mixtures, targets, captions, the names of the other sounds, and those of sounds that are not there.
Sounds = tuple[list[np.ndarray], list[np.ndarray], list[str], list[str], list[str]]
QUICKSTART_CLASSES = ('siren', 'dog', 'guitar', 'rain', 'clock', 'telephone', 'knocking', 'cat')


def main(
    checkpoint: Path,
    data: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name='json')] = None,
    seed: int = 0,
    only: tuple[str, ...] = ('named', 'both', 'absent', 'alike'),
) -> None:
    """Measures, and prints the tables.

    Args:
        checkpoint: folder of a training run.
        data: folder of the benchmark; by default the mixtures of the quick start.
        json_file: also write the numbers to this file.
        seed: seed of the absent sounds and of the bootstrap.
        only: the cases to measure.
    """
    enable_compilation_cache()
    separator = load(checkpoint)
    rate = separator.config.sample_rate
    rng = np.random.default_rng(seed)
    sounds = quickstart_mixtures(rate, rng) if data is None else read(data, rate, rng)
    mixtures, targets, captions, others, absent = sounds
    cases = {
        'named': (captions, others),
        'both': ([f'{a} and {b}' for a, b in zip(captions, others, strict=True)], others),
        'absent': (captions, absent),
        'alike': (captions, [f'{caption} outdoors' for caption in captions]),
    }
    figures = {}
    for case in only:
        asked, unwanted = cases[case]
        estimates = methods(separator, mixtures, asked, unwanted)
        figures[case] = {name: score(separator, *row, seed) for name, row in rows(estimates, targets, mixtures).items()}
        Console().print(table(case, len(mixtures), figures[case]))
    if json_file:
        json_file.write_text(json.dumps({'mixtures': len(mixtures), **figures}, indent=2) + '\n')


def read(data: Path, rate: int, rng: np.random.Generator) -> Sounds:
    """Returns mixtures and targets, float32 [T_i], the captions, and the names of the other and of absent sounds."""
    benchmark = read_benchmark(data, 'music')
    pairs, bad_rows = benchmark.items, benchmark.bad_rows
    with (data / 'music_eval.csv').open(newline='', encoding='utf-8-sig') as file:
        names = {row['idx'].strip(): row.get('noise_wav') or '' for row in csv.DictReader(file)}
    others = [re.sub(r'[-_ ]*\d*$', '', Path(names[pair.name]).name).replace('_', ' ') for pair in pairs]
    if bad_rows or not all(others):
        raise DataError(f'{data}: {bad_rows[0].message if bad_rows else "noise_wav does not name the other sound"}')
    sounds = [
        [read_audio(path, sample_rate=rate, mono=True)[0][0] for path in (pair.mixture, pair.target)] for pair in pairs
    ]
    captions = [pair.label for pair in pairs]
    kinds = sorted({*captions, *others})
    absent = [str(rng.choice([k for k in kinds if k not in pair])) for pair in zip(captions, others, strict=True)]
    return [m for m, _ in sounds], [t for _, t in sounds], captions, others, absent


def quickstart_mixtures(rate: int, rng: np.random.Generator) -> Sounds:
    """Returns the same as `read`, of clips after those of the quick start's training, in pairs of different classes."""
    clips = SyntheticClips(240, 0, 1.5, QUICKSTART_CLASSES, first=640)
    unseen = [clips.read(i, rate) for i in range(len(clips))]
    partners = wrong_queries([clip.labels[0] for clip in unseen], 0)
    assert partners is not None
    mixtures, targets = [], []
    for clip, partner in zip(unseen, partners, strict=True):
        noise = unseen[partner].audio
        mixture = clip.audio + noise * np.sqrt(np.mean(clip.audio**2) / np.mean(noise**2))
        gain = min(1, 0.9 / np.max(np.abs(mixture)))
        mixtures.append(gain * mixture)
        targets.append(gain * clip.audio)
    captions, labels = [clip.captions[0] for clip in unseen], [clip.labels[0] for clip in unseen]
    pairs = [(labels[i], labels[partner]) for i, partner in enumerate(partners)]
    absent = [
        str(rng.choice([c for c, label in zip(captions, labels, strict=True) if label not in pair])) for pair in pairs
    ]
    return mixtures, targets, captions, [captions[i] for i in partners], absent


def methods(
    separator: Separator, mixtures: list[np.ndarray], asked: list[str], unwanted: list[str]
) -> dict[str, list[np.ndarray]]:
    """Returns the estimates of every method, float32 [T_i], the plain query first."""
    size, window, hop = separator.config.condition_size, separator.config.window_size, separator.config.hop_size

    def run(embeddings, sounds=mixtures):
        return separator.separate_batch(sounds, embeddings)

    def unit(embeddings):
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    queries = [Query.text(a).without(b) for a, b in zip(asked, unwanted, strict=True)]
    embedded = [embed(query, separator.encoder, size) for query in queries]
    p, n = (embed(texts, separator.encoder, size).queries for texts in (asked, unwanted))
    taken, apart = (np.concatenate(rows) for rows in zip(*((e.queries, e.unwanted) for e in embedded), strict=True))
    plain, other, without, other_apart = run(p), run(n), run(taken), run(apart)

    def masked(estimates, exponent, strength):
        return [wiener(*pair, exponent, strength, window, hop) for pair in zip(estimates, other, strict=True)]

    def kept_out(strength):
        pairs = zip(without, other_apart, strict=True)
        settings = {'window_size': window, 'hop_size': hop, 'strength': strength}
        return [exclude(a[None], b[None, None], **settings)[0] for a, b in pairs]

    less = [m - o for m, o in zip(mixtures, other, strict=True)]
    return {
        'plain query': plain,
        **{f'embedding p - {s:g} n': run(unit(p - s * n)) for s in (0.25, 0.5, 1)},
        'embedding p - (p.n) n': run(unit(p - np.sum(p * n, axis=1, keepdims=True) * n)),
        'embedding of embed()': without,
        **{
            f'mask, power {a}, {s:g} N': masked(plain, a, s)
            for a, s in ((1, 0.5), (1, 1), (2, 0.5), (2, 1), (4, 0.7), (4, 1))
        },
        'at most |X| - |N|': [excess(*arrays, window, hop) for arrays in zip(plain, other, mixtures, strict=True)],
        'mixture less N, then p': run(p, less),
        'mixture less N': less,
        'embed() and keep_out(0.7)': kept_out(0.7),
        'embed() and keep_out(1)': kept_out(1.0),
    }


@jax.jit(static_argnums=(2, 4, 5))
def wiener(target, other, exponent, strength, window, hop):
    """Returns P·|P|ᵃ / (|P|ᵃ + |s·N|ᵃ) for the spectra P of `target` and N of `other`, as [T]."""
    spectrum, unwanted = stft(target, window, hop), strength * stft(other, window, hop)
    ratio = (jnp.abs(unwanted) / jnp.maximum(jnp.abs(spectrum), 1e-15)) ** exponent
    return istft(spectrum / (1 + ratio), window, hop, length=target.shape[-1])


@jax.jit(static_argnums=(3, 4))
def excess(target, other, mixture, window, hop):
    """Returns P with its magnitude limited to |X| − |N|, for the spectra X of `mixture` and N of `other`, as [T]."""
    spectrum, unwanted, whole = (stft(x, window, hop) for x in (target, other, mixture))
    magnitude = jnp.abs(spectrum)
    room = jnp.maximum(jnp.abs(whole) - jnp.abs(unwanted), 0)
    gain = jnp.minimum(1, room / jnp.maximum(magnitude, 1e-15))
    return istft(spectrum * gain, window, hop, length=target.shape[-1])


def rows(estimates: dict, targets: list, mixtures: list) -> dict[str, tuple]:
    """Returns what `score` needs for each method: its estimates, the plain query's, targets, mixtures."""
    plain = next(iter(estimates.values()))
    return {name: (own, plain, targets, mixtures) for name, own in estimates.items()}


def score(separator: Separator, own: list, plain: list, targets: list, mixtures: list, seed: int) -> dict:
    """Returns one row of the table: means over mixtures in dB."""
    window, hop = separator.config.window_size, separator.config.hop_size
    scores = np.array(
        [
            (float(_sdri(t, e, m)), float(_sdri(t, p, m)), *map(float, _left(t, m, e, window, hop)))
            for e, p, t, m in zip(own, plain, targets, mixtures, strict=True)
        ]
    )
    change = scores[:, 0] - scores[:, 1]
    return {
        'SDRi': float(scores[:, 0].mean()),
        'change': float(change.mean()),
        'change_interval': list(bootstrap_interval(change, None, seed)),
        'unwanted_left': float(scores[:, 3].mean()),
        'unwanted_left_interval': list(bootstrap_interval(scores[:, 3], None, seed)),
        'target_left': float(scores[:, 2].mean()),
    }


_sdri = jax.jit(sdri)


@jax.jit(static_argnums=(3, 4))
def _left(target, mixture, estimate, window, hop):
    """Returns how much of the target and of the rest of the mixture an estimate has, in dB, by a gain per frequency.

    Both complex gains are fitted together, so that what the two sounds have in common by chance is not counted twice.
    """
    parts = jnp.stack([stft(target, window, hop), stft(mixture - target, window, hop)], -1)  # [N, F, 2]
    gram = jnp.einsum('nfi,nfj->fij', parts.conj(), parts)
    against = jnp.einsum('nfi,nf->fi', parts.conj(), stft(estimate, window, hop))
    energies = jnp.einsum('fii->fi', gram).real  # [F, 2]
    # The gain of a part that is silent at a frequency is undetermined, but it has no weight.
    gram += (1e-6 * energies.sum(-1) + 1e-12)[:, None, None] * jnp.eye(2)
    gains = jnp.linalg.solve(gram, against[..., None])[..., 0]
    left = jnp.sum(jnp.abs(gains) ** 2 * energies, axis=0)
    return DECIBELS * jnp.log(jnp.maximum(left, 1e-9) / jnp.maximum(energies.sum(0), 1e-9))


def table(case: str, count: int, figures: dict) -> Table:
    """Returns the rows of one case as a table for a terminal."""
    result = Table(title=f'{case}: {count} mixtures, dB')
    result.add_column('', no_wrap=True)
    for column in ('SDRi', 'change', '95 %', 'unwanted left', 'target left'):
        result.add_column(column, justify='right')
    for name, row in figures.items():
        low, high = row['change_interval']
        result.add_row(
            name,
            f'{row["SDRi"]:.2f}',
            f'{row["change"]:+.2f}',
            f'{low:+.2f} … {high:+.2f}',
            f'{row["unwanted_left"]:.1f}',
            f'{row["target_left"]:.1f}',
        )
    return result


if __name__ == '__main__':
    with reported('queries'):
        tyro.cli(main)
