"""Varies the query embeddings of a batch, so that a network generalizes from those it is trained on to others near by.

Source of the dropout: "Leveraging Audio-Only Data for Text-Queried Target Sound Extraction" (arXiv 2409.13152), where a
network that is trained on the embeddings of sounds alone is then asked in words. Everything is off by default.

Letters: B clips in the batch, E embedding size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, PRNGKeyArray

from audiosep_jax.errors import ConfigError
from audiosep_jax.training.mixing import SegmentMixer


@dataclasses.dataclass(frozen=True)
class QueryAugmentation:
    """Changes each query embedding e at random, in this order.

    Attributes:
        mixup: e becomes (1 - a) e + a e', at the length of e, with a uniform between 0 and `mixup`, at most 0.5. e' is
            the query of the next clip of the group that is not in the mixture, so mix_group must exceed max_mix_num.
            The target remains that of e.
        noise: Gaussian noise is added, whose expected energy is that of e times the square of `noise`.
        dropout: the probability that a number of e is set to 0, below 1; the others are divided by 1 - dropout.

    Raises:
        ConfigError: a value is out of range.
    """

    mixup: float = 0.0
    noise: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mixup <= 0.5:
            raise ConfigError(f'query.mixup must be between 0 and 0.5, got {self.mixup}')
        if not 0 <= self.noise <= 10:
            raise ConfigError(f'query.noise must be between 0 and 10, got {self.noise}')
        if not 0 <= self.dropout < 1:
            raise ConfigError(f'query.dropout must be at least 0 and below 1, got {self.dropout}')

    def check(self, mixer: SegmentMixer, batch_size: int) -> None:
        """Raises ConfigError if mix-up is on, and a mixture can hold all clips of a group."""
        if self.mixup:
            mixer.group_with_another(batch_size, 'query.mixup')

    def __call__(
        self,
        key: PRNGKeyArray,
        mixer: SegmentMixer,
        embeddings: Float[Array, 'B E'],
        labels: Int[Array, 'B L'] | None = None,
    ) -> Float[Array, 'B E']:
        """Returns the changed embeddings. A row's draws depend only on the key and the row.

        Args:
            key: a key for this step.
            mixer: what made the mixtures.
            embeddings: the query of each mixture.
            labels: what the mixer got.

        Raises:
            ConfigError: see `check`.
        """
        batch_size = len(embeddings)
        keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), 3))(jnp.arange(batch_size))
        if self.mixup:
            self.check(mixer, batch_size)
            embeddings = mix_up(keys[:, 0], embeddings, _others(mixer, embeddings, labels), self.mixup)
        if self.noise:
            embeddings = add_noise(keys[:, 1], embeddings, self.noise)
        if self.dropout:
            embeddings = drop_out(keys[:, 2], embeddings, self.dropout)
        return embeddings


def mix_up(
    keys: Key[Array, ' B'], embeddings: Float[Array, 'B E'], others: Float[Array, 'B E'], most: float
) -> Float[Array, 'B E']:
    """Returns (1 - a) e + a e' at the length of e, with a between 0 and `most`; `keys` has one key per row."""
    shares = jax.vmap(lambda key: jax.random.uniform(key, maxval=most))(keys)[:, None]
    mixed = (1 - shares) * embeddings + shares * others
    return mixed * (_length(embeddings) / jnp.maximum(_length(mixed), 1e-12))


def add_noise(keys: Key[Array, ' B'], embeddings: Float[Array, 'B E'], noise: float) -> Float[Array, 'B E']:
    """Returns e + noise |e| n / sqrt(E), with standard normal n; `keys` has one key per row."""
    size = embeddings.shape[1]
    normal = jax.vmap(lambda key: jax.random.normal(key, (size,), embeddings.dtype))(keys)
    return embeddings + noise / size**0.5 * _length(embeddings) * normal


def drop_out(keys: Key[Array, ' B'], embeddings: Float[Array, 'B E'], share: float) -> Float[Array, 'B E']:
    """Returns e with each number 0 with probability `share`, and else divided by 1 - share; one key per row."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - share, embeddings.shape[1:]))(keys)
    return jnp.where(kept, embeddings / (1 - share), 0)


def _others(
    mixer: SegmentMixer, embeddings: Float[Array, 'B E'], labels: Int[Array, 'B L'] | None
) -> Float[Array, 'B E']:
    """Returns the query of the next clip of the group that is not in the mixture, for each row."""
    batch_size, size = embeddings.shape
    grouped = embeddings.reshape(-1, mixer.group_size(batch_size), size)
    return mixer.partners(batch_size, labels)(grouped, mixer.max_mix_num).reshape(batch_size, size)


def _length(embeddings: Float[Array, 'B E']) -> Float[Array, 'B 1']:
    return jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
