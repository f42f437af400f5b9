"""Makes mixtures on the device: each clip of a batch is a target, and its neighbors in the batch are the noise.

Source: `SegmentMixer` and `dynamic_loudnorm` of the original (data/waveform_mixers.py); "Separate Anything You
Describe" (arXiv 2308.05037). With the same draws, the mixtures are the original's. The draws differ: by default, gains
are uniform in dB, while the original draws whole decibels; and partners can be restricted to groups of consecutive
clips, to clips without a common label, and to clips that a table lets meet.

Letters: B clips in the batch, G groups of g clips, T samples, E embedding size, L labels.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Int32, PRNGKeyArray, Real, Shaped

from audiosep_jax.data.co_occurrence import CoOccurrence, read_co_occurrence
from audiosep_jax.errors import ConfigError

# The original's constants: the minimum energy (mean square) of a reference, the range of the amplitude ratio between
# two clips, and the peak to which a mixture beyond full scale is attenuated.
_ENERGY_FLOOR = 1e-10
_RATIO_RANGE = (0.02, 50.0)
_DECLIPPED_PEAK = 0.9
_LEVEL_KEY = 3  # of a row's keys, after the three for its other draws


@dataclasses.dataclass(frozen=True)
class SegmentMixer:
    """Mixes clip n with clips n + 1, n + 2, … of its group, modulo the group.

    Each further clip is scaled to the target's energy and then by a random gain; so is their sum, the noise. A mixture
    beyond ±1 is scaled to a peak of 0.9, together with its target. Silent clips need no special case: a silent partner
    adds nothing, and against a silent target the noise keeps at least a fiftieth of its amplitude.

    With level_db, a mixture and its target then get one more random gain, so that the network also learns from mixtures
    that are quieter or louder than the clips. A gain above 0 dB may carry a mixture beyond ±1, where nothing clips.

    With avoid_same_label, the partners of clip n are the next clips that share no label with it, because a mixture of
    two clips that are both called "male speech" teaches nothing. If there are too few, the other clips follow in order.

    With together, the partners of clip n are the next clips that may meet it: a label of theirs is paired with a label
    of its own in a table. A clip without any label of the table may meet all. If there are too few, the other clips
    follow in order. With both, first come clips that may meet and share no label, then others that share none, then
    those that share one and may meet, then the rest. Only the target's labels count, not those of two partners.

    The mixer is hashable and a pure function of key and batch, for use under `jax.jit`; it reads the table once, when
    it is traced. No clip leaves its group, so a batch whose devices each hold whole groups is mixed without
    communication.

    Attributes:
        max_mix_num: maximum number of sources in a mixture, including the target; the number is uniform in
            min_mix_num … max_mix_num.
        lower_db: minimum gain of a source, and of the noise, relative to the target, in dB.
        upper_db: maximum gain of a source, and of the noise, relative to the target, in dB.
        mix_group: number of consecutive clips that are mixed with each other; 0: the whole batch.
        integer_gains: draw whole decibels, including the bounds, as the original does.
        avoid_same_label: mix clips that share no label, if the group has them; the batch must hold labels. The draws
            stay the same.
        level_db: minimum and maximum gain of a mixture with its target, in dB, uniform in between; (0, 0) leaves the
            level as it is, as the article does. The other draws stay the same.
        together: file with the labels that may meet (docs/data.md), whose clips are mixed if the group has them; the
            batch must hold labels. The draws stay the same.
        min_mix_num: minimum number of sources in a mixture, including the target.

    Raises:
        ConfigError: a value is out of range, or a group is too small for max_mix_num.
    """

    max_mix_num: int = 2
    lower_db: float = -10.0
    upper_db: float = 10.0
    mix_group: int = 0
    integer_gains: bool = False
    avoid_same_label: bool = False
    level_db: tuple[float, float] = (0.0, 0.0)
    together: Annotated[str, tyro.conf.arg(metavar='FILE')] = ''
    min_mix_num: int = 2

    def __post_init__(self) -> None:
        if self.max_mix_num < 2:
            raise ConfigError(f'max_mix_num must be at least 2 (a target and one more), got {self.max_mix_num}')
        if not 2 <= self.min_mix_num <= self.max_mix_num:
            raise ConfigError(
                f'min_mix_num must be between 2 and max_mix_num {self.max_mix_num}, got {self.min_mix_num}'
            )
        if not (math.isfinite(self.lower_db) and math.isfinite(self.upper_db) and self.lower_db <= self.upper_db):
            raise ConfigError(f'lower_db {self.lower_db} must not exceed upper_db {self.upper_db}; both must be finite')
        if self.integer_gains and not (float(self.lower_db).is_integer() and float(self.upper_db).is_integer()):
            raise ConfigError(f'integer_gains needs whole decibels, got {self.lower_db} to {self.upper_db}')
        if len(self.level_db) != 2 or not all(map(math.isfinite, self.level_db)) or self.level_db[0] > self.level_db[1]:
            raise ConfigError(f'level_db needs a minimum and a maximum gain in dB, both finite, got {self.level_db}')
        if self.mix_group < 0:
            raise ConfigError(f'mix_group must be 0 (the whole batch) or a number of clips, got {self.mix_group}')
        if self.mix_group:
            self._check_group(self.mix_group)

    def __call__(
        self, key: PRNGKeyArray, waveforms: Array | np.ndarray, labels: Array | np.ndarray | None = None
    ) -> tuple[Float32[Array, 'B T'], Float32[Array, 'B T']]:
        """Returns (mixtures, targets). No gradient reaches the clips.

        Args:
            key: the draws of a row depend only on the key and on the row's index in the batch, not on B or on how the
                batch is distributed over devices.
            waveforms: float [B, T] in ±1, the clips; for a sharded array under `jax.jit`, B is the global batch.
            labels: int [B, L], a number for each of a clip's labels, negative to fill up; see `needs_labels`.

        Raises:
            ConfigError: the batch does not divide into groups, or a group has too few clips for max_mix_num.
            DataError: the table cannot be read.
            ValueError: waveforms are not floating point [B, T]; labels are needed, but are not [B, L].
        """
        mixtures, targets = self.mix_with_draws(waveforms, *self.draw(key, waveforms.shape[0]), labels)
        if self.level_db == (0, 0):
            return mixtures, targets
        gains = self.draw_levels(key, waveforms.shape[0])[:, None]
        return mixtures * gains, targets * gains

    def draw(
        self, key: PRNGKeyArray, batch_size: int
    ) -> tuple[
        Int32[Array, ' {batch_size}'],
        Float32[Array, '{batch_size} {self.max_mix_num-1}'],
        Float32[Array, ' {batch_size}'],
    ]:
        """Returns (num_sources, source_gains_db, noise_gain_db), the random numbers of `mix_with_draws`."""

        def draw_row(row: Int[Array, '']) -> tuple[Array, Array, Array]:
            number_key, sources_key, noise_key = jax.random.split(jax.random.fold_in(key, row), 3)
            number = jax.random.randint(number_key, (), self.min_mix_num, self.max_mix_num + 1)
            return number, self._gains(sources_key, (self.max_mix_num - 1,)), self._gains(noise_key, ())

        # One draw per row, with the row folded into the key, keeps a row's draws when the batch grows.
        return jax.vmap(draw_row)(jnp.arange(batch_size))

    def draw_levels(self, key: PRNGKeyArray, batch_size: int) -> Float32[Array, ' {batch_size}']:
        """Returns the factor by which `__call__` scales each mixture with its target."""

        def draw_row(row: Int[Array, '']) -> Array:
            # A number that `draw` does not use, so that its draws are the same with and without levels.
            level_key = jax.random.fold_in(jax.random.fold_in(key, row), _LEVEL_KEY)
            return jax.random.uniform(level_key, (), jnp.float32, *self.level_db)

        return 10 ** (jax.vmap(draw_row)(jnp.arange(batch_size)) / 20)

    def mix_with_draws(
        self,
        waveforms: Array | np.ndarray,
        num_sources: Array | np.ndarray,
        source_gains_db: Array | np.ndarray,
        noise_gain_db: Array | np.ndarray,
        labels: Array | np.ndarray | None = None,
    ) -> tuple[Float32[Array, 'B T'], Float32[Array, 'B T']]:
        """Returns (mixtures, targets) made with the given random numbers. No gradient reaches the clips.

        Args:
            waveforms: float [B, T] in ±1.
            num_sources: [B], the number of sources in each mixture, 1 … max_mix_num.
            source_gains_db: [B, max_mix_num - 1], the gain of the first, second, … partner relative to clip n, in dB;
                those past num_sources are not used.
            noise_gain_db: [B], the gain of the noise, which is their sum, relative to clip n, in dB.
            labels: int [B, L], as for `__call__`.

        Raises:
            ConfigError: the batch does not divide into groups, or a group has too few clips for max_mix_num.
            ValueError: waveforms are not floating point [B, T], or draws or labels have other shapes than these.
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
        # [G, g, T]: the leading axis has the batch's sharding, so the roll below stays inside a device.
        targets = jax.lax.stop_gradient(jnp.asarray(waveforms, jnp.float32)).reshape(-1, group, num_samples)
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

    @property
    def needs_labels(self) -> bool:
        """Whether batches must hold labels."""
        return self.avoid_same_label or bool(self.together)

    def partners(
        self, batch_size: int, labels: Array | np.ndarray | None = None
    ) -> Callable[[Shaped[Array, 'G g *value'], int], Shaped[Array, 'G g *value']]:
        """Returns the function (values, i) -> values that gives each clip the value of its i-th partner.

        i is from 1 to g - 1. Only partners below max_mix_num can be in the mixture.

        Args:
            batch_size: B.
            labels: int [B, L], as for `__call__`.

        Raises:
            ConfigError: as `group_size`.
            DataError: the table cannot be read.
            ValueError: labels are needed, but are not [B, L].
        """
        if not self.needs_labels:
            return lambda values, i: jnp.roll(values, -i, axis=1)
        if labels is None or jnp.ndim(labels) != 2 or len(labels) != batch_size:
            found = 'none' if labels is None else list(jnp.shape(labels))
            option = 'avoid_same_label' if self.avoid_same_label else 'together'
            raise ValueError(f'{option} needs labels of the shape [{batch_size}, L], got {found}')
        group = self.group_size(batch_size)
        labels = jnp.asarray(labels).reshape(-1, group, labels.shape[1])
        pair = labels[:, :, None], labels[:, None]  # of clip n (the row) and each other clip
        rank = 2 * share_label(*pair) if self.avoid_same_label else 0  # [G, g, g]
        if self.together:
            rank += ~may_meet(read_co_occurrence(self.together), *pair)
        clip = jnp.arange(group)
        distance = (clip - clip[:, None]) % group  # from clip n (the row) to each other clip
        order = jnp.where(distance == 0, 4 * group, distance + group * rank)  # clip n itself comes last
        indices = jnp.argsort(order, axis=-1)

        def partner(values: Array, i: int) -> Array:
            # vmap over the groups keeps a group on its device.
            return jax.vmap(lambda rows, index: rows[index])(values, indices[..., i - 1])

        return partner

    def group_size(self, batch_size: int) -> int:
        """Returns the number of clips that are mixed with each other in a (global) batch of `batch_size` clips.

        Raises:
            ConfigError: the batch does not divide into groups, or a group has too few clips for max_mix_num.
        """
        group = self.mix_group or batch_size
        if batch_size < 1 or batch_size % group:
            raise ConfigError(f'mix_group {group} does not divide the batch of {batch_size} clips')
        self._check_group(group)
        return group

    def group_with_another(self, batch_size: int, option: str) -> int:
        """Returns the group size for an option that takes a clip of the group which is not in the mixture.

        Raises:
            ConfigError: see `group_size`; or a mixture can hold all clips of a group.
        """
        group = self.group_size(batch_size)
        if group <= self.max_mix_num:
            raise ConfigError(f'{option} needs a mix_group above max_mix_num {self.max_mix_num}, got {group}')
        return group

    def _check_group(self, group: int) -> None:
        if self.max_mix_num > group:
            raise ConfigError(
                f'max_mix_num {self.max_mix_num} needs as many clips to mix, but the batch or mix_group has {group}'
            )

    def _gains(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float32[Array, '...']:
        """Draws gains in dB, uniform between the bounds."""
        if self.integer_gains:
            return jax.random.randint(key, shape, int(self.lower_db), int(self.upper_db) + 1).astype(jnp.float32)
        return jax.random.uniform(key, shape, jnp.float32, self.lower_db, self.upper_db)


@dataclasses.dataclass(frozen=True)
class AbsentQueries:
    """Replaces the queries of some mixtures with ones for sounds that are not in them; their targets are silence.

    The original never does this: each of its training queries has a sound in the mixture, so the network answers a
    query for an absent sound with whatever is most similar. It is off by default.

    Attributes:
        share: the share of mixtures whose queries are replaced, 0 (none) to 1. The new query is that of the next clip
            of the group that is not in the mixture, so mix_group must exceed max_mix_num.
        start: the first step with such queries. A network that cannot separate yet learns from them to answer sparse
            sounds (knocks, barks) with silence as well, which is never far off in L1, and does not unlearn it.
        similarity: a mixture keeps its own query if the new one has at least this cosine with the query of any clip in
            the mixture, because it may describe the same sound in other words. With the mixer's avoid_same_label, it
            also keeps its own query if the clips share a label.

    Raises:
        ConfigError: a value is out of range.
    """

    share: float = 0.0
    start: int = 0
    similarity: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f'absent.share must be between 0 and 1, got {self.share}')
        if self.start < 0:
            raise ConfigError(f'absent.start must be 0 or more steps, got {self.start}')
        if not -1 <= self.similarity <= 1:
            raise ConfigError(f'absent.similarity is a cosine, between -1 and 1, got {self.similarity}')

    def check(self, mixer: SegmentMixer, batch_size: int) -> int:
        """Returns the mixer's group size.

        Raises:
            ConfigError: a mixture can hold all clips of a group, so no clip is left to be the absent one.
        """
        return mixer.group_with_another(batch_size, 'absent.share') if self.share else mixer.group_size(batch_size)

    def __call__(
        self,
        key: PRNGKeyArray,
        step: Int[Array, ''] | int,
        mixer: SegmentMixer,
        embeddings: Float[Array, 'B E'],
        targets: Float32[Array, 'B T'],
        labels: Int[Array | np.ndarray, 'B L'] | None = None,
    ) -> tuple[Float[Array, 'B E'], Float32[Array, 'B T']]:
        """Returns (embeddings, targets), where some rows have another query and a target of zeros.

        As in the mixer, a row's draw depends only on the key and the row, and no clip leaves its group.

        Args:
            key: a key for this step.
            step: the run's step.
            mixer: what made the mixtures.
            embeddings: the query of each mixture.
            targets: the target of each mixture.
            labels: what the mixer got.

        Raises:
            ConfigError: see `check`.
        """
        if not self.share:
            return embeddings, targets
        batch_size, size = embeddings.shape
        group, partner = self.check(mixer, batch_size), mixer.partners(batch_size, labels)

        def in_mixture(values: Array) -> list[Array]:
            return [values, *(partner(values, i) for i in range(1, mixer.max_mix_num))]

        grouped = embeddings.reshape(-1, group, size)
        other = partner(grouped, mixer.max_mix_num)
        cosines = [_cosine(other, one) for one in in_mixture(grouped)]
        differs = jnp.max(jnp.stack(cosines), axis=0) < self.similarity
        if mixer.avoid_same_label:
            assert labels is not None  # `partners` has refused this
            numbers = jnp.asarray(labels).reshape(-1, group, labels.shape[1])
            other_labels = partner(numbers, mixer.max_mix_num)
            differs &= ~jnp.any(jnp.stack([share_label(other_labels, one) for one in in_mixture(numbers)]), axis=0)
        differs = differs.reshape(batch_size)

        def is_drawn(row: Int[Array, '']) -> Bool[Array, '']:
            return jax.random.uniform(jax.random.fold_in(key, row)) < self.share

        replaced = (differs & jax.vmap(is_drawn)(jnp.arange(batch_size)) & (step >= self.start))[:, None]
        other = other.reshape(batch_size, size)
        return jnp.where(replaced, other, embeddings), jnp.where(replaced, 0, targets)


def share_label(a: Int[Array, '... L'], b: Int[Array, '... L']) -> Bool[Array, '...']:
    """Returns whether a label number, which is not negative, is in both; the other axes are broadcast."""
    return jnp.any((a[..., :, None] == b[..., None, :]) & (a[..., :, None] >= 0), axis=(-2, -1))


def may_meet(table: CoOccurrence, a: Int[Array, '... L'], b: Int[Array, '... L']) -> Bool[Array, '...']:
    """Returns whether a table pairs a label number of one with one of the other, or has none of one of the two."""

    def place(values: Array, sorted_values: np.ndarray) -> tuple[Array, Array]:
        """Returns where values are in an array, and whether they are."""
        index = jnp.searchsorted(sorted_values, values).clip(max=len(sorted_values) - 1)
        return index, jnp.asarray(sorted_values)[index] == values

    (index_a, known_a), (index_b, known_b) = place(a, table.numbers), place(b, table.numbers)
    _, paired = place(len(table.numbers) * index_a[..., :, None] + index_b[..., None, :], table.pairs)
    paired &= known_a[..., :, None] & known_b[..., None, :]
    return jnp.any(paired, axis=(-2, -1)) | ~jnp.any(known_a, axis=-1) | ~jnp.any(known_b, axis=-1)


def _cosine(a: Float[Array, '*batch E'], b: Float[Array, '*batch E']) -> Float[Array, '*batch']:
    """Returns the cosine of the angle between vectors; 0 if one is zero."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-12)


def _energy(waveforms: Float32[Array, '*batch T']) -> Float32[Array, '*batch']:
    """Returns the mean square."""
    return jnp.mean(jnp.square(waveforms), axis=-1)


def _matching_gain(
    energy: Float32[Array, '*batch'], reference_energy: Float32[Array, '*batch'], gain_db: Real[Array, '*batch']
) -> Float32[Array, '*batch']:
    """Returns the factor that scales a clip to `gain_db` over the reference; the original's `dynamic_loudnorm`."""
    ratio = jnp.clip(jnp.sqrt(energy / jnp.maximum(reference_energy, _ENERGY_FLOOR)), *_RATIO_RANGE)
    return 10 ** (gain_db.astype(jnp.float32) / 20) / ratio
