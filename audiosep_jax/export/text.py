"""Query encoders as ONNX graphs: from token ids to embeddings.

CLAP's and MiniLM's towers are the same transformer with other ends. `wordllama` is a table of vectors and a weighted
sum. `words` has no weights: its vectors are hashes of the letters, which no graph can compute.

Letters: B batch, L tokens, C width, H heads, E embedding size.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from audiosep_jax.encoders.base import QueryEncoder, UnavailableEncoder
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.clap.roberta import PADDING_ID, RobertaConfig
from audiosep_jax.encoders.minilm import MiniLMEncoder
from audiosep_jax.encoders.wordllama import WordLlamaEncoder
from audiosep_jax.encoders.words import STOP_WORDS
from audiosep_jax.export.graph import Graph, cast_to

_LEAST_LENGTH = np.float32(1e-12)  # as in encoders.layers.l2_normalize


@dataclasses.dataclass(frozen=True)
class TextGraph:
    """An exported encoder.

    Attributes:
        graph: from `ids`, int64 [B, L], and `mask`, int64 [B, L] (`weights`, float32, for `wordllama`) to `embedding`.
        tokenizer: the contents of a `tokenizer.json`.
        metadata: what a program must know beside the tokenizer.
    """

    graph: Graph
    tokenizer: str
    metadata: dict[str, str]


def why_not_exported(encoder: QueryEncoder | None) -> str | None:
    """Returns why an encoder has no graph; None if it has one."""
    if encoder is None:
        return 'the checkpoint has no query encoder'
    if isinstance(encoder, UnavailableEncoder):
        return f'the weights of its query encoder {encoder.name} are missing'
    if encoder.name == 'words':
        return 'the query encoder words has no weights: its vectors are hashes of the letters'
    if not isinstance(encoder, ClapEncoder | MiniLMEncoder | WordLlamaEncoder):
        return f'the text tower of {encoder.name} cannot be exported yet'
    return None


def text_graph(encoder: QueryEncoder) -> TextGraph:
    """Returns the graph of an encoder that has one, see `why_not_exported`.

    Raises:
        CheckpointError: the tokenizer or the weights are damaged.
        DownloadError: there is no tokenizer next to the weights, and it cannot be fetched.
    """
    if isinstance(encoder, WordLlamaEncoder):
        metadata = {'stop_weight': str(encoder.stop_weight), 'stop_words': json.dumps(sorted(STOP_WORDS))}
        return TextGraph(_word_sum(encoder), encoder.tokenizer_json(), metadata)
    assert isinstance(encoder, ClapEncoder | MiniLMEncoder)
    tokenizer = encoder.tokenizer
    graph = _clap(encoder) if isinstance(encoder, ClapEncoder) else _minilm(encoder)
    metadata = {'max_tokens': str(encoder.max_tokens), 'padding_id': str(tokenizer.padding_id)}
    return TextGraph(graph, tokenizer.to_json(), metadata)


def _word_sum(encoder: WordLlamaEncoder) -> Graph:
    graph = Graph('text')
    ids = graph.input('ids', np.int64, ('batch', 'tokens'))
    weights = graph.input('weights', np.float32, ('batch', 'tokens'))
    table = graph.constant(np.asarray(encoder.vectors), 'vectors')
    rows = graph('Cast', graph('Gather', table, ids), to=cast_to(np.float32))
    rows = graph('Mul', rows, graph('Unsqueeze', weights, np.array([2])))
    total = graph('ReduceSum', rows, np.array([1]), keepdims=0)
    _normalized_output(graph, total, encoder.embedding_size)
    return graph


def _clap(encoder: ClapEncoder) -> Graph:
    tower = _Tower(Graph('text'), encoder.tensors, encoder.text, 'text_branch.')
    graph, ids, mask = tower.graph, *tower.inputs()
    is_word = graph('Cast', graph('Not', graph('Equal', ids, np.int64(PADDING_ID))), to=cast_to(np.int64))
    place = graph('Mul', graph('CumSum', is_word, np.int64(1)), is_word)
    x = tower.layers(ids, graph('Add', place, np.int64(PADDING_ID)), mask)
    first = graph('Squeeze', graph.cut(x, 1, 0, 1), np.array([1]))
    x = graph('Tanh', tower.linear(first, 'text_branch.pooler.dense'))
    x = tower.linear(graph('Relu', tower.linear(x, 'text_projection.0')), 'text_projection.2')
    _normalized_output(graph, x, encoder.embedding_size)
    return graph


def _minilm(encoder: MiniLMEncoder) -> Graph:
    tower = _Tower(Graph('text'), encoder.tensors, encoder.config, '')
    graph, ids, mask = tower.graph, *tower.inputs()
    x = tower.layers(ids, graph.count_to(graph.size(ids, 1)), mask)
    seen = graph('Unsqueeze', graph('Cast', mask, to=cast_to(np.float32)), np.array([2]))
    # The mean over the tokens and their sum have the same direction.
    total = graph('ReduceSum', graph('Mul', x, seen), np.array([1]), keepdims=0)
    _normalized_output(graph, total, encoder.embedding_size)
    return graph


def _normalized_output(graph: Graph, x: str, size: int) -> None:
    length = graph('ReduceL2', x, axes=[1])
    graph.output(graph('Div', x, graph('Max', length, _LEAST_LENGTH)), 'embedding', np.float32, ('batch', size))


@dataclasses.dataclass(frozen=True)
class _Tower:
    """A transformer with a norm after each sum: the computations of `encoders/clap/roberta.py`."""

    graph: Graph
    tensors: Mapping[str, np.ndarray]
    config: RobertaConfig
    prefix: str

    def inputs(self) -> tuple[str, str]:
        shape = ('batch', 'tokens')
        return self.graph.input('ids', np.int64, shape), self.graph.input('mask', np.int64, shape)

    def layers(self, ids: str, positions: str, mask: str) -> str:
        """Returns the output of the last layer, [B, L, C]."""
        graph, name = self.graph, f'{self.prefix}embeddings.'
        x = graph('Gather', self._weight(f'{name}word_embeddings.weight'), ids)
        x = graph('Add', x, np.asarray(self.tensors[f'{name}token_type_embeddings.weight'][0], np.float32))
        x = graph('Add', x, graph('Gather', self._weight(f'{name}position_embeddings.weight'), positions))
        x = self._norm(x, f'{name}LayerNorm')
        seen = graph('Greater', graph('Unsqueeze', mask, np.array([1, 2])), np.int64(0))
        bias = graph('Where', seen, np.float32(0), np.float32(-np.inf))
        for i in range(self.config.layers):
            layer = f'{self.prefix}encoder.layer.{i}.'
            y = self.linear(self._attention(x, bias, f'{layer}attention.self.'), f'{layer}attention.output.dense')
            x = self._norm(graph('Add', x, y), f'{layer}attention.output.LayerNorm')
            y = self.linear(_gelu(graph, self.linear(x, f'{layer}intermediate.dense')), f'{layer}output.dense')
            x = self._norm(graph('Add', x, y), f'{layer}output.LayerNorm')
        return x

    def linear(self, x: str, name: str) -> str:
        weight = self.graph.constant(np.asarray(self.tensors[f'{name}.weight'], np.float32).T, f'{name}.weight')
        return self.graph('Add', self.graph('MatMul', x, weight), self._weight(f'{name}.bias'))

    def _attention(self, x: str, bias: str, name: str) -> str:
        graph, heads = self.graph, self.config.heads
        split = np.array([0, 0, heads, self.config.width // heads])
        query, key, value = (graph('Reshape', self.linear(x, f'{name}{part}'), split) for part in _PARTS)
        query = graph('Mul', query, np.float32((self.config.width // heads) ** -0.5))
        scores = graph(
            'MatMul', graph('Transpose', query, perm=[0, 2, 1, 3]), graph('Transpose', key, perm=[0, 2, 3, 1])
        )
        weights = graph('Softmax', graph('Add', scores, bias), axis=-1)
        mixed = graph('MatMul', weights, graph('Transpose', value, perm=[0, 2, 1, 3]))
        return graph('Reshape', graph('Transpose', mixed, perm=[0, 2, 1, 3]), np.array([0, 0, self.config.width]))

    def _norm(self, x: str, name: str) -> str:
        scale, shift = self._weight(f'{name}.weight'), self._weight(f'{name}.bias')
        return self.graph('LayerNormalization', x, scale, shift, epsilon=self.config.epsilon)

    def _weight(self, name: str) -> str:
        return self.graph.constant(np.asarray(self.tensors[name], np.float32), name)


_PARTS = ('query', 'key', 'value')


def _gelu(graph: Graph, x: str) -> str:
    erf = graph('Erf', graph('Mul', x, np.float32(0.5**0.5)))
    return graph('Mul', graph('Mul', x, np.float32(0.5)), graph('Add', erf, np.float32(1)))
