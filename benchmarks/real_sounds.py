"""Rebuilds the set of real sounds with captions, which the tables in docs/recipes.md were measured with.

    python benchmarks/real_sounds.py OUT
    python benchmarks/real_sounds.py OUT --packages FOLDER --validation-share 0.2

The sounds are in Debian packages (of Debian 12: games, educational programs, drum kits, voice prompts) and a few
wheels, and have the licences of their packages, so that only the list beside this script, `real_sounds.csv`, is ours.
The packages are downloaded one after the other with `apt-get` and unpacked without root: 4.4 GB in all, and the largest
needs 7 GB in the temporary folder (`TMPDIR`) until its sounds are made. `--packages` takes `.deb` and `.whl` files, or
folders of unpacked packages, instead.

Writes clips of 5 s at 16 kHz into OUT/clips, their captions into OUT/train.json and their sources into OUT/sources.csv.
A run that was interrupted goes on from where it was. What cannot be had is named in a line each and left out.

The set that was measured has 683 clips, of which the list has 570. Left out are 108 phrases that were played on the
instruments of fluid-soundfont-gm, whose notes were not recorded, and 5 clips whose cut could not be found again. So 12
classes are missing: piano, bass guitar, violin, cello, trumpet, saxophone, flute, clarinet, organ, harp, xylophone and
accordion. Against the clips that were measured, the rebuilt ones have an SNR of 77 dB in the median, 555 of them more
than 60 dB, and 21 dB at the least.

Columns of the list; a clip of several sounds has a row for each:

    file, class, package, path, caption
    samples        of the whole sound at 32 kHz, which shows whether a package is the same version
    start, stop    the part of the sound that is used, in samples at 32 kHz
    at             where the part begins in the clip, for each repeat; or `loop`: it is repeated with cross-fades
"""

import csv
import io
import itertools
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
import tyro
from package_files import PackageFiles, check_programs, unpacked
from package_split import describe_split, read_table, split_by_package

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import AudioFileError, DataError, LeftOutError, first_line, listed, reported
from audiosep_jax.storage.atomic import check_writable
from audiosep_jax.storage.buckets import write_bytes
from audiosep_jax.storage.json_files import write_json

LIST = Path(__file__).with_suffix('.csv')
RATE, CUT_RATE, SECONDS = 16000, 32000, 5
LENGTH = CUT_RATE * SECONDS
FADE = 320  # samples at CUT_RATE, at both ends of a part
CROSS_FADE = 1600  # between the repeats of a loop
LEVEL, PEAK = 0.08, 0.95  # the root mean square of a clip, unless its peak would be larger

Row = dict[str, str]


def main(
    out: Path,
    /,
    packages: Path | None = None,
    validation_share: float | None = None,
    seed: int = 0,
    sounds: Path = LIST,
) -> None:
    """Writes OUT/clips, OUT/train.json and OUT/sources.csv, and with a share OUT/validation.json.

    Args:
        out: the folder for the set.
        packages: a folder of packages; without it, they are downloaded.
        validation_share: the largest share of the clips in validation.json. Packages are wholly there or in train.json,
            and classes from one package alone stay in train.json.
        seed: of the split.
        sounds: the list.
    """
    check_writable(out, '', kind='folder')
    if validation_share is not None and not 0 < validation_share < 1:
        raise DataError(f'--validation-share must be between 0 and 1, got {validation_share:g}')
    rows = read_list(sounds)
    clips = {name: list(group) for name, group in itertools.groupby(rows, key=lambda row: row['file'])}
    by_package: dict[str, list[str]] = {}
    for name, parts in clips.items():
        by_package.setdefault(parts[0]['package'], []).append(name)
    if any(not (out / name).exists() for name in clips):
        check_programs(packages)
    for package, names in by_package.items():
        waiting = {name: clips[name] for name in names if not (out / name).exists()}
        for problem in make_clips(package, waiting, packages, out) if waiting else []:
            print(f'left out: {problem}')
        print(f'{package}: {sum((out / name).exists() for name in names)} of {len(names)} clips', flush=True)
    made = [parts for name, parts in clips.items() if (out / name).exists()]
    write_lists(out, made, validation_share, seed)
    print(f'{len(made)} of {len(clips)} clips are in {out}; they have the licences of their packages')


def read_list(path: Path) -> list[Row]:
    """Returns the rows of the list.

    Raises:
        DataError: it is missing, or is no such list.
    """
    columns = ['file', 'class', 'package', 'path', 'caption', 'samples', 'start', 'stop', 'at']
    found, rows = read_table(path)
    if found != columns:
        raise DataError(f'{path}: must have the columns {", ".join(columns)}')
    for number, row in enumerate(rows, start=2):
        places = ['0'] if row['at'] == 'loop' else row['at'].split()
        numbers = [row['samples'], row['start'], row['stop'], *places]
        file = PurePosixPath(row['file'])
        if not places or not all(text.isdecimal() for text in numbers) or file.is_absolute() or '..' in file.parts:
            raise DataError(f'{path}: line {number}: not a row of such a list')
    return rows


def make_clips(package: str, clips: dict[str, list[Row]], folder: Path | None, out: Path) -> list[str]:
    """Writes the clips of a package, and returns why some could not be made.

    Raises:
        DownloadError: the network or a program is missing.
    """
    problems = []
    try:
        with unpacked(package, folder) as files:
            for name, parts in clips.items():
                try:
                    clip = resample(make_clip(files, parts)[None], CUT_RATE, RATE)
                except (AudioFileError, DataError) as error:
                    problems.append(f'{name}: {package}: {first_line(error)}')
                    continue
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                # Rounded down, as the samples of the set were.
                write_audio(out / name, np.floor(clip * 32768) / 32768, RATE)
    except (LeftOutError, DataError) as error:
        problems.append(f'{listed([*clips], 3)}: {package}: {first_line(error)}')
    return problems


def make_clip(files: PackageFiles, parts: list[Row]) -> np.ndarray:
    """Returns a clip at CUT_RATE, float64 [LENGTH], which is the sum of the parts of its rows.

    Several parts are words that were joined: they are equally loud, and only the first is faded, where it begins.

    Raises:
        AudioFileError: a sound cannot be decoded.
        DataError: it is not in the package, or is another version.
    """
    clip = np.zeros(LENGTH)
    for i, row in enumerate(parts):
        sound = read_sound(files, row['path'])
        if abs(len(sound) - int(row['samples'])) > 1:
            raise DataError(f'{row["path"]}: is another version, {len(sound)} samples long instead of {row["samples"]}')
        part = sound[int(row['start']) : int(row['stop'])]
        if len(parts) > 1:
            part = part / max(part.std(), 1e-9)
        fades = (i == 0, len(parts) == 1)
        places = [int(text) for text in row['at'].split()] if row['at'] != 'loop' else None
        clip += looped(part) if places is None else repeated(part, places, fades)
    peak = np.abs(clip).max()
    if not peak:
        raise DataError(f'{parts[0]["path"]}: is silent')
    return clip * min(LEVEL / np.sqrt(np.mean(clip**2)), PEAK / peak)


def read_sound(files: PackageFiles, path: str) -> np.ndarray:
    """Returns a sound of a package at CUT_RATE, float64 [T], mono and without its mean."""
    with tempfile.TemporaryDirectory(prefix='audiosep-') as scratch:
        file = Path(scratch, 'sound').with_suffix(PurePosixPath(path).suffix)
        file.write_bytes(files.read(path))
        try:
            audio = read_audio(file, sample_rate=CUT_RATE, mono=True)[0][0].astype(np.float64)
        except AudioFileError as error:
            raise AudioFileError(str(error).replace(str(file), path)) from error
    return audio - audio.mean()


def repeated(part: np.ndarray, at: list[int], fades: tuple[bool, bool] = (True, True)) -> np.ndarray:
    """Returns LENGTH samples with the part at the places `at`; the clip may cut the last one.

    Args:
        part: float64 [T].
        at: where it begins.
        fades: whether it is faded where it begins, and where it ends.
    """
    part, fade = part.copy(), min(FADE, len(part) // 2)
    ramp = np.linspace(0, 1, fade)
    if fades[0]:
        part[:fade] *= ramp
    if fades[1]:
        part[len(part) - fade :] *= ramp[::-1]
    clip = np.zeros(LENGTH)
    for place in at:
        room = clip[place : place + len(part)]
        room += part[: len(room)]
    return clip


def looped(part: np.ndarray) -> np.ndarray:
    """Returns LENGTH samples of the part, repeated with cross-fades of equal power."""
    ramp = np.sqrt(np.linspace(0, 1, CROSS_FADE))
    if len(part) <= CROSS_FADE:
        raise DataError(f'a loop needs more than {CROSS_FADE} samples')
    clip = part
    while len(clip) < LENGTH:
        middle = clip[-CROSS_FADE:] * ramp[::-1] + part[:CROSS_FADE] * ramp
        clip = np.concatenate([clip[:-CROSS_FADE], middle, part[CROSS_FADE:]])
    return clip[:LENGTH]


def write_lists(out: Path, clips: list[list[Row]], share: float | None, seed: int) -> None:
    """Writes sources.csv, train.json and, with a share, validation.json."""
    rows = [parts[0] for parts in clips]
    table = io.StringIO(newline='')
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(['file', 'class', 'package', 'path in the package'])
    for parts in clips:
        paths = dict.fromkeys(part['path'] for part in parts)
        writer.writerow([parts[0]['file'], parts[0]['class'], parts[0]['package'], ' '.join(paths)])
    write_bytes(out / 'sources.csv', table.getvalue().encode())
    sides = {'train.json': rows}
    if share is not None and rows:
        training, validation = split_by_package(rows, share, seed)
        sides = {'train.json': training, 'validation.json': validation}
        print(describe_split(training, validation))
    for name, side in sides.items():
        entries = [{'wav': row['file'], 'caption': row['caption'], 'label': row['class']} for row in side]
        write_json(out / name, {'data': entries})


if __name__ == '__main__':
    with reported('real_sounds.py'):
        tyro.cli(main)
