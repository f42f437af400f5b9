"""Loading a separator: the share of its equalizer. tests/separation/test_separator.py has the encoder's part."""

import pytest
from support.random_equalizer import random_equalizer
from support.small_separator import CONFIG, save_small

from audiosep_jax.checkpoints.equalizer_file import write_equalizer
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.loading import load


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = save_small(tmp_path_factory.mktemp('run'))
    write_equalizer(folder, random_equalizer(CONFIG, share=0.5), load_encoder('words').identity())
    return folder


def test_the_share_is_the_checkpoint_s_unless_another_is_asked_for(run):
    assert load(run).equalizer.share == 0.5
    assert load(run, equalizer=0.25).equalizer.share == 0.25
    assert load(run, equalizer=0).equalizer is None


@pytest.mark.parametrize('share', [-1, 1.01])
def test_no_such_share(run, share):
    with pytest.raises(ConfigError, match='between 0 and 1'):
        load(run, equalizer=share)


def test_a_checkpoint_without_one(tmp_path):
    folder = save_small(tmp_path)
    assert load(folder).equalizer is None
    assert load(folder, equalizer=0).equalizer is None
    with pytest.raises(ConfigError, match=r'has no equalizer: omit --equalizer 0\.5'):
        load(folder, equalizer=0.5)
