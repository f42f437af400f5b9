"""Files of Hugging Face repositories, through `huggingface_hub` and its cache. A failure is one line with a remedy."""

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
from audiosep_jax.storage.cache import give_libraries_a_cache
from audiosep_jax.weights.tensor_files import SUFFIXES

_REPOSITORY = re.compile(r'(?!.*(--|\.\.))[\w][\w.-]*/[\w][\w.-]*', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A repository of the hub, and perhaps a file in it."""

    repository: str
    kind: Literal['model', 'space'] = 'model'
    file: str | None = None

    @property
    def url(self) -> str:
        """The address of the repository's page."""
        return f'https://huggingface.co/{"spaces/" if self.kind == "space" else ""}{self.repository}'


def parse_reference(text: str) -> Reference | None:
    """Parses `organisation/name` or `organisation/name:FILE`, either with `spaces/` in front.

    Returns None for what is more likely a local path: its first folder exists here, or it ends in the suffix of a
    weights file. So a mistyped path is not looked up on the network.
    """
    name, _, file = text.partition(':')
    kind: Literal['model', 'space'] = 'space' if name.startswith('spaces/') else 'model'
    name = name.removeprefix('spaces/')
    if not _REPOSITORY.fullmatch(name):
        return None
    if not file and (Path(name).suffix in SUFFIXES or Path(name.partition('/')[0]).exists()):
        return None
    return Reference(name, kind, file or None)


def parse_repository(text: str) -> Reference | None:
    """Parses a model's `organisation/name`, even if a local path has that name. Returns None for anything else."""
    return Reference(text) if _REPOSITORY.fullmatch(text) else None


def fetch(repository: str | Reference, filename: str, *, place: Path | str) -> Path:
    """Returns the local path of a file of a repository. Downloads it, with a progress bar, if it is not in the cache.

    Args:
        repository: a model's `organisation/name`, or a reference.
        filename: its path in the repository.
        place: where a user without a network should put the file; used only in the message.

    Raises:
        DownloadError: the file is not in the cache and the hub cannot be reached, there is no such repository or file,
            or the disk is full.
    """
    give_libraries_a_cache()
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    reference = _as_reference(repository)

    def download(*, local_files_only: bool) -> Path:
        return Path(
            huggingface_hub.hf_hub_download(
                reference.repository, filename, repo_type=reference.kind, local_files_only=local_files_only
            )
        )

    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        pass  # the usual case: it has to be downloaded
    except HFValidationError as error:
        raise DownloadError(
            f'{reference.repository!r} is not the name of a Hugging Face repository: {error}'
        ) from error
    with _download_errors(reference, filename, place):
        return download(local_files_only=False)


def list_files(repository: str | Reference, *, place: Path | str, suffixes: Iterable[str]) -> list[str]:
    """Returns the names of a repository's files, from its server or, offline, from the local cache.

    Args:
        repository: a model's `organisation/name`, or a reference.
        place: see `fetch`.
        suffixes: endings of the names of weights. The cache counts only if it holds such a file: settings alone were
            cached for another purpose, and the repository has more.

    Raises:
        DownloadError: the hub cannot be reached and the cache has no weights, or there is no such repository.
    """
    give_libraries_a_cache()
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    reference = _as_reference(repository)
    try:
        with _download_errors(reference, 'the list of files', place):
            return huggingface_hub.list_repo_files(reference.repository, repo_type=reference.kind)
    except DownloadError:
        try:
            folder = Path(
                huggingface_hub.snapshot_download(reference.repository, repo_type=reference.kind, local_files_only=True)
            )
        except LocalEntryNotFoundError:
            files = []
        else:
            files = [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]
        if not any(name.endswith(tuple(suffixes)) for name in files):
            raise
        return files


def snapshot(repository: str | Reference, filenames: list[str], *, place: Path | str) -> Path:
    """Returns the local folder that holds these files of a repository. Downloads those that are not in the cache.

    Raises:
        DownloadError: see `fetch`.
    """
    for name in filenames:
        path = fetch(repository, name, place=place)
    return path.parents[len(Path(name).parts) - 1]


def upload(reference: Reference, folder: Path, *, private: bool) -> str:
    """Uploads a folder as one commit, and returns the repository's address.

    Args:
        reference: the repository, which is created if it does not exist.
        folder: the files to upload.
        private: whether a newly created repository is private.

    Raises:
        DownloadError: the hub cannot be reached, or there is no valid token, or it lacks the permission.
    """
    give_libraries_a_cache()
    import huggingface_hub

    offline = _offline_reason()
    if offline:
        raise _upload_error(reference, offline)
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(reference.repository, private=private or None, exist_ok=True)
        message = 'Upload a separator of audiosep_jax'
        api.upload_folder(repo_id=reference.repository, folder_path=folder, commit_message=message)
    except Exception as error:  # of the hub's library, of its HTTP library, or of the disk
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        if status == 401 or isinstance(error, huggingface_hub.errors.LocalTokenNotFoundError):
            reason = 'no valid token: run `hf auth login` first, or set HF_TOKEN'
        else:
            reason = 'the token has no permission for that' if status == 403 else _reason(error)
        raise _upload_error(reference, reason) from error
    return str(url)


def _upload_error(reference: Reference, reason: str) -> DownloadError:
    return DownloadError(
        f'{reference.url} cannot be written ({reason}); --folder DIR makes the folder without uploading it'
    )


def _as_reference(repository: str | Reference) -> Reference:
    return repository if isinstance(repository, Reference) else Reference(repository)


@contextlib.contextmanager
def _download_errors(reference: Reference, what: str, place: Path | str) -> Iterator[None]:
    """Turns whatever the hub's library raises into a DownloadError of one line with a remedy.

    Raises at once if there is no network, where the library would retry five times.
    """

    def failure(reason: str) -> DownloadError:
        remedy = f'download it on another machine and put it at {place}'
        return DownloadError(f'{what} of {reference.url} cannot be fetched ({reason}): {remedy}')

    offline = _offline_reason()
    if offline:
        raise failure(offline)
    try:
        yield
    except Exception as error:  # of the hub's library, of its HTTP library, or of the disk
        raise failure(_reason(error)) from error


def _offline_reason() -> str | None:
    """Returns why the hub cannot be reached, or None if it seems reachable. The library itself takes 23 s to tell."""
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
        (errors.GatedRepoError, 'first accept its license on its page, then run `hf auth login`'),
        (errors.RepositoryNotFoundError, 'there is no such repository, or it is private'),
        (errors.LocalEntryNotFoundError, 'no connection'),
        (errors.EntryNotFoundError, 'there is no such file in it'),
    ):
        if isinstance(error, kind):
            return reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
