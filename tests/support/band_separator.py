"""A separator that knows three sounds by their band, and folders of benchmarks made of these sounds."""

import csv

import numpy as np

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.models.audiosep import ModelConfig

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(1,) * 2, condition_size=64)
HERTZ = {'low hum': 200.0, 'whistle': 1500.0, 'hiss': 3000.0}
KINDS, OTHERS = ['low hum', 'low hum', 'whistle', 'hiss'], ['whistle', 'hiss', 'hiss', 'low hum']


class BandSeparator:
    """Gives the band of the sound whose name is nearest to the query. Stands in for a model."""

    config = CONFIG
    encoder = WordsEncoder(CONFIG.condition_size)
    info = {'path': 'somewhere', 'step': 3, 'encoder': encoder.identity(), 'config': {'steps': 3}}  # noqa: RUF012
    max_whole_seconds = 30.0
    level = 'off'

    def __init__(self):
        self.calls = 0

    def fingerprint(self):
        return 'band'

    def embed(self, queries):
        return self.encoder.encode_text(list(queries))

    def separate_batch(self, mixtures, embeddings, *, batch_size):
        self.calls += 1
        known = self.embed(HERTZ)
        hertz = [list(HERTZ.values())[int(np.argmax(known @ embedding))] for embedding in embeddings]
        return [self._band(*pair) for pair in zip(mixtures, hertz, strict=True)]

    def _band(self, mixture, hertz):
        spectrum = np.fft.rfft(mixture)
        frequencies = np.fft.rfftfreq(len(mixture), 1 / self.config.sample_rate)
        spectrum[abs(frequencies - hertz) > 400] = 0
        return np.fft.irfft(spectrum, len(mixture)).astype(np.float32)


class NoQuerySeparator(BandSeparator):
    """Halves the mixture, whatever it is asked."""

    def fingerprint(self):
        return 'half'

    def separate_batch(self, mixtures, embeddings, *, batch_size):
        self.calls += 1
        return [m / 2 for m in mixtures]


def sound(kind, samples=4000, level=0.3, rate=8000):
    return (level * np.sin(2 * np.pi * HERTZ[kind] * np.arange(samples) / rate)).astype(np.float32)


def mixtures_of(kinds, others, **options):
    targets = [sound(kind, **options) for kind in kinds]
    return [t + sound(other, **options) for t, other in zip(targets, others, strict=True)], targets


def write_pair(target, mixture, kind, other, *, rate=16000, channels=2, samples=8000):
    """Stereo and at another rate than the model's, if not said otherwise."""
    parts = [sound(name, samples=samples, rate=rate) for name in (kind, other)]
    for path, audio in ((target, parts[0]), (mixture, parts[0] + parts[1])):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, np.tile(audio, (channels, 1)), rate)


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([header.split(','), *rows])


def make_numbered(folder, table, header, texts, kinds=KINDS, others=OTHERS, suffix='.wav', **options):
    """`table` with a row per kind, and the files `segment-IDX` and `mixture-IDX`; `texts(i, kind)` are its columns
    between idx and the sources."""
    sources = header.split(',')[1 + len(texts(0, 'x')) :]
    write_table(
        folder / table, header, [[i, *texts(i, k), *[f'{k}-{c}' for c in sources]] for i, k in enumerate(kinds)]
    )
    for i, (kind, other) in enumerate(zip(kinds, others, strict=True)):
        write_pair(folder / f'segment-{i}{suffix}', folder / f'mixture-{i}{suffix}', kind, other, **options)


def make_music(folder, **options):
    make_numbered(folder, 'music_eval.csv', 'idx,caption,src_wav,noise_wav', lambda i, kind: [kind], **options)


def rows_of(results):
    return {row.name: row for row in results.rows}
