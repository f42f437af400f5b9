"""Tests which sizes and mel bands CLAP's towers take from the settings next to the weights."""

import dataclasses
import json

import numpy as np
import pytest
from support.tiny_clap import CONFIG, SAMPLE_RATE, noise, text_and_audio, write_hugging_face, write_laion

from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.errors import CheckpointError


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    return ClapEncoder.open(write_laion(tmp_path_factory.mktemp('clap')))


@pytest.fixture(scope='module')
def expected(encoder):
    return text_and_audio(encoder)


def test_hugging_face_weights_without_settings(tmp_path, encoder):
    again = ClapEncoder.open(write_hugging_face(tmp_path, None))
    assert again.text == dataclasses.replace(encoder.text, epsilon=1e-12)
    assert again.audio == encoder.audio


def test_layer_norm_epsilon_depends_on_the_naming_and_the_settings(tmp_path):
    """LAION's weights use 1e-5 as roberta-base does; Hugging Face folders have a setting, with 1e-12 as the default."""
    (tmp_path / 'laion').mkdir()
    assert ClapEncoder.open(write_laion(tmp_path / 'laion')).text.epsilon == 1e-5
    outputs = []
    for i, settings in enumerate([{}, {'layer_norm_eps': 1e-12}, {'layer_norm_eps': 0.3}]):
        folder = tmp_path / str(i)
        folder.mkdir()
        config = {**CONFIG, 'text_config': {**CONFIG['text_config'], **settings}}
        encoder = ClapEncoder.open(write_hugging_face(folder, config))
        assert encoder.text.epsilon == settings.get('layer_norm_eps', 1e-12)
        assert encoder.audio.epsilon == 1e-5
        outputs.append(encoder.encode_text(['dog']))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[2] - outputs[1]).max() > 1e-2


@pytest.mark.parametrize(
    ('features', 'lowest'),
    [(None, 50), ({}, 50), ({'frequency_min': 50, 'frequency_max': 14000}, 50), ({'frequency_min': 0}, 0)],
)
def test_mel_bands_begin_at_50_hertz_unless_the_folder_says_otherwise(tmp_path, features, lowest):
    encoder = ClapEncoder.open(write_hugging_face(tmp_path, features=features))
    assert (encoder.audio.lowest, encoder.audio.highest) == (lowest, 14000)


def test_the_range_of_the_mel_bands_matters(tmp_path, expected):
    low = ClapEncoder.open(write_hugging_face(tmp_path, features={'frequency_min': 0}))
    difference = low.encode_audio(noise(1), sample_rate=SAMPLE_RATE) - expected[1]
    assert np.abs(difference).max() > 1e-4


def test_the_range_of_the_mel_bands_is_in_the_identity(tmp_path, encoder):
    for name, lowest, same in (('a', 50, True), ('b', 0, False)):
        (tmp_path / name).mkdir()
        again = ClapEncoder.open(write_hugging_face(tmp_path / name, features={'frequency_min': lowest}))
        assert (again.identity()['weights'] == encoder.identity()['weights']) == same


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'model_type': 'clip'}, "model_type is 'clip'"),
        ({'projection_hidden_act': 'gelu'}, 'projection_hidden_act'),
        ({'projection_dim': -1}, 'projection_dim -1 is not a valid size'),
        ({'text_config': {'hidden_act': 'relu'}}, r"text_config\.hidden_act is 'relu'"),
        ({'text_config': {'hidden_size': 'wide'}}, "hidden_size 'wide' is not a valid size"),
        ({'text_config': {'num_attention_heads': 5}}, '768 is not a multiple of 5 heads'),
        ({'text_config': [1]}, 'text_config is not an object'),
        ({'audio_config': {'enable_fusion': True}}, 'with feature fusion'),
        ({'audio_config': {'spec_size': 512}}, 'spec_size is 512'),
        ({'audio_config': {'depths': [2, 2]}}, '2 stages with 4'),
        ({'text_config': {'num_hidden_layers': 10**5}}, 'num_hidden_layers 100000 is not a valid size'),
        ({'audio_config': {'depths': []}}, r'depths \[\] is not a valid size'),
        ({**CONFIG, 'projection_dim': 24}, r'linear1\.weight \[16, 64\] where \[24, 64\]'),
    ],
)
def test_settings_of_something_else(tmp_path, config, message):
    folder = write_hugging_face(tmp_path, config)
    with pytest.raises(CheckpointError, match=message) as caught:
        ClapEncoder.open(folder)
    assert '\n' not in str(caught.value)


def test_settings_may_state_the_defaults(tmp_path):
    audio = {**CONFIG['audio_config'], 'patch_stride': [4, 4], 'patch_size': 4, 'window_size': 8, 'qkv_bias': True}
    text = {**CONFIG['text_config'], 'hidden_act': 'gelu', 'pad_token_id': 1}
    ClapEncoder.open(write_hugging_face(tmp_path, {**CONFIG, 'audio_config': audio, 'text_config': text}))


def test_mel_bands_in_the_settings_of_a_whole_processor(tmp_path):
    """transformers 5 stores them there."""
    folder = write_hugging_face(tmp_path)
    settings = {'feature_extractor': {'frequency_min': 70, 'sampling_rate': 48000}, 'processor_class': 'ClapProcessor'}
    (folder / 'processor_config.json').write_text(json.dumps(settings))
    assert ClapEncoder.open(folder).audio.lowest == 70


@pytest.mark.parametrize(
    ('features', 'message'),
    [
        ({'sampling_rate': 16000}, 'sampling_rate 16000'),
        ({'frequency_min': 'low'}, 'not a range in Hz'),
        ({'frequency_min': 15000}, 'not a range in Hz'),
        ([], 'not the settings of a model'),
    ],
)
def test_features_of_something_else(tmp_path, features, message):
    folder = write_hugging_face(tmp_path, features=features)
    with pytest.raises(CheckpointError, match=message):
        ClapEncoder.open(folder)
