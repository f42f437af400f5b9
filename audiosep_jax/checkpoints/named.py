"""The published checkpoints that `--checkpoint` and `asj.load` know by name.

Sizes are those of the files on the day when they were listed here, and scores are their publishers'. What could not be
found out is None, and is shown as such.
"""

import dataclasses
import difflib
import hashlib
import re
import urllib.parse
from pathlib import Path
from typing import Literal

from audiosep_jax.storage.cache import cache_folder

DEFAULT = 'audiosep'  # where no checkpoint is given
_AUDIOSEP = 'https://github.com/Audio-AGI/AudioSep'
_HIVE = 'https://arxiv.org/abs/2601.22599'
_DCASE = 'https://github.com/Audio-AGI/dcase2024_task9_baseline'


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        address: `organisation/name:FILE` on the hub, perhaps after `spaces/`, or an http(s) address.
        size: in bytes; None if it is not known.
        checksum: `sha256:…` or `md5:…`, as its publisher states it; None if it is not known. Downloads from outside the
            hub are checked with it. For the hub's, it is information: the hub's own client checks their size.
    """

    address: str
    size: int | None = None
    checksum: str | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether the address is one of the hub."""
        return not self.address.startswith(('http://', 'https://'))

    @property
    def name(self) -> str:
        """The file's own name, without a folder."""
        return urllib.parse.unquote(self.address.rpartition('/')[2].rpartition(':')[2])


@dataclasses.dataclass(frozen=True)
class Scores:
    """Published scores, in dB.

    Attributes:
        metric: SDR, SDRi or SI-SDR.
        source: who published them, an address or an article.
        values: the score by benchmark.
    """

    metric: str
    source: str
    values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class NamedCheckpoint:
    """A published checkpoint of the original code.

    Attributes:
        name: what `--checkpoint` calls it.
        description: what it is, in one line.
        separator: the file to convert.
        clap: the query encoder's file, for the case that the separator's does not contain it.
        preset: the front end of the separator, a key of `checkpoints.convert.PRESETS`.
        license: of the separator's file, as its publisher states it; None if no statement was found.
        scores: as published.
        url: the page of the files.
    """

    name: str
    description: str
    separator: RemoteFile
    clap: RemoteFile
    preset: Literal['audiosep-32k', 'dcase2024-16k']
    license: str | None
    scores: tuple[Scores, ...]
    url: str

    @property
    def kept(self) -> Path | None:
        """The folder in the user's cache that holds the checkpoint; None if it has yet to be fetched."""
        folder = conversion_folder(self.separator.address)
        return folder if folder.exists() else None


# LAION's own file of the CLAP that all of these were trained with.
_CLAP = RemoteFile(
    'lukewys/laion_clap:music_speech_audioset_epoch_15_esc_89.98.pt',
    2_352_471_003,
    'sha256:51c68f12f9d7ea25fdaaccf741ec7f81e93ee594455410f3bca4f47f88d8e006',
)
_ALL = (
    NamedCheckpoint(
        'audiosep',
        "AudioSep at 32 kHz, the authors' own, after 4 million steps",
        RemoteFile(
            'spaces/Audio-AGI/AudioSep:checkpoint/audiosep_base_4M_steps.ckpt',
            1_264_844_076,
            'sha256:f8cda01bfd0ebd141eef45d41db7a3ada23a56568465840d3cff04b8010ce82c',
        ),
        _CLAP,
        'audiosep-32k',
        'MIT',
        (
            Scores(
                'SDRi',
                _AUDIOSEP,
                {
                    'AudioSet': 7.74,
                    'VGGSound': 9.14,
                    'AudioCaps': 8.22,
                    'Clotho': 6.85,
                    'MUSIC': 10.51,
                    'ESC-50': 10.04,
                },
            ),
            Scores('SDR', _HIVE, {'Hive': 2.37, 'USS-Bench': -1.86, 'MUSDB18-HQ': -1.01}),
            Scores('SI-SDR', _HIVE, {'Hive': 1.58}),
        ),
        'https://huggingface.co/spaces/Audio-AGI/AudioSep',
    ),
    NamedCheckpoint(
        'audiosep-hive',
        'the same network, retrained on 2,442 h of purified single sounds (Hive, ICML 2026)',
        RemoteFile(
            'AlayaLab/AudioSep-hive:audiosep_hive.ckpt',
            1_264_846_755,
            'sha256:a13fff5fa4ece1a8bc13e42e1c7b8d90e21603075302ca89e4339c9471973300',
        ),
        _CLAP,
        'audiosep-32k',
        'Apache-2.0',
        (
            Scores('SDR', _HIVE, {'Hive': 5.67, 'USS-Bench': 2.29, 'MUSDB18-HQ': 1.36}),
            Scores('SI-SDR', _HIVE, {'Hive': 5.02}),
        ),
        'https://huggingface.co/AlayaLab/AudioSep-hive',
    ),
    NamedCheckpoint(
        'audiosep-dcase2024',
        'the baseline of DCASE 2024, task 9: AudioSep at 16 kHz, 200,000 steps on Clotho and FSD50K',
        RemoteFile('https://zenodo.org/records/10887460/files/audiosep_16k,baseline,step%3D200000.ckpt'),
        _CLAP,
        'dcase2024-16k',
        None,
        (
            Scores('SDR', _DCASE, {'DCASE 2024 task 9, validation': 5.708}),
            Scores('SDRi', _DCASE, {'DCASE 2024 task 9, validation': 5.673}),
            Scores('SI-SDR', _DCASE, {'DCASE 2024 task 9, validation': 3.862}),
        ),
        'https://zenodo.org/records/10887460',
    ),
)
NAMED: dict[str, NamedCheckpoint] = {checkpoint.name: checkpoint for checkpoint in _ALL}


def at_address(address: str) -> NamedCheckpoint | None:
    """Returns the named checkpoint whose separator is at an address; None if there is none."""
    return next((checkpoint for checkpoint in NAMED.values() if checkpoint.separator.address == address), None)


def nearest_name(text: str) -> str | None:
    """Returns the name that a mistyped one probably meant; None if it resembles none."""
    found = difflib.get_close_matches(text.lower(), NAMED, n=1, cutoff=0.75)
    return found[0] if found else None


def conversion_folder(reference: str) -> Path:
    """Returns the folder in the user's cache for what a reference to the hub, or an address, is converted to."""
    # The digest distinguishes references that differ only in the characters replaced here.
    digest = hashlib.sha256(reference.encode()).hexdigest()[:8]
    return cache_folder() / 'checkpoints' / f'{re.sub("[/:.]+", "-", reference)}-{digest}'
