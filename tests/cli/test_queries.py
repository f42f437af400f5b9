"""What `audiosep-jax separate` can be asked: words, examples, vectors, blends, and what must stay out."""

import jax
import numpy as np
import pytest
from support import tiny_clap
from support.quarter_separator import QuarterSeparator, files, one_error, write

from audiosep_jax.cli import terminal
from audiosep_jax.cli.main import main
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.separation.separator import Separator
from audiosep_jax.weights.tensor_files import write_tensors


class Listening(QuarterSeparator):
    """Keeps what it was asked."""

    def prepare(self, queries):
        self.asked = super().prepare(queries)
        return self.asked


@pytest.fixture
def listening(monkeypatch):
    fake = Listening()
    monkeypatch.setattr(terminal, 'load', lambda path, **options: fake)
    return fake


def separate(*arguments):
    return main(['separate', 'in.wav', *arguments, '-o', 'out', '--checkpoint', 'c'])


def names(folder):
    return [name for name in files(folder) if name.startswith('out')]


def test_each_query_gives_a_sound(folder, listening):
    write('in.wav')
    np.save('bell.npy', np.eye(16, dtype=np.float32)[3])
    assert separate('--query', 'a dog', '--query', 'rain', '--vector', 'bell.npy') == 0
    assert names(folder) == ['out/in__a_dog.wav', 'out/in__bell.wav', 'out/in__rain.wav']
    expected = listening.encoder.encode_text(['a dog', 'rain'])
    np.testing.assert_array_equal(listening.asked.queries, [*expected, np.eye(16)[3]])
    assert listening.asked.excluded == ((), (), ())


def test_a_blend_is_one_sound(folder, listening):
    write('in.wav')
    np.save('bell.npy', np.eye(16, dtype=np.float32)[3])
    flags = ['--query', 'a dog', '--vector', 'bell.npy', '--weights', '3', '1']
    assert separate(*flags) == 0
    assert names(folder) == ['out/in__a_dog_bell.wav']
    direction = 3 * listening.encoder.encode_text(['a dog'])[0] + np.eye(16)[3]
    np.testing.assert_allclose(listening.asked.queries[0], direction / np.linalg.norm(direction), atol=1e-6)
    assert separate('--query', 'a dog', '--query', 'rain', '--blend', '--force') == 0
    assert listening.asked.queries.shape == (1, 16)


def test_what_must_stay_out_is_kept_out_of_all_and_out_of_the_names(folder, listening):
    write('in.wav')
    flags = ['--query', 'a dog', '--query', 'rain', '--not', 'speech', '--not', 'a piano']
    assert separate(*flags) == 0
    assert names(folder) == ['out/in__a_dog.wav', 'out/in__rain.wav']
    assert [len(rows) for rows in listening.asked.excluded] == [2, 2]


def test_one_query_of_any_kind_may_go_to_a_file(folder, listening):
    write('in.wav')
    np.save('bell.npy', np.ones(16, np.float32))
    assert main(['separate', 'in.wav', '--vector', 'bell.npy', '-o', 'x.wav']) == 0
    assert (folder / 'x.wav').exists()


@pytest.mark.parametrize(
    ('flags', 'code', 'says'),
    [
        ([], 2, 'no query'),
        (['--not', 'speech'], 2, 'no query'),
        (['--query', 'a dog', '--not', ' '], 2, '--not "a dog barking"'),
        (['--query', 'a dog', '--not', 'rain', '--not', 'rain'], 2, 'given twice'),
        (['--query', 'a dog', '--not', 'a dog'], 2, 'asks for exactly what it excludes'),
        (['--query', 'a dog', '--query', 'rain', '--weights', '1'], 2, '--weights has 1 numbers for 2 queries'),
        (['--query', 'a dog', '--query', 'rain', '--weights', '1', '-1'], 2, 'weight'),
        (['--query', 'a dog', '--query', 'rain', '--weights', '1', 'nan'], 2, 'weight'),
        (['--like', 'in.wav'], 2, "'words' does not understand audio examples"),
        (['--image', 'in.wav'], 2, "'words' does not understand images"),
        (['--like', 'missing.wav'], 1, 'missing.wav'),
        (['--image', 'missing.png'], 2, 'missing.png'),
        (['--vector', 'missing.npy'], 2, 'missing.npy'),
        (['--vector', 'in.wav'], 2, 'in.wav'),
        (['--vector', 'short.npy'], 2, 'shape [16]'),
        (['--vector', 'nan.npy'], 2, 'NaN'),
        (['--vector', 'objects.npy'], 2, 'objects.npy'),
    ],
)
def test_mistakes_are_one_line(folder, listening, capsys, flags, code, says):
    write('in.wav')
    np.save('short.npy', np.ones(3, np.float32))
    np.save('nan.npy', np.full(16, np.nan, np.float32))
    np.save('objects.npy', np.array([{}, []], object), allow_pickle=True)
    before = files(folder)
    assert separate(*flags) == code
    assert says in one_error(capsys)
    assert files(folder) == before


def test_by_example(folder, monkeypatch):
    """A real CLAP, of a few thousand weights, and a real network."""
    write_tensors(folder / 'model.safetensors', tiny_clap.laion_tensors())
    config = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(1,) * 2, condition_size=16)
    separator = Separator(config, init_variables(config, jax.random.key(0)), ClapEncoder.open(folder))
    monkeypatch.setattr(terminal, 'load', lambda path, **options: separator)
    write('in.wav')
    write('dog.wav', seed=3, samples=500)
    assert separate('--like', 'dog.wav') == 0
    assert names(folder) == ['out/in__dog.wav']
