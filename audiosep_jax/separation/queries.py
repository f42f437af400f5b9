"""Queries: what to extract, in words, by example, by image or by embedding; combinations; and sounds to exclude.

    Query.text('a dog barking')
    Query.audio_file('dog.wav')                         # CLAP models: a sound like this one
    Query.image('dog.png')                              # CLIP models
    Query.vector(embedding)                             # an embedding, as it is
    Query.vector_file('dog.query')                      # one that was learnt from examples (query_learning/)
    0.7 * Query.text('a dog') + 0.3 * Query.audio_file('dog.wav')
    Query.text('music').without('singing', 'applause')

**Combinations.** The embedding of Σ wᵢ·qᵢ has the direction of Σ wᵢ·vᵢ and the average length of its parts,
Σ wᵢ·|vᵢ| / Σ wᵢ: embeddings of length 1 (`words`, CLAP, CLIP) give one of length 1. The embedding of a query with one
part is that of the part, unchanged. Weights are positive, and only their proportion matters.

**Sounds to exclude (negative queries)** act in two places, which were chosen by measurement (`benchmarks/queries.py`):

1. In the embedding (`embed`). The query's embedding p loses what it shares with the embeddings nₖ of the sounds to
   exclude, and keeps its length: it becomes p − Σ cₖ·(nₖ − m) with those cₖ ≥ 0 that leave the least of p − m. Here m
   is the mean of 32 unrelated captions, which is what all captions share: little with `words`, much with CLIP, whose
   embeddings fill a narrow cone (Liang et al., arXiv 2203.02053). Only those nₖ count for which the cosine of p − m and
   nₖ − m exceeds 0.2, which unrelated sounds do not reach by chance. So 'rain and speech' without 'speech' becomes
   'rain', and a query that did not mention the excluded sound stays as it is. Subtracting a fixed share of nₖ does
   harm, because the network never saw such embeddings in training. The nₖ in turn lose what they share with p, so that
   'engine' without 'engine outdoors' turns down the outdoors and less of the engine.
2. In the spectrum (`exclusion.exclude`), where the target is turned down wherever a sound to exclude is louder.

Letters: Q queries, K sounds to exclude, E embedding size, T samples.
"""

import dataclasses
import logging
import math
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union

import jax
import numpy as np
from jaxtyping import Float, Float32

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.samples import check_audio
from audiosep_jax.encoders.base import QueryEncoder, same_encoder
from audiosep_jax.errors import AudioFileError, EncoderMismatchError, QueryError, listed
from audiosep_jax.separation.query_files import LearntQuery
from audiosep_jax.storage.npy_files import read_npy

_log = logging.getLogger(__name__)

# Unrelated captions: their mean is what all captions share.
_CAPTIONS = (
    'a dog barking', 'a man speaking', 'rain falling on a roof', 'an acoustic guitar', 'a car engine starting',
    'birds singing', 'a crowd cheering', 'glass breaking', 'footsteps on gravel', 'a telephone ringing',
    'thunder', 'a baby crying', 'a piano melody', 'an airplane flying over', 'waves on a beach',
    'a door slamming', 'a hammer hitting wood', 'church bells', 'a cat meowing', 'drums',
    'water dripping into a sink', 'a siren passing', 'wind in the trees', 'typing on a keyboard', 'a woman laughing',
    'a train on its tracks', 'fire crackling', 'insects buzzing', 'a violin', 'an explosion',
    'a clock ticking', 'frying food',
)  # fmt: skip
# Embeddings with a cosine up to this are unrelated; with `words`, captions without a common word stay below 0.15.
_CHANCE_COSINE = 0.2
# A query that keeps less than this share of its embedding (a cosine above 0.98) asks for what it excludes.
_MIN_REMAINDER = 0.2
# A sum that is shorter than this share of its parts has no meaningful direction.
_CANCELED = 1e-3


@dataclasses.dataclass(frozen=True)
class _Text:
    text: str

    def __str__(self) -> str:
        return self.text


# The parts below are equal only to themselves (eq=False), because a comparison of arrays is not a truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class _NamedPart:
    name: str

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, eq=False)
class _Audio(_NamedPart):
    waveform: np.ndarray
    sample_rate: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Image(_NamedPart):
    image: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _Vector(_NamedPart):
    values: np.ndarray
    learnt: LearntQuery | None = None


_Part = _Text | _Audio | _Image | _Vector


@dataclasses.dataclass(frozen=True)
class Query:
    """What to extract: weighted parts, and sounds to exclude. Made by its class methods, `without`, `+` and `*`.

    `str(query)` names it in a few words, for file names and messages.

    Attributes:
        terms: (weight, part) pairs with positive weights.
        unwanted: queries for the sounds to exclude.
    """

    terms: tuple[tuple[float, _Part], ...]
    unwanted: tuple['Query', ...] = ()

    # Makes numpy leave `np.float32(0.7) * query` to `__rmul__`, instead of making an array of objects.
    __array_ufunc__ = None

    @classmethod
    def text(cls, text: str) -> 'Query':
        """The sound that a sentence describes. Raises QueryError for a text without a visible character."""
        if not isinstance(text, str):
            raise QueryError(f'a text query is a string, got {type(text).__name__}')
        if not text.strip():
            raise QueryError('the query is empty: say in words what to extract, for example "a dog barking"')
        return cls(((1.0, _Text(text)),))

    @classmethod
    def audio(cls, waveform: np.ndarray, sample_rate: int, *, name: str = 'audio example') -> 'Query':
        """A sound like this one.

        Args:
            waveform: float [T] or [channels, T] in ±1; the mean of the channels is used.
            sample_rate: in Hz.
            name: the query's name in `str`.

        Raises:
            QueryError: another shape or type, silence, NaN or infinite samples, or a sample rate that is not above 0.
        """
        try:
            mono = check_audio(waveform, sample_rate).mean(axis=0, dtype=np.float32)
        except AudioFileError as error:
            raise QueryError(f'{name}: {error}') from None
        if not mono.any():
            raise QueryError(f'{name}: the audio is silent: give an example of the sound to extract')
        return cls(((1.0, _Audio(name, mono, sample_rate)),))

    @classmethod
    def audio_file(cls, path: str | Path) -> 'Query':
        """A sound like the one in this file, which is read at once.

        Raises:
            AudioFileError: the file cannot be read.
            QueryError: see `audio`.
        """
        waveform, sample_rate = read_audio(path, mono=True)
        return cls.audio(waveform, sample_rate, name=Path(path).name)

    @classmethod
    def image(cls, image: Any, *, name: str = 'image') -> 'Query':
        """The sound of what an image shows.

        Args:
            image: a path, a PIL.Image, or an array uint8 [H, W, 3].
            name: the query's name in `str`; a path is named by its file.

        Raises:
            QueryError: the file does not exist, or the array has another type or shape.
        """
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                raise QueryError(f'{image}: no such image file; check the name')
            image, name = Path(image), Path(image).name
        elif isinstance(image, np.ndarray | jax.Array):
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
                raise QueryError(f'{name}: an image array is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        return cls(((1.0, _Image(name, image)),))

    @classmethod
    def vector(cls, values: np.ndarray, *, name: str = 'vector') -> 'Query':
        """An embedding, which is used as it is.

        Args:
            values: real numbers [E].
            name: the query's name in `str`.

        Raises:
            QueryError: another shape or type, NaN or infinite numbers.
        """
        values = np.asarray(values)
        if not np.issubdtype(values.dtype, np.floating) and not np.issubdtype(values.dtype, np.integer):
            raise QueryError(f'{name}: an embedding is real numbers, got {values.dtype}')
        if values.ndim != 1 or not values.size:
            raise QueryError(f'{name}: an embedding has the shape [E], got {list(values.shape)}')
        if not np.isfinite(values).all():
            raise QueryError(f'{name}: the query embedding holds NaN or infinite numbers')
        return cls(((1.0, _Vector(name, values.astype(np.float32))),))

    @classmethod
    def vector_file(cls, path: str | Path) -> 'Query':
        """An embedding from a `.npy` file, [E] or [1, E], or from a file of a learnt query.

        Raises:
            QueryError: the file does not hold one.
        """
        try:
            with open(path, 'rb') as file:
                is_json = file.read(1) == b'{'
            if is_json:
                learnt, name = LearntQuery.load(path), Path(path).name
                cls.vector(learnt.embedding, name=name)  # raises for NaN or infinite numbers
                return cls(((1.0, _Vector(name, learnt.embedding, learnt)),))
            values = read_npy(path)
        except OSError as error:
            raise QueryError(f'{path}: cannot be read: {error.strerror or error}') from error
        except ValueError as error:
            raise QueryError(f'{path}: not a .npy file of numbers ({error}); write one with numpy.save') from error
        return cls.vector(values[0] if values.ndim == 2 and len(values) == 1 else values, name=Path(path).name)

    def without(self, *unwanted: Union[str, 'Query']) -> 'Query':
        """Returns this query with more sounds to exclude, given as texts or queries.

        Raises:
            QueryError: an empty text, or a query that itself excludes sounds.
        """
        queries = tuple(_as_query(query) for query in unwanted)
        for query in queries:
            if query.unwanted:
                raise QueryError(f'a sound to exclude cannot exclude others itself: {query}')
        return dataclasses.replace(self, unwanted=tuple(dict.fromkeys((*self.unwanted, *queries))))

    def __mul__(self, weight: float) -> 'Query':
        if not isinstance(weight, numbers.Real):
            return NotImplemented
        if not (weight > 0 and math.isfinite(weight)):
            raise QueryError(
                f'a weight must be above 0, got {weight}: exclude a sound by --not or Query.without instead'
            )
        return dataclasses.replace(self, terms=tuple((w * float(weight), part) for w, part in self.terms))

    __rmul__ = __mul__

    def __add__(self, other: 'Query') -> 'Query':
        if isinstance(other, numbers.Real) and other == 0:  # sum() starts with 0
            return self
        if not isinstance(other, Query):
            return NotImplemented
        return Query(self.terms + other.terms, tuple(dict.fromkeys(self.unwanted + other.unwanted)))

    __radd__ = __add__

    def __str__(self) -> str:
        if len(self.terms) == 1:
            name = str(self.terms[0][1])
        else:
            name = ' + '.join(str(part) if weight == 1 else f'{weight:g} {part}' for weight, part in self.terms)
        return ' not '.join([name, *map(str, self.unwanted)])


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of queries.

    Attributes:
        queries: what to extract.
        unwanted: the sounds that some query excludes, without what they share with the query. The network is asked for
            them as well. K may be 0.
        excluded: for each query the rows of `unwanted` that it excludes.
    """

    queries: Float32[np.ndarray, 'Q E']
    unwanted: Float32[np.ndarray, 'K E']
    excluded: tuple[tuple[int, ...], ...]


def as_queries(queries: str | Query | Sequence[str | Query] | np.ndarray) -> list[Query]:
    """Makes a list of queries from a text, a Query, several of them, or embeddings [E] or [Q, E].

    Raises:
        QueryError: no query, an empty text, or another type.
    """
    if isinstance(queries, str | Query):
        return [_as_query(queries)]
    if isinstance(queries, np.ndarray | jax.Array):
        array = np.atleast_2d(np.asarray(queries))
        if array.ndim != 2 or not array.size:
            raise QueryError(f'an embedding has the shape [E] or [Q, E], got {list(np.shape(queries))}')
        names = ['vector'] if len(array) == 1 else [f'vector {row + 1}' for row in range(len(array))]
        return [Query.vector(row, name=name) for row, name in zip(array, names, strict=True)]
    if not isinstance(queries, Sequence):
        raise QueryError('queries are texts, Query values, or one numpy array of embeddings')
    if not queries:
        raise QueryError('the query is empty: say in words what to extract, for example "a dog barking"')
    return [_as_query(query) for query in queries]


def embed(
    queries: str | Query | Sequence[str | Query] | np.ndarray, encoder: QueryEncoder | None, embedding_size: int
) -> Embedded:
    """Computes the embeddings of queries, by the arithmetic at the top of this file.

    Each different text is encoded once, and all of them in one call. So are images, and the audio examples of one
    sample rate.

    Args:
        queries: see `as_queries`.
        encoder: the model's query encoder; None: only vectors are understood.
        embedding_size: E, which the model takes.

    Raises:
        QueryError: see `as_queries`; a vector of another size; a kind of query for which the encoder has no tower;
            parts that cancel each other; a query that asks for exactly what it excludes.
        EncoderMismatchError: the encoder's embeddings have another size.
    """
    if isinstance(queries, np.ndarray | jax.Array):
        shape = np.shape(queries)
        if len(shape) not in (1, 2) or shape[-1] != embedding_size or not shape[0]:
            raise QueryError(
                f'an embedding has the shape [{embedding_size}] or [Q, {embedding_size}], got {list(shape)}'
            )
    asked = as_queries(queries)
    unwanted = [other for query in asked for other in query.unwanted]
    parts = [part for query in [*asked, *unwanted] for _, part in query.terms]
    references = [_Text(caption) for caption in _CAPTIONS] if unwanted and encoder is not None else []
    vectors = _encode_parts(list(dict.fromkeys([*parts, *references])), encoder, embedding_size)
    center = np.mean([vectors[part] for part in references], axis=0) if references else np.zeros(embedding_size)
    wanted, excluded = [], []
    rows: dict[bytes, tuple[int, np.ndarray]] = {}
    for query in asked:
        own = _combine(query, vectors)
        others = [_combine(other, vectors) for other in query.unwanted]
        wanted.append(_subtract_shared(own, others, center, query))
        without_own = [_subtract_shared(other, [own], center, query) for other in others]
        # Sounds that share nothing with any query have the same embedding for all, and need one row.
        excluded.append(tuple(rows.setdefault(other.tobytes(), (len(rows), other))[0] for other in without_own))
    all_unwanted = np.array([other for _, other in rows.values()], np.float32).reshape(-1, embedding_size)
    return Embedded(np.stack(wanted), all_unwanted, tuple(excluded))


def warn_of_other_networks(
    queries: str | Query | Sequence[str | Query] | np.ndarray, identity: Callable[[], str]
) -> None:
    """Logs a warning if queries were learnt for another network.

    Args:
        queries: see `as_queries`.
        identity: of this network, which takes a moment to compute.
    """
    parts = [part for query in as_queries(queries) for _, part in query.terms if isinstance(part, _Vector)]
    others = [str(part) for part in parts if part.learnt is not None and part.learnt.network != identity()]
    if others:
        _log.warning('%s: learnt with another checkpoint, so it may do worse: learn it with this one', listed(others))


def _as_query(query: str | Query) -> Query:
    if isinstance(query, Query):
        return query
    if isinstance(query, str):
        return Query.text(query)
    raise QueryError('queries are texts, Query values, or one numpy array of embeddings')


def _encode_parts(parts: list[_Part], encoder: QueryEncoder | None, embedding_size: int) -> dict[_Part, np.ndarray]:
    """Computes the embedding float32 [E] of every part."""
    vectors: dict[_Part, np.ndarray] = {}
    for part in parts:
        if isinstance(part, _Vector):
            _check_encoder(part, encoder)
            if len(part.values) != embedding_size:
                raise QueryError(
                    f'{part}: the model takes embeddings of the shape [{embedding_size}], got [{len(part.values)}]'
                )
            vectors[part] = part.values
    texts = [part for part in parts if isinstance(part, _Text)]
    if texts:
        rows = _tower(encoder, 'encode_text')([part.text for part in texts])
        vectors |= zip(texts, _check_embeddings(rows, len(texts), encoder, embedding_size), strict=True)
    examples = [part for part in parts if isinstance(part, _Audio)]
    for rate in dict.fromkeys(part.sample_rate for part in examples):
        group = [part for part in examples if part.sample_rate == rate]
        rows = _tower(encoder, 'encode_audio')([part.waveform for part in group], sample_rate=rate)
        vectors |= zip(group, _check_embeddings(rows, len(group), encoder, embedding_size), strict=True)
    images = [part for part in parts if isinstance(part, _Image)]
    if images:
        rows = _tower(encoder, 'encode_image')([part.image for part in images])
        vectors |= zip(images, _check_embeddings(rows, len(images), encoder, embedding_size), strict=True)
    return vectors


def _check_encoder(part: _Vector, encoder: QueryEncoder | None) -> None:
    """Raises QueryError for an embedding that was learnt with another encoder, which means nothing to this network."""
    if part.learnt is None or part.learnt.encoder is None or encoder is None:
        return
    if not same_encoder(part.learnt.encoder, encoder.identity()):
        raise QueryError(
            f'{part}: learnt with the encoder {part.learnt.encoder.get("name")!r} of {part.learnt.checkpoint}, this '
            f'model has {encoder.name!r} or other weights of it: learn it with this checkpoint'
        )


_KINDS = {'encode_text': 'text', 'encode_audio': 'audio examples', 'encode_image': 'images'}


def _tower(encoder: QueryEncoder | None, method: str) -> Callable[..., np.ndarray]:
    """Returns the encoder's method, or raises a QueryError that says what can be asked instead."""
    if encoder is None:
        raise QueryError(f'this separator has no encoder for {_KINDS[method]}: give embeddings')
    found = getattr(encoder, method, None)
    if not callable(found):
        able = [kind for name, kind in _KINDS.items() if callable(getattr(encoder, name, None))]
        raise QueryError(
            f'the encoder {encoder.name!r} does not understand {_KINDS[method]}: this model is asked by '
            f'{" or ".join([*able, "a vector"])}'
        )
    return found


def _check_embeddings(rows: np.ndarray, count: int, encoder: QueryEncoder | None, embedding_size: int) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    if rows.shape != (count, embedding_size):
        raise EncoderMismatchError(
            f'the encoder {encoder and encoder.name!r} gave {list(rows.shape)} for {count} queries, the model takes '
            f'{[count, embedding_size]}'
        )
    if not np.isfinite(rows).all():
        raise QueryError('the query embedding holds NaN or infinite numbers')
    return rows


def _combine(query: Query, vectors: dict[_Part, np.ndarray]) -> Float32[np.ndarray, ' E']:
    """Combines the parts of a query to one embedding, without the sounds to exclude."""
    if len(query.terms) == 1:
        return vectors[query.terms[0][1]]
    weights = np.array([weight for weight, _ in query.terms], np.float64)
    parts = np.stack([vectors[part] for _, part in query.terms]).astype(np.float64)
    weights /= weights.max()
    total = weights @ parts
    lengths = weights @ np.linalg.norm(parts, axis=1)
    length = np.linalg.norm(total)
    if length <= _CANCELED * lengths:
        raise QueryError(f'the parts of the query cancel each other: {query}; change the weights')
    return (total * (lengths / weights.sum() / length)).astype(np.float32)


def _subtract_shared(
    embedding: Float32[np.ndarray, ' E'], others: list[np.ndarray], center: Float[np.ndarray, ' E'], query: Query
) -> Float32[np.ndarray, ' E']:
    """Subtracts from an embedding what it shares with others [E], and restores its length."""
    if not others:
        return embedding
    own, rows = (embedding - center).astype(np.float64), (np.stack(others) - center).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    length = np.linalg.norm(own)
    related = rows @ own > _CHANCE_COSINE * length * lengths
    if not related.any():
        return embedding
    # Imported here because every program that only trains would pay for it.
    from scipy.optimize import nnls

    directions = rows[related] / lengths[related, None]
    shares, remainder = nnls(directions.T, own)
    if remainder < _MIN_REMAINDER * length:
        raise QueryError(f'the query asks for exactly what it excludes: {query}')
    rest = embedding - shares @ directions
    return (rest * (np.linalg.norm(embedding) / np.linalg.norm(rest))).astype(np.float32)
