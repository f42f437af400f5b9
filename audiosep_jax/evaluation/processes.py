"""What the processes of one evaluation tell each other."""

import json
from typing import Any

import jax
import numpy as np

from audiosep_jax.hosts import wait_for_all


def gathered(value: Any) -> list[Any]:
    """The JSON-ready values of all processes, in their order, on every process. All of them must call it."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    wait_for_all('gathered')

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    # Arrays of one size: shorter texts have zeros behind.
    rows = np.asarray(process_allgather(np.pad(data, (0, int(lengths.max()) - len(data))))).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
