"""The whole separation as an ONNX graph, from samples to samples: what `separation/network.py` does on the device.

The STFT is a convolution with the window's sines and cosines, and its inverse the transposed convolution with the same
constants. Every runtime has these operators, while few can invert ONNX's own STFT; next to the network they take 4 % of
the time. All of it is float32, whatever the network is.

Letters: B rows, N frames, F frequency bins, T samples, S padded samples, K blocks of 32 frames, E embedding size.
"""

import dataclasses

import numpy as np

from audiosep_jax.audio.stft import WINDOW_SUM_FLOOR, hann_window
from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.export.graph import END, Graph, cast_to
from audiosep_jax.export.network import MaskNetwork, Position, add_position, inside_recording
from audiosep_jax.models.audiosep import POWER_FLOOR
from audiosep_jax.models.layers import TIME_DOWNSAMPLING
from audiosep_jax.separation.level import MAX_GAIN, SILENCE, level_bounds, level_frames


@dataclasses.dataclass(frozen=True)
class SeparationGraph:
    """Makes the graphs of a network between its STFT and the inverse.

    Attributes:
        network: the network.
        level: at which it hears the mixtures (`separation/level.py`); None: at their own.
    """

    network: MaskNetwork
    level: Level | None

    def whole(self) -> Graph:
        """Returns the graph from mixtures [B, channels, T] and embeddings to targets [B, channels, T]."""
        graph, hop, half = Graph('separate'), self._hop, self._window // 2
        shape = ('batch', 'channels', 'samples')
        mixture = graph.input('mixture', np.float32, shape)
        embedding = graph.input('embedding', np.float32, ('batch', self.network.config.condition_size))
        length = graph.size(mixture, 2)
        padded = graph('Gather', mixture, _reflected(graph, length, half), axis=2)
        spectra = self._stft(graph, padded)
        count = graph('Add', graph('Div', length, np.array([hop])), np.array([1]))
        power, _ = self._leveled(graph, _heard_power(graph, spectra), Position(np.array([0]), count), None)
        real, imaginary, _ = self.network.add(graph, graph('Sqrt', power), embedding)
        frames = self._overlapped(graph, _masked(graph, spectra, real, imaginary))
        ones = graph('Expand', np.ones((1, 1, 1), np.float32), graph('Concat', np.array([1, 1]), count, axis=0))
        target = graph('Div', frames, graph('Max', self._weight(graph, ones), np.float32(WINDOW_SUM_FLOOR)))
        target = graph.cut(target, 2, half, graph('Add', length, np.array([half])))
        graph.output(graph('Reshape', target, graph('Shape', mixture)), 'target', np.float32, shape)
        return graph

    def pieces(self) -> Graph:
        """Returns the graph from padded samples [B, channels, S] of N frames to those of `look_ahead` frames before.

        N is a multiple of 32, S = (N - 1) * hop + window, and N * hop samples come out.
        """
        graph, config, hop = Graph('separate_pieces'), self.network.config, self._hop
        samples = graph.input('samples', np.float32, ('batch', 'channels', 'samples'))
        embedding = graph.input('embedding', np.float32, ('batch', config.condition_size))
        position = add_position(graph)
        spectra = self._stft(graph, samples)
        sums = ('batch', self._level_blocks - 1)
        before = graph.state('level', np.float32, sums) if self.level is not None else None
        power, after = self._leveled(graph, _heard_power(graph, spectra), position, before)
        if after is not None:
            graph.keep('level', after, np.float32, sums)
        real, imaginary, late = self.network.add(graph, graph('Sqrt', power), embedding, position)
        waiting = ('batch', 'channels', 2, self._bins, late)
        everything = graph('Concat', graph.state('spectra', np.float32, waiting), spectra, axis=4)
        graph.keep('spectra', graph.cut(everything, 4, -late), np.float32, waiting)
        masked = _masked(graph, graph.cut(everything, 4, 0, -late), real, imaginary)
        first = graph('Sub', position.start, np.array([late]))
        inside = graph('Cast', inside_recording(graph, masked, 4, first, position.count), to=cast_to(np.float32))
        inside = graph('Transpose', inside, perm=[1, 0])  # the mask is zero outside; the windows have to be left out
        done = graph('Mul', graph.size(masked, 4), np.array([hop]))
        weight = self._weight(graph, graph('Unsqueeze', inside, np.array([0])))
        shape = ('batch', 'channels', self._window - hop)
        frames = self._overlapped(graph, masked)
        frames = graph.shaped(frames, graph.size(samples, 0), graph.size(samples, 1), -1)
        frames = graph('Add', frames, graph.pad_end(graph.state('tail', np.float32, shape), 3, 2, done))
        weight = graph('Add', weight, graph.pad_end(graph.state('weight', np.float32, (1, 1, shape[2])), 3, 2, done))
        graph.keep('tail', graph.cut(frames, 2, done), np.float32, shape)
        graph.keep('weight', graph.cut(weight, 2, done), np.float32, (1, 1, shape[2]))
        finished, weight = graph.cut(frames, 2, 0, done), graph.cut(weight, 2, 0, done)
        target = graph('Div', finished, graph('Max', weight, np.float32(WINDOW_SUM_FLOOR)))
        graph.output(target, 'target', np.float32, ('batch', 'channels', 'finished'))
        return graph

    @property
    def _window(self) -> int:
        return self.network.config.window_size

    @property
    def _hop(self) -> int:
        return self.network.config.hop_size

    @property
    def _bins(self) -> int:
        return self._window // 2 + 1

    def _basis(self, graph: Graph) -> str:
        """Returns the window times cosines and negative sines, float32 [2 F, 1, window], made in float64."""
        n = np.arange(self._window)
        # Whole turns are left out of the angles first, so that those are exact.
        angles = 2 * np.pi * (np.arange(self._bins)[:, None] * n % self._window) / self._window
        waves = np.concatenate([np.cos(angles), -np.sin(angles)]) * hann_window(self._window).astype(np.float64)
        return graph.constant(waves[:, None].astype(np.float32), 'stft')

    def _stft(self, graph: Graph, padded: str) -> str:
        """Returns the spectra of padded samples, [B, channels, 2, F, N]: the real and the imaginary parts."""
        batch, channels = graph.size(padded, 0), graph.size(padded, 1)
        rows = graph.shaped(padded, -1, 1, graph.size(padded, 2))
        spectra = graph('Conv', rows, self._basis(graph), strides=[self._hop])
        return graph.shaped(spectra, batch, channels, 2, self._bins, -1)

    def _overlapped(self, graph: Graph, spectra: str) -> str:
        """Returns the sums of the windowed frames, [B * channels, 1, S]."""
        # All bins but the first and the last stand for two.
        share = np.full((self._bins, 1), 2 / self._window, np.float32)
        share[[0, -1]] /= 2
        rows = graph.shaped(graph('Mul', spectra, share), -1, 2 * self._bins, graph.size(spectra, 4))
        return graph('ConvTranspose', rows, self._basis(graph), strides=[self._hop])

    def _weight(self, graph: Graph, frames: str) -> str:
        """Returns the sums of the squared windows of frames, which are 0 or 1, [1, 1, S]."""
        squared = (hann_window(self._window) ** 2)[None, None]
        return graph('ConvTranspose', frames, squared, strides=[self._hop])

    def _leveled(self, graph: Graph, power: str, position: Position, before: str | None) -> tuple[str, str | None]:
        """Does what `level.leveled` does, to power spectra [B, N, F], with their floor.

        Args:
            graph: the graph.
            power: of what the network is to hear.
            position: of the piece.
            before: the sums of the blocks before, [B, blocks]; None: the recording is whole.

        Returns:
            The power, and the sums for the next piece.
        """
        floor, bounds = np.float32(POWER_FLOOR), level_bounds(self.level)
        if bounds is None:
            return graph('Max', power, floor), None
        block, blocks = TIME_DOWNSAMPLING, self._level_blocks
        missing = graph('Mod', graph('Neg', graph.size(power, 1)), np.array([block]))
        squares = graph('MatMul', power, self._square_weights())
        if before is None:
            before = graph(
                'Expand', np.float32(0), graph('Concat', graph.size(power, 0), np.array([blocks - 1]), axis=0)
            )
        else:
            inside = inside_recording(graph, power, 1, position.start, position.count)
            squares = graph('Mul', squares, graph('Cast', inside, to=cast_to(np.float32)))
        squares = graph.shaped(graph.pad_end(squares, 3, 1, missing), graph.size(power, 0), -1, block)
        sums = graph('Concat', before, graph('ReduceSum', squares, np.array([2]), keepdims=0), axis=1)
        total = graph('Conv', graph('Unsqueeze', sums, np.array([1])), np.ones((1, 1, blocks), np.float32))
        total = graph('Squeeze', total, np.array([1]))
        end = graph('Mul', graph('Add', graph.count_to(graph.size(total, 1)), np.int64(1)), np.int64(block))
        end = graph('Add', end, position.start)
        begin = graph('Max', graph('Sub', end, np.array([blocks * block])), np.int64(0))
        measured = graph('Max', graph('Sub', graph('Min', end, position.count), begin), np.int64(1))
        mean = graph('Div', total, graph('Cast', measured, to=cast_to(np.float32)))
        wanted = graph('Clip', mean, *bounds)
        gain = graph('Div', wanted, graph('Max', mean, np.float32(SILENCE)))  # of the power
        gain = graph('Min', gain, np.float32(MAX_GAIN**2))
        gain = graph('Where', graph('Greater', mean, np.float32(SILENCE)), gain, np.float32(1))
        gain = graph('Expand', graph('Unsqueeze', gain, np.array([2])), np.array([1, 1, block]))
        gain = graph.cut(graph.shaped(gain, graph.size(power, 0), -1, 1), 1, 0, graph.size(power, 1))
        after = graph.cut(sums, 1, 1 - blocks) if blocks > 1 else graph.cut(sums, 1, END)
        return graph('Max', graph('Mul', power, gain), floor), after

    @property
    def _level_blocks(self) -> int:
        """Over how many blocks the level is measured."""
        return level_frames(self.network.config) // TIME_DOWNSAMPLING

    def _square_weights(self) -> np.ndarray:
        """Returns what turns a power spectrum into the mean square of its frame, [F, 1], as `level` computes it."""
        weights = np.full((self._bins, 1), 2.0)
        weights[[0, -1]] = 1
        return (weights / (self._window * np.sum(hann_window(self._window) ** 2))).astype(np.float32)


def _reflected(graph: Graph, length: str, half: int) -> str:
    """Returns the samples that make a signal padded by reflection, back and forth if it is short, int64 [S]."""
    scalar = graph('Squeeze', length, np.array([0]))
    place = graph('Range', np.int64(-half), graph('Add', scalar, np.int64(half)), np.int64(1))
    turn = graph('Max', graph('Sub', graph('Add', length, length), np.array([2])), np.array([1]))
    place = graph('Mod', place, turn)
    return graph('Where', graph('Less', place, length), place, graph('Sub', turn, place))


def _heard_power(graph: Graph, spectra: str) -> str:
    """Returns the power of the mean of the channels, [B, N, F]."""
    heard = graph('ReduceMean', spectra, axes=[1], keepdims=0)
    return graph('Transpose', graph('ReduceSumSquare', heard, axes=[1], keepdims=0), perm=[0, 2, 1])


def _masked(graph: Graph, spectra: str, real: str, imaginary: str) -> str:
    """Returns spectra [B, channels, 2, F, N] times a mask [B, N, F]."""
    a, b = graph.several('Split', 2, spectra, axis=2)
    c, d = (
        graph('Unsqueeze', graph('Transpose', part, perm=[0, 2, 1]), np.array([1, 2])) for part in (real, imaginary)
    )
    products = [[graph('Mul', x, y) for y in (c, d)] for x in (a, b)]
    return graph(
        'Concat',
        graph('Sub', products[0][0], products[1][1]),
        graph('Add', products[0][1], products[1][0]),
        axis=2,
    )
