"""Language-queried sound separation in JAX.

    import audiosep_jax as asj
    separator = asj.load('checkpoint/directory')
    out = separator.separate(audio, ['a dog barking'], sample_rate=44100)

Names are imported on first use, so that `import audiosep_jax` costs nothing and pulls in no framework.
"""

from etils import epy

__version__ = '0.2.0'

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

with epy.lazy_api_imports(globals()):
    from audiosep_jax import metrics
    from audiosep_jax.audio.reading import read_audio
    from audiosep_jax.audio.stft import istft, stft
    from audiosep_jax.audio.writing import write_audio
    from audiosep_jax.checkpoints.publish import push
    from audiosep_jax.encoders.registry import load_encoder
    from audiosep_jax.errors import AudioSepError
    from audiosep_jax.models.audiosep import AudioSep, ModelConfig
    from audiosep_jax.models.resunet import ResUNet30
    from audiosep_jax.separation.queries import Query
    from audiosep_jax.separation.separator import Separation, Separator, load
    from audiosep_jax.training.mixing import SegmentMixer
