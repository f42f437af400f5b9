"""Builds ONNX graphs and writes their files.

The operators are those of opset 17, which runtimes have had since 2022.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.storage.atomic import replacing

if TYPE_CHECKING:
    import onnx

OPSET = 17
_IR_VERSION = 8  # what came out with opset 17; by default the package writes its newest, which older runtimes refuse
_SMALL = 1024  # bytes; smaller constants stay in the graph, where runtimes look for shapes
_ALIGNMENT = 4096  # so that a runtime can map the tensors of a file into memory
END = np.iinfo(np.int64).max  # of a slice

Value = str | np.ndarray | np.generic  # the name of a value in the graph, or a constant


def import_onnx() -> None:
    """Checks that the package `onnx` is installed. Raises ConfigError."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'audiosep_jax[export]', or --format stablehlo"
        raise ConfigError(f'ONNX needs the package onnx: {remedy}') from error


class Graph:
    """A graph in the making. Calling it adds a node: `graph('Add', x, y)` returns the name of the sum.

    Args:
        name: of the graph.
    """

    def __init__(self, name: str):
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[bytes, str] = {}
        self._tensors: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __call__(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, count: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Adds a node that has `count` outputs, and returns their names."""
        from onnx import helper

        name = f'{operator}_{len(self._nodes)}'
        outputs = [name] if count == 1 else [f'{name}:{i}' for i in range(count)]
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self._nodes.append(helper.make_node(operator, names, outputs, name=name, **attributes))
        return outputs

    def constant(self, value: np.ndarray | np.generic, name: str = '') -> str:
        """Returns the name of a constant. Equal ones are stored once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(value).reshape(np.shape(value))
        key = f'{array.dtype} {array.shape} '.encode() + hashlib.sha256(array.tobytes()).digest()
        if key not in self._constants:
            self._constants[key] = name or f'constant_{len(self._constants)}'
            self._tensors.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def input(self, name: str, dtype: Any, shape: Sequence[str | int]) -> str:
        """Adds an input of the graph; names in its shape are sizes that may differ from call to call."""
        self._inputs.append(_declared(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[str | int]) -> None:
        """Makes a value an output of the graph."""
        from onnx import helper

        self._nodes.append(helper.make_node('Identity', [value], [name], name=f'output {name}'))
        self._outputs.append(_declared(name, dtype, shape))

    def state(self, name: str, dtype: Any, shape: Sequence[str | int]) -> str:
        """Adds an input for what the piece before left."""
        return self.input(f'state_{name}', dtype, shape)

    def keep(self, name: str, value: str, dtype: Any, shape: Sequence[str | int]) -> None:
        """Makes a value an output that is the state of this name for the next piece."""
        self.output(value, f'new_state_{name}', dtype, shape)

    # ---- what the graphs have in common --------------------------------------------------------------------------

    def size(self, x: str, axis: int) -> str:
        """Returns the size of an axis, int64 [1]."""
        return self('Shape', x, start=axis, end=axis + 1)

    def cut(self, x: str, axis: int, start: Value | int = 0, end: Value | int = END) -> str:
        """Returns x[start:end] along an axis."""
        return self('Slice', x, _index(start), _index(end), _index(axis))

    def shaped(self, x: str, *sizes: Value | int) -> str:
        """Reshapes to sizes: numbers, or vectors of the graph. -1 is what remains."""
        return self('Reshape', x, self('Concat', *(_index(size) for size in sizes), axis=0))

    def pad_end(self, x: str, rank: int, axis: int, amount: Value | int) -> str:
        """Appends zeros along an axis, of a float32 array."""
        before = np.zeros(rank + axis, np.int64)
        after = np.zeros(rank - 1 - axis, np.int64)
        parts = [before, _index(amount), after] if after.size else [before, _index(amount)]
        return self('Pad', x, self('Concat', *parts, axis=0))

    def count_to(self, size: str) -> str:
        """Returns 0, 1, … below a size [1], int64."""
        scalar = self('Squeeze', size, np.array([0]))
        return self('Range', np.int64(0), scalar, np.int64(1))

    def model(self, metadata: Mapping[str, str]) -> 'onnx.ModelProto':
        """Returns the finished model."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._tensors)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid('', OPSET)],
            ir_version=_IR_VERSION,
            producer_name='audiosep_jax',
            producer_version=metadata.get('audiosep_jax', ''),
        )
        helper.set_model_props(model, {**metadata, 'opset': str(OPSET)})
        return model


def _index(value: Value | int) -> Value:
    return np.array([value], np.int64) if isinstance(value, int) else value


def _declared(name: str, dtype: Any, shape: Sequence[str | int]) -> 'onnx.ValueInfoProto':
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def cast_to(dtype: Any) -> int:
    """Returns the attribute `to` of the operator Cast."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def as_type(array: Any, dtype: np.dtype) -> np.ndarray:
    """Converts weights. Raises CheckpointError if they are too large for the type."""
    array = np.asarray(array)
    with np.errstate(over='ignore'):
        converted = array.astype(dtype)
    if not np.isfinite(converted).all():
        raise CheckpointError(f'some of its weights do not fit {dtype}, or are not finite: export float32')
    return converted


@dataclasses.dataclass
class WeightsFile:
    """A file beside the graphs that holds their large constants, each once however many graphs have it.

    Attributes:
        path: of the file, which is made.
    """

    path: Path

    def __post_init__(self) -> None:
        self._places: dict[bytes, tuple[int, int]] = {}
        self.path.touch()

    def take(self, model: 'onnx.ModelProto') -> None:
        """Moves the large constants of a model into the file."""
        from onnx import TensorProto
        from onnx.external_data_helper import set_external_data

        with open(self.path, 'ab') as file:
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) < _SMALL:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in self._places:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    self._places[key] = file.tell(), len(data)
                    file.write(data)
                offset, length = self._places[key]
                set_external_data(tensor, self.path.name, offset, length)
                tensor.ClearField('raw_data')
                tensor.data_location = TensorProto.EXTERNAL


def save(model: 'onnx.ModelProto', path: Path, weights: WeightsFile | None = None) -> None:
    """Checks a model and writes it.

    Args:
        model: the model.
        path: of its file.
        weights: the file for its large constants; None: they stay inside.
    """
    import onnx

    if weights is not None:
        weights.take(model)
    with replacing(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)
