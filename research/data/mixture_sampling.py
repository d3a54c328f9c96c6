"""The order of the examples of a mixture, which meets the weights of its sources."""

import functools
from collections.abc import Sequence

import numpy as np

from research.data.sampling import shuffled

CYCLE = 4096  # positions after which a mixture has met its weights


def shuffled_mixture(
    seed: int, position_B: np.ndarray, lengths: Sequence[int], weights: Sequence[float]
) -> np.ndarray:
    """As `shuffled`, for several sources, one after the other in one numbering.

    Every CYCLE positions hold each source in proportion to its weight (to 1 / CYCLE), in an order
    drawn from the seed; within a source, every epoch visits each example once.
    """
    source_of, before, counts = _cycle(seed, tuple(weights))
    cycle_B, within_B = np.divmod(position_B, CYCLE)
    source_B = source_of[within_B]
    out_B = np.empty(len(position_B), np.int64)
    first = 0
    for source, length in enumerate(lengths):
        here = source_B == source
        if here.any():
            place = cycle_B[here] * counts[source] + before[within_B[here]]
            out_B[here] = first + shuffled(seed + 1 + source, place, length)
        first += length
    return out_B


@functools.lru_cache(maxsize=8)
def _cycle(seed: int, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The source of every place in a cycle, how many of that source came before it, and how many
    places each source has, by largest remainders."""
    ideal = CYCLE * np.asarray(weights) / sum(weights)
    counts = np.floor(ideal).astype(np.int64)
    for source in np.argsort(counts - ideal, kind="stable")[: CYCLE - counts.sum()]:
        counts[source] += 1
    source_of = np.repeat(np.arange(len(weights)), counts)
    source_of = np.random.default_rng((seed, CYCLE)).permutation(source_of)
    before = np.zeros(CYCLE, np.int64)
    for source in range(len(weights)):
        here = source_of == source
        before[here] = np.arange(here.sum())
    return source_of, before, counts
