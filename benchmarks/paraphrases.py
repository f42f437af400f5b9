"""How well query encoders understand words that were in no caption: paraphrases nearest to the captions of their class.

    python benchmarks/paraphrases.py --encoders words wordllama minilm

Takes a JSON file of `{class: {"captions": […], "paraphrases": […]}}`. The one beside this script has 65 classes of
sounds and 175 paraphrases that share no word with any caption, apart from stop words. Prints the share of paraphrases
that are nearest to their own class, with Wilson's interval, and of those with their class among the nearest five. A
class is the mean of its captions' embeddings; the nearest has the largest cosine. Every second row puts the paraphrases
into the sentence of `--frame`.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.registry import load_encoder

FILE = Path(__file__).with_suffix('.json')


@dataclasses.dataclass(frozen=True)
class Score:
    """Shares of the paraphrases, 0 to 1, and mean cosines with their own class and with the others."""

    nearest: float
    among_five: float
    own: float
    others: float
    count: int


def measure(encoder: QueryEncoder, classes: dict[str, dict[str, list[str]]], frame: str = '{}') -> Score:
    """Returns the scores of an encoder.

    Args:
        encoder: the encoder.
        classes: captions and paraphrases of each class.
        frame: the sentence into which each paraphrase is put.
    """
    means = np.stack([_unit(_unit(encoder.encode_text(c['captions'])).mean(0)) for c in classes.values()])
    texts = [frame.format(text) for c in classes.values() for text in c['paraphrases']]
    own = np.repeat(np.arange(len(classes)), [len(c['paraphrases']) for c in classes.values()])
    cosines = _unit(encoder.encode_text(texts)) @ means.T
    is_own = np.arange(len(classes)) == own[:, None]
    ranks = (cosines > cosines[is_own][:, None]).sum(1)
    return Score(
        float((ranks == 0).mean()),
        float((ranks < 5).mean()),
        float(cosines[is_own].mean()),
        float(cosines[~is_own].mean()),
        len(texts),
    )


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Returns Wilson's interval of a share of `count` trials."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def main(
    encoders: tuple[str, ...] = ('words', 'wordllama'),
    file: Path = FILE,
    frame: str = 'the sound of {} in the background',
) -> None:
    """Prints the table.

    Args:
        encoders: names or paths of query encoders.
        file: captions and paraphrases of each class.
        frame: the sentence of the second half of the table.
    """
    classes = json.loads(file.read_text('utf-8'))
    table = Table('encoder', 'paraphrase', 'nearest, %', '95 %', 'among five, %', 'cosine: own', 'others')
    for name in encoders:
        encoder = load_encoder(name)
        for sentence in ('{}', frame):
            score = measure(encoder, classes, sentence)
            low, high = interval(score.nearest, score.count)
            table.add_row(
                name,
                sentence.format('…'),
                f'{100 * score.nearest:.0f}',
                f'{100 * low:.0f} … {100 * high:.0f}',
                f'{100 * score.among_five:.0f}',
                f'{score.own:.2f}',
                f'{score.others:.2f}',
            )
    Console().print(table)


if __name__ == '__main__':
    tyro.cli(main)
