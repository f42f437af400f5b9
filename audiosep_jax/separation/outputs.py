"""Which files the command line writes: names made of inputs and queries, and what would go wrong with them."""

import collections
import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax.audio.formats import OUTPUT_FILE_SUFFIXES, READABLE_SUFFIXES
from audiosep_jax.audio.writing import Subtype, check_format
from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.storage.atomic import check_writable

RESIDUAL = 'residual'
_ANY_FORMATS_RATE = 48000  # Hz; the input's is checked when it is known
_MOST_QUERY_BYTES = 80
_MOST_NAME_BYTES = 240  # file systems allow 255


def expand_inputs(inputs: Sequence[Path], out: Path) -> list[Path]:
    """Files as they are; a folder becomes the sound files directly in it, a pattern what it matches (`**` also below).

    A folder without sounds, and a pattern that matches nothing, stay: `check_input` says what they are.

    Raises:
        ConfigError: the outputs would come to lie in a folder that is an input.
    """
    found: list[Path] = []
    for source in inputs:
        if source.is_dir():
            if out.is_dir() and source.samefile(out):
                raise ConfigError(f'-o {out}: is an input, too; its outputs would be inputs of the next run')
            names = sorted(path for path in source.iterdir() if _is_sound(path))
            found.extend(names or [source])
        elif _is_pattern(source):
            matches = sorted(path for path in map(Path, glob.glob(str(source), recursive=True)) if path.is_file())
            found.extend(matches or [source])
        else:
            found.append(source)
    return found


def check_input(source: Path) -> None:
    """Raises AudioFileError for what `expand_inputs` left: a folder without sounds, a pattern without matches."""
    if source.is_dir():
        raise AudioFileError(
            f"{source}: no sound files in this folder (sub-folders are not searched: use '{source}/**/*.wav')"
        )
    if _is_pattern(source):
        raise AudioFileError(f'{source}: nothing matches')


def _is_pattern(source: Path) -> bool:
    return glob.has_magic(str(source)) and not os.path.lexists(source)


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in READABLE_SUFFIXES and not path.name.startswith('.') and path.is_file()


def plan_outputs(
    out: Path,
    inputs: Sequence[Path],
    names: Sequence[str],
    *,
    num_queries: int,
    suffix: str = '.wav',
    subtype: Subtype | None = None,
) -> dict[Path, list[Path]]:
    """Input to outputs, one per name; everything about them that could go wrong goes wrong here, before any work.

    Args:
        out: a file or a folder.
        inputs: audio files, or `-` for standard input.
        names: as `query_names` makes them, one per query and perhaps `residual`.
        num_queries: how many of the names are queries.
        suffix: of the files in a folder.
        subtype: of the samples; None: it depends on the input.

    Raises:
        ConfigError: an output that cannot be meant.
        AudioFileError: a folder that is not there or may not be written.
    """
    if not inputs:
        raise ConfigError('no input: name the audio files to separate')
    if out.suffix.lower() in OUTPUT_FILE_SUFFIXES and not out.is_dir():
        suffix = out.suffix
        if len(inputs) > 1 or num_queries > 1:
            raise ConfigError(
                f'-o {out}: with several inputs or queries -o is a folder; give it a name without {suffix}'
            )
        check_format(out, subtype or 'PCM_16', sample_rate=_ANY_FORMATS_RATE)
        outputs = [out.with_name(_file_name(out.stem, name, suffix)) for name in names[1:]]
        plans, folder = {inputs[0]: [out, *outputs]}, None
    else:
        named = f'{suffix} files in {out}'
        check_format(out / f'x{suffix}', subtype or 'PCM_16', sample_rate=_ANY_FORMATS_RATE, named=named)
        plans, folder = {}, out
        for source, stem in zip(inputs, _stems(inputs), strict=True):
            if source in plans:
                raise ConfigError(f'{source}: given twice; once is enough')
            plans[source] = [out / _file_name(stem, name, suffix) for name in names]
    _check_folder(out, folder)
    _check_collisions(plans)
    return plans


def _stems(inputs: Sequence[Path]) -> list[str]:
    """What the names of each input's outputs begin with, as short as tells the inputs apart.

    Beside talk.wav, talk.mp3 needs its suffix; beside in/a.wav, in/sub/a.wav needs its folder: sub-a.
    """
    names_of, folders_of = collections.defaultdict(set), collections.defaultdict(set)
    for source in inputs:
        names_of[source.stem.casefold()].add(source.name.casefold())
        folders_of[source.name.casefold()].add(os.path.abspath(source.parent))
    stems = []
    for source in inputs:
        stem = source.name if len(names_of[source.stem.casefold()]) > 1 else source.stem
        folders = folders_of[source.name.casefold()]
        above = os.path.relpath(os.path.abspath(source.parent), os.path.commonpath(folders))
        parts = () if above == os.curdir else Path(above).parts
        stems.append('stdin' if str(source) == '-' else '-'.join((*parts, stem)))
    return stems


def looks_like_a_file(out: Path) -> bool:
    """Whether a folder that is yet to be made has a name with a suffix, so that a file may have been meant."""
    return bool(out.suffix) and out.suffix.lower() not in OUTPUT_FILE_SUFFIXES and not out.exists()


def _check_folder(out: Path, folder: Path | None) -> None:
    """The folder for the outputs must be there, or (for a folder of stems) at least its parent: typos make no trees."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise AudioFileError(f'-o {out}: is a file, but a folder is needed; give a folder, or a name that ends in .wav')
    check_writable(out, '-o', kind='file' if folder is None else 'folder', error=AudioFileError)


def _check_collisions(plans: dict[Path, list[Path]]) -> None:
    sources = {os.path.realpath(source): source for source in plans}
    owner: dict[str, Path] = {}
    for source, outputs in plans.items():
        for path in outputs:
            real = os.path.realpath(path)
            if real in sources:
                raise ConfigError(f'{path}: is an input and would be overwritten; choose another -o')
            # Some file systems do not tell upper from lower case.
            first = owner.setdefault(real.casefold(), source)
            if first is not source:
                raise ConfigError(
                    f'{first} and {source} would both be written to {path}; separate one of them with another -o'
                )


def query_names(queries: Sequence[str]) -> list[str]:
    """File-name parts for queries, all different: where two come out alike, the later one gets a number."""
    names: list[str] = []
    taken = {RESIDUAL}
    for query in queries:
        base = name = _safe_name(query)
        number = 2
        while name.casefold() in taken:
            name = f'{base}-{number}'
            number += 1
        taken.add(name.casefold())
        names.append(name)
    return names


def removed_name(queries: Sequence[str]) -> str:
    """File-name part for what is left when the queries are removed."""
    return _safe_name('without ' + ' and '.join(queries))


def _safe_name(text: str) -> str:
    """Text as a part of a file name: letters of any script stay, what file systems or shells trip over becomes `_`."""
    text = unicodedata.normalize('NFC', text)
    # Of the invisible characters only the joiners are kept, which emoji and some scripts are written with; others turn
    # the direction of what follows (a name can then lie about its suffix) or are no text at all.
    text = ''.join(c if c in '\u200c\u200d' or unicodedata.category(c)[0] not in 'CZ' else ' ' for c in text)
    text = re.sub(r'[\s/\\:*?"<>|$`!\'&;#~%{}()\[\]^,=@+.]+', '_', text)
    return _shortened(text.strip('_-') or 'query', _MOST_QUERY_BYTES, text)


def _file_name(stem: str, name: str, suffix: str) -> str:
    rest = f'__{name}{suffix}'
    return _shortened(stem, _MOST_NAME_BYTES - len(os.fsencode(rest)), stem) + rest


def _shortened(text: str, most_bytes: int, identity: str) -> str:
    """Cut at a character to `most_bytes` with a hash of `identity` at the end, so that different texts stay apart."""
    data = os.fsencode(text)
    if len(data) <= most_bytes:
        return text
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]
    return data[: most_bytes - len(digest) - 1].decode('utf-8', 'ignore') + '-' + digest
