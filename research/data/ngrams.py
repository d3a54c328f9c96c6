"""Runs of tokens as hashes: what two texts share."""

import numpy as np

OVERLAP_LENGTH = 32  # tokens
STRETCH = 1 << 22  # tokens hashed at a time


def overlap(train: np.ndarray, heldout: np.ndarray, n: int) -> float:
    """The fraction of the `n`-grams of `heldout` that occur in `train`; n is a power of two.

    Long texts are subsampled by hash, the same n-grams on both sides (about a million), which
    leaves the fraction unbiased.
    """
    if min(len(train), len(heldout)) < n:
        return 0.0
    classes = np.uint64(max(1, len(train) >> 20))
    train_hashes, heldout_hashes = (
        _sampled_hashes(tokens, n, classes) for tokens in (train, heldout)
    )
    if not len(train_hashes) or not len(heldout_hashes):
        return 0.0
    train_hashes = np.unique(train_hashes)
    at = np.minimum(np.searchsorted(train_hashes, heldout_hashes), len(train_hashes) - 1)
    return float(np.mean(train_hashes[at] == heldout_hashes))


def _sampled_hashes(tokens: np.ndarray, n: int, classes: np.uint64) -> np.ndarray:
    """The hashes of n-grams that fall in class 0; a stretch at a time, as a file may be large."""
    stretches = (tokens[i : i + STRETCH + n - 1] for i in range(0, len(tokens) - n + 1, STRETCH))
    hashes = (ngram_hashes(stretch, n) for stretch in stretches)
    return np.concatenate([h[h % classes == 0] for h in hashes])


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every window of n tokens, by doubling: h(2k) = h(k)[i] · p + h(k)[i + k]."""
    hashes = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    k = 1
    while k < n:
        hashes ^= hashes >> np.uint64(29)
        hashes = hashes[:-k] * np.uint64(0xBF58476D1CE4E5B9 + 2 * k) + hashes[k:]
        k *= 2
    return hashes
