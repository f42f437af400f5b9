"""Procedural sounds with captions: a corpus made with NumPy alone, for the quickstart, tests and demonstrations.

    for clip in clips(320, seed=0, sample_rate=8000, seconds=1.5):
        clip.audio, clip.captions, clip.labels

The classes overlap in frequency and differ in time structure (strokes, sweeps, steady hiss, held harmonics), so a
separator has to follow a sound through time: a fixed equalizer per class is not enough.

Every clip draws its own parameters (pitch, tempo, timbre, pattern). Clip n depends only on (seed, n), so any
range of clips can be rendered by any worker.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence

import numpy as np

from audiosep_jax.errors import ConfigError
from data_prep.synthetic import animals, machines, music, nature, signalling
from data_prep.synthetic.signals import seconds as sample_times

MIN_SAMPLE_RATE = 8000
MIN_SECONDS, MAX_SECONDS = 0.25, 3600.0  # rendering an hour at 32 kHz takes 5 GB of memory

# Each class: its renderer and what people say when they hear it.
_SOUNDS = {
    'siren': (signalling.siren, ('a siren', 'a siren wailing', 'an emergency siren', 'a police siren')),
    'alarm': (signalling.alarm, ('an alarm beeping', 'beeps of an alarm', 'an electronic alarm', 'beeping')),
    'telephone': (signalling.telephone, ('a telephone ringing', 'an old telephone', 'a ringing phone', 'a telephone')),
    'bell': (signalling.bell, ('a church bell', 'a bell tolling', 'a large bell', 'a bell')),
    'guitar': (music.guitar, ('a guitar', 'plucked guitar strings', 'an acoustic guitar', 'a guitar being plucked')),
    'violin': (music.violin, ('a violin', 'a violin playing', 'a bowed violin', 'a violin melody')),
    'drums': (music.drums, ('drums', 'a drum kit', 'a drum beat', 'someone drumming')),
    'whistling': (music.whistling, ('someone whistling', 'a person whistling a tune', 'whistling', 'a whistled tune')),
    'dog': (animals.dog, ('a dog barking', 'a barking dog', 'a dog', 'barks of a dog')),
    'cat': (animals.cat, ('a cat meowing', 'a meowing cat', 'a cat', 'a hungry cat meowing')),
    'bird': (animals.bird, ('a bird chirping', 'a singing bird', 'a bird', 'chirps of a bird')),
    'cricket': (animals.cricket, ('a cricket', 'crickets', 'a cricket in the grass', 'crickets at night')),
    'frog': (animals.frog, ('a frog croaking', 'a croaking frog', 'a frog', 'croaks of a frog')),
    'bee': (animals.bee, ('a bee buzzing', 'a buzzing bee', 'a bee', 'the buzz of a bee')),
    'rain': (nature.rain, ('rain', 'rain falling', 'heavy rain', 'steady rain')),
    'wind': (nature.wind, ('wind', 'wind blowing', 'howling wind', 'gusts of wind')),
    'waves': (nature.waves, ('ocean waves', 'waves on a beach', 'breaking waves', 'waves')),
    'dripping': (nature.dripping, ('dripping water', 'a dripping tap', 'drops of dripping water', 'dripping')),
    'engine': (machines.engine, ('an engine', 'an engine running', 'a car engine', 'an engine idling')),
    'helicopter': (machines.helicopter, ('a helicopter', 'a helicopter hovering', 'helicopter rotors', 'helicopters')),
    'train': (machines.train, ('a steam train', 'a train puffing', 'a steam train passing', 'an old train')),
    'clock': (machines.clock, ('a clock ticking', 'a ticking clock', 'the tick of a clock', 'a clock')),
    'typing': (machines.typing, ('typing', 'someone typing', 'typing on a keyboard', 'a computer keyboard')),
    'knocking': (machines.knocking, ('knocking', 'knocking on a door', 'someone knocking', 'a knock on a door')),
    'footsteps': (machines.footsteps, ('footsteps', 'footsteps on gravel', 'someone walking', 'walking footsteps')),
}
CLASSES: tuple[str, ...] = tuple(_SOUNDS)
_PHRASINGS = ('{}', '{}', 'the sound of {}', 'a recording of {}', 'sounds of {}')


@dataclasses.dataclass(frozen=True)
class Clip:
    """One sound of the corpus.

    Attributes:
        id: unique within a (seed, classes) corpus, e.g. `siren-000012`.
        audio: float32 [T] in [-0.9, 0.9].
        captions: different phrasings that all describe the sound.
        labels: the class name alone.
    """

    id: str
    audio: np.ndarray
    captions: tuple[str, ...]
    labels: tuple[str, ...]


def render(class_name: str, rng: np.random.Generator, *, sample_rate: int, seconds: float) -> np.ndarray:
    """Renders one random sound of a class -> float32 [T], T = round(sample_rate * seconds).

    The RMS is 0.06 to 0.12, or less if the peak would exceed 0.9, so an L1 loss weights classes about equally.

    Raises:
        ConfigError: the class is unknown, the rate is below 8000 Hz, or the length is not between 0.25 s and an hour.
    """
    _check((class_name,), sample_rate, seconds)
    t = sample_times(round(sample_rate * seconds), sample_rate)
    sound = _SOUNDS[class_name][0](rng, t, sample_rate)
    gain = min(rng.uniform(0.06, 0.12) / np.sqrt(np.mean(sound**2)), 0.9 / np.max(np.abs(sound)))
    return (gain * sound).astype(np.float32)


def caption(class_name: str, rng: np.random.Generator) -> str:
    """Returns a random phrase with which a listener would describe the sound."""
    _check((class_name,))
    return str(rng.choice(_PHRASINGS)).format(rng.choice(_SOUNDS[class_name][1]))


def clip(n: int, seed: int, *, sample_rate: int, seconds: float, classes: Sequence[str] = CLASSES) -> Clip:
    """Renders clip number `n` of the endless corpus `seed`; the classes take turns.

    Raises:
        ConfigError: the seed or the number is negative, or `render` refuses the arguments.
    """
    if seed < 0 or n < 0:
        raise ConfigError(f'the seed and the number of a clip cannot be negative, got {seed} and {n}')
    _check(classes, sample_rate, seconds)
    rng = np.random.default_rng((seed, n))
    name = classes[n % len(classes)]
    audio = render(name, rng, sample_rate=sample_rate, seconds=seconds)
    captions = tuple(dict.fromkeys(caption(name, rng) for _ in range(3)))
    return Clip(f'{name}-{n:06d}', audio, captions, (name,))


def clips(
    num_clips: int, seed: int, *, sample_rate: int, seconds: float, classes: Sequence[str] = CLASSES
) -> Iterator[Clip]:
    """Yields clips 0 to `num_clips` - 1 of the corpus `seed`, each rendered when it is requested.

    Raises:
        ConfigError: `clip` refuses the arguments; raised at the first clip.
    """
    for n in range(num_clips):
        yield clip(n, seed, sample_rate=sample_rate, seconds=seconds, classes=classes)


def _check(classes: Sequence[str], sample_rate: int = MIN_SAMPLE_RATE, seconds: float = MIN_SECONDS) -> None:
    if not classes:
        raise ConfigError(f'name at least one class of {", ".join(CLASSES)}')
    for name in classes:
        if name not in _SOUNDS:
            near = difflib.get_close_matches(name, CLASSES, n=1)
            hint = f'did you mean {near[0]!r}?' if near else f'known classes: {", ".join(CLASSES)}'
            raise ConfigError(f'unknown synthetic class {name!r}: {hint}')
    if sample_rate < MIN_SAMPLE_RATE:
        raise ConfigError(f'synthetic sounds need a sample rate of at least {MIN_SAMPLE_RATE} Hz, got {sample_rate}')
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ConfigError(f'synthetic sounds need at least {MIN_SECONDS} s and at most {MAX_SECONDS:g}, got {seconds}')
