"""Language-queried sound separation in JAX.

    import audiosep_jax as asj
    separator = asj.load('checkpoint/directory')
    out = separator.separate(audio, ['a dog barking'], sample_rate=44100)

Names are imported on first use, so that `import audiosep_jax` costs nothing and pulls in no framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.2.0'

__all__ = [
    'AudioSep',
    'AudioSepError',
    'LearntQuery',
    'ModelConfig',
    'Query',
    'ResUNet30',
    'SegmentMixer',
    'Separation',
    'Separator',
    'istft',
    'learn_query',
    'load',
    'load_encoder',
    'metrics',
    'push',
    'read_audio',
    'separate_file',
    'stft',
    'write_audio',
]

if TYPE_CHECKING:
    from audiosep_jax import metrics
    from audiosep_jax.audio.reading import read_audio
    from audiosep_jax.audio.stft import istft, stft
    from audiosep_jax.audio.writing import write_audio
    from audiosep_jax.checkpoints.publish import push
    from audiosep_jax.encoders.registry import load_encoder
    from audiosep_jax.errors import AudioSepError
    from audiosep_jax.models.audiosep import AudioSep, ModelConfig
    from audiosep_jax.models.resunet import ResUNet30
    from audiosep_jax.query_learning.learning import learn_query
    from audiosep_jax.separation.files import separate_file
    from audiosep_jax.separation.loading import load
    from audiosep_jax.separation.queries import Query
    from audiosep_jax.separation.query_files import LearntQuery
    from audiosep_jax.separation.separator import Separation, Separator
    from audiosep_jax.training.mixing import SegmentMixer

_HOMES = {
    'AudioSep': 'models.audiosep',
    'AudioSepError': 'errors',
    'LearntQuery': 'separation.query_files',
    'ModelConfig': 'models.audiosep',
    'Query': 'separation.queries',
    'ResUNet30': 'models.resunet',
    'SegmentMixer': 'training.mixing',
    'Separation': 'separation.separator',
    'Separator': 'separation.separator',
    'istft': 'audio.stft',
    'learn_query': 'query_learning.learning',
    'load': 'separation.loading',
    'load_encoder': 'encoders.registry',
    'push': 'checkpoints.publish',
    'read_audio': 'audio.reading',
    'separate_file': 'separation.files',
    'stft': 'audio.stft',
    'write_audio': 'audio.writing',
}


def __getattr__(name: str) -> Any:
    if name == 'metrics':
        return importlib.import_module('audiosep_jax.metrics')
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'audiosep_jax.{_HOMES[name]}'), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
