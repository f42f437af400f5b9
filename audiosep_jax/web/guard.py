"""Decides which requests reach Gradio's server: those of the page itself and of programs, and no others.

Gradio answers any name for this machine, requests of other sites, and routes that the page does not use. Some of these
fetch URLs for strangers, and others fail with a traceback when a request is malformed. So every request is checked:

- **Name.** The Host header must name this server (400). In DNS rebinding, a foreign site has its own name point here,
  and its pages then count as the same site, but the header still carries that name.
- **Site.** Requests that a browser marks as coming from another site are refused (403): those with a foreign `Origin`,
  and those whose `Sec-Fetch-Site` is not this site. Links to the page itself are fine.
- **Token.** If the server has one, every request must carry it (401).
- **Route.** Only the routes that the page and programs use are served (403, 405).
- **Call.** The JSON body of a call must fit the functions of the page and the endpoints for programs (400, 413).
"""

import dataclasses
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from audiosep_jax.errors import ConfigError
from audiosep_jax.web.token import CHALLENGES, Token

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ('localhost', '127.0.0.1', '::1')  # the names by which a machine addresses itself
_NAME = re.compile(r'[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?', re.IGNORECASE)
_MAX_NAME_BYTES = 255  # of a file; at longer ones the system fails
_MAX_BODY = 10**6  # bytes; the longest body that the page sends holds a few texts

_PAGE = re.compile(r'/?|/(theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(static|assets)/.*', re.DOTALL)
_READ = re.compile(
    r'/config/?|/gradio_api/(file=(?!\w+:).*|heartbeat/[^/]+'
    r'|(queue/data|queue/status|upload_progress|startup-events|app_id|info)/?)',
    re.DOTALL,
)
_STARTUP = re.compile(r'/gradio_api/startup-events/?')
_CALLS = re.compile(r'/gradio_api/(?:(?P<queue>queue/join)|run/(?P<name>[^/]+))/?')
_NAMED = re.compile(r'/gradio_api/call/(?P<keywords>v2/)?(?P<name>[^/]+?)(?P<event>/[\w-]{1,64})?/?', re.ASCII)
_MCP = re.compile(r'/gradio_api/mcp(/http)?/?')
_EVENTS = re.compile(r'/gradio_api/(cancel|reset)/?')
_UPLOAD = re.compile(r'/gradio_api/upload/?')
_SESSION = re.compile(r'[\w-]{1,64}', re.ASCII)

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


class HostNames:
    """The names by which this server may be addressed.

    Args:
        host: the address that it listens on.
        allowed: further names, which a reverse proxy uses.

    Raises:
        ConfigError: one of `allowed` is not a name.
    """

    def __init__(self, host: str, allowed: Sequence[str] = ()):
        for name in allowed:
            if not (_NAME.fullmatch(name) or _is_address(name)):
                raise ConfigError(
                    f'--allow-host {name!r}: give the name alone, without scheme, port and path: sounds.example.org'
                )
        self._is_local = is_local(host)
        self._given = {_normal(name) for name in allowed}
        self._own = {*LOCAL, _normal(host), _normal(f'{socket.gethostname()}.local')}

    def allow(self, name: str) -> None:
        """Adds a name."""
        self._given.add(_normal(name))

    def __contains__(self, name: str) -> bool:
        name = _normal(name)
        if self.is_given(name) or name in self._own:
            return True
        # A foreign site can register neither an address nor a name without a dot.
        return not self._is_local and bool(name) and (_is_address(name) or '.' not in name)

    def is_given(self, name: str) -> bool:
        """Returns whether the name was allowed explicitly."""
        return _normal(name) in self._given


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of the page that requests may call.

    Attributes:
        inputs: for each input, whether a value from a request fits it.
        is_queued: requests must wait in the queue.
        name: by which programs call it; None: only the page does.
        parameters: the names of the inputs, if programs call it, and what they must be, in words.
        required: the names of those that have no default.
    """

    inputs: Sequence[Callable[[Any], bool]]
    is_queued: bool
    name: str | None = None
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    required: Sequence[str] = ()


class _RefusedError(Exception):
    """A request is refused: status and one line of text."""


class _ArgumentError(_RefusedError):
    """The value of the parameter `name` of an endpoint cannot be used."""

    def __init__(self, name: str, reason: str):
        super().__init__(400, f'{name} {reason}')
        self.name, self.reason = name, reason


class Guard:
    """ASGI middleware, the outermost; see the top of this file.

    Args:
        app: Gradio's server.
        names: of this server.
        calls: the functions of the page and of programs, by index.
        root_path: the path at which a reverse proxy serves the page, such as `/sounds`; requests may come with it or
            without it.
        token: what requests must carry; None: nothing.
        has_page: whether the page is served, or only the endpoints.
        has_mcp: whether MCP's route is served.
    """

    def __init__(
        self,
        app: 'ASGIApp',
        *,
        names: HostNames,
        calls: Mapping[int, Call],
        root_path: str = '',
        token: Token | None = None,
        has_page: bool = True,
        has_mcp: bool = False,
    ):
        self._app, self._names, self._calls, self._root = app, names, calls, root_path
        self._by_name = {call.name: call for call in calls.values() if call.name is not None}
        self._token, self._has_page = token or Token(), has_page
        self._posted = (_CALLS, _EVENTS, _UPLOAD, *([_MCP] if has_mcp else []))

    async def __call__(self, scope: 'Scope', receive: 'Receive', send: 'Send') -> None:
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
            return
        if scope['type'] != 'http':
            await send({'type': 'websocket.close'})
            return
        from starlette.responses import PlainTextResponse

        has_started = False

        async def send_with_headers(message: 'Message') -> None:
            nonlocal has_started
            if message['type'] == 'http.response.start':
                has_started = True
                # Gradio adds these for foreign origins; the page itself is of one origin and needs none.
                kept = [(k, v) for k, v in message['headers'] if not k.lower().startswith(b'access-control-')]
                message = {**message, 'headers': [*kept, *_HEADERS]}
            await send(message)

        try:
            receive = await self._checked(scope, receive)
        except _RefusedError as error:
            status, text = error.args
            refusal = PlainTextResponse(text, status)
            for challenge in CHALLENGES if status == 401 else ():
                refusal.headers.append('www-authenticate', challenge)
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, receive, send_with_headers)
        except RuntimeError:
            # Starlette raises this when Gradio finds out that a session has ended only after it began to answer. The
            # client has been told, so there is nothing to log.
            if not (has_started and self._path(scope).startswith(('/gradio_api/queue/data', '/gradio_api/call/'))):
                raise
            await send({'type': 'http.response.body', 'body': b'', 'more_body': False})

    async def _checked(self, scope: 'Scope', receive: 'Receive') -> 'Receive':
        """Returns what the server shall receive from. Raises _RefusedError."""
        from starlette.datastructures import Headers

        headers, path = Headers(scope=scope), self._path(scope)
        self._check_name(headers)
        is_page = path in ('', '/')
        is_link = is_page and scope['method'] in ('GET', 'HEAD') and headers.get('sec-fetch-mode') == 'navigate'
        self._check_site(headers, is_link=is_link)
        self._check_token(headers, path)
        named = self._named(path)
        if _PAGE.fullmatch(path) and not self._has_page:
            raise _RefusedError(404, 'there is no page here, only endpoints for programs: see /gradio_api/info')
        is_read = any(route.fullmatch(path) for route in (_PAGE, _READ)) or bool(named and named['event'])
        is_posted = any(route.fullmatch(path) for route in self._posted) or bool(named and not named['event'])
        if scope['method'] in ('GET', 'HEAD') and is_read:
            if parse_qs(scope['query_string'].decode('latin-1')).get('page'):
                raise _RefusedError(404, 'there is only one page')
            if any(len(part.encode('utf-8', 'replace')) > _MAX_NAME_BYTES for part in path.split('/')):
                raise _RefusedError(404, 'no such file')
            return receive
        if not (is_read or is_posted):
            raise _RefusedError(403, 'not served here')
        if scope['method'] != 'POST' or not is_posted:
            raise _RefusedError(405, 'this method is not served here')
        if _UPLOAD.fullmatch(path):
            return receive
        body = await _read_body(receive)
        self._check_body(path, named, body)
        return _replayed(body, receive)

    def _named(self, path: str) -> re.Match | None:
        """Returns the parts of a path that calls an endpoint for programs by its name."""
        match = _NAMED.fullmatch(path)
        return match if match is not None and match['name'] in self._by_name else None

    def _check_token(self, headers: Mapping[str, str], path: str) -> None:
        is_own = not self._token.is_launched and _STARTUP.fullmatch(path)
        if not (is_own or self._token.admits(headers.get('authorization'))):
            raise _RefusedError(401, 'this server asks for its token: send the header Authorization: Bearer TOKEN')

    def _path(self, scope: 'Scope') -> str:
        path = scope['path']
        return path.removeprefix(self._root) if path == self._root or path.startswith(f'{self._root}/') else path

    def _check_name(self, headers: Mapping[str, str]) -> None:
        """Checks the name by which the server was addressed, also the one that a proxy says it was addressed by."""
        for header in ('host', 'x-forwarded-host'):
            value = headers.get(header, '' if header == 'host' else None)
            if value is None:
                continue
            name = _host_of(f'//{value.split(",")[0].strip()}')
            if name not in self._names:
                shown = ''.join(c for c in name if c.isprintable())[:100]
                raise _RefusedError(
                    400, f'this server does not go by the name {shown!r}; if it should, start it with --allow-host NAME'
                )

    def _check_site(self, headers: Mapping[str, str], *, is_link: bool) -> None:
        refused = _RefusedError(403, 'requests from other sites are refused')
        origin = headers.get('origin')
        if origin is not None:
            name = _host_of(origin)
            own = _without_default_port(headers['host'].lower())
            if not name or not (
                _without_default_port(origin.lower().partition('://')[2]) == own or self._names.is_given(name)
            ):
                raise refused
        if not is_link and headers.get('sec-fetch-site', 'none') not in ('same-origin', 'none'):
            raise refused

    def _check_body(self, path: str, named: re.Match | None, body: bytes) -> None:
        """Checks the body of what is posted to a path; `named` are the parts of the path, see `_named`."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _RefusedError(400, 'the body is not JSON') from error
        if not isinstance(fields, dict):
            raise _RefusedError(400, 'the body is not a JSON object')
        if named is not None and named['keywords']:
            _check_arguments(self._by_name[named['name']], fields)
            return
        for key in ('session_hash', 'event_id'):
            value = fields.get(key)
            if value is not None and not (isinstance(value, str) and _SESSION.fullmatch(value)):
                raise _RefusedError(400, f'{key} must be a short text of letters and digits')
        call = _CALLS.fullmatch(path)
        if named is not None:
            _check_data(self._by_name[named['name']], fields.get('data'))
        elif call is not None:
            self._check_call(call, fields)

    def _check_call(self, call: re.Match, fields: Mapping[str, Any]) -> None:
        """Checks a call as the page and Gradio's clients make it, which name a function by its index."""
        index = fields.get('fn_index')
        if index is None and call['name'] in self._by_name:
            function: Call | None = self._by_name[call['name']]
        else:
            function = self._calls.get(index) if isinstance(index, int) and not isinstance(index, bool) else None
        if function is None:
            raise _RefusedError(400, 'fn_index is not a function of this page')
        # Gradio's clients take every call to the queue.
        if function.is_queued != bool(call['queue']) and (function.is_queued or function.name is None):
            raise _RefusedError(400, 'this function is not called by this route')
        try:
            _check_data(function, fields.get('data'))
        except _ArgumentError as error:  # Gradio's clients show what comes in this form
            detail = {'__type__': 'validate', 'is_valid': False, 'parameter_name': error.name, 'message': error.reason}
            raise _RefusedError(422, json.dumps({'detail': [detail]})) from error
        trigger = fields.get('trigger_id')
        is_odd = fields.get('batched') or fields.get('simple_format')
        if is_odd or not isinstance(trigger, int | None) or not isinstance(fields.get('event_data'), dict | None):
            raise _RefusedError(400, 'the page sends no such call')


def _check_data(function: Call, data: Any) -> None:
    """Checks the inputs of a call, which come as a list."""
    if not isinstance(data, list) or len(data) != len(function.inputs):
        raise _RefusedError(400, f'data must be a list of {len(function.inputs)} values')
    if function.name is not None:
        _check_arguments(function, dict(zip(function.parameters, data, strict=True)))
    elif not all(fits(value) for fits, value in zip(function.inputs, data, strict=True)):
        raise _RefusedError(400, 'data holds a value of a wrong type')


def _check_arguments(function: Call, arguments: Mapping[str, Any]) -> None:
    """Checks the inputs of a call of a program by their names."""
    for name in arguments:
        if name not in function.parameters:
            shown = ''.join(c for c in name if c.isprintable())[:100]
            raise _ArgumentError(shown, f'is no parameter of {function.name}; it has {", ".join(function.parameters)}')
    for name in function.required:
        if name not in arguments:
            raise _ArgumentError(name, 'is missing')
    for (name, kind), fits in zip(function.parameters.items(), function.inputs, strict=True):
        if name in arguments and not fits(arguments[name]):
            raise _ArgumentError(name, f'must be {kind}')


def is_local(host: str) -> bool:
    """Returns whether only this machine can reach what listens on `host`."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_root_path(path: str) -> str:
    """Returns the path at which a proxy serves the page, without a slash at its end. Raises ConfigError."""
    if path and not re.fullmatch(r'(/[\w.~-]+)+/?|/', path, re.ASCII):
        raise ConfigError(f'--root-path {path!r}: give a path alone, such as /sounds')
    return path.rstrip('/')


async def _read_body(receive: 'Receive') -> bytes:
    chunks, size, is_complete = [], 0, False
    while not is_complete:
        message = await receive()
        if message['type'] != 'http.request':
            raise _RefusedError(400, 'the body is incomplete')
        chunks.append(message.get('body', b''))
        size += len(chunks[-1])
        if size > _MAX_BODY:
            raise _RefusedError(413, 'the body is too large')
        is_complete = not message.get('more_body', False)
    return b''.join(chunks)


def _replayed(body: bytes, receive: 'Receive') -> 'Receive':
    """Returns a `receive` that gives the body, which has been read, once more."""
    waiting = [body]

    async def replay() -> 'Message':
        if waiting:
            return {'type': 'http.request', 'body': waiting.pop(), 'more_body': False}
        return await receive()

    return replay


def _host_of(url: str) -> str:
    """Returns the host of a URL without port and brackets, or '' if it has none."""
    try:
        return urlsplit(url).hostname or ''
    except ValueError:
        return ''


def _without_default_port(netloc: str) -> str:
    return re.sub(r':(80|443)$', '', netloc)


def _normal(name: str) -> str:
    return name.lower().removeprefix('[').removesuffix(']').removesuffix('.')


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(_normal(name))
    except ValueError:
        return False
    return True
