"""Placeholders for modules that a measurement of the network alone imports, but does not use.

The network and the training step name the types of `jaxtyping` and of a few of the project's modules in annotations.
Those modules read audio, datasets and command lines, for which they need many packages. With placeholders for them, the
network runs where nothing but JAX, Flax, Optax and NumPy is installed.
"""

import sys
import types

UNUSED = (
    'jaxtyping',
    'audiosep_jax.data.segments',
    'audiosep_jax.separation.queries',
    'audiosep_jax.training.config',
)


class Placeholder:
    """Stands for a type in an annotation: `Placeholder['B T'] | None` is one, too."""

    def __class_getitem__(cls, _: object) -> type['Placeholder']:
        return cls


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> type[Placeholder]:
        if name.startswith('__'):  # what the import system asks for
            raise AttributeError(name)
        return Placeholder


def put_placeholders() -> None:
    """Puts placeholders in the place of the modules `UNUSED`, for the rest of this process.

    Call it before anything of the project is imported. They replace what is installed, too, because imports would take
    seconds from a short session.
    """
    for name in UNUSED:
        sys.modules[name] = _Module(name)
