"""Reads the benchmarks' layouts on disk, with one reader for each layout.

The layouts are those of `evaluation/evaluate_NAME.py` of AudioSep, for the six benchmarks of the article, of
`dcase_evaluator.py` of the DCASE 2024 Task 9 baseline, and of CLAPSep's tables (`layouts/clapsep.py`).

A table is looked for in the folder that is given for it. Without one, it is looked for in the benchmark's folder and
where the original keeps it (`evaluation/metadata` for `evaluation/data/NAME`). Items at which the original would stop
are left out and reported.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from audiosep_jax.audio.formats import BENCHMARK_SUFFIXES
from audiosep_jax.errors import ConfigError, DataError, LeftOut
from audiosep_jax.evaluation.benchmark import Benchmark, Item, Published, Statistic
from audiosep_jax.evaluation.layouts import clapsep
from audiosep_jax.evaluation.layouts.tables import (
    bad_row,
    first_existing,
    read_header,
    read_rows,
    tables_in,
    with_distinct_names,
)

SPEECH_QUERY = 'speech'
_AUDIOSET_TABLE = 'class_labels_indices.csv'
_AUDIOSET_PER_CLASS = 10  # clips

# Reads (folder, folder of the table or None) -> items, and bad rows of the table.
Reader = Callable[[Path, Path | None], tuple[list[Item], list[LeftOut]]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a benchmark is read and aggregated.

    Attributes:
        title: see `Benchmark`.
        table: name of the table, or of another entry, by which the benchmark's folder is recognized; '' for none.
        read: the reader of the layout.
        statistic: see `Benchmark`.
        query_types: see `Benchmark`.
        num_items: number of items of the complete benchmark; None if it is not fixed.
        num_classes: number of its classes; None if it does not matter. See `_is_benchmark`.
        sample_rate: see `Benchmark`.
        speech: see `Benchmark`.
        published: see `Benchmark`.
    """

    title: str
    table: str
    read: Reader
    statistic: Statistic = 'mean'
    query_types: tuple[str, ...] = ('caption',)
    num_items: int | None = None
    num_classes: int | None = None
    sample_rate: int | None = None
    speech: bool = False
    published: tuple[Published, ...] = ()


def read_benchmark(
    folder: str | Path,
    name: str | None = None,
    *,
    metadata: str | Path | None = None,
    captions: str | Path | None = None,
    query: str | None = None,
    most_items: int | None = None,
) -> Benchmark:
    """Reads a benchmark's table. The audio is neither read nor checked.

    Args:
        folder: folder of the benchmark; for `csv` also the table itself.
        name: a key of `PROTOCOLS`; None: the benchmark whose table is in the folder.
        metadata: folder of the table, if it is another one.
        captions: a CSV with the columns `idx,caption`, which adds a query type named after the file.
        query: one text with which to query every item, instead of the benchmark's own.
        most_items: take at most this number of items, evenly spread over the table (for AudioSet over the classes).

    Raises:
        ConfigError: the name is unknown.
        DataError: the table is missing, or has no usable row.
    """
    folder = Path(folder)
    table_folder = None if metadata is None else Path(metadata)
    named = name is not None
    name = detect(folder, table_folder) if name is None else name
    if name not in PROTOCOLS:
        raise ConfigError(f'unknown benchmark {name!r}: {", ".join(PROTOCOLS)}')
    protocol = PROTOCOLS[name]
    items, bad = protocol.read(folder, table_folder)
    if not items:
        raise DataError(f'{folder}: no usable row in the table of {name}{": " + bad[0].message if bad else ""}')
    notes = []
    is_benchmark = named or _is_benchmark(protocol, items, bad)
    if protocol.num_items and len(items) + len(bad) != protocol.num_items:
        notes.append(f'{len(items) + len(bad)} items here, the complete benchmark has {protocol.num_items}')
    if not is_benchmark:
        notes.append(f'taken for other data in the layout of {name}; --benchmark {name} adds its published scores')
    types = tuple(kind for kind in protocol.query_types if any(kind in item.queries for item in items))
    if query is not None:
        items = [dataclasses.replace(item, queries={'given': query}) for item in items]
        types = ('given',)
    if captions is not None:
        items, kind = _with_captions(items, Path(captions), notes)
        types = (*types, kind)
    if most_items is not None and most_items < len(items):
        notes.append(f'only {most_items} of {len(items)} items are scored')
        items = [items[i * len(items) // most_items] for i in range(most_items)]
    return Benchmark(
        name=name,
        title=protocol.title if is_benchmark else f'data in the layout of {name}',
        items=tuple(items),
        bad_rows=tuple(bad),
        statistic=protocol.statistic,
        query_types=types,
        sample_rate=protocol.sample_rate,
        speech=protocol.speech,
        published=protocol.published if is_benchmark else (),
        notes=tuple(notes),
    )


def _is_benchmark(protocol: Protocol, items: Sequence[Item], bad: Sequence[LeftOut]) -> bool:
    """Returns whether data is probably the benchmark itself, and not somebody's own in the same layout."""
    num_classes = len({item.label for item in items})
    if protocol.read is _read_audioset:  # of whose clips some are no longer on YouTube
        return num_classes + len(bad) == protocol.num_classes
    is_size = protocol.num_items in (None, len(items) + len(bad))
    return is_size and protocol.num_classes in (None, num_classes)


def detect(folder: Path, metadata: Path | None = None) -> str:
    """Returns the name of the benchmark in a folder.

    Args:
        folder: folder of the benchmark, or a CSV.
        metadata: folder of the table, if it is another one.

    Raises:
        DataError: the folder does not hold a benchmark.
    """
    if folder.suffix.lower() == '.csv' and folder.is_file():
        return 'csv'
    _check_exists(folder)
    found = clapsep.detect([folder, *([metadata] if metadata else [])])  # first: its tables have the names of others
    if found is not None:
        return found
    for name, protocol in PROTOCOLS.items():
        if protocol.table and any((place / protocol.table).exists() for place in (folder, metadata) if place):
            return name
    if any(folder.glob('class_id=*')):
        return 'audioset'
    tables = tables_in(folder)
    if any({'mixture', 'query'} <= set(read_header(table)) for table in tables):
        return 'csv'
    if (folder / 'dataset_info.json').is_file():
        raise DataError(
            f'{folder}: is a dataset of data_prep for training; give a benchmark: mixtures with their targets and '
            'queries (docs/evaluate.md)'
        )
    if folder.name in PROTOCOLS:  # the original keeps its tables in another folder
        return folder.name
    if tables:
        return 'csv'
    names = ', '.join(protocol.table for protocol in PROTOCOLS.values() if protocol.table)
    raise DataError(
        f'{folder}: not a benchmark: it holds none of {names}, no folders class_id=K (AudioSet), and no table '
        'mixture,target,query'
    )


def find_benchmarks(folder: str | Path) -> dict[str, Path]:
    """Returns the sub-folders that are named after benchmarks, by the benchmark's name.

    Sub-folders of `folder/data` count as well, because the original has them there.

    Raises:
        DataError: there are none.
    """
    folder = Path(folder)
    _check_exists(folder)
    places = [folder / 'data', folder]
    found = {name: place / name for place in places for name in PROTOCOLS if (place / name).is_dir()}
    if not found:
        raise DataError(f'{folder}: has none of the sub-folders {", ".join(PROTOCOLS)}')
    return {name: found[name] for name in PROTOCOLS if name in found}


# ---- tables ----------------------------------------------------------------------------------------------------------


def _numbered_reader(table: str, columns: Sequence[str], texts: Mapping[str, str], *, label: str = '') -> Reader:
    """Returns a reader of files `segment-IDX` and `mixture-IDX` with a table.

    Args:
        table: the table's file name.
        columns: the columns that the table must have.
        texts: the column of the text, by query type.
        label: the column of the class; '' for none.
    """

    def read(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
        path, rows, bad = read_rows(folder, metadata, table, columns)
        items: list[Item] = []
        names: set[str] = set()
        class_of = {row.get('src_wav', ''): row[label].strip() for _, row in rows} if label else {}
        class_of.pop('', None)
        for line, row in rows:
            index = row['idx'].strip()
            queries = {kind: row[column] for kind, column in texts.items() if row[column].strip()}
            if not index or not queries:
                bad.append(bad_row(path, line, f'no {"text" if index else "idx"} in it'))
                continue
            target, mixture = (first_existing(folder, f'{kind}-{index}') for kind in ('segment', 'mixture'))
            # The original scores an item twice if its row occurs twice.
            name = index if index not in names else f'{index} (line {line})'
            names.add(name)
            kind, other = row[label].strip() if label else '', class_of.get(row.get('noise_wav', ''), '')
            items.append(Item(name, queries, mixture, target, kind, row.get('src_wav', ''), other=other))
        return items, bad

    return read


def _read_audioset(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
    """Reads `class_id=K/NAME,source.wav` and `NAME,mixture.wav`: the first ten sorted names of each class."""
    path, rows, bad = read_rows(folder, metadata, _AUDIOSET_TABLE, ('mid', 'display_name'))
    items: list[Item] = []
    for number, (_, row) in enumerate(rows):
        inside = folder / f'class_id={number}'
        try:
            files = sorted(entry.name for entry in inside.iterdir())
        except FileNotFoundError:
            bad.append(LeftOut(f'class_id={number}', 'missing', f'{inside}: no such folder ({row["display_name"]})'))
            continue
        except OSError as error:
            raise DataError(f'{inside}: cannot be listed: {error.strerror or error}') from error
        matches = [re.fullmatch(r'(.*),(mixture|source)(\.\w+)', file) for file in files]
        names = sorted({match[1] for match in matches if match and match[3].lower() in BENCHMARK_SUFFIXES})
        for name in names[:_AUDIOSET_PER_CLASS]:
            target, mixture = (first_existing(inside, f'{name},{kind}') for kind in ('source', 'mixture'))
            text = row['display_name']
            items.append(Item(f'class_id={number}/{name}', {'label': text}, mixture, target, f'{number} {text}'))
    if not items:
        raise DataError(f'{folder}: no file class_id=K/NAME,source.wav for any of the {len(rows)} classes of {path}')
    return items, bad


def _read_vggsound(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
    path, rows, bad = read_rows(folder, metadata, 'vggsound_eval.csv', ('file_id', 'mix_wav', 's0_wav', 's0_text'))
    items = []
    for line, row in rows:
        if not all(row[column].strip() for column in ('file_id', 'mix_wav', 's0_wav', 's0_text')):
            bad.append(bad_row(path, line, 'a field is empty'))
            continue
        mixture, target = folder / row['mix_wav'], folder / row['s0_wav']
        clip = row['file_id'].partition('+++')[0]  # the target's name, which several mixtures share
        kind, other = row['s0_text'].strip(), row.get('s1_text', '').strip()
        items.append(Item(row['file_id'], {'label': row['s0_text']}, mixture, target, kind, clip, other=other))
    return with_distinct_names(items), bad


def _read_dcase(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
    """Reads `source,noise,snr,caption` beside the folder `lass_validation`, or in it.

    The columns are known by their positions, because their names vary.
    """
    path, rows, bad = read_rows(folder, metadata, 'lass_synthetic_validation.csv', ())
    sounds = folder / 'lass_validation'
    sounds = sounds if sounds.is_dir() else folder
    items = []
    for line, row in rows:
        fields = list(row.values())
        try:
            source, noise, snr, text = fields
            decibels = float(snr)
        except ValueError:
            bad.append(bad_row(path, line, 'not of the form source,noise,snr,caption'))
            continue
        if not text.strip() or not source.strip() or not noise.strip():
            bad.append(bad_row(path, line, 'a field is empty'))
            continue
        name = f'{source}+{noise} at {snr.strip()} dB'
        target, other = (first_existing(sounds, stem.strip()) for stem in (source, noise))
        items.append(Item(name, {'caption': text}, None, target, '', source, other, decibels))
    return with_distinct_names(items), bad


def _read_voicebank(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
    """Reads `clean_testset_wav/NAME.wav` and `noisy_testset_wav/NAME.wav`, as the benchmark is distributed."""
    clean, noisy = (_unpacked_folder(folder / f'{kind}_testset_wav') for kind in ('clean', 'noisy'))
    stems = []
    for place in (clean, noisy):
        try:
            sounds = (file for file in place.iterdir() if file.suffix.lower() in BENCHMARK_SUFFIXES)
            files = [file for file in sounds if file.name[0] != '.']
        except OSError as error:
            raise DataError(f'{place}: {error.strerror or error}; give the folder that holds it') from error
        stems.append({file.stem for file in files})
    names = sorted(stems[0] | stems[1])
    return [
        Item(name, {'label': SPEECH_QUERY}, first_existing(noisy, name), first_existing(clean, name), '', name)
        for name in names
    ], []


def _read_csv(folder: Path, metadata: Path | None) -> tuple[list[Item], list[LeftOut]]:
    """Reads a folder with one table `mixture,target,query`; paths are relative to the table.

    The columns `target`, `label`, `other`, the class of the rest of the mixture, and `unwanted`, a text that describes
    the rest, are optional.
    """
    tables = [folder] if folder.is_file() else tables_in(folder)
    if len(tables) != 1:
        names = ', '.join(table.name for table in tables) or 'none'
        raise DataError(f'{folder}: expected one CSV (mixture,target,query) in it, found {names}; give the path of one')
    table = tables[0]
    advice = '--data is a table mixture,target,query, or the folder of one'
    _, rows, bad = read_rows(table.parent, table.parent, table.name, ('mixture', 'query'), advice)
    items = []
    for line, row in rows:
        if not row['mixture'].strip() or not row['query'].strip():
            bad.append(bad_row(table, line, 'no mixture or no query in it'))
            continue
        name, target, other = (row.get(key, '').strip() for key in ('mixture', 'target', 'other'))
        label = row.get('label', '').strip()
        queries = {'caption': row['query']} | ({'label': row['label']} if label else {})
        path = table.parent / target if target else None
        kind, unwanted = label or row['query'].strip(), row.get('unwanted', '').strip()
        items.append(Item(name, queries, table.parent / name, path, kind, target, other=other, unwanted=unwanted))
    return with_distinct_names(items), bad


def _with_captions(items: list[Item], path: Path, notes: list[str]) -> tuple[list[Item], str]:
    """Returns the items with a further query type from a table `idx,caption`, and the name of the type."""
    advice = '--captions is a table idx,caption'
    _, rows, bad = read_rows(path.parent, path.parent, path.name, ('idx', 'caption'), advice)
    texts = {row['idx'].strip(): row['caption'] for _, row in rows if row['caption'].strip()}
    known = [item for item in items if item.name in texts]
    if not known:
        raise DataError(f'{path}: none of its idx is in the benchmark, whose first is {items[0].name!r}')
    kind = f'captions of {path.name}'
    if len(known) < len(items) or bad:
        notes.append(
            f'{path.name} has captions for {len(known)} of {len(items)} items, and its row is only of those'
            + (f'; {len(bad)} of its rows cannot be read, the first: {bad[0].message}' if bad else '')
        )

    def add_caption(item: Item) -> Item:
        caption = {kind: texts[item.name]} if item.name in texts else {}
        return dataclasses.replace(item, queries={**item.queries, **caption})

    return [add_caption(item) for item in items], kind


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise DataError(f'{path}: not a benchmark: no such {"file" if path.suffix.lower() == ".csv" else "folder"}')


def _unpacked_folder(folder: Path) -> Path:
    """Returns the folder that holds the files: archives may unpack into a second folder of the same name."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


# ---- the protocols ---------------------------------------------------------------------------------------------------


def _four_million_steps(sdri: float, si_sdr: float) -> tuple[Published, ...]:
    """Returns the scores of `audiosep_base_4M_steps.ckpt` in the original's README."""
    return (Published('AudioSep, 4M steps (published)', {'SDRi': sdri, 'SI-SDR': si_sdr}),)


_COLUMNS = ('idx', 'caption')
PROTOCOLS: dict[str, Protocol] = {
    'audioset': Protocol(
        'AudioSet', '', _read_audioset, 'mean of class medians', ('label',), 5270, 527,
        published=_four_million_steps(7.739, 6.903),
    ),
    'audiocaps': Protocol(
        'AudioCaps',
        'audiocaps_eval.csv',
        _numbered_reader('audiocaps_eval.csv', (*_COLUMNS, 'labels'), {'caption': 'caption', 'label': 'labels'}),
        query_types=('caption', 'label'), num_items=4820, published=_four_million_steps(8.220, 7.189),
    ),
    'vggsound': Protocol(
        'VGGSound', 'vggsound_eval.csv', _read_vggsound, query_types=('label',), num_items=1000, num_classes=85,
        published=_four_million_steps(9.144, 9.043),
    ),
    'clotho': Protocol(
        'Clotho', 'clotho_eval.csv', _numbered_reader('clotho_eval.csv', _COLUMNS, {'caption': 'caption'}),
        num_items=5225, published=_four_million_steps(6.850, 5.242),
    ),
    'music': Protocol(
        'MUSIC', 'music_eval.csv', _numbered_reader('music_eval.csv', _COLUMNS, {'label': 'caption'}, label='caption'),
        'mean of class means', ('label',), 5004, 10, published=_four_million_steps(10.508, 9.425),
    ),
    'esc50': Protocol(
        'ESC-50', 'esc50_eval.csv', _numbered_reader('esc50_eval.csv', _COLUMNS, {'label': 'caption'}, label='caption'),
        query_types=('label',), num_items=2000, num_classes=50, published=_four_million_steps(10.040, 8.810),
    ),
    'dcase2024': Protocol(
        'DCASE 2024 Task 9', 'lass_synthetic_validation.csv', _read_dcase, num_items=3000, sample_rate=16000,
        published=(Published('DCASE baseline (published)', {'SDR': 5.708, 'SDRi': 5.673, 'SI-SDR': 3.862}),),
    ),
    # The scores of the noisy signals in Pascual et al. 2017 (SEGAN), repeated by later articles, check the metrics.
    'voicebank-demand': Protocol(
        'VoiceBank-DEMAND', 'clean_testset_wav', _read_voicebank, query_types=('label',), num_items=824, speech=True,
        published=(
            Published('noisy (published)', {'PESQ': 1.97, 'CSIG': 3.35, 'CBAK': 2.44, 'COVL': 2.63, 'SSNR': 1.68}),
        ),
    ),
    **{
        name: Protocol(table.title, '', clapsep.reader(name), num_items=table.num_items)
        for name, table in clapsep.TABLES.items()
    },
    'csv': Protocol('own mixtures', '', _read_csv, query_types=('caption', 'label')),
}  # fmt: skip
