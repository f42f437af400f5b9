"""The command `audiosep-jax serve`: checks its flags, loads the checkpoint and serves the web page."""

import contextlib
import dataclasses
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from audiosep_jax.cli import terminal
from audiosep_jax.cli.flags import CheckpointFlag, EqualizerFlag, LevelFlag
from audiosep_jax.errors import ConfigError

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator
    from audiosep_jax.web.page import Example


@dataclasses.dataclass(frozen=True)
class Serve:
    """Open a web page for separating: upload or record, describe, listen, download. Needs the extra `demo`.

    Programs can use the server, too (docs/server.md). By default only this machine can reach it (see --host). Ctrl-C
    stops the server and deletes the uploads.
    """

    checkpoint: CheckpointFlag = None
    host: str = '127.0.0.1'
    """The address to listen on, also an IPv6 one such as ::1. 0.0.0.0, or :: for IPv6, admits everybody who can reach
    this machine."""
    port: int = 7860
    """The port to listen on."""
    share: bool = False
    """Also create a public address through Gradio's servers, for at most a week; anybody who knows it may use it."""
    allow_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='NAME')] = ()
    """A further name by which browsers address this server, such as that of a reverse proxy; may be repeated."""
    root_path: Annotated[str, tyro.conf.arg(metavar='PATH')] = ''
    """The path at which a reverse proxy serves the page, such as /sounds."""
    examples: Annotated[Path | None, tyro.conf.arg(metavar='DIR', help_behavior_hint="(default: the checkpoint's)")] = (
        None
    )
    """Sounds to try: NAME.wav, and beside it NAME.txt with one description per line. The default is the folder
    `examples` of the checkpoint, if it has one."""
    level: LevelFlag = None
    """Let the network hear recordings at the level that it was trained at (auto), or as they are (off)."""
    equalizer: EqualizerFlag = None
    """Share of the checkpoint's equalizer in the results, from 0 to 1 (docs/train.md)."""
    max_seconds: float = 600.0
    """The longest recording accepted."""
    max_megabytes: int = 200
    """The largest file accepted, in 10^6 bytes."""
    token: Annotated[str | None, tyro.conf.arg(metavar='TOKEN|@FILE', help_behavior_hint='(default: none)')] = None
    """A secret that every request must carry; browsers ask for it as a password. A file keeps it out of the list of
    processes, and so does the environment variable AUDIOSEP_JAX_TOKEN, which counts where the flag is not given."""
    api_only: bool = False
    """Serve no page, only the endpoints for programs."""
    mcp: bool = False
    """Also serve the endpoints as tools for assistants, at /gradio_api/mcp/. Needs the extra `mcp`."""


def run(command: Serve) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the exit code.

    Raises:
        ConfigError: Gradio or MCP is not installed, the address is not one of this machine's, the port is in use, a
            flag is malformed, or the token cannot be read.
        AudioFileError, QueryError: the examples cannot be used.
        QueryError, CheckpointError, DownloadError: the checkpoint cannot be read, or does not accept text queries.
    """
    from audiosep_jax.storage.cache import give_libraries_a_cache
    from audiosep_jax.web.extraction import Limits
    from audiosep_jax.web.guard import HostNames, check_root_path
    from audiosep_jax.web.page import find_examples
    from audiosep_jax.web.server import import_gradio, serving
    from audiosep_jax.web.token import read_token

    host = command.host.removeprefix('[').removesuffix(']')
    limits = Limits(seconds=command.max_seconds, megabytes=command.max_megabytes)
    _check_address(host, command.port)
    HostNames(host, command.allow_host)
    check_root_path(command.root_path)
    token = read_token(command.token)
    if command.examples is not None:
        find_examples(command.examples)
    give_libraries_a_cache()
    import_gradio(mcp=command.mcp)
    # Last, because it takes seconds.
    separator = terminal.load(command.checkpoint, level=command.level, equalizer=command.equalizer)
    examples = find_examples(command.examples) if command.examples is not None else _examples_of(separator)
    with (
        contextlib.suppress(KeyboardInterrupt),
        serving(
            separator,
            host=host,
            port=command.port,
            share=command.share,
            limits=limits,
            examples=examples,
            allowed_hosts=command.allow_host,
            root_path=command.root_path,
            name=_name_of(command.checkpoint, separator),
            api_only=command.api_only,
            mcp=command.mcp,
            token=token,
        ) as address,
    ):
        terminal.say(f'{address}  (Ctrl-C ends it)')
        threading.Event().wait()
    return 0


def _check_address(host: str, port: int) -> None:
    """Raises ConfigError for an address that cannot be listened on."""
    if not 0 < port < 65536:
        raise ConfigError(f'--port {port}: must be between 1 and 65535')
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f'--host {host} --port {port}: {error.strerror or error}; choose another') from error


def _name_of(checkpoint: str | None, separator: 'Separator') -> str:
    """Returns a name for the checkpoint that gives away no folder of this machine."""
    if checkpoint is None:
        return 'audiosep'
    return _root_of(separator).resolve().name if Path(checkpoint).exists() else checkpoint


def _root_of(separator: 'Separator') -> Path:
    """Returns the folder of the checkpoint: of a run, that of the run."""
    path = Path(separator.info['path'])
    return path.parent.parent if path.parent.name == 'checkpoints' else path


def _examples_of(separator: 'Separator') -> list['Example']:
    """Returns the examples stored with the checkpoint."""
    from audiosep_jax.web.page import find_examples

    folder = _root_of(separator) / 'examples'
    return find_examples(folder) if folder.is_dir() else []
