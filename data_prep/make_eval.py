"""Makes the mixtures of the evaluation benchmarks from their source datasets and their tables.

The original publishes its mixtures as a download; its tables say which clips were mixed. From them this module makes:

    audiocaps   test clips of AudioCaps (`Y7fmOlUlwoNg`: a video of AudioSet)
    clotho      evaluation clips of Clotho, each with two others
    esc50       clips of ESC-50
    music       ten-second pieces of MUSIC's videos (`Y1mCi6eWXVbg_6`: the seventh piece)
    vggsound    clips of VGGSound (`-JUBdOr8Hes_000030`: from second 30 on)
    audioset    the tables do not say what a clip was mixed with: up to ten clips of each class, each with a clip that
                shares no class with it, drawn with the seed

A mixture adds the noise to the target at the given ratio of their energies over the whole clip, 0 dB by default. If the
mixture would clip, both are scaled to a peak of 0.9, as in the DCASE evaluator. The noise is cut or repeated to the
target's length, and two noises get the same energy. Scores on these mixtures are therefore comparable with each other,
and close to those on the original's download, whose making is not specified in such detail.
"""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from audiosep_jax.audio.writing import write_together
from audiosep_jax.errors import AudioSepError, ConfigError, DataError, LeftOut, LeftOutError
from audiosep_jax.evaluation.loading import is_silent
from audiosep_jax.storage.atomic import replacing
from audiosep_jax.storage.json_files import read_json
from audiosep_jax.storage.tables import read_text, rows_of
from data_prep.clips.listing import bad_row, find_file, list_media, stem_of
from data_prep.clips.media import read_sound
from data_prep.clips.youtube import by_name, find_clip
from data_prep.datasets.audioset import read_audioset, read_classes

# The table from which each benchmark is made; AudioSet's is the list of classes.
TABLES = {
    'audiocaps': 'audiocaps_eval.csv',
    'audioset': 'class_labels_indices.csv',
    'clotho': 'clotho_eval.csv',
    'esc50': 'esc50_eval.csv',
    'music': 'music_eval.csv',
    'vggsound': 'vggsound_eval.csv',
}
PIECE_SECONDS = 10.0  # length of MUSIC's pieces and of VGGSound's clips
_PEAK = 0.9
_PER_CLASS = 10
_SETTINGS = 'make_eval.json'

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Part:
    """The place of a sound: a file, and the part of it that counts."""

    path: pathlib.Path
    start: float = 0.0
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One mixture to make: names of the sounds in the table, and the files to write, relative to the output."""

    name: str
    target: str
    noises: tuple[str, ...]
    target_file: str
    mixture_file: str
    noise_file: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are made from the recipe."""
        return (self.target_file, self.mixture_file, *([self.noise_file] if self.noise_file else []))


@dataclasses.dataclass(frozen=True)
class Made:
    """The result: how many mixtures were made now, how many existed already, and which could not be made."""

    num_made: int
    num_there: int
    left_out: tuple[LeftOut, ...]


def make_eval(
    name: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    metadata: str | os.PathLike | None = None,
    sample_rate: int = 32000,
    snr_db: float = 0.0,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Made:
    """Makes the folder of a benchmark for `audiosep-jax evaluate`. Existing files are kept.

    Args:
        name: name of the benchmark, a key of `TABLES`.
        source: folder of the source dataset, with its sounds at any depth.
        out: folder of the benchmark; its parent must exist.
        metadata: the table, or the folder that holds it; `source` by default.
        sample_rate: sample rate of the files in Hz.
        snr_db: ratio of the target's energy to the noise's, in dB.
        seed: seed of the draw of what AudioSet's clips are mixed with.
        jobs: number of threads.
        progress: called with (mixtures done, mixtures in total).

    Raises:
        ConfigError: the name is unknown, or the folder was begun with other settings.
        DataError: there is no table or no sound, or the output cannot be written.
    """
    if name not in TABLES:
        raise ConfigError(f'{name!r}: make-eval knows {", ".join(TABLES)}')
    if not np.isfinite(snr_db) or sample_rate < 1000:
        raise ConfigError(f'--snr {snr_db}, --sample-rate {sample_rate}: a number of dB, and at least 1000 Hz')
    source, out = pathlib.Path(source), pathlib.Path(out)
    table = _find_table(name, source, metadata)
    left_out: list[LeftOut] = []
    if name == 'audioset':
        recipes, find = _audioset_recipes(source, table, seed, left_out)
    else:
        recipes = _recipes(name, table, left_out)
        find = _finder(name, source, left_out)
    if not recipes:
        raise DataError(f'{table}: lists no mixture{": " + left_out[0].message if left_out else ""}')
    settings = {'benchmark': name, 'snr_db': snr_db, 'sample_rate': sample_rate, 'table': _digest(table)}
    _begin(out, table, settings | ({'seed': seed} if name == 'audioset' else {}))
    missing = [recipe for recipe in recipes if not all((out / file).exists() for file in recipe.files)]
    there = done = len(recipes) - len(missing)
    if progress is not None:
        progress(done, len(recipes))
    # Recipes are queued in groups: with all of them in the queue, thousands would still run after the disk is full.
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for group in _groups(missing, 64):
            for recipe, problem in zip(
                group, pool.map(lambda r: _make(r, find, out, sample_rate, snr_db), group), strict=True
            ):
                if problem is not None:
                    left_out.append(LeftOut(recipe.name, problem.reason, f'{recipe.name}: {problem}'))
                done += 1
            if progress is not None:
                progress(done, len(recipes))
    failed = {left.id for left in left_out}
    _write_left_out(out, left_out)
    return Made(sum(recipe.name not in failed for recipe in missing), there, tuple(left_out))


def mix(target: np.ndarray, noises: Sequence[np.ndarray], snr_db: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes a target, float32 [T], with noises of any length.

    Returns:
        The target, the mixture and the noise as they are in the mixture, float32 [T] each.

    Raises:
        LeftOutError: the target or a noise is silent, so no ratio is defined.
    """
    if is_silent(target):
        raise LeftOutError('excluded', 'its target is silent')
    total = np.zeros(len(target))
    for noise in noises:
        if not len(noise) or is_silent(noise):
            raise LeftOutError('excluded', 'its noise is silent')
        fitted = np.resize(noise, len(target)).astype(np.float64)  # repeated, or cut
        if is_silent(fitted):
            raise LeftOutError('excluded', 'its noise is silent as far as the target lasts')
        total += fitted / np.sqrt(np.mean(fitted**2))
    if is_silent(total):
        raise LeftOutError('excluded', 'its noises cancel')
    wanted = np.mean(np.square(target, dtype=np.float64)) / 10 ** (snr_db / 10)
    total *= np.sqrt(wanted / np.mean(total**2))
    mixture = target + total
    peak = max(np.abs(mixture).max(), np.abs(target).max(), np.abs(total).max())
    gain = _PEAK / peak if peak > 1 else 1.0
    scaled = [np.asarray(gain * sound, np.float32) for sound in (target, mixture, total)]
    return scaled[0], scaled[1], scaled[2]


def _make(
    recipe: Recipe, find: Callable[[str], Part], out: pathlib.Path, sample_rate: int, snr_db: float
) -> LeftOutError | None:
    """Writes the files of one mixture, all or none, and returns the problem if they cannot be made."""
    try:
        sounds = []
        for name in (recipe.target, *recipe.noises):
            part = find(name)
            sounds.append(read_sound(part.path, sample_rate=sample_rate, start=part.start, seconds=part.seconds))
        target, mixture, noise = mix(sounds[0], sounds[1:], snr_db)
    except LeftOutError as error:
        return error
    except AudioSepError as error:
        return LeftOutError('unreadable', str(error))
    files = dict(zip(recipe.files, (target, mixture, noise), strict=False))
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
    write_together({out / file: sound[None] for file, sound in files.items()}, sample_rate)
    return None


# ---- recipes ---------------------------------------------------------------------------------------------------------


def _recipes(name: str, table: pathlib.Path, left_out: list[LeftOut]) -> list[Recipe]:
    """Reads the recipes from a table of the original. Columns are found by position: Clotho's has two of one name."""
    lines = list(rows_of(table, read_text(table), strict=False))
    header = lines[0][1] if lines else []
    fields = {'vggsound': 6, 'audiocaps': 5, 'clotho': 5}.get(name, 4)
    if len(header) != fields:
        raise DataError(f'{table}: {len(header)} columns, expected the {fields} of {TABLES[name]}')
    recipes: dict[str, Recipe] = {}
    for line, row in lines[1:]:
        if not row:
            continue
        if len(row) != fields or not row[0].strip():
            left_out.append(bad_row(table, line, f'not of the form {",".join(header)}'))
            continue
        if name == 'vggsound':
            recipe = _vggsound_recipe(row)
        else:
            index, first = row[0].strip(), fields - (3 if name == 'clotho' else 2)
            files = (f'segment-{index}.wav', f'mixture-{index}.wav')
            recipe = Recipe(f'{name} {index}', row[first], tuple(row[first + 1 :]), *files)
        if recipe is None or not all(_is_inside(file) for file in recipe.files):
            left_out.append(bad_row(table, line, 'its names are not those of clips'))
        else:
            recipes.setdefault(recipe.name, recipe)
    return list(recipes.values())


def _vggsound_recipe(row: Sequence[str]) -> Recipe | None:
    """Returns the recipe of a row, in which `ID_START+++ID_START` names the two clips."""
    names = row[0].split('+++')
    files = (row[2], row[1], row[4])
    return Recipe(row[0], names[0], (names[1],), *files) if len(names) == 2 and all(files) else None


def _is_inside(file: str) -> bool:
    """Whether a path in a table stays inside the output folder."""
    path = pathlib.PurePosixPath(file)
    return not path.is_absolute() and '..' not in path.parts and file.endswith('.wav')


def _audioset_recipes(
    source: pathlib.Path, table: pathlib.Path, seed: int, left_out: list[LeftOut]
) -> tuple[list[Recipe], Callable[[str], Part]]:
    """Pairs ten clips of each class in AudioSet's evaluation split with clips that share no class with them."""
    files = read_audioset(source, 'eval', classes=table)
    left_out += files.left_out
    entries = {entry.id: entry for entry in files.entries}
    ids = sorted(entries)
    names = read_classes(table)
    recipes = []
    for number, label in enumerate(names.values() if isinstance(names, Mapping) else names):
        rng = np.random.default_rng([seed, number])
        own = [clip for clip in ids if label in entries[clip].labels]
        for index, clip in enumerate(sorted(rng.permutation(own)[:_PER_CLASS])):
            stem = f'class_id={number}/class_id={number},index={index:03}'
            labels = set(entries[clip].labels)
            noise = next((other for other in rng.permutation(ids) if labels.isdisjoint(entries[other].labels)), None)
            if noise is None:
                left_out.append(LeftOut(stem, 'excluded', f'{clip}: every other clip shares a class with it'))
                continue
            recipes.append(Recipe(stem, clip, (noise,), f'{stem},source.wav', f'{stem},mixture.wav'))

    def find(clip: str) -> Part:
        entry = entries[clip]
        return Part(files.folder / entry.path, entry.start, entry.seconds)

    return recipes, find


# ---- sounds ----------------------------------------------------------------------------------------------------------


def _finder(name: str, source: pathlib.Path, left_out: list[LeftOut]) -> Callable[[str], Part]:
    """Returns a function that finds a sound by its name in a table, and raises LeftOutError unless exactly one fits."""
    listed = list_media(source, left_out=left_out)
    if not listed:
        raise DataError(f'{source}: no sounds in it: give the folder of the source dataset')
    paths = {stem.strip(): path for stem, path in reversed(by_name(listed).items())}
    videos: dict[str, set[str]] = {}
    for stem, path in paths.items():
        if match := re.match(r'Y?([\w-]{11})(?:_|$)', stem, re.ASCII):
            videos.setdefault(match[1], set()).add(path)

    def find(written: str) -> Part:
        stem = stem_of(pathlib.PurePosixPath(written).name).strip()
        if stem in paths:
            return Part(source / paths[stem])
        found = {'audiocaps': _find_video, 'music': _find_piece, 'vggsound': _find_clip}.get(name, _find_nothing)(
            stem, paths, videos
        )
        if found is None:
            raise LeftOutError('missing', f'{written}: no such sound below {source}')
        return dataclasses.replace(found, path=source / found.path)

    return find


def _find_nothing(stem: str, paths: Mapping[str, str], videos: Mapping[str, set[str]]) -> Part | None:
    return None


def _find_video(stem: str, paths: Mapping[str, str], videos: Mapping[str, set[str]]) -> Part | None:
    """Finds the only clip of a video, named by `Y` and its YouTube id."""
    found = sorted(videos.get(stem.removeprefix('Y') if len(stem) == 12 else stem, ()))
    if len(found) > 1:
        raise LeftOutError('missing', f'{stem}: several files may be meant: {found[0]}, {found[1]}')
    return Part(pathlib.Path(found[0])) if found else None


def _find_piece(stem: str, paths: Mapping[str, str], videos: Mapping[str, set[str]]) -> Part | None:
    """Finds a piece of a video: `Y`, a YouTube id and `_6` name the ten seconds from second 60 on."""
    match = re.fullmatch(r'Y?([\w-]{11})_(\d+)', stem, re.ASCII)
    if match is None:
        return None
    path = paths.get(match[1]) or paths.get(f'Y{match[1]}')
    return Part(pathlib.Path(path), int(match[2]) * PIECE_SECONDS, PIECE_SECONDS) if path else None


def _find_clip(stem: str, paths: Mapping[str, str], videos: Mapping[str, set[str]]) -> Part | None:
    """Finds a clip named by a YouTube id and `_000030`, under any of the names that download scripts give it."""
    match = re.fullmatch(r'([\w-]{11})_(\d+)', stem, re.ASCII)
    if match is None:
        return None
    start = float(match[2])
    path = find_clip(paths, match[1], start, start + PIECE_SECONDS, whole_video=False, only_one=True)
    return Part(pathlib.Path(path)) if path else None


# ---- the folder ------------------------------------------------------------------------------------------------------


def _find_table(name: str, source: pathlib.Path, metadata: str | os.PathLike | None) -> pathlib.Path:
    place = source if metadata is None else pathlib.Path(metadata)
    if place.is_file():
        return place
    table = find_file(place, TABLES[name])
    if table is None:
        raise DataError(
            f'{place}: no {TABLES[name]} in it: give --metadata, the folder evaluation/metadata of AudioSep'
        )
    return table


def _begin(out: pathlib.Path, table: pathlib.Path, settings: dict) -> None:
    """Creates the folder with a copy of the table and the settings. Raises ConfigError if it has other settings."""
    path = out / _SETTINGS
    try:
        out.mkdir(exist_ok=True)
        if path.exists():
            before = read_json(path, dict, remedy='delete it, and the mixtures are made again')
            changed = [f'{k} was {before.get(k)}, is {v}' for k, v in settings.items() if before.get(k) != v]
            if changed:
                raise ConfigError(f'{out} was begun with other settings ({"; ".join(changed)}): give another --out')
            return
        with replacing(out / TABLES[settings['benchmark']]) as temporary:
            temporary.write_bytes(table.read_bytes())
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + '\n', 'utf-8')
    except OSError as error:
        raise DataError(f'{out}: cannot be written: {error.strerror or error}') from error


def _write_left_out(out: pathlib.Path, left_out: Sequence[LeftOut]) -> None:
    """Writes `left_out.csv`, or removes it if nothing was left out."""
    path = out / 'left_out.csv'
    try:
        path.unlink(missing_ok=True)
        if left_out:
            with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
                csv.writer(file).writerows(
                    [('name', 'reason', 'message'), *((left.id, left.reason, left.message) for left in left_out)]
                )
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _groups(items: Sequence[Recipe], size: int) -> Iterator[Sequence[Recipe]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
