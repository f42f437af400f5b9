"""Fine-tuning: the official weights, or any others, on your own recordings.

Commands:
    audiosep-jax convert audiosep official
    python -m data_prep build manifest --source datafile.json --out shards
    python -m data_prep embed shards --encoder official                  # the CLAP that the checkpoint was trained with
    python experiments/finetune.py --workdir runs/mine --data shards --init-from official --model.dtype bfloat16

Recipe:
    A tenth of the original learning rate, with a cosine schedule, a moving average of the weights,
    and clipped gradients. The network must be the checkpoint's, so another front end needs its
    flags (--model.sample-rate, --model.window-size, --model.hop-size). With --absent.share 0.1,
    some queries are for sounds that are not in the mixture.

Cost:
    20,000 steps of 16 clips of 700 GFLOP are 0.22 EFLOP. On two CPU cores, fine-tune a smaller
    network.

Aim:
    The score depends on the data. Validate on some of yours with --validation DIR (any benchmark,
    docs/evaluate.md).
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig


def get_config() -> TrainConfig:
    """Returns a recipe with small steps for the released network."""
    return TrainConfig(
        init_from='audiosep',
        steps=20_000,
        batch_size=16,
        mixing=SegmentMixer(mix_group=2),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule='cosine', warmup_steps=500, clip_norm=1.0),
        ema_decay=0.999,
        checkpoint_every=1000,
    )


def main() -> None:
    run_experiment(get_config, 'finetune', __doc__)


if __name__ == '__main__':
    main()
