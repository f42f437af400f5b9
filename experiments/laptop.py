"""A few hundred recordings and a laptop."""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        input=DataConfig(segment_seconds=1.0),
        steps=900,
        batch_size=8,
        model=ModelConfig(
            sample_rate=16000, window_size=512, hop_size=256, widths=(8, 16, 32, 64, 64, 64), condition_size=256
        ),
        mixing=SegmentMixer(mix_group=4, lower_db=-5, upper_db=5),
        absent=AbsentQueries(share=0.1, start=750),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule='cosine', warmup_steps=100, clip_norm=1.0),
        ema_decay=0.995,
        checkpoint_every=10_000,
        tensorboard=False,
    )


def main() -> None:
    run_experiment(get_config, 'laptop', __doc__)


if __name__ == '__main__':
    main()
