"""An equalizer for any query: what the mean spectra of captioned clips say of a sound, without its mixture.

A network that has learnt from a few hundred recordings errs where it is sure of itself. The mean spectrum of clips
whose captions mean something like the query errs elsewhere, so the mean of both answers is better than either of them;
docs/recipes.md has it measured.

The spectrum P of a query is the mean power spectrum of all clips, at equal energy, weighted by exp(cosine /
temperature) of their captions' embeddings and the query's. Its gains are those of a Wiener filter, P / (P + M), where M
is the mean of all clips. For mixtures of two sounds of equal energy, no gains that are constant in time have a smaller
squared error.

Letters: B rows, N frames, F frequency bins, E embedding size, K captions.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex64, Float, Float32

from audiosep_jax.errors import ConfigError
from audiosep_jax.models.convolution import matmul

LEAST = 1e-12  # of squared norms and of spectra, so that nothing is divided by zero


@dataclasses.dataclass(frozen=True)
class Equalizer:
    """The mean spectra of a training set by caption.

    Attributes:
        embeddings: of the captions, each of length 1.
        power: mean power spectrum of each caption's clips, which have a mean square of 1.
        counts: how often training draws each caption, above 0.
        temperature: how near a caption must be to count; see the module.
        share: of the equalizer in a separated sound, from 0 to 1; the rest is the network's.
    """

    embeddings: Float32[np.ndarray, 'K E']
    power: Float32[np.ndarray, 'K F']
    counts: Float32[np.ndarray, ' K']
    temperature: float
    share: float

    def __post_init__(self) -> None:
        check_share(self.share)

    def weights(self) -> dict[str, np.ndarray]:
        """Returns it as an entry of the folded network's weights (`folded.py`)."""
        # The share and the temperature are arrays as well, so that other values need no other program.
        return {
            'embeddings': self.embeddings,
            'power': self.power,
            'log_counts': np.log(self.counts),
            'mean': (self.counts @ self.power / self.counts.sum()).astype(np.float32),
            'temperature': np.float32(self.temperature),
            'share': np.float32(self.share),
        }


def check_share(share: float) -> None:
    """Raises ConfigError if the share is not between 0 and 1."""
    if not 0 <= share <= 1:
        raise ConfigError(f'the share of the equalizer must be between 0 and 1, got {share} (--equalizer)')


def gains(
    weights: Mapping[str, Array | np.ndarray], embedding: Float[Array | np.ndarray, 'B E']
) -> Float32[Array, 'B F']:
    """Returns the equalizer's gain for each query and bin, from 0 to 1.

    Args:
        weights: what `Equalizer.weights` returned.
        embedding: of the queries, of any length.
    """
    arrays = {name: jnp.asarray(array) for name, array in weights.items()}
    embedding = jnp.asarray(embedding, jnp.float32)
    # The floor is under the root, so that an embedding of zeros has a gradient.
    length = jnp.sqrt(jnp.maximum(jnp.sum(embedding**2, axis=-1, keepdims=True), LEAST))
    cosines = matmul(embedding / length, arrays['embeddings'].T)
    nearness = jax.nn.softmax(cosines / arrays['temperature'] + arrays['log_counts'])
    power = matmul(nearness, arrays['power'])
    return power / jnp.maximum(power + arrays['mean'], LEAST)


def shared(
    weights: Mapping[str, Array | np.ndarray], mask: Complex64[Array, 'B N F'], gain: Float32[Array, '#B F']
) -> Complex64[Array, 'B N F']:
    """Returns the mask whose result is the mean of the network's and the equalizer's, in the shares of both."""
    share = jnp.asarray(weights['share'])
    return (1 - share) * mask + share * gain[:, None]
