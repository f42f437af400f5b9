"""AudioSep with text supervision: the recipe of the article (arXiv 2308.05037), on shards with cached embeddings.

Commands:
    python -m data_prep build audioset --source AUDIOSET --out shards   # or any other dataset, or several (--data A B)
    python -m data_prep embed shards --encoder clap     # or a path of CLAP weights, or a converted checkpoint's encoder
    python experiments/audiosep_clap.py --workdir runs/base --data shards --model.dtype bfloat16

Recipe:
    Five-second segments at 32 kHz, batch 96, two sources per mixture at ±10 dB, AdamW with amsgrad
    at 1e-3 after a staircase warm-up, 1,000,000 steps. Every setting is a flag (`--help`);
    `--dry-run` shows the resulting shapes, memory and plan. The same command resumes an interrupted
    run. docs/train.md describes training on several hosts.

Cost:
    96 M clips of 700 GFLOP are 67 EFLOP; `--dry-run` shows how long that takes on your devices.

Aim:
    The published scores of the released checkpoint (4 M steps on 14,000 hours), SDRi / SI-SDR in dB:
    AudioSet 7.739 / 6.903, VGGSound 9.144 / 9.043, AudioCaps 8.220 / 7.189, Clotho 6.850 / 5.242,
    MUSIC 10.508 / 9.425, ESC-50 10.040 / 8.810.
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment


def get_config() -> TrainConfig:
    """Returns the article's recipe, which is the default of TrainConfig."""
    return TrainConfig()


def main() -> None:
    run_experiment(get_config, 'audiosep_clap', __doc__)


if __name__ == '__main__':
    main()
