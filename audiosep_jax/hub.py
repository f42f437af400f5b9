"""Files of Hugging Face repositories through `huggingface_hub`: its cache, its progress bar, one clear line offline."""

import contextlib
import os
import re
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from audiosep_jax.errors import DownloadError

_REPO_ID = re.compile(r'(?!.*(--|\.\.))[\w][\w.-]*/[\w][\w.-]*', re.ASCII)


def is_repo_id(name: str | os.PathLike) -> bool:
    """Whether a name could be a repository's, `organisation/name`, rather than a file's."""
    return _REPO_ID.fullmatch(str(name)) is not None


def fetch(repo_id: str, filename: str, *, place: Path | str, repo_type: str = 'model') -> Path:
    """A file of a repository: from the local cache if it is there, else downloaded, with a progress bar on stderr.

    Args:
        repo_id: `organisation/name`.
        filename: its path in the repository.
        place: where a user without a network should put the file; only for the message.
        repo_type: 'model', 'space' or 'dataset'.

    Raises:
        DownloadError: offline with a cold cache, no such repository or file, no space on the disk.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    arguments = {'repo_id': repo_id, 'filename': filename, 'repo_type': repo_type}
    try:
        return Path(huggingface_hub.hf_hub_download(**arguments, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # the usual case: it has to be downloaded
    except HFValidationError as error:
        raise DownloadError(f'{repo_id!r} is not the name of a Hugging Face repository: {error}') from error
    with _told(repo_id, filename, place, repo_type):
        return Path(huggingface_hub.hf_hub_download(**arguments))


def list_files(repo_id: str, *, place: Path | str) -> list[str]:
    """The files of a model repository: what its server says, or, offline, those in the local cache.

    Raises:
        DownloadError: offline with a cold cache, or no such repository.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _told(repo_id, 'the list of files', place):
            return huggingface_hub.list_repo_files(repo_id)
    except DownloadError:
        try:
            folder = Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
        except LocalEntryNotFoundError:
            folder = None
        files = [] if folder is None else [str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()]
        if not files:
            raise
        return files


def snapshot(repo_id: str, filenames: list[str], *, place: Path | str) -> Path:
    """The folder that holds these files of a model repository, fetched where needed.

    Raises:
        DownloadError: see `fetch`.
    """
    for name in filenames:
        path = fetch(repo_id, name, place=place)
    return path.parents[len(Path(name).parts) - 1]


@contextlib.contextmanager
def _told(repo_id: str, what: str, place: Path | str, repo_type: str = 'model') -> Iterator[None]:
    """Whatever the hub's library raises, and its five retries without a network, as one line that helps."""
    url = f'https://huggingface.co/{"" if repo_type == "model" else repo_type + "s/"}{repo_id}'

    def failure(reason: str) -> DownloadError:
        return DownloadError(
            f'{what} of {url} cannot be fetched ({reason}): download it on another machine and put it at {place}'
        )

    reason = _offline()
    if reason:
        raise failure(reason)
    try:
        yield
    except Exception as error:  # its own errors, those of its HTTP library, of the disk
        raise failure(_reason(error)) from error


def _offline() -> str | None:
    """Why the hub cannot be reached; None: it seems that it can. Sooner than the library, which retries for 23 s."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return 'HF_HUB_OFFLINE is set'
    if any(os.environ.get(name) for name in ('HTTPS_PROXY', 'https_proxy', 'ALL_PROXY', 'all_proxy')):
        return None  # a proxy resolves the name
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError as error:
        return f'{address.hostname}: {error.strerror or error}'
    return None


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    for kind, reason in (
        (errors.GatedRepoError, 'its licence has to be accepted on its page first, then `hf auth login`'),
        (errors.RepositoryNotFoundError, 'there is no such repository, or it is private'),
        (errors.LocalEntryNotFoundError, 'no connection'),
        (errors.EntryNotFoundError, 'there is no such file in it'),
    ):
        if isinstance(error, kind):
            return reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
