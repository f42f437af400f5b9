"""Configurations survive the way to JSON and back, and nothing unknown or of another type slips in."""

import json

import pytest

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.data.batches import DataConfig
from audiosep_jax.errors import ConfigError
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.optim import OptimizerConfig


def test_round_trip_through_json():
    config = TrainConfig(
        workdir='runs/ö',
        input=DataConfig(data=('a', 'b'), weights=(1.0, 2.0)),
        model=ModelConfig(widths=(1, 2, 3, 4, 5, 6)),
        optimizer=OptimizerConfig(schedule='cosine'),
    )
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_missing_keys_take_their_defaults():
    assert from_dict(ModelConfig, {'hop_size': 160}) == ModelConfig(hop_size=160)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'hop_sise': 160}, "unknown configuration key 'hop_sise': did you mean 'hop_size'"),
        ({'zzz': 1}, "unknown configuration key 'zzz': known keys: sample_rate"),
        ({'hop_size': '160'}, "hop_size: expected int, got '160'"),
        ({'hop_size': True}, 'hop_size: expected int'),
        ({'widths': 3}, 'widths: expected a list'),
        ({'widths': [1, 2, 'x', 4, 5, 6]}, r'widths\[2\]: expected int'),
        ({'dtype': 'half'}, "dtype: 'half' is not one of 'float32', 'bfloat16'"),
        ([], 'expected a dictionary'),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, values)


def test_nested_keys_are_named_with_their_path():
    with pytest.raises(ConfigError, match=r"'model\.window_sizes': did you mean 'window_size'"):
        from_dict(TrainConfig, {'model': {'window_sizes': 1}})


@pytest.mark.parametrize('settings', [{'steps': 0}, {'batch_size': -1}, {'ema_decay': 1.0}, {'keep': 0}])
def test_impossible_runs_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TrainConfig(**settings)
