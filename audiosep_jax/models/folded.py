"""The trained network for separation: constants are folded, and a recording can go through it whole or in pieces.

**Folding.** With running statistics a batch norm is a scale and a shift per channel, and FiLM adds to the shift: the
scales are computed once, the shifts once per query. The last 1×1 convolution follows another linear layer, so it is
folded into the last 3×3 convolution and its shortcut, which then make 3 maps instead of 32.

**Pieces.** Only the 3×3 convolutions and the pooling by two mix frames. A convolution that keeps its last two input
frames from one piece to the next computes what it would compute on the whole recording, one frame later; shortcuts and
skip connections wait in delay lines of the same length. Therefore pieces need no overlap and leave no seam, whatever
their length, and memory holds one piece and the delay lines. The output is late by `look_ahead` frames, which is how
far ahead the network looks.

**Packing.** For TPUs, neighboring bins are packed into the channels, as in training (packing.py). `fold` makes kernels
and norms for packed arrays; how far they are packed shows in the first layer's kernel.

**Equalizer.** If the weights have an entry `equalizer` (equalizer.py), its gains are computed along with the shifts,
and the masks are those of the network and the equalizer together.

Frames before the beginning and past the end are zeros to every convolution, as they are when the recording is whole.

Letters: B rows, N frames, F frequency bins, G groups of bins, C channels, p packing, E embedding size.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Complex, Complex64, Float, Int

from audiosep_jax.models import winograd
from audiosep_jax.models.audiosep import POWER_FLOOR, ModelConfig, init_variables
from audiosep_jax.models.convolution import average_pool, joined, matmul, native_conv3x3, product, upsample
from audiosep_jax.models.equalizer import gains, shared
from audiosep_jax.models.layers import DOWNSAMPLING, TIME_DOWNSAMPLING, Layer, block_layers
from audiosep_jax.models.normalization import LEAKY_SLOPE, NORM_EPSILON
from audiosep_jax.models.packing import pack_conv1x1, pack_conv3x3, packing_at, packing_of, packings_of, repack, tile
from audiosep_jax.models.resunet import Linear, complex_mask, maps_first, unpacked_maps

Weights = dict[str, Any]  # what `fold` returns
Frame = int | Int[Array, '']
# 'block/norm' -> [B, C]: running mean, bias and FiLM in one; 'equalizer' -> [B, F + 1]: its gains, if there is one
Shifts = dict[str, Array]
_MAKES_MAPS = ('conv2', 'shortcut')  # of the last block
_UNKNOWN_END = 2**30  # frames; the end of a recording whose length is not known yet


def fold(config: ModelConfig, variables: Mapping[str, Any], lanes: int = 1, *, transformed: bool = False) -> Weights:
    """Folds the `params` and `batch_stats` of an AudioSep into the weights that the functions of this module take.

    Kernels are of `config.dtype`. Scales, shifts and FiLM stay float32, as in training.

    Args:
        config: of the model.
        variables: of the model.
        lanes: how many channels the hardware computes at once (packing.lanes_of). 1: nothing is packed.
        transformed: transform the 3×3 kernels for which that is faster on a CPU (winograd.py). They get four times as
            large, and the weights of the article's network 216 MB instead of 102.
    """
    packing = _first_packing(config, lanes)
    params, statistics = variables['params'], variables['batch_stats']

    def affine(scale_bias: dict, running: dict) -> dict:
        scale = scale_bias['scale'] / jnp.sqrt(running['var'] + NORM_EPSILON)
        return {'scale': scale, 'shift': scale_bias['bias'] - running['mean'] * scale}

    norms: dict[str, dict] = {}
    blocks: dict[str, dict] = {}
    for layer in block_layers(config.widths):
        if layer.kind == 'norm':
            norm = affine(_subtree(params, layer.path), _subtree(statistics, layer.path))
            norms[f'{layer.block}/{layer.name}'] = norm
        else:
            blocks.setdefault(layer.block, {})[layer.name] = _subtree(params, layer.path)
    params, statistics = params['resunet'], statistics['resunet']
    last = f'decoder_block{len(config.widths)}'
    blocks[last] = _with_last_layer(blocks[last], params['after_conv'])
    for layer in block_layers(config.widths):
        if layer.kind == 'norm':
            name = f'{layer.block}/{layer.name}'
            norms[name] = {key: _tile(x, layer, packing) for key, x in norms[name].items()}
        elif layer.kind != 'transposed' and (layer.block != last or layer.name not in _MAKES_MAPS):
            # `upsample` packs its kernel itself.
            block = blocks[layer.block]
            block[layer.name] = _packed(block[layer.name], _inputs(layer), packing_at(packing, layer.scale[1]))
    dtype = jnp.dtype(config.dtype)
    blocks = jax.tree.map(lambda x: x.astype(dtype), blocks)
    if transformed:
        for layer in block_layers(config.widths):
            # In the deepest blocks, a piece of a recording has so few frames that reading the kernels takes longest.
            if layer.kind == 'conv3x3' and layer.scale[0] < TIME_DOWNSAMPLING:
                kernels = blocks[layer.block]
                if winograd.pays(kernels[layer.name]):
                    kernels[layer.name] = winograd.transform_kernel(kernels[layer.name])
    return {
        'norm0': affine(params['norm0'], statistics['norm0']),
        'norms': norms,
        'film': params['film'],
        'pre_conv': jax.tree.map(lambda x: x.astype(dtype), params['pre_conv']),
        'blocks': blocks,
    }


def _subtree(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda branch, key: branch[key], path, tree)


def _with_last_layer(block: dict, layer: dict) -> dict:
    """Folds the last 1×1 convolution into the last decoder block."""
    kernel, bias, shortcut = layer['kernel'], layer['bias'], block['shortcut']
    return {
        **block,
        'conv2': matmul(block['conv2'], kernel),
        'shortcut': {
            'kernel': matmul(shortcut['kernel'], kernel),
            'bias': matmul(shortcut['bias'], kernel) + bias,
        },
    }


def _packed(weights: Any, inputs: int, packing: int) -> Any:
    """Returns a convolution's weights for packed arrays, of which so many lie side by side in its input."""
    if isinstance(weights, dict):
        parts = jnp.split(weights['kernel'], inputs)
        kernel = jnp.concatenate([pack_conv1x1(part, packing) for part in parts])
        return {'kernel': kernel, 'bias': tile(weights['bias'], packing)}
    return jnp.concatenate([pack_conv3x3(part, packing) for part in jnp.split(weights, inputs, axis=2)], axis=2)


def _with_packed_maps(block: dict, packing: int) -> dict:
    """Packs the kernels of the last block whose results are the maps. They were left to who knows the rows."""
    packed = {'conv2': _packed(block['conv2'], 1, packing), 'shortcut': _packed(block['shortcut'], 2, packing)}
    return {**block, **jax.tree.map(lambda x: maps_first(x, packing), packed)}


def _tile(x: Float[Array, '*B C'], layer: Layer, first: int) -> Float[Array, '*B pC']:
    """Repeats what belongs to each channel of a norm for packed arrays."""
    packing = packing_at(first, layer.scale[1])
    return jnp.concatenate([tile(part, packing) for part in jnp.split(x, _inputs(layer), axis=-1)], axis=-1)


def _lanes(config: ModelConfig, weights: Weights) -> int:
    """Returns how many channels the first block computes at once, or 1 if nothing is packed."""
    channels = weights['norms']['encoder_block1/norm1']['scale'].size
    return channels if channels > config.widths[0] else 1


def _first_packing(config: ModelConfig, lanes: int) -> int:
    return packing_of(lanes, config.widths[0], config.window_size // 2)


def _inputs(layer: Layer) -> int:
    """Returns how many arrays lie side by side in the channels of a layer's input: in decoders those of the skip."""
    return 2 if layer.block.startswith('decoder') and layer.name in ('norm1', 'conv1', 'shortcut') else 1


def query_shifts(config: ModelConfig, weights: Weights, embedding: Float[Array | np.ndarray, 'B E']) -> Shifts:
    """Computes what depends on the query embeddings alone: the shifts [B, pC] of every batch norm, and the gains."""
    layers = [layer for layer in block_layers(config.widths) if layer.kind == 'norm']
    sizes, first = [layer.outputs for layer in layers], _first_packing(config, _lanes(config, weights))
    fused = matmul(embedding.astype(jnp.float32), weights['film']['kernel']) + weights['film']['bias']
    shifts: Shifts = {}
    for layer, share in zip(layers, jnp.split(fused, np.cumsum(sizes)[:-1], axis=-1), strict=True):
        name = f'{layer.block}/{layer.name}'
        shifts[name] = weights['norms'][name]['shift'] + _tile(share, layer, first)
    if 'equalizer' in weights:
        shifts['equalizer'] = gains(weights['equalizer'], embedding)
    return shifts


def features(weights: Weights, spectrum: Complex[Array, 'B N F'], valid: Bool[Array, 'B N']) -> Float[Array, 'B N F-1']:
    """Turns mixture spectra into the input of the first convolution, which is zero where a frame is not `valid`."""
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    magnitude = jnp.sqrt(jnp.maximum(power, POWER_FLOOR))
    normalized = magnitude * weights['norm0']['scale'] + weights['norm0']['shift']
    return jnp.where(valid[..., None], normalized, 0)[..., :-1]


def whole_mask(
    config: ModelConfig, weights: Weights, shifts: Shifts, x: Float[Array, 'B N F'], valid: Bool[Array, 'B N']
) -> Complex64[Array, 'B N F+1']:
    """Computes the masks of whole recordings from their `features`, where N is a multiple of 32."""
    maps = _maps(config, weights, shifts, x, _Whole()).values
    return _as_mask(weights, shifts, maps, valid)


def piece_mask(
    config: ModelConfig,
    weights: Weights,
    shifts: Shifts,
    x: Float[Array, 'B N F'],
    start: Frame,
    count: Frame,
    state: list[Array],
) -> tuple[Complex64[Array, 'B N F+1'], list[Array]]:
    """Computes the masks of the frames that come `look_ahead` before those of a piece.

    Args:
        config: of the model.
        weights: of the folded network.
        shifts: of the query.
        x: `features` of the piece, where N is a multiple of 32.
        start: the piece's first frame in the recording; each piece follows the one before.
        count: the number of frames in the recording. While that is unknown, any number that is at least the number of
            frames so far.
        state: what the piece before returned, or `initial_state` for the first piece.

    Returns:
        The mask, zero outside the recording; and the state for the next piece.
    """
    time = _Pieces(start, -(-count // TIME_DOWNSAMPLING) * TIME_DOWNSAMPLING, state)
    maps = _maps(config, weights, shifts, x, time)
    frame = start - maps.delay + jnp.arange(x.shape[1])
    return _as_mask(weights, shifts, maps.values, (frame >= 0) & (frame < count)), time.new_state


def look_ahead(config: ModelConfig) -> int:
    """Returns how many frames late the masks of `piece_mask` are, which depends on the number of blocks alone."""
    return _look_ahead(len(config.widths))


@functools.cache
def _look_ahead(blocks: int) -> int:
    return _trace_pieces(ModelConfig(window_size=128, hop_size=64, widths=(1,) * blocks), 1, 1)[0]


def initial_state(config: ModelConfig, weights: Weights, rows: int) -> list[Array]:
    """Returns the state of `piece_mask` at the beginning of `rows` recordings: zeros."""
    _, state = _trace_pieces(config, rows, _lanes(config, weights))
    return [jnp.zeros(shape.shape, shape.dtype) for shape in state]


@functools.cache
def _trace_pieces(config: ModelConfig, rows: int, lanes: int) -> tuple[int, list[jax.ShapeDtypeStruct]]:
    """Finds the delay and the shapes of the state by tracing the network without computing anything."""
    delays: list[int] = []

    def run(weights: Weights, x: Array) -> list[Array]:
        time = _Pieces(0, _UNKNOWN_END, None)
        maps = _maps(config, weights, query_shifts(config, weights, jnp.zeros((rows, config.condition_size))), x, time)
        delays.append(maps.delay)
        return time.new_state

    variables = jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))
    weights = jax.eval_shape(functools.partial(fold, config, lanes=lanes), variables)
    x = jax.ShapeDtypeStruct((rows, TIME_DOWNSAMPLING, config.window_size // 2), jnp.float32)
    state = jax.eval_shape(run, weights, x)
    return delays[0], state


# ---- the network -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Activations:
    """Activations at one level of the network.

    Attributes:
        values: [B, n, G, pC].
        packing: how many bins are side by side in the channels.
        scale: frames of the spectrogram that one frame of these stands for.
        delay: how late they are, in their own frames.
    """

    values: Array
    packing: int
    scale: int = 1
    delay: int = 0

    def map(self, function: Callable[[Array], Array]) -> '_Activations':
        """Applies a function that treats each frame by itself."""
        return dataclasses.replace(self, values=function(self.values))


class _Whole:
    """Runs the network over whole recordings, where nothing is late."""

    def conv3x3(self, x: _Activations, kernel: Array) -> _Activations:
        return x.map(lambda values: _convolve3x3(values, kernel))

    def delay_to(self, x: _Activations, delay: int) -> _Activations:
        return x


class _Pieces:
    """Runs the network over one piece: takes what the piece before left in `state`, and fills `new_state`.

    Args:
        start: the piece's first frame.
        end: the frame at which the padded recording ends.
        state: None means that only shapes matter; all values are then taken to be zero.
    """

    def __init__(self, start: Frame, end: Frame, state: list[Array] | None):
        self._start, self._end = start, end
        self._state = None if state is None else iter(state)
        self.new_state: list[Array] = []

    def conv3x3(self, x: _Activations, kernel: Array) -> _Activations:
        frame = self._start // x.scale - x.delay + jnp.arange(x.values.shape[1])
        inside = (frame >= 0) & (frame < self._end // x.scale)
        values = self._append_to_last(jnp.where(inside[:, None, None], x.values, 0), 2)
        self.new_state[-1] = values[:, -2:]
        y = _convolve3x3(values, kernel, frame_padding=0)
        return dataclasses.replace(x, values=y, delay=x.delay + 1)

    def delay_to(self, x: _Activations, delay: int) -> _Activations:
        more = delay - x.delay
        if not more:
            return x
        values = self._append_to_last(x.values, more)
        self.new_state[-1] = values[:, -more:]
        return dataclasses.replace(x, values=values[:, :-more], delay=delay)

    def _append_to_last(self, values: Array, frames: int) -> Array:
        """Puts the last `frames` frames of the piece before in front of the values."""
        shape = (values.shape[0], frames, *values.shape[2:])
        before = jnp.zeros(shape, values.dtype) if self._state is None else next(self._state)
        self.new_state.append(before)
        return jnp.concatenate([before, values], axis=1)


def _convolve3x3(x: Array, kernel: Array, *, frame_padding: int = 1) -> Array:
    x = repack(x, kernel.shape[2])
    convolve = winograd.convolve if winograd.is_transformed(kernel) else native_conv3x3
    return convolve(x, kernel, frame_padding=frame_padding)


def _maps(
    config: ModelConfig, weights: Weights, shifts: Shifts, x: Float[Array, 'B N F'], time: _Whole | _Pieces
) -> _Activations:
    """Computes the three output maps float32 [B, N, F, 3] from `features`, as `ResUNet30` in resunet.py does."""
    dtype, last = jnp.dtype(config.dtype), f'decoder_block{len(config.widths)}'
    lanes = _lanes(config, weights)
    rows = x.shape[0] if lanes > 1 else 1  # exported programs, where nothing is packed, take any number of rows
    packings = packings_of(lanes, config.widths[0], x.shape[2], rows)
    blocks = {**weights['blocks'], last: _with_packed_maps(weights['blocks'][last], packings.maps)}

    def activate(inputs: list[_Activations], name: str) -> _Activations:
        ends = _ends(inputs)
        scales, shifts_ = (
            jnp.split(x, ends, axis=-1) for x in (weights['norms'][name]['scale'], shifts[name][:, None, None, :])
        )
        activations = [
            jax.nn.leaky_relu(x.values.astype(jnp.float32) * scale + shift, LEAKY_SLOPE).astype(dtype)
            for x, scale, shift in zip(inputs, scales, shifts_, strict=True)
        ]
        return dataclasses.replace(inputs[0], values=joined(activations, -1))

    def conv_block(inputs: list[_Activations], name: str) -> _Activations:
        """Computes a block of inputs side by side. Only their activations are joined: each join is a copy."""
        block = blocks[name]
        y = time.conv3x3(activate(inputs, f'{name}/norm1'), block['conv1'])
        y = time.conv3x3(activate([y], f'{name}/norm2'), block['conv2'])
        around = inputs[0]
        if 'shortcut' in block:
            kernels = jnp.split(block['shortcut']['kernel'], len(inputs))
            values = [repack(x.values, kernel.shape[0]) for x, kernel in zip(inputs, kernels, strict=True)]
            parts = [*map(product, values, kernels)]
            around = around.map(lambda _: functools.reduce(jnp.add, parts) + block['shortcut']['bias'])
        around = time.delay_to(around, y.delay)
        return y.map(lambda v: v + around.values)

    first = Linear(**weights['pre_conv']).packed(packings.bins, dtype)
    values = repack(first(repack(x[..., None].astype(dtype), packings.bins)), packings.first * config.widths[0])
    level = _Activations(values, packings.first)
    skips, downsampling = [], DOWNSAMPLING[: len(config.widths)]
    for i, (frames, bins) in enumerate(downsampling, 1):
        level = conv_block([level], f'encoder_block{i}')
        # Pooling must group the same frames as in the whole recording.
        level = time.delay_to(level, -(-level.delay // frames) * frames)
        skips.append(level)
        pooled = average_pool(level.values, (frames, bins), level.packing)
        packing = packing_at(level.packing, bins)
        level = _Activations(pooled, packing, level.scale * frames, level.delay // frames)
    level = conv_block([level], 'bottleneck')
    for i, ((frames, _), skip) in enumerate(zip(reversed(downsampling), reversed(skips), strict=True), 1):
        name = f'decoder_block{i}'
        y = activate([level], f'{name}/norm_up').values
        y = upsample(y, blocks[name]['upsample'], (level.packing, skip.packing))
        delay = level.delay * frames
        skip = time.delay_to(skip, delay)
        level = conv_block([dataclasses.replace(skip, values=y, delay=delay), skip], name)
    return level.map(lambda v: unpacked_maps(v.astype(jnp.float32)))


def _ends(inputs: list[_Activations]) -> list[int]:
    """Returns where, in the channels of inputs side by side, one ends and the next begins."""
    return list(np.cumsum([x.values.shape[-1] for x in inputs])[:-1])


def _as_mask(
    weights: Weights, shifts: Shifts, maps: Float[Array, 'B N F 3'], valid: Bool[Array, '... N']
) -> Complex64[Array, 'B N F+1']:
    valid = valid[..., None]
    # The network does not see the top bin; its mask is zero.
    mask = jnp.pad(jnp.where(valid, complex_mask(maps), 0), [(0, 0), (0, 0), (0, 1)])
    if 'equalizer' in weights:
        mask = jnp.where(valid, shared(weights['equalizer'], mask, shifts['equalizer']), 0)
    return mask
