"""CLAP's text tower: RoBERTa (arXiv 1907.11692) with its pooler, a projection, and scaling to length 1.

Names and layouts of the parameters are those of LAION's files (`text_branch.*`, `text_projection.*`), which took them
from transformers' `RobertaModel`. Letters: B batch, L tokens, C width, E embedding size.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.encoders.layers import (
    LayerNorm,
    Linear,
    ProjectionHead,
    Table,
    apply,
    attention,
    gelu,
    load_parameters,
    parameter_shapes,
)

PADDING_ID = 1
_WORDS = 'text_branch.embeddings.word_embeddings.weight'


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """Sizes of the tower. `positions` includes the two that padding uses, so texts have at most `max_length` tokens."""

    vocabulary: int = 50265
    positions: int = 514
    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    embedding_size: int = 512
    epsilon: float = 1e-5  # the value of roberta-base; Hugging Face's CLAP configurations have 1e-12

    @property
    def max_length(self) -> int:
        """The largest number of tokens, including the special ones."""
        return self.positions - PADDING_ID - 1


class Embeddings(nn.Module):
    """Adds position and type to word embeddings: words [B, L, C] and positions int [B, L] -> [B, L, C]."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, words: jax.Array, positions: jax.Array) -> jax.Array:
        config = self.config
        position = Table(config.positions, config.width, name='position_embeddings')()[positions.astype(jnp.int32)]
        token_type = Table(1, config.width, name='token_type_embeddings')()[0]  # RoBERTa has one type, BERT two
        return LayerNorm(config.epsilon, name='LayerNorm')(words + token_type + position)


class SelfAttention(nn.Module):
    """Multi-head self-attention: [B, L, C] and a bias [B, 1, 1, L] -> [B, L, C]."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        query, key, value = (Linear(self.config.width, name=name)(x) for name in ('query', 'key', 'value'))
        return attention(query, key, value, self.config.heads, bias)


class Sublayer(nn.Module):
    """The end of both halves of a layer: norm(x + linear(y)), [B, L, C]."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return LayerNorm(self.config.epsilon, name='LayerNorm')(x + Linear(self.config.width, name='dense')(y))


class Layer(nn.Module):
    """Attention and an MLP, with a norm after each sum: [B, L, C] and a mask [B, L] of 0 and 1 -> [B, L, C]."""

    config: RobertaConfig

    def setup(self) -> None:
        self.attention = _Attention(self.config)
        self.intermediate = _Intermediate(self.config)
        self.output = Sublayer(self.config)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        bias = jnp.where(mask[:, None, None, :] > 0, 0.0, -jnp.inf)
        x = self.attention(x, bias)
        return self.output(x, self.intermediate(x))


class _Attention(nn.Module):
    """The first half of a layer: norm(x + linear(attention(x)))."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        y = SelfAttention(self.config, name='self')(x, bias)
        return Sublayer(self.config, name='output')(x, y)


class _Intermediate(nn.Module):
    """The hidden layer of the MLP."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return gelu(Linear(self.config.hidden, name='dense')(x))


class Pooler(nn.Module):
    """Returns tanh(linear(x)) of the first token, `<s>`: [B, L, C] -> [B, C]."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(Linear(self.config.width, name='dense')(x[:, 0]))


def _parts(config: RobertaConfig) -> list[tuple[str, nn.Module, tuple[tuple[int, ...], ...]]]:
    """Returns (prefix of the names, module, shapes of its inputs) in the order of the computation."""
    tokens = (1, 4, config.width)
    layers = [(f'text_branch.encoder.layer.{i}.', Layer(config), (tokens, (1, 4))) for i in range(config.layers)]
    return [
        ('text_branch.embeddings.', Embeddings(config), (tokens, (1, 4))),
        *layers,
        ('text_branch.pooler.', Pooler(config), (tokens,)),
        ('text_projection.', ProjectionHead(config.embedding_size), ((1, config.width),)),
    ]


def tensor_shapes(config: RobertaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor that the tower uses, by its name in LAION's files."""
    shapes: dict[str, tuple[int, ...]] = {_WORDS: (config.vocabulary, config.width)}
    for prefix, module, inputs in _parts(config):
        shapes |= {f'{prefix}{name}': shape for name, shape in parameter_shapes(module, *inputs).items()}
    return shapes


def position_ids(ids: np.ndarray) -> np.ndarray:
    """Returns the positions of token ids [B, L], int32 [B, L].

    Tokens are counted from `PADDING_ID` + 1. Padding is recognized by its id, not by the mask, and is not counted.
    """
    is_word = ids != PADDING_ID
    return (np.cumsum(is_word, axis=1) * is_word + PADDING_ID).astype(np.int32)


class TextTower:
    """Embeds token ids; embeddings have length 1.

    The word embeddings stay in their file, which is usually memory-mapped: a query needs only a few rows of its 154 MB.

    Args:
        config: the sizes.
        tensors: the weights, by the names of `tensor_shapes`.
    """

    def __init__(self, config: RobertaConfig, tensors: Mapping[str, np.ndarray]):
        self._words = tensors[_WORDS]
        self._parts = [
            (module, load_parameters(tensors, prefix, parameter_shapes(module, *inputs)))
            for prefix, module, inputs in _parts(config)
        ]

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the embeddings, float32 [B, E]. Compiled for each B and L.

        Args:
            ids: token ids, int [B, L].
            mask: attention mask [B, L] with a 1 in every row.
        """
        (embeddings, embedding_weights), *layers, pooler, projection = self._parts
        words, positions, mask = jax.device_put((np.asarray(self._words[ids], np.float32), position_ids(ids), mask))
        x = apply(embeddings, embedding_weights, words, positions)
        for layer, weights in layers:
            x = apply(layer, weights, x, mask)
        x = apply(*pooler, x)
        return jax.device_get(apply(*projection, x))
