"""Files of learnt queries: an embedding with what it was learnt from, for which network, and how well it does.

A file is JSON of a few kilobytes, so that anybody can look into it.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from jaxtyping import Float32

from audiosep_jax.errors import DataError, QueryError
from audiosep_jax.storage.json_files import read_json, write_json

QUERY_SUFFIX = '.query'
_FORMAT = 'audiosep_jax query'
_VERSION = 1
_MAX_BYTES = 1 << 22
_BEFORE_AFTER = ('before', 'after')
_REMEDY = 'learn it again, or restore it from a backup'


class _Scores(TypedDict):
    sdri: float
    si_sdr: float
    background: float


class _Record(TypedDict):
    format: Literal['audiosep_jax query']
    version: int
    embedding: list[float]
    encoder: dict[str, Any] | None
    network: str
    checkpoint: str
    step: int | None
    start: str
    learnt: bool
    steps: int
    examples: list[str]
    backgrounds: list[str]
    held_out_mixtures: int
    before: _Scores
    after: _Scores


@dataclasses.dataclass(frozen=True)
class QueryScores:
    """Means over held-out mixtures, in dB.

    Attributes:
        sdri: improvement of the SDR over that of the mixture.
        si_sdr: scale-invariant SDR.
        background: level of what is extracted from backgrounds alone, relative to them; the lower, the better.
    """

    sdri: float
    si_sdr: float
    background: float


@dataclasses.dataclass(frozen=True, eq=False)
class LearntQuery:
    """An embedding learnt from examples of a sound. `learn_query` makes it, `--vector` and `Query.vector_file` use it.

    Attributes:
        embedding: the query.
        encoder: identity of the query encoder of the model that it was learnt for; None if the model has none.
        network: hash of the layer of the model that takes embeddings.
        checkpoint: where the model was read from.
        step: the training step of the model, if it is known.
        start: what learning started from, in words.
        learnt: whether this is what was learnt; False if nothing was better than the start, which it then is.
        steps: how many steps led to it.
        examples: names of the files with the sound.
        backgrounds: names of the files with other sounds; none if the backgrounds were procedural.
        held_out_mixtures: how many mixtures the scores were measured on.
        before: the scores of the start.
        after: the scores of the embedding.
    """

    embedding: Float32[np.ndarray, ' E']
    encoder: dict[str, Any] | None
    network: str
    checkpoint: str
    step: int | None
    start: str
    learnt: bool
    steps: int
    examples: tuple[str, ...]
    backgrounds: tuple[str, ...]
    held_out_mixtures: int
    before: QueryScores
    after: QueryScores

    def save(self, path: str | Path) -> None:
        """Writes the file; an existing one is replaced. Raises DataError if it cannot be written."""
        fields = dataclasses.asdict(self)
        fields['embedding'] = [float(x) for x in fields.pop('embedding')]  # last, because it is long
        record = {'format': _FORMAT, 'version': _VERSION, **fields}
        try:
            write_json(Path(path), record)
        except OSError as error:
            raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error

    @classmethod
    def load(cls, path: str | Path) -> 'LearntQuery':
        """Reads the file. Raises QueryError if it is none, or damaged."""
        header = read_json(Path(path), dict[str, Any], error=QueryError, remedy=_REMEDY, max_bytes=_MAX_BYTES)
        if header.get('format') != _FORMAT:
            raise QueryError(f'{path}: not a query file: make one with `audiosep-jax learn-query`')
        if isinstance(header.get('version'), int) and header['version'] > _VERSION:
            raise QueryError(f'{path}: written by a later version of audiosep_jax: upgrade, or learn the query again')
        record = read_json(Path(path), _Record, error=QueryError, remedy=_REMEDY, max_bytes=_MAX_BYTES)
        if not record['embedding']:
            raise QueryError(f'{path}: the embedding is empty: {_REMEDY}')
        values = {field.name: record[field.name] for field in dataclasses.fields(cls)}
        values |= {name: QueryScores(**{k: record[name][k] for k in _Scores.__annotations__}) for name in _BEFORE_AFTER}
        values |= {name: tuple(record[name]) for name in ('examples', 'backgrounds')}
        with np.errstate(over='ignore'):  # beyond float32 becomes infinite, which the query refuses
            embedding = np.asarray(record['embedding'], np.float32)
        return cls(**(values | {'embedding': embedding}))
