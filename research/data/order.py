"""The order of the examples: a pure function of (seed, position), so it needs no saved state."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
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
    position = step * batch + np.arange(batch, dtype=np.int64)
    epochs, within = np.divmod(position, n)
    out = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permutation(seed, int(epoch), n)[within[here]]
    return out
