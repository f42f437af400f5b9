"""Measures how well the quickstart's network separates its unseen mixtures when they are quieter or louder.

    python benchmarks/levels.py --seeds 0 1 2

Trains the quickstart once per seed, or takes the runs in `--workdirs` as they are, and scores the mixtures at each
level with `level='off'` and `level='auto'`. Prints a table and writes it as JSON.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.metrics import sdr
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.separator import Separator
from data_prep.datasets.synthetic import SyntheticClips

SCRIPT = Path(__file__).parents[1] / 'experiments' / 'quickstart.py'
RULES = ('off', 'auto')


def main(
    seeds: tuple[int, ...] = (0,),
    levels_db: tuple[float, ...] = (-30, -20, -12, -6, 0, 6, 20),
    workdirs: tuple[Path, ...] = (),
    json_file: Path | None = None,
) -> None:
    """Prints the SDRi at each level, averaged over the seeds.

    Args:
        seeds: of the quickstart.
        levels_db: gains of the mixtures, dB.
        workdirs: folders of finished quickstarts, one for each seed; without them, they are trained now.
        json_file: where to write the figures as well.
    """
    quickstart = import_quickstart()
    runs = []
    for i, seed in enumerate(seeds):
        with tempfile.TemporaryDirectory() as temporary:
            workdir = workdirs[i] if workdirs else Path(temporary)
            if not workdirs:
                quickstart.main(workdir, seed)
            runs += [{'seed': seed, **row} for row in measure(quickstart, load(workdir), seed, levels_db)]
    table = Table('level, dB', *(f'SDRi, {rule}, dB' for rule in RULES))
    for level in levels_db:
        rows = [run for run in runs if run['level_db'] == level]
        table.add_row(f'{level:+g}', *(f'{np.mean([row[rule] for row in rows]):.2f}' for rule in RULES))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(runs, indent=2) + '\n')


def import_quickstart() -> ModuleType:
    """Imports the script, which is in no package."""
    spec = importlib.util.spec_from_file_location('quickstart', SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(quickstart: ModuleType, separator: Separator, seed: int, levels_db: tuple[float, ...]) -> list[dict]:
    """Returns a row for each level: the mean SDRi by rule, dB."""
    count, rate = quickstart.TEST_CLIPS, separator.config.sample_rate
    test = SyntheticClips(count, seed, quickstart.CLIP_SECONDS, quickstart.CLASSES, first=quickstart.TRAINING_CLIPS)
    unseen = [test.read(i, rate) for i in range(count)]
    mixtures, targets = quickstart.mix_pairs(unseen, seed)
    embeddings = separator.embed([clip.captions[0] for clip in unseen])
    rows = []
    for level in levels_db:
        gain = np.float32(10 ** (level / 20))
        row: dict[str, float] = {'level_db': level}
        for rule in RULES:
            estimates = separator.separate_batch(gain * mixtures, embeddings, level=rule)
            # Brought back, because the metrics add a constant that would count in quiet sounds.
            improvement = [
                sdr(target, estimate / gain) - sdr(target, mixture)
                for target, estimate, mixture in zip(targets, estimates, mixtures, strict=True)
            ]
            row[rule] = float(np.mean(improvement))
        rows.append(row)
    return rows


if __name__ == '__main__':
    tyro.cli(main)
