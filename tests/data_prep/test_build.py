import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small, shard_files, small_clips, tone

from audiosep_jax.data.layout import read_split_info, summary_path
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import AudioFileError, ConfigError, DataError, LeftOut, LeftOutError
from audiosep_jax.storage.json_files import write_json
from data_prep import synthetic
from data_prep.build import build_shards, skipped_path
from data_prep.clips.base import Clip
from data_prep.clips.sources import ClipsInMemory
from data_prep.datasets.synthetic import SyntheticClips

SYNTHETIC = SyntheticClips(num_clips=24, seed=1, seconds=0.25)


def contents(directory) -> dict[str, bytes]:
    files = (p for p in directory.rglob('*') if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def build_synthetic(directory, **settings):
    settings = {'sample_rate': SAMPLE_RATE, 'name': 'toy', 'clips_per_shard': 4, **settings}
    return build_shards(SYNTHETIC, directory, **settings)


class SomeUnreadable(ClipsInMemory):
    """As a folder with damaged files is to the build."""

    def __init__(self, clips, bad):
        super().__init__(clips)
        self.bad = bad

    def read(self, index, sample_rate):
        if self.clip_id(index) in self.bad:
            raise AudioFileError(f'{self.clip_id(index)}.wav: damaged')
        return super().read(index, sample_rate)

    def part(self, start, stop):
        return SomeUnreadable(self._clips[start:stop], self.bad)


def test_result_and_description_count_what_was_built(tmp_path):
    result = build_small(tmp_path, 10, captions=3)
    info = read_split_info(tmp_path, 'train')
    assert result.info == info
    assert (info.name, info.split, info.sample_rate, info.codec) == ('small', 'train', SAMPLE_RATE, 'flac')
    assert (info.num_clips, info.num_captions, info.num_samples, info.num_skipped) == (10, 19, 20000, 0)
    assert result.num_shards_made == info.num_shards == 3
    assert not skipped_path(tmp_path, 'train').exists()


def test_shards_are_a_function_of_their_inputs_alone(tmp_path):
    for directory, jobs in (('a', 1), ('b', 3)):
        build_synthetic(tmp_path / directory, jobs=jobs)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')


def test_synthetic_clips_are_those_of_the_corpus(tmp_path):
    build_synthetic(tmp_path)
    shards = Shards(tmp_path)
    for n in (0, 7, 23):
        clip = synthetic.clip(n, 1, sample_rate=SAMPLE_RATE, seconds=0.25)
        record = shards.read(n)
        assert (record.id, record.captions, record.labels) == (clip.id, clip.captions, clip.labels)
        np.testing.assert_allclose(shards.waveform(n), clip.audio, atol=2**-16)


def test_the_same_build_again_changes_nothing(tmp_path):
    build_synthetic(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in shard_files(tmp_path)}
    assert build_synthetic(tmp_path).num_shards_made == 0
    assert {path: path.stat().st_mtime_ns for path in shard_files(tmp_path)} == before


@pytest.mark.parametrize('damage', ['deleted', 'cut short', 'emptied'])
def test_only_damaged_shards_are_made_again(tmp_path, damage):
    build_synthetic(tmp_path)
    before = contents(tmp_path)
    path = shard_files(tmp_path)[2]
    if damage == 'deleted':
        path.unlink()
    else:
        os.truncate(path, 0 if damage == 'emptied' else path.stat().st_size // 2)
    assert build_synthetic(tmp_path).num_shards_made == 1
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize('jobs', [1, 2])
@pytest.mark.nightly
def test_a_killed_build_resumes_to_the_same_bytes(tmp_path, jobs):
    settings = ['--clips', '60', '--seed', '1', '--sample-rate', '8000', '--seconds', '2', '--clips-per-shard', '4']
    command = [sys.executable, '-m', 'data_prep', 'build', 'synthetic', *settings, '--name', 'toy']
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    process = subprocess.Popen([*command, '--out', killed, '--jobs', str(jobs)], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(shard_files(killed)) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)  # workers notice that their parent is gone
    made = len(shard_files(killed))
    assert 3 <= made < 15
    (killed / '.toy-train.array_record-00007-of-00015.tmp-1').write_bytes(b'left by a build that was killed')
    (killed / 'splits' / '.train.json.tmp-1').write_bytes(b'and this')
    (killed / '.tfds-1').mkdir()
    assert not read_split_info(killed, 'train').complete
    with pytest.raises(DataError, match='not complete'):
        Shards(killed)
    again = subprocess.run([*command, '--out', killed], capture_output=True, text=True, check=True)
    assert f'{15 - made} of 15 shards made now' in again.stdout
    subprocess.run([*command, '--out', whole], stdout=subprocess.DEVNULL, check=True)
    assert contents(killed) == contents(whole)


def test_a_build_killed_at_its_very_first_step_resumes(tmp_path):
    (tmp_path / 'splits').mkdir()
    (tmp_path / 'splits' / '.train.json.tmp-1').write_text('{"na')
    assert build_synthetic(tmp_path).info.num_clips == 24


def test_unreadable_clips_are_left_out_and_listed(tmp_path):
    source = SomeUnreadable(small_clips(10), {'clip-1', 'clip-8', 'clip-9'})  # the last shard loses all it has
    result = build_shards(source, tmp_path, sample_rate=SAMPLE_RATE, name='small', clips_per_shard=4)
    assert [s.id for s in result.skipped] == ['clip-1', 'clip-8', 'clip-9']
    with open(skipped_path(tmp_path, 'train'), newline='') as file:
        assert next(csv.DictReader(file)) == {
            'id': 'clip-1',
            'reason': 'unreadable',
            'message': 'clip-1.wav: damaged',
        }
    shards = Shards(tmp_path)
    assert shards.info.shard_lengths == (3, 4, 0)
    assert [shards.read(i).id for i in range(7)] == [f'clip-{n}' for n in (0, 2, 3, 4, 5, 6, 7)]
    import tensorflow_datasets as tfds

    assert len(tfds.builder_from_directory(tmp_path).as_data_source(split='train')) == 7


class WithReports(ClipsInMemory):
    """As a dataset whose metadata lists more than is there, with clips that are too short."""

    left_out = (
        LeftOut('gone', 'missing', 'gone.wav: no such file'),
        LeftOut('leak', 'excluded', 'leak.wav: on a list'),
    )

    def read(self, index, sample_rate):
        if self.clip_id(index) == 'clip-2':
            raise LeftOutError('missing', 'clip-2.wav: no such file')
        return super().read(index, sample_rate)

    def part(self, start, stop):
        return WithReports(self._clips[start:stop])


def test_clips_left_out_have_reasons(tmp_path):
    clips = [*small_clips(4), dataclasses.replace(small_clips(1, 799)[0], id='short')]
    settings = dict(sample_rate=SAMPLE_RATE, name='small', clips_per_shard=5, shortest=0.1)
    result = build_shards(WithReports(clips), tmp_path, **settings)
    with open(skipped_path(tmp_path, 'train'), newline='') as file:
        assert list(csv.reader(file)) == [
            ['id', 'reason', 'message'],
            ['gone', 'missing', 'gone.wav: no such file'],
            ['leak', 'excluded', 'leak.wav: on a list'],
            ['clip-2', 'missing', 'clip-2.wav: no such file'],
            ['short', 'too short', 'short: 0.10 s'],
        ]
    assert result.counts == {'found': 3, 'missing': 2, 'unreadable': 0, 'too short': 1, 'excluded': 1}
    assert (result.info.num_inputs, result.info.num_skipped) == (5, 2)
    assert build_shards(WithReports(clips), tmp_path, **settings).counts == result.counts


def test_what_is_known_to_be_missing_decides_no_byte(tmp_path):
    settings = dict(sample_rate=SAMPLE_RATE, name='small', clips_per_shard=5)
    known, unknown = WithReports(small_clips(4)), WithReports(small_clips(4))
    unknown.left_out = ()
    for source, directory in ((known, 'a'), (unknown, 'b')):
        build_shards(source, tmp_path / directory, **settings)
    a, b = contents(tmp_path / 'a'), contents(tmp_path / 'b')
    assert {name for name in a if a[name] != b[name]} == {'splits/train-skipped.csv'}


def test_reports_of_earlier_versions_are_read(tmp_path):
    source = SomeUnreadable(small_clips(3), {'clip-1'})
    settings = dict(sample_rate=SAMPLE_RATE, name='small')
    info = build_shards(source, tmp_path, **settings).info
    path = summary_path(tmp_path, info, 0)
    new = ('ids', 'labels', 'sources', 'num_bytes', 'sha256')
    summary = {name: value for name, value in json.loads(path.read_text()).items() if name not in new}
    write_json(path, summary | {'skipped': [{'id': 'clip-1', 'reason': 'clip-1.wav: damaged'}]})
    result = build_shards(source, tmp_path, **settings)
    assert (result.num_shards_made, result.info) == (0, info)
    assert result.skipped == (LeftOut('clip-1', 'unreadable', 'clip-1.wav: damaged'),)


@pytest.mark.parametrize('shortest', [-1.0, float('nan'), float('inf')])
def test_a_length_that_is_none_is_refused(tmp_path, shortest):
    with pytest.raises(ConfigError, match='--shortest'):
        build_shards(small_clips(1), tmp_path / 'd', sample_rate=SAMPLE_RATE, shortest=shortest)


def test_mended_clips_join_when_asked_for(tmp_path):
    settings = dict(sample_rate=SAMPLE_RATE, name='small', clips_per_shard=4)
    broken, mended = (SomeUnreadable(small_clips(10), bad) for bad in ({'clip-5'}, set()))
    first = build_shards(broken, tmp_path, **settings)
    assert build_shards(mended, tmp_path, **settings).info == first.info
    again = build_shards(mended, tmp_path, **settings, retry_skipped=True)
    assert (again.num_shards_made, again.skipped, again.info.num_clips) == (1, (), 10)
    assert again.info.content != first.info.content  # embeddings of the shards as they were do not fit
    assert not skipped_path(tmp_path, 'train').exists()


@pytest.mark.parametrize('existed', [True, False])
def test_a_build_of_nothing_readable_leaves_nothing(tmp_path, existed):
    out = tmp_path / 'out'
    if existed:
        out.mkdir()
    source = SomeUnreadable(small_clips(3), {f'clip-{n}' for n in range(3)})
    with pytest.raises(DataError, match=r'none of the 3 clips .* clip-0\.wav: damaged'):
        build_shards(source, out, sample_rate=SAMPLE_RATE)
    assert not out.exists() or not any(out.iterdir())
    build_shards(small_clips(3), out, sample_rate=SAMPLE_RATE)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(sample_rate=16000), 'sample_rate 8000 there, 16000 now'),
        (dict(codec='pcm16'), 'codec flac there, pcm16 now'),
        (dict(clips_per_shard=5), 'clips_per_shard 4 there, 5 now'),
        (dict(count=11), 'num_inputs 10 there, 11 now'),
        (dict(num_samples=2001), 'the list of clips differs'),
        (dict(captions=2), 'the list of clips differs'),
        (dict(name='other'), "holds the dataset 'small'"),
    ],
)
def test_another_build_in_the_same_place_is_refused(tmp_path, change, message):
    build_small(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=message):
        build_small(tmp_path, **change)
    assert contents(tmp_path) == before


def test_splits_share_a_directory(tmp_path):
    build_small(tmp_path, 10)
    build_small(tmp_path, 3, split='validation')
    assert [len(Shards(tmp_path, split)) for split in ('train', 'validation')] == [10, 3]


def test_name_is_made_from_the_directory(tmp_path):
    assert build_shards(small_clips(2), tmp_path / 'My sounds-2', sample_rate=SAMPLE_RATE).info.name == 'my_sounds_2'
    with pytest.raises(ConfigError, match="--name '2024'"):
        build_shards(small_clips(2), tmp_path / '2024', sample_rate=SAMPLE_RATE)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(name='Big'), '--name'),
        (dict(split='a-b'), '--split'),
        (dict(codec='mp3'), '--codec'),
        (dict(sample_rate=0), '--sample-rate'),
        (dict(sample_rate=700_000), '--codec pcm16'),
        (dict(clips_per_shard=0), '--clips-per-shard'),
        (dict(jobs=0), '--jobs'),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_small(tmp_path / 'd', **settings)
    assert not (tmp_path / 'd').exists()


def test_places_that_are_no_dataset_are_left_alone(tmp_path):
    (tmp_path / 'diary.txt').write_text('dear diary')
    with pytest.raises(DataError, match='not empty and not a dataset'):
        build_small(tmp_path)
    with pytest.raises(DataError, match='is a file'):
        build_small(tmp_path / 'diary.txt')
    assert contents(tmp_path) == {'diary.txt': b'dear diary'}


@pytest.mark.parametrize(
    ('clip', 'reason'),
    [
        (Clip('x', tone(0), ()), 'no caption'),
        (Clip('x', tone(0), ('  ',)), 'no caption'),
        (Clip('x', np.zeros(0, np.float32), ('a',)), 'no audio'),
        (Clip('x', np.zeros((2, 9), np.float32), ('a',)), 'no audio'),
        (Clip('x', np.array([0, np.nan, 0], np.float32), ('a',)), 'non-finite'),
    ],
)
def test_clips_that_cannot_be_trained_on_are_left_out(tmp_path, clip, reason):
    result = build_shards([*small_clips(1), clip], tmp_path, sample_rate=SAMPLE_RATE, name='small')
    assert len(result.skipped) == 1
    assert reason in result.skipped[0].message
    assert result.info.num_clips == 1


@pytest.mark.parametrize(('seconds', 'sample_rate'), [(0.1, 8000), (1.0, 4000)])
def test_sounds_that_cannot_be_rendered_are_refused_before_anything_is_written(tmp_path, seconds, sample_rate):
    with pytest.raises(ConfigError, match='synthetic sounds need'):
        build_shards(SyntheticClips(3, 0, seconds), tmp_path / 'd', sample_rate=sample_rate)
    assert not (tmp_path / 'd').exists()


def test_no_clips_and_equal_ids_are_refused(tmp_path):
    with pytest.raises(DataError, match='no clips'):
        build_shards([], tmp_path / 'd', sample_rate=SAMPLE_RATE)
    with pytest.raises(DataError, match="two clips have the id 'clip-0'"):
        build_shards(small_clips(1) * 2, tmp_path / 'd', sample_rate=SAMPLE_RATE)
    assert not (tmp_path / 'd').exists()


def test_progress_ends_at_all_clips(tmp_path):
    calls = []
    build_synthetic(tmp_path, progress=lambda *call: calls.append(call))
    shard_files(tmp_path)[0].unlink()
    build_synthetic(tmp_path, progress=lambda *call: calls.append(call))
    assert calls[:26] == [(n, 24) for n in [*range(25), 20]]
    assert calls[-1] == (24, 24)


class KillsItsWorker(SyntheticClips):
    def check(self, sample_rate):
        pass

    def read(self, index, sample_rate):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_not_a_wait(tmp_path):
    source = KillsItsWorker(**dataclasses.asdict(SYNTHETIC))
    with pytest.raises(DataError, match='a worker process was killed'):
        build_shards(source, tmp_path, sample_rate=SAMPLE_RATE, name='toy', clips_per_shard=12, jobs=2)


@pytest.mark.parametrize('step', ['write_split_info', 'write_json', '_write_skipped', '_write_tfds_metadata'])
def test_a_full_disk_at_any_step_is_an_error_to_resume_from(tmp_path, monkeypatch, step):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(f'data_prep.build.{step}', refuse)
        with pytest.raises(DataError, match=r'cannot be written: .*No space left'):
            build_small(tmp_path)
    with pytest.raises(DataError):
        Shards(tmp_path)
    build_small(tmp_path)
    assert len(Shards(tmp_path)) == 10


@pytest.mark.parametrize('settings', [dict(num_clips=0), dict(seed=-1), dict(classes=('sirene',)), dict(classes=())])
def test_bad_synthetic_settings_are_refused(settings):
    with pytest.raises(ConfigError, match='synthetic'):
        SyntheticClips(**{'num_clips': 3, 'seed': 0, 'seconds': 1.0, **settings})
