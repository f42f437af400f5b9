"""The baseline of DCASE 2024, task 9 (language-queried separation): 16 kHz, 10 s, batch 16, 200,000 steps.

Commands:
    python -m data_prep build clotho --source CLOTHO --out clotho --sample-rate 16000
    python -m data_prep build fsd50k --source FSD50K --out fsd50k --sample-rate 16000
    python -m data_prep embed clotho --encoder clap && python -m data_prep embed fsd50k --encoder clap
    python experiments/dcase2024_16k.py --workdir runs/dcase --data clotho fsd50k --model.dtype bfloat16

Recipe:
    The network of the article with a front end for half the sample rate (window 1024, hop 160), two
    sources per mixture at ±10 dB, AdamW with amsgrad at 1e-3 after the original's staircase
    warm-up.

Cost:
    3.2 M clips of 10 s and 700 GFLOP are 2.2 EFLOP; `--dry-run` shows how long that takes on your
    devices.

Aim:
    The baseline's published scores on the task's validation set: SDR 5.708 dB, SDRi 5.673 dB,
    SI-SDR 3.862 dB.
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment
from audiosep_jax.training.mixing import SegmentMixer


def get_config() -> TrainConfig:
    """Returns the baseline's recipe."""
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
