"""Names of the files that the command line writes, made from inputs and queries, and checked before any work."""

import collections
import glob
import hashlib
import os
import re
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax.audio.compression import DEFAULT_COMPRESSION, Compression, check_compression
from audiosep_jax.audio.formats import OUTPUT_FILE_SUFFIXES, READABLE_SUFFIXES, WRITABLE_SUFFIXES
from audiosep_jax.audio.writing import Subtype, check_format
from audiosep_jax.errors import AudioFileError, ConfigError, QueryError
from audiosep_jax.separation.query_files import QUERY_SUFFIX
from audiosep_jax.storage.atomic import check_writable

RESIDUAL = 'residual'
_RATE_OF_ALL_FORMATS = 48000  # Hz; the input's rate is checked when it is known
_MAX_QUERY_BYTES = 80
_MAX_NAME_BYTES = 240  # file systems allow 255
# What a template may name, with an example of each.
_FIELDS: dict[str, str | int] = {'stem': 'street', 'query': 'a_dog', 'index': 1, 'input': 1}
_NUMBERS = ('index', 'input')


def expand_inputs(inputs: Sequence[Path], out: Path) -> list[Path]:
    """Replaces each folder by the sound files directly in it, and each pattern by the files that it matches.

    A folder without sounds and a pattern without matches remain; `check_input` reports them.

    Args:
        inputs: files, folders and patterns, in which `**` also matches sub-folders.
        out: where the outputs go.

    Raises:
        ConfigError: the outputs would be written into a folder that is an input.
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


def expand_queries(paths: Sequence[Path]) -> list[Path]:
    """Replaces each folder by the query files directly in it, in the order of their names.

    Raises:
        QueryError: a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file for file in path.iterdir() if file.suffix == QUERY_SUFFIX and not file.name.startswith('.')
            )
            if not inside:
                raise QueryError(f'{path}: no {QUERY_SUFFIX} files in this folder; make one with learn-query')
            found.extend(inside)
        else:
            found.append(path)
    return found


def check_input(source: Path) -> None:
    """Raises AudioFileError for a folder without sounds or a pattern without matches, which `expand_inputs` left."""
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
    compression: Compression = DEFAULT_COMPRESSION,
    template: str | None = None,
) -> dict[Path, list[Path]]:
    """Returns the outputs of each input, one per name, after checking everything that could fail later.

    Args:
        out: a file or a folder.
        inputs: audio files, or `-` for standard input.
        names: from `query_names`, one per query, and possibly `residual`.
        num_queries: how many of the names are queries.
        suffix: of the files in a folder.
        subtype: of the samples. None: it depends on the input.
        compression: of the files.
        template: of the names in a folder, as in `check_template`; None: `{stem}__{query}`.

    Raises:
        ConfigError: no input, an input given twice, one file for several outputs, a template that cannot work, or
            outputs that would overwrite an input or each other.
        AudioFileError: a folder that does not exist or is not writable.
    """
    if not inputs:
        raise ConfigError('no input: name the audio files to separate')
    if out.suffix.lower() in OUTPUT_FILE_SUFFIXES and not out.is_dir():
        suffix = out.suffix
        if len(inputs) > 1 or num_queries > 1:
            raise ConfigError(
                f'-o {out}: with several inputs or queries -o is a folder; give it a name without {suffix}'
            )
        if template is not None:
            raise ConfigError(f'--name {template}: -o {out} names the file already; give a folder')
        check_format(out, subtype or 'PCM_16', sample_rate=_RATE_OF_ALL_FORMATS)
        check_compression(suffix, compression, named=str(out))
        outputs = [out.with_name(_file_name(out.stem, name, suffix)) for name in names[1:]]
        plans, folder = {inputs[0]: [out, *outputs]}, None
    else:
        named = f'{suffix} files in {out}'
        check_format(out / f'x{suffix}', subtype or 'PCM_16', sample_rate=_RATE_OF_ALL_FORMATS, named=named)
        check_compression(suffix, compression, named=named)
        if template is not None:
            template = check_template(template, suffix, num_inputs=len(inputs), num_outputs=len(names))
        plans, folder = {}, out
        for number, (source, stem) in enumerate(zip(inputs, _stems(inputs), strict=True), 1):
            if source in plans:
                raise ConfigError(f'{source}: given twice; once is enough')
            plans[source] = [
                out / _filled(template, suffix, stem=stem, query=name, index=index, input=number)
                for index, name in enumerate(names, 1)
            ]
    _check_folder(out, folder)
    _check_collisions(plans)
    return plans


def _stems(inputs: Sequence[Path]) -> list[str]:
    """Returns the beginning of the names of each input's outputs, as short as the inputs remain distinct.

    For example, talk.mp3 needs its suffix next to talk.wav; in/sub/a.wav needs its folder next to in/a.wav: sub-a.
    """
    names_of: dict[str, set[str]] = collections.defaultdict(set)
    folders_of: dict[str, set[str]] = collections.defaultdict(set)
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
    """Returns whether `out` does not exist and has a suffix, so that the user may mean a file instead of a folder."""
    return bool(out.suffix) and out.suffix.lower() not in OUTPUT_FILE_SUFFIXES and not out.exists()


def _check_folder(out: Path, folder: Path | None) -> None:
    """Checks that the folder for the outputs exists, or can be made in an existing one.

    Further folders are not made, because a typo would make a tree of them.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise AudioFileError(f'-o {out}: is a file, but a folder is needed; give a folder, or a name that ends in .wav')
    check_writable(out, '-o', kind='file' if folder is None else 'folder', error=AudioFileError)


def _check_collisions(plans: dict[Path, list[Path]]) -> None:
    sources = {os.path.realpath(source): source for source in plans}
    owner: dict[str, Path] = {}
    for source, outputs in plans.items():
        alike = [path for path, count in collections.Counter(outputs).items() if count > 1]
        if alike:
            raise ConfigError(f'{source}: several of its outputs would be written to {alike[0]}; use {{query}} whole')
        for path in outputs:
            real = os.path.realpath(path)
            if real in sources:
                raise ConfigError(f'{path}: is an input and would be overwritten; choose another -o')
            # Some file systems ignore upper and lower case.
            first = owner.setdefault(real.casefold(), source)
            if first is not source:
                raise ConfigError(
                    f'{first} and {source} would both be written to {path}; separate one of them with another -o'
                )


def check_template(template: str, suffix: str, *, num_inputs: int, num_outputs: int) -> str:
    """Checks a template of file names, and returns it without the suffix of the files, if it ends in that.

    Args:
        template: with `{stem}` of the input, `{query}` as in `query_names` or `residual`, `{index}` of the sound and
            `{input}`, the number of the input, both from 1. Numbers may be padded: `{index:02}`.
        suffix: of the files.
        num_inputs: of the command.
        num_outputs: of each input.

    Raises:
        ConfigError: an unknown field, a separator of folders, or a template that gives several outputs one name.
    """
    wrong = f'--name {template!r}'
    text = template.removesuffix(suffix)
    other = Path(text).suffix.lower()
    if other in WRITABLE_SUFFIXES:
        raise ConfigError(f'{wrong}: the files are {suffix}; use --format {other[1:]} for others')
    if any(c in '/\\' or unicodedata.category(c)[0] == 'C' for c in text):
        raise ConfigError(f'{wrong}: a name without folders and control characters is needed; -o names the folder')
    try:
        parts = list(string.Formatter().parse(text))
        unknown = [name for _, name, _, _ in parts if name is not None and name not in _FIELDS]
        if unknown:
            raise ConfigError(f'{wrong}: no field {{{unknown[0]}}}; use {", ".join(f"{{{name}}}" for name in _FIELDS)}')
        changed = [(name, form, conversion) for _, name, form, conversion in parts if form or conversion]
        if any(c or name not in _NUMBERS or not re.fullmatch('0[1-9]', form or '') for name, form, c in changed):
            raise ConfigError(f'{wrong}: only {{index}} and {{input}} can be padded with zeros: {{index:02}}')
        if not text.format(**_FIELDS).strip():
            raise ConfigError(f'{wrong}: the name is empty')
    except ValueError as error:
        raise ConfigError(f'{wrong}: {error}; write, for example, {{stem}}_{{query}}') from error
    fields = {name for _, name, _, _ in parts}
    if num_outputs > 1 and not fields & {'query', 'index'}:
        raise ConfigError(f'{wrong}: needs {{query}} or {{index}}, because every input has {num_outputs} outputs')
    if num_inputs > 1 and not fields & {'stem', 'input'}:
        raise ConfigError(f'{wrong}: needs {{stem}} or {{input}}, because there are {num_inputs} inputs')
    return text


def _filled(template: str | None, suffix: str, *, stem: str, query: str, index: int, input: int) -> str:
    if template is None:
        return _file_name(stem, query, suffix)
    name = template.format(stem=stem, query=query, index=index, input=input)
    return _shorten(name, _MAX_NAME_BYTES - len(suffix), name) + suffix


def query_names(queries: Sequence[str]) -> list[str]:
    """Returns distinct parts of file names for queries: of two that would be equal, the later one gets a number."""
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
    """Returns the part of the file name for what is left when the queries are removed."""
    return _safe_name('without ' + ' and '.join(queries))


def _safe_name(text: str) -> str:
    """Makes a part of a file name, in which what is special to file systems or shells becomes `_`."""
    text = unicodedata.normalize('NFC', text)
    # Of the invisible characters only the joiners stay, which emoji and some scripts need. Others reverse the direction
    # of what follows, so that a name can hide its suffix, or are not text at all.
    text = ''.join(c if c in '\u200c\u200d' or unicodedata.category(c)[0] not in 'CZ' else ' ' for c in text)
    text = re.sub(r'[\s/\\:*?"<>|$`!\'&;#~%{}()\[\]^,=@+.]+', '_', text)
    return _shorten(text.strip('_-') or 'query', _MAX_QUERY_BYTES, text)


def _file_name(stem: str, name: str, suffix: str) -> str:
    rest = f'__{name}{suffix}'
    return _shorten(stem, _MAX_NAME_BYTES - len(os.fsencode(rest)), stem) + rest


def _shorten(text: str, max_bytes: int, identity: str) -> str:
    """Cuts text between characters to `max_bytes`, with a hash of `identity` at its end to keep it distinct."""
    data = os.fsencode(text)
    if len(data) <= max_bytes:
        return text
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]
    return data[: max_bytes - len(digest) - 1].decode('utf-8', 'ignore') + '-' + digest
