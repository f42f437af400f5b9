"""The log of a run: its contents after a restart, in a bucket, in TensorBoard, at Weights & Biases."""

import json
import struct
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.training.monitoring.log import TrainingLog, check_wandb

RECORD = {'format_version': 2, 'config': {'steps': 3}, 'encoder': None}


def events_in(folder) -> list:
    """Reads all TensorBoard files, whose records are a length, its checksum, the message and its checksum."""
    found = []
    for path in sorted(folder.glob('events.*')):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars_in(folder) -> dict[tuple[str, int], float]:
    events = [event for event in events_in(folder) if event.summary.value]
    return {(v.tag, event.step): v.simple_value for event in events for v in event.summary.value}


def lines_in(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'log.jsonl').read_text().splitlines()]


def test_a_resumed_run_drops_the_lines_that_it_will_write_again(tmp_path):
    with TrainingLog(tmp_path, RECORD, after_step=0) as log:
        for step in (1, 2, 3):
            log.write({'step': step, 'loss': step / 8, 'grad_norm': None})
    with (tmp_path / 'log.jsonl').open('a') as file:
        file.write('{"step": 4, "lo')
    with TrainingLog(tmp_path, RECORD, after_step=2) as log:
        log.write({'step': 3, 'loss': 0.75, 'grad_norm': 1})
    assert [(line['step'], line['loss']) for line in lines_in(tmp_path)] == [(1, 0.125), (2, 0.25), (3, 0.75)]
    assert json.loads((tmp_path / 'config.json').read_text()) == RECORD
    scalars = scalars_in(tmp_path / 'tensorboard')
    assert scalars['train/loss', 2] == 0.25
    assert scalars['train/loss', 3] == 0.75
    assert ('train/grad_norm', 1) not in scalars, 'what is not finite is no number'
    purged = [e.step for e in events_in(tmp_path / 'tensorboard') if e.HasField('session_log')]
    assert 3 in purged, 'TensorBoard forgets step 3 of the first start'


def test_goodput_goes_on_after_a_restart(tmp_path):
    for start in range(2):
        with TrainingLog(tmp_path, RECORD, after_step=start, started=(1e9, 2e9)[start]) as log:
            line = {'step': start + 1, 'loss': 0.5, 'seconds': 8.0, 'input_wait': 0.5}
            log.write(line | log.goodput.add(line))
    first, second = lines_in(tmp_path)
    for line, in_steps in ((first, 4.0), (second, 8.0)):
        assert line['time'] - line['elapsed'] == pytest.approx(1e9)
        assert line['goodput'] == pytest.approx(in_steps / line['elapsed'])
    scalars = scalars_in(tmp_path / 'tensorboard')
    assert scalars['train/goodput', 2] == pytest.approx(second['goodput'])
    assert ('train/time', 2) not in scalars, 'TensorBoard knows it itself'


def test_validation_is_heard_and_seen(tmp_path):
    time = np.arange(4000) / 8000
    sounds = {name: np.sin(2 * np.pi * f * time, dtype=np.float32) for name, f in (('mixture', 500), ('target', 600))}
    panels = {'0: a tone': {**sounds, 'separated': sounds['target'], 'sample_rate': 8000}}
    with TrainingLog(tmp_path, RECORD, after_step=0) as log:
        log.validation(5, {'SDRi': 6.5}, panels)
    assert lines_in(tmp_path) == [{'step': 5, 'validation': {'SDRi': 6.5}}]
    values = {v.tag: v for event in events_in(tmp_path / 'tensorboard') for v in event.summary.value}
    assert values['validation/SDRi'].simple_value == 6.5
    audio = values['validation/0/target'].audio
    assert (audio.sample_rate, audio.length_frames, audio.encoded_audio_string[:4]) == (8000, 4000, b'RIFF')
    image = values['validation/0'].image
    assert image.width > 500
    assert image.encoded_image_string.startswith(b'\x89PNG')


def test_a_workdir_in_a_bucket_gets_all_files(bucket):
    workdir = as_path('gs://runs/base')
    for first in (0, 2):
        with TrainingLog(workdir, RECORD, after_step=first) as log:
            for step in range(first + 1, first + 4):
                log.write({'step': step, 'loss': first + step / 8})
    stored = bucket.contents('runs/base')
    lines = [json.loads(line) for line in stored['log.jsonl'].decode().splitlines()]
    assert [(line['step'], line['loss']) for line in lines] == [(1, 0.125), (2, 0.25), (3, 2.375), (4, 2.5), (5, 2.625)]
    assert json.loads(stored['config.json']) == RECORD
    assert len([name for name in stored if name.startswith('tensorboard/events.')]) == 2


def test_a_bucket_that_refuses_is_one_line(bucket, monkeypatch):
    monkeypatch.setattr(bucket, 'refused', ('runs/base',))
    with pytest.raises(CheckpointError, match='cannot write to gs://runs/base: '):
        TrainingLog(as_path('gs://runs/base'), RECORD, after_step=0)


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path):
    with TrainingLog(tmp_path, RECORD, after_step=0, tensorboard=False) as log:
        (tmp_path / 'log.jsonl').mkdir()
        with pytest.raises(CheckpointError, match=r'cannot write to .*log\.jsonl'):
            log.write({'step': 1, 'loss': 0.5})


def test_without_tensorboard(tmp_path):
    with TrainingLog(tmp_path, RECORD, after_step=0, tensorboard=False) as log:
        log.write({'step': 1, 'loss': 0.5})
        log.validation(1, {}, {})
    assert not (tmp_path / 'tensorboard').exists()


def test_weights_and_biases_get_the_numbers_and_the_same_run_after_a_restart(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = 'abc123'

        def log(self, numbers, step):
            calls.append(('log', numbers, step))

        def finish(self, exit_code):
            calls.append(('finish', exit_code))

    def init(**settings):
        calls.append(('init', settings['project'], settings['id'], settings['config']))
        return Run()

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init, __spec__=None))
    for first in (0, 1):
        with TrainingLog(tmp_path, RECORD, after_step=first, tensorboard=False, wandb='sounds') as log:
            log.write({'step': first + 1, 'loss': 0.5})
    assert calls == [
        ('init', 'sounds', None, {'steps': 3}),
        ('log', {'train/loss': 0.5}, 1),
        ('finish', 0),
        ('init', 'sounds', 'abc123', {'steps': 3}),
        ('log', {'train/loss': 0.5}, 2),
        ('finish', 0),
    ]


def test_weights_and_biases_is_an_extra():
    check_wandb('')
    with pytest.raises(ConfigError, match=r'\[wandb\]'):
        check_wandb('sounds')
