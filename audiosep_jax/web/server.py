"""The server behind `audiosep-jax serve`: serves the web page (`page.py`) on a port of this machine.

It gives access to uploads and results only: Gradio gets a separate folder, and a middleware refuses whatever else
Gradio's server would do for strangers, such as fetching URLs. The page needs no network: it uses system fonts, and its
headers tell the browser to load nothing from other hosts.
"""

import contextlib
import ipaddress
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.page import CSS, Example, Limits, build_page, theme

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOCAL = ('localhost', '127.0.0.1')
# Routes by which Gradio fetches URLs for any client, and its pages for developers.
_REFUSED = re.compile(r'/(?:proxy=|(?:file=|file/)\w+:|process_recording|vibe|undo-vibe|dev/|monitoring|deep_link)')
# Gradio uses inline scripts and styles, and its players and recorders use blobs.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'"
)
_HEADERS = [
    (b'content-security-policy', _POLICY.encode()),
    (b'x-content-type-options', b'nosniff'),
    (b'referrer-policy', b'no-referrer'),
]


@contextlib.contextmanager
def serving(
    separator: Separator, *, host: str, port: int, share: bool, limits: Limits, examples: Sequence[Example]
) -> Iterator[str]:
    """Serves the page inside the context; yields its address.

    It may be used once per process, because Gradio reads its settings from the environment.

    Raises:
        ConfigError: Gradio is not installed, or the port is in use.
        QueryError: the separator does not accept text queries; see also `Separator.prepare`.
    """
    separator.prepare('a dog barking')  # fails here rather than at the first request
    with tempfile.TemporaryDirectory(prefix='audiosep-jax-', ignore_cleanup_errors=True) as folder:
        folder = os.path.realpath(folder)
        _set_environment(folder, host)
        import_gradio()
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        guards = [Middleware(_Guard)]
        if _is_local(host) and not share:
            # Against DNS rebinding: a foreign page may point its own name here, but the Host header still carries it.
            guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*_LOCAL, host], www_redirect=False))
        page = build_page(separator, limits=limits, folder=Path(folder), examples=examples)
        try:
            _, address, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                inbrowser=False,
                quiet=True,
                show_error=False,
                max_file_size=limits.megabytes * 10**6,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme(),
                css=CSS,
                app_kwargs={'middleware': guards, 'docs_url': None, 'redoc_url': None},
            )
        except OSError as error:
            raise ConfigError(f'--host {host} --port {port}: cannot listen there: {error}') from error
        try:
            yield f'{address}  {public}' if public else address
        finally:
            page.close(verbose=False)


class _Guard:
    """ASGI middleware that refuses routes the page does not use, and adds _HEADERS to every response."""

    def __init__(self, app: 'ASGIApp'):
        self._app = app

    async def __call__(self, scope: 'Scope', receive: 'Receive', send: 'Send') -> None:
        async def send_with_headers(message: 'Message') -> None:
            if message['type'] == 'http.response.start':
                message = {**message, 'headers': [*message['headers'], *_HEADERS]}
            await send(message)

        if scope['type'] != 'http':
            await self._app(scope, receive, send)
        elif _REFUSED.search(scope['path']):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse('not served here', 403)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def _set_environment(folder: str, host: str) -> None:
    """Sets the variables that Gradio reads, and drops the user's, which might expose more than the flags allow."""
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]
    os.environ['GRADIO_TEMP_DIR'] = folder
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    # Gradio requests its own address to see whether it is up; a proxy could not reach it.
    for name in ('NO_PROXY', 'no_proxy'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), *_LOCAL, host]))


def import_gradio() -> None:
    """Raises ConfigError if Gradio is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError("the page needs Gradio: pip install 'audiosep_jax[demo]'") from error


def _is_local(host: str) -> bool:
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).version == 4 and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
