"""Flags that several subcommands have."""

from typing import Annotated, Literal

import tyro

# Written out, because `separation.level.LevelRule` would import JAX.
LevelFlag = Annotated[
    Literal['auto', 'off'] | None,
    tyro.conf.arg(metavar='{auto,off}', help_behavior_hint='(default: auto if the checkpoint says the level)'),
]
DtypeFlag = Annotated[
    Literal['float32', 'bfloat16'] | None,
    tyro.conf.arg(metavar='{float32,bfloat16}', help_behavior_hint="(default: the checkpoint's)"),
]
