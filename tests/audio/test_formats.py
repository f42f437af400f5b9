"""The table of formats: which suffix is accepted where. A new format changes these lists, and nothing else should."""

import numpy as np
import pytest
import soundfile

from audiosep_jax.audio.formats import (
    BENCHMARK_SUFFIXES,
    BROWSER_SUFFIXES,
    CONTAINER_SUFFIXES,
    FOLDER_SUFFIXES,
    FORMATS,
    OUTPUT_FILE_SUFFIXES,
    OUTPUT_FORMATS,
    READABLE_SUFFIXES,
    WRITABLE_SUFFIXES,
    WRITERS,
    dataset_suffixes,
    held_rate,
)

WRITABLE = ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.aiff', '.aif', '.caf', '.w64', '.m4a')
SOUNDS = ('.flac', '.wav', '.aiff', '.aif', '.ogg', '.opus', '.mp3', '.m4a', '.mka', '.aac')
VIDEOS = ('.mp4', '.webm', '.mkv', '.mov', '.m4v', '.avi', '.flv', '.3gp', '.wmv', '.ts')


def test_each_suffix_is_in_the_table_once():
    assert len(READABLE_SUFFIXES) == len(set(READABLE_SUFFIXES)) == len(FORMATS)
    assert all(suffix == suffix.lower() and suffix.startswith('.') for suffix in READABLE_SUFFIXES)


def test_which_suffixes_are_accepted_where():
    assert set(READABLE_SUFFIXES) == {*WRITABLE, *CONTAINER_SUFFIXES, '.oga', '.au', '.aifc', '.rf64'}
    assert set(CONTAINER_SUFFIXES) == {*VIDEOS, '.m4a', '.mka', '.aac', '.wma', '.mpg', '.mpeg', '.ogv'}
    assert tuple(WRITABLE) == WRITABLE_SUFFIXES
    assert OUTPUT_FORMATS == ('wav', 'flac', 'ogg', 'opus', 'mp3', 'aiff', 'caf', 'w64', 'm4a')
    assert set(OUTPUT_FILE_SUFFIXES) == {*WRITABLE, '.m4a', '.aac', '.oga', '.wma', '.mp4', '.mkv', '.webm'}
    assert BROWSER_SUFFIXES == BENCHMARK_SUFFIXES == ('.wav', '.flac', '.ogg', '.mp3')
    assert {*SOUNDS, *VIDEOS, '.au', '.caf', '.oga', '.w64', '.wma'} == FOLDER_SUFFIXES


def test_datasets_prefer_lossless_files_and_on_demand_videos():
    assert dataset_suffixes() == (*SOUNDS, *VIDEOS)
    assert dataset_suffixes(videos_first=True) == (*VIDEOS, *SOUNDS)


@pytest.mark.parametrize('suffix', [suffix for suffix in WRITABLE if suffix != '.m4a'])
def test_libsndfile_writes_each_format_at_its_limits(tmp_path, suffix):
    writer = WRITERS[suffix]
    assert soundfile.check_format(writer.name, writer.subtype)
    rate = 48000 if 48000 in writer.rates else max(writer.rates)
    path = tmp_path / f'x{suffix}'
    soundfile.write(path, np.zeros((10, 1)), rate, writer.subtype, format=writer.name)
    assert soundfile.info(path).format == writer.name


@pytest.mark.parametrize(
    ('suffix', 'rate', 'held'),
    [
        ('.opus', 44100, 48000),
        ('.OPUS', 22050, 24000),
        ('.opus', 16000, 16000),
        ('.opus', 96000, 48000),
        ('.mp3', 96000, 48000),
        ('.m4a', 44100, 44100),
        ('.m4a', 192000, 96000),
        ('.m4a', 37800, 44100),
        ('.wav', 44123, 44123),
        ('.ogg', 300000, 300000),  # refused later
        ('.txt', 44100, 44100),
    ],
)
def test_a_rate_that_a_format_lacks_becomes_the_next_higher_one(suffix, rate, held):
    assert held_rate(suffix, rate) == held
