"""The server behind `audiosep-jax serve`: the web page (`page.py`) on a port of this machine.

Nothing of this machine is to be had through it but what was uploaded and made there: Gradio gets a folder of its own,
and what else its server could do for strangers (fetch URLs for them, say) is refused in front of it. The page needs no
network: its fonts are the system's, and the browser is told to load nothing from elsewhere.
"""

import contextlib
import ipaddress
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.page import CSS, Example, Limits, build_page, theme

_LOCAL = ('localhost', '127.0.0.1')
# Gradio would fetch URLs for whoever asks, and has pages for developers.
_REFUSED = re.compile(r'/(?:proxy=|(?:file=|file/)\w+:|process_recording|vibe|undo-vibe|dev/|monitoring|deep_link)')
# Inline scripts and styles are Gradio's own; blobs are what its players and recorders play from.
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
    """The page is up inside; yields its address. Once in a process: Gradio reads its settings from the environment.

    Raises:
        ConfigError: no Gradio, or the port is taken.
        QueryError and others: the separator does not understand texts; see `Separator.embed`.
    """
    separator.prepare('a dog barking')  # sooner here than with the first user
    with tempfile.TemporaryDirectory(prefix='audiosep-jax-', ignore_cleanup_errors=True) as folder:
        folder = os.path.realpath(folder)
        _set_environment(folder, host)
        import_gradio()
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        guards = [Middleware(_Guard)]
        if _is_local(host) and not share:
            # Another page in the same browser may have its name point here; it cannot choose the name that is asked.
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
            raise ConfigError(f'--host {host} --port {port}: cannot be listened on: {error}') from error
        try:
            yield f'{address}  {public}' if public else address
        finally:
            page.close(verbose=False)


class _Guard:
    """ASGI: refuses what the page does not use, and adds the headers above to what it sends."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def send_with_headers(message):
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
    """What Gradio reads from it: whatever the user's has must not open more than the flags do."""
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]
    os.environ['GRADIO_TEMP_DIR'] = folder
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    # It asks its own address whether it is up, which is nothing for a proxy.
    for name in ('NO_PROXY', 'no_proxy'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), *_LOCAL, host]))


def import_gradio() -> None:
    """Raises ConfigError where Gradio is not installed."""
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
