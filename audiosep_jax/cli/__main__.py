"""`python -m audiosep_jax.cli` is `audiosep-jax`."""

import sys

from audiosep_jax.cli.main import main

sys.exit(main())
