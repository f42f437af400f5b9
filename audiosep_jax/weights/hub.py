"""Files of Hugging Face repositories through `huggingface_hub`: its cache, its progress bar, one clear line offline."""

import contextlib
import dataclasses
import os
import re
import socket
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from audiosep_jax.errors import DownloadError, first_line
from audiosep_jax.weights.tensor_files import SUFFIXES

_REPOSITORY = re.compile(r'(?!.*(--|\.\.))[\w][\w.-]*/[\w][\w.-]*', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A repository, and perhaps a file in it."""

    repository: str
    kind: Literal['model', 'space'] = 'model'
    file: str | None = None

    @property
    def url(self) -> str:
        """Of the repository's page."""
        return f'https://huggingface.co/{"spaces/" if self.kind == "space" else ""}{self.repository}'


def parse_reference(text: str) -> Reference | None:
    """`organisation/name`, `organisation/name:FILE`, either behind `spaces/`; None: it rather means a local path.

    A mistyped path must not be looked for on the network: nothing that begins with a folder that is here, or ends in
    the suffix of a file, is a repository's name.
    """
    name, _, file = text.partition(':')
    kind = 'space' if name.startswith('spaces/') else 'model'
    name = name.removeprefix('spaces/')
    if not _REPOSITORY.fullmatch(name):
        return None
    if not file and (Path(name).suffix in SUFFIXES or Path(name.partition('/')[0]).exists()):
        return None
    return Reference(name, kind, file or None)


def parse_repository(text: str) -> Reference | None:
    """A model's `organisation/name`, whatever is here under that name; None: it is none."""
    return Reference(text) if _REPOSITORY.fullmatch(text) else None


def fetch(repository: str | Reference, filename: str, *, place: Path | str) -> Path:
    """A file of a repository: from the local cache if it is there, else downloaded, with a progress bar on stderr.

    Args:
        repository: a model's `organisation/name`, or a reference.
        filename: its path in the repository.
        place: where a user without a network should put the file; only for the message.

    Raises:
        DownloadError: offline with a cold cache, no such repository or file, no space on the disk.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    reference = _reference(repository)
    arguments = {'repo_id': reference.repository, 'filename': filename, 'repo_type': reference.kind}
    try:
        return Path(huggingface_hub.hf_hub_download(**arguments, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # the usual case: it has to be downloaded
    except HFValidationError as error:
        raise DownloadError(
            f'{reference.repository!r} is not the name of a Hugging Face repository: {error}'
        ) from error
    with _told(reference, filename, place):
        return Path(huggingface_hub.hf_hub_download(**arguments))


def list_files(repository: str | Reference, *, place: Path | str, suffixes: Iterable[str]) -> list[str]:
    """The files of a repository: what its server says; offline, those in the local cache, if one of them ends in one of
    the suffixes (of weights): settings alone are the remains of something else.

    Raises:
        DownloadError: offline with a cold cache, or no such repository.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    reference = _reference(repository)
    arguments = {'repo_id': reference.repository, 'repo_type': reference.kind}
    try:
        with _told(reference, 'the list of files', place):
            return huggingface_hub.list_repo_files(**arguments)
    except DownloadError:
        try:
            folder = Path(huggingface_hub.snapshot_download(**arguments, local_files_only=True))
        except LocalEntryNotFoundError:
            folder = None
        files = [] if folder is None else [str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()]
        if not any(name.endswith(tuple(suffixes)) for name in files):
            raise
        return files


def snapshot(repository: str | Reference, filenames: list[str], *, place: Path | str) -> Path:
    """The folder that holds these files of a repository, fetched where needed.

    Raises:
        DownloadError: see `fetch`.
    """
    for name in filenames:
        path = fetch(repository, name, place=place)
    return path.parents[len(Path(name).parts) - 1]


def upload(reference: Reference, folder: Path, *, private: bool) -> str:
    """Makes the repository if it is not there, and uploads the folder as one commit; returns the repository's address.

    Raises:
        DownloadError: no network, no token, no permission.
    """
    import huggingface_hub

    reason = _offline()
    if reason:
        raise _not_uploaded(reference, reason)
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(reference.repository, private=private or None, exist_ok=True)
        message = 'Upload a separator of audiosep_jax'
        api.upload_folder(repo_id=reference.repository, folder_path=folder, commit_message=message)
    except Exception as error:  # its own errors, those of its HTTP library, of the disk
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        if status == 401 or isinstance(error, huggingface_hub.errors.LocalTokenNotFoundError):
            reason = 'no valid token: `hf auth login` first, or set HF_TOKEN'
        else:
            reason = 'the token has no permission for that' if status == 403 else _reason(error)
        raise _not_uploaded(reference, reason) from error
    return str(url)


def _not_uploaded(reference: Reference, reason: str) -> DownloadError:
    return DownloadError(
        f'{reference.url} cannot be written ({reason}); --folder DIR makes the folder without uploading it'
    )


def _reference(repository: str | Reference) -> Reference:
    return repository if isinstance(repository, Reference) else Reference(repository)


@contextlib.contextmanager
def _told(reference: Reference, what: str, place: Path | str) -> Iterator[None]:
    """Whatever the hub's library raises, and its five retries without a network, as one line that helps."""

    def failure(reason: str) -> DownloadError:
        remedy = f'download it on another machine and put it at {place}'
        return DownloadError(f'{what} of {reference.url} cannot be fetched ({reason}): {remedy}')

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
    return first_line(error)
