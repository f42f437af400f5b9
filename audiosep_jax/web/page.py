"""The web page: takes a recording and descriptions, returns players, downloads and spectrograms. `server.py` serves it.

`answer` turns what the page sends into a request (`extraction.py`); `lay_out_page` lays out the page.
"""

import dataclasses
import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.audio.formats import BROWSER_SUFFIXES
from audiosep_jax.errors import AudioFileError, QueryError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.extraction import Answer, Limits, extract, refusal, shortened

if TYPE_CHECKING:
    import gradio

_MAX_EXAMPLES = 20
# Whatever separates shares one place, so that the page and programs do not compute at the same time.
ONE_AT_A_TIME: dict[str, Any] = {'concurrency_id': 'separate', 'concurrency_limit': 1}

# System fonts, because Gradio's own themes fetch theirs from the network.
_FONT, _MONOSPACE_FONT = ('system-ui', 'sans-serif'), ('ui-monospace', 'monospace')
CSS = (Path(__file__).parent / 'page.css').read_text('utf-8')
_EMPTY = 'The results will appear here: the sounds and the residual, to play and download, and their spectrograms.'


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording to try the page with, and its queries, one per line."""

    path: Path
    queries: str

    def __str__(self) -> str:
        return shortened(f'{self.path.stem}: {", ".join(self.queries.splitlines())}')


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
    return extract(separator, recording, _lines(queries), _lines(unwanted), strength, folder=folder, limits=limits)


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


def lay_out_page(separator: Separator, *, limits: Limits, folder: Path, examples: Sequence[Example]) -> None:
    """Adds the page to the Blocks in whose context it is called.

    Args:
        separator: accepts text queries.
        limits: of a request.
        folder: for the results; it must be inside Gradio's folder of uploads, the only one that Gradio serves.
        examples: recordings to try.
    """
    import gradio as gr

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
        **ONE_AT_A_TIME,
        api_visibility='private',
        show_progress_on=outputs[:2],  # one of message and first player is always visible
    )


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
    accept_uploads_only(recording)
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
            text = refusal(error, recording, place)
            if text is None:
                raise  # Gradio logs it, and shows the user only 'Error'
            return [_message('error', text), *hidden()]
        shown = [gr.update(visible=True, value=str(p), label=shortened(t)) for t, p in found.targets.items()]
        shown += [gr.update(visible=False, value=None)] * (limits.queries - len(shown))
        shown += [gr.update(visible=True, value=str(p)) for p in (found.residual, found.picture)]
        return [_message('note', found.note), *shown]

    return run


def accept_uploads_only(component: 'gradio.components.Component') -> None:
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


def _lines(text: str | None) -> list[str]:
    """Returns the descriptions in a text box."""
    return [line for line in (text or '').splitlines() if line.strip()]


def _has_text(path: Path) -> bool:
    return path.with_suffix('.txt').is_file()
