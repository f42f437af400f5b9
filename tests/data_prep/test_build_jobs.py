"""Builds that share a directory, are killed, or run out of room."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.small_dataset import SAMPLE_RATE, build_small, shard_files, small_clips

from audiosep_jax.data.layout import read_split_info
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.locks import AtWork
from data_prep.build import build_shards
from data_prep.datasets.synthetic import SyntheticClips
from data_prep.options import parse_shard_range
from data_prep.verify import verify_dataset

CLIPS = SyntheticClips(num_clips=60, seed=1, seconds=1.0)
SETTINGS = dict(sample_rate=8000, name='toy', clips_per_shard=4)
# As a program: what is killed must be a process, with workers of its own.
PROGRAM = """
import resource, sys
from data_prep.build import build_shards
from data_prep.datasets.synthetic import SyntheticClips
from data_prep.options import parse_shard_range
if __name__ == '__main__':
    clips = SyntheticClips(num_clips=60, seed=1, seconds=1.0)
    out, jobs, shards, limit = sys.argv[1:5]
    if limit != '0':
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    shards = parse_shard_range(shards or None)
    build_shards(clips, out, sample_rate=8000, name='toy', clips_per_shard=4, jobs=int(jobs), shard_range=shards)
"""


def contents(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob('*') if p.is_file()}


def start(folder, out, jobs=2, shards='', limit=0, **settings) -> subprocess.Popen:
    program = folder / 'build_it.py'
    program.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, program, out, str(jobs), shards, str(limit)], **settings)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """What a build of CLIPS is, done once and for all: the contents of its directory."""
    directory = tmp_path_factory.mktemp('whole')
    build_shards(CLIPS, directory, **SETTINGS)
    return contents(directory)


@pytest.mark.parametrize('ranges', [[(0, 1), (1, 3)], [(2, 9), (0, 2)], [(1, None), (0, 1)]])
def test_who_makes_the_last_shard_finishes_the_split(tmp_path, ranges):
    build_small(tmp_path / 'whole', 10, embed=False)
    for number, shard_range in enumerate(ranges):
        result = build_small(tmp_path / 'out', 10, embed=False, shard_range=shard_range)
        last = number == len(ranges) - 1
        assert (result.info.complete, result.num_shards_missing == 0) == (last, last)
        if not last:
            assert len(shard_files(tmp_path / 'out')) == result.num_shards_made == 3 - result.num_shards_missing
            with pytest.raises(DataError, match='not complete'):
                Shards(tmp_path / 'out', 'train')
    assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


def test_a_run_without_a_range_makes_what_is_missing_and_finishes(tmp_path):
    build_small(tmp_path / 'whole', 10, embed=False)
    build_small(tmp_path / 'out', 10, embed=False, shard_range=(1, 2))
    assert build_small(tmp_path / 'out', 10, embed=False).num_shards_made == 2
    assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


def test_a_range_beyond_the_last_shard_makes_nothing(tmp_path):
    result = build_small(tmp_path, 10, embed=False, shard_range=(3, 6))
    assert (result.num_shards_made, result.num_shards_missing) == (0, 3)
    assert shard_files(tmp_path) == []


@pytest.mark.parametrize('shard_range', [(2, 2), (3, 1), (-1, 2)])
def test_ranges_of_nothing_are_refused(tmp_path, shard_range):
    with pytest.raises(ConfigError, match='--shard-range'):
        build_small(tmp_path / 'd', shard_range=shard_range)
    assert not (tmp_path / 'd').exists()


def test_ranges_are_written_as_slices():
    assert [parse_shard_range(text) for text in (None, '2:5', ':5', '2:')] == [None, (2, 5), (0, 5), (2, None)]
    for text in ('2', '2-5', 'a:b', '-1:2', '1:2:3', ''):
        with pytest.raises(ConfigError, match='FIRST:END'):
            parse_shard_range(text)


@pytest.mark.slow
def test_jobs_at_once_on_one_directory(tmp_path, undisturbed):
    """An array of jobs that overlap, and one that makes all: as they come, they disturb each other nowhere."""
    shards = ['0:6', '5:11', '10:99', '3:8', '']
    jobs = [start(tmp_path, tmp_path / 'out', 1, r, stderr=subprocess.PIPE, text=True) for r in shards]
    errors = [job.communicate(timeout=600)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), errors
    assert contents(tmp_path / 'out') == undisturbed


def test_temporary_files_of_others_at_work_are_left_alone(tmp_path):
    build_small(tmp_path, 10, embed=False, shard_range=(0, 2))
    theirs = tmp_path / '.small-train.array_record-00002-of-00003.tmp-1'
    theirs.touch()
    with AtWork(tmp_path / 'splits' / '.train.lock'):
        assert not _alone_from_another_process(tmp_path)
        build_small(tmp_path, 10, embed=False)
        assert theirs.exists()
    build_small(tmp_path, 10, embed=False)
    assert not theirs.exists()
    assert not list(tmp_path.glob('**/*.lock'))


def _alone_from_another_process(directory) -> bool:
    code = f"""
from audiosep_jax.storage.locks import AtWork
with AtWork({str(directory / 'splits' / '.train.lock')!r}) as at_work: print(at_work.alone())
"""
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'True\n'


@pytest.mark.slow
@pytest.mark.parametrize('whom', ['parent', 'worker', 'everybody'])
def test_builds_killed_at_random_moments_resume_to_the_same_bytes(tmp_path, undisturbed, whom):
    out, rng = tmp_path / 'out', random.Random(whom)
    interrupted = 0
    for _ in range(2):
        process = start(tmp_path, out, start_new_session=True, stderr=subprocess.DEVNULL)
        before = len(shard_files(out)) if out.is_dir() else 0
        # From the first sign of work on: until then there is nothing to disturb.
        while process.poll() is None and not list(out.glob('.*.tmp-*')) and len(_shards(out)) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        interrupted += process.poll() is None
        if whom == 'everybody':
            os.killpg(process.pid, signal.SIGKILL)
        elif whom == 'parent':
            process.kill()
        else:
            for worker in _children(process.pid)[-1:]:
                os.kill(worker, signal.SIGKILL)
        process.wait(timeout=600)
        _wait_for_the_session_to_end(process.pid)
        for path in _shards(out):
            assert path.read_bytes() == undisturbed[path.name]
        if not read_split_info(out, 'train').complete:
            with pytest.raises(DataError, match='not complete'):
                Shards(out)
    assert interrupted
    assert start(tmp_path, out).wait(timeout=600) == 0
    assert contents(out) == undisturbed
    assert verify_dataset(out).problems == []


def _shards(out) -> list:
    return shard_files(out) if out.is_dir() else []


def _children(pid: int) -> list[int]:
    """Its processes, by number; among them that of multiprocessing's resource tracker, which comes first."""
    return sorted(child.pid for child in psutil.Process(pid).children()) if psutil.pid_exists(pid) else []


def _wait_for_the_session_to_end(pid: int) -> None:
    """Workers notice a moment later that their parent is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(_is_alive_in(pid, process) for process in psutil.process_iter()):
            return
        time.sleep(0.02)
    raise AssertionError('workers outlived their build')


def _is_alive_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


@pytest.mark.slow
@pytest.mark.parametrize('jobs', [1, 2])
@pytest.mark.parametrize('limit', [100, 3000, 40_000])
def test_a_disk_that_is_full_is_one_error_to_resume_from(tmp_path, undisturbed, jobs, limit):
    """A limit on the size of files, which ends a write as a full disk does: at the plan, at a summary, at a shard."""
    out = tmp_path / 'out'
    process = start(tmp_path, out, jobs, limit=limit, stderr=subprocess.PIPE, text=True)
    last = process.communicate(timeout=600)[1].strip().splitlines()[-1]
    assert process.returncode == 1
    assert re.match(r'audiosep_jax\.errors\.DataError: .*(cannot be written|could not be written completely)', last)
    for path in _shards(out):
        assert path.read_bytes() == undisturbed[path.name]
    build_shards(CLIPS, out, **SETTINGS)
    assert contents(out) == undisturbed


@pytest.mark.parametrize('place', ['file', 'unwritable', 'device'])
def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, place):
    if place == 'file':
        (tmp_path / 'x').write_text('not a folder')
        out = tmp_path / 'x' / 'out'
    elif place == 'device':
        out = '/dev/null/out'
    else:
        if os.geteuid() == 0:
            pytest.skip('root may write everywhere')
        tmp_path.chmod(0o500)
        out = tmp_path / 'out'
    with pytest.raises(DataError, match='cannot be written') as caught:
        build_shards(small_clips(2), out, sample_rate=SAMPLE_RATE)
    assert '\n' not in str(caught.value)
    tmp_path.chmod(0o700)
