"""What the network should compute: golden values of the original, or for a tiny network what PyTorch computes.

Imports nothing but JAX, Flax, NumPy and PyTorch, like the parts of `gpu_session.py` that use it.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from support.paths import REFERENCE
from support.reference_weights import separator_tensor
from train_step import OURS, Case, Size, random_variables

from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.torch_names import tensors_from_variables, variables_from_torch


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the network should compute.

    Attributes:
        config: of the network.
        variables: its weights.
        arrays: `wave_X`, `cond_X` and `out_X` for X of a and b; `train_wave`, `train_cond` and `train_target`.
        gradients: for each tensor some positions and the gradient there.
    """

    config: ModelConfig
    variables: dict
    arrays: Mapping[str, Any]
    gradients: dict[str, tuple[Any, Any]]


def golden_reference() -> Reference:
    """The original's golden values: its outputs in float32 and its gradients in float64."""
    with np.load(REFERENCE / 'resunet30_reference.npz') as archive:
        arrays = dict(archive)
    entries = zip(arrays['state_names'], arrays['state_shapes'], arrays['analytic'], strict=True)
    state = {
        str(name): separator_tensor(str(name), tuple(json.loads(str(shape))))
        for name, shape, analytic in entries
        if not analytic
    }
    with np.load(REFERENCE / 'gradients_float64.npz') as archive:
        gradients = {str(name): (archive[f'index:{name}'], archive[f'grad:{name}']) for name in archive['names']}
    arrays = {name: x[None] if name.startswith(('wave_', 'out_')) else x for name, x in arrays.items()}
    return Reference(ModelConfig(), variables_from_torch(state), arrays, gradients)


def tiny_reference(size: Size) -> Reference:
    """What PyTorch computes with a tiny network in float64."""
    import torch
    from torch_resunet import Separator

    config = size.config(Case(OURS))
    variables = random_variables(config)
    rng = np.random.default_rng(0)
    arrays = {f'wave_{x}': 0.1 * rng.standard_normal((1, n), np.float32) for x, n in (('a', 2000), ('b', 1500))}
    arrays |= {f'cond_{x}': rng.standard_normal((1, 512), np.float32) for x in 'ab'}
    arrays |= {f'train_{x}': 0.1 * rng.standard_normal((2, 2000), np.float32) for x in ('wave', 'target')}
    arrays['train_cond'] = rng.standard_normal((2, 512), np.float32)
    separator = Separator(config, dft_matrices=False).double()
    separator.load_tensors(tensors_from_variables(variables, config))
    given = {name: torch.as_tensor(array).double() for name, array in arrays.items()}
    separator.eval()
    with torch.no_grad():
        arrays |= {f'out_{x}': separator(given[f'wave_{x}'], given[f'cond_{x}']).numpy() for x in 'ab'}
    separator.train()
    loss = (separator(given['train_wave'], given['train_cond']) - given['train_target']).abs().mean()
    loss.backward()
    gradients = {
        name: (slice(None), weight.grad.numpy().ravel())
        for name, weight in separator.named_parameters()
        if weight.grad is not None
    }
    return Reference(config, variables, arrays, gradients)


def gradient_errors(found: dict, expected: dict[str, tuple[Any, Any]]) -> tuple[dict[str, float], float]:
    """Norms of the differences over those of the reference: of each tensor that is more than rounding, and of all."""
    errors, squares, total = {}, 0.0, 0.0
    for name, (positions, values) in expected.items():
        values = np.asarray(values, np.float64)
        norm = np.linalg.norm(values)
        difference = np.linalg.norm(np.asarray(found[name], np.float64).ravel()[positions] - values)
        squares, total = squares + difference**2, total + norm**2
        if norm > 1e-7:
            errors[name] = float(difference / norm)
    return errors, float(np.sqrt(squares / total))
