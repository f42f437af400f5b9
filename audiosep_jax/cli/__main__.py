"""The program `audiosep-jax`, which is also `python -m audiosep_jax.cli`."""

from typing import NoReturn

import audiosep_jax.program  # isort: skip  # noqa: F401  # before what takes long to import
from audiosep_jax.cli.main import main
from audiosep_jax.interrupts import leave


def program() -> NoReturn:
    """Runs the process's own command line, and exits."""
    leave(main())


if __name__ == '__main__':
    program()
