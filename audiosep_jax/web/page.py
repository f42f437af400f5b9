"""The web page: a recording and descriptions in, players, downloads and a picture out. `serve.py` puts it on a port.

What the page computes is `answer`, which knows nothing of Gradio; `build_page` lays it out.

**Strength** s, 0 to 1, blends what was separated with the recording x: every target y becomes s·y + (1 − s)·x, and what
is left over, r = x − Σ y, becomes s·r + (1 − s)·x. At 1 they are what `Separator.separate` gives, at 0 both are the
recording; at s the other sounds are -20·log10(1 − s) dB quieter than they were: 6 dB at one half, 20 dB at 0.9.
"""

import dataclasses
import html
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax import audio
from audiosep_jax.audio.formats import BROWSER_SUFFIXES
from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.writing import Subtype
from audiosep_jax.errors import AudioFileError, ConfigError, QueryError, explained
from audiosep_jax.plots import spectrogram_panels
from audiosep_jax.separation.outputs import RESIDUAL, plan_outputs, query_names
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.separator import Separator

if TYPE_CHECKING:
    import gradio

_SUBTYPE: Subtype = 'PCM_24'  # the finest that all browsers play
_MOST_EXAMPLES = 20
# Samples of all channels for each second of the limit: four channels at 48 kHz, two at 96.
_MOST_SAMPLES = 4 * 48_000
_log = logging.getLogger(__name__)

# Fonts of the system: Gradio's own themes fetch theirs from the network.
_FONTS = {'font': ('system-ui', 'sans-serif'), 'font_mono': ('ui-monospace', 'monospace')}
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { font-size: 1.7rem; margin: 0; }
#title p { color: var(--body-text-color-subdued); margin: .3rem 0 0; }
.message { border-radius: 8px; padding: .7rem .9rem; border: 1px solid; line-height: 1.4; overflow-wrap: anywhere; }
.message.error { background: #fdecea; border-color: #d93025; color: #7a1710; }
.message.note { background: #fff7e0; border-color: #d7a000; color: #5c4700; }
#message { padding: 0; }
#picture img { width: 100%; height: auto; padding-top: 1.8rem; background: white; }
#limits p { font-size: .85rem; color: var(--body-text-color-subdued); }
#empty { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 3.5rem 1.5rem;
  text-align: center; color: var(--body-text-color-subdued); }
"""
_EMPTY = 'What you ask for will be here: the sounds to play and download, what is left over, and a picture of them.'


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        seconds: length of a recording.
        megabytes: size of the uploaded file, 10^6 bytes.
        queries: sounds to extract in one request.
        characters: of one description.
    """

    seconds: float = 600.0
    megabytes: int = 200
    queries: int = 6
    characters: int = 500

    def __post_init__(self):
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ConfigError(f'--max-seconds {self.seconds:g}: must be above 0')
        if self.megabytes < 1:
            raise ConfigError(f'--max-megabytes {self.megabytes}: must be at least 1')
        if self.queries < 1 or self.characters < 1:
            raise ConfigError('a page needs at least one query of at least one character')


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a request gave, as files.

    Attributes:
        targets: description -> WAV, in the order asked.
        residual: what is left over.
        picture: the spectrograms, a PNG.
        note: what the user should know of it; '' if nothing.
    """

    targets: dict[str, Path]
    residual: Path
    picture: Path
    note: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording to try the page with, and what to ask of it."""

    path: Path
    queries: str

    def __str__(self) -> str:
        return _shortened(f'{self.path.stem}: {", ".join(self.queries.splitlines())}')


def answer(
    separator: Separator,
    recording: Path | None,
    queries: str,
    unwanted: str,
    strength: float | None,
    *,
    folder: Path,
    limits: Limits,
) -> Answer:
    """Separates an uploaded recording into 24-bit WAV files at its own rate, length and number of channels.

    Args:
        recording: the uploaded file; None: there is none.
        queries: what to extract, one description a line.
        unwanted: what must stay out, one description a line; may be empty.
        strength: s, see the top of this file.
        folder: where the files go; it exists.
        limits: of the request.

    Raises:
        AudioFileError: no recording, not audio, too long.
        QueryError: no description, too many, too long, a strength out of range; see `Separator.embed`.
    """
    if recording is None:
        raise AudioFileError('no recording yet: upload a file, record one or choose an example')
    if strength is None or not 0 <= strength <= 1:
        raise QueryError(f'the strength is between 0 and 1, got {strength}')
    texts = _lines(queries, limits)
    if not texts:
        raise QueryError('what should be extracted? Describe a sound, for example: a dog barking')
    outside = _lines(unwanted, limits)
    embedded = separator.prepare([Query.text(text).without(*outside) for text in texts])
    mixture, rate = _read(recording, limits)
    separation = separator.separate(mixture, embedded, sample_rate=rate)
    sounds = [blended(sound, mixture, strength) for sound in (*separation.targets, separation.residual)]

    names = [*query_names(texts), RESIDUAL]
    plan = plan_outputs(folder, [Path(recording.name)], names, num_queries=len(texts), subtype=_SUBTYPE)
    paths = plan[Path(recording.name)]
    gain = audio.write_together(dict(zip(paths, sounds, strict=True)), rate, subtype=_SUBTYPE)
    picture = folder / f'{paths[-1].stem.removesuffix(RESIDUAL)}spectrograms.png'
    labels = _distinct(['recording', *map(_shortened, texts), 'left over'])
    spectrogram_panels(picture, dict(zip(labels, [mixture, *sounds], strict=True)), rate)
    note = '' if gain == 1 else f'All files are {-20 * np.log10(gain):.1f} dB quieter, to keep within full scale.'
    return Answer(dict(zip(texts, paths, strict=False)), paths[-1], picture, note)


def blended(separated: np.ndarray, mixture: np.ndarray, strength: float) -> np.ndarray:
    """s·separated + (1 − s)·mixture, float32 [channels, T]; at s = 1 what was separated, bit for bit."""
    if strength == 1:
        return separated
    return np.float32(strength) * separated + np.float32(1 - strength) * mixture


def find_examples(folder: Path) -> list[Example]:
    """The sounds of a folder that have a text file of the same name beside them: what to ask, one description a line.

    Raises:
        AudioFileError: the folder is missing or cannot be read.
        QueryError: a text file without text.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in BROWSER_SUFFIXES)
        texts = [(path, path.with_suffix('.txt').read_text('utf-8').strip()) for path in paths if _has_text(path)]
    except UnicodeDecodeError as error:
        raise QueryError(f'{folder}: the text beside an example is not UTF-8') from error
    except OSError as error:
        raise AudioFileError(f'{error.filename or folder}: cannot be read: {error.strerror or error}') from error
    for path, text in texts:
        if not text:
            raise QueryError(f'{path.with_suffix(".txt")}: no text in it: say what to ask of {path.name}')
    return [Example(path, text) for path, text in texts[:_MOST_EXAMPLES]]


def build_page(separator: Separator, *, limits: Limits, folder: Path, examples: Sequence[Example]) -> 'gradio.Blocks':
    """The page, not yet served.

    Args:
        separator: understands texts.
        limits: of a request.
        folder: where results go; inside Gradio's own folder of uploads, the only one that it serves.
        examples: recordings to try.
    """
    import gradio as gr

    with gr.Blocks(title='AudioSep', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(_headline(separator), elem_id='title')
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=340):
                *asked, button = _inputs(limits, examples)
            with gr.Column(scale=6, min_width=340):
                answers = _outputs(limits)
        button.click(
            _handler(separator, limits, folder),
            asked,
            answers,
            concurrency_limit=1,
            api_visibility='private',
            show_progress_on=answers[:2],  # of message and first player one is always shown
        )
    # One request computes at a time, twenty wait; none gets around the queue.
    page.queue(max_size=20, default_concurrency_limit=1, api_open=False)
    return page


def _inputs(limits: Limits, examples: Sequence[Example]) -> list:
    """The left side: recording, what to extract, what must stay out, strength, and the button."""
    import gradio as gr

    recording = gr.Audio(
        sources=['upload', 'microphone'],
        type='filepath',
        label='Recording',
        elem_id='recording',
        buttons=[],
    )
    _only_uploads(recording)
    queries = gr.Textbox(
        label='What to extract',
        info=f'One sound a line, up to {limits.queries}.',
        placeholder='a dog barking\na man speaking',
        lines=2,
        max_lines=limits.queries,
        elem_id='queries',
    )
    unwanted = gr.Textbox(
        label='What must stay out (optional)',
        info='Sounds that leak into the result, one a line.',
        placeholder='music',
        lines=2,  # of one line Enter would begin no second
        max_lines=limits.queries,
        elem_id='unwanted',
    )
    strength = gr.Slider(
        0,
        1,
        1,
        step=0.05,
        label='Strength',
        info='1: the sound alone. Less: strength × the sound + (1 − strength) × the recording.',
        elem_id='strength',
        buttons=['reset'],
    )
    button = gr.Button('Separate', variant='primary', size='lg', elem_id='separate')
    if examples:
        gr.Examples(
            [[str(example.path), example.queries] for example in examples],
            inputs=[recording, queries],
            label='Examples',
            example_labels=[str(example) for example in examples],
            api_visibility='private',
        )
    minutes = f'{limits.seconds / 60:g} minutes' if limits.seconds >= 120 else f'{limits.seconds:g} seconds'
    gr.Markdown(f'Up to {minutes} and {limits.megabytes} MB. WAV, FLAC, OGG, MP3, M4A and more.', elem_id='limits')
    return [recording, queries, unwanted, strength, button]


def _outputs(limits: Limits) -> list:
    """The right side: message, a player for each sound, that of what is left over, the picture."""
    import gradio as gr

    message = gr.HTML(f'<div id="empty">{_EMPTY}</div>', elem_id='message', padding=False)
    waveform = gr.WaveformOptions(waveform_color='#a5b4fc', waveform_progress_color='#4f46e5')
    output = {'interactive': False, 'buttons': ['download'], 'waveform_options': waveform}
    players = [gr.Audio(visible=False, elem_id=f'target-{i}', **output) for i in range(limits.queries)]
    rest = gr.Audio(visible=False, label='Left over', elem_id='residual', **output)
    picture = gr.Image(
        visible=False,
        interactive=False,
        show_label=False,
        elem_id='picture',
        buttons=['download', 'fullscreen'],
    )
    return [message, *players, rest, picture]


def theme() -> 'gradio.Theme':
    """Gradio's default in the fonts of the system."""
    import gradio as gr

    # Its greys are paler than small text may be (WCAG 2.2, 1.4.3: a contrast of 4.5).
    greys = {'body_text_color_subdued': '*neutral_600', 'block_info_text_color': '*neutral_600'}
    greys |= {f'{name}_dark': '*neutral_300' for name in greys}
    return gr.themes.Default(primary_hue='indigo', **_FONTS).set(**greys)


def _handler(separator: Separator, limits: Limits, folder: Path) -> Callable:
    """(path, queries, unwanted, strength) -> updates of message, players, residual and picture."""
    import gradio as gr

    def hidden() -> list:
        return [gr.update(visible=False, value=None)] * (limits.queries + 2)

    def run(path: str | None, queries: str, unwanted: str, strength: float) -> list:
        recording = None if path is None else Path(path)
        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            found = answer(separator, recording, queries, unwanted, strength, folder=place, limits=limits)
        except Exception as error:
            explanation = explained(error)
            if explanation is None:
                raise  # Gradio logs it here and shows the user no more than 'Error'
            text = explanation[0]
            for private in (str(recording), f'{place}/', f'{folder}/'):  # no path of this machine's
                text = text.replace(private, recording.name if recording and private == str(recording) else '')
            _log.info('refused: %s', text)
            return [_told('error', text), *hidden()]
        shown = [gr.update(visible=True, value=str(p), label=_shortened(t)) for t, p in found.targets.items()]
        shown += [gr.update(visible=False, value=None)] * (limits.queries - len(shown))
        shown += [gr.update(visible=True, value=str(p)) for p in (found.residual, found.picture)]
        return [_told('note', found.note), *shown]

    return run


def _only_uploads(component: 'gradio.Audio') -> None:
    """Refuses the URLs that Gradio would fetch if a request named one as its recording.

    On the instance: for a subclass Gradio writes a file of types beside this one.
    """
    import gradio as gr

    take = component.async_move_resource_to_block_cache

    async def checked(source: str | Path | None) -> str | None:
        if source is not None and '://' in str(source):
            raise gr.Error('Only uploaded files are taken.', print_exception=False)
        return await take(source)

    component.async_move_resource_to_block_cache = checked


def _headline(separator: Separator) -> str:
    rate = separator.config.sample_rate
    return (
        '# Separate what you describe\n'
        f'Give a recording and say what you want to hear of it. (AudioSep at {rate / 1000:g} kHz, '
        f'queries through {separator.encoder.name}.)'
    )


def _told(kind: str, text: str) -> dict:
    import gradio as gr

    return gr.update(value=f'<div class="message {kind}" role="alert">{html.escape(text)}</div>', visible=bool(text))


def _lines(text: str | None, limits: Limits) -> list[str]:
    """The descriptions in a text box, each once."""
    lines = list(dict.fromkeys(line.strip() for line in (text or '').splitlines() if line.strip()))
    if len(lines) > limits.queries:
        raise QueryError(f'{len(lines)} descriptions; up to {limits.queries} at once')
    for line in lines:
        if len(line) > limits.characters:
            raise QueryError(f'a description of {len(line)} characters; {limits.characters} are enough for a sound')
        if not line.isprintable() and any('\ud800' <= c <= '\udfff' for c in line):
            raise QueryError('a description is not valid text: type it anew')
    return lines


def _read(recording: Path, limits: Limits) -> tuple[np.ndarray, int]:
    """float32 [channels, T] and its rate. Too long is refused undecoded: hours of silence are little FLAC."""
    blocks, frames = [], 0
    with open_sound(recording) as sound:
        _check_length((sound.seconds or 0) * sound.rate, sound.channels, sound.rate, limits)
        for block in sound.blocks():  # a header may say less than there is, or nothing
            frames += block.shape[-1]
            _check_length(frames, sound.channels, sound.rate, limits)
            blocks.append(block)
    return np.concatenate(blocks, axis=-1), sound.rate


def _check_length(frames: float, channels: int, rate: int, limits: Limits) -> None:
    if frames > limits.seconds * rate:
        raise AudioFileError(
            f'the recording is {frames / rate / 60:.1f} minutes long, this page takes up to {limits.seconds / 60:g}; '
            'cut it, or use the command line, which takes any length'
        )
    if frames * channels > limits.seconds * _MOST_SAMPLES:
        raise AudioFileError(f'the recording has {channels} channels at {rate} Hz, too much for its length; cut it')


def _has_text(path: Path) -> bool:
    return path.with_suffix('.txt').is_file()


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f'{text[: most - 1]}…'


def _distinct(labels: list[str]) -> list[str]:
    """Labels as keys: a description may itself be 'recording', or two be cut to the same."""
    return [label + '\u200b' * labels[:i].count(label) for i, label in enumerate(labels)]
