"""The server behind `audiosep-jax serve`: the web page (`page.py`) and the endpoints for programs (`api.py`) on a port.

It gives access to uploads and results only: Gradio gets a separate folder (`scratch.py`), and only requests of the page
and of programs reach it (`guard.py`). The page needs no network: it uses system fonts, and its headers tell the browser
to load nothing from other hosts.
"""

import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.api import add_endpoints, call_of
from audiosep_jax.web.extraction import Limits
from audiosep_jax.web.guard import LOCAL, Call, Guard, HostNames, check_root_path
from audiosep_jax.web.page import CSS, Example, lay_out_page, theme
from audiosep_jax.web.scratch import scratch_folder
from audiosep_jax.web.token import Token

if TYPE_CHECKING:
    import gradio
    from gradio.blocks import Block
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

# Without a word, a second process, or anything that the page does not need.
_LAUNCH: dict[str, Any] = {
    'prevent_thread_lock': True,
    'inbrowser': False,
    'quiet': True,
    'show_error': False,
    'footer_links': [],
    'run_history': False,
    'enable_monitoring': False,
    'ssr_mode': False,
    'pwa': False,
}


@contextlib.contextmanager
def serving(
    separator: Separator,
    *,
    host: str,
    port: int,
    share: bool,
    limits: Limits,
    examples: Sequence[Example],
    allowed_hosts: Sequence[str] = (),
    root_path: str = '',
    name: str = 'audiosep',
    api_only: bool = False,
    mcp: bool = False,
    token: str = '',
) -> Iterator[str]:
    """Serves the page and the endpoints for programs inside the context; yields its address.

    It may be used once per process, because Gradio reads its settings from the environment.

    Args:
        separator: accepts text queries.
        host: the address to listen on.
        port: the port to listen on.
        share: also create a public address through Gradio's servers.
        limits: of a request.
        examples: recordings to try.
        allowed_hosts: further names by which the server may be addressed, such as a reverse proxy's.
        root_path: the path at which a reverse proxy serves the page, such as `/sounds`.
        name: of the checkpoint, for programs.
        api_only: serve no page, only the endpoints.
        mcp: also serve the endpoints as tools for assistants.
        token: what every request must carry; '' for nothing.

    Raises:
        ConfigError: Gradio or MCP is not installed, the port is in use, or `allowed_hosts` or `root_path` is malformed.
        QueryError: the separator does not accept text queries; see also `Separator.prepare`.
    """
    names, root_path = HostNames(host, allowed_hosts), check_root_path(root_path)
    separator.prepare('a dog barking')  # fails here rather than at the first request
    with scratch_folder() as folder:
        _set_environment(os.fspath(folder), host)
        import_gradio(mcp=mcp)
        _keep_files_in(os.fspath(folder))
        page = _build(separator, name=name, limits=limits, folder=folder, examples=None if api_only else examples)
        access = Token(token)
        guard: dict[str, Any] = {'names': names, 'calls': _calls(page), 'root_path': root_path, 'token': access}
        guard |= {'has_page': not api_only, 'has_mcp': mcp}
        address, public = _launch(
            page,
            host,
            port,
            guard,
            root_path=root_path,
            share=share,
            max_file_size=limits.megabytes * 10**6,
            mcp_server=mcp,
            _frontend=not api_only,  # otherwise Gradio asks for the page to see whether it is up
        )
        access.is_launched = True
        if public:
            names.allow(urlsplit(public).hostname or '')
        if mcp:
            _connect_mcp(page, token)
        try:
            address = address.replace('[::]', '[::1]')  # like 0.0.0.0, no browser opens it
            yield f'{address}  {public}' if public else address
        finally:
            page.close(verbose=False)


def _build(
    separator: Separator, *, name: str, limits: Limits, folder: Path, examples: Sequence[Example] | None
) -> 'gradio.Blocks':
    """Returns the page and the endpoints, not yet served; without examples, only the endpoints.

    Args:
        separator: accepts text queries.
        name: of the checkpoint.
        limits: of a request.
        folder: for the results; it must be inside Gradio's folder of uploads, the only one that Gradio serves.
        examples: recordings to try on the page; None: there is no page.
    """
    import gradio as gr

    with gr.Blocks(title='AudioSep', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        if examples is not None:
            lay_out_page(separator, limits=limits, folder=folder, examples=examples)
        add_endpoints(page, separator, name=name, limits=limits, folder=folder)
    _refuse_quietly(page)
    # One request computes and up to twenty wait; api_open=False keeps requests from bypassing the queue.
    page.queue(max_size=20, default_concurrency_limit=1, api_open=False)
    return page


def _refuse_quietly(page: 'gradio.Blocks') -> None:
    """Keeps Gradio from logging a traceback for every request whose inputs it refuses, such as files of the machine."""
    import gradio as gr

    preprocess = page.preprocess_data

    async def refusing(*args: Any, **kwargs: Any) -> Any:
        try:
            return await preprocess(*args, **kwargs)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:  # it says more
                raise
            raise gr.Error('The request was refused.', print_exception=False) from error

    page.preprocess_data = refusing  # type: ignore[method-assign]


def _launch(
    page: 'gradio.Blocks', host: str, port: int, guard: Mapping[str, Any], **settings: Any
) -> tuple[str, str | None]:
    """Launches the page; returns its address and, if it is shared, its public one.

    Args:
        page: the page and the endpoints.
        host, port: where to listen.
        guard: the arguments of `Guard`.
        settings: further arguments of Gradio's `launch`.

    Raises:
        ConfigError: the port cannot be listened on, or MCP does not start.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Gradio prints MCP's address even when it is told to be quiet
            _, address, public = page.launch(
                server_name=f'[{host}]' if ':' in host else host,
                server_port=port,
                theme=theme(),
                css=CSS,
                app_kwargs={
                    'lifespan': functools.partial(_guarded, **guard),
                    'exception_handlers': {TypeError: _explain_upload},
                    'docs_url': None,
                    'redoc_url': None,
                },
                **settings,
                **_LAUNCH,
            )
    except OSError as error:
        raise ConfigError(f'--host {host} --port {port}: cannot listen there: {error}') from error
    if page.mcp_error:
        page.close(verbose=False)
        raise ConfigError(f'--mcp: {page.mcp_error}')
    return address, public


def _connect_mcp(page: 'gradio.Blocks', token: str) -> None:
    """Makes MCP's tools work behind the token, and answer in JSON.

    They join the queue through a client of this server, which Gradio would make without the token.
    """
    from gradio.processing_utils import add_root_url
    from gradio_client import Client
    from gradio_client.utils import is_file_obj_with_meta, traverse
    from mcp.types import TextContent

    @functools.cache  # connects at the first call, and once
    def connect() -> Client:
        return Client(
            page.local_url,
            download_files=False,
            verbose=False,
            analytics_enabled=False,
            ssl_verify=False,
            _skip_components=False,
            headers={'x-gradio-user': 'mcp', **({'Authorization': f'Bearer {token}'} if token else {})},
        )

    def as_texts(results: Any, root: str) -> list[TextContent]:
        """Returns a text for each result, with the addresses of files; Gradio's are Python's notation."""
        if len(results) == 1 and isinstance(results[0], tuple):  # what its client gives for several results
            results = results[0]
        plain = traverse(add_root_url(list(results), root, None), lambda file: file['url'], is_file_obj_with_meta)
        return [TextContent(type='text', text=text if isinstance(text, str) else json.dumps(text)) for text in plain]

    server = page.mcp_server_obj
    assert server is not None
    server._get_or_create_client = connect  # type: ignore[method-assign]
    server.postprocess_output_data = as_texts  # type: ignore[method-assign, assignment]


@contextlib.asynccontextmanager
async def _guarded(app: 'Starlette', **settings: Any) -> AsyncIterator[None]:
    """Puts `Guard` around the server before it accepts connections.

    A middleware of `app_kwargs` would be inside Gradio's own, which answers requests of foreign origins by itself.
    """
    assert app.middleware_stack is not None  # it is what has called this
    app.middleware_stack = Guard(app.middleware_stack, **settings)
    yield


async def _explain_upload(request: 'Request', error: Exception) -> 'Response':
    """Answers an upload whose `files` are not files, at which Gradio fails."""
    from starlette.responses import PlainTextResponse

    if not request.url.path.rstrip('/').endswith('/gradio_api/upload'):
        raise error
    return PlainTextResponse('the upload holds no file', 400)


def _calls(page: 'gradio.Blocks') -> dict[int, Call]:
    """Returns what requests may call, with checks for what would otherwise fail inside Gradio with a traceback."""
    calls = {}
    for index, function in page.fns.items():
        is_queued = bool(function.queue)
        if function.api_visibility == 'public' and function.fn and function.api_name:
            calls[index] = call_of(function.fn, name=function.api_name, is_queued=is_queued)
        else:
            calls[index] = Call([functools.partial(_fits, component) for component in function.inputs], is_queued)
    return calls


def _fits(component: 'Block', value: Any) -> bool:
    """Returns whether a value from a request is of the type of a component."""
    import gradio as gr

    if isinstance(component, gr.Dataset):  # an example, by its number
        return isinstance(value, int) and 0 <= value < len(component.samples)
    if isinstance(component, gr.Audio):
        return value is None or isinstance(value, dict)
    return value is None or isinstance(value, int | float if isinstance(component, gr.Slider) else str)


def _keep_files_in(folder: str) -> None:
    """Tells Gradio again: these two read the environment when they were imported."""
    import gradio.mcp
    import gradio.routes

    gradio.routes.DEFAULT_TEMP_DIR = gradio.mcp.DEFAULT_TEMP_DIR = folder


def _set_environment(folder: str, host: str) -> None:
    """Sets the variables that Gradio reads, and drops the user's, which might expose more than the flags allow."""
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]
    os.environ['GRADIO_TEMP_DIR'] = folder
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    for name in ('python_multipart', 'mcp'):  # they warn of every malformed upload and every unknown tool
        logging.getLogger(name).setLevel(logging.ERROR)
    # Gradio requests its own address to see whether it is up; a proxy could not reach it.
    for name in ('NO_PROXY', 'no_proxy'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), *LOCAL, host]))


def import_gradio(*, mcp: bool = False) -> None:
    """Raises ConfigError if Gradio, or what it needs for MCP, is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError("the page needs Gradio: pip install 'audiosep_jax[demo]'") from error
    if mcp and importlib.util.find_spec('mcp') is None:
        raise ConfigError("--mcp needs the package mcp: pip install 'audiosep_jax[mcp]'")
