"""The command `audiosep-jax`: one module for each of its subcommands."""
