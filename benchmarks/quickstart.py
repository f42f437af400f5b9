"""The quickstart's scores and time, for several seeds, one after the other.

    python benchmarks/quickstart.py --seeds 0 1 2

Prints a table and writes it as JSON. The time is that of the whole program, from start to the last line.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

SCRIPT = Path(__file__).parents[1] / 'experiments' / 'quickstart.py'
ROWS = ('separated', 'half of the mixture', 'fixed spectral mask', 'shuffled query')
METRICS = ('SDRi', 'SI-SDR')


def measure(seed: int, encoder: str = '') -> dict:
    """Runs the quickstart in a separate folder; returns the seed, the seconds, and the scores of each row in dB."""
    with tempfile.TemporaryDirectory() as workdir:
        started = time.perf_counter()
        command = [sys.executable, str(SCRIPT), '--workdir', workdir, '--seed', str(seed), '--encoder', encoder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
        rows = json.loads((Path(workdir) / 'results.json').read_text())['rows']
    printed = float(re.match(r'SDRi (\S+) dB', done.stdout.splitlines()[-1])[1])
    assert abs(printed - rows['separated']['SDRi']) < 0.01
    return {'seed': seed, 'seconds': seconds, **{name: [rows[name][metric] for metric in METRICS] for name in ROWS}}


def main(seeds: tuple[int, ...] = (0, 1, 2), json_file: Path | None = None, encoder: str = '') -> None:
    """Runs the quickstart once per seed and prints its scores and times.

    Args:
        seeds: one run each.
        json_file: where to write the figures as well.
        encoder: query encoder (default: the quickstart's).
    """
    runs = [measure(seed, encoder) for seed in seeds]
    table = Table('seed', 'minutes', *(f'{name}, {" / ".join(METRICS)} dB' for name in ROWS))
    for run in runs:
        scores = [' / '.join(f'{score:.2f}' for score in run[name]) for name in ROWS]
        table.add_row(str(run['seed']), f'{run["seconds"] / 60:.1f}', *scores)
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(runs, indent=2) + '\n')


if __name__ == '__main__':
    tyro.cli(main)
