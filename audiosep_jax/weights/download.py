"""Files from web addresses. A download that was cut or killed resumes, and a file appears only when it is whole."""

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from audiosep_jax.errors import DownloadError, first_line
from audiosep_jax.progress import download_bar
from audiosep_jax.storage.locks import locked

_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the second attempt; twice as long before the third, and so on
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20  # bytes
# InvenioRDM, the software of Zenodo, gives a file's MD5 as its ETag.
_MD5_ETAG = re.compile(r'"(md5:[0-9a-f]{32})"')


class _CutError(Exception):
    """The connection ended, or brought nothing for a while, before the file was whole."""


def download(url: str, path: Path, *, size: int | None = None, checksum: str | None = None, place: str) -> Path:
    """Returns `path`, which holds the file at an address. If it is not there yet, it is downloaded, with a bar.

    What has arrived of an unfinished download stays beside `path`. The next call asks only for the rest, if the
    server can say that the file is still the same; otherwise it starts again.

    Args:
        url: the address, http or https.
        path: where the file is to be. Its folder is created if it does not exist.
        size: in bytes, if it is known.
        checksum: `sha256:…` or `md5:…`, if it is known; otherwise the server's own, if it states one.
        place: where a user without a network should put the file; used only in the message.

    Raises:
        DownloadError: the server cannot be reached or has no such file, the connection was cut again and again, the
            file is not the expected one, or the disk is full.
    """
    part = path.with_name(f'.{path.name}.part')
    validator = path.with_name(f'.{path.name}.etag')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f'.{path.name}.lock')):
            if not path.exists():
                stated = _fetch(url, part, validator, size)
                validator.unlink(missing_ok=True)
                _check(part, path.name, size, checksum or stated, url)
                os.replace(part, path)
    except (OSError, http.client.HTTPException, _CutError) as error:
        reason, remedy = _reason(error, part), _remedy(error, place)
        raise DownloadError(f'{path.name} cannot be fetched from {url} ({reason}): {remedy}') from error
    return path


def _fetch(url: str, part: Path, validator: Path, size: int | None) -> str | None:
    """Downloads a file into `part`, in several attempts if necessary. Returns the checksum that the server states."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise OSError('HF_HUB_OFFLINE is set')
    with download_bar(part.name[1:].removesuffix('.part')) as show:
        attempt = 1
        while True:
            try:
                return _receive(url, part, validator, size, show)
            except _CutError:
                if attempt == _ATTEMPTS:
                    raise
            time.sleep(_PAUSE * 2 ** (attempt - 1))
            attempt += 1


def _receive(
    url: str, part: Path, validator: Path, size: int | None, show: Callable[[int, int | None], None]
) -> str | None:
    """Downloads what is missing in `part`. Returns the checksum that the server states, if it states one.

    Raises:
        _CutError: not everything has arrived; a further attempt may resume.
    """
    offset = part.stat().st_size if part.exists() and validator.exists() else 0
    headers = {'Range': f'bytes={offset}-', 'If-Range': validator.read_text()} if offset else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        # The answer to a request for the rest of a file that had arrived completely.
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            if error.headers.get('Content-Range') == f'bytes */{offset}':
                return _stated_checksum(validator.read_text())
            part.unlink()  # it is longer than the file: start again
            raise _CutError from error
        raise
    except (ConnectionResetError, TimeoutError, http.client.RemoteDisconnected) as error:
        raise _CutError from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0  # the file has changed, or the server always sends all of it
        etag = response.headers.get('ETag', '')
        total = size if response.length is None else offset + response.length
        if size is not None and total != size:
            raise DownloadError(f'{url} has {total} bytes, and {size} were expected: the file there is another one')
        _check_space(part.parent, None if total is None else total - offset)
        validator.unlink(missing_ok=True)
        with part.open('ab' if offset else 'wb') as file:
            if etag.startswith('"'):  # a weak one, W/"…", does not promise equal bytes
                validator.write_text(etag)
            done = offset
            show(done, total)
            while block := _read(response):
                file.write(block)
                done += len(block)
                show(done, total)
        if total is not None and done < total:
            raise _CutError
        return _stated_checksum(etag)


def _stated_checksum(etag: str) -> str | None:
    found = _MD5_ETAG.fullmatch(etag)
    return None if found is None else found[1]


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError from error


def _check_space(folder: Path, needed: int | None) -> None:
    """Raises OSError if the disk has less room than is needed."""
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise OSError(errno.ENOSPC, f'{needed / 1e9:.2f} GB are needed in {folder}, and {free / 1e9:.2f} are free')


def _check(part: Path, name: str, size: int | None, checksum: str | None, url: str) -> None:
    """Checks a complete download, and removes it if it is not the expected file."""
    problem = None
    if size is not None and part.stat().st_size != size:
        problem = f'it has {part.stat().st_size} bytes instead of {size}'
    elif checksum is not None:
        kind, _, expected = checksum.partition(':')
        with part.open('rb') as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != expected:
            problem = f'its {kind.upper()} is {found} instead of {expected}'
    if problem is not None:
        part.unlink()
        raise DownloadError(
            f'{name} from {url} is damaged or another file ({problem}), and was removed: run the same again'
        )


def _reason(error: Exception, part: Path) -> str:
    if isinstance(error, _CutError):
        done = part.stat().st_size if part.exists() else 0
        return f'the connection was cut {_ATTEMPTS} times; {done / 1e6:.1f} MB have arrived'
    if isinstance(error, urllib.error.HTTPError):
        return f'{error.code} {error.reason}'
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    return getattr(error, 'strerror', None) or first_line(error)


def _remedy(error: Exception, place: str) -> str:
    if isinstance(error, _CutError):
        return 'run the same again to fetch the rest'
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 'free some space, or let XDG_CACHE_HOME name a folder on another disk, and run the same again'
    return f'download it on another machine and put it at {place}'
