"""AudioSep with text supervision: the recipe of the article (arXiv 2308.05037), on shards with cached embeddings.

    python -m data_prep build manifest --source datafile.json --out shards
    python -m data_prep embed shards --encoder clap     # or a path of CLAP weights, or a converted checkpoint's encoder
    python experiments/audiosep_clap.py --workdir runs/base --data shards

Five-second segments at 32 kHz, batch 96, two sources a mixture at ±10 dB, AdamW with amsgrad at 1e-3 after a staircase
warm-up, 1,000,000 steps. Every setting is a flag (`--help`). An interrupted run continues with the same command.
"""

from audiosep_jax.launch import run_experiment
from audiosep_jax.train import TrainConfig


def get_config() -> TrainConfig:
    """The article's recipe is what TrainConfig defaults to."""
    return TrainConfig()


def main() -> None:
    run_experiment(get_config, 'audiosep_clap', __doc__)


if __name__ == '__main__':
    main()
