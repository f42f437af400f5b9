"""Measures how long the first query takes: opening, loading, compiling and running CLAP's and CLIP's full-size towers.

    python benchmarks/encoders.py

The weights are random, in a temporary folder of up to 0.8 GB, and in the page cache. Each row is measured in a new
process. `first` is the first query with nothing compiled, `first again` is the same in a second process with JAX's
compilation cache, and `steady` is the median of the queries after the first. A second table compares ways to compile
RoBERTa's layers, with the best of three processes for each.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiosep_jax.encoders.clap import htsat, roberta
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.clap.htsat import HtsatConfig
from audiosep_jax.encoders.clap.roberta import RobertaConfig
from audiosep_jax.encoders.clip import model as clip_model
from audiosep_jax.encoders.clip.encoder import ClipEncoder
from audiosep_jax.weights.tensor_files import write_tensors

CLIP_LARGE = {
    'model_type': 'clip',
    'projection_dim': 768,
    'text_config': {'hidden_size': 768, 'intermediate_size': 3072, 'num_attention_heads': 12},
    'vision_config': {
        'hidden_size': 1024,
        'intermediate_size': 4096,
        'num_hidden_layers': 24,
        'num_attention_heads': 16,
        'patch_size': 14,
    },
}
CLIP = {'CLIP ViT-B/32': {'model_type': 'clip'}, 'CLIP ViT-L/14': CLIP_LARGE}
CLAP = {'CLAP HTSAT-base': HtsatConfig(), 'CLAP HTSAT-tiny': HtsatConfig(width=96, depths=(2, 2, 6, 2))}
NAMES = (*CLAP, *CLIP)
WAYS = ('layer by layer', 'one program', 'scan')
REPEATS = 7


def write_weights(name: str, folder: Path) -> None:
    """Writes random weights of an encoder into a folder from which it can be opened."""
    if name in CLAP:
        shapes = roberta.tensor_shapes(RobertaConfig()) | htsat.tensor_shapes(CLAP[name])
        shapes = {n.replace('.query.', '.qkv.') if 'audio_branch' in n else n: s for n, s in shapes.items()}
        shapes = {n: s for n, s in shapes.items() if '.attn.key.' not in n and '.attn.value.' not in n}
        shapes = {n: (3 * s[0], *s[1:]) if '.qkv.' in n else s for n, s in shapes.items()}
    else:
        shapes = clip_model.tensor_shapes(clip_model.read_config(CLIP[name], name))
        (folder / 'config.json').write_text(json.dumps(CLIP[name]))
    rng = np.random.default_rng(0)
    write_tensors(folder / 'model.safetensors', {n: draw(rng, n, shape) for n, shape in shapes.items()})


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random values for a tensor, close to 1 for the scales of norms."""
    values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return (
        values + 1 if name.endswith('running_var') or ('norm' in name.lower() and name.endswith('weight')) else values
    )


def query(encoder: ClapEncoder | ClipEncoder, tower: str) -> None:
    """Encodes one sentence of ten words, ten seconds of sound, or one picture."""
    rng = np.random.default_rng(1)
    if tower == 'text':
        ids = rng.integers(5, 40000, (1, 12))
        ids[0, -1] = 2 if isinstance(encoder, ClapEncoder) else 49407
        encoder.encode_token_ids(ids, np.ones_like(ids))
    elif tower == 'audio':
        encoder.encode_audio(0.1 * rng.standard_normal(480000), sample_rate=48000)
    else:
        encoder.encode_image([rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)])


def seconds(function: Callable, *arguments: object) -> float:
    """Returns how long a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measure_tower(name: str, tower: str, folder: Path) -> dict[str, float]:
    """Returns the seconds for opening, for loading that tower, for the first query and for later ones."""
    jnp.zeros(1).block_until_ready()  # the time to start JAX does not count
    started = time.perf_counter()
    encoder = (ClapEncoder if name in CLAP else ClipEncoder).open(folder)
    opened = time.perf_counter()
    loaded = getattr(encoder, {'image': '_vision_tower'}.get(tower, f'_{tower}_tower'))
    jax.block_until_ready([parameters for _, parameters in loaded._parts])
    done = time.perf_counter()
    first = seconds(query, encoder, tower)
    steady = statistics.median(seconds(query, encoder, tower) for _ in range(REPEATS))
    return {'open': opened - started, 'load': done - opened, 'first': first, 'steady': steady}


def measure_way(way: str) -> dict[str, float]:
    """Returns the seconds of RoBERTa-base for one text of 16 tokens, with its layers compiled in one of `WAYS`."""
    rng = np.random.default_rng(0)
    tensors = {n: draw(rng, n, s) for n, s in roberta.tensor_shapes(RobertaConfig()).items()}
    tower = roberta.TextTower(RobertaConfig(), tensors)
    ids, mask = np.full((1, 16), 7), np.ones((1, 16), np.int32)
    if way == 'layer by layer':
        return first_and_steady(lambda: tower(ids, mask))
    (embeddings, *middle, pooler, projection), weights = zip(*tower._parts, strict=True)
    words, positions = tensors['text_branch.embeddings.word_embeddings.weight'][ids], roberta.position_ids(ids)
    ends = (weights[0], *weights[-2:])
    inner = weights[1:-2]
    if way == 'scan':
        started = time.perf_counter()
        inner = jax.block_until_ready(jax.tree.map(lambda *leaves: jnp.stack(leaves), *inner))
        stacked = time.perf_counter() - started

    @jax.jit
    def program(ends, inner, words, positions, mask):
        x = embeddings.apply({'params': ends[0]}, words, positions)
        if way == 'scan':
            x, _ = jax.lax.scan(lambda x, layer: (middle[0].apply({'params': layer}, x, mask), None), x, inner)
        else:
            for module, layer in zip(middle, inner, strict=True):
                x = module.apply({'params': layer}, x, mask)
        return projection.apply({'params': ends[2]}, pooler.apply({'params': ends[1]}, x))

    times = first_and_steady(lambda: program(ends, inner, words, positions, mask))
    return times | ({'first': times['first'] + stacked} if way == 'scan' else {})


def first_and_steady(function: Callable) -> dict[str, float]:
    """Returns the seconds of the first call, and the median of later ones."""
    jnp.zeros(1).block_until_ready()
    first = seconds(lambda: jax.block_until_ready(function()))
    return {
        'first': first,
        'steady': statistics.median(seconds(lambda: jax.block_until_ready(function())) for _ in range(REPEATS)),
    }


def in_new_process(*arguments: str, cache: Path | None = None) -> dict[str, float]:
    """Returns what a new process of this program measures, optionally with JAX's compilation cache in a folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith('JAX_')}
    if cache is not None:
        environment |= {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.05'}
    program = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout)


def main(
    json_file: Path | None = None,
    encoders: tuple[Literal[NAMES], ...] = NAMES,
    worker: tuple[str, ...] = (),
) -> None:
    """Measures, and prints the tables.

    Args:
        json_file: also write the numbers to this file.
        encoders: the encoders to measure.
        worker: measure one row in this process (used by the program itself).
    """
    if worker:
        kind, *arguments = worker
        print(json.dumps(measure_way(*arguments) if kind == 'way' else measure_tower(*arguments)))
        return
    rows = []
    for name in track(encoders, 'encoders', transient=True):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as caches:
            write_weights(name, Path(folder))
            for tower in ('text', 'audio' if name in CLAP else 'image'):
                cache = Path(caches.enter_context(tempfile.TemporaryDirectory()))
                cold = in_new_process('--worker', 'tower', name, tower, folder)
                in_new_process('--worker', 'tower', name, tower, folder, cache=cache)
                again = in_new_process('--worker', 'tower', name, tower, folder, cache=cache)
                rows.append({'encoder': name, 'tower': tower, **cold, 'first again': again['first']})
    ways = []
    for way in track(WAYS, 'ways to compile', transient=True):
        runs = [in_new_process('--worker', 'way', way) for _ in range(3)]
        ways.append({'RoBERTa compiled': way, **{key: min(run[key] for run in runs) for key in runs[0]}})
    console = Console()
    console.print(jax.devices()[0].device_kind, f'{os.cpu_count()} CPUs, seconds')
    for figures in (rows, ways):
        if figures:
            table = Table(*figures[0])
            for row in figures:
                table.add_row(*(value if isinstance(value, str) else f'{value:.3f}' for value in row.values()))
            console.print(table)
    if json_file:
        json_file.write_text(json.dumps({'towers': rows, 'ways': ways}, indent=2) + '\n')


if __name__ == '__main__':
    tyro.cli(main)
