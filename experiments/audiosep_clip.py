"""AudioSep with CLIP instead of CLAP: queries are texts or images, and training is on videos.

Commands:
    python -m data_prep build vggsound --source VGGSOUND --out shards --frames 3        # extra `video`
    python -m data_prep embed shards --encoder clip
    python -m data_prep embed shards --encoder clip --what image
    python experiments/audiosep_clip.py --workdir runs/clip --data shards --model.dtype bfloat16

Recipe:
    Half of the queries are captions, half are frames of the clip's own video. CLIP embeds both in
    one space, so what the network learns from images also serves texts. Everything else, including
    the cost, is as in audiosep_clap.py.

Aim:
    No score of a network of this size with CLIP is published. With CLAP, the article reports an
    SDRi of 9.144 dB on VGGSound.
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

import dataclasses

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import run_experiment


def get_config() -> TrainConfig:
    """Returns the article's recipe with images as half of the queries."""
    return dataclasses.replace(TrainConfig(), input=DataConfig(encoder='clip', use_text_ratio=0.5, other='image'))


def main() -> None:
    run_experiment(get_config, 'audiosep_clip', __doc__)


if __name__ == '__main__':
    main()
