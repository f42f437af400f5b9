"""What is asked of every item: its own texts, by type, and another item's."""

from collections.abc import Mapping, Sequence

import numpy as np

from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.results import SEPARATED, SHUFFLED


def ask(items: Sequence[Item], types: Sequence[str], seed: int | None) -> Mapping[str, list[str | None]]:
    """By row of the table, the text for every item; None where it has none of that type.

    Args:
        types: of query; the first one is the protocol's row.
        seed: of the wrong queries; None: none are asked.
    """
    names = [SEPARATED] if len(types) == 1 else [f'{SEPARATED}, {kind}' for kind in types]
    rows = {name: [item.queries.get(kind) for item in items] for name, kind in zip(names, types, strict=True)}
    wrong = None if seed is None else wrong_queries([item.kind for item in items], seed)
    if wrong is not None:
        first = rows[names[0]]
        # Two targets may well be asked for by the same words, as all of VoiceBank-DEMAND are.
        shuffled = [first[j] if first[j] != first[i] else None for i, j in enumerate(wrong)]
        if any(text is not None for text in shuffled):
            rows[SHUFFLED] = shuffled
    return rows


def wrong_queries(kinds: Sequence[str], seed: int) -> list[int] | None:
    """For each item the index of an item of another kind, whose text is then a wrong query; None if all are equal.

    Where no kind has more than half of the items it is a permutation: every text is asked for as often as before.
    """
    _, codes, counts = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return None
    rng = np.random.default_rng(seed)
    # Items by kind, in random order within each, the kinds in random order too.
    order = np.lexsort((rng.random(len(codes)), rng.permutation(len(counts))[codes]))
    partner = np.empty(len(codes), int)
    # Sorted by kind, a rotation by the largest count takes every item out of its own kind.
    partner[order] = np.roll(order, -counts.max())
    # The rotation gives nearly all items of a kind the same wrong one, and which one decides the score: exchanges
    # between items at random spread the kinds.
    for i, j in rng.integers(len(codes), size=(8 * len(codes), 2)):
        if codes[partner[i]] != codes[j] and codes[partner[j]] != codes[i]:
            partner[i], partner[j] = partner[j], partner[i]
    for i in np.flatnonzero(codes == codes[partner]):
        partner[i] = rng.choice(np.flatnonzero(codes != codes[i]))
    return partner.tolist()
