"""The optimizer: AdamW with PyTorch's AMSGrad, learning-rate schedules, clipping.

Source: the original's optimizer (AdamW, amsgrad, no weight decay) and `constant_warm_up` (optimizers/lr_schedulers.py).
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float32, Int, Int32

from audiosep_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the original's.

    Attributes:
        learning_rate: the full rate.
        schedule: `staircase`: 0.001, 0.01 and 0.1 of the rate for `warmup_steps` steps each, then the rate; `cosine`: a
            linear rise over `warmup_steps` steps, then half a cosine down to 0 at the end of the run; `constant`: the
            rate from the first step.
        warmup_steps: steps per stair, or of the rise; `constant` ignores it.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares.
        eps: added to the denominator.
        weight_decay: decoupled weight decay (AdamW), times the scheduled rate, on all parameters as in PyTorch.
        amsgrad: divide by the largest second moment so far (`scale_by_amsgrad`).
        clip_norm: gradients with a larger global norm are scaled down to this one; 0: no clipping.

    Raises:
        ConfigError: a value is out of range.
    """

    learning_rate: float = 1e-3
    schedule: Literal['staircase', 'cosine', 'constant'] = 'staircase'
    warmup_steps: int = 10_000
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = True
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(
                f'learning_rate must be above 0 and finite, got {self.learning_rate} (--optimizer.learning-rate)'
            )
        if self.schedule not in ('staircase', 'cosine', 'constant'):
            raise ConfigError(
                f'schedule must be staircase, cosine or constant, got {self.schedule!r} (--optimizer.schedule)'
            )
        if self.warmup_steps < 0:
            raise ConfigError(f'warmup_steps must be 0 or more, got {self.warmup_steps} (--optimizer.warmup-steps)')
        for name in ('b1', 'b2'):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f'{name} must be at least 0 and below 1, got {getattr(self, name)} (--optimizer.{name})'
                )
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ConfigError(f'eps must be above 0 and finite, got {self.eps} (--optimizer.eps)')
        for name in ('weight_decay', 'clip_norm'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                flag = f'--optimizer.{name.replace("_", "-")}'
                raise ConfigError(f'{name} must be 0 (off) or above and finite, got {value} ({flag})')


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made so far: int [] -> float32 [].

    Args:
        config: the schedule's name, rate and warm-up.
        total_steps: length of the run; only `cosine` uses it. A `staircase` run shorter than three warm-ups never
            reaches the full rate.

    Raises:
        ConfigError: the run is empty or, for `cosine`, not longer than its warm-up.
    """
    if total_steps < 1:
        raise ConfigError(f'a run needs at least 1 step, got {total_steps}')
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == 'staircase':
        stairs = {warmup * i: 10.0 for i in (1, 2, 3)} if warmup else {}
        return optax.piecewise_constant_schedule(rate * 1e-3 if warmup else rate, stairs)
    if config.schedule == 'constant':
        return lambda step: jnp.full(jnp.shape(step), rate, jnp.float32)
    if total_steps <= warmup:
        raise ConfigError(
            f'the cosine schedule warms up for {warmup} steps, which a run of {total_steps} never leaves: '
            'lower warmup_steps (--optimizer.warmup-steps)'
        )

    def cosine(step: Int[Array, ''] | int) -> Float32[Array, '']:
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(warmup, 1)
        progress = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
        return rate * jnp.where(step < warmup, rise, 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    return cosine


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Returns clipping, Adam, decoupled weight decay and the schedule, in that order.

    Raises:
        ConfigError: as `make_schedule`.
    """
    scale_by_moments = scale_by_amsgrad if config.amsgrad else optax.scale_by_adam
    # Fixed length, so the optimizer state keeps its structure if clipping or decay is switched on when resuming.
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        scale_by_moments(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(config, total_steps)),
    )


class AmsgradState(NamedTuple):
    """The moments, none of which is corrected for bias.

    Attributes:
        count: the number of updates made.
        mu: the first moment, a tree like the parameters.
        nu: the second moment.
        nu_max: the largest second moment so far.
    """

    count: Int32[Array, '']  # type: ignore[assignment]  # hides tuple.count, as in optax's states; checkpoints use the name
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


def scale_by_amsgrad(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Returns AMSGrad as in PyTorch: the maximum is taken of the raw second moment and corrected for bias afterwards.

    optax's own AMSGrad takes the maximum of the corrected moment, which is largest in the first steps and then
    dominates for a long time: on the ten gradients of tests/reference/amsgrad_reference.npz it moves 18 % less. Source:
    `torch.optim.AdamW`.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
    """

    def init(params: optax.Params) -> AmsgradState:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(3)]
        return AmsgradState(jnp.zeros([], jnp.int32), *zeros)

    def update(
        updates: optax.Updates, state: AmsgradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AmsgradState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        correction1, correction2 = _bias_correction(b1, count), jnp.sqrt(_bias_correction(b2, count))
        updates = jax.tree.map(lambda m, v: m / correction1 / (jnp.sqrt(v) / correction2 + eps), mu, nu_max)
        return updates, AmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def _bias_correction(decay: float, count: Int32[Array, '']) -> Float32[Array, '']:
    """Returns 1 - decay ** count. As a difference in float32, it would be off by 3e-5 at decay 0.999 and count 1."""
    if decay == 0:
        return jnp.ones([], jnp.float32)
    return -jnp.expm1(count.astype(jnp.float32) * math.log(decay))
