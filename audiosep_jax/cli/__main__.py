"""The program `audiosep-jax`, which is also `python -m audiosep_jax.cli`."""

import sys

import audiosep_jax.program  # isort: skip  # noqa: F401  # before what takes long to import
from audiosep_jax.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
