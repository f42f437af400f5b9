"""Chooses the text that each item of a benchmark is queried with: its own, by query type, and a wrong one."""

from collections.abc import Mapping, Sequence

import numpy as np

from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.results import EXCLUDED, REMAINDER, SEPARATED, SHUFFLED


def query_texts(items: Sequence[Item], types: Sequence[str], seed: int | None) -> Mapping[str, list[str | None]]:
    """Returns the text for every item, by row of the table; None for an item that has no text of that type.

    If items name a sound to exclude, there are two more rows: `EXCLUDED` has the texts of the first row, each of which
    is asked for without that sound, and `REMAINDER` those of the sound to exclude.

    Args:
        items: the items of a benchmark.
        types: the query types; the first one gives the protocol's row.
        seed: seed of the wrong queries; None: there are no wrong queries.
    """
    names = [SEPARATED] if len(types) == 1 else [f'{SEPARATED}, {kind}' for kind in types]
    rows = {name: [item.queries.get(kind) for item in items] for name, kind in zip(names, types, strict=True)}
    if any(item.unwanted for item in items):
        rows[EXCLUDED] = [text if item.unwanted else None for item, text in zip(items, rows[names[0]], strict=True)]
        rows[REMAINDER] = [item.unwanted or None for item in items]
    wrong = None if seed is None else wrong_queries([item.kind for item in items], seed)
    if wrong is not None:
        first = rows[names[0]]
        # Different targets may have the same text: all items of VoiceBank-DEMAND do.
        shuffled = [first[j] if first[j] != first[i] else None for i, j in enumerate(wrong)]
        if any(text is not None for text in shuffled):
            rows[SHUFFLED] = shuffled
    return rows


def wrong_queries(kinds: Sequence[str], seed: int) -> list[int] | None:
    """Returns for each item the index of an item of another kind, whose text is then a wrong query for it.

    The indices are a permutation if no kind has more than half of the items, so that every text is used as often as
    with the right queries.

    Returns:
        One index for each item; None if all items are of the same kind.
    """
    _, codes, counts = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return None
    rng = np.random.default_rng(seed)
    # Sort by kind, with the kinds and the items within each kind in random order.
    order = np.lexsort((rng.random(len(codes)), rng.permutation(len(counts))[codes]))
    partner = np.empty(len(codes), int)
    # Rotating the sorted items by the largest count moves every item out of its kind.
    partner[order] = np.roll(order, -counts.max())
    # The rotation gives nearly all items of a kind the same wrong kind, and the score depends on which one that is.
    # Random exchanges between items spread the kinds.
    for i, j in rng.integers(len(codes), size=(8 * len(codes), 2)):
        if codes[partner[i]] != codes[j] and codes[partner[j]] != codes[i]:
            partner[i], partner[j] = partner[j], partner[i]
    for i in np.flatnonzero(codes == codes[partner]):
        partner[i] = rng.choice(np.flatnonzero(codes != codes[i]))
    return partner.tolist()
