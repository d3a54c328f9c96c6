"""Runs of tokens as hashes: what two texts share."""

from collections.abc import Iterator

import numpy as np

OVERLAP_LENGTH = 32  # tokens
STRETCH = 1 << 22  # tokens hashed at a time


def overlap(train: np.ndarray, heldout: np.ndarray, n: int) -> float | None:
    """The fraction of the `n`-grams of `heldout` that occur in `train`, None where it has none; n
    is a power of two.

    Long texts are subsampled by hash, the same n-grams on both sides (of those held out 65,536 and
    more), which leaves the fraction unbiased.
    """
    classes = np.uint64(max(1, min(len(train) >> 20, len(heldout) >> 16)))
    asked = np.concatenate([np.zeros(0, np.uint64), *_sampled_hashes(heldout, n, classes)])
    if not len(asked):
        return None
    known, at = np.unique(asked, return_inverse=True)
    found = np.zeros(len(known), bool)
    for hashes in _sampled_hashes(train, n, classes):
        nearest = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        found[nearest[known[nearest] == hashes]] = True
    return float(found[at].mean())


def _sampled_hashes(tokens: np.ndarray, n: int, classes: np.uint64) -> Iterator[np.ndarray]:
    """The hashes of n-grams that fall in class 0; a stretch at a time, as a file may be large."""
    for start in range(0, len(tokens) - n + 1, STRETCH):
        hashes = ngram_hashes(tokens[start : start + STRETCH + n - 1], n)
        yield hashes[hashes % classes == 0]


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every window of n tokens, by doubling: h(2k) = h(k)[i] · p + h(k)[i + k]."""
    hashes = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    k = 1
    while k < n:
        hashes ^= hashes >> np.uint64(29)
        hashes = hashes[:-k] * np.uint64(0xBF58476D1CE4E5B9 + 2 * k) + hashes[k:]
        k *= 2
    return hashes
