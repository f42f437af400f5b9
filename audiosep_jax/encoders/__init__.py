"""Query encoders: what turns a sentence, a sound or a picture into the embedding that the separator is conditioned on.

One file each. An encoder is named in caches and checkpoints by its `identity()`, from which `load_encoder` finds it
again, so that a model is never asked with embeddings it was not trained on.

`words` needs nothing. `clap` and `clip` are pretrained: their weights are a folder, a file, or a repository of the hub.
"""

import difflib
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.errors import AudioSepError, ConfigError, EncoderMismatchError, QueryError


# Those with the towers for it also have
#   encode_token_ids(ids [Q, L], attention_mask [Q, L]) -> float32 [Q, E]
#   encode_audio(waveforms, *, sample_rate) -> float32 [Q, E]
#   encode_image(images) -> float32 [Q, E]
