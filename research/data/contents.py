"""What examples contain, as 64-bit hashes by which a run recognizes what another was trained on,
whatever file it came from and wherever that was cut.

Of a text they are those of its runs of LENGTH tokens inside a document, and of documents that are
shorter; of images and rows, of each. Only a share, 1 in `classes`, is looked at: the same ones
everywhere, since a hash itself says whether it is.
"""

from collections.abc import Iterable

import numpy as np

from research.data import ngrams, sampling

LENGTH = 32  # tokens
MOST = 1 << 16  # hashes that are kept of a training set
FILLER = np.uint64(2**63)  # what follows a short document; no token


def classes_for(count: int) -> int:
    """Of how many hashes one is kept so that of `count` about MOST are: a power of two, so that
    what is kept of a larger set is also kept of a smaller one."""
    return 1 << max(0, (count // MOST).bit_length())


def kept(hashes: np.ndarray, classes: int) -> np.ndarray:
    return np.unique(hashes[hashes % np.uint64(classes) == 0])


def of_tokens(tokens: Iterable[np.ndarray], separator: int, classes: int) -> np.ndarray:
    """Of streams of documents with a `separator` between them."""
    out = [np.zeros(0, np.uint64)]
    for stream in tokens:
        for start in range(0, len(stream), ngrams.STRETCH):
            part = np.asarray(stream[start : start + ngrams.STRETCH + LENGTH - 1])
            out.append(kept(_runs(part, separator), classes))
        out.append(kept(_short(stream, separator), classes))
    return np.unique(np.concatenate(out))


def _runs(tokens: np.ndarray, separator: int) -> np.ndarray:
    """The hashes of all runs of LENGTH tokens without a separator."""
    if len(tokens) < LENGTH:
        return np.zeros(0, np.uint64)
    before = np.concatenate([[0], np.cumsum(tokens == separator)])
    whole = before[LENGTH:] == before[:-LENGTH]
    return sampling.splitmix64(ngrams.ngram_hashes(tokens, LENGTH)[whole])


def _short(tokens: np.ndarray, separator: int) -> np.ndarray:
    """The hashes of the documents that are shorter than LENGTH."""
    ends = np.append(np.flatnonzero(tokens == separator), len(tokens))
    starts = np.concatenate([[0], ends[:-1] + 1])
    short = (ends - starts > 0) & (ends - starts < LENGTH)
    places = starts[short, None] + np.arange(LENGTH)
    inside = places < ends[short, None]
    padded = np.where(inside, tokens[np.minimum(places, len(tokens) - 1)].astype(np.uint64), FILLER)
    each = sampling.splitmix64(padded + np.arange(LENGTH, dtype=np.uint64) * sampling.GOLDEN)
    return sampling.splitmix64(np.bitwise_xor.reduce(each, axis=1))
