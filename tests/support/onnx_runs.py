"""Runs ONNX graphs in tests."""

from pathlib import Path

import numpy as np
import onnxruntime

from audiosep_jax.export.graph import Graph


def session_of(graph: Graph | Path) -> onnxruntime.InferenceSession:
    """A session of one thread: by default there are as many as cores, and they wait in busy loops."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = str(graph) if isinstance(graph, Path) else graph.model({}).SerializeToString()
    return onnxruntime.InferenceSession(model, options)


def run(session: onnxruntime.InferenceSession, **inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs in their order."""
    return session.run(None, inputs)


def run_pieces(session: onnxruntime.InferenceSession, pieces: list[dict[str, np.ndarray]], **sizes: int) -> list[list]:
    """The outputs of each piece that are no states; those go from piece to piece, from zeros on.

    Args:
        session: of a graph for pieces.
        pieces: the inputs of each that are no states.
        sizes: of the axes that have a name.
    """
    state = {}
    for value in session.get_inputs():
        if value.name.startswith('state_'):
            dtype = np.float16 if value.type == 'tensor(float16)' else np.float32
            state[value.name] = np.zeros([sizes.get(size, size) for size in value.shape], dtype)
    names, outputs = [value.name for value in session.get_outputs()], []
    for piece in pieces:
        found = dict(zip(names, session.run(names, piece | state), strict=True))
        state = {name: found.pop(f'new_{name}') for name in state}
        outputs.append(list(found.values()))
    return outputs
