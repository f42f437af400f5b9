"""Language-queried sound separation in JAX.

    import audiosep_jax as asj
    separator = asj.load('checkpoint/directory')
    out = separator.separate(audio, ['a dog barking'], sample_rate=44100)

Names are imported on first use, so that `import audiosep_jax` costs nothing and pulls in no framework.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING

__version__ = '0.2.0'

_HOME = {
    'load': 'separate',
    'Separator': 'separate',
    'Separation': 'separate',
    'push': 'publish',
    'Query': 'queries',
    'stft': 'stft',
    'istft': 'stft',
    'ResUNet30': 'resunet',
    'AudioSep': 'model',
    'ModelConfig': 'model',
    'SegmentMixer': 'mixing',
    'load_encoder': 'encoders',
    'read_audio': 'audio',
    'write_audio': 'audio',
    'AudioSepError': 'errors',
}
__all__ = [
    'AudioSep',
    'AudioSepError',
    'ModelConfig',
    'Query',
    'ResUNet30',
    'SegmentMixer',
    'Separation',
    'Separator',
    'istft',
    'load',
    'load_encoder',
    'metrics',
    'push',
    'read_audio',
    'stft',
    'write_audio',
]

if TYPE_CHECKING:
    from audiosep_jax import metrics
    from audiosep_jax.audio import read_audio, write_audio
    from audiosep_jax.encoders import load_encoder
    from audiosep_jax.errors import AudioSepError
    from audiosep_jax.mixing import SegmentMixer
    from audiosep_jax.model import AudioSep, ModelConfig
    from audiosep_jax.publish import push
    from audiosep_jax.queries import Query
    from audiosep_jax.resunet import ResUNet30
    from audiosep_jax.separate import Separation, Separator, load
    from audiosep_jax.stft import istft, stft


def __getattr__(name: str):
    if name == 'metrics':
        return importlib.import_module('audiosep_jax.metrics')
    if name in _HOME:
        return getattr(importlib.import_module(f'audiosep_jax.{_HOME[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Python binds submodules to their names in the package; `stft` is a module and a function, which is meant."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == 'stft' and isinstance(value, types.ModuleType):
            value = value.stft
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
