"""A separator without a network and sounds to give it: what the tests of the command line share."""

import numpy as np

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.separation.queries import embed
from audiosep_jax.separation.separator import Separation

RATE = 16000


class QuarterSeparator:
    """Every query gets a quarter of the mixture: what is written can be checked without a network."""

    config = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(1,) * 2, condition_size=16)
    encoder = WordsEncoder(16)
    info = {'path': 'somewhere', 'step': 1, 'encoder': encoder.identity(), 'config': {}}  # noqa: RUF012
    gain = 0.25
    max_whole_seconds = 30.0
    level = 'off'

    def fingerprint(self):
        return 'quarter'

    def embed(self, queries):
        return self.prepare(queries).queries

    def prepare(self, queries):
        return embed(queries, self.encoder, self.config.condition_size)

    def stream(self, blocks, embedded, *, sample_rate, per_channel=False, live=True):
        assert sample_rate == RATE
        for block in blocks:
            targets = np.stack([self.gain * block] * len(embedded.queries))
            yield Separation(targets, block - targets.sum(0))

    def separate_batch(self, mixtures, embeddings, *, batch_size):
        return [self.gain * m for m in mixtures]


def sound(channels=2, samples=800, level=0.4, seed=0):
    return np.random.default_rng(seed).uniform(-level, level, (channels, samples)).astype(np.float32)


def write(name, **options):
    write_audio(name, sound(**options), RATE, subtype='FLOAT' if name.endswith('.wav') else 'PCM_16')
    return name


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def one_error(capsys):
    """The only line on stderr, which is an error."""
    captured = capsys.readouterr().err
    lines = captured.splitlines()
    assert len(lines) == 1, captured
    assert lines[0].startswith('audiosep-jax: error: ')
    assert 'Traceback' not in captured
    return lines[0]
