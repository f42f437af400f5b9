"""The configuration of a run: the ranges of its values, and whether they fit together."""

import pytest

from audiosep_jax.config import from_dict
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.parallel.mesh import make_mesh
from audiosep_jax.training.config import TrainConfig, check_batch_size
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer


@pytest.mark.parametrize(
    'settings',
    [{name: 0} for name in ('steps', 'batch_size', 'accumulate', 'log_every', 'checkpoint_every', 'keep')]
    + [{'max_skipped_in_row': 0}, {'ema_decay': 1.0}, {'ema_decay': -0.1}]
    + [{'profile_every': -1}, {'profiler_port': -1}, {'profiler_port': 65536}],
)
def test_values_out_of_range_are_refused_with_their_flag(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf'{name} must be at least .*\(--{name.replace("_", "-")}\)'):
        TrainConfig(**settings)


def test_an_unknown_loss_is_refused_with_the_known_ones():
    assert TrainConfig().loss == 'l1'
    with pytest.raises(ConfigError, match=r"loss 'l2' is none of l1, snr, si-sdr, l1-mrstft, log-wmse \(--loss\)"):
        TrainConfig(loss='l2')
    with pytest.raises(ConfigError, match="loss: 'l2' is not one of 'l1', 'snr'"):
        from_dict(TrainConfig, {'loss': 'l2'})
    assert from_dict(TrainConfig, {'mixing': {'mix_group': 4}}) == TrainConfig(), 'as an earlier version recorded it'


def test_a_table_that_cannot_be_read_is_refused_before_the_run(tmp_path):
    with pytest.raises(DataError, match='cannot be read'):
        TrainConfig(mixing=SegmentMixer(mix_group=4, together=str(tmp_path / 'none.json'))).check(make_mesh())


def test_the_parts_of_a_configuration_must_fit_together():
    mesh, encoder = make_mesh(), {'name': 'words', 'embedding_size': 512}
    TrainConfig().check(mesh)
    TrainConfig().check(mesh, encoder)
    with pytest.raises(ConfigError, match='use 32 or 64'):
        TrainConfig(batch_size=40).check(mesh)
    with pytest.raises(ConfigError, match=r'absent\.share needs a mix_group above max_mix_num'):
        TrainConfig(absent=AbsentQueries(share=0.1), mixing=SegmentMixer(mix_group=2)).check(mesh)
    with pytest.raises(ConfigError, match=r"embeddings of 'words' have 64 numbers: set --model\.condition-size 64"):
        TrainConfig().check(mesh, {**encoder, 'embedding_size': 64})


def test_batch_size_of_whole_groups_per_device():
    mesh = make_mesh()
    check_batch_size(64, SegmentMixer(mix_group=4), mesh)
    check_batch_size(8, SegmentMixer(), mesh)
    with pytest.raises(ConfigError, match='use 32 or 64'):
        check_batch_size(40, SegmentMixer(mix_group=4), mesh)
    with pytest.raises(ConfigError, match='max_mix_num 9 needs'):
        check_batch_size(8, SegmentMixer(max_mix_num=9), mesh)


def test_batches_that_do_not_divide_name_the_nearest():
    mesh = make_mesh()
    check_batch_size(64, SegmentMixer(mix_group=4), mesh, accumulate=2)
    with pytest.raises(ConfigError, match=r'groups of 4 and 8 parts each: use 64 or 128'):
        check_batch_size(96, SegmentMixer(mix_group=4), mesh, accumulate=8)
