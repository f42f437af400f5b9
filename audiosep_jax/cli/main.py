"""The command `audiosep-jax`. Files, flags and printing; the work is done elsewhere.

Exit codes: 0 done; 1 files and data, also when one of many inputs failed; 2 flags, configuration keys, empty queries.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from audiosep_jax import __version__
from audiosep_jax.cli import evaluate as cli_evaluate
from audiosep_jax.cli import separate as cli_separate
from audiosep_jax.cli.convert import Convert, _convert
from audiosep_jax.cli.evaluate import Evaluate
from audiosep_jax.cli.inspect import Inspect, _inspect
from audiosep_jax.cli.push import Push, run_push
from audiosep_jax.cli.separate import Separate
from audiosep_jax.cli.serve import Serve, serve
from audiosep_jax.cli.terminal import _complain, _load, _quieten, _say, _terminable, _unread
from audiosep_jax.errors import explained

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's) and returns the exit code."""
    if (sys.argv[1:] if argv is None else list(argv)) == ['--version']:
        _say(f'audiosep-jax {__version__}')
        return 0
    try:
        command = tyro.cli(
            Annotated[Separate, tyro.conf.subcommand('separate')]
            | Annotated[Evaluate, tyro.conf.subcommand('evaluate')]
            | Annotated[Convert, tyro.conf.subcommand('convert')]
            | Annotated[Inspect, tyro.conf.subcommand('inspect')]
            | Annotated[Push, tyro.conf.subcommand('push')]
            | Annotated[Serve, tyro.conf.subcommand('serve')],
            prog='audiosep-jax',
            description='Separate sounds by describing them. --version says which version this is.',
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:  # --help, or a flag that tyro has explained
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        return _unread()
    run = {
        Separate: _separate,
        Evaluate: _evaluate,
        Convert: _convert,
        Inspect: _inspect,
        Push: _push,
        Serve: _serve,
    }[type(command)]
    try:
        with _terminable():
            return run(command)
    except KeyboardInterrupt:
        _complain('interrupted; the output being written was not kept')
        return 130
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise
        _complain(explanation[0])
        return explanation[1]


# ---- separate --------------------------------------------------------------------------------------------------------


def _separate(command: Separate) -> int:
    return cli_separate.run(command, load=_load, say=_say, complain=_complain)


# ---- evaluate --------------------------------------------------------------------------------------------------------


def _evaluate(command: Evaluate) -> int:
    def say(text: str, *, error: bool = False) -> None:
        _say(text, file=sys.stderr if error else None)

    try:
        return cli_evaluate.run(command, load=_load, say=say, complain=_complain)
    except KeyboardInterrupt:
        _complain('interrupted; the same command continues')
        return 130


# ---- convert ---------------------------------------------------------------------------------------------------------


# ---- inspect ---------------------------------------------------------------------------------------------------------


# ---- push and serve --------------------------------------------------------------------------------------------------


def _push(command: Push) -> int:
    _quieten()
    return run_push(command, _say)


def _serve(command: Serve) -> int:
    return serve(command, _load)


# ---- the terminal ----------------------------------------------------------------------------------------------------


if __name__ == '__main__':
    sys.exit(main())
