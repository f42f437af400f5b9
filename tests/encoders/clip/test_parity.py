"""Compares CLIP with transformers' CLIPModel, if torch is installed (`pip install -e .[parity]`)."""

import numpy as np
import pytest
from support import clip_reference
from support.clip_reference import BEGIN, END, clip_config, clip_model, token_ids

from audiosep_jax.encoders.clip.encoder import ClipEncoder
from audiosep_jax.encoders.clip.images import ImageConfig
from audiosep_jax.encoders.clip.model import read_config
from audiosep_jax.weights.tensor_files import write_tensors

BASE = {'model_type': 'clip', 'text_config': {}, 'vision_config': {}}


@pytest.fixture(autouse=True)
def _parity():
    for package in ('torch', 'transformers'):
        pytest.importorskip(package, reason='compares with transformers: pip install -e .[parity]')


def encoder_of(config: dict, state: dict, tmp_path) -> ClipEncoder:
    ours = read_config(config, 'test')
    size = ours.vision.image_size
    return ClipEncoder(state, ours, ImageConfig(resize=size, crop=(size, size)), tmp_path)


def of_transformers(model, ids, mask=None, images=None) -> tuple[np.ndarray, np.ndarray | None]:
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = model.config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={'shortest_edge': size}, crop_size={'height': size, 'width': size})
    images = images or clip_reference.images()
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=None if mask is None else torch.from_numpy(mask),
            pixel_values=processor(images, return_tensors='pt')['pixel_values'],
        )
    return output.text_embeds.numpy(), output.image_embeds.numpy()


@pytest.mark.parametrize('kind', ['openai', 'laion'])
def test_small_models(kind, tmp_path):
    config = clip_config(kind)
    model, state = clip_model(config)
    encoder = encoder_of(config, state, tmp_path)
    ids, mask = token_ids(seed=9, longest=30)
    rng = np.random.default_rng(2)
    resized = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((45, 61), (90, 33), (20, 25))]
    images = [*clip_reference.images(), *resized]
    text, image = of_transformers(model, ids, mask, images)
    np.testing.assert_allclose(encoder.encode_token_ids(ids, mask), text, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_image(images), image, atol=1e-6)


@pytest.mark.parametrize('end', [2, 300, END])
def test_any_ids_and_masks(end, tmp_path):
    """These ids never come from a tokenizer: several ends or none, holes in the mask, padding on the left."""
    config = clip_config('laion')
    config['text_config']['eos_token_id'] = end
    model, state = clip_model(config)
    rng = np.random.default_rng(end)
    ids = rng.integers(3, BEGIN, (6, 12))
    ids[1, [4, 8]], ids[2, 6], ids[3, 11] = END, 300, END
    mask = (rng.random(ids.shape) > 0.2).astype(np.int64)
    mask[:, 0] = 1
    mask[4, :3] = 0
    text, _ = of_transformers(model, ids, mask)
    # The output of a text that ends inside its padding is undefined, because its end token sees nothing.
    place = np.argmax(ids if end == 2 else ids == end, axis=1)
    sees = [mask[row, : last + 1].any() for row, last in enumerate(place)]
    ours = encoder_of(config, state, tmp_path).encode_token_ids(ids, mask)
    np.testing.assert_allclose(ours[sees], text[sees], atol=1e-6)
    assert sum(sees) >= 5


def test_a_folder_saved_by_transformers(tmp_path):
    model, state = clip_model(clip_config('laion'))
    model.save_pretrained(tmp_path)
    ids, mask = token_ids()
    expected = encoder_of(clip_config('laion'), state, tmp_path).encode_token_ids(ids, mask)
    np.testing.assert_array_equal(ClipEncoder.open(tmp_path).encode_token_ids(ids, mask), expected)


def test_a_folder_of_ours_is_read_by_transformers(tmp_path):
    """Names and shapes are those of transformers: nothing is missing or unexpected."""
    import json

    from transformers import CLIPModel

    _, state = clip_model(clip_config('laion'))
    write_tensors(tmp_path / 'model.safetensors', state, metadata={'format': 'pt'})
    (tmp_path / 'config.json').write_text(json.dumps(clip_config('laion')))
    _, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report['missing_keys']
    assert not report['unexpected_keys']


@pytest.mark.slow
@pytest.mark.large
def test_full_size_vit_b_32(tmp_path):
    model, state = clip_model(BASE)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 49406, (2, 14))
    ids[:, 0], ids[0, -1], ids[1, 9:] = 49406, 49407, 49407
    images = [rng.integers(0, 256, (250, 301, 3), np.uint8)]
    text, image = of_transformers(model, ids, images=images)
    encoder = encoder_of(BASE, state, tmp_path)
    del model, state  # 0.6 GB, which ours takes as well
    np.testing.assert_allclose(encoder.encode_token_ids(ids), text, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_image(images), image, atol=1e-6)
