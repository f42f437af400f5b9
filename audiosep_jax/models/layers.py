"""The network's layers as a table, from which its costs and the names of the original's tensors are derived.

`resunet` (training) and `folded` (separation) spell out the same layers as computations. tests/models/test_layers.py
checks that the table and both networks have the same parameters.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

# (frames, bins) of each encoder block. Networks with fewer blocks, for small machines, have the first of them.
DOWNSAMPLING = ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (1, 2))
# The same for every network, so that recordings are cut and padded alike.
TIME_DOWNSAMPLING = 32  # N is padded to a multiple of this
FREQUENCY_DOWNSAMPLING = 64  # F - 1 must be a multiple of this

Path = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that has parameters.

    Attributes:
        block: `encoder_block1`, `bottleneck`, `decoder_block1`, …; empty outside of the blocks.
        name: name within the block.
        kind: `norm` is a batch norm, `transposed` a transposed convolution whose stride is its kernel, `film` the
            linear layer that makes the shifts of all batch norms in the blocks.
        inputs: channels of its input.
        outputs: channels of its output.
        kernel: (frames, bins) of a convolution's kernel.
        scale: (frames, bins) of the spectrogram that one position of its input stands for.
    """

    block: str
    name: str
    kind: Literal['norm', 'conv3x3', 'conv1x1', 'transposed', 'film']
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    scale: tuple[int, int] = (1, 1)

    @property
    def path(self) -> Path:
        """The layer's place in the `params` (and `batch_stats`) of an `AudioSep`."""
        in_conv_block = self.block not in ('', 'bottleneck') and self.name not in ('norm_up', 'upsample')
        path = ('resunet', *([self.block] if self.block else []), *(['conv_block'] if in_conv_block else []), self.name)
        return (*path, 'norm') if self.kind == 'norm' and self.block else path

    @property
    def shapes(self) -> dict[Path, Shape]:
        """The layer's arrays: path in an AudioSep's variables, from `params` or `batch_stats` on -> shape."""
        params, statistics = ('params', *self.path), ('batch_stats', *self.path)
        if self.kind == 'norm':
            paths = ((*params, 'scale'), (*params, 'bias'), (*statistics, 'mean'), (*statistics, 'var'))
            return dict.fromkeys(paths, (self.outputs,))
        if self.kind == 'conv3x3':
            return {params: (*self.kernel, self.inputs, self.outputs)}
        if self.kind == 'transposed':
            return {params: (self.inputs, *self.kernel, self.outputs)}
        return {(*params, 'kernel'): (self.inputs, self.outputs), (*params, 'bias'): (self.outputs,)}


def network_layers(widths: tuple[int, ...], *, window_size: int, condition_size: int) -> list[Layer]:
    """All layers in the order of the forward pass, except that `film`, which depends on the query alone, is first."""
    bins = window_size // 2 + 1
    return [
        Layer('', 'film', 'film', condition_size, sum(film_layout(widths).values())),
        Layer('', 'norm0', 'norm', bins, bins),
        Layer('', 'pre_conv', 'conv1x1', 1, widths[0]),
        *block_layers(widths),
        Layer('', 'after_conv', 'conv1x1', widths[0], 3),
    ]


def block_layers(widths: tuple[int, ...]) -> list[Layer]:
    """The layers of the encoder blocks, the bottleneck and the decoder blocks, in the order of the forward pass."""
    layers: list[Layer] = []
    inputs, scale = widths[0], (1, 1)
    downsampling = DOWNSAMPLING[: len(widths)]
    for i, (outputs, factors) in enumerate(zip(widths, downsampling, strict=True), 1):
        layers += _conv_block(f'encoder_block{i}', inputs, outputs, scale)
        inputs, scale = outputs, (scale[0] * factors[0], scale[1] * factors[1])
    layers += _conv_block('bottleneck', inputs, inputs, scale)
    mirrored = zip(reversed(widths), reversed(downsampling), strict=True)
    for i, (outputs, factors) in enumerate(mirrored, 1):
        block = f'decoder_block{i}'
        layers.append(Layer(block, 'norm_up', 'norm', inputs, inputs, scale=scale))
        layers.append(Layer(block, 'upsample', 'transposed', inputs, outputs, factors, scale))
        inputs, scale = outputs, (scale[0] // factors[0], scale[1] // factors[1])
        # Half of the channels come over the skip connection.
        layers += _conv_block(block, 2 * outputs, outputs, scale)
    return layers


def _conv_block(block: str, inputs: int, outputs: int, scale: tuple[int, int]) -> Iterator[Layer]:
    yield Layer(block, 'norm1', 'norm', inputs, inputs, scale=scale)
    yield Layer(block, 'conv1', 'conv3x3', inputs, outputs, (3, 3), scale)
    yield Layer(block, 'norm2', 'norm', outputs, outputs, scale=scale)
    yield Layer(block, 'conv2', 'conv3x3', outputs, outputs, (3, 3), scale)
    if inputs != outputs:
        yield Layer(block, 'shortcut', 'conv1x1', inputs, outputs, scale=scale)


def film_layout(widths: tuple[int, ...]) -> dict[str, int]:
    """The batch norms that FiLM shifts, in the order of its fused output: 'block/norm' -> channels."""
    return {f'{layer.block}/{layer.name}': layer.outputs for layer in block_layers(widths) if layer.kind == 'norm'}
