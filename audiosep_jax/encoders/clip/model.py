"""CLIP's two towers, their sizes from a Hugging Face `config.json`, and a check of their weights.

"Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020). A causal transformer reads
the text, and its output is taken at the end-of-text token. A vision transformer reads patches, and its output is taken
at the class token. A linear layer for each projects both into the same space. Names and layouts of the parameters are
Hugging Face's. `tests/encoders/clip/test_parity.py` compares the towers with transformers' `CLIPModel`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.encoders.layers import (
    PRECISION,
    LayerNorm,
    Linear,
    Table,
    apply,
    attention,
    gelu,
    l2_normalize,
    linear,
    load_parameters,
    parameter_shapes,
)
from audiosep_jax.errors import CheckpointError

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # in OpenAI's models
    'gelu': gelu,  # in LAION's models
}
# Tensors of the files that embeddings do not need: the temperature of the training loss, and 0, 1, 2 …
_UNUSED = {'logit_scale', 'text_model.embeddings.position_ids', 'vision_model.embeddings.position_ids'}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer of one tower."""

    causal: bool  # whether attention only looks back
    width: int
    layers: int
    heads: int
    hidden: int  # width of the MLPs
    activation: str
    epsilon: float  # of the layer norms


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower. `tokens` is the largest number of tokens; the output is taken at `eos_token_id`."""

    transformer: TransformerConfig
    vocabulary: int
    tokens: int
    eos_token_id: int


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower. Images and patches are squares, with sides in pixels."""

    transformer: TransformerConfig
    image_size: int
    patch_size: int


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of both towers, and E, the size of their embeddings."""

    text: TextConfig
    vision: VisionConfig
    embedding_size: int


def read_config(settings: Mapping[str, Any], where: str) -> ClipConfig:
    """Returns the sizes in a `config.json`, with transformers' defaults (those of ViT-B/32) for missing values.

    Args:
        settings: the parsed file.
        where: its path, for messages.

    Raises:
        CheckpointError: the settings are those of another model, or of a CLIP that is not supported.
    """
    kind = settings.get('model_type')
    if kind != 'clip' or not all(isinstance(settings.get(key, {}), dict | None) for key in _BLOCKS):
        raise CheckpointError(f'{where}: describes a model of type {kind!r}, not CLIP (model_type "clip")')
    text, vision = (_block(settings, name) for name in ('text_config', 'vision_config'))
    try:
        config = ClipConfig(
            text=TextConfig(
                transformer=_transformer(text, causal=True, width=512, hidden=2048, heads=8),
                vocabulary=_size(text, 'vocab_size', 49408),
                tokens=_size(text, 'max_position_embeddings', 77),
                eos_token_id=_size(text, 'eos_token_id', 49407),
            ),
            vision=VisionConfig(
                transformer=_transformer(vision, causal=False, width=768, hidden=3072, heads=12),
                image_size=_size(vision, 'image_size', 224, limit=4096),
                patch_size=_size(vision, 'patch_size', 32),
            ),
            embedding_size=_size(settings, 'projection_dim', 512),
        )
        if _size(vision, 'num_channels', 3) != 3:
            raise ValueError('num_channels is not 3')
        if config.vision.patch_size > config.vision.image_size:
            raise ValueError('patch_size is larger than image_size')
    except ValueError as error:
        raise CheckpointError(f'{where}: not a CLIP that is supported: {error}') from error
    return config


_BLOCKS = ('text_config', 'vision_config', 'text_config_dict', 'vision_config_dict')


def _block(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the settings of one tower.

    Old files such as ViT-L/14's have a second block `…_dict`. As in transformers, that block replaces the first one.
    """
    older = settings.get(f'{name}_dict')
    return dict((settings.get(name) or {}) if older is None else older)


def _transformer(block: Mapping[str, Any], *, causal: bool, width: int, hidden: int, heads: int) -> TransformerConfig:
    """Returns the sizes in the settings of one tower; the arguments are the defaults."""
    config = TransformerConfig(
        causal=causal,
        width=_size(block, 'hidden_size', width),
        layers=_size(block, 'num_hidden_layers', 12, limit=256),
        heads=_size(block, 'num_attention_heads', heads),
        hidden=_size(block, 'intermediate_size', hidden),
        activation=block.get('hidden_act', 'quick_gelu'),
        epsilon=block.get('layer_norm_eps', 1e-5),
    )
    if config.width % config.heads:
        raise ValueError(f'hidden_size {config.width} is not a multiple of num_attention_heads {config.heads}')
    if config.activation not in tuple(_ACTIVATIONS):
        raise ValueError(f'hidden_act {config.activation!r} (supported: {", ".join(_ACTIVATIONS)})')
    if not isinstance(config.epsilon, float) or not 0 < config.epsilon < 1:
        raise ValueError(f'layer_norm_eps {config.epsilon!r}')
    return config


def _size(block: Mapping[str, Any], key: str, default: int, limit: int = 1 << 20) -> int:
    """Returns a setting that must be a positive integer of at most `limit`."""
    value = block.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise ValueError(f'{key} {value!r}')
    return value


# ---------------------------------------------------------------------------------------------------------------------
# The towers. Letters: B batch, L tokens (or patches and the class token), C channels, E embedding size, S image size.
# ---------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention: [B, L, C] and a bias that broadcasts with [B, heads, L, L] -> [B, L, C]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        query, key, value = (Linear(x.shape[-1], name=name)(x) for name in ('q_proj', 'k_proj', 'v_proj'))
        return Linear(x.shape[-1], name='out_proj')(attention(query, key, value, self.heads, bias))


class Mlp(nn.Module):
    """Two linear layers with an activation between: [..., C] -> [..., C]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _ACTIVATIONS[self.config.activation](Linear(self.config.hidden, name='fc1')(x))
        return Linear(self.config.width, name='fc2')(y)


class Layer(nn.Module):
    """Attention and an MLP, each after a norm and with a skip connection.

    [B, L, C] and a mask [B, L] or [1, L], which is 0 for tokens that must not be seen -> [B, L, C].
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        config = self.config
        seen = (mask != 0)[:, None, None, :]
        if config.causal:
            seen = seen & jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        # A finite bias, because a token that sees no other (padding on the left) would become NaN with -infinity.
        bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)
        x = x + Attention(config.heads, name='self_attn')(LayerNorm(config.epsilon, name='layer_norm1')(x), bias)
        return x + Mlp(config, name='mlp')(LayerNorm(config.epsilon, name='layer_norm2')(x))


class TextEmbeddings(nn.Module):
    """Adds positions to word embeddings: [B, L, C] -> [B, L, C]."""

    config: TextConfig

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        positions = Table(self.config.tokens, words.shape[-1], name='position_embedding')()
        return words + positions[: words.shape[1]]


class VisionEmbeddings(nn.Module):
    """Converts pixels [B, S, S, 3] to [B, L, C]: the class token and the patches row by row, with their positions."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        patch, width = self.config.patch_size, self.config.transformer.width
        grid = self.config.image_size // patch
        pixels = pixels[:, : grid * patch, : grid * patch]  # pixels beyond the last whole patch are ignored
        x = pixels.reshape(-1, grid, patch, grid, patch, 3).transpose(0, 1, 3, 5, 2, 4)
        x = Patches(width, name='patch_embedding')(x).reshape(-1, grid * grid, width)
        first = self.param('class_embedding', nn.initializers.normal(0.02), (width,))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, width)), x], axis=1)
        return x + Table(grid * grid + 1, width, name='position_embedding')()


class Patches(nn.Module):
    """A convolution whose stride is its kernel's size, applied to patches: [..., 3, s, s] -> [..., C]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.normal(0.02), (self.features, *x.shape[-3:]))
        return jnp.einsum('...cst,dcst->...d', x, weight, precision=PRECISION)


class Projection(nn.Module):
    """Projects one token into the space of both towers: [B, L, C] and its index [B] -> [B, E]."""

    features: int
    normalize: bool = True  # whether to scale to length 1

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.zeros, (self.features, x.shape[-1]))
        x = jnp.take_along_axis(x, index.astype(jnp.int32)[:, None, None], axis=1)[:, 0]
        x = linear(x, weight)
        return l2_normalize(x) if self.normalize else x


# Prefix of the names -> (module, shapes of its inputs), in the order of the computation.
Parts = dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...]]]
_WORDS = 'text_model.embeddings.token_embedding.weight'


def _layers(config: TransformerConfig, prefix: str) -> Parts:
    inputs: tuple[tuple[int, ...], ...] = ((1, 4, config.width), (1, 4))
    return {f'{prefix}.encoder.layers.{i}.': (Layer(config), inputs) for i in range(config.layers)}


def _text_parts(config: ClipConfig, normalize: bool = True) -> Parts:
    transformer = config.text.transformer
    tokens = (1, 4, transformer.width)
    return (
        {'text_model.embeddings.': (TextEmbeddings(config.text), (tokens,))}
        | _layers(transformer, 'text_model')
        | {'text_model.final_layer_norm.': (LayerNorm(transformer.epsilon), (tokens,))}
        | {'text_projection.': (Projection(config.embedding_size, normalize=normalize), (tokens, (1,)))}
    )


def _vision_parts(config: ClipConfig, normalize: bool = True) -> Parts:
    transformer, size = config.vision.transformer, config.vision.image_size
    tokens = (1, 4, transformer.width)
    return (
        {'vision_model.embeddings.': (VisionEmbeddings(config.vision), ((1, size, size, 3),))}
        # The published files misspell this name.
        | {'vision_model.pre_layrnorm.': (LayerNorm(transformer.epsilon), (tokens,))}
        | _layers(transformer, 'vision_model')
        | {'vision_model.post_layernorm.': (LayerNorm(transformer.epsilon), (tokens,))}
        | {'visual_projection.': (Projection(config.embedding_size, normalize=normalize), (tokens, (1,)))}
    )


def _load(parts: Parts, tensors: Mapping[str, np.ndarray]) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [
        (module, load_parameters(tensors, prefix, parameter_shapes(module, *inputs)))
        for prefix, (module, inputs) in parts.items()
    ]


class TextTower:
    """Embeds token ids.

    The word embeddings stay in their file, which is usually memory-mapped: a query needs only a few rows of its 101 MB.

    Args:
        config: the sizes.
        tensors: the weights, by the names of `tensor_shapes`.
        normalize: whether to scale embeddings to length 1.
    """

    def __init__(self, config: ClipConfig, tensors: Mapping[str, np.ndarray], *, normalize: bool):
        self._words = tensors[_WORDS]
        self._parts = _load(_text_parts(config, normalize), tensors)

    def __call__(self, ids: np.ndarray, mask: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Returns the embeddings, float32 [B, E]. Compiled for each B and L.

        Args:
            ids: token ids, int [B, L].
            mask: attention mask, int [B, L].
            end: the position of each text's end-of-text token, int [B].
        """
        embeddings, *layers, norm, projection = self._parts
        words, mask, end = jax.device_put((np.asarray(self._words[ids], np.float32), mask, end))
        x = apply(*embeddings, words)
        for layer, weights in layers:
            x = apply(layer, weights, x, mask)
        return jax.device_get(apply(*projection, apply(*norm, x), end))


class VisionTower:
    """Embeds normalized pixels.

    Args:
        config: the sizes.
        tensors: the weights, by the names of `tensor_shapes`.
        normalize: whether to scale embeddings to length 1.
    """

    def __init__(self, config: ClipConfig, tensors: Mapping[str, np.ndarray], *, normalize: bool):
        self._parts = _load(_vision_parts(config, normalize), tensors)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the embeddings, float32 [B, E], of pixels, float32 [B, S, S, 3]. Compiled for each B."""
        embeddings, first_norm, *layers, norm, projection = self._parts
        x = apply(*first_norm, apply(*embeddings, jax.device_put(pixels)))
        everything, first = jax.device_put((np.ones((1, x.shape[1]), np.int32), np.zeros(len(pixels), np.int32)))
        for layer, weights in layers:
            x = apply(layer, weights, x, everything)
        return jax.device_get(apply(*projection, apply(*norm, x), first))


# ---------------------------------------------------------------------------------------------------------------------
# The tensors of a file.
# ---------------------------------------------------------------------------------------------------------------------


def tensor_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor that the towers use, by name."""
    shapes: dict[str, tuple[int, ...]] = {_WORDS: (config.text.vocabulary, config.text.transformer.width)}
    for prefix, (module, inputs) in (_text_parts(config) | _vision_parts(config)).items():
        shapes |= {f'{prefix}{name}': shape for name, shape in parameter_shapes(module, *inputs).items()}
    return shapes


def check_tensors(tensors: Mapping[str, np.ndarray], config: ClipConfig, where: str) -> None:
    """Checks that a file holds exactly CLIP's tensors.

    Args:
        tensors: the tensors of the file.
        config: the sizes.
        where: the path of the file, for the message.

    Raises:
        CheckpointError: tensors are missing, unknown, of another shape or not floats.
    """
    expected = tensor_shapes(config)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _present(tensors, expected)}
    kinds = {
        'missing': [name for name in expected if name not in found],
        'unknown': [name for name in tensors if name not in expected and name not in _UNUSED],
        'of another shape': [
            f'{name}: {shape} instead of {expected[name]}'
            for name, (shape, _) in found.items()
            if shape != expected[name]
        ],
        'not of floats': [f'{name}: {t}' for name, (_, t) in found.items() if not jnp.issubdtype(t, jnp.floating)],
    }
    report = [f'{len(names)} tensors {kind} ({names[0]})' for kind, names in kinds.items() if names]
    if report:
        raise CheckpointError(f'{where}: not the CLIP that its config.json describes: {"; ".join(report)}')


def _present(tensors: Mapping[str, np.ndarray], names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, tensors[name]) for name in names if name in tensors)
