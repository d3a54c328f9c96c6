"""A tokenized corpus, wherever its ids lie."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from research.data.byte_tokenizer import Tokenizer
from research.errors import BadInput

LOSSY = 1e-3  # of the held-out text: a tokenizer that loses more has no bits per byte


class Tokens(NamedTuple):
    """A tokenized corpus, ids in [0, vocab). `digest` identifies the documents of both splits and
    the tokenizer; `bytes_per_token` is of the held-out split and counts a separator as one byte.
    `countable`: whether the tokenizer counts the bytes of tokens, and `lost` is the share of the
    held-out text that it does not give back. `unchanged` raises BadInput if a mapped file was
    modified; `replaced` counts U+FFFD."""

    train: np.ndarray
    heldout: np.ndarray
    tokenizer: Tokenizer
    digest: str
    bytes_per_token: float | None
    vocab: int
    unchanged: Callable[[], None] = lambda: None
    replaced: int = 0
    countable: bool = True
    lost: float = 0.0

    @property
    def count_bytes(self) -> Callable[[np.ndarray, np.ndarray], int] | None:
        """See Tokenizer. None: bytes are unknown, or too much of the text is lost for a loss per
        byte of it to mean anything."""
        known = self.bytes_per_token is not None and self.countable and self.lost <= LOSSY
        return self.tokenizer.count_bytes if known else None


def check_ids(ids: np.ndarray, vocab: int, what: str, at: np.ndarray | None = None) -> None:
    """Raise BadInput, naming the first id outside [0, vocab). JAX silently reads another embedding
    row for such an id, so every batch is checked here before it reaches a device.

    `what` prefixes the message; `at` holds the ids' positions (default: 0, 1, …).
    """
    signed = ids.dtype.kind != "u"
    if not ids.size or (int(ids.max()) < vocab and not (signed and int(ids.min()) < 0)):
        return
    first = int(np.argmax((ids >= vocab) | (ids < 0)))
    place = first if at is None else int(at.flat[first])
    raise BadInput(
        f"{what}: id {int(ids.flat[first])} at position {place}, but the vocabulary (data.vocab) "
        f"has {vocab}, 0 to {vocab - 1}"
    )
