"""The server behind `audiosep-jax serve`: serves the web page (`page.py`) on a port of this machine.

It gives access to uploads and results only: Gradio gets a separate folder (`scratch.py`), and only requests of the page
reach it (`guard.py`). The page needs no network: it uses system fonts, and its headers tell the browser to load nothing
from other hosts.
"""

import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.guard import LOCAL, Call, Guard, HostNames, check_root_path
from audiosep_jax.web.page import CSS, Example, Limits, build_page, theme
from audiosep_jax.web.scratch import scratch_folder

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
    'mcp_server': False,
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
) -> Iterator[str]:
    """Serves the page inside the context; yields its address.

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

    Raises:
        ConfigError: Gradio is not installed, the port is in use, or `allowed_hosts` or `root_path` is malformed.
        QueryError: the separator does not accept text queries; see also `Separator.prepare`.
    """
    names, root_path = HostNames(host, allowed_hosts), check_root_path(root_path)
    separator.prepare('a dog barking')  # fails here rather than at the first request
    with scratch_folder() as folder:
        _set_environment(os.fspath(folder), host)
        import_gradio()
        import gradio.routes

        gradio.routes.DEFAULT_TEMP_DIR = os.fspath(folder)  # read from the environment when it was imported
        page = build_page(separator, limits=limits, folder=folder, examples=examples)
        try:
            _, address, public = page.launch(
                server_name=f'[{host}]' if ':' in host else host,
                server_port=port,
                root_path=root_path,
                share=share,
                max_file_size=limits.megabytes * 10**6,
                theme=theme(),
                css=CSS,
                **_LAUNCH,
                app_kwargs={
                    'lifespan': functools.partial(_guarded, names=names, calls=_calls(page), root_path=root_path),
                    'exception_handlers': {TypeError: _explain_upload},
                    'docs_url': None,
                    'redoc_url': None,
                },
            )
        except OSError as error:
            raise ConfigError(f'--host {host} --port {port}: cannot listen there: {error}') from error
        if public:
            names.allow(urlsplit(public).hostname or '')
        try:
            address = address.replace('[::]', '[::1]')  # like 0.0.0.0, no browser opens it
            yield f'{address}  {public}' if public else address
        finally:
            page.close(verbose=False)


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
    return {
        index: Call([functools.partial(_fits, component) for component in function.inputs], bool(function.queue))
        for index, function in page.fns.items()
    }


def _fits(component: 'Block', value: Any) -> bool:
    """Returns whether a value from a request is of the type of a component."""
    import gradio as gr

    if isinstance(component, gr.Dataset):  # an example, by its number
        return isinstance(value, int) and 0 <= value < len(component.samples)
    if isinstance(component, gr.Audio):
        return value is None or isinstance(value, dict)
    return value is None or isinstance(value, int | float if isinstance(component, gr.Slider) else str)


def _set_environment(folder: str, host: str) -> None:
    """Sets the variables that Gradio reads, and drops the user's, which might expose more than the flags allow."""
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]
    os.environ['GRADIO_TEMP_DIR'] = folder
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    logging.getLogger('python_multipart').setLevel(logging.ERROR)  # it warns of every malformed upload
    # Gradio requests its own address to see whether it is up; a proxy could not reach it.
    for name in ('NO_PROXY', 'no_proxy'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), *LOCAL, host]))


def import_gradio() -> None:
    """Raises ConfigError if Gradio is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError("the page needs Gradio: pip install 'audiosep_jax[demo]'") from error
