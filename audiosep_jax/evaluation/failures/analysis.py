"""Finds out from the scores of items where a separator fails."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from audiosep_jax.evaluation.loading import item_seconds
from audiosep_jax.evaluation.results import FIXED_MASK, NO_SEPARATION, ItemScore, Results

LEVEL_EDGES = (-math.inf, -12.5, -7.5, -2.5, 2.5, 7.5, 12.5, math.inf)  # dB
DURATION_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, math.inf)  # seconds


@dataclasses.dataclass(frozen=True)
class Case:
    """An item whose target is audible, with the scores of the first row of the table.

    Attributes:
        scored: the item with all its scores.
        query: what it was asked for.
        asked: the class of the target, or the query if there are no classes.
        other: the class of the rest of the mixture; '' if the benchmark does not tell.
        sdri: dB.
        si_sdr: dB.
        input_snr: ratio of the target's energy to that of the rest of the mixture, in dB.
        seconds: the length of the mixture; 0 if it is not known.
        leak: the share of the rest in what the output has of both, from 0 to 1; None for scores without it.
    """

    scored: ItemScore
    query: str
    asked: str
    other: str
    sdri: float
    si_sdr: float
    input_snr: float
    seconds: float
    leak: float | None


@dataclasses.dataclass(frozen=True)
class Confusion:
    """The items in which class `asked` was to be separated from class `other`.

    Attributes:
        asked: the class that was asked for.
        other: the class that it was mixed with; '' if the benchmark does not tell.
        n: number of items.
        confused: number of items whose output has more energy of `other` than of `asked`.
        leak: the mean share of `other`, from 0 to 1.
    """

    asked: str
    other: str
    n: int
    confused: int
    leak: float


@dataclasses.dataclass(frozen=True)
class Group:
    """The mean scores in dB of `n` items; those of the fixed spectral mask are None if it was not scored."""

    name: str
    n: int
    sdri: float
    si_sdr: float
    mask_sdri: float | None = None
    mask_si_sdr: float | None = None


def cases_of(results: Results) -> list[Case]:
    """Returns the items that can be judged: scored in the first row, with an audible target."""
    primary = results.rows[0].name
    cases = []
    for scored in results.items:
        scores, before = scored.scores.get(primary, {}), scored.scores.get(NO_SEPARATION, {})
        if scored.silent_target or not {'SDRi', 'SI-SDR'} <= scores.keys() or 'SDR' not in before:
            continue
        item, query = scored.item, scored.texts[primary]
        cases.append(
            Case(
                scored=scored,
                query=query,
                asked=item.label or query,
                other=item.other,
                sdri=scores['SDRi'],
                si_sdr=scores['SI-SDR'],
                input_snr=before['SDR'],
                seconds=item_seconds(item),
                leak=scores.get('leak'),
            )
        )
    return cases


def confusions(cases: Sequence[Case]) -> list[Confusion]:
    """Returns the pairs of classes, those with the most confused items first, then those with the largest share."""
    pairs: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for case in cases:
        if case.leak is not None:
            pairs[case.asked, case.other].append(case.leak)
    found = [
        Confusion(asked, other, len(leaks), sum(leak > 0.5 for leak in leaks), float(np.mean(leaks)))
        for (asked, other), leaks in pairs.items()
    ]
    return sorted(found, key=lambda c: (-c.confused, -c.leak, c.asked, c.other))


def by_class(cases: Sequence[Case]) -> list[Group]:
    """Returns the means of each class, the lowest SI-SDR first."""
    found: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases:
        found[case.asked].append(case)
    return sorted((_group(name, members) for name, members in found.items()), key=lambda group: group.si_sdr)


def binned(cases: Sequence[Case], value: Callable[[Case], float], edges: Sequence[float], unit: str) -> list[Group]:
    """Returns the means of the cases between each two edges; empty bins are left out.

    Args:
        cases: the cases.
        value: what to sort a case by.
        edges: ascending; a bin includes its lower edge.
        unit: of the edges, for the names of the bins.
    """
    groups = []
    for low, high in itertools.pairwise(edges):
        members = [case for case in cases if low <= value(case) < high]
        if members:
            below, above = f'below {high:g} {unit}', f'{low:g} {unit} and more'
            name = below if low == -math.inf else above if high == math.inf else f'{low:g} to {high:g} {unit}'
            groups.append(_group(name, members))
    return groups


def worst(cases: Sequence[Case], count: int = 10) -> list[Case]:
    """Returns the cases with the lowest SDRi, the lowest first, among those whose sounds are on disk."""
    return sorted((case for case in cases if case.scored.item.target is not None), key=lambda case: case.sdri)[:count]


def _group(name: str, members: Sequence[Case]) -> Group:
    masked = [case.scored.scores[FIXED_MASK] for case in members if FIXED_MASK in case.scored.scores]
    has_mask = len(masked) == len(members)
    return Group(
        name,
        len(members),
        float(np.mean([case.sdri for case in members])),
        float(np.mean([case.si_sdr for case in members])),
        float(np.mean([scores['SDRi'] for scores in masked])) if has_mask else None,
        float(np.mean([scores['SI-SDR'] for scores in masked])) if has_mask else None,
    )
