"""Layers of pretrained towers, with PyTorch's parameter names and layouts, so that a file's tensors fit unchanged.

A tower is a list of modules (embeddings, one module per layer, head) that are compiled one by one and called in turn.
Layers of the same size share one compilation, which shortens the wait for the first query. A scan over layers would
also compile them once, but it would need a copy of all weights in one stack. `benchmarks/encoders.py` compares the
ways. Parameters are initialized to zero, because they are always filled from a file.
"""

import functools
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Towers need full float32 products: by default GPUs multiply in TF32 and TPUs in bfloat16.
PRECISION = lax.Precision.HIGHEST


class Linear(nn.Module):
    """A linear layer with `weight` [C', C] and `bias` [C']: [..., C] -> [..., C']."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.zeros, (self.features, x.shape[-1]))
        y = linear(x, weight)
        return y + self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else y


def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns x weightᵀ, [..., C'], of x [..., C] and weight [C', C]."""
    return lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), precision=PRECISION)


class LayerNorm(nn.Module):
    """Layer norm over the last axis. The variance takes two passes, because E[x²] − E[x]² loses digits."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.zeros, x.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
        centred = x - jnp.mean(x, -1, keepdims=True)
        return centred * lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + self.epsilon) * weight + bias


class Table(nn.Module):
    """A lookup table: returns its `weight` [rows, C]."""

    rows: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param('weight', nn.initializers.zeros, (self.rows, self.features))


def gelu(x: jax.Array) -> jax.Array:
    """Returns the exact GELU, which uses erf."""
    return nn.gelu(x, approximate=False)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, bias: jax.Array) -> jax.Array:
    """Returns softmax(q kᵀ / √(C / heads) + bias) v of [..., L, C] each; bias broadcasts with [..., heads, L, L]."""
    query, key, value = (x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads) for x in (query, key, value))
    scores = jnp.einsum('...qhc,...khc->...hqk', query * query.shape[-1] ** -0.5, key, precision=PRECISION)
    weights = jax.nn.softmax(scores + bias, axis=-1)
    mixed = jnp.einsum('...hqk,...khc->...qhc', weights, value, precision=PRECISION)
    return mixed.reshape(*mixed.shape[:-2], -1)


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales vectors [..., E] to length 1, as `torch.nn.functional.normalize` does."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ProjectionHead(nn.Module):
    """Linear layer, ReLU, linear layer, and scaling to length 1: [B, C] -> [B, E].

    Its layers are called 0 and 2, as in a `torch.nn.Sequential`.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Linear(self.features, name='0')(x))
        return l2_normalize(Linear(self.features, name='2')(x))


@functools.partial(jax.jit, static_argnums=0)
def apply(module: nn.Module, parameters: Mapping[str, Any], *inputs: jax.Array) -> jax.Array:
    """Applies a module to its inputs. Equal modules (of the same size) share a compilation."""
    return cast(jax.Array, module.apply({'params': parameters}, *inputs))


@functools.cache
def parameter_shapes(module: nn.Module, *input_shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters of a module by name, such as 'layer.weight', without computing anything."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in input_shapes]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    flat = flax.traverse_util.flatten_dict(variables['params'], sep='.')
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def load_parameters(
    tensors: Mapping[str, np.ndarray], prefix: str, names: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Returns the nested parameters of a module as float32 on the device.

    Args:
        tensors: the tensors of a file.
        prefix: what precedes the names of the parameters in the file.
        names: the parameters, from `parameter_shapes`.
    """
    flat = {name: jax.device_put(np.asarray(tensors[f'{prefix}{name}'], np.float32)) for name in names}
    return flax.traverse_util.unflatten_dict(flat, sep='.')
