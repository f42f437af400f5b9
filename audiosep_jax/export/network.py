"""The mask network as an ONNX graph, for whole recordings or for pieces: the computations of `models/folded.py`.

The graph is written out, because jax2onnx 0.17 does not know `lax.platform_dependent`, by which the convolutions choose
how they are computed, and cannot be installed beside the Orbax of this project.

Arrays are [B, C, N, F] here. A batch norm is a multiplication and a sum; the scale of the second norm of each block is
folded into the convolution before it.

Letters: B rows, N frames, F frequency bins, C channels, E embedding size.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from audiosep_jax.export.graph import Graph, Value, as_type, cast_to
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import LEAST, Equalizer
from audiosep_jax.models.folded import Weights
from audiosep_jax.models.layers import DOWNSAMPLING, TIME_DOWNSAMPLING, block_layers
from audiosep_jax.models.normalization import LEAKY_SLOPE

MAGNITUDE_FLOOR = np.float32(1e-5)  # the root of audiosep.POWER_FLOOR
_MASK_FLOOR = np.float32(1e-20)  # as in resunet.complex_mask


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a piece is in its recording.

    Attributes:
        start: its first frame, int64 [1].
        count: how many frames the recording has, int64 [1].
    """

    start: Value
    count: Value


@dataclasses.dataclass(frozen=True)
class _Activations:
    """Activations [B, channels, n, bins] at one level; `scale` and `delay` are those of `folded._Activations`."""

    values: str
    channels: int
    bins: int
    scale: int = 1
    delay: int = 0


class _Whole:
    """Runs the network over whole recordings, where nothing is late."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def conv3x3(self, x: _Activations, kernel: np.ndarray) -> _Activations:
        y = self._graph('Conv', x.values, kernel, pads=[1, 1, 1, 1])
        return dataclasses.replace(x, values=y, channels=len(kernel))

    def delay_to(self, x: _Activations, delay: int) -> _Activations:
        return x


class _Pieces:
    """Runs the network over a piece. What it keeps for the next one are inputs and outputs of the graph."""

    def __init__(self, graph: Graph, position: Position, dtype: np.dtype):
        self._graph, self._position, self._dtype, self._states = graph, position, dtype, 0
        blocks = graph(
            'Div', graph('Add', position.count, np.array([TIME_DOWNSAMPLING - 1])), np.array([TIME_DOWNSAMPLING])
        )
        self._end = graph('Mul', blocks, np.array([TIME_DOWNSAMPLING]))

    def conv3x3(self, x: _Activations, kernel: np.ndarray) -> _Activations:
        graph, scale = self._graph, np.array([x.scale])
        start, end = graph('Div', self._position.start, scale), graph('Div', self._end, scale)
        inside = inside_recording(graph, x.values, 2, graph('Sub', start, np.array([x.delay])), end)
        inside = graph('Cast', inside, to=cast_to(self._dtype))
        values = self._after_last(dataclasses.replace(x, values=graph('Mul', x.values, inside)), 2)
        y = graph('Conv', values, kernel, pads=[0, 1, 0, 1])
        return dataclasses.replace(x, values=y, channels=len(kernel), delay=x.delay + 1)

    def delay_to(self, x: _Activations, delay: int) -> _Activations:
        more = delay - x.delay
        if not more:
            return x
        values = self._after_last(x, more)
        return dataclasses.replace(x, values=self._graph.cut(values, 2, 0, -more), delay=delay)

    def _after_last(self, x: _Activations, frames: int) -> str:
        """Puts the last frames of the piece before in front of the values, and keeps these values' own."""
        graph, name, shape = self._graph, f'{self._states:02}', ('batch', x.channels, frames, x.bins)
        self._states += 1
        values = graph('Concat', graph.state(name, self._dtype, shape), x.values, axis=2)
        graph.keep(name, graph.cut(values, 2, -frames), self._dtype, shape)
        return values


def inside_recording(graph: Graph, x: str, axis: int, first: Value, end: Value) -> str:
    """Returns a column, bool [n, 1], of which frames of x are in the recording: from 0 to `end`.

    Args:
        graph: the graph.
        x: whose axis is frames.
        axis: which axis.
        first: the number of the first of these frames, int64 [1].
        end: how many frames the recording has, int64 [1].
    """
    frame = graph('Add', graph.count_to(graph.size(x, axis)), first)
    inside = graph('And', graph('GreaterOrEqual', frame, np.int64(0)), graph('Less', frame, end))
    return graph('Unsqueeze', inside, np.array([1]))


@dataclasses.dataclass(frozen=True)
class MaskNetwork:
    """The network that a graph computes.

    Attributes:
        config: of the model.
        weights: what `folded.fold` made of its variables in float32, with nothing packed.
        dtype: type of the kernels and activations. The input's norm, the shifts and the mask are float32.
    """

    config: ModelConfig
    weights: Weights
    dtype: np.dtype

    @classmethod
    def fold(
        cls,
        config: ModelConfig,
        variables: dict[str, Any],
        dtype: str = 'float32',
        equalizer: Equalizer | None = None,
    ) -> 'MaskNetwork':
        """Folds a model's variables, with the equalizer of its checkpoint."""
        from audiosep_jax.models.folded import fold

        config = dataclasses.replace(config, dtype='float32')
        weights = jax.device_get(jax.jit(lambda v: fold(config, v))(variables))
        if equalizer is not None and equalizer.share:
            weights['equalizer'] = equalizer.weights()
        return cls(config, weights, np.dtype(dtype))

    def add(
        self, graph: Graph, magnitude: str, embedding: str, position: Position | None = None
    ) -> tuple[str, str, int]:
        """Adds the network to a graph.

        Args:
            graph: the graph.
            magnitude: of the mixture's spectrum, float32 [B, N, F]; N is a multiple of 32 if there is a `position`.
            embedding: of the queries, float32 [B, E].
            position: of the piece; None: the recording is whole.

        Returns:
            The mask's real and imaginary part, float32 [B, N, F], and by how many frames they are late.
        """
        x = self._features(graph, magnitude, position)
        time = _Whole(graph) if position is None else _Pieces(graph, position, self.dtype)
        maps = self._maps(graph, x, self._shifts(graph, embedding), time)
        values = maps.values
        if position is None:
            values = graph.cut(values, 2, 0, graph.size(magnitude, 1))
        real, imaginary = _complex_mask(graph, graph('Cast', values, to=cast_to(np.float32)))
        # The network does not see the top bin; its mask is zero.
        real, imaginary = graph.pad_end(real, 3, 2, 1), graph.pad_end(imaginary, 3, 2, 1)
        if 'equalizer' in self.weights:
            share = self.weights['equalizer']['share']
            real, imaginary = graph('Mul', real, 1 - share), graph('Mul', imaginary, 1 - share)
            real = graph('Add', real, graph('Mul', self._gains(graph, embedding), share))
        if position is not None:
            first = graph('Sub', position.start, np.array([maps.delay]))
            inside = inside_recording(graph, real, 1, first, position.count)
            inside = graph('Cast', inside, to=cast_to(np.float32))
            real, imaginary = graph('Mul', real, inside), graph('Mul', imaginary, inside)
        return real, imaginary, maps.delay

    def _gains(self, graph: Graph, embedding: str) -> str:
        """Does what `equalizer.gains` does: [B, 1, F]."""
        equalizer, least = self.weights['equalizer'], np.float32(LEAST)
        squared = graph('ReduceSum', graph('Mul', embedding, embedding), np.array([1]), keepdims=1)
        unit = graph('Div', embedding, graph('Sqrt', graph('Max', squared, least)))
        captions = graph.constant(equalizer['embeddings'].T / equalizer['temperature'], 'equalizer/embeddings')
        nearness = graph('Softmax', graph('Add', graph('MatMul', unit, captions), equalizer['log_counts']), axis=1)
        power = graph('MatMul', nearness, graph.constant(equalizer['power'], 'equalizer/power'))
        total = graph('Max', graph('Add', power, equalizer['mean']), least)
        return graph('Unsqueeze', graph('Div', power, total), np.array([1]))

    def _features(self, graph: Graph, magnitude: str, position: Position | None) -> _Activations:
        """Does what `folded.features` does, and pads whole recordings to a multiple of 32 frames."""
        norm, bins = self.weights['norm0'], self.config.window_size // 2
        x = graph('Mul', graph('Max', magnitude, MAGNITUDE_FLOOR), norm['scale'])
        x = graph.cut(graph('Add', x, norm['shift']), 2, 0, bins)
        if position is None:
            missing = graph('Mod', graph('Neg', graph.size(x, 1)), np.array([TIME_DOWNSAMPLING]))
            x = graph.pad_end(x, 3, 1, missing)
        else:
            inside = inside_recording(graph, x, 1, position.start, position.count)
            x = graph('Where', inside, x, np.float32(0))
        x = graph('Cast', graph('Unsqueeze', x, np.array([1])), to=cast_to(self.dtype))
        first = self.weights['pre_conv']
        kernel, bias = self._typed(first['kernel'].T[:, :, None, None]), self._typed(first['bias'])
        return _Activations(graph('Conv', x, kernel, bias), len(kernel), bins)

    def _shifts(self, graph: Graph, embedding: str) -> dict[str, str]:
        """Does what `folded.query_shifts` does: 'block/norm' -> [B, C, 1, 1]."""
        layers = [layer for layer in block_layers(self.config.widths) if layer.kind == 'norm']
        names = [f'{layer.block}/{layer.name}' for layer in layers]
        film, norms = self.weights['film'], self.weights['norms']
        bias = film['bias'] + np.concatenate([norms[name]['shift'] for name in names])
        fused = graph('Gemm', embedding, graph.constant(film['kernel'], 'film/kernel'), bias)
        fused = graph('Cast', graph('Unsqueeze', fused, np.array([2, 3])), to=cast_to(self.dtype))
        sizes = np.array([layer.outputs for layer in layers])
        return dict(zip(names, graph.several('Split', len(names), fused, sizes, axis=1), strict=True))

    def _maps(self, graph: Graph, level: _Activations, shifts: dict[str, str], time: _Whole | _Pieces) -> _Activations:
        """Does what `folded._maps` does. The three maps are the channels of the result."""

        def activate(x: _Activations, name: str, scaled: bool = False) -> _Activations:
            scale = self._typed(self.weights['norms'][name]['scale'][:, None, None])
            y = x.values if scaled else graph('Mul', x.values, scale)
            y = graph('LeakyRelu', graph('Add', y, shifts[name]), alpha=LEAKY_SLOPE)
            return dataclasses.replace(x, values=y)

        def conv_block(x: _Activations, name: str) -> _Activations:
            block = self.weights['blocks'][name]
            scale = self.weights['norms'][f'{name}/norm2']['scale']
            y = time.conv3x3(activate(x, f'{name}/norm1'), self._kernel(block['conv1'] * scale))
            y = time.conv3x3(activate(y, f'{name}/norm2', scaled=True), self._kernel(block['conv2']))
            late = time.delay_to(x, y.delay).values
            if 'shortcut' in block:
                kernel = self._typed(block['shortcut']['kernel'].T[:, :, None, None])
                late = graph('Conv', late, kernel, self._typed(block['shortcut']['bias']))
            return dataclasses.replace(y, values=graph('Add', y.values, late))

        skips, downsampling = [], DOWNSAMPLING[: len(self.config.widths)]
        for i, (frames, bins) in enumerate(downsampling, 1):
            level = conv_block(level, f'encoder_block{i}')
            # Pooling must group the same frames as in the whole recording.
            level = time.delay_to(level, -(-level.delay // frames) * frames)
            skips.append(level)
            pooled = graph('AveragePool', level.values, kernel_shape=[frames, bins], strides=[frames, bins])
            level = _Activations(
                pooled, level.channels, level.bins // bins, level.scale * frames, level.delay // frames
            )
        level = conv_block(level, 'bottleneck')
        for i, ((frames, bins), skip) in enumerate(zip(reversed(downsampling), reversed(skips), strict=True), 1):
            name, delay = f'decoder_block{i}', level.delay * frames
            kernel = self._typed(self.weights['blocks'][name]['upsample'].transpose(0, 3, 1, 2))
            y = activate(level, f'{name}/norm_up').values
            y = graph('ConvTranspose', y, kernel, strides=[frames, bins])
            both = graph('Concat', y, time.delay_to(skip, delay).values, axis=1)
            level = conv_block(dataclasses.replace(skip, values=both, channels=2 * skip.channels, delay=delay), name)
        return level

    def _typed(self, array: np.ndarray) -> np.ndarray:
        return as_type(array, self.dtype)

    def _kernel(self, kernel: np.ndarray) -> np.ndarray:
        return self._typed(kernel.transpose(3, 2, 0, 1))


def _complex_mask(graph: Graph, maps: str) -> tuple[str, str]:
    """Does what `resunet.complex_mask` does: float32 [B, 3, N, F - 1] -> two [B, N, F - 1]."""
    magnitude, real, imaginary = (
        graph('Squeeze', part, np.array([1])) for part in graph.several('Split', 3, maps, axis=1)
    )
    real, imaginary = graph('Tanh', real), graph('Tanh', imaginary)
    squared = graph('Add', graph('Mul', real, real), graph('Mul', imaginary, imaginary))
    gain = graph('Div', graph('Sigmoid', magnitude), graph('Sqrt', graph('Max', squared, _MASK_FLOOR)))
    return graph('Mul', gain, real), graph('Mul', gain, imaginary)


def mask_graph(network: MaskNetwork, *, pieces: bool) -> tuple[Graph, int]:
    """Returns the graph from magnitudes and embeddings to masks, and by how many frames those are late."""
    config = network.config
    graph = Graph('mask_pieces' if pieces else 'mask')
    shape = ('batch', 'frames', config.window_size // 2 + 1)
    magnitude = graph.input('magnitude', np.float32, shape)
    embedding = graph.input('embedding', np.float32, ('batch', config.condition_size))
    position = add_position(graph) if pieces else None
    real, imaginary, late = network.add(graph, magnitude, embedding, position)
    graph.output(real, 'mask_real', np.float32, shape)
    graph.output(imaginary, 'mask_imaginary', np.float32, shape)
    return graph, late


def add_position(graph: Graph) -> Position:
    """Adds the inputs that say where a piece is."""
    return Position(graph.input('start', np.int64, (1,)), graph.input('count', np.int64, (1,)))
