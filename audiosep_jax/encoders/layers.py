"""Layers of pretrained towers, with PyTorch's parameter names and layouts: a tensor of a file is a parameter, as it is.

A tower is a list of modules (embeddings, one per layer, head) that are compiled one by one and called in turn. Layers
of one size share one compilation, which a user's first query has to wait for, and none of their weights is copied into
a stack, as a scan over layers would need. Compared in `benchmarks/encoders.py`. Initial values are zero: they are only
the places that a file fills.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Towers run in float32 that means it: by default GPUs would compute it as TF32 and TPUs in bfloat16 passes.
PRECISION = lax.Precision.HIGHEST


class Linear(nn.Module):
    """`weight` [C', C] and `bias` [C']: [..., C] -> [..., C']."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.zeros, (self.features, x.shape[-1]))
        y = lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), precision=PRECISION)
        return y + self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else y


class LayerNorm(nn.Module):
    """Over the last axis, the variance in two passes (one, as E[x²] − E[x]², loses digits)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.zeros, x.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
        centred = x - jnp.mean(x, -1, keepdims=True)
        return centred * lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + self.epsilon) * weight + bias


class Table(nn.Module):
    """`weight` [rows, C], to look up in."""

    rows: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param('weight', nn.initializers.zeros, (self.rows, self.features))


def gelu(x: jax.Array) -> jax.Array:
    """The exact one, by erf."""
    return nn.gelu(x, approximate=False)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, bias: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √(C / heads) + bias) v, of [..., L, C] each; bias broadcasts with [..., heads, L, L]."""
    query, key, value = (x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads) for x in (query, key, value))
    scores = jnp.einsum('...qhc,...khc->...hqk', query * query.shape[-1] ** -0.5, key, precision=PRECISION)
    weights = jax.nn.softmax(scores + bias, axis=-1)
    mixed = jnp.einsum('...hqk,...khc->...qhc', weights, value, precision=PRECISION)
    return mixed.reshape(*mixed.shape[:-2], -1)


def normalised(x: jax.Array) -> jax.Array:
    """[..., E] scaled to length 1, as `torch.nn.functional.normalize` does it."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ProjectionHead(nn.Module):
    """Linear, ReLU, linear, and scaled to length 1: [B, C] -> [B, E]. Layers 0 and 2 of a `torch.nn.Sequential`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Linear(self.features, name='0')(x))
        return normalised(Linear(self.features, name='2')(x))


@functools.partial(jax.jit, static_argnums=0)
def apply(module: nn.Module, parameters: Mapping[str, Any], *inputs: jax.Array) -> jax.Array:
    """`module` on inputs, compiled once for all modules that are equal (of one size), whatever their parameters."""
    return module.apply({'params': parameters}, *inputs)


@functools.cache
def parameter_shapes(module: nn.Module, *input_shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """'layer.weight' -> its shape, of all parameters of a module; nothing is computed."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in input_shapes]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    flat = flax.traverse_util.flatten_dict(variables['params'], sep='.')
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def load_parameters(
    tensors: Mapping[str, np.ndarray], prefix: str, names: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The nested parameters of a module, as float32 on the device: `names` of `parameter_shapes`, behind `prefix`."""
    flat = {name: jax.device_put(np.asarray(tensors[f'{prefix}{name}'], np.float32)) for name in names}
    return flax.traverse_util.unflatten_dict(flat, sep='.')
