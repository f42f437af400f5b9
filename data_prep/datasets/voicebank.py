"""VoiceBank-DEMAND (Valentini-Botinhao 2016, doi 10.7488/ds/2117): read English sentences at 48 kHz, clean and noisy.

It expects the folder into which the archives were unpacked; absent archives are skipped:

    clean_trainset_28spk_wav/*.wav      or clean_trainset_56spk_wav (other speakers), clean_trainset_wav (2016 release)
    clean_testset_wav/*.wav             824 files of the speakers p232 and p257
    trainset_28spk_txt/*.txt, …         what is said
    log_trainset_28spk.txt, …           `p226_001 cafeteria 10`: the noise of each file and its SNR in dB
    noisy_*/*.wav                       ignored: targets must be clean, and training makes its own mixtures

p232 and p257 are the test speakers in every folder: they are never in train, and no others are in test. A clip's id is
its file name without suffix (`p226_001`), its label is AudioSet's 'Speech', its captions are `CAPTIONS`.
Transcripts and logs show which files there should be. The spoken words become a caption only on request: a separator
trained on them learns to look for words, while its users ask for 'a man talking'.
"""

import dataclasses
import os
import pathlib
import re
from typing import Literal, get_args

from audiosep_jax.errors import ConfigError, DataError, LeftOut, printable
from data_prep.clips.base import ClipSource, Entry
from data_prep.clips.listing import one_line
from data_prep.clips.sources import Files
from data_prep.options import BuildOptions

TEST_SPEAKERS = ('p232', 'p257')
CAPTIONS = ('speech', 'a person speaking', 'someone is talking')
LABEL = 'Speech'
TrainSet = Literal['28spk', '56spk', 'all']

_FOLDER = re.compile(r'clean_(?P<part>train|test)set(_(?P<speakers>\d+spk))?_wav')


def read_voicebank(
    source: str | os.PathLike, split: str = 'train', *, train_set: TrainSet = 'all', transcripts: bool = False
) -> Files:
    """Returns the clean speech of a split, sorted by id.

    Args:
        source: the folder with `clean_…_wav` in it.
        split: 'train' or 'test'.
        train_set: the training speakers: the 28 of England, the 56 of Scotland and the United States, or all.
        transcripts: add the spoken words to the captions if their text file is there.

    Raises:
        ConfigError: there is no such split or set.
        DataError: there is no such folder, or it holds nothing of that split.
    """
    if split not in ('train', 'test'):
        raise ConfigError(f'--split {split!r}: VoiceBank-DEMAND has train and test')
    if train_set not in get_args(TrainSet):
        raise ConfigError(f'--train-set {train_set!r}: {", ".join(get_args(TrainSet))}')
    folder = pathlib.Path(source)
    parts = _parts(folder, split, train_set)
    found: dict[str, str] = {}
    left_out: list[LeftOut] = []
    for part in parts:
        for path in _files(folder / part, '.wav'):
            clip_id, relative = path.stem.lower(), path.relative_to(folder).as_posix()
            if printable(relative) != relative:
                if split in part:
                    left_out.append(LeftOut(clip_id, 'unreadable', f'{path}: its name is not UTF-8: rename it'))
                continue
            speaker = _speaker(clip_id) if relative.isprintable() else ''
            if speaker and (speaker in TEST_SPEAKERS) == (split == 'test'):
                if found.setdefault(clip_id, relative) != relative:
                    left_out.append(LeftOut(clip_id, 'excluded', f'{path}: the same clip as {found[clip_id]}'))
            elif split in part:  # speakers of the other split are reported only in this split's folders
                why = f'{speaker} is a speaker of the other split' if speaker else 'its name tells no speaker'
                left_out.append(LeftOut(one_line(clip_id), 'excluded', one_line(f'{path}: {why}')))
    texts = {path.stem.lower(): path for part in parts for path in _transcripts(folder, part)}
    listed = {*texts, *(clip_id for part in parts for clip_id in _logged(folder, part))}
    for clip_id in sorted(listed - found.keys()):
        if _speaker(clip_id) and (_speaker(clip_id) in TEST_SPEAKERS) == (split == 'test'):
            left_out.append(
                LeftOut(clip_id, 'missing', f'{clip_id}: a transcript or a log names it, there is no sound')
            )
    if not found:
        raise DataError(f'{folder}: no clean speech of the {split} speakers in {", ".join(parts)}')
    entries = []
    for clip_id in sorted(found):
        said = _text(texts[clip_id]) if transcripts and clip_id in texts else ''
        captions = (*CAPTIONS, f'a person saying "{said}"') if said else CAPTIONS
        entries.append(Entry(clip_id, found[clip_id], captions, (LABEL,)))
    return Files(entries, folder, kind='voicebank', left_out=left_out)


def _parts(folder: pathlib.Path, split: str, train_set: TrainSet) -> list[str]:
    """Returns the folders of clean speech to search, that of the split first."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if os.path.isdir(entry.path))
    except OSError as error:
        raise DataError(
            f'{folder}: cannot be listed ({error.strerror}): give the folder of VoiceBank-DEMAND'
        ) from error
    matches = [match for match in map(_FOLDER.fullmatch, names) if match]
    if split == 'test':
        # Test speakers are looked for in every folder.
        parts = sorted(matches, key=lambda match: match['part'])
    else:
        sets = (None, '28spk', '56spk') if train_set == 'all' else (None, train_set)
        parts = [match for match in matches if match['part'] == 'train' and match['speakers'] in sets]
    if not parts:
        expected = 'clean_testset_wav' if split == 'test' else f'clean_trainset_{train_set}_wav'.replace('all', '28spk')
        raise DataError(f'{folder}: holds no folder {expected}: give the folder into which the archives were unpacked')
    return [match.string for match in parts]


def _files(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Returns the sorted files of a folder and its folders: archives unpack into a second folder of the same name."""
    found = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f'{folder}: cannot be listed: {error.strerror}') from error
    for entry in entries:
        if entry.name.startswith('.'):
            continue
        if entry.is_dir(follow_symlinks=False):
            found += _files(folder / entry.name, suffix)
        elif entry.name.lower().endswith(suffix):
            found.append(folder / entry.name)
    return found


def _speaker(clip_id: str) -> str:
    """Returns 'p226' for 'p226_001', and '' for a name of another form."""
    match = re.match(r'([a-z]\d+)_', clip_id)
    return match[1] if match else ''


def _set_name(part: str) -> str:
    """Returns the name that a set's other files contain: 'trainset_28spk' for 'clean_trainset_28spk_wav'."""
    return part.removeprefix('clean_').removesuffix('_wav')


def _transcripts(folder: pathlib.Path, part: str) -> list[pathlib.Path]:
    texts = folder / f'{_set_name(part)}_txt'
    return _files(texts, '.txt') if texts.is_dir() else []


def _logged(folder: pathlib.Path, part: str) -> list[str]:
    """Returns the ids that the log of a set names."""
    name = f'log_{_set_name(part)}.txt'
    for path in (folder / name, folder / 'logfiles' / name):
        if path.is_file():
            lines = path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
            return [line.split()[0].lower().removesuffix('.wav') for line in lines if line.strip()]
    return []


def _text(path: pathlib.Path) -> str:
    """Returns the spoken words on one line; '' if the file cannot be read, since the clip is usable without them."""
    try:
        return ' '.join(path.read_text(encoding='utf-8-sig').split())
    except (OSError, UnicodeDecodeError):
        return ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildVoiceBank(BuildOptions):
    """Shards from the clean speech of VoiceBank-DEMAND: --split train or test, which has the speakers p232 and p257."""

    source: pathlib.Path
    """The folder into which its archives were unpacked: clean_trainset_28spk_wav, clean_testset_wav and others."""
    train_set: TrainSet = 'all'
    """The training speakers: 28spk, 56spk, or all that are there."""
    transcripts: bool = False
    """Add the spoken words, from trainset_28spk_txt and similar folders, as a caption."""

    def clips(self) -> ClipSource:
        return read_voicebank(self.source, self.split, train_set=self.train_set, transcripts=self.transcripts)
