"""Flags that several subcommands have."""

from typing import Annotated, Literal

import tyro

_CHECKPOINT = (
    "A name of `audiosep-jax models`, a training run's folder, one step's folder in it, a converted checkpoint, or a "
    'repository on the hub.'
)
CheckpointFlag = Annotated[
    str | None,
    tyro.conf.arg(metavar='NAME|DIR', help=_CHECKPOINT, help_behavior_hint='(default: audiosep, fetched once)'),
]
CheckpointArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='NAME|DIR', help=_CHECKPOINT)]
# Written out, because `separation.level.LevelRule` would import JAX.
LevelFlag = Annotated[
    Literal['auto', 'off'] | None,
    tyro.conf.arg(metavar='{auto,off}', help_behavior_hint='(default: auto if the checkpoint says the level)'),
]
DtypeFlag = Annotated[
    Literal['float32', 'bfloat16'] | None,
    tyro.conf.arg(metavar='{float32,bfloat16}', help_behavior_hint="(default: the checkpoint's)"),
]
EqualizerFlag = Annotated[
    float | None, tyro.conf.arg(metavar='SHARE', help_behavior_hint="(default: the checkpoint's, 0 if it has none)")
]
