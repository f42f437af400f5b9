"""Compares this project's evaluation with the original's evaluators, on the same folders and random weights.

    git clone https://github.com/Audio-AGI/AudioSep
    git clone https://github.com/Audio-AGI/dcase2024_task9_baseline
    pip install -e '.[parity]' librosa torchlibrosa pandas pyyaml tqdm
    python benchmarks/original_evaluators.py --audiosep AudioSep --dcase dcase2024_task9_baseline

The script makes a small folder in each benchmark's layout from noise and tones: mono and stereo, at 32, 44.1 and 48
kHz, of odd lengths, with a silent target, repeated rows, and classes of different sizes. It runs the evaluators of the
two clones with PyTorch, and this project's on the converted weights. Queries are hashed words in both, because the
comparison does not need CLAP. It prints the aggregates and their differences in dB.
"""

import contextlib
import csv
import importlib
import io
import sys
import tempfile
import types
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.torch_names import variables_from_torch
from audiosep_jax.separation.separator import Separator

FORMATS = ((32000, 1), (44100, 2), (48000, 1), (44100, 1))  # Hz, channels
MUSIC = (
    'acoustic guitar', 'violin', 'accordion', 'xylophone', 'erhu', 'trumpet', 'tuba', 'cello', 'flute', 'saxophone',
)  # fmt: skip


# ---- folders ---------------------------------------------------------------------------------------------------------


class Maker:
    """Writes pairs of a target and a mixture, all of which differ."""

    def __init__(self, seconds: float):
        self._rng, self._count, self._seconds = np.random.default_rng(0), 0, seconds

    def pair(self, target: Path, mixture: Path, *, silent: bool = False) -> None:
        """Writes two files of the same length in the next of `FORMATS`."""
        rate, channels = FORMATS[self._count % len(FORMATS)]
        samples = int(self._seconds * rate) + 37 * self._count
        wanted = np.zeros((channels, samples)) if silent else self._sound(rate, channels, samples)
        for path, sound in ((target, wanted), (mixture, wanted + self._sound(rate, channels, samples))):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(path, sound.astype(np.float32), rate)
        self._count += 1

    def _sound(self, rate: int, channels: int, samples: int) -> np.ndarray:
        time = np.arange(samples) / rate
        hertz = self._rng.uniform(100, 5000)
        tone = np.sin(2 * np.pi * hertz * time) * np.sin(2 * np.pi * self._rng.uniform(0.5, 4) * time) ** 2
        noise = self._rng.standard_normal((channels, samples)).cumsum(axis=1)
        noise -= noise.mean(axis=1, keepdims=True)
        return self._rng.uniform(0.05, 0.2) * (tone + noise / np.abs(noise).max())


def make_folders(root: Path, labels: list[str], seconds: float) -> None:
    """Makes `root/evaluation/{data,metadata}` as in the original, and `root/lass_validation` next to its table."""
    maker, data, metadata = Maker(seconds), root / 'evaluation' / 'data', root / 'evaluation' / 'metadata'
    metadata.mkdir(parents=True)

    def table(name: str, header: str, rows: list[list]) -> None:
        with (metadata / name).open('w', newline='') as file:
            csv.writer(file).writerows([header.split(','), *rows])

    def numbered(name: str, count: int, silent: int | None = None) -> None:
        for i in range(count):
            folder = data / name
            maker.pair(folder / f'segment-{i}.wav', folder / f'mixture-{i}.wav', silent=i == silent)

    numbered('audiocaps', 6, silent=3)
    rows = [[i, f'sound number {i}, and another', f'label {i % 3}', f'{i // 2}.wav', 'x.wav'] for i in range(6)]
    table('audiocaps_eval.csv', 'idx,caption,labels,src_wav,noise_wav', [*rows, rows[2]])
    numbered('clotho', 5)
    rows = [[i, f' a caption with blanks {i} ', f'{i // 5}.wav', 'x.wav', 'y.wav'] for i in range(5)]
    table('clotho_eval.csv', 'idx,caption,src_wav,noise_wav1,noise_wav1', rows)
    numbered('esc50', 4, silent=1)
    table('esc50_eval.csv', 'idx,caption,src_wav,noise_wav', [[i, f'class {i % 3}', 'x', 'y'] for i in range(4)])
    numbered('music', 13)
    rows = [[i, MUSIC[min(i, 9)], 'x', 'y'] for i in range(13)]
    table('music_eval.csv', 'idx,caption,src_wav,noise_wav', rows)
    names = [f'a{i}_000030+++b{i}_000001.wav' for i in range(4)]
    for name in names:
        maker.pair(data / 'vggsound' / 'data' / 's0_wav' / name, data / 'vggsound' / 'data' / 'mix_wav' / name)
    rows = [[n[:-4], f'data/mix_wav/{n}', f'data/s0_wav/{n}', f'playing {n[:2]}', 'z', 'w'] for n in names]
    table('vggsound_eval.csv', 'file_id,mix_wav,s0_wav,s0_text,s1_wav,s1_text', rows)
    table('class_labels_indices.csv', 'index,mid,display_name', [[i, f'/m/{i}', x] for i, x in enumerate(labels)])
    for class_id in range(len(labels)):  # one class without sounds, and one with more than are scored
        folder = data / 'audioset' / f'class_id={class_id}'
        folder.mkdir(parents=True)
        for i in range((0, 1, 12, 2)[class_id]):
            stem = f'class_id={class_id},index={i:03}'
            maker.pair(folder / f'{stem},source.wav', folder / f'{stem},mixture.wav', silent=(class_id, i) == (3, 0))

    sounds = root / 'lass_validation'
    for i in range(4):
        maker.pair(sounds / f'{2 * i}.wav', sounds / f'{2 * i + 1}.wav')
    rows = [[2 * i, 2 * i + 1, snr, f'caption {i}'] for i, snr in enumerate((-15, 0, 5, 14))]
    with (root / 'lass_synthetic_validation.csv').open('w', newline='') as file:
        csv.writer(file).writerows([['source', 'noise', 'snr', 'caption'], *rows])


# ---- the original ----------------------------------------------------------------------------------------------------


class TorchModel:
    """Has what the evaluators need from a Lightning module: `ss_model`, `query_encoder`, `device`, `eval`."""

    device = 'cpu'

    def __init__(self, network, encoder: WordsEncoder):
        import torch

        self.ss_model, self.query_encoder = network.eval(), self
        self._embed = lambda text: torch.from_numpy(encoder.encode_text(text))

    def eval(self) -> None:
        """Does nothing, because the network is already in evaluation mode."""

    def get_query_embed(self, modality: str, text: list[str], device: str):
        """Returns the embedding of a text, float32 [1, E]."""
        return self._embed(text)


def import_original(audiosep: Path, dcase: Path):
    """Imports the modules of the two clones, with stubs for imports that the comparison does not need."""
    sys.path[:0] = [str(audiosep), str(dcase)]
    for name in ('lightning', 'lightning.pytorch', 'models.audiosep', 'models.clap_encoder'):
        sys.modules[name] = types.ModuleType(name)
    sys.modules['lightning'].pytorch = sys.modules['lightning.pytorch']
    sys.modules['lightning.pytorch'].LightningModule = object
    sys.modules['models.audiosep'].AudioSep = sys.modules['models.audiosep'].get_model_class = object
    sys.modules['models.clap_encoder'].CLAP_Encoder = object
    return importlib.import_module('models.resunet')


def random_network(resunet, window: int, hop: int, sample_rate: int):
    """Returns a network whose statistics and gains let it change its input, its configuration and our variables."""
    import torch

    torch.manual_seed(0)
    network = resunet.ResUNet30(input_channels=1, output_channels=1, condition_size=512)
    if (window, hop) != (2048, 320):  # as in DCASE's baseline, which replaces the STFT modules
        stft = sys.modules['models.resunet']
        settings = {'n_fft': window, 'hop_length': hop, 'win_length': window, 'window': 'hann', 'center': True}
        network.base.stft = stft.STFT(**settings, pad_mode='reflect', freeze_parameters=True)
        network.base.istft = stft.ISTFT(**settings, pad_mode='reflect', freeze_parameters=True)
        network.base.bn0 = torch.nn.BatchNorm2d(window // 2 + 1, momentum=0.01)
    for name, tensor in network.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2)
        elif name.endswith(('running_mean', 'bias')):
            tensor.normal_(0, 0.3)
        elif 'stft' not in name and tensor.dim() > 1:
            tensor.mul_(1.5)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items() if 'stft' not in name}
    config = ModelConfig(sample_rate=sample_rate, window_size=window, hop_size=hop)
    return network, config, variables_from_torch(state)


def original_scores(model: TorchModel, dcase_model: TorchModel) -> dict[str, dict[str, float]]:
    """Returns scores by benchmark and metric for `evaluation` and `lass_validation` in the current folder."""
    scores = {}
    for name, title in (
        ('audiocaps', 'AudioCaps'),
        ('clotho', 'Clotho'),
        ('esc50', 'ESC50'),
        ('music', 'MUSIC'),
        ('vggsound', 'VGGSound'),
    ):
        evaluator = getattr(importlib.import_module(f'evaluation.evaluate_{name}'), f'{title}Evaluator')
        si_sdr, sdri = evaluator()(model)
        scores[name] = {'SDRi': sdri, 'SI-SDR': si_sdr}
        if name == 'audiocaps':
            si_sdr, sdri = evaluator(query='labels')(model)
            scores['audiocaps, label'] = {'SDRi': sdri, 'SI-SDR': si_sdr}
    module = importlib.import_module('evaluation.evaluate_audioset')
    statistics = module.AudioSetEvaluator(classes_num=module.CLASSES_NUM)(model)
    mean = module.get_mean_sdr_from_dict  # benchmark.py passes it the medians
    scores['audioset'] = {
        metric: mean({k: np.nanmedian(values) for k, values in statistics[key].items()})
        for metric, key in (('SDRi', 'sdris_dict'), ('SI-SDR', 'sisdrs_dict'))
    }
    si_sdr, sdri, sdr = importlib.import_module('dcase_evaluator').DCASEEvaluator()(dcase_model)
    scores['dcase2024'] = {'SDR': sdr, 'SDRi': sdri, 'SI-SDR': si_sdr}
    return scores


def our_scores(separator: Separator, dcase_separator: Separator, root: Path) -> dict[str, dict[str, float]]:
    """Returns the same scores by this project."""
    scores = {}
    for name in ('audiocaps', 'clotho', 'esc50', 'music', 'vggsound', 'audioset', 'dcase2024'):
        dcase = name == 'dcase2024'
        benchmark = read_benchmark(root if dcase else root / 'evaluation' / 'data' / name, name)
        for kind in benchmark.query_types:
            results = evaluate(
                dcase_separator if dcase else separator, benchmark, Options(shuffled=False), query_types=[kind]
            )
            row = results.rows[0].scores
            key = name if kind == benchmark.query_types[0] else f'{name}, {kind}'
            scores[key] = {metric: row[metric].value for metric in ('SDR', 'SDRi', 'SI-SDR')}
            for left in results.left_out:
                print(f'left out: {left.message}')
    return scores


def main(audiosep: Path, dcase: Path, seconds: float = 1.0) -> None:
    """Makes the folders, runs both evaluations, and prints the comparison.

    Args:
        audiosep: a clone of AudioSep.
        dcase: a clone of the DCASE 2024 Task 9 baseline.
        seconds: approximate length of the sounds.
    """
    resunet = import_original(audiosep.absolute(), dcase.absolute())
    encoder = WordsEncoder(512)
    pairs = [random_network(resunet, *settings) for settings in ((2048, 320, 32000), (1024, 160, 16000))]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_folders(Path(folder), ['Speech', 'Male speech, man speaking', 'Bark', 'Rain'], seconds)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = original_scores(*(TorchModel(network, encoder) for network, _, _ in pairs))
        ours = our_scores(*(Separator(config, variables, encoder) for _, config, variables in pairs), Path(folder))
    table = Table('benchmark', 'metric', 'original, dB', 'here, dB', 'difference, dB')
    worst = 0.0
    for name, scores in theirs.items():
        for metric, value in scores.items():
            difference = ours[name][metric] - float(value)
            worst = max(worst, abs(difference))
            table.add_row(name, metric, f'{float(value):.5f}', f'{ours[name][metric]:.5f}', f'{difference:+.6f}')
    Console().print(table)
    print(f'largest difference {worst:.6f} dB, JAX on {jax.default_backend()}')


if __name__ == '__main__':
    tyro.cli(main)
