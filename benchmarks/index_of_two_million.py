"""An index of two million clips: building it, opening it, shuffling it; seconds and memory.

python benchmarks/index_of_two_million.py

The clips are tiny (16 samples, a caption, two labels; 1,000 shards of 2,000), for the audio is not what is measured:
`build` makes them as any dataset, the embeddings of 512 numbers are sparse files of zeros. 1 GB in a temporary folder.
`open` and the rows after it are a new process: from importing the package to the first batch, then batches from all
over it until every shard has been read from, then a jump to position 10^9 of the stream, as a resumed run makes.
Memory is resident memory, the code of the libraries included.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.data.embeddings import cache_directory, cache_paths
from audiosep_jax.data.layout import SplitInfo
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.storage.json_files import write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.options import num_cores

BATCH = 96
BATCHES = 200  # 19,200 clips of 1,000 shards: every shard is met
NAMES = ('speech', 'dog', 'rain', 'siren', 'music', 'engine')


@dataclasses.dataclass(frozen=True)
class TinyClips:
    """A `ClipSource` of clips that cost nothing."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def check(self, sample_rate: int) -> None:
        """Any rate."""

    def clip_id(self, index: int) -> str:
        return f'clip-{self.start + index:07d}'

    def read(self, index: int, sample_rate: int) -> Clip:
        number = self.start + index
        labels = NAMES[number % 6], NAMES[number // 6 % 6]
        return Clip(self.clip_id(index), np.full(16, 0.5, np.float32), (f'{labels[0]} number {number}',), labels)

    def part(self, start: int, stop: int) -> 'TinyClips':
        return TinyClips(self.start + start, self.start + stop)

    def description(self) -> list[int]:
        return [self.start, self.stop]


def write_embeddings(directory: Path, info: SplitInfo) -> None:
    """As `embed` does, but all zeros, and without the time."""
    encoder = load_encoder('words')
    folder = cache_directory(directory, encoder.name)
    write_json(folder / 'encoder.json', encoder.identity())
    for shard, length in enumerate(info.shard_lengths):
        rows, offsets = cache_paths(directory, encoder.name, info, shard)
        np.save(offsets, np.arange(length + 1, dtype=np.int64))
        header = {'descr': '<f2', 'fortran_order': False, 'shape': (length, encoder.embedding_size)}
        with open(rows, 'wb') as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 2 * length * encoder.embedding_size)
    write_json(folder / f'{info.split}.json', {'content': info.content, 'complete': True})


READER = """
import sys, time
started = time.perf_counter()
import multiprocessing
from audiosep_jax.data.batches import DataConfig, make_batches

def memory(pid):
    lines = open(f'/proc/{pid}/status').read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmRSS'))

if __name__ == '__main__':
    directory, workers, batch, count = sys.argv[1], *map(int, sys.argv[2:])
    imported = time.perf_counter()
    config = DataConfig(data=(directory,), segment_seconds=0.0005, workers=workers, threads=2)
    batches = make_batches(config, sample_rate=32000, batch_size=batch, seed=0, labels=True)
    opened = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    for _ in range(count):
        next(batches)
    read = time.perf_counter()
    children = multiprocessing.active_children()
    of_workers = max((memory(child.pid) for child in children), default=0.0)
    state = batches.get_state() | {'position': 10**9 // batch * batch}
    jumping = time.perf_counter()
    batches.set_state(state)
    next(batches)
    jumped = time.perf_counter()
    print(imported - started, opened - imported, first - opened, (read - first) / count / batch, jumped - jumping,
          memory('self'), of_workers)
    batches.close()
"""


def read(directory: Path, workers: int) -> list[float]:
    """What READER prints."""
    with tempfile.NamedTemporaryFile('w', suffix='.py') as script:
        script.write(READER)
        script.flush()
        command = [sys.executable, script.name, str(directory), str(workers), str(BATCH), str(BATCHES)]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    if run.returncode:
        raise SystemExit(run.stderr)
    return [float(number) for number in run.stdout.split()]


def main(
    clips: int = 2_000_000, clips_per_shard: int = 2000, folder: Path | None = None, json_file: Path | None = None
) -> None:
    """Prints the table.

    Args:
        clips: of the dataset.
        clips_per_shard: of them in a shard.
        folder: where the dataset is made, and stays (default: a temporary folder).
        json_file: where to write the figures as well.
    """
    figures: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        directory = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.perf_counter()
        result = build_shards(
            TinyClips(0, clips),
            directory,
            sample_rate=32000,
            name='tiny',
            codec='pcm16',
            clips_per_shard=clips_per_shard,
            jobs=num_cores(),
        )
        figures['build, s'] = time.perf_counter() - started
        if not (cache_directory(directory, 'words') / 'train.json').exists():
            write_embeddings(directory, result.info)
        started = time.perf_counter()
        build_shards(
            TinyClips(0, clips),
            directory,
            sample_rate=32000,
            name='tiny',
            codec='pcm16',
            clips_per_shard=clips_per_shard,
        )
        figures['build again, nothing to do, s'] = time.perf_counter() - started
        for workers in (0, 2):
            imports, opening, first, per_clip, jump, memory, of_worker = read(directory, workers)
            label = f'{workers} workers: '
            figures |= {
                label + 'import, s': imports,
                label + 'open, s': opening,
                label + 'first batch, s': first,
                label + 'start-up in all, s': imports + opening + first,
                label + 'a clip, ms': per_clip * 1e3,
                label + 'jump to position 10^9, s': jump,
                label + 'memory of the process, MiB': memory,
            }
            if workers:
                figures[label + 'memory of a worker, MiB'] = of_worker
    table = Table(f'{clips:,} clips, {result.info.num_shards:,} shards', '')
    for name, value in figures.items():
        table.add_row(name, f'{value:.2f}' if value < 100 else f'{value:.0f}')
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    tyro.cli(main)
