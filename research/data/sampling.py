"""Which examples are held out, and the order of the others: pure functions of content, seed and
position, so they need no saved state."""

import functools
from collections.abc import Sequence

import numpy as np

CYCLE = 4096  # positions after which a mixture has met its weights


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    out = np.random.default_rng((seed, epoch)).permutation(n)
    out.setflags(write=False)
    return out


def indices(seed: int, step: int, batch: int, n: int) -> np.ndarray:
    """The example numbers of global batch `step`, shape [batch], out of `n` examples.

    Every epoch visits each example once, in an order of its own; a batch may end one epoch and
    begin the next, so no example is dropped. Resuming, and splitting a batch over any number of
    devices or processes, need nothing but the step.
    """
    return _visit(seed, step * batch + np.arange(batch, dtype=np.int64), n)


def _visit(seed: int, position: np.ndarray, n: int) -> np.ndarray:
    epochs, within = np.divmod(position, n)
    out = np.empty(len(position), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permutation(seed, int(epoch), n)[within[here]]
    return out


def mixed(
    seed: int, step: int, batch: int, lengths: Sequence[int], weights: Sequence[float]
) -> np.ndarray:
    """As `indices`, for several sources, one after the other in one numbering.

    Every CYCLE positions hold each source in proportion to its weight (to 1 / CYCLE), in an order
    drawn from the seed; within a source, every epoch visits each example once.
    """
    position = step * batch + np.arange(batch, dtype=np.int64)
    source_of, before, counts = _cycle(seed, tuple(weights))
    cycles, at = np.divmod(position, CYCLE)
    out = np.empty(batch, np.int64)
    starts = np.cumsum([0, *lengths[:-1]])
    for source, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        here = source_of[at] == source
        if here.any():
            place = cycles[here] * counts[source] + before[at[here]]
            out[here] = start + _visit(seed + 1 + source, place, length)
    return out


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


def is_held(name: bytes, share: float) -> bool:
    """Whether what has this SHA-256 is among the `share` that is held out."""
    return int.from_bytes(name[:8], "big") < share * 2**64


def in_turn(labels: np.ndarray) -> np.ndarray:
    """The positions [n] in an order that takes the classes in turn: the first of every class, the
    second of every class, and so on. Any beginning is as balanced as the classes allow."""
    place = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        here = labels == label
        place[here] = np.arange(here.sum())
    return np.lexsort((labels, place))


def draws(seed: int, step: int, batch: int) -> np.ndarray:
    """One random uint64 for each position of global batch `step`, shape [batch]: what augmentation
    draws its numbers from (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(step) * np.uint64(batch) + np.arange(batch, dtype=np.uint64)
        return mix(z + np.uint64(seed) * np.uint64(0xD1342543DE82EF95))


def mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: neighbouring numbers become independent-looking ones."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
