"""Finds the sizes of a CLAP, from `config.json` in Hugging Face's folders or from the shapes in LAION's files."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from audiosep_jax.encoders.clap import htsat
from audiosep_jax.encoders.clap.htsat import HtsatConfig
from audiosep_jax.encoders.clap.roberta import RobertaConfig
from audiosep_jax.encoders.clap.weights import ClapTensors
from audiosep_jax.encoders.towers import read_settings
from audiosep_jax.errors import CheckpointError

# LAION's text towers started from roberta-base, whose layer norms have 1e-5. transformers takes the value of
# `config.json`, which is 1e-12 in the published ones, and defaults to 1e-12.
_HF_TEXT_EPSILON = 1e-12
# The settings that the towers are written for. They are also transformers' defaults.
_FIXED: dict[str, dict[str, Any]] = {
    '': {'model_type': 'clap', 'projection_hidden_act': 'relu'},
    'text_config': {'hidden_act': 'gelu', 'pad_token_id': 1, 'type_vocab_size': 1},
    'audio_config': {
        'hidden_act': 'gelu',
        'enable_fusion': False,
        'window_size': htsat.WINDOW,
        'num_mel_bins': htsat.MEL_BANDS,
        'spec_size': htsat.IMAGE_SIZE,
        'patch_size': htsat.PATCH_SIZE,
        'patch_stride': htsat.PATCH_SIZE,
        'patch_embed_input_channels': 1,
        'enable_patch_layer_norm': True,
        'qkv_bias': True,
    },
}
_FEATURES = {
    'sampling_rate': htsat.SAMPLE_RATE,
    'feature_size': htsat.MEL_BANDS,
    'fft_window_size': htsat.WINDOW_SIZE,
    'hop_length': htsat.HOP_SIZE,
}
_FUSION = 'with feature fusion, which is not supported: use one without, such as laion/larger_clap_general'


def sizes_from_tensors(tensors: ClapTensors, where: str) -> tuple[RobertaConfig, HtsatConfig]:
    """Returns the sizes of the towers from the shapes of the tensors.

    A missing tensor counts as one of the usual size, so that a later check can name it.

    Args:
        tensors: the weights.
        where: the path of the weights, for messages.

    Raises:
        CheckpointError: it is a CLAP with feature fusion or on PANN, or the sizes do not fit together.
    """
    shapes = tensors.shapes
    if any('.mel_conv' in name or '.fusion_model.' in name for name in shapes):
        raise CheckpointError(f'{where}: a CLAP {_FUSION}')
    if any(name.startswith('audio_branch.conv_block') for name in shapes):
        raise CheckpointError(f'{where}: a CLAP on PANN, which is not supported: use one on HTSAT')

    def shape(name: str, *usual: int) -> tuple[int, ...]:
        found = shapes.get(name, usual)
        return found if len(found) == len(usual) and all(found) else usual

    usual = RobertaConfig()
    layers = 'text_branch.encoder.layer'
    vocabulary, width = shape('text_branch.embeddings.word_embeddings.weight', usual.vocabulary, usual.width)
    text = RobertaConfig(
        vocabulary=vocabulary,
        width=width,
        positions=shape('text_branch.embeddings.position_embeddings.weight', usual.positions, width)[0],
        hidden=shape(f'{layers}.0.intermediate.dense.weight', 4 * width, width)[0],
        layers=_count(shapes, f'{layers}.') or usual.layers,
        heads=max(1, width // 64),  # RoBERTa of any size has heads of 64 channels
        embedding_size=shape('text_projection.2.weight', usual.embedding_size, usual.embedding_size)[0],
        epsilon=usual.epsilon if tensors.laion else _HF_TEXT_EPSILON,
    )
    width = shape('audio_branch.patch_embed.proj.weight', 128, 1, htsat.PATCH_SIZE, htsat.PATCH_SIZE)[0]
    stages = [f'audio_branch.layers.{i}.blocks.' for i in range(_count(shapes, 'audio_branch.layers.') or 4)]
    tables = [f'{stage}0.attn.relative_position_bias_table' for stage in stages]
    audio = HtsatConfig(
        width=width,
        depths=tuple(_count(shapes, stage) or 2 for stage in stages),
        heads=tuple(shape(table, (2 * htsat.WINDOW - 1) ** 2, 4 << i)[1] for i, table in enumerate(tables)),
        hidden_ratio=shape(f'{stages[0]}0.mlp.fc1.weight', 4 * width, width)[0] / width,
        embedding_size=text.embedding_size,
    )
    _check_heads(text, audio, where)
    return text, audio


def _count(names: Iterable[str], prefix: str) -> int:
    """Returns the number of numbered parts whose names follow a prefix."""
    found = map(re.compile(re.escape(prefix) + r'(\d{1,3})\.').match, names)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def sizes_from_settings(config: Mapping[str, Any], where: str) -> tuple[RobertaConfig, HtsatConfig]:
    """Returns the sizes of the towers in `config.json`, with transformers' defaults (HTSAT-tiny) for missing values.

    Args:
        config: the parsed file.
        where: its path, for messages.

    Raises:
        CheckpointError: the settings are those of another model, or of a CLAP that is not supported.
    """
    blocks = {name: config.get(name) or {} if name else config for name in _FIXED}
    for name, fixed in _FIXED.items():
        if not isinstance(blocks[name], dict):
            raise CheckpointError(f'{where}: {name} is not an object')
        for key, value in fixed.items():
            found = blocks[name].get(key, value)
            if key == 'enable_fusion' and found:
                raise CheckpointError(f'{where}: a CLAP {_FUSION}')
            if found not in (value, [value, value]):
                field = f'{name}.{key}' if name else key
                raise CheckpointError(f'{where}: {field} is {found!r}, but only {value!r} is supported')

    def take(block: str, key: str, default: Any, valid: Callable[[Any], bool]) -> Any:
        value = blocks[block].get(key, default)
        if not valid(value):
            raise CheckpointError(f'{where}: {block} {key} {value!r} is not a valid size')
        return value

    embedding_size = take('', 'projection_dim', 512, _is_size)
    text = RobertaConfig(
        vocabulary=take('text_config', 'vocab_size', 50265, _is_size),
        positions=take('text_config', 'max_position_embeddings', 514, lambda n: _is_size(n) and n > 4),
        width=take('text_config', 'hidden_size', 768, _is_size),
        hidden=take('text_config', 'intermediate_size', 3072, _is_size),
        layers=take('text_config', 'num_hidden_layers', 12, _is_depth),
        heads=take('text_config', 'num_attention_heads', 12, _is_size),
        epsilon=take('text_config', 'layer_norm_eps', _HF_TEXT_EPSILON, _is_positive),
        embedding_size=embedding_size,
    )
    audio = HtsatConfig(
        width=take('audio_config', 'patch_embeds_hidden_size', 96, _is_size),
        depths=tuple(take('audio_config', 'depths', [2, 2, 6, 2], _are_depths)),
        heads=tuple(take('audio_config', 'num_attention_heads', [4, 8, 16, 32], _are_depths)),
        hidden_ratio=take('audio_config', 'mlp_ratio', 4.0, _is_positive),
        epsilon=take('audio_config', 'layer_norm_eps', 1e-5, _is_positive),
        embedding_size=embedding_size,
    )
    _check_heads(text, audio, where)
    return text, audio


def read_features(folder: Path) -> dict[str, Any]:
    """Returns Hugging Face's settings of the spectrogram, from either of the two files that may hold them, or {}.

    Raises:
        CheckpointError: a file is damaged.
    """
    features = read_settings(folder / 'preprocessor_config.json')
    if features is None:
        features = (read_settings(folder / 'processor_config.json') or {}).get('feature_extractor')
    return features if isinstance(features, dict) else {}


def mel_range(features: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Returns the lowest and the highest frequency of the mel bands in Hz, from `preprocessor_config.json`.

    The defaults are 50 and 14000, as in LAION's code and the published files. The default of transformers' feature
    extractor, 0 Hz, was not used in training.

    Args:
        features: the parsed file.
        where: its path, for messages.

    Raises:
        CheckpointError: the settings are those of other features.
    """
    for key, value in _FEATURES.items():
        if features.get(key, value) != value:
            raise CheckpointError(f'{where}: {key} {features[key]!r}, but only {value} is supported')
    usual = HtsatConfig()
    lowest, highest = (
        features.get(key, value) for key, value in (('frequency_min', usual.lowest), ('frequency_max', usual.highest))
    )
    if not (lowest == 0 or _is_positive(lowest)) or not _is_positive(highest) or not lowest < highest <= 24000:
        raise CheckpointError(f'{where}: frequency_min {lowest!r} and frequency_max {highest!r} are not a range in Hz')
    return float(lowest), float(highest)


def _check_heads(text: RobertaConfig, audio: HtsatConfig, where: str) -> None:
    """Checks that every width can be divided into its heads."""
    if len(audio.depths) != len(audio.heads) or len(audio.depths) > 4:
        raise CheckpointError(f'{where}: {len(audio.depths)} stages with {len(audio.heads)} numbers of heads')
    widths = [audio.width << i for i in range(len(audio.depths))]
    for width, heads in ((text.width, text.heads), *zip(widths, audio.heads, strict=True)):
        if width % heads:
            raise CheckpointError(f'{where}: a width of {width} is not a multiple of {heads} heads')


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20


def _is_depth(value: Any) -> bool:
    return _is_size(value) and value <= 256  # a limit, because every layer is created


def _are_depths(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 4 and all(map(_is_depth, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 20
