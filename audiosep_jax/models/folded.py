"""The network as it is used once it is trained: constants folded, and run whole or piece by piece with one result.

**Folded.** With running statistics a batch norm is a scale and a shift per channel, and FiLM adds to the shift: scales
are computed once, shifts once per query. The last 1×1 layer is linear after linear: it is folded into the last
convolution and its shortcut, which then make 3 maps instead of 32.

**Piece by piece.** All that mixes frames in this network is 3×3 convolutions and pooling by two. A convolution that
keeps its last two input frames from one piece to the next computes just what it would in the whole recording, one frame
later; shortcuts and skip connections wait in delay lines of the same length. So the pieces need no overlap and leave no
seam, whatever their length, and the memory is that of one piece and of the delay lines. What comes out is late by
`look_ahead()` frames, which is how far ahead the network looks.

Frames before the beginning and past the end are zeros to every convolution, as its padding is in the whole.

Letters: B rows, N frames, F frequency bins, C channels, E embedding size.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.models.audiosep import POWER_FLOOR, ModelConfig, init_variables
from audiosep_jax.models.convolution import average_pool, conv1x1, matmul, native_conv3x3, upsample
from audiosep_jax.models.resunet import (
    DOWNSAMPLING,
    LEAKY_SLOPE,
    NORM_EPSILON,
    TIME_DOWNSAMPLING,
    complex_mask,
    film_layout,
)

Shifts = dict[str, jax.Array]  # 'block/norm' -> [B, C]: running mean, bias and FiLM as one
_NO_END = 2**30  # frames; of a recording whose length is not known yet


def fold(config: ModelConfig, variables: dict) -> dict:
    """`params` and `batch_stats` of an AudioSep -> what the functions of this file take, arrays of `config.dtype`.

    Scales, shifts and FiLM stay float32, as in training.
    """
    params, statistics = variables['params']['resunet'], variables['batch_stats']['resunet']

    def affine(scale_bias: dict, running: dict) -> dict:
        scale = scale_bias['scale'] / jnp.sqrt(running['var'] + NORM_EPSILON)
        return {'scale': scale, 'shift': scale_bias['bias'] - running['mean'] * scale}

    norms = {}
    for name in film_layout(config.widths):
        block, norm = name.split('/')
        of_params, of_statistics = params[block], statistics[block]
        if norm != 'norm_up' and 'conv_block' in of_params:
            of_params, of_statistics = of_params['conv_block'], of_statistics['conv_block']
        norms[name] = affine(of_params[norm]['norm'], of_statistics[norm]['norm'])
    blocks = {}
    for block in dict.fromkeys(name.split('/')[0] for name in norms):
        parts = params[block].get('conv_block', params[block])
        blocks[block] = {key: parts[key] for key in ('conv1', 'conv2', 'shortcut') if key in parts}
        if 'upsample' in params[block]:
            blocks[block]['upsample'] = params[block]['upsample']
    last = f'decoder_block{len(config.widths)}'
    blocks[last] = _with_last_layer(blocks[last], params['after_conv'])
    dtype = jnp.dtype(config.dtype)
    return {
        'norm0': affine(params['norm0'], statistics['norm0']),
        'norms': norms,
        'film': params['film'],
        'pre_conv': jax.tree.map(lambda x: x.astype(dtype), params['pre_conv']),
        'blocks': jax.tree.map(lambda x: x.astype(dtype), blocks),
    }


def _with_last_layer(block: dict, layer: dict) -> dict:
    """The last decoder block, so that it gives what the 1×1 layer makes of its output."""
    kernel, bias, shortcut = layer['kernel'], layer['bias'], block['shortcut']
    return {
        **block,
        'conv2': matmul(block['conv2'], kernel),
        'shortcut': {
            'kernel': matmul(shortcut['kernel'], kernel),
            'bias': matmul(shortcut['bias'], kernel) + bias,
        },
    }


def query_shifts(config: ModelConfig, network: dict, embedding: jax.Array) -> Shifts:
    """Embeddings [B, E] -> the shifts of every batch norm, [B, C] each."""
    layout = film_layout(config.widths)
    fused = matmul(embedding.astype(jnp.float32), network['film']['kernel']) + network['film']['bias']
    shares = jnp.split(fused, np.cumsum(list(layout.values()))[:-1], axis=-1)
    return {name: network['norms'][name]['shift'] + share for name, share in zip(layout, shares, strict=True)}


def features(network: dict, spectrum: jax.Array, valid: jax.Array) -> jax.Array:
    """Mixture spectra complex64 [B, N, F] -> what the network sees, [B, N, F - 1]; zero where not `valid` [B, N]."""
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    magnitude = jnp.sqrt(jnp.maximum(power, POWER_FLOOR))
    normalised = magnitude * network['norm0']['scale'] + network['norm0']['shift']
    return jnp.where(valid[..., None], normalised, 0)[..., :-1]


def whole_mask(config: ModelConfig, network: dict, shifts: Shifts, x: jax.Array, valid: jax.Array) -> jax.Array:
    """Features [B, N, F - 1] of whole recordings, N a multiple of 32 -> complex64 masks [B, N, F]."""
    maps = _maps(config, network, shifts, x, _Whole()).values
    return _as_mask(maps, valid)


def piece_mask(
    config: ModelConfig, network: dict, shifts: Shifts, x: jax.Array, start: jax.Array, count: jax.Array, state: list
) -> tuple[jax.Array, list]:
    """The masks of the frames `look_ahead()` before those of a piece, and the state after it.

    Args:
        config: of the model.
        network: folded.
        shifts: of the query.
        x: features of the piece, [B, N, F - 1] with N a multiple of 32.
        start: int, the piece's first frame in the recording; pieces follow each other.
        count: int, how many frames the recording has, as far as that is known: at least those of the pieces so far.
        state: what the piece before has left; `initial_state` for the first.

    Returns:
        complex64 [B, N, F], zero outside the recording; the new state.
    """
    time = _Pieces(start, -(-count // TIME_DOWNSAMPLING) * TIME_DOWNSAMPLING, state)
    maps = _maps(config, network, shifts, x, time)
    frame = start - maps.delay + jnp.arange(x.shape[1])
    return _as_mask(maps.values, (frame >= 0) & (frame < count)), time.left


@functools.cache
def look_ahead() -> int:
    """How many frames late the masks of `piece_mask` are. It is the same for every configuration."""
    return _traced_pieces(ModelConfig(window_size=128, hop_size=64, widths=(1,) * 6), 1)[0]


def initial_state(config: ModelConfig, rows: int) -> list:
    """The state of `piece_mask` at the beginning of recordings: zeros."""
    return [jnp.zeros(shape.shape, shape.dtype) for shape in _traced_pieces(config, rows)[1]]


@functools.cache
def _traced_pieces(config: ModelConfig, rows: int) -> tuple[int, list[jax.ShapeDtypeStruct]]:
    """The delay and the shapes of the state, found by following the network without computing anything."""
    delays: list[int] = []

    def run(network: dict, x: jax.Array):
        time = _Pieces(0, _NO_END, None)
        maps = _maps(config, network, query_shifts(config, network, jnp.zeros((rows, config.condition_size))), x, time)
        delays.append(maps.delay)
        return time.left

    variables = jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))
    network = jax.eval_shape(functools.partial(fold, config), variables)
    x = jax.ShapeDtypeStruct((rows, TIME_DOWNSAMPLING, config.window_size // 2), jnp.float32)
    state = jax.eval_shape(run, network, x)
    return delays[0], state


# ---- the network -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Frames:
    """Activations [B, n, F, C] at one frame of every `scale`, which are `delay` (of those) late."""

    values: jax.Array
    scale: int = 1
    delay: int = 0

    def map(self, function) -> '_Frames':
        """A function of each frame alone."""
        return dataclasses.replace(self, values=function(self.values))


class _Whole:
    """The recording at once: nothing is late."""

    def conv3x3(self, x: _Frames, kernel: jax.Array) -> _Frames:
        return x.map(lambda values: native_conv3x3(values, kernel))

    def delayed(self, x: _Frames, delay: int) -> _Frames:
        return x


class _Pieces:
    """One piece after the other: takes what the piece before has left in `state` and leaves as much in `left`.

    Args:
        start: the piece's first frame.
        end: where the (padded) recording ends, frames.
        state: None: only the shapes matter, it is as if all were zero.
    """

    def __init__(self, start: jax.Array, end: jax.Array, state: list | None):
        self._start, self._end = start, end
        self._state = None if state is None else iter(state)
        self.left: list[jax.Array] = []

    def conv3x3(self, x: _Frames, kernel: jax.Array) -> _Frames:
        frame = self._start // x.scale - x.delay + jnp.arange(x.values.shape[1])
        inside = (frame >= 0) & (frame < self._end // x.scale)
        values = self._after_last(jnp.where(inside[:, None, None], x.values, 0), 2)
        self.left[-1] = values[:, -2:]
        return _Frames(native_conv3x3(values, kernel, frame_padding=0), x.scale, x.delay + 1)

    def delayed(self, x: _Frames, delay: int) -> _Frames:
        more = delay - x.delay
        if not more:
            return x
        values = self._after_last(x.values, more)
        self.left[-1] = values[:, -more:]
        return _Frames(values[:, :-more], x.scale, delay)

    def _after_last(self, values: jax.Array, frames: int) -> jax.Array:
        shape = (values.shape[0], frames, *values.shape[2:])
        before = jnp.zeros(shape, values.dtype) if self._state is None else next(self._state)
        self.left.append(before)
        return jnp.concatenate([before, values], axis=1)


def _maps(config: ModelConfig, network: dict, shifts: Shifts, x: jax.Array, time: _Whole | _Pieces) -> _Frames:
    """Features [B, N, F - 1] -> the three output maps [B, N, F - 1, 3], float32 (`ResUNet30` in resunet.py)."""
    dtype, blocks = jnp.dtype(config.dtype), network['blocks']

    def activated(x: _Frames, name: str) -> _Frames:
        scale, shift = network['norms'][name]['scale'], shifts[name][:, None, None, :]
        return x.map(lambda v: jax.nn.leaky_relu(v.astype(jnp.float32) * scale + shift, LEAKY_SLOPE).astype(dtype))

    def conv_block(x: _Frames, name: str) -> _Frames:
        block = blocks[name]
        y = time.conv3x3(activated(x, f'{name}/norm1'), block['conv1'])
        y = time.conv3x3(activated(y, f'{name}/norm2'), block['conv2'])
        if 'shortcut' in block:
            x = x.map(lambda v: conv1x1(v, **block['shortcut']))
        x = time.delayed(x, y.delay)
        return y.map(lambda v: x.values + v)

    x = _Frames(conv1x1(x[..., None].astype(dtype), **network['pre_conv']))
    skips = []
    for i, (frames, bins) in enumerate(DOWNSAMPLING, 1):
        x = conv_block(x, f'encoder_block{i}')
        # Pooling must take the same frames together as in the whole.
        x = time.delayed(x, -(-x.delay // frames) * frames)
        skips.append(x)
        x = _Frames(average_pool(x.values, (frames, bins)), x.scale * frames, x.delay // frames)
    x = conv_block(x, 'bottleneck')
    for i, ((frames, _), skip) in enumerate(zip(reversed(DOWNSAMPLING), reversed(skips), strict=True), 1):
        name = f'decoder_block{i}'
        y = upsample(activated(x, f'{name}/norm_up').values, blocks[name]['upsample'])
        delay = x.delay * frames
        skip = time.delayed(skip, delay)
        x = conv_block(_Frames(jnp.concatenate([y, skip.values], axis=-1), skip.scale, delay), name)
    return x.map(lambda v: v.astype(jnp.float32))


def _as_mask(maps: jax.Array, valid: jax.Array) -> jax.Array:
    mask = jnp.where(valid[..., None], complex_mask(maps), 0)
    # The top bin, which the network does not see, stays silent.
    return jnp.pad(mask, [(0, 0), (0, 0), (0, 1)])
