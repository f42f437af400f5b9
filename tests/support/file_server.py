"""A web server on this machine for downloads: it resumes, cuts connections when told to, and stands in for the hub."""

import contextlib
import dataclasses
import hashlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator


@dataclasses.dataclass
class Served:
    """What a server has, and what it has been asked for.

    Attributes:
        url: the server's address.
        files: the contents by path, such as `/records/1/files/x.ckpt`, without escapes.
        cuts: by path, after how many bytes of the next answers the connection is cut.
        etags: by path, instead of `"md5:…"`; '' for none.
        requests: (method, path, the header Range) of each request.
    """

    url: str = ''
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    cuts: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    etags: dict[str, str] = dataclasses.field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = dataclasses.field(default_factory=list)

    def etag(self, path: str) -> str:
        return self.etags.get(path, f'"md5:{hashlib.md5(self.files[path]).hexdigest()}"')


@contextlib.contextmanager
def serving() -> Iterator[Served]:
    """Runs a server while the block does."""
    served = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = urllib.parse.unquote(self.path.partition('?')[0])
            served.requests.append((self.command, path, self.headers.get('Range')))
            content = served.files.get(path)
            if content is None:
                self._send(404, {'X-Error-Code': 'EntryNotFound'}, 0)
                return
            etag, start = served.etag(path), 0
            headers = {'X-Repo-Commit': '1' * 40} | ({'ETag': etag} if etag else {})
            asked = self.headers.get('Range')
            if asked and self.headers.get('If-Range', etag) == etag:
                start = int(asked.removeprefix('bytes=').partition('-')[0])
                if start >= len(content):
                    self._send(416, headers | {'Content-Range': f'bytes */{len(content)}'}, 0)
                    return
                headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
            body = content[start:]
            self._send(206 if start else 200, headers, len(body))
            if with_body:
                cuts = served.cuts.get(path)
                cut = cuts.pop(0) if cuts else None
                with contextlib.suppress(ConnectionError):  # the client has gone
                    self.wfile.write(body[:cut])
                self.close_connection = self.close_connection or cut is not None

        def _send(self, status: int, headers: dict[str, str], length: int) -> None:
            self.send_response(status)
            for name, value in (headers | {'Content-Length': str(length)}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        served.url = f'http://127.0.0.1:{server.server_port}'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
