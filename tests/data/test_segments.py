"""The query, labels and crop of an example, which are the same on any number of hosts and workers."""

import json

import numpy as np
import pytest
from support.data_batches import batches_of, clips_in, config_of, take
from support.small_dataset import SAMPLE_RATE, build_small, tone

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.embeddings import cache_directory
from audiosep_jax.data.records import Record
from audiosep_jax.data.segments import MAX_LABELS, label_numbers, random_segment
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import ConfigError, DataError
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions, embed_dataset

SOUND, PICTURE = -1.0, -2.0  # the embeddings of audio and frames below; those of captions are above -1


class Marking(WordsEncoder):
    def encode_audio(self, waveforms, *, sample_rate):
        return np.full((len(waveforms), 512), SOUND)

    def encode_image(self, images):
        return np.full((len(images), 512), PICTURE)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp('dataset')
    build_small(directory, 10, captions=3)
    embed_dataset(directory, Marking(), what='audio')
    return directory


def by_sound(batches: list[dict]) -> np.ndarray:
    """bool [batches, B]."""
    return np.stack([(batch['embeddings'] == SOUND).all(axis=1) for batch in batches])


def assert_same(some: list[dict], others: list[dict]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys() == {'waveforms', 'embeddings', 'labels'}
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


MODES = [dict(use_text_ratio=0.6), dict(use_text_ratio=0.5, ratio_per='batch')]


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_have_the_rows_of_one_global_batch(dataset, hosts, mode):
    config = config_of(dataset, dataset, weights=(1, 2), **mode)
    whole = take(batches_of(config, batch_size=8, labels=True), 6)
    parts = [
        take(batches_of(config, batch_size=8, process_index=h, process_count=hosts, labels=True), 6)
        for h in range(hosts)
    ]
    assert_same(whole, [{k: np.concatenate([p[i][k] for p in parts]) for k in whole[i]} for i in range(6)])
    assert 0 < by_sound(whole).mean() < 1


@pytest.mark.parametrize('mode', MODES)
def test_hosts_may_change_in_the_middle(dataset, mode):
    config = config_of(dataset, **mode)
    whole = take(batches_of(config, batch_size=4, labels=True), 9)
    state, found = None, []
    for hosts in (1, 2, 4):
        parts = [batches_of(config, process_index=h, process_count=hosts, labels=True) for h in range(hosts)]
        for part in parts:
            if state:
                part.set_state(json.loads(state))
        taken = [take(part, 3) for part in parts]
        found += [{k: np.concatenate([p[i][k] for p in taken]) for k in whole[0]} for i in range(3)]
        (state,) = {json.dumps(part.get_state()) for part in parts}
    assert_same(found, whole)


@pytest.mark.slow
@pytest.mark.parametrize('mode', MODES)
def test_workers_may_change_in_the_middle(dataset, mode):
    whole = take(batches_of(config_of(dataset, **mode), labels=True), 6)
    state, found = None, []
    for workers in (0, 2, 0):
        batches = batches_of(config_of(dataset, workers=workers, **mode), labels=True)
        if state:
            batches.set_state(state)
        found += take(batches, 2)
        state = batches.get_state()
    assert_same(found, whole)


@pytest.mark.parametrize(('ratio', 'share'), [(1.0, 0.0), (0.7, 0.3), (0.0, 1.0)])
def test_ratio_is_the_share_asked_for_by_text(dataset, ratio, share):
    rows = by_sound(take(batches_of(config_of(dataset, use_text_ratio=ratio), batch_size=20), 15))
    assert rows.mean() == pytest.approx(share, abs=0.07)
    assert share in (0, 1) or len({tuple(row) for row in rows}) > 12  # in no pattern


def test_a_batch_is_asked_for_as_a_whole_where_the_original_does(dataset):
    rows = by_sound(take(batches_of(config_of(dataset, use_text_ratio=0.5, ratio_per='batch')), 60))
    assert (rows == rows[:, :1]).all()
    assert 15 < rows[:, 0].sum() < 45
    other = by_sound(take(batches_of(config_of(dataset, use_text_ratio=0.5, ratio_per='batch'), seed=4), 60))
    assert (rows[:, 0] != other[:, 0]).any()


def test_text_alone_is_the_same_stream_with_and_without_labels(dataset):
    plain = take(batches_of(config_of(dataset)), 3)
    mixed = take(batches_of(config_of(dataset, use_text_ratio=0.5), labels=True), 3)
    for a, b in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(a['waveforms'], b['waveforms'])
        text = ~(b['embeddings'] == SOUND).all(axis=1)
        np.testing.assert_array_equal(a['embeddings'][text], b['embeddings'][text])


def test_clips_without_pictures_are_asked_for_by_text(tmp_path):
    import io

    import PIL.Image

    file = io.BytesIO()
    PIL.Image.new('RGB', (4, 4)).save(file, 'JPEG')
    frames = [(file.getvalue(),), ()] * 3
    clips = [Clip(f'c{n}', tone(n), (f'sound {n}',), frames=some) for n, some in enumerate(frames)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='video')
    embed_captions(tmp_path, load_encoder('words'))
    embed_dataset(tmp_path, Marking(), what='image')
    for batch in take(batches_of(config_of(tmp_path, use_text_ratio=0, other='image'), batch_size=6), 3):
        np.testing.assert_array_equal((batch['embeddings'] == PICTURE).all(axis=1), clips_in(batch) % 2 == 0)


def test_other_embeddings_that_are_missing_name_the_command(tmp_path):
    class Hearing(Marking):
        name = 'clap'  # of an encoder that has embeddings of sounds: for `words` the command would be no help

    build_small(tmp_path, 3, embed=False)
    embed_captions(tmp_path, Hearing())
    with pytest.raises(DataError, match=f'run `python -m data_prep embed {tmp_path} --encoder clap --what audio`'):
        batches_of(config_of(tmp_path, use_text_ratio=0.5))
    embed_dataset(tmp_path, Hearing(), what='audio')
    (cache_directory(tmp_path, 'clap') / 'train.json').unlink()
    take(batches_of(config_of(tmp_path, use_text_ratio=0)), 1)  # captions are not needed
    with pytest.raises(DataError, match='no complete embeddings'):
        batches_of(config_of(tmp_path, use_text_ratio=0.5))


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (dict(), dict(use_text_ratio=0.5)),
        (dict(use_text_ratio=0.5), dict(use_text_ratio=0.6)),
        (dict(use_text_ratio=0.5), dict(use_text_ratio=0.5, ratio_per='batch')),
    ],
)
def test_state_of_another_share_of_text_is_refused(dataset, before, after):
    state = batches_of(config_of(dataset, **before)).get_state()
    with pytest.raises(DataError, match='share of text'):
        batches_of(config_of(dataset, **after)).set_state(state)


# ---- Labels ----


def record_with(labels=(), captions=('x',)) -> Record:
    return Record('a', b'', 'pcm16', SAMPLE_RATE, 0, tuple(captions), tuple(labels))


def test_labels_are_numbers_that_do_not_depend_on_case_or_process():
    numbers = label_numbers(record_with(['Male speech', 'Dog']))
    assert (numbers.shape, numbers.dtype) == ((MAX_LABELS,), np.int32)
    assert numbers[:2].tolist() == [406495290, 19675517]  # crc32, 31 bits: the same in every process
    assert (numbers[2:] == -1).all()
    np.testing.assert_array_equal(label_numbers(record_with(['male  SPEECH '])), [numbers[0], *[-1] * 15])


def test_a_clip_without_labels_has_its_captions_for_labels():
    np.testing.assert_array_equal(
        label_numbers(record_with((), ['Rain', 'a dog'])), label_numbers(record_with(['rain', 'A dog']))
    )


def test_of_too_many_labels_the_first_count():
    names = [f'label {n}' for n in range(MAX_LABELS + 3)]
    np.testing.assert_array_equal(label_numbers(record_with(names)), label_numbers(record_with(names[:MAX_LABELS])))


def test_batches_hold_labels_only_if_asked(dataset):
    assert set(take(batches_of(config_of(dataset)), 1)[0]) == {'waveforms', 'embeddings'}
    shards = Shards(dataset)
    for batch in take(batches_of(config_of(dataset), labels=True), 3):
        assert (batch['labels'].shape, batch['labels'].dtype) == ((4, MAX_LABELS), np.int32)
        for row, clip in zip(batch['labels'], clips_in(batch), strict=True):
            np.testing.assert_array_equal(row, label_numbers(shards.read(int(clip))))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(use_text_ratio=1.1), 'use_text_ratio'),
        (dict(use_text_ratio=float('nan')), 'use_text_ratio'),
        (dict(other='text'), "other 'text': must be audio or image"),
        (dict(ratio_per='epoch'), 'must be example or batch'),
        (dict(max_corrupt_share=-0.1), 'max_corrupt_share'),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_of('a', **settings)


# ---- Crops ----


def test_clips_shorter_than_the_segment_lie_among_zeros(tmp_path):
    build_small(tmp_path, 1, num_samples=100)
    shards = Shards(tmp_path)
    clip = shards.waveform(0) * INT16_SCALE
    for where, start in ((0.0, 0), (0.5, 25), (0.999, 50)):
        segment = random_segment(shards, 0, where, 150, SAMPLE_RATE)
        expected = np.zeros(150)
        expected[start : start + 100] = clip
        np.testing.assert_array_equal(segment, expected)


def test_crops_reach_both_ends_of_a_clip(dataset):
    shards = Shards(dataset)
    whole = shards.waveform(2) * INT16_SCALE
    np.testing.assert_array_equal(random_segment(shards, 2, 0.0, 1900, SAMPLE_RATE), whole[:1900])
    np.testing.assert_array_equal(random_segment(shards, 2, np.nextafter(1, 0), 1900, SAMPLE_RATE), whole[100:])
    np.testing.assert_array_equal(random_segment(shards, 2, 0.5, 2000, SAMPLE_RATE), whole)


@pytest.mark.parametrize('rate', [4000, 16000, 11025])
@pytest.mark.parametrize('seconds', [0.5, 3])
def test_shards_of_another_rate_are_resampled(tmp_path, rate, seconds):
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)
    build_shards([Clip('a', wave, ('a tone',))], tmp_path, sample_rate=SAMPLE_RATE, name='tone')
    num_samples = round(seconds * rate)
    segment = random_segment(Shards(tmp_path), 0, 0.0, num_samples, rate)
    assert (segment.shape, segment.dtype) == ((num_samples,), np.int16)
    inside = min(num_samples, rate)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(inside) / rate)
    margin = 400  # the resampler's filter meets the ends of the signal
    np.testing.assert_allclose(segment[margin : inside - margin] / INT16_SCALE, expected[margin:-margin], atol=2e-3)
    assert not segment[inside:].any()
