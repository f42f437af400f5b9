"""The results of an evaluation in which some items cannot be scored, and the text of its tables."""

import io
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from support.band_separator import BandSeparator, make_music

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.results import Results
from audiosep_jax.evaluation.run import evaluate


def evaluate_flawed_music(folder: Path) -> Results:
    """Scores four items of `folder/music`, of which the last has a silent target; a bad row and a missing file."""
    make_music(folder / 'music')
    write_audio(folder / 'music' / 'segment-3.wav', np.zeros((1, 8000)), 16000)
    with (folder / 'music' / 'music_eval.csv').open('a') as file:
        file.write('7,hiss,a|b,c\n8\n')
    return evaluate(BandSeparator(), read_benchmark(folder / 'music', 'music'))


def printed(*tables: Table) -> str:
    """Returns what tables look like on a terminal of 150 columns."""
    output = io.StringIO()
    console = Console(width=150, file=output)
    for table in tables:
        console.print(table)
    return output.getvalue()
