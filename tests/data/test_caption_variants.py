"""Tests that training draws among captions and their variants, and as before where a dataset has none."""

import numpy as np
import pytest
from support.data_batches import batches_of, clips_in, config_of, take
from support.small_dataset import build_small

from audiosep_jax.data.caption_variants import read_variants, variants_digest, variants_of, variants_path
from audiosep_jax.data.staging import stage
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import write_json
from data_prep.embed import embed_captions, embed_dataset

VARIANTS = {'sound 3 take 0': ['the third noise', 'number three'], 'sound 5 take 0': ['the fifth noise']}


@pytest.fixture
def dataset(tmp_path):
    build_small(tmp_path / 'dataset', 10)
    return tmp_path / 'dataset'


def add(dataset, variants=VARIANTS):
    write_json(variants_path(dataset), variants)
    embed_dataset(dataset, load_encoder('words'), what='variants')


def test_variants_of_a_clip_are_those_of_its_captions_each_once():
    variants = {'a': ['b', 'c'], 'b': ['c', 'd']}
    assert variants_of(('a', 'b'), variants) == ['c', 'd']
    assert variants_of(('e',), variants) == []


def test_a_dataset_without_the_file_has_none(dataset):
    assert read_variants(dataset) == {}
    assert variants_digest(dataset) == ''


@pytest.mark.parametrize('text', ['[1]', '{"a": 1}', '{"a": ["b"'])
def test_a_damaged_file_is_one_line_with_the_remedy(dataset, text):
    variants_path(dataset).write_text(text)
    with pytest.raises(DataError, match='caption-variants` again') as caught:
        take(batches_of(config_of(dataset)), 1)
    assert '\n' not in str(caught.value)


def drawn(dataset, count, **settings):
    """Returns the texts that each clip was drawn with, out of its caption and variants, and how often."""
    encoder, found = load_encoder('words'), {}
    for batch in take(batches_of(config_of(dataset, **settings), batch_size=10), count):
        for clip, embedding in zip(clips_in(batch), batch['embeddings'], strict=True):
            caption = f'sound {clip} take 0'
            texts = [caption, *VARIANTS.get(caption, ())]
            errors = np.abs(encoder.encode_text(texts) - embedding).max(axis=1)
            assert errors.min() < 1e-3
            key = clip, texts[errors.argmin()]
            found[key] = found.get(key, 0) + 1
    return found


def test_all_wordings_of_a_clip_are_equally_likely(dataset):
    add(dataset)
    found = drawn(dataset, 120)
    assert len(found) == 10 + 3
    for text in ('sound 3 take 0', *VARIANTS['sound 3 take 0']):
        assert 20 < found[3, text] < 60
    for text in ('sound 5 take 0', *VARIANTS['sound 5 take 0']):
        assert 40 < found[5, text] < 80
    assert found[0, 'sound 0 take 0'] == 120


def test_clips_without_variants_are_drawn_as_before(dataset):
    before = take(batches_of(config_of(dataset)), 6)
    state = batches_of(config_of(dataset)).get_state()
    add(dataset)
    after = take(batches_of(config_of(dataset)), 6)
    off = batches_of(config_of(dataset, caption_variants=False))
    assert off.get_state() == state
    for a, b, c in zip(before, after, take(off, 6), strict=True):
        np.testing.assert_array_equal(a['waveforms'], b['waveforms'])
        np.testing.assert_array_equal(a['embeddings'], c['embeddings'])
        same = ~np.isin(clips_in(a), [3, 5])
        np.testing.assert_array_equal(a['embeddings'][same], b['embeddings'][same])


def test_a_run_resumes_exactly_and_only_with_the_same_variants(dataset):
    plain = batches_of(config_of(dataset)).get_state()
    add(dataset)
    whole = take(batches_of(config_of(dataset)), 6)
    begun = batches_of(config_of(dataset))
    take(begun, 2)
    resumed = batches_of(config_of(dataset))
    resumed.set_state(begun.get_state())
    for a, b in zip(whole[2:], take(resumed, 4), strict=True):
        np.testing.assert_array_equal(a['embeddings'], b['embeddings'])
    with pytest.raises(DataError, match='caption variants'):
        batches_of(config_of(dataset)).set_state(plain)
    add(dataset, {'sound 3 take 0': ['another noise']})
    with pytest.raises(DataError, match='caption variants'):
        batches_of(config_of(dataset)).set_state(begun.get_state())


def test_variants_that_are_not_embedded_are_an_error_with_the_command(dataset):
    add(dataset)
    write_json(variants_path(dataset), {'sound 3 take 0': ['another noise']})
    with pytest.raises(DataError, match=r'other variants .* run `python -m data_prep embed .* --what variants`'):
        take(batches_of(config_of(dataset)), 1)
    embed_dataset(dataset, load_encoder('words'), what='variants')
    take(batches_of(config_of(dataset)), 1)


def test_sounds_as_queries_need_no_variants(dataset):
    class Listening(WordsEncoder):
        def encode_audio(self, waveforms, *, sample_rate):
            return np.ones((len(waveforms), 512), np.float32)

    write_json(variants_path(dataset), VARIANTS)
    embed_dataset(dataset, Listening(), what='audio')
    (batch,) = take(batches_of(config_of(dataset, use_text_ratio=0.0)), 1)
    np.testing.assert_array_equal(batch['embeddings'], 1)


def test_copies_of_a_dataset_have_its_variants(dataset, tmp_path):
    add(dataset)
    copy = stage(dataset, tmp_path / 'stage')
    for a, b in zip(take(batches_of(config_of(dataset)), 6), take(batches_of(config_of(copy)), 6), strict=True):
        np.testing.assert_array_equal(a['embeddings'], b['embeddings'])
    variants_path(dataset).unlink()
    assert read_variants(stage(dataset, tmp_path / 'stage')) == {}


def test_a_new_build_makes_the_embeddings_of_the_old_one_invalid(dataset):
    add(dataset)
    assert embed_dataset(dataset, load_encoder('words'), what='variants').num_rows == 0
    build_small(dataset.parent / 'other', 8)
    embed_captions(dataset.parent / 'other', load_encoder('words'))
    with pytest.raises(DataError, match='no caption variants'):
        embed_dataset(dataset.parent / 'other', load_encoder('words'), what='variants')
