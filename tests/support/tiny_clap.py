"""A CLAP of a few thousand weights in both namings, its tokenizer, and what tests encode with it."""

import json
from pathlib import Path

import numpy as np

from audiosep_jax.encoders.clap import htsat, roberta
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.clap.htsat import SAMPLE_RATE, HtsatConfig
from audiosep_jax.encoders.clap.roberta import RobertaConfig
from audiosep_jax.weights.tensor_files import write_tensors

WORDS = ('dog', 'cat', 'rain', 'bell')
TEXT = RobertaConfig(vocabulary=300, positions=514, width=64, hidden=48, layers=2, heads=1, embedding_size=16)
AUDIO = HtsatConfig(width=8, depths=(2, 1), heads=(2, 4), embedding_size=16)
# What transformers calls them; for a text tower of one head of 64, and without what it takes for granted.
CONFIG = {
    'model_type': 'clap',
    'projection_dim': 16,
    'text_config': {
        'vocab_size': 300,
        'max_position_embeddings': 514,
        'hidden_size': 64,
        'intermediate_size': 48,
        'num_hidden_layers': 2,
        'num_attention_heads': 1,
    },
    'audio_config': {
        'patch_embeds_hidden_size': 8,
        'hidden_size': 16,
        'depths': [2, 1],
        'num_attention_heads': [2, 4],
        'enable_fusion': False,
    },
}


def laion_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, and some of the tensors beside them in a file that no embedding needs."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: _draw(rng, name, shape)
        for name, shape in (roberta.tensor_shapes(TEXT) | htsat.tensor_shapes(AUDIO)).items()
    }
    for name in [name for name in tensors if '.attn.query.' in name]:
        parts = [tensors.pop(name.replace('query', part)) for part in ('query', 'key', 'value')]
        tensors[name.replace('query', 'qkv')] = np.concatenate(parts)
    return tensors | {
        'logit_scale_a': np.array(2.6, np.float32),
        'audio_branch.logmel_extractor.melW': np.zeros((513, 64), np.float32),
        'audio_branch.bn0.num_batches_tracked': np.array(7),
        'audio_branch.layers.0.blocks.0.attn.relative_position_index': np.zeros((64, 64), int),
        'audio_branch.layers.0.blocks.1.attn_mask': np.zeros((64, 64, 64), np.float32),
        'audio_branch.tscam_conv.weight': np.zeros((3, 16, 2, 3), np.float32),
        'text_branch.embeddings.position_ids': np.arange(514)[None],
        'text_transform.sequential.0.weight': np.ones((16, 16), np.float32),
    }


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if name.endswith('running_var'):
        values = 100 + 10 * values
    elif name.endswith('running_mean'):
        values = 5 * values - 35
    elif len(shape) > 1:
        values *= 0.5 if 'embeddings' in name else 1.5 / np.sqrt(np.prod(shape[1:]))
    elif 'norm' in name.lower() and name.endswith('weight'):
        values = 1 + 0.2 * values
    return values.astype(np.float32)


def hugging_face_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The same weights as transformers' `ClapModel` names them."""
    tensors = {}
    for name, value in laion_tensors(seed).items():
        if name.startswith(('text_branch', 'audio_branch', 'text_projection', 'audio_projection')):
            tensors |= _renamed(name, value)
    return tensors


def _renamed(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    tower, _, rest = name.partition('.')
    if tower.endswith('projection'):
        layer, kind = rest.split('.')
        return {f'{tower}.linear{ {"0": 1, "2": 2}[layer] }.{kind}': value}
    if tower == 'text_branch':
        return {f'text_model.{rest}': value}
    rest = rest.replace('bn0', 'batch_norm')
    if '.qkv.' in rest:
        names = [rest.replace('attn.qkv', f'attention.self.{part}') for part in ('query', 'key', 'value')]
        return {f'audio_model.audio_encoder.{n}': part for n, part in zip(names, np.split(value, 3), strict=True)}
    for ours, theirs in (
        ('attn.proj', 'attention.output.dense'),
        ('attn.relative', 'attention.self.relative'),
        ('mlp.fc1', 'intermediate.dense'),
        ('mlp.fc2', 'output.dense'),
        ('norm1', 'layernorm_before'),
        ('norm2', 'layernorm_after'),
    ):
        rest = rest.replace(ours, theirs)
    return {f'audio_model.audio_encoder.{rest}': value}


def write_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt: bytes, and a few words that are one token each at the beginning of a text."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = ['<s>', '<pad>', '</s>', '<unk>', '<mask>', *sorted(ByteLevel.alphabet())]
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            merges.append(f'{word[: end - 1]} {word[end - 1]}')
            vocabulary.append(word[:end])
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / 'vocab.json').write_text(json.dumps(ids), 'utf-8')
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]), 'utf-8')


def write_laion(folder: Path, prefix: str = '', **changes: np.ndarray | None) -> Path:
    """Writes a folder in LAION's naming; a tensor that is changed to None is left out."""
    tensors = laion_tensors() | changes
    write_tensors(folder / 'model.safetensors', {prefix + n: v for n, v in tensors.items() if v is not None})
    write_tokenizer(folder)
    return folder


def write_hugging_face(
    folder: Path, config: dict | None = CONFIG, features: dict | None = None, **changes: np.ndarray | None
) -> Path:
    """Writes a folder in Hugging Face's naming; a tensor that is changed to None is left out."""
    tensors = hugging_face_tensors() | changes
    write_tensors(folder / 'model.safetensors', {n: v for n, v in tensors.items() if v is not None})
    for name, settings in (('config.json', config), ('preprocessor_config.json', features)):
        if settings is not None:
            (folder / name).write_text(json.dumps(settings))
    write_tokenizer(folder)
    return folder


def noise(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Returns white noise, float32 [T]."""
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)


def text_and_audio(encoder: ClapEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Returns an encoder's embeddings of two sentences and of a sound."""
    return encoder.encode_text(['dog', 'rain cat']), encoder.encode_audio(noise(1), sample_rate=SAMPLE_RATE)


def assert_same(encoder: ClapEncoder, expected: tuple[np.ndarray, np.ndarray], atol: float = 1e-6) -> None:
    """Asserts that an encoder gives the embeddings of `text_and_audio`."""
    for found, wanted in zip(text_and_audio(encoder), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=atol)
