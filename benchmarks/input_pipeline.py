"""Clips a second of the input pipeline, per core: by codec, workers and threads, beside what the original does.

python benchmarks/input_pipeline.py

Clips of 10 s, crops of 5 s at 32 kHz, files in the page cache, one process for each measurement, medians of several
that take turns. `a core` is clips by the CPU time of all processes: what a busy core gives, whatever else the machine
does; `wall` is what arrived.

The original (data/audiotext_dataset.py) reads whole WAV files of 44.1 kHz, resamples them by
`torchaudio.functional.resample`, whose formula stands below, and crops; `kernel kept` spares it the resampling kernel
that the original recomputes for each clip. Those rows need torch.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import soundfile
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiosep_jax.audio.resampling import resample
from audiosep_jax.data.batches import DataConfig, make_batches
from audiosep_jax.encoders.registry import load_encoder
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions
from data_prep.options import num_cores

RATE, WAV_RATE = 32000, 44100
SECONDS, SEGMENT = 10, 5
BATCH = 16
WARM_UP = 4  # batches, until all buffers are full


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row: our shards of a codec, or `wav` and `wav, kernel kept` by PyTorch's DataLoader."""

    data: str
    workers: int
    threads: int = 1

    @property
    def is_ours(self) -> bool:
        return not self.data.startswith('wav')


def sound(seed: int) -> np.ndarray:
    """float32 [T] at 32 kHz: coloured noise in bursts over a few tones, which FLAC shrinks to two thirds."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(SECONDS * RATE) / RATE
    spectrum = np.fft.rfft(rng.standard_normal(len(time_s)))
    noise = np.fft.irfft(spectrum / (1 + np.arange(len(spectrum)) / 4e4) ** 2, len(time_s))
    bursts = 0.3 + 0.7 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time_s) ** 2
    tones = sum(np.sin(2 * np.pi * f * time_s) for f in rng.uniform(100, 4000, 3))
    mixed = noise / np.abs(noise).max() * bursts + 0.1 * tones
    return (rng.uniform(0.1, 0.5) * mixed / np.abs(mixed).max()).astype(np.float32)


def make_data(folder: Path, count: int) -> dict[str, float]:
    """Shards of both codecs, and the same clips as WAV files; returns the kilobytes of a clip of each."""
    clips = [Clip(f'clip-{n}', sound(n), (f'sound {n % 50}',), (f'label {n % 9}',)) for n in range(count)]
    for codec in ('flac', 'pcm16'):
        directory = folder / codec
        build_shards(clips, directory, sample_rate=RATE, name=codec, codec=codec, clips_per_shard=50)
        embed_captions(directory, load_encoder('words'))
    (folder / 'wav').mkdir(exist_ok=True)
    for clip in clips:
        wave = np.clip(resample(clip.audio, RATE, WAV_RATE), -1, 1)
        soundfile.write(folder / 'wav' / f'{clip.id}.wav', wave, WAV_RATE, subtype='PCM_16')
    sizes = {}
    for name in ('flac', 'pcm16', 'wav'):
        files = [path for path in (folder / name).iterdir() if 'array_record' in path.name or path.suffix == '.wav']
        sizes[name] = sum(path.stat().st_size for path in files) / count / 1000
    return sizes


# ---- What the original does ----


def sinc_kernel(orig: int, new: int):
    """torchaudio's `_get_sinc_resample_kernel` for its defaults (Hann, width 6, roll-off 0.99) -> (kernel, width)."""
    import torch

    base = min(orig, new) * 0.99
    width = math.ceil(6 * orig / base)
    index = torch.arange(-width, width + orig, dtype=torch.float64)[None, None] / orig
    at = (torch.arange(0, -new, -1, dtype=torch.float64)[:, None, None] / new + index) * base
    at = at.clamp(-6, 6)
    window = torch.cos(at * math.pi / 6 / 2) ** 2
    at = at * math.pi
    kernel = torch.where(at == 0, torch.ones((), dtype=torch.float64), at.sin() / at) * window * (base / orig)
    return kernel.float(), width


def sinc_resample(wave, kernel, width: int, orig: int, new: int):
    """torchaudio's `_apply_sinc_resample_kernel`: float32 [T] -> [ceil(T * new / orig)]."""
    import torch

    padded = torch.nn.functional.pad(wave[None], (width, width + orig))
    found = torch.nn.functional.conv1d(padded[:, None], kernel, stride=orig)
    return found.transpose(1, 2).reshape(-1)[: math.ceil(new * len(wave) / orig)]


class WholeFiles:
    """The original's AudioTextDataset, reading by soundfile (torchaudio's own backend for WAV files)."""

    def __init__(self, folder: Path, keep_kernel: bool):
        self.paths, self.keep_kernel, self.kernel = sorted(map(str, folder.glob('*.wav'))), keep_kernel, None
        common = math.gcd(WAV_RATE, RATE)
        self.orig, self.new = WAV_RATE // common, RATE // common

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        import torch

        wave = torch.from_numpy(soundfile.read(self.paths[index], dtype='float32')[0])
        if self.kernel is None or not self.keep_kernel:
            self.kernel = sinc_kernel(self.orig, self.new)
        wave = sinc_resample(wave, *self.kernel, self.orig, self.new)[None]
        start = random.randint(0, wave.shape[1] - SEGMENT * RATE)
        return {'text': 'a sound', 'waveform': wave[:, start : start + SEGMENT * RATE], 'modality': 'audio_text'}


def collate(items: list[dict]) -> dict:
    """The original's `collate_fn`, for its one modality."""
    import torch

    return {'text': [i['text'] for i in items], 'waveform': torch.stack([i['waveform'] for i in items])}


# ---- Measuring ----


@contextlib.contextmanager
def batches_of(setting: Setting, folder: Path) -> Iterator[Iterator]:
    """Endless batches."""
    if setting.is_ours:
        data = DataConfig(data=(str(folder / setting.data),), workers=setting.workers, threads=setting.threads)
        with make_batches(data, sample_rate=RATE, batch_size=BATCH, seed=0) as batches:
            yield batches
        return
    import torch

    dataset = WholeFiles(folder / 'wav', keep_kernel=setting.data != 'wav')
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    # Spawned, not forked as by default: this process holds the threads of other libraries, which a fork aborts.
    context = 'spawn' if setting.workers else None
    loader = torch.utils.data.DataLoader(
        dataset,
        BATCH,
        sampler=sampler,
        num_workers=setting.workers,
        collate_fn=collate,
        multiprocessing_context=context,
    )
    torch.set_num_threads(1)  # as in DataLoader's workers
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        # What it does itself at its end, which is far. A worker that has loaded the other libraries may abort then.
        with contextlib.suppress(RuntimeError, AttributeError):
            iterator._shutdown_workers()


def cpu_seconds() -> float:
    """Of this process and its workers."""
    ticks = 0
    for child in multiprocessing.active_children():
        after_name = Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return time.process_time() + ticks / os.sysconf('SC_CLK_TCK')


def measure(setting: Setting, folder: Path, seconds: float) -> tuple[float, float]:
    """Reads batches for some seconds; returns (clips per CPU second, clips per second)."""
    with batches_of(setting, folder) as batches:
        for _ in range(WARM_UP * max(setting.workers, 1)):
            next(batches)
        clips, cpu, started = 0, cpu_seconds(), time.perf_counter()
        while time.perf_counter() - started < seconds:
            next(batches)
            clips += BATCH
        return clips / (cpu_seconds() - cpu), clips / (time.perf_counter() - started)


def measured_alone(setting: Setting, folder: Path, seconds: float) -> tuple[float, float]:
    """Runs `measure` in a separate process, because memory that one run leaves behind speeds up the next."""
    with futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(measure, setting, folder, seconds).result()


def main(
    clips: int = 200, seconds: float = 4.0, repeats: int = 3, quick: bool = False, json_file: Path | None = None
) -> None:
    """Prints the table.

    Args:
        clips: to make (each 1.9 MB, in a temporary folder).
        seconds: for each measurement.
        repeats: of each measurement.
        quick: one worker or thread alone.
        json_file: where to write the figures as well.
    """
    cores = num_cores()
    ours = [(0, 1), (0, 4), (1, 1), (cores, 1), (cores, 4)]
    settings = [Setting(codec, *way) for codec in ('flac', 'pcm16') for way in (ours[:1] if quick else ours)]
    if importlib.util.find_spec('torch'):
        ways = (0,) if quick else (0, cores)
        settings += [Setting(data, workers) for data in ('wav', 'wav, kernel kept') for workers in ways]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = make_data(folder, clips)
        found: dict[Setting, list] = {setting: [] for setting in settings}
        for setting in track(settings * repeats, 'measuring', console=Console(stderr=True), transient=True):
            found[setting].append(measured_alone(setting, folder, seconds))

    medians = {s: tuple(map(statistics.median, zip(*pairs, strict=True))) for s, pairs in found.items()}
    original = medians.get(Setting('wav', 0))
    table = Table('data', 'kB a clip', 'workers', 'threads', 'clips/s a core', 'wall clips/s', 'of the original a core')
    figures = []
    for setting, (per_core, wall) in medians.items():
        ratio = per_core / original[0] if original else math.nan
        threads = str(setting.threads) if setting.is_ours else ''
        size = f'{sizes[setting.data.partition(",")[0]]:.0f}'
        table.add_row(
            setting.data, size, str(setting.workers), threads, f'{per_core:.0f}', f'{wall:.0f}', f'{ratio:.1f}'
        )
        figures.append(dataclasses.asdict(setting) | {'a core': per_core, 'wall': wall, 'of the original': ratio})
    Console().print(f'{cores} cores', table)
    if json_file:
        json_file.write_text(json.dumps({'cores': cores, 'kilobytes': sizes, 'rows': figures}, indent=2) + '\n')


if __name__ == '__main__':
    tyro.cli(main)
