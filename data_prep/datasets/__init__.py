"""Where clips come from: one file per dataset, each reads its authors' own metadata and lists the clips.

A dataset is a `ClipSource`: it knows its clips' ids at once and reads a clip's audio when asked, in whichever process.
Most are `Files`: entries that name a file, or a part of one, under a folder. What a dataset lists and does not have, or
must not be trained on, is in `left_out`, with a reason of four: missing, unreadable, too short, excluded.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from audiosep_jax.errors import ConfigError, DataError
from data_prep.clips.base import Clip, ClipSource, Entry, LeftOut, LeftOutError, check_unique
