"""The web page: takes a recording and descriptions, returns players, downloads and spectrograms. `server.py` serves it.

`answer` does the work of a request and does not depend on Gradio; `build_page` lays out the page.
"""

import dataclasses
import html
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.audio.formats import BROWSER_SUFFIXES
from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.writing import Subtype, write_together
from audiosep_jax.errors import AudioFileError, ConfigError, QueryError, explained
from audiosep_jax.plots import spectrogram_panels
from audiosep_jax.separation.cancellation import cancels
from audiosep_jax.separation.outputs import RESIDUAL, plan_outputs, query_names
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.separator import Separator
from audiosep_jax.separation.strength import check_strength

if TYPE_CHECKING:
    import gradio

_SUBTYPE: Subtype = 'PCM_24'  # the finest that every browser plays
_MAX_EXAMPLES = 20
# Samples per second of the time limit, over all channels: four channels at 48 kHz, or two at 96 kHz.
_MAX_SAMPLES_PER_SECOND = 4 * 48_000
_log = logging.getLogger(__name__)

# System fonts, because Gradio's own themes fetch theirs from the network.
_FONT, _MONOSPACE_FONT = ('system-ui', 'sans-serif'), ('ui-monospace', 'monospace')
CSS = (Path(__file__).parent / 'page.css').read_text('utf-8')
_EMPTY = 'The results will appear here: the sounds and the residual, to play and download, and their spectrograms.'


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one request.

    Attributes:
        seconds: of a recording.
        megabytes: of the uploaded file, in 10^6 bytes.
        queries: how many sounds one request may extract.
        characters: of one description.

    Raises:
        ConfigError: a limit that admits nothing.
    """

    seconds: float = 600.0
    megabytes: int = 200
    queries: int = 6
    characters: int = 500

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ConfigError(f'--max-seconds {self.seconds:g}: must be above 0')
        if self.megabytes < 1:
            raise ConfigError(f'--max-megabytes {self.megabytes}: must be at least 1')
        if self.queries < 1 or self.characters < 1:
            raise ConfigError('a page needs at least one query of at least one character')


@dataclasses.dataclass(frozen=True)
class Answer:
    """The files that answer a request.

    Attributes:
        targets: a WAV file for each description, in the order of the request.
        residual: the WAV file of the rest.
        picture: a PNG of the spectrograms.
        note: a remark for the user; may be empty.
    """

    targets: dict[str, Path]
    residual: Path
    picture: Path
    note: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording to try the page with, and its queries, one per line."""

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
        separator: accepts text queries.
        recording: the uploaded file, if there is one.
        queries: the sounds to extract, one description per line.
        unwanted: the sounds to exclude, one description per line; may be empty.
        strength: s, see `separation/strength.py`.
        folder: an existing folder for the files.
        limits: of the request.

    Raises:
        AudioFileError: there is no recording, it is not audio, or it is too long.
        QueryError: no description, or too many or too long ones; see also `Separator.prepare`.
        ConfigError: a strength that is not between 0 and 1.
    """
    if recording is None:
        raise AudioFileError('no recording yet: upload a file, record one, or choose an example')
    strength = check_strength(strength)
    texts = _lines(queries, limits)
    if not texts:
        raise QueryError('nothing to extract: describe a sound, for example: a dog barking')
    excluded = _lines(unwanted, limits)
    embedded = separator.prepare([Query.text(text).without(*excluded) for text in texts])
    mixture, rate = _read(recording, limits)
    separation = separator.separate(mixture, embedded, sample_rate=rate, strength=strength)
    sounds = [*separation.targets, separation.residual]

    names = [*query_names(texts), RESIDUAL]
    plan = plan_outputs(folder, [Path(recording.name)], names, num_queries=len(texts), subtype=_SUBTYPE)
    paths = plan[Path(recording.name)]
    gain = write_together(dict(zip(paths, sounds, strict=True)), rate, subtype=_SUBTYPE)
    picture = folder / f'{paths[-1].stem.removesuffix(RESIDUAL)}spectrograms.png'
    labels = _distinct(['recording', *map(_shortened, texts), 'residual'])
    spectrogram_panels(picture, dict(zip(labels, [mixture, *sounds], strict=True)), rate)
    notes = []
    if gain < 1:
        notes.append(f'All files were attenuated by {-20 * np.log10(gain):.1f} dB to stay within full scale.')
    if cancels(mixture):
        notes.append('The channels cancel in their mean, which is what is listened to: upload each channel by itself.')
    return Answer(dict(zip(texts, paths, strict=False)), paths[-1], picture, ' '.join(notes))


def find_examples(folder: Path) -> list[Example]:
    """Returns the sounds of a folder that have a text file of the same name, with one query per line.

    Raises:
        AudioFileError: the folder does not exist or cannot be read.
        QueryError: a text file is empty or not UTF-8.
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
            raise QueryError(f'{path.with_suffix(".txt")}: empty; write the queries for {path.name} into it')
    return [Example(path, text) for path, text in texts[:_MAX_EXAMPLES]]


def build_page(separator: Separator, *, limits: Limits, folder: Path, examples: Sequence[Example]) -> 'gradio.Blocks':
    """Returns the page, not yet served.

    Args:
        separator: accepts text queries.
        limits: of a request.
        folder: for the results; it must be inside Gradio's folder of uploads, the only one that Gradio serves.
        examples: recordings to try.
    """
    import gradio as gr

    with gr.Blocks(title='AudioSep', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(_headline(separator), elem_id='title')
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=340):
                inputs, button = _inputs(limits, examples)
            with gr.Column(scale=6, min_width=340):
                outputs = _outputs(limits)
        button.click(
            _handler(separator, limits, folder),
            inputs,
            outputs,
            concurrency_limit=1,
            api_visibility='private',
            show_progress_on=outputs[:2],  # one of message and first player is always visible
        )
    _refuse_quietly(page)
    # One request computes and up to twenty wait; api_open=False keeps requests from bypassing the queue.
    page.queue(max_size=20, default_concurrency_limit=1, api_open=False)
    return page


def _inputs(limits: Limits, examples: Sequence[Example]) -> tuple[list['gradio.Component'], 'gradio.Button']:
    """Lays out the left side: recording, queries, sounds to exclude and strength, and the button."""
    import gradio as gr

    recording = gr.Audio(
        sources=['upload', 'microphone'],
        type='filepath',
        label='Recording',
        elem_id='recording',
        buttons=[],
    )
    _accept_uploads_only(recording)
    queries = gr.Textbox(
        label='What to extract',
        info=f'One sound per line, up to {limits.queries}.',
        placeholder='a dog barking\na man speaking',
        lines=2,
        max_lines=limits.queries,
        elem_id='queries',
    )
    unwanted = gr.Textbox(
        label='Sounds to exclude (optional)',
        info='Negative queries for sounds that leak into the result, one per line.',
        placeholder='music',
        lines=2,  # with one line, Enter would not start a second one
        max_lines=limits.queries,
        elem_id='unwanted',
    )
    strength = gr.Slider(
        0,
        1,
        1,
        step=0.05,
        label='Strength',
        info='1 gives the sound alone; less gives strength × sound + (1 − strength) × recording.',
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
    return [recording, queries, unwanted, strength], button


def _outputs(limits: Limits) -> list['gradio.Component']:
    """Lays out the right side: message, a player for each sound and for the residual, spectrograms."""
    import gradio as gr

    message = gr.HTML(f'<div id="empty">{_EMPTY}</div>', elem_id='message', padding=False)
    waveform = gr.WaveformOptions(waveform_color='#a5b4fc', waveform_progress_color='#4f46e5')

    def player(name: str, label: str | None = None) -> gr.Audio:
        return gr.Audio(
            visible=False,
            label=label,
            elem_id=name,
            interactive=False,
            buttons=['download'],
            waveform_options=waveform,
        )

    players = [player(f'target-{i}') for i in range(limits.queries)]
    residual = player('residual', 'Residual')
    picture = gr.Image(
        visible=False,
        interactive=False,
        show_label=False,
        elem_id='picture',
        buttons=['download', 'fullscreen'],
    )
    return [message, *players, residual, picture]


def theme() -> 'gradio.Theme':
    """Returns Gradio's default theme with system fonts and darker greys."""
    import gradio as gr

    # The default greys are too pale for small text, which needs a contrast of 4.5 (WCAG 2.2, 1.4.3).
    greys = {'body_text_color_subdued': '*neutral_600', 'block_info_text_color': '*neutral_600'}
    greys |= {f'{name}_dark': '*neutral_300' for name in greys}
    return gr.themes.Default(primary_hue='indigo', font=_FONT, font_mono=_MONOSPACE_FONT).set(**greys)


def _handler(separator: Separator, limits: Limits, folder: Path) -> Callable[..., list[dict[str, Any]]]:
    """Returns the function that turns the inputs into updates of message, players, residual and picture."""
    import gradio as gr

    def hidden() -> list[dict[str, Any]]:
        return [gr.update(visible=False, value=None)] * (limits.queries + 2)

    def run(path: str | None, queries: str, unwanted: str, strength: float) -> list[dict[str, Any]]:
        recording = None if path is None else Path(path)
        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            found = answer(separator, recording, queries, unwanted, strength, folder=place, limits=limits)
        except Exception as error:
            explanation = explained(error)
            if explanation is None:
                raise  # Gradio logs it, and shows the user only 'Error'
            text = explanation[0]
            for private in (str(recording), f'{place}/', f'{folder}/'):  # hide this machine's paths
                text = text.replace(private, recording.name if recording and private == str(recording) else '')
            _log.info('refused: %s', text)
            return [_message('error', text), *hidden()]
        shown = [gr.update(visible=True, value=str(p), label=_shortened(t)) for t, p in found.targets.items()]
        shown += [gr.update(visible=False, value=None)] * (limits.queries - len(shown))
        shown += [gr.update(visible=True, value=str(p)) for p in (found.residual, found.picture)]
        return [_message('note', found.note), *shown]

    return run


def _accept_uploads_only(component: 'gradio.Audio') -> None:
    """Refuses URLs, which Gradio would otherwise fetch when a request names one as its recording.

    It replaces a method of the instance because Gradio writes a stub file beside the module of every subclass.
    """
    import gradio as gr

    move = component.async_move_resource_to_block_cache

    async def move_upload(source: str | Path | None) -> str | None:
        if source is not None and '://' in str(source):
            raise gr.Error('Only uploaded files are accepted.', print_exception=False)
        return await move(source)

    component.async_move_resource_to_block_cache = move_upload  # type: ignore[method-assign, assignment]


def _refuse_quietly(page: 'gradio.Blocks') -> None:
    """Keeps Gradio from logging a traceback for every request whose inputs it refuses, such as files of the machine."""
    import gradio as gr

    preprocess = page.preprocess_data

    async def refusing(*args: Any, **kwargs: Any) -> Any:
        try:
            return await preprocess(*args, **kwargs)
        except Exception as error:
            raise gr.Error('The request was refused.', print_exception=False) from error

    page.preprocess_data = refusing  # type: ignore[method-assign]


def _headline(separator: Separator) -> str:
    rate = separator.config.sample_rate
    encoder = separator.encoder.name if separator.encoder is not None else 'none'
    return (
        '# Separate what you describe\n'
        f'Upload a recording and describe the sounds to extract. (AudioSep at {rate / 1000:g} kHz, '
        f'query encoder {encoder}.)'
    )


def _message(kind: str, text: str) -> dict[str, Any]:
    """Returns the update that shows a message of a kind, `error` or `note`; it hides an empty one."""
    import gradio as gr

    return gr.update(value=f'<div class="message {kind}" role="alert">{html.escape(text)}</div>', visible=bool(text))


def _lines(text: str | None, limits: Limits) -> list[str]:
    """Returns the descriptions in a text box, without duplicates."""
    lines = list(dict.fromkeys(line.strip() for line in (text or '').splitlines() if line.strip()))
    if len(lines) > limits.queries:
        raise QueryError(f'{len(lines)} descriptions are too many; at most {limits.queries} at once')
    for line in lines:
        if len(line) > limits.characters:
            raise QueryError(f'a description of {len(line)} characters is too long; at most {limits.characters}')
        if not line.isprintable() and any('\ud800' <= c <= '\udfff' for c in line):
            raise QueryError('a description is not valid text: type it again')
    return lines


def _read(recording: Path, limits: Limits) -> tuple[np.ndarray, int]:
    """Returns the samples, float32 [channels, T], and the rate in Hz.

    A recording that is too long is refused before it is decoded, because hours of silence are a small FLAC file.
    """
    blocks: list[np.ndarray] = []
    frames = 0
    with open_sound(recording) as sound:
        _check_length((sound.seconds or 0) * sound.rate, sound.channels, sound.rate, limits)
        for block in sound.blocks():  # the header may state too short a length, or none
            frames += block.shape[-1]
            _check_length(frames, sound.channels, sound.rate, limits)
            blocks.append(block)
    return np.concatenate(blocks, axis=-1), sound.rate


def _check_length(frames: float, channels: int, rate: int, limits: Limits) -> None:
    if frames > limits.seconds * rate:
        raise AudioFileError(
            f'the recording is {frames / rate / 60:.1f} minutes long, this page accepts up to {limits.seconds / 60:g}; '
            'cut it, or use the command line, which accepts any length'
        )
    if frames * channels > limits.seconds * _MAX_SAMPLES_PER_SECOND:
        raise AudioFileError(
            f'the recording has {channels} channels at {rate} Hz, too many samples for this page; cut it'
        )


def _has_text(path: Path) -> bool:
    return path.with_suffix('.txt').is_file()


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f'{text[: limit - 1]}…'


def _distinct(labels: list[str]) -> list[str]:
    """Makes labels unique by invisible characters: one may be 'recording', or two may be shortened alike."""
    return [label + '\u200b' * labels[:i].count(label) for i, label in enumerate(labels)]
