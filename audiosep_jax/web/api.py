"""The endpoints for programs, `separate`, `models` and `health`: for Gradio's clients, for HTTP and for MCP.

Their names, parameters and results are stable. `docs/server.md` describes them; clients see the docstrings below.
"""

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from audiosep_jax import __version__
from audiosep_jax.separation.separator import Progress, Separator
from audiosep_jax.web.extraction import Limits, extract, refusal
from audiosep_jax.web.guard import Call
from audiosep_jax.web.page import ONE_AT_A_TIME, accept_uploads_only

if TYPE_CHECKING:
    import gradio

_FILE_ROUTE = '/gradio_api/file='
_NOT_UPLOADED = 'the recording is not an uploaded file: post it to /gradio_api/upload first'


def add_endpoints(page: 'gradio.Blocks', separator: Separator, *, name: str, limits: Limits, folder: Path) -> None:
    """Adds the endpoints to a page, in whose context it is called.

    Args:
        page: the page, which may be empty.
        separator: accepts text queries.
        name: of the checkpoint, for `models`.
        limits: of a request.
        folder: for the results; uploads are inside it, too.
    """
    import gradio as gr

    separate = _separate(page, separator, limits, folder)

    def models() -> list[dict[str, Any]]:
        """Lists the checkpoints that this server separates with.

        Returns:
            models: name, sample_rate in Hz, encoder of queries, step of the training, and level rule of each checkpoint
        """
        encoder = separator.encoder.name if separator.encoder is not None else None
        facts = {'sample_rate': separator.config.sample_rate, 'encoder': encoder, 'step': separator.info.get('step')}
        return [{'name': name, **facts, 'level': separator.level}]

    def health() -> dict[str, Any]:
        """Says that the server is up, how many requests wait, and what it accepts.

        Returns:
            health: status, version, waiting requests, and limits of a request
        """
        waiting = len(page._queue)
        return {'status': 'ok', 'version': __version__, 'waiting': waiting, 'limits': dataclasses.asdict(limits)}

    endpoint = gr.api(separate, api_name='separate', **ONE_AT_A_TIME)
    (recording, *_), results = _components(page, endpoint)
    # Gradio's schema of a file requires every field; programs send the path, and assistants only its address.
    recording._api_info = {key: value for key, value in recording._api_info.items() if key != 'required'}
    _accept_own_files(recording, folder)
    for component, label in zip(results, ('targets', 'residual', 'note'), strict=True):
        component.label = label
    for function in (models, health):  # they answer at once, also while the queue is full
        _, (result,) = _components(page, gr.api(function, api_name=function.__name__, queue=False))
        result.label = function.__name__


def call_of(function: Callable[..., Any], *, name: str, is_queued: bool) -> Call:
    """Returns how requests call the function of an endpoint."""
    parameters = inspect.signature(function).parameters
    return Call(
        [_TYPES[parameter][1] for parameter in parameters],
        is_queued,
        name=name,
        parameters={parameter: _TYPES[parameter][0] for parameter in parameters},
        required=[key for key, parameter in parameters.items() if parameter.default is parameter.empty],
    )


def _separate(page: 'gradio.Blocks', separator: Separator, limits: Limits, folder: Path) -> Callable[..., Any]:
    """Returns the function of the endpoint `separate`."""
    import gradio as gr
    from gradio import FileData

    def separate(
        recording: FileData,
        queries: list[str],
        exclude: list[str] | None = None,
        strength: float = 1.0,
        residual: bool = True,
    ) -> tuple[list[FileData], FileData | None, str]:
        """Separates the sounds that descriptions name from a recording.

        Args:
            recording: The audio file, which must have been uploaded to this server.
            queries: What to extract, one description for each sound, for example "a dog barking".
            exclude: Descriptions of sounds that leak into the results and shall be kept out.
            strength: From 0 to 1. 1 gives the sounds alone, less leaves some of the recording in them.
            residual: Whether to return also what is left of the recording.

        Returns:
            targets: a WAV file for each query, in their order, of the recording's rate, length and channels
            residual: a WAV file of the recording less the targets, or null
            note: a remark on the result; usually empty
        """
        upload = Path(cast(Mapping[str, str], recording)['path'])
        if not _is_inside(upload, folder):
            raise gr.Error(_NOT_UPLOADED, print_exception=False)
        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            found = extract(
                separator,
                upload,
                queries,
                exclude or [],
                strength,
                folder=place,
                limits=limits,
                has_picture=False,
                progress=reporter(page),
            )
        except Exception as error:
            text = refusal(error, upload, place)
            if text is None:
                raise
            raise gr.Error(text, print_exception=False) from error
        targets = [_file(found.targets[query.strip()]) for query in queries]
        return targets, _file(found.residual) if residual else None, found.note

    return separate


def reporter(page: 'gradio.Blocks') -> Progress:
    """Returns what tells the client how far its request is, and ends the work for a client that has gone."""
    import gradio as gr
    from gradio.context import LocalContext

    progress, request = gr.Progress(), LocalContext.event_id.get(None)

    def report(done: float, length: float) -> None:
        if not any(event._id == request and event.alive for job in page._queue.active_jobs for event in job or ()):
            raise gr.Error('The client has gone.', print_exception=False)
        progress((int(done), max(1, round(length))), desc='Separating', unit='s')

    return report


def _file(path: Path) -> Any:
    """Returns a file as Gradio sends it."""
    return {'path': str(path), 'orig_name': path.name, 'mime_type': 'audio/wav', 'meta': {'_type': 'gradio.FileData'}}


def _components(page: 'gradio.Blocks', endpoint: Any) -> tuple[list[Any], list[Any]]:
    """Returns the components that Gradio made for the parameters and the results of an endpoint."""
    function = page.fns[endpoint['id']]
    return list(function.inputs), list(function.outputs)


def _accept_own_files(component: 'gradio.components.Component', folder: Path) -> None:
    """Accepts the URLs of this server's files, which are what MCP names an upload by, and no other URLs."""
    import gradio as gr

    accept_uploads_only(component)
    move = component.async_move_resource_to_block_cache

    async def move_own(source: str | Path | None) -> str | None:
        _, is_url, path = str(source).partition(_FILE_ROUTE)
        if not (is_url and '://' in str(source)):
            return await move(source)
        if not _is_inside(file := Path(unquote(path)), folder):
            raise gr.Error(_NOT_UPLOADED, print_exception=False)
        return str(file.resolve())

    component.async_move_resource_to_block_cache = move_own  # type: ignore[method-assign, assignment]


def _is_inside(file: Path, folder: Path) -> bool:
    """Returns whether a file lies in a folder, whatever links and dots its path holds."""
    try:
        return file.resolve().is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError):  # a NUL, a lone surrogate, or too long
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get('path'), str)


# What the parameters of the endpoints must be, and whether a value from a request is that.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'recording': ('an uploaded file: {"path": "…", "meta": {"_type": "gradio.FileData"}}', _is_file),
    'queries': ('a list of texts', _are_texts),
    'exclude': ('a list of texts, or null', lambda value: value is None or _are_texts(value)),
    'strength': ('a number from 0 to 1', _is_number),
    'residual': ('true or false', lambda value: isinstance(value, bool)),
}
