"""The files of graphs: constants once, inside or beside; what does not fit; and the package that may be missing."""

import sys

import numpy as np
import onnx
import pytest
from support.onnx_runs import run, session_of

from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.export.graph import OPSET, Graph, WeightsFile, as_type, import_onnx, save

LARGE = np.arange(1000, dtype=np.float32)


def product(name='product', other=2.0):
    graph = Graph(name)
    x = graph.input('x', np.float32, ('n', 1000))
    y = graph('Add', graph('Mul', x, LARGE), graph('Mul', graph.constant(LARGE.copy()), np.float32(other)))
    graph.output(y, 'y', np.float32, ('n', 1000))
    return graph


def test_a_model_says_what_it_needs_and_holds_equal_constants_once(tmp_path):
    save(product().model({'sample_rate': '8000'}), tmp_path / 'm.onnx')
    model = onnx.load(tmp_path / 'm.onnx')
    assert {p.key: p.value for p in model.metadata_props} == {'sample_rate': '8000', 'opset': str(OPSET)}
    assert [o.version for o in model.opset_import] == [OPSET]
    assert [list(t.dims) for t in model.graph.initializer] == [[1000], []]
    (y,) = run(session_of(tmp_path / 'm.onnx'), x=np.ones((2, 1000), np.float32))
    np.testing.assert_array_equal(y, np.stack([3 * LARGE] * 2))


def test_graphs_share_the_weights_beside_them(tmp_path):
    weights = WeightsFile(tmp_path / 'weights.bin')
    for name, other in (('a', 2.0), ('b', 3.0)):
        save(product(name, other).model({}), tmp_path / f'{name}.onnx', weights)
    assert (tmp_path / 'weights.bin').stat().st_size == LARGE.nbytes
    for name, factor in (('a', 3), ('b', 4)):
        assert (tmp_path / f'{name}.onnx').stat().st_size < LARGE.nbytes
        (y,) = run(session_of(tmp_path / f'{name}.onnx'), x=np.ones((1, 1000), np.float32))
        np.testing.assert_array_equal(y[0], factor * LARGE)


def test_weights_that_do_not_fit_are_an_error():
    with pytest.raises(CheckpointError, match='do not fit float16, or are not finite: export float32'):
        as_type([1e6], np.dtype('float16'))
    with pytest.raises(CheckpointError, match='not finite'):
        as_type([np.nan], np.dtype('float32'))


def test_the_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ConfigError, match=r"pip install 'audiosep_jax\[export\]'"):
        import_onnx()
