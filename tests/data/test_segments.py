"""What an example is asked for by, its labels, and that both are the same on any number of hosts and workers."""

import dataclasses
import json
import re

import numpy as np
import pytest
from support.data_batches import batches_of, clips_in, config_of, damage_clips, take
from support.small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files, tone

from audiosep_jax.data.embeddings import cache_directory
from audiosep_jax.data.records import Record
from audiosep_jax.data.segments import MAX_LABELS, label_numbers
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import ConfigError, DataError
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions, embed_dataset

SOUND, PICTURE = -1.0, -2.0  # the embeddings of sounds and pictures below; those of words are above -1


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
    take(batches_of(config_of(tmp_path, use_text_ratio=0)), 1)  # captions are not asked for
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


# ---- Staging ----


def test_staged_datasets_are_read_from_the_copy(tmp_path):
    build_small(tmp_path / 'far', 10)
    whole = take(batches_of(config_of(tmp_path / 'far')), 3)
    config = config_of(tmp_path / 'far', stage_dir=str(tmp_path / 'near'))
    take(batches_of(config), 1)
    for path in shard_files(tmp_path / 'far'):
        overwrite(path, 0, bytes(path.stat().st_size))  # nobody reads it any more
    for a, b in zip(take(batches_of(config), 3), whole, strict=True):
        np.testing.assert_array_equal(a['waveforms'], b['waveforms'])
        np.testing.assert_array_equal(a['embeddings'], b['embeddings'])
    with pytest.raises(DataError, match='no such dataset directory'):
        batches_of(config_of(tmp_path / 'nowhere', stage_dir=str(tmp_path / 'near')))
