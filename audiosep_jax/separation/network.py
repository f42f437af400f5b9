"""The network on a device, with the STFT around it: whole recordings, batches of them, and pieces of long ones.

Letters: Q queries, K sounds to exclude, B mixtures of a batch, T samples, S padded samples, N frames, F frequency bins,
E embedding size.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Complex64, Float, Float32, Int

from audiosep_jax.audio.stft import WINDOW_SUM_FLOOR, hann_window, istft, num_frames, overlap_add, reflect_pad, stft
from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.models import folded
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.folded import Frame, Shifts, Weights
from audiosep_jax.models.layers import TIME_DOWNSAMPLING
from audiosep_jax.models.packing import lanes_of
from audiosep_jax.parallel.mesh import batch_sharded, make_mesh, replicated
from audiosep_jax.separation.exclusion import exclude
from audiosep_jax.separation.level import LevelState, initial_level, level_bounds, leveled, start_level
from audiosep_jax.separation.queries import Embedded


@dataclasses.dataclass(frozen=True)
class Network:
    """The configuration and the folded weights, on the device. Nothing changes them, so threads may share them.

    Attributes:
        config: of the model.
        weights: what `folded.fold` returned.
    """

    config: ModelConfig
    weights: Weights

    @functools.cached_property
    def on_all_devices(self) -> tuple[Callable, Weights]:
        """`separate_rows` with rows split over all devices of this process, and the weights on each device."""
        mesh = make_mesh(devices=jax.local_devices())
        return _split_over(mesh, self.config), jax.device_put(self.weights, replicated(mesh))

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the layer that takes embeddings. Folding leaves that layer alone, so it is equal on all devices."""
        digest = hashlib.sha256()
        for name in ('kernel', 'bias'):
            digest.update(np.ascontiguousarray(self.weights['film'][name], np.float32).tobytes())
        return digest.hexdigest()[:16]

    def shifts(self, embedding: Float[np.ndarray, ' E']) -> Shifts:
        """Computes the shifts for a query, for one row."""
        return _query_shifts(self.config, self.weights, embedding[None])


def separate_whole(
    network: Network,
    mixture: Float32[np.ndarray, 'channels T'],
    embedded: Embedded,
    *,
    per_channel: bool,
    level: Level | None = None,
) -> Float32[np.ndarray, 'Q channels T']:
    """Separates a recording at the model's rate all at once; the network hears it at a level if one is given."""
    config, weights, length = network.config, network.weights, mixture.shape[-1]
    padded, count = pad_mixtures([mixture], config)
    state = initial_level(config, level, len(mixture) if per_channel else 1)
    x, spectra, _, _ = analyze(config, weights, padded[0], 0, count[0], None, state, per_channel=per_channel)
    half, outputs = config.window_size // 2, []
    for embedding in [*embedded.queries, *embedded.unwanted]:
        shifts = network.shifts(embedding)
        rows = [_mask_whole(config, weights, shifts, x[row : row + 1], count[0]) for row in range(len(x))]
        # Because all frames are here, the samples that they reach beyond the last hop are the rest of the recording.
        output = synthesize(config, spectra, jnp.concatenate(rows), 0, count[0], None, None)[0]
        outputs.append(np.asarray(output)[:, half : half + length])
    targets, unwanted = np.stack(outputs[: len(embedded.queries)]), outputs[len(embedded.queries) :]
    for target, excluded in zip(targets, embedded.excluded, strict=True):
        if excluded:
            others = np.stack([unwanted[row] for row in excluded])
            target[:] = exclude(target, others, window_size=config.window_size, hop_size=config.hop_size)
    return targets


def separate_batch(
    network: Network,
    mixtures: list[Float32[np.ndarray, ' _']],
    embeddings: Float[np.ndarray, 'B E'],
    *,
    level: Level | None = None,
) -> list[Float32[np.ndarray, ' _']]:
    """Separates mono mixtures [T_i] of one padded shape (`padded_frames`), each by its own query.

    Uses all devices of this process if the number of mixtures is a multiple of theirs.

    Args:
        network: see `Network`.
        mixtures: at the model's rate.
        embeddings: of the queries, one for each mixture.
        level: see `separate_whole`.
    """
    weights, bounds = network.weights, level_bounds(level)
    inputs = (*pad_mixtures(mixtures, network.config), np.asarray(embeddings, np.float32))
    separate: Callable[..., Array] = functools.partial(_separate_rows_on_one_device, network.config)
    devices = jax.local_device_count()
    if devices > 1 and len(mixtures) % devices == 0:
        separate, weights = network.on_all_devices
    outputs = np.asarray(separate(weights, bounds, *inputs))
    return [output[: len(mixture)].copy() for output, mixture in zip(outputs, mixtures, strict=True)]


def lower_separation(config: ModelConfig, mesh: Mesh, rows: int, num_samples: int) -> jax.stages.Lowered:
    """Lowers what `separate_batch` does for a mesh, whose devices need not be there.

    Args:
        config: of the model.
        mesh: the devices, over which the rows are split.
        rows: B, the number of mixtures.
        num_samples: of each mixture.
    """

    def on(sharding: jax.sharding.Sharding, shape: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shape)

    lanes = lanes_of(mesh.devices.flat[0].platform)
    variables = jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))
    weights = on(replicated(mesh), jax.eval_shape(functools.partial(folded.fold, config, lanes=lanes), variables))
    shapes = (
        jax.ShapeDtypeStruct((rows, _padded_samples(num_samples, config)), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        jax.ShapeDtypeStruct((rows, config.condition_size), jnp.float32),
    )
    return _split_over(mesh, config).lower(weights, None, *on(batch_sharded(mesh), shapes))


def _split_over(mesh: Mesh, config: ModelConfig) -> Any:
    """`separate_rows` with rows split over a mesh.

    It uses `shard_map`, because XLA would gather all rows on every device for an FFT.
    """
    rows, whole = batch_sharded(mesh).spec, replicated(mesh).spec
    separate = functools.partial(separate_rows, config)
    return jax.jit(jax.shard_map(separate, mesh=mesh, in_specs=(whole, whole, rows, rows, rows), out_specs=rows))


def padded_frames(num_samples: int, config: ModelConfig) -> int:
    """Returns the compiled number of frames that serves a signal of this length: a multiple of the pooling grid."""
    return -(-num_frames(num_samples, config.hop_size) // TIME_DOWNSAMPLING) * TIME_DOWNSAMPLING


def _padded_samples(num_samples: int, config: ModelConfig) -> int:
    return (padded_frames(num_samples, config) - 1) * config.hop_size + config.window_size


def pad_mixtures(
    mixtures: list[Float32[np.ndarray, '...']], config: ModelConfig
) -> tuple[Float32[np.ndarray, 'B ...'], Int[np.ndarray, ' B']]:
    """Pads mixtures [..., T_i] of one padded shape by reflection at both ends, and counts their frames."""
    window, hop = config.window_size, config.hop_size
    samples = _padded_samples(mixtures[0].shape[-1], config)
    padded = np.zeros((len(mixtures), *mixtures[0].shape[:-1], samples), np.float32)
    counts = np.empty(len(mixtures), np.int32)
    for row, mixture in enumerate(mixtures):
        # Reflected samples past the last frame are not needed.
        reflected = reflect_pad(mixture, window)[..., :samples]
        padded[row, ..., : reflected.shape[-1]] = reflected
        counts[row] = num_frames(mixture.shape[-1], hop)
    return padded, counts


# ---- on the device ---------------------------------------------------------------------------------------------------


_query_shifts = functools.partial(jax.jit, static_argnums=0)(folded.query_shifts)
mask_piece = functools.partial(jax.jit, static_argnums=0, donate_argnums=6)(folded.piece_mask)


@functools.partial(jax.jit, static_argnums=0)
def _mask_whole(
    config: ModelConfig, weights: Weights, shifts: Shifts, x: Float[Array, '1 N F'], count: Frame
) -> Complex64[Array, '1 N F+1']:
    return folded.whole_mask(config, weights, shifts, x, (jnp.arange(x.shape[1]) < count)[None])


@functools.partial(jax.jit, static_argnums=0, static_argnames='per_channel')
def analyze(
    config: ModelConfig,
    weights: Weights,
    samples: Float[Array, 'channels S'],
    start: Frame,
    count: Frame,
    before: Complex64[Array, 'channels look_ahead F'] | None,
    level: LevelState | None,
    *,
    per_channel: bool,
) -> tuple[
    Float[Array, 'rows N bins'],
    Complex64[Array, 'channels N bins+1'],
    Complex64[Array, 'channels look_ahead bins+1'] | None,
    LevelState | None,
]:
    """Computes the network's input and the spectra that its masks will belong to.

    Args:
        config: of the model.
        weights: of the folded network.
        samples: padded samples from frame `start` on.
        start: the first frame's place in the recording.
        count: the number of frames of the recording, as in `folded.piece_mask`.
        before: the spectra that the piece before left, because their masks come late. None: the recording is whole.
        level: the level at which the network is to hear it, as the piece before left it. None: that of the recording.
        per_channel: whether each channel is a row of the network's input. Otherwise the mean of all is the only row.

    Returns:
        The input; the spectra of as many frames, beginning with those from `before`; and the spectra and the
        level that are left for the next piece.
    """
    spectra = stft(samples, config.window_size, config.hop_size, center=False)
    # The STFT is linear, so the mean of the channels' spectra is the spectrum of their mean.
    heard = spectra if per_channel else spectra.mean(0, keepdims=True)
    valid = start + jnp.arange(spectra.shape[1]) < count
    heard, level = leveled(config, heard, start, count, level)
    x = folded.features(weights, heard, jnp.broadcast_to(valid, heard.shape[:2]))
    if before is None:
        return x, spectra, None, level
    spectra = jnp.concatenate([before, spectra], axis=1)
    return x, spectra[:, : x.shape[1]], spectra[:, x.shape[1] :], level


@functools.partial(jax.jit, static_argnums=0)
def synthesize(
    config: ModelConfig,
    spectra: Complex64[Array, 'channels N F'],
    mask: Complex64[Array, '#channels N F'],
    start: Frame,
    count: Frame,
    tail: Float32[Array, 'channels reach'] | None,
    weight_tail: Float32[Array, ' reach'] | None,
) -> tuple[Float32[Array, 'channels S'], Float32[Array, 'channels _'], Float32[Array, ' _']]:
    """Turns masked spectra into padded samples, which begin at sample start * hop.

    Args:
        config: of the model.
        spectra: of frames `start` to `start + N`.
        mask: of the target.
        start: the first frame's place in the recording. Frames before 0 and from `count` on are left out.
        count: the number of frames of the recording.
        tail: what the frames before contributed to the samples of these frames; reach = window - hop. None: all frames
            are here, and all samples that they reach are wanted.
        weight_tail: likewise the sum of squared windows.

    Returns:
        The finished samples, and the new tails.
    """
    return overlap_add_piece(config, spectra * mask, start, count, tail, weight_tail)


def overlap_add_piece(
    config: ModelConfig,
    spectra: Complex64[Array, '*batch N F'],
    start: Frame,
    count: Frame,
    tail: Float32[Array, '*batch reach'] | None,
    weight_tail: Float32[Array, ' reach'] | None,
) -> tuple[Float32[Array, '*batch S'], Float32[Array, '*batch _'], Float32[Array, ' _']]:
    """Does what `synthesize` does, for spectra that are already masked."""
    window_size, hop = config.window_size, config.hop_size
    window = hann_window(window_size)
    frame = start + jnp.arange(spectra.shape[-2])
    valid = ((frame >= 0) & (frame < count))[:, None]
    frames = jnp.where(valid, jnp.fft.irfft(spectra, n=window_size, axis=-1) * window, 0)
    signal, weight = overlap_add(frames, hop), overlap_add(valid * window**2, hop)
    if tail is None or weight_tail is None:
        return signal / jnp.maximum(weight, WINDOW_SUM_FLOOR), signal, weight
    reach = window_size - hop
    signal, weight = signal.at[..., :reach].add(tail), weight.at[:reach].add(weight_tail)
    done = len(frame) * hop
    return signal[..., :done] / jnp.maximum(weight[:done], WINDOW_SUM_FLOOR), signal[..., done:], weight[done:]


def separate_rows(
    config: ModelConfig,
    weights: Weights,
    bounds: Float32[Array, '2'] | None,
    padded: Float32[Array, 'B S'],
    counts: Int[Array, ' B'],
    embeddings: Float[Array, 'B E'],
) -> Float32[Array, 'B T']:
    """Separates padded mixtures that have `counts` frames, each by its own query; T = N * hop.

    Args:
        config: of the model.
        weights: of the folded network.
        bounds: see `LevelState`; None: the network hears the mixtures at their own level.
        padded: the mixtures.
        counts: of their frames.
        embeddings: of their queries.
    """
    window, hop = config.window_size, config.hop_size
    spectra = stft(padded, window, hop, center=False)
    valid = jnp.arange(spectra.shape[1]) < counts[:, None]
    shifts = folded.query_shifts(config, weights, embeddings)
    state = None if bounds is None else start_level(config, bounds, len(padded))
    heard, _ = leveled(config, spectra, 0, counts, state)
    mask = folded.whole_mask(config, weights, shifts, folded.features(weights, heard, valid), valid)
    return istft(spectra * mask, window, hop, length=spectra.shape[1] * hop, frame_count=counts)


_separate_rows_on_one_device = jax.jit(separate_rows, static_argnums=0)
