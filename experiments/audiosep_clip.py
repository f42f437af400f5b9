"""AudioSep with CLIP instead of CLAP: queries that are words or pictures, learned from videos.

Commands:
    python -m data_prep build vggsound --source VGGSOUND --out shards --frames 3        # extra `video`
    python -m data_prep embed shards --encoder clip
    python -m data_prep embed shards --encoder clip --what image
    python experiments/audiosep_clip.py --workdir runs/clip --data shards --model.dtype bfloat16

Recipe:
    Half of the queries are a caption, half a frame of the clip's own video: CLIP puts both into one
    space, so what is learned from pictures answers words too. The rest is the recipe of
    audiosep_clap.py, and so is the cost.

Aim:
    No score of a network of this size on CLIP is published. The article's, on CLAP: SDRi 9.144 dB on
    VGGSound.
"""

import dataclasses

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment


def get_config() -> TrainConfig:
    """The article's recipe, half of the queries pictures."""
    return dataclasses.replace(TrainConfig(), input=DataConfig(encoder='clip', use_text_ratio=0.5, other='image'))


def main() -> None:
    run_experiment(get_config, 'audiosep_clip', __doc__)


if __name__ == '__main__':
    main()
