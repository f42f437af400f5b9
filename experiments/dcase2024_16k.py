"""The baseline of DCASE 2024, task 9 (language-queried separation): 16 kHz, 10 s, batch 16, 200,000 steps.

Commands:
    python -m data_prep build clotho --source CLOTHO --out clotho --sample-rate 16000
    python -m data_prep build fsd50k --source FSD50K --out fsd50k --sample-rate 16000
    python -m data_prep embed clotho --encoder clap && python -m data_prep embed fsd50k --encoder clap
    python experiments/dcase2024_16k.py --workdir runs/dcase --data clotho fsd50k --model.dtype bfloat16

Recipe:
    The network of the article on a front end of half the rate (window 1024, hop 160), two sources a
    mixture at ±10 dB, AdamW with amsgrad at 1e-3 after the staircase warm-up of the original.

Cost:
    3.2 M clips of 10 s, 700 GFLOP each: 2.2 EFLOP; `--dry-run` says what that is on the devices at
    hand.

Aim:
    The baseline's published scores on the task's validation set: SDR 5.708, SDRi 5.673, SI-SDR
    3.862 dB.
"""

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment
from audiosep_jax.training.mixing import SegmentMixer


def get_config() -> TrainConfig:
    """The baseline's recipe."""
    return TrainConfig(
        input=DataConfig(segment_seconds=10.0),
        steps=200_000,
        batch_size=16,
        model=ModelConfig(sample_rate=16000, window_size=1024, hop_size=160),
        mixing=SegmentMixer(mix_group=2),  # sixteen clips divide over eight devices
    )


def main() -> None:
    run_experiment(get_config, 'dcase2024_16k', __doc__)


if __name__ == '__main__':
    main()
