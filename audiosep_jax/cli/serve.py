"""The command `audiosep-jax serve`: its flags, and what can be wrong with them."""

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from audiosep_jax.errors import ConfigError

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator
    from audiosep_jax.web.page import Example


@dataclasses.dataclass(frozen=True)
class Serve:
    """Open a web page for separating: upload or record, describe, listen, download. Needs the extra `demo`.

    Only this machine can reach it, unless --host says otherwise. Ctrl-C ends it and removes what was uploaded.
    """

    checkpoint: Annotated[
        str | None, tyro.conf.arg(metavar='DIR', help_behavior_hint='(default: official weights)')
    ] = None
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub."""
    host: str = '127.0.0.1'
    """The address to listen on; 0.0.0.0 lets everybody in who can reach this machine."""
    port: int = 7860
    """The port to listen on."""
    share: bool = False
    """Also make a public address, for a week at most, through Gradio's servers: anybody who has it can use the page."""
    examples: Annotated[Path | None, tyro.conf.arg(metavar='DIR', help_behavior_hint="(default: the checkpoint's)")] = (
        None
    )
    """Sounds to try: NAME.wav with NAME.txt beside it, what to ask, one description a line. By default the folder
    `examples` in the checkpoint's, where there is one."""
    max_seconds: float = 600.0
    """Longest recording that is taken."""
    max_megabytes: int = 200
    """Largest file that is taken, in 10^6 bytes."""


def serve(command: Serve, load: Callable[[str | None], 'Separator']) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the exit code.

    Args:
        load: a separator from what `--checkpoint` says; called when all else is in order.

    Raises:
        ConfigError: Gradio is not installed, an address that is not this machine's, or a port that is taken.
        AudioFileError, QueryError: examples that cannot be used.
        QueryError, CheckpointError, DownloadError: a checkpoint that cannot be asked in words.
    """
    from audiosep_jax.web.page import Limits, find_examples
    from audiosep_jax.web.server import import_gradio, serving

    limits = Limits(seconds=command.max_seconds, megabytes=command.max_megabytes)
    _check_address(command.host, command.port)
    if command.examples is not None:
        find_examples(command.examples)
    import_gradio()
    separator = load(command.checkpoint)
    examples = find_examples(command.examples) if command.examples is not None else _own_examples(separator)
    with (
        contextlib.suppress(KeyboardInterrupt),
        serving(
            separator, host=command.host, port=command.port, share=command.share, limits=limits, examples=examples
        ) as address,
    ):
        print(f'{address}  (Ctrl-C ends it)', flush=True)
        threading.Event().wait()
    return 0


def _check_address(host: str, port: int) -> None:
    """Before any weights are loaded."""
    if not 0 < port < 65536:
        raise ConfigError(f'--port {port}: must be between 1 and 65535')
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f'--host {host} --port {port}: {error.strerror or error}; choose another') from error


def _own_examples(separator: 'Separator') -> list['Example']:
    """Those that lie with the checkpoint."""
    from audiosep_jax.web.page import find_examples

    path = Path(separator.info['path'])
    root = path.parent.parent if path.parent.name == 'checkpoints' else path
    return find_examples(root / 'examples') if (root / 'examples').is_dir() else []
