"""An equalizer of random spectra, for the tests of what has one."""

import numpy as np

from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import Equalizer


def random_equalizer(config: ModelConfig, *, captions: int = 3, share: float = 0.4) -> Equalizer:
    """Caption n is used n + 1 times."""
    rng = np.random.default_rng(1)
    embeddings = rng.standard_normal((captions, config.condition_size))
    return Equalizer(
        (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32),
        rng.uniform(0, 2, (captions, config.window_size // 2 + 1)).astype(np.float32),
        np.arange(1, captions + 1, dtype=np.float32),
        0.1,
        share,
    )
