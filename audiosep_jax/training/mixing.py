"""Mixtures made on the device: each clip of a batch is a target, its neighbours in the batch are the noise.

Source: `SegmentMixer` and `dynamic_loudnorm` of the original (data/waveform_mixers.py); "Separate Anything You
Describe" (arXiv 2308.05037). Given the same draws the mixtures are the original's. The draws differ: gains are by
default uniform in dB where the original takes whole decibels, and partners may be kept to groups of consecutive clips,
and to clips without a common label.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from audiosep_jax.errors import ConfigError

# The original's constants: the least energy (mean square) of a reference, the range of the amplitude ratio between two
# clips, and the peak to which a mixture beyond full scale is brought.
_ENERGY_FLOOR = 1e-10
_RATIO_RANGE = (0.02, 50.0)
_DECLIPPED_PEAK = 0.9


@dataclasses.dataclass(frozen=True)
class SegmentMixer:
    """Mixes clip n with clips n + 1, n + 2, … of its group, modulo the group.

    Each further clip is brought to the target's energy and then to a random gain; so is their sum, the noise. A
    mixture beyond ±1 is scaled to a peak of 0.9, its target with it. Silent clips are no special case: a silent
    partner adds nothing, and against a silent target the noise keeps at least a fiftieth of its amplitude.

    With avoid_same_label the partners of clip n are the next ones that share no label with it: a mixture of two clips
    both called "male speech" teaches nothing. Where too few are left, the others follow in their order.

    A pure function of key and batch, for use under `jax.jit`; hashable. Nothing crosses a group, so a batch whose
    devices each hold whole groups is mixed without communication.

    Attributes:
        max_mix_num: most sources in a mixture, the target included; the number is uniform in 2 … max_mix_num.
        lower_db: least gain of a source, and of the noise, over the target, in dB.
        upper_db: greatest such gain, in dB.
        mix_group: consecutive clips that mix with each other; 0 is the whole batch.
        integer_gains: draw whole decibels, bounds included, as the original does.
        avoid_same_label: mix clips that share no label, as far as the group has such; the batch must hold labels. The
            draws stay the same.

    Raises:
        ConfigError: a value out of range, or a group too small for max_mix_num.
    """

    max_mix_num: int = 2
    lower_db: float = -10.0
    upper_db: float = 10.0
    mix_group: int = 0
    integer_gains: bool = False
    avoid_same_label: bool = False

    def __post_init__(self):
        if self.max_mix_num < 2:
            raise ConfigError(f'max_mix_num must be at least 2 (a target and one more), got {self.max_mix_num}')
        if not (math.isfinite(self.lower_db) and math.isfinite(self.upper_db) and self.lower_db <= self.upper_db):
            raise ConfigError(f'lower_db {self.lower_db} must not exceed upper_db {self.upper_db}; both must be finite')
        if self.integer_gains and not (float(self.lower_db).is_integer() and float(self.upper_db).is_integer()):
            raise ConfigError(f'integer_gains needs whole decibels, got {self.lower_db} to {self.upper_db}')
        if self.mix_group < 0:
            raise ConfigError(f'mix_group must be 0 (the whole batch) or a number of clips, got {self.mix_group}')
        if self.mix_group:
            self._check_group(self.mix_group)

    def __call__(
        self, key: jax.Array, waveforms: jax.Array, labels: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """float [B, T] in ±1 -> (mixtures, targets), both float32 [B, T]. No gradient reaches the clips.

        Args:
            key: a `jax.random` key. The draws of a row depend on it and on the row's index in the batch alone, not on
                B and not on how the batch lies on devices.
            waveforms: the clips; under `jax.jit` of a sharded array B is the global batch.
            labels: int [B, L], a number for each of a clip's labels, negative where it has fewer; used with
                avoid_same_label alone.

        Raises:
            ConfigError: the groups do not fill the batch, or hold too few clips for max_mix_num.
            ValueError: waveforms that are not floating point [B, T]; avoid_same_label without labels [B, L].
        """
        return self.mix_with_draws(waveforms, *self.draw(key, waveforms.shape[0]), labels)

    def draw(self, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(num_sources int32 [B], source_gains_db float32 [B, max_mix_num - 1], noise_gain_db float32 [B])."""

        def draw_row(row):
            number_key, sources_key, noise_key = jax.random.split(jax.random.fold_in(key, row), 3)
            number = jax.random.randint(number_key, (), 2, self.max_mix_num + 1)
            return number, self._gains(sources_key, (self.max_mix_num - 1,)), self._gains(noise_key, ())

        # Folding the row in, instead of one draw of shape [B], keeps a row's draws when the batch grows.
        return jax.vmap(draw_row)(jnp.arange(batch_size))

    def mix_with_draws(
        self,
        waveforms: jax.Array,
        num_sources: jax.Array,
        source_gains_db: jax.Array,
        noise_gain_db: jax.Array,
        labels: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The mixer with its random numbers given: -> (mixtures, targets), both float32 [B, T].

        No gradient reaches the clips.

        Args:
            waveforms: float [B, T] in ±1.
            num_sources: int [B], sources in each mixture, 2 … max_mix_num.
            source_gains_db: float [B, max_mix_num - 1], the gain of the first, second, … partner over clip n, in dB;
                those past num_sources are not used.
            noise_gain_db: float [B], the gain of the noise, their sum, over clip n, in dB.
            labels: int [B, L], as for `__call__`.

        Raises:
            ConfigError: the groups do not fill the batch, or hold too few clips for max_mix_num.
            ValueError: waveforms that are not floating point [B, T], or draws or labels of other shapes than these.
        """
        if waveforms.ndim != 2 or not jnp.issubdtype(waveforms.dtype, jnp.floating):
            raise ValueError(
                f'waveforms must be floating point [B, T] in ±1, got {waveforms.dtype} {list(waveforms.shape)}'
            )
        batch_size, num_samples = waveforms.shape
        draws = (num_sources, source_gains_db, noise_gain_db)
        for name, value, shape in zip(
            ('num_sources', 'source_gains_db', 'noise_gain_db'),
            draws,
            ((batch_size,), (batch_size, self.max_mix_num - 1), (batch_size,)),
            strict=True,
        ):
            if jnp.shape(value) != shape:
                raise ValueError(f'{name} must have the shape {list(shape)}, got {list(jnp.shape(value))}')
        group = self.group_size(batch_size)
        # [G, g, T]: the leading axis carries the batch's sharding, the roll below stays inside a device.
        targets = jax.lax.stop_gradient(waveforms.astype(jnp.float32)).reshape(-1, group, num_samples)
        num_sources, source_gains_db, noise_gain_db = (
            jnp.asarray(value).reshape(-1, group, *jnp.shape(value)[1:]) for value in draws
        )
        energies = _energy(targets)
        noise = jnp.zeros_like(targets)
        partner = self.partners(batch_size, labels)
        for i in range(1, self.max_mix_num):
            partners, partner_energies = partner(targets, i), partner(energies, i)
            gains = _matching_gain(partner_energies, energies, source_gains_db[..., i - 1])
            noise += partners * jnp.where(i < num_sources, gains, 0)[..., None]
        noise *= _matching_gain(_energy(noise), energies, noise_gain_db)[..., None]

        mixtures = targets + noise
        peaks = jnp.max(jnp.abs(mixtures), axis=-1, keepdims=True)
        # The maximum keeps the unused quotient of a silent mixture finite.
        scales = jnp.where(peaks > 1, _DECLIPPED_PEAK / jnp.maximum(peaks, 1), 1)
        shape = (batch_size, num_samples)
        return (mixtures * scales).reshape(shape), (targets * scales).reshape(shape)

    def partners(self, batch_size: int, labels: jax.Array | None = None) -> Callable[[jax.Array, int], jax.Array]:
        """The function (values [G, g, …], i) -> [G, g, …] that gives each clip of G groups its i-th partner's value.

        i from 1 to g - 1; those below max_mix_num can be in the mixture, no later one is. `labels` int [B, L].

        Raises:
            ValueError: avoid_same_label without labels [B, L].
        """
        if not self.avoid_same_label:
            return lambda values, i: jnp.roll(values, -i, axis=1)
        if labels is None or jnp.ndim(labels) != 2 or len(labels) != batch_size:
            found = 'none' if labels is None else list(jnp.shape(labels))
            raise ValueError(f'avoid_same_label needs labels of the shape [{batch_size}, L], got {found}')
        group = self.group_size(batch_size)
        labels = jnp.asarray(labels).reshape(-1, group, labels.shape[1])
        shared = share_label(labels[:, :, None], labels[:, None])  # [G, g, g]
        clip = jnp.arange(group)
        steps = (clip - clip[:, None]) % group  # from clip n (rows) on to each other one
        order = jnp.where(steps == 0, 2 * group, steps + group * shared)  # itself never
        places = jnp.argsort(order, axis=-1)

        def partner(values: jax.Array, i: int) -> jax.Array:
            # Mapped over the groups, so that a group stays on its device.
            return jax.vmap(lambda rows, place: rows[place])(values, places[..., i - 1])

        return partner

    def group_size(self, batch_size: int) -> int:
        """The clips that mix with each other in a (global) batch of `batch_size` clips.

        Raises:
            ConfigError: the groups do not fill the batch, or hold too few clips for max_mix_num.
        """
        group = self.mix_group or batch_size
        if batch_size < 1 or batch_size % group:
            raise ConfigError(f'mix_group {group} does not divide the batch of {batch_size} clips')
        self._check_group(group)
        return group

    def _check_group(self, group: int) -> None:
        if self.max_mix_num > group:
            raise ConfigError(
                f'max_mix_num {self.max_mix_num} needs as many clips to mix, but the batch or mix_group has {group}'
            )

    def _gains(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """float32 `shape`, in dB, uniform between the bounds."""
        if self.integer_gains:
            return jax.random.randint(key, shape, int(self.lower_db), int(self.upper_db) + 1).astype(jnp.float32)
        return jax.random.uniform(key, shape, jnp.float32, self.lower_db, self.upper_db)


@dataclasses.dataclass(frozen=True)
class AbsentQueries:
    """Asks some mixtures for a sound that is not in them; the target of those is silence.

    The original never does: every query that it trains on is answered by something, and asked for an absent sound it
    gives whatever is nearest. Off by default.

    Attributes:
        share: of the mixtures that are asked so, 0 (none) to 1. The query is that of the next clip of the group that
            is not in the mixture, so mix_group must exceed max_mix_num.
        start: steps of the run before the first of them. A network that cannot separate yet learns from them to answer
            sparse sounds (knocks, barks) with silence as well, which is never far off in L1, and stays there.
        similarity: a mixture keeps its own query if the other one has at least this cosine with the query of any clip
            in the mixture: it may describe the same sound in other words. With the mixer's avoid_same_label so it does
            if their clips share a label.

    Raises:
        ConfigError: a value out of range.
    """

    share: float = 0.0
    start: int = 0
    similarity: float = 0.3

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ConfigError(f'absent.share must be between 0 and 1, got {self.share}')
        if self.start < 0:
            raise ConfigError(f'absent.start must be 0 or more steps, got {self.start}')
        if not -1 <= self.similarity <= 1:
            raise ConfigError(f'absent.similarity is a cosine, between -1 and 1, got {self.similarity}')

    def check(self, mixer: SegmentMixer, batch_size: int) -> int:
        """The mixer's group size; ConfigError where none of its clips is absent from a mixture, to be asked for."""
        group = mixer.group_size(batch_size)
        if self.share and group <= mixer.max_mix_num:
            raise ConfigError(f'absent.share needs a mix_group above max_mix_num {mixer.max_mix_num}, got {group}')
        return group

    def __call__(
        self,
        key: jax.Array,
        step: jax.Array,
        mixer: SegmentMixer,
        embeddings: jax.Array,
        targets: jax.Array,
        labels: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings [B, E] and targets [B, T] -> the same, with the queries of some rows replaced and their targets 0.

        As the mixer's, a row's draw depends on the key and the row alone, and nothing crosses a group. `step` is that
        of the run, int []; `labels` int [B, L] are what the mixer got.

        Raises:
            ConfigError: see `check`.
        """
        if not self.share:
            return embeddings, targets
        batch_size, size = embeddings.shape
        group, partner = self.check(mixer, batch_size), mixer.partners(batch_size, labels)

        def in_mixture(values):
            return [values, *(partner(values, i) for i in range(1, mixer.max_mix_num))]

        grouped = embeddings.reshape(-1, group, size)
        other = partner(grouped, mixer.max_mix_num)
        cosines = [_cosine(other, one) for one in in_mixture(grouped)]
        differs = jnp.max(jnp.stack(cosines), axis=0) < self.similarity
        if mixer.avoid_same_label:
            numbers = jnp.asarray(labels).reshape(-1, group, labels.shape[1])
            its_own = partner(numbers, mixer.max_mix_num)
            differs &= ~jnp.any(jnp.stack([share_label(its_own, one) for one in in_mixture(numbers)]), axis=0)
        differs = differs.reshape(batch_size)

        def drawn(row):
            return jax.random.uniform(jax.random.fold_in(key, row)) < self.share

        asked = (differs & jax.vmap(drawn)(jnp.arange(batch_size)) & (step >= self.start))[:, None]
        other = other.reshape(batch_size, size)
        return jnp.where(asked, other, embeddings), jnp.where(asked, 0, targets)


def share_label(a: jax.Array, b: jax.Array) -> jax.Array:
    """int [..., L] twice -> bool [...]: whether a number that is not negative is in both."""
    return jnp.any((a[..., :, None] == b[..., None, :]) & (a[..., :, None] >= 0), axis=(-2, -1))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """float [..., E] twice -> [...]: of the angle between them; 0 where one is zero."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-12)


def _energy(waveforms: jax.Array) -> jax.Array:
    """float32 [..., T] -> [...]: the mean square."""
    return jnp.mean(jnp.square(waveforms), axis=-1)


def _matching_gain(energy: jax.Array, reference_energy: jax.Array, gain_db: jax.Array) -> jax.Array:
    """The factor that brings a clip to `gain_db` over the reference; the original's `dynamic_loudnorm`."""
    ratio = jnp.clip(jnp.sqrt(energy / jnp.maximum(reference_energy, _ENERGY_FLOOR)), *_RATIO_RANGE)
    return 10 ** (gain_db.astype(jnp.float32) / 20) / ratio
