"""The command `audiosep-jax`: parses its flags, runs a subcommand, and turns errors into exit codes.

Exit codes: 0 done; 1 files and data, also when one of several inputs failed; 2 flags, configuration keys, empty
queries; 130 interrupted.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from audiosep_jax import __version__
from audiosep_jax.cli import (
    convert,
    env,
    evaluate,
    export,
    inspect,
    learn_query,
    models,
    push,
    separate,
    serve,
    terminal,
)
from audiosep_jax.errors import dash_hint, explained
from audiosep_jax.interrupts import interruptible

_RUN: dict[type, Callable[[Any], int]] = {
    separate.Separate: separate.run,
    evaluate.Evaluate: evaluate.run,
    convert.Convert: convert.run,
    inspect.Inspect: inspect.run,
    models.Models: models.run,
    export.Export: export.run,
    push.Push: push.run,
    serve.Serve: serve.run,
    env.Env: env.run,
    learn_query.LearnQuery: learn_query.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's own) and returns the exit code."""
    if (sys.argv[1:] if argv is None else list(argv)) == ['--version']:
        terminal.say(f'audiosep-jax {__version__}')
        return 0
    with interruptible() as interrupted:
        return _run(argv, interrupted)


def _run(argv: Sequence[str] | None, interrupted: Callable[[], bool]) -> int:
    try:
        command = tyro.cli(
            Annotated[separate.Separate, tyro.conf.subcommand('separate')]
            | Annotated[evaluate.Evaluate, tyro.conf.subcommand('evaluate')]
            | Annotated[convert.Convert, tyro.conf.subcommand('convert')]
            | Annotated[inspect.Inspect, tyro.conf.subcommand('inspect')]
            | Annotated[models.Models, tyro.conf.subcommand('models')]
            | Annotated[export.Export, tyro.conf.subcommand('export')]
            | Annotated[push.Push, tyro.conf.subcommand('push')]
            | Annotated[serve.Serve, tyro.conf.subcommand('serve')]
            | Annotated[env.Env, tyro.conf.subcommand('env')]
            | Annotated[learn_query.LearnQuery, tyro.conf.subcommand('learn-query')],
            prog='audiosep-jax',
            description='Separate sounds by describing them. --version prints the version.',
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:  # --help, or a wrong flag that tyro has explained
        hint = dash_hint(sys.argv[1:] if argv is None else argv) if stop.code else None
        if hint is not None:
            terminal.note(hint)
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        return terminal.stdout_was_closed()
    except KeyboardInterrupt:
        terminal.complain('interrupted')
        return 130
    try:
        with terminal.terminable() as terminated, terminal.checkpoint_warnings_as_notes():
            return _RUN[type(command)](command)
    except KeyboardInterrupt:
        return _say_interrupted()
    except BrokenPipeError:
        return terminal.stdout_was_closed()
    except Exception as error:
        if interrupted() or terminated():
            return _say_interrupted()
        explanation = explained(error)
        if explanation is None:
            raise
        terminal.complain(explanation[0])
        return explanation[1]


def _say_interrupted() -> int:
    terminal.complain('interrupted; the output being written was not kept')
    return 130
