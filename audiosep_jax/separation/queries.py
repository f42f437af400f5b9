"""Queries: what to extract, in words, as an example, as an image or as numbers, in combination, and what to keep out.

    Query.text('a dog barking')
    Query.audio_file('dog.wav')                         # CLAP models: a sound like this one
    Query.image('dog.png')                              # CLIP models
    Query.vector(embedding)                             # an embedding, as it is
    0.7 * Query.text('a dog') + 0.3 * Query.audio_file('dog.wav')
    Query.text('music').without('singing', 'applause')

**Combinations.** The embedding of Σ wᵢ·qᵢ points along Σ wᵢ·vᵢ and is as long as its parts are on average,
Σ wᵢ·|vᵢ| / Σ wᵢ: vectors of the length 1 (`words`, CLAP, CLIP) give one of the length 1. A query of one part is that
part, untouched. Weights are above 0, and only their proportion matters.

**What must stay out** is said in two places (chosen by measurement, `benchmarks/queries.py`):

1. In the embedding (`embed`). Of the query p, what it has in common with the unwanted nₖ is taken away, and the length
   restored: p − Σ cₖ·(nₖ − m) with the cₖ ≥ 0 that leave the least of p − m. Here m is the mean of 32 captions of all
   sorts, what captions have in common whatever they say: little with `words`, much with CLIP, whose embeddings fill a
   narrow cone (Liang et al., arXiv 2203.02053). Only those nₖ count for which the cosine of p − m and nₖ − m exceeds
   0.2, more than unrelated sounds come to by chance. So 'rain and speech' without 'speech' becomes 'rain', and a query
   that never mentioned the unwanted sound stays as it is. To subtract a fixed share of nₖ instead does harm: the
   network was never asked for such an embedding. The unwanted in turn lose what they have in common with p, so that
   'engine' without 'engine outdoors' turns down the outdoors and less of the engine.
2. In the spectrum (`keep_out`). The network is asked for the unwanted sounds as well, and where they are the louder
   ones the target gives way: its spectrum P becomes P·|P|⁴ / (|P|⁴ + Σ |s·Nₖ|⁴), with Nₖ the spectra of the unwanted
   and s the strength. The gain is one half where |P| = s·|N|.

Letters: Q queries, K unwanted sounds, E embedding size, T samples, N frames, F frequency bins.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import jax
import numpy as np

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.errors import EncoderMismatchError, QueryError

if TYPE_CHECKING:
    from audiosep_jax.encoders.base import QueryEncoder

# Captions of all sorts, whose mean is what belongs to none of them.
_CAPTIONS = (
    'a dog barking', 'a man speaking', 'rain falling on a roof', 'an acoustic guitar', 'a car engine starting',
    'birds singing', 'a crowd cheering', 'glass breaking', 'footsteps on gravel', 'a telephone ringing',
    'thunder', 'a baby crying', 'a piano melody', 'an airplane flying over', 'waves on a beach',
    'a door slamming', 'a hammer hitting wood', 'church bells', 'a cat meowing', 'drums',
    'water dripping into a sink', 'a siren passing', 'wind in the trees', 'typing on a keyboard', 'a woman laughing',
    'a train on its tracks', 'fire crackling', 'insects buzzing', 'a violin', 'an explosion',
    'a clock ticking', 'frying food',
)  # fmt: skip
# Cosines up to this are no likeness; `words` stays below 0.15 between captions without a common word.
_CHANCE_COSINE = 0.2
# A query of which less than this share is left (a cosine above 0.98) asked for just what is to stay out.
_LEAST_REMAINDER = 0.2
# A sum this much shorter than its parts points nowhere in particular.
_CANCELLED = 1e-3


@dataclasses.dataclass(frozen=True)
class _Text:
    text: str

    def __str__(self) -> str:
        return self.text


class _Named:
    def __str__(self) -> str:
        return self.name


# Arrays have no truth value when compared: such parts are equal only to themselves.
@dataclasses.dataclass(frozen=True, eq=False)
class _Audio(_Named):
    waveform: np.ndarray
    sample_rate: int
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Image(_Named):
    image: Any
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Vector(_Named):
    values: np.ndarray
    name: str


@dataclasses.dataclass(frozen=True)
class Query:
    """What to extract: parts with their weights, and what must stay out. Made by its methods, `+` and `*`.

    `str(query)` names it in a few words, for file names and messages.

    Attributes:
        terms: (weight, part) pairs, weights above 0.
        unwanted: queries whose sounds must stay out.
    """

    terms: tuple[tuple[float, Any], ...]
    unwanted: tuple['Query', ...] = ()

    # numpy leaves `np.float32(0.7) * query` to `__rmul__`, instead of making an array of objects.
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
            name: what `str` calls it.

        Raises:
            QueryError: another shape or type, silence, NaN or infinite samples, or a rate that is not above 0.
        """
        waveform = np.asarray(waveform)
        if not np.issubdtype(waveform.dtype, np.floating):
            raise QueryError(f'{name}: audio must be float in ±1, got {waveform.dtype}: divide int16 samples by 32768')
        if waveform.ndim not in (1, 2) or 0 in waveform.shape:
            raise QueryError(f'{name}: audio has the shape [T] or [channels, T], T > 0, got {list(waveform.shape)}')
        if not sample_rate > 0:
            raise QueryError(f'{name}: the sample rate must be above 0 Hz, got {sample_rate}')
        mono = np.atleast_2d(waveform).mean(axis=0, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise QueryError(f'{name}: the audio holds NaN or infinite samples')
        if not mono.any():
            raise QueryError(f'{name}: the audio is silent: give an example of the sound to extract')
        return cls(((1.0, _Audio(mono, sample_rate, name)),))

    @classmethod
    def audio_file(cls, path: str | Path) -> 'Query':
        """A sound like the one in this file, read at once. Raises AudioFileError, and QueryError as `audio` does."""
        waveform, sample_rate = read_audio(path, mono=True)
        return cls.audio(waveform, sample_rate, name=Path(path).name)

    @classmethod
    def image(cls, image: Any, *, name: str = 'image') -> 'Query':
        """The sound of what an image shows: a path, a PIL.Image, or uint8 [H, W, 3].

        Raises:
            QueryError: no such file, or an array of another type or shape.
        """
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                raise QueryError(f'{image}: no such image file; check the name')
            image, name = Path(image), Path(image).name
        elif isinstance(image, np.ndarray | jax.Array):
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
                raise QueryError(f'{name}: an image array is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        return cls(((1.0, _Image(image, name)),))

    @classmethod
    def vector(cls, values: np.ndarray, *, name: str = 'vector') -> 'Query':
        """An embedding, real numbers [E]; used as it is. Raises QueryError for another shape, NaN or infinity."""
        values = np.asarray(values)
        if not np.issubdtype(values.dtype, np.floating) and not np.issubdtype(values.dtype, np.integer):
            raise QueryError(f'{name}: an embedding is real numbers, got {values.dtype}')
        if values.ndim != 1 or not values.size:
            raise QueryError(f'{name}: an embedding has the shape [E], got {list(values.shape)}')
        if not np.isfinite(values).all():
            raise QueryError(f'{name}: the query embedding holds NaN or infinite numbers')
        return cls(((1.0, _Vector(values.astype(np.float32), name)),))

    @classmethod
    def vector_file(cls, path: str | Path) -> 'Query':
        """An embedding from a `.npy` file, [E] or [1, E]. Raises QueryError where there is none."""
        try:
            with open(path, 'rb') as file:
                values = np.lib.format.read_array(file, allow_pickle=False)
        except OSError as error:
            raise QueryError(f'{path}: cannot be read: {error.strerror or error}') from error
        except (ValueError, EOFError, MemoryError, OverflowError) as error:
            raise QueryError(f'{path}: not a .npy file of numbers; write one with numpy.save') from error
        return cls.vector(values[0] if values.ndim == 2 and len(values) == 1 else values, name=Path(path).name)

    def without(self, *unwanted: Union[str, 'Query']) -> 'Query':
        """This query, with sounds that must stay out: texts or queries; added to those it has.

        Raises:
            QueryError: an empty text, or a query that itself keeps something out.
        """
        queries = tuple(_as_query(query) for query in unwanted)
        for query in queries:
            if query.unwanted:
                raise QueryError(f'what must stay out cannot keep something out itself: {query}')
        return dataclasses.replace(self, unwanted=tuple(dict.fromkeys((*self.unwanted, *queries))))

    def __mul__(self, weight: float) -> 'Query':
        if not isinstance(weight, numbers.Real):
            return NotImplemented
        if not (weight > 0 and math.isfinite(weight)):
            raise QueryError(
                f'a weight must be above 0, got {weight}: name what must stay out apart from it (--not, Query.without)'
            )
        return dataclasses.replace(self, terms=tuple((w * float(weight), part) for w, part in self.terms))

    __rmul__ = __mul__

    def __add__(self, other: 'Query') -> 'Query':
        if isinstance(other, numbers.Real) and other == 0:  # where sum() begins
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
    """Queries as the network takes them.

    Attributes:
        queries: float32 [Q, E], what to extract.
        unwanted: float32 [K, E], what to ask the network for as well: the different sounds that some query keeps out,
            less what they have in common with the query. K may be 0.
        keep_out: for each query the rows of `unwanted` that are kept out of it.
    """

    queries: np.ndarray
    unwanted: np.ndarray
    keep_out: tuple[tuple[int, ...], ...]


def as_queries(queries: str | Query | Sequence[str | Query] | np.ndarray) -> list[Query]:
    """Whatever a separator may be asked, as a list: a text, a Query, several of them, or an array [E] or [Q, E].

    Raises:
        QueryError: no query, an empty text, or something else.
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
    queries: str | Query | Sequence[str | Query] | np.ndarray, encoder: Union['QueryEncoder', None], embedding_size: int
) -> Embedded:
    """Queries as embeddings; see the top of this file for the arithmetic.

    All texts go through the encoder in one call, each different one once; so do images, and the audio examples of one
    sample rate.

    Args:
        queries: see `as_queries`.
        encoder: the model's; None: only vectors are understood.
        embedding_size: E, what the model takes.

    Raises:
        QueryError: see `as_queries`; a vector of another size; a kind of query that the encoder has no tower for; parts
            that cancel each other; a query that asks for just what must stay out.
        EncoderMismatchError: the encoder gives embeddings of another size.
    """
    if isinstance(queries, np.ndarray | jax.Array):
        shape = np.shape(queries)
        if len(shape) not in (1, 2) or shape[-1] != embedding_size or not shape[0]:
            raise QueryError(
                f'an embedding has the shape [{embedding_size}] or [Q, {embedding_size}], got {list(shape)}'
            )
    queries = as_queries(queries)
    unwanted = [other for query in queries for other in query.unwanted]
    parts = [part for query in [*queries, *unwanted] for _, part in query.terms]
    references = [_Text(caption) for caption in _CAPTIONS] if unwanted and encoder is not None else []
    vectors = _encode(list(dict.fromkeys(parts + references)), encoder, embedding_size)
    centre = np.mean([vectors[part] for part in references], axis=0) if references else np.zeros(embedding_size)
    wanted, rows, keep_out = [], {}, []
    for query in queries:
        own = _combined(query, vectors)
        others = [_combined(other, vectors) for other in query.unwanted]
        wanted.append(_taken_away(own, others, centre, query))
        apart = [_taken_away(other, [own], centre, query) for other in others]
        # Most are the same for every query: those that have nothing in common with any.
        keep_out.append(tuple(rows.setdefault(other.tobytes(), (len(rows), other))[0] for other in apart))
    outside = np.array([other for _, other in rows.values()], np.float32).reshape(-1, embedding_size)
    return Embedded(np.stack(wanted), outside, tuple(keep_out))


def _as_query(query: str | Query) -> Query:
    if isinstance(query, Query):
        return query
    if isinstance(query, str):
        return Query.text(query)
    raise QueryError('queries are texts, Query values, or one numpy array of embeddings')


def _encode(parts: list, encoder: Union['QueryEncoder', None], embedding_size: int) -> dict:
    """The embedding float32 [E] of every part."""
    vectors = {}
    for part in parts:
        if isinstance(part, _Vector):
            if len(part.values) != embedding_size:
                raise QueryError(
                    f'{part}: the model takes embeddings of the shape [{embedding_size}], got [{len(part.values)}]'
                )
            vectors[part] = part.values
    texts = [part for part in parts if isinstance(part, _Text)]
    if texts:
        rows = _tower(encoder, 'encode_text')([part.text for part in texts])
        vectors |= zip(texts, _checked(rows, len(texts), encoder, embedding_size), strict=True)
    examples = [part for part in parts if isinstance(part, _Audio)]
    for rate in dict.fromkeys(part.sample_rate for part in examples):
        group = [part for part in examples if part.sample_rate == rate]
        rows = _tower(encoder, 'encode_audio')([part.waveform for part in group], sample_rate=rate)
        vectors |= zip(group, _checked(rows, len(group), encoder, embedding_size), strict=True)
    images = [part for part in parts if isinstance(part, _Image)]
    if images:
        rows = _tower(encoder, 'encode_image')([part.image for part in images])
        vectors |= zip(images, _checked(rows, len(images), encoder, embedding_size), strict=True)
    return vectors


_KINDS = {'encode_text': 'text', 'encode_audio': 'audio examples', 'encode_image': 'images'}


def _tower(encoder: Union['QueryEncoder', None], method: str):
    """The encoder's method, or a QueryError that says what can be asked instead."""
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


def _checked(rows: np.ndarray, count: int, encoder: 'QueryEncoder', embedding_size: int) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    if rows.shape != (count, embedding_size):
        raise EncoderMismatchError(
            f'the encoder {encoder.name!r} gave {list(rows.shape)} for {count} queries, the model takes '
            f'{[count, embedding_size]}'
        )
    if not np.isfinite(rows).all():
        raise QueryError('the query embedding holds NaN or infinite numbers')
    return rows


def _combined(query: Query, vectors: dict) -> np.ndarray:
    """The parts of a query as one embedding, float32 [E], without regard to what must stay out."""
    if len(query.terms) == 1:
        return vectors[query.terms[0][1]]
    weights = np.array([weight for weight, _ in query.terms], np.float64)
    parts = np.stack([vectors[part] for _, part in query.terms]).astype(np.float64)
    weights /= weights.max()
    total = weights @ parts
    lengths = weights @ np.linalg.norm(parts, axis=1)
    length = np.linalg.norm(total)
    if length <= _CANCELLED * lengths:
        raise QueryError(f'the parts of the query cancel each other: {query}; change the weights')
    return (total * (lengths / weights.sum() / length)).astype(np.float32)


def _taken_away(wanted: np.ndarray, unwanted: list[np.ndarray], centre: np.ndarray, query: Query) -> np.ndarray:
    """What is left of an embedding [E] when its likeness to unwanted ones [E] is gone, of the same length."""
    if not unwanted:
        return wanted
    own, others = (wanted - centre).astype(np.float64), (np.stack(unwanted) - centre).astype(np.float64)
    lengths = np.linalg.norm(others, axis=1)
    length = np.linalg.norm(own)
    alike = others @ own > _CHANCE_COSINE * length * lengths
    if not alike.any():
        return wanted
    # At import it would cost every program that only trains.
    from scipy.optimize import nnls

    directions = others[alike] / lengths[alike, None]
    shares, remainder = nnls(directions.T, own)
    if remainder < _LEAST_REMAINDER * length:
        raise QueryError(f'the query asks for just what must stay out: {query}')
    rest = wanted - shares @ directions
    return (rest * (np.linalg.norm(wanted) / np.linalg.norm(rest))).astype(np.float32)
