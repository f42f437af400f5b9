"""CLIP's two towers (flax.linen), their sizes from a Hugging Face `config.json`, and their weights by its names.

"Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020): a causal transformer reads
the text and answers at its end-of-text token, a vision transformer reads patches and answers at its class token; a
linear layer each takes both into one space. Names and layouts of the parameters are Hugging Face's. Agreement with
transformers' `CLIPModel`: tests/test_clip_parity.py.
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
    load_parameters,
    normalised,
    parameter_shapes,
)
from audiosep_jax.errors import CheckpointError

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's
    'gelu': gelu,  # LAION's
}
# In the files, but not of use for embeddings: the temperature of the training loss, and 0, 1, 2 …
_UNUSED = {'logit_scale', 'text_model.embeddings.position_ids', 'vision_model.embeddings.position_ids'}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one tower's transformer."""

    causal: bool  # attention looks back only
    width: int
    layers: int
    heads: int
    hidden: int  # width of the MLPs
    activation: str
    epsilon: float  # of the layer norms


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower: `tokens` is the longest text in tokens, `eos_token_id` the one that it answers at."""

    transformer: TransformerConfig
    vocabulary: int
    tokens: int
    eos_token_id: int


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: square images and patches, in pixels."""

    transformer: TransformerConfig
    image_size: int
    patch_size: int


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers and E, the size of the space that they share."""

    text: TextConfig
    vision: VisionConfig
    embedding_size: int


def read_config(settings: Mapping[str, Any], where: str) -> ClipConfig:
    """The sizes in a `config.json`, with transformers' defaults for what it leaves out (those of ViT-B/32).

    Args:
        settings: the parsed file.
        where: its path, for messages.

    Raises:
        CheckpointError: of another model, or of a CLIP that is not implemented here.
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
                image_size=_size(vision, 'image_size', 224, most=4096),
                patch_size=_size(vision, 'patch_size', 32),
            ),
            embedding_size=_size(settings, 'projection_dim', 512),
        )
        if _size(vision, 'num_channels', 3) != 3:
            raise ValueError('num_channels is not 3')
        if config.vision.patch_size > config.vision.image_size:
            raise ValueError('patch_size is beyond image_size')
    except ValueError as error:
        raise CheckpointError(f'{where}: not a CLIP that is known here: {error}') from error
    return config


_BLOCKS = ('text_config', 'vision_config', 'text_config_dict', 'vision_config_dict')


def _block(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of one tower. Old files (ViT-L/14's) have a second block `…_dict`: where that is there, it and the
    defaults decide, as in transformers."""
    older = settings.get(f'{name}_dict')
    return dict((settings.get(name) or {}) if older is None else older)


def _transformer(block: Mapping[str, Any], *, causal: bool, width: int, hidden: int, heads: int) -> TransformerConfig:
    config = TransformerConfig(
        causal=causal,
        width=_size(block, 'hidden_size', width),
        layers=_size(block, 'num_hidden_layers', 12, most=256),
        heads=_size(block, 'num_attention_heads', heads),
        hidden=_size(block, 'intermediate_size', hidden),
        activation=block.get('hidden_act', 'quick_gelu'),
        epsilon=block.get('layer_norm_eps', 1e-5),
    )
    if config.width % config.heads:
        raise ValueError(f'hidden_size {config.width} is no multiple of num_attention_heads {config.heads}')
    if config.activation not in tuple(_ACTIVATIONS):
        raise ValueError(f'hidden_act {config.activation!r} (known: {", ".join(_ACTIVATIONS)})')
    if not isinstance(config.epsilon, float) or not 0 < config.epsilon < 1:
        raise ValueError(f'layer_norm_eps {config.epsilon!r}')
    return config


def _size(block: Mapping[str, Any], key: str, default: int, most: int = 1 << 20) -> int:
    value = block.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise ValueError(f'{key} {value!r}')
    return value


# ---------------------------------------------------------------------------------------------------------------------
# The towers. Letters: B batch, L tokens, or patches and the class token, C channels, E embedding size, S image size.
# ---------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention: [B, L, C] and a bias that broadcasts with [B, heads, L, L] -> [B, L, C]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        query, key, value = (Linear(x.shape[-1], name=name)(x) for name in ('q_proj', 'k_proj', 'v_proj'))
        return Linear(x.shape[-1], name='out_proj')(attention(query, key, value, self.heads, bias))


class Mlp(nn.Module):
    """[..., C] -> [..., C] by way of the hidden width."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _ACTIVATIONS[self.config.activation](Linear(self.config.hidden, name='fc1')(x))
        return Linear(self.config.width, name='fc2')(y)


class Layer(nn.Module):
    """Attention and MLP beside the residual stream, each after its norm.

    [B, L, C] and a mask [B, L] or [1, L], 0 where nothing may look -> [B, L, C].
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        config = self.config
        seen = (mask != 0)[:, None, None, :]
        if config.causal:
            seen = seen & jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        # Finite: what sees nothing at all (padding on the left) must not become NaN.
        bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)
        x = x + Attention(config.heads, name='self_attn')(LayerNorm(config.epsilon, name='layer_norm1')(x), bias)
        return x + Mlp(config, name='mlp')(LayerNorm(config.epsilon, name='layer_norm2')(x))


class TextEmbeddings(nn.Module):
    """Words [B, L, C] and their places: [B, L, C]."""

    config: TextConfig

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        positions = Table(self.config.tokens, words.shape[-1], name='position_embedding')()
        return words + positions[: words.shape[1]]


class VisionEmbeddings(nn.Module):
    """Pixels [B, S, S, 3] -> [B, L, C]: the class token, then the patches row by row, and their places."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        patch, width = self.config.patch_size, self.config.transformer.width
        grid = self.config.image_size // patch
        pixels = pixels[:, : grid * patch, : grid * patch]  # pixels beyond the last whole patch are not looked at
        x = pixels.reshape(-1, grid, patch, grid, patch, 3).transpose(0, 1, 3, 5, 2, 4)
        x = Patches(width, name='patch_embedding')(x).reshape(-1, grid * grid, width)
        first = self.param('class_embedding', nn.initializers.normal(0.02), (width,))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, width)), x], axis=1)
        return x + Table(grid * grid + 1, width, name='position_embedding')()


class Patches(nn.Module):
    """A convolution whose stride is its kernel's size, of what it has cut out: [..., 3, s, s] -> [..., C]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.normal(0.02), (self.features, *x.shape[-3:]))
        return jnp.einsum('...cst,dcst->...d', x, weight, precision=PRECISION)


class Projection(Linear):
    """What one token says, in the space of both towers: [B, L, C] and its index [B] -> [B, E]."""

    use_bias: bool = False
    normalize: bool = True  # to length 1

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array) -> jax.Array:
        x = jnp.take_along_axis(x, index.astype(jnp.int32)[:, None, None], axis=1)[:, 0]
        x = super().__call__(x)
        return normalised(x) if self.normalize else x


Parts = dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...]]]  # prefix -> (module, shapes of its inputs), in order
_WORDS = 'text_model.embeddings.token_embedding.weight'


def _layers(config: TransformerConfig, prefix: str) -> Parts:
    inputs = ((1, 4, config.width), (1, 4))
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
        | {'vision_model.pre_layrnorm.': (LayerNorm(transformer.epsilon), (tokens,))}  # their spelling, for ever
        | _layers(transformer, 'vision_model')
        | {'vision_model.post_layernorm.': (LayerNorm(transformer.epsilon), (tokens,))}
        | {'visual_projection.': (Projection(config.embedding_size, normalize=normalize), (tokens, (1,)))}
    )


def _loaded(parts: Parts, tensors: Mapping[str, np.ndarray]) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [
        (module, load_parameters(tensors, prefix, parameter_shapes(module, *inputs)))
        for prefix, (module, inputs) in parts.items()
    ]


class TextTower:
    """Token ids to embeddings.

    The table of words stays where it is, usually a file: of its 101 MB a query needs a few rows.
    """

    def __init__(self, config: ClipConfig, tensors: Mapping[str, np.ndarray], *, normalize: bool):
        self._words = tensors[_WORDS]
        self._parts = _loaded(_text_parts(config, normalize), tensors)

    def __call__(self, ids: np.ndarray, mask: np.ndarray, end: np.ndarray) -> np.ndarray:
        """ids and mask int [B, L], the position of each end-of-text int [B] -> [B, E]. Compiled for each B and L."""
        embeddings, *layers, norm, projection = self._parts
        words, mask, end = jax.device_put((np.asarray(self._words[ids], np.float32), mask, end))
        x = apply(*embeddings, words)
        for layer, weights in layers:
            x = apply(layer, weights, x, mask)
        return jax.device_get(apply(*projection, apply(*norm, x), end))


class VisionTower:
    """Normalised pixels to embeddings."""

    def __init__(self, config: ClipConfig, tensors: Mapping[str, np.ndarray], *, normalize: bool):
        self._parts = _loaded(_vision_parts(config, normalize), tensors)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [B, S, S, 3] -> [B, E]. Compiled for each B."""
        embeddings, first_norm, *layers, norm, projection = self._parts
        x = apply(*first_norm, apply(*embeddings, jax.device_put(pixels)))
        everything, first = jax.device_put((np.ones((1, x.shape[1]), np.int32), np.zeros(len(pixels), np.int32)))
        for layer, weights in layers:
            x = apply(layer, weights, x, everything)
        return jax.device_get(apply(*projection, apply(*norm, x), first))


# ---------------------------------------------------------------------------------------------------------------------
# What a file has to hold.
# ---------------------------------------------------------------------------------------------------------------------


def tensor_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the towers use."""
    shapes = {_WORDS: (config.text.vocabulary, config.text.transformer.width)}
    for prefix, (module, inputs) in (_text_parts(config) | _vision_parts(config)).items():
        shapes |= {f'{prefix}{name}': shape for name, shape in parameter_shapes(module, *inputs).items()}
    return shapes


def check_tensors(tensors: Mapping[str, np.ndarray], config: ClipConfig, where: str) -> None:
    """Raises CheckpointError, one line that counts and gives examples, unless a file holds exactly CLIP's tensors."""
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
