"""Ten thousand clips and one GPU: a network of a quarter of the article's cost, trained overnight.

Commands:
    python -m data_prep build fsd50k --source FSD50K --out shards
    python -m data_prep embed shards --encoder clap
    python experiments/one_gpu.py --workdir runs/mine --data shards --validation BENCHMARK

Recipe:
    Half of the article's channels, clips of 5 s at 32 kHz, and what helped on a few hundred
    recordings (docs/recipes.md): the SNR as the loss, so that quiet clips count; no AMSGrad; a cosine
    schedule; changes of pitch and spectrum; an average of the weights. Absent queries, which teach it to
    answer with silence, come in the second half: with so many clips it can afford them.

Cost:
    60,000 steps of 32 clips of 88 GFLOP are 0.17 EFLOP: ten hours at 5 TFLOP/s. `--dry-run` shows
    the memory, and `--accumulate 2` halves what the activations take of it.

Aim:
    No score can be promised for other data, and this recipe was not measured as a whole: its parts
    were, on small networks. Validate on sounds from other sources than those for training.
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.augmentation import Augmentation
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig


def get_config() -> TrainConfig:
    """Returns a recipe for one GPU."""
    return TrainConfig(
        steps=60_000,
        batch_size=32,
        model=ModelConfig(window_size=1024, widths=(16, 32, 64, 128, 192, 192), dtype='bfloat16'),
        mixing=SegmentMixer(mix_group=4, avoid_same_label=True),
        augmentation=Augmentation(pitch_semitones=2, equalizer_db=6, share=0.5),
        loss='snr',
        absent=AbsentQueries(share=0.1, start=30_000),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule='cosine', warmup_steps=1000, clip_norm=1.0, amsgrad=False
        ),
        ema_decay=0.999,
    )


def main() -> None:
    run_experiment(get_config, 'one_gpu', __doc__)


if __name__ == '__main__':
    main()
