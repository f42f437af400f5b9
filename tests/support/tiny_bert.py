"""A tiny BERT of random weights in the folder of a sentence-transformers repository."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_WORDS = ('[PAD]', '[CLS]', '[SEP]', '[UNK]', '[MASK]', 'a', 'dog', 'rain', 'bark', '##ing', 'the', 'of')
CONFIG = {
    'model_type': 'bert',
    'vocab_size': len(_WORDS),
    'hidden_size': 8,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'intermediate_size': 12,
    'max_position_embeddings': 64,
    'layer_norm_eps': 1e-12,
}


def tensor_shapes():
    """Yields (name, shape) of the tensors of sentence-transformers' file."""
    yield from (('embeddings.word_embeddings.weight', (12, 8)), ('embeddings.position_embeddings.weight', (64, 8)))
    yield 'embeddings.token_type_embeddings.weight', (2, 8)
    norms = ['embeddings.LayerNorm']
    for i in range(2):
        layer = f'encoder.layer.{i}'
        linears = {f'attention.self.{name}': (8, 8) for name in ('query', 'key', 'value')}
        linears |= {'attention.output.dense': (8, 8), 'intermediate.dense': (12, 8), 'output.dense': (8, 12)}
        for name, shape in linears.items():
            yield f'{layer}.{name}.weight', shape
            yield f'{layer}.{name}.bias', shape[:1]
        norms += [f'{layer}.attention.output.LayerNorm', f'{layer}.output.LayerNorm']
    for name in norms:
        yield f'{name}.weight', (8,)
        yield f'{name}.bias', (8,)


def write_bert(folder: Path) -> Path:
    """Writes the weights, their sizes and a tokenizer of a few words."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensor_shapes()}
    save_file(tensors, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(CONFIG))
    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(('[SEP]', 2), ('[CLS]', 1))
    tokenizer.enable_truncation(128)  # as the repository's file, which the encoder must not follow
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder
