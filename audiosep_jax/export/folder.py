"""Writes the folder of an exported checkpoint: graphs, the text encoder, queries, and what a program must know."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from audiosep_jax import __version__
from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint, check_free, errors_about
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.errors import ConfigError, DownloadError
from audiosep_jax.export.graph import Graph, WeightsFile, import_onnx, save
from audiosep_jax.export.network import MaskNetwork, mask_graph
from audiosep_jax.export.stablehlo import export_mask, export_separation
from audiosep_jax.export.text import text_graph, why_not_exported
from audiosep_jax.export.waveform import SeparationGraph
from audiosep_jax.models.folded import look_ahead
from audiosep_jax.separation.level import level_bounds
from audiosep_jax.separation.loading import load_encoder_of
from audiosep_jax.separation.queries import embed
from audiosep_jax.storage.atomic import new_folder
from audiosep_jax.storage.json_files import write_json

Format = Literal['all', 'onnx', 'stablehlo']
Dtype = Literal['float32', 'float16']


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        paths: of the files.
        notes: what was left out, and why.
    """

    paths: list[Path]
    notes: list[str]


def export(
    checkpoint: str | Path | None,
    out: Path,
    *,
    format: Format = 'all',
    dtype: Dtype = 'float32',
    external_weights: bool = False,
    queries: Sequence[str] = (),
) -> Exported:
    """Exports a checkpoint to a new folder.

    Args:
        checkpoint: what `find.find_checkpoint` takes.
        out: the folder, which must not exist or be empty.
        format: which programs to write.
        dtype: of the network in ONNX. The STFT, the text encoder and StableHLO are always float32.
        external_weights: put the weights of all ONNX graphs into one file beside them.
        queries: texts whose embeddings are written to `queries.json`.

    Raises:
        ConfigError: the package onnx is missing, or float16 is asked of StableHLO alone.
        CheckpointError: the folder is taken, or the checkpoint is missing or damaged.
        DownloadError: the checkpoint has to be downloaded, which fails.
        QueryError: a query is empty, or the checkpoint has no encoder for it.
    """
    onnx = format != 'stablehlo'
    if not onnx and (dtype != 'float32' or external_weights):
        flag = '--external-weights' if external_weights else '--dtype'
        raise ConfigError(f'{flag} is for ONNX only: omit it, or --format stablehlo')
    if onnx:
        import_onnx()
    check_free(out)
    found = open_checkpoint(checkpoint)
    encoder = load_encoder_of(found)
    vectors = embed(list(queries), encoder, found.model.condition_size).queries.tolist() if queries else []
    notes: list[str] = []
    metadata = _metadata(found)
    with new_folder(out) as folder, errors_about(found.path):
        network = MaskNetwork.fold(found.model, found.variables, dtype, found.equalizer)
        if onnx:
            weights = WeightsFile(folder / 'weights.bin') if external_weights else None
            for graph in _graphs(network, found):
                save(graph.model({**metadata, 'dtype': dtype}), folder / f'{graph.name}.onnx', weights)
            notes += _write_text(encoder, folder, metadata, weights)
        if format != 'onnx':
            bounds = level_bounds(found.level)
            (folder / 'mask.stablehlo').write_bytes(export_mask(network.config, network.weights))
            program = export_separation(network.config, network.weights, bounds)
            (folder / 'separate.stablehlo').write_bytes(program)
        if queries:
            (folder / 'queries.json').write_text(json.dumps(dict(zip(queries, vectors, strict=True))), 'utf-8')
        write_json(folder / 'metadata.json', metadata)
        names = sorted(path.name for path in folder.iterdir())
    return Exported([out / name for name in names], notes)


def _graphs(network: MaskNetwork, found: InferenceCheckpoint) -> list[Graph]:
    separation = SeparationGraph(network, found.level)
    return [
        mask_graph(network, pieces=False)[0],
        mask_graph(network, pieces=True)[0],
        separation.whole(),
        separation.pieces(),
    ]


def _metadata(found: InferenceCheckpoint) -> dict[str, str]:
    """Returns what a program must know: text, as ONNX has it."""
    model = found.model
    return {
        'sample_rate': str(model.sample_rate),
        'window': 'hann, periodic',
        'window_size': str(model.window_size),
        'hop_size': str(model.hop_size),
        'condition_size': str(model.condition_size),
        'look_ahead': str(look_ahead(model)),
        'level': json.dumps(None if found.level is None else dataclasses.asdict(found.level)),
        'equalizer': str(0.0 if found.equalizer is None else found.equalizer.share),
        'encoder': json.dumps(found.encoder),
        'step': str(found.step),
        'audiosep_jax': __version__,
    }


def _write_text(
    encoder: QueryEncoder | None, folder: Path, metadata: dict[str, str], weights: WeightsFile | None
) -> list[str]:
    """Writes the text encoder if it has a graph; otherwise returns a note that says why not."""
    reason = why_not_exported(encoder)
    if reason is None and encoder is not None:
        try:
            text = text_graph(encoder)
        except DownloadError as error:
            reason = str(error)
        else:
            save(text.graph.model({**metadata, **text.metadata}), folder / 'text.onnx', weights)
            (folder / 'tokenizer.json').write_text(text.tokenizer, 'utf-8')
            return []
    return [f'text.onnx was left out: {reason}; --query TEXT writes embeddings of texts to queries.json']
