import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.data_batches import batches_of, clips_in, config_of, damage_clips, take
from support.small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files, small_clips

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.batches import DataConfig, encoder_identity, staged
from audiosep_jax.data.embeddings import cache_directory
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import ConfigError, DataError, EncoderMismatchError
from audiosep_jax.storage.json_files import write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp('dataset')
    build_small(directory, 10, captions=3)
    return directory


def assert_same(some: list[dict], others: list[dict]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys() == {'waveforms', 'embeddings'}
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_a_batch_is_crops_with_an_embedding_of_their_caption(dataset):
    clips, encoder = small_clips(10, captions=3), load_encoder('words')
    for batch in take(batches_of(config_of(dataset)), 5):
        assert (batch['waveforms'].shape, batch['waveforms'].dtype) == ((4, 400), np.int16)
        assert (batch['embeddings'].shape, batch['embeddings'].dtype) == ((4, 512), np.float32)
        assert type(batch['waveforms']) is np.ndarray
        for crop, embedding, index in zip(batch['waveforms'], batch['embeddings'], clips_in(batch), strict=True):
            whole = np.rint(clips[index].audio * INT16_SCALE)
            assert (np.lib.stride_tricks.sliding_window_view(whole, 400) == crop).all(axis=1).any()
            errors = np.abs(encoder.encode_text(list(clips[index].captions)) - embedding).max(axis=1)
            assert errors.min() < 1e-3


def test_every_epoch_has_every_clip_once_in_another_order(dataset):
    rows = np.concatenate([clips_in(b) for b in take(batches_of(config_of(dataset), batch_size=5), 8)])
    epochs = rows.reshape(4, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_crops_and_captions_vary_between_epochs(dataset):
    starts, captions = set(), set()
    for batch in take(batches_of(config_of(dataset), batch_size=10), 20):
        row = int(np.argmax(clips_in(batch) == 8))
        starts.add(int(batch['waveforms'][row, 0]))
        captions.add(batch['embeddings'][row].tobytes())
    assert len(starts) > 10
    assert len(captions) == 3  # all the captions of clip 8


def test_the_seed_alone_decides(dataset):
    first, again, other = (take(batches_of(config_of(dataset), seed=s), 4) for s in (3, 3, 4))
    assert_same(first, again)
    assert not all(np.array_equal(a['waveforms'], b['waveforms']) for a, b in zip(first, other, strict=True))


def test_neighbouring_seeds_do_not_share_epochs(dataset):
    """Grain seeds epoch e of seed s with s + e, so seed 4 would start with the second epoch of seed 3."""
    orders = [
        [tuple(clips_in(b)) for b in take(batches_of(config_of(dataset), batch_size=10, seed=s), 4)] for s in (3, 4)
    ]
    assert not set(orders[0]) & set(orders[1])


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_have_the_rows_of_one_global_batch(dataset, hosts):
    config = config_of(dataset, dataset, weights=(1, 2))
    whole = take(batches_of(config, batch_size=8), 3)
    parts = [take(batches_of(config, batch_size=8, process_index=h, process_count=hosts), 3) for h in range(hosts)]
    joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in ('waveforms', 'embeddings')} for i in range(3)]
    assert_same(whole, joined)


def test_resume_is_exact_on_any_number_of_hosts(dataset):
    whole = take(batches_of(config_of(dataset), batch_size=6), 7)
    begun = batches_of(config_of(dataset), batch_size=6)
    take(begun, 4)
    state = json.loads(json.dumps(begun.get_state()))
    resumed = batches_of(config_of(dataset, threads=1, read_ahead=5), batch_size=6)
    next(resumed)  # a position may be set at any time
    resumed.set_state(state)
    assert_same(take(resumed, 3), whole[4:])
    second_half = batches_of(config_of(dataset), batch_size=6, process_index=1, process_count=2)
    second_half.set_state(state)
    assert_same(take(second_half, 3), [{k: v[3:] for k, v in batch.items()} for batch in whole[4:]])


def test_state_is_of_what_was_yielded_not_of_what_was_read_ahead(dataset):
    batches = batches_of(config_of(dataset, read_ahead=8))
    assert batches.get_state()['position'] == 0
    take(batches, 3)
    assert batches.get_state()['position'] == 12
    assert_same(
        take(batches, 1), take(batches_of(config_of(dataset)), 4)[3:]
    )  # after `close`, it resumes at its position


@pytest.mark.parametrize(
    'other', [dict(seed=4), dict(sample_rate=16000), dict(segment_seconds=0.1), dict(data='twice'), dict(data='fewer')]
)
def test_state_of_another_stream_is_refused(dataset, tmp_path, other):
    state = batches_of(config_of(dataset)).get_state()
    data, settings = other.pop('data', None), {}
    if 'segment_seconds' in other:
        settings['segment_seconds'] = other.pop('segment_seconds')
    directories = [dataset] * (2 if data == 'twice' else 1)
    if data == 'fewer':
        build_small(tmp_path, 9, captions=3)
        directories = [tmp_path]
    with pytest.raises(DataError, match='not of this stream'):
        batches_of(config_of(*directories, **settings), **other).set_state(state)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [1, 2])
def test_worker_processes_give_the_same_stream(dataset, workers):
    whole = take(batches_of(config_of(dataset)), 7)
    batches = batches_of(config_of(dataset, workers=workers))
    first = take(batches, 4)
    assert type(first[0]['waveforms']) is np.ndarray
    assert_same(first + take(batches, 3), whole)


SCRIPT = """
import multiprocessing, os, signal, sys
from audiosep_jax.data.batches import DataConfig, make_batches

if __name__ == '__main__':
    config = DataConfig(data=(sys.argv[1],), segment_seconds=0.05, workers=2)
    batches = make_batches(config, sample_rate=8000, batch_size=4, seed=0)
    for _ in range(3):
        next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize('end', ['killed', 'returned'])
def test_worker_processes_end_with_the_run(dataset, tmp_path, end):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    command = [sys.executable, '-W', 'error', script, dataset, end]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == (-signal.SIGKILL if end == 'killed' else 0)
    assert end == 'killed' or run.stderr == ''  # and silently, though nothing was closed
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_weights_are_proportions_in_random_order(dataset, tmp_path):
    clips = [Clip(f'x{n}', np.full(800, -0.5, np.float32), ('x',)) for n in range(3)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='other')
    embed_captions(tmp_path, load_encoder('words'))
    config = config_of(dataset, tmp_path, weights=(1, 3))
    batches = take(batches_of(config, batch_size=8), 50)
    other = np.stack([b['waveforms'][:, 0] < 0 for b in batches])
    assert other.mean() == pytest.approx(0.75, abs=0.05)
    assert len({tuple(row) for row in other}) > 20  # not the fixed interleaving: rows meet all sorts of neighbours


def test_datasets_without_weights_count_by_their_clips(dataset, tmp_path):
    build_small(tmp_path, 30)
    batches = take(batches_of(config_of(dataset, tmp_path), batch_size=8), 50)
    of_the_larger = np.concatenate([clips_in(b) >= 10 for b in batches])
    assert of_the_larger.mean() == pytest.approx(0.5, abs=0.07)  # 20 of its 30 clips, 3/4 of the time


def test_corrupt_record_is_replaced_by_its_neighbour_and_counted(tmp_path, caplog):
    build_small(tmp_path, 10, codec='pcm16')
    intact = take(batches_of(config_of(tmp_path)), 10)
    damage_clips(tmp_path, ['clip-3', 'clip-9'])
    batches = batches_of(config_of(tmp_path))
    assert batches.corrupt_records == 0
    with caplog.at_level(logging.WARNING):
        damaged = take(batches, 10)
    assert batches.corrupt_records == 2
    assert len(caplog.records) == 2  # once each, though each was met in every epoch
    assert '-00000-of-00003: record 3 cannot be read' in caplog.text
    for before, after in zip(intact, damaged, strict=True):
        expected = [{3: 4, 9: 0}.get(clip, clip) for clip in clips_in(before)]
        assert list(clips_in(after)) == expected
        same = clips_in(before) == clips_in(after)
        np.testing.assert_array_equal(before['waveforms'][same], after['waveforms'][same])
        np.testing.assert_array_equal(before['embeddings'][same], after['embeddings'][same])


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_but_corrupt_records_is_one_clear_error(tmp_path, workers):
    build_small(tmp_path, 4, codec='pcm16')
    damage_clips(tmp_path, [f'clip-{n}' for n in range(4)])
    batches = batches_of(config_of(tmp_path, workers=workers))
    with batches, pytest.raises(DataError, match='too many unreadable records in a row') as caught:
        next(batches)
    assert '\n' not in str(caught.value)


def test_missing_cache_names_the_command(tmp_path):
    build_small(tmp_path, 3, embed=False)
    for call in (encoder_identity, batches_of):
        with pytest.raises(DataError, match=f'run `python -m data_prep embed {tmp_path} --encoder words`'):
            call(config_of(tmp_path, encoder='words'))
        with pytest.raises(DataError, match=f'run `python -m data_prep embed {tmp_path} --encoder NAME`'):
            call(config_of(tmp_path))


def test_of_several_encoders_one_is_named(tmp_path):
    build_small(tmp_path, 3)
    assert encoder_identity(config_of(tmp_path))['name'] == 'words'  # the only one
    write_json(cache_directory(tmp_path, 'clap') / 'encoder.json', {'name': 'clap', 'embedding_size': 512})
    assert encoder_identity(config_of(tmp_path))['name'] == 'words'  # of clap nothing is complete
    write_json(cache_directory(tmp_path, 'clap') / 'train.json', {'content': '', 'complete': True})
    with pytest.raises(DataError, match='embeddings of clap, words: say which with --encoder NAME'):
        encoder_identity(config_of(tmp_path))
    assert encoder_identity(config_of(tmp_path, encoder='clap'))['name'] == 'clap'


def test_cache_of_another_encoder_is_refused(tmp_path):
    build_small(tmp_path / 'a', 3)
    build_small(tmp_path / 'b', 3, embed=False)
    embed_captions(tmp_path / 'b', WordsEncoder(embedding_size=64))
    assert encoder_identity(config_of(tmp_path / 'b'))['embedding_size'] == 64
    with pytest.raises(EncoderMismatchError, match='embedding_size 64 instead of 512'):
        batches_of(config_of(tmp_path / 'a', tmp_path / 'b'))
    write_json(cache_directory(tmp_path / 'a', 'words') / 'encoder.json', {'name': 'clap', 'embedding_size': 512})
    with pytest.raises(EncoderMismatchError, match="made by encoder 'clap'"):
        encoder_identity(config_of(tmp_path / 'a'))


def test_broken_split_or_directory_is_found_before_the_first_batch(tmp_path, dataset):
    with pytest.raises(DataError, match='no such dataset directory'):
        batches_of(config_of(tmp_path / 'nowhere'))
    build_small(tmp_path / 'bare', 3, embed=False)
    with pytest.raises(DataError, match='no embeddings'):
        batches_of(config_of(tmp_path / 'bare'))
    with pytest.raises(DataError, match="no split 'test'"):
        batches_of(config_of(dataset, split='test'))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(weights=(1.0,)), '1 weights for 2 datasets'),
        (dict(weights=(1.0, 0.0)), 'above 0'),
        (dict(weights=(1.0, float('nan'))), 'above 0'),
        (dict(segment_seconds=0), 'segment_seconds'),
        (dict(segment_seconds=float('inf')), 'segment_seconds'),
        (dict(workers=-1), 'workers'),
        (dict(threads=0), 'threads'),
        (dict(read_ahead=0), 'read_ahead'),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(data=('a', 'b'), **settings)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(batch_size=0), 'batch_size'),
        (dict(batch_size=5, process_count=2), 'batch_size 5 must be a positive multiple of the 2 hosts'),
        (dict(process_index=1), 'process_index'),
        (dict(seed=-1), 'seed'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(dataset, settings, message):
    with pytest.raises(ConfigError, match=message):
        batches_of(config_of(dataset), **settings)


def test_no_data_and_no_samples_are_refused(dataset):
    with pytest.raises(ConfigError, match='--data'):
        encoder_identity(DataConfig())
    with pytest.raises(ConfigError, match='less than one sample'):
        batches_of(dataclasses.replace(config_of(dataset), segment_seconds=1e-6))


# ---- Too many corrupt records ----


def read_until_it_stops(batches, most: int = 200) -> int:
    """How many batches were read before the DataError."""
    with batches:
        for count in range(most):
            try:
                next(batches)
            except DataError as error:
                line = r'.* more than --max-corrupt-share .* run `python -m data_prep verify` on .*'
                return count if re.fullmatch(line, str(error)) else -1
    return most


def test_too_large_a_share_of_corrupt_records_ends_the_run(tmp_path):
    build_small(tmp_path, 20, codec='pcm16')
    damage_clips(tmp_path, ['clip-7'])
    config = config_of(tmp_path)
    assert read_until_it_stops(batches_of(config, batch_size=20)) == 4  # of the first 100 records 5 are corrupt
    for allowed in (0.06, 1.0):
        settings = dataclasses.replace(config, max_corrupt_share=allowed)
        assert read_until_it_stops(batches_of(settings, batch_size=20), most=40) == 40
    # A share a little below: it takes more records to be sure.
    settings = dataclasses.replace(config, max_corrupt_share=0.04)
    assert 40 < read_until_it_stops(batches_of(settings, batch_size=20), most=200) < 200


@pytest.mark.slow
def test_a_share_of_corrupt_records_is_counted_across_workers(tmp_path):
    build_small(tmp_path, 10, codec='pcm16')
    damage_clips(tmp_path, ['clip-7'])
    assert read_until_it_stops(batches_of(config_of(tmp_path, workers=2), batch_size=20)) == 4


def test_few_records_are_no_share(tmp_path):
    build_small(tmp_path, 4, codec='pcm16')
    damage_clips(tmp_path, ['clip-1'])
    batches = batches_of(config_of(tmp_path, max_corrupt_share=0.0))
    assert read_until_it_stops(batches) == 24  # 96 records are not enough
    assert batches.corrupt_records == 1


# ---- Staging ----


def test_staged_datasets_are_read_from_the_copy(tmp_path):
    build_small(tmp_path / 'far', 10)
    whole = take(batches_of(config_of(tmp_path / 'far')), 3)
    config = config_of(tmp_path / 'far', stage_dir=str(tmp_path / 'near'))
    near = staged(config)
    assert near.stage_dir == ''
    take(batches_of(near), 1)
    for path in shard_files(tmp_path / 'far'):
        overwrite(path, 0, bytes(path.stat().st_size))  # must not be read any more
    for a, b in zip(take(batches_of(near), 3), whole, strict=True):
        np.testing.assert_array_equal(a['waveforms'], b['waveforms'])
        np.testing.assert_array_equal(a['embeddings'], b['embeddings'])
    with pytest.raises(DataError, match='no such dataset directory'):
        staged(config_of(tmp_path / 'nowhere', stage_dir=str(tmp_path / 'near')))
