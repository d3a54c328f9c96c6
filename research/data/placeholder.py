"""Text that is not there: windows of a context and a vocabulary, to plan for, not to train on."""

from dataclasses import dataclass

import numpy as np

from research.data import Dataset

MANY = 2**40  # examples: no horizon repeats them


@dataclass(frozen=True)
class Blank:
    """`count` windows of token 0."""

    context: int
    count: int

    def __len__(self) -> int:
        return self.count

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        zeros = np.zeros((len(index), self.context), np.int32)
        return {"inputs": zeros, "targets": zeros}


def tokens(context: int, vocab: int) -> Dataset:
    windows = Blank(context, MANY)
    return Dataset(
        train=windows,
        heldout=windows,
        targets="tokens",
        facts={"vocab": vocab, "context": context},
        digest="",
        card=dict,
        tokens_per_example=context,
        unique_tokens=MANY * context,
    )
