"""The interface of a tokenizer, and the simplest one: bytes."""

import hashlib
from collections.abc import Sequence

import numpy as np

from research.errors import BadInput

LARGEST_VOCAB = 1 << 20


class Tokenizer:
    """Bytes: the ids are the bytes of the text, and 0, which no text holds, stands between
    documents. `json` rebuilds a tokenizer (see `from_json`); `digest` names what it does."""

    vocab = 256
    separator = 0
    json = ""
    digest = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids of a text, without separators. Special tokens in the text are ordinary text."""
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

    def encode_each(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The ids of every document."""
        return [np.frombuffer(document, np.uint8) for document in documents]

    def encode_documents(self, documents: Sequence[bytes]) -> np.ndarray:
        """The ids of all documents, with a separator between them."""
        return np.frombuffer(bytes([self.separator]).join(documents), np.uint8)

    def count_bytes(self, inputs: np.ndarray, targets: np.ndarray) -> int:
        """The bytes of text that the tokens `targets` stand for, each of which follows the one in
        `inputs`. A separator counts as one byte."""
        return targets.size

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The text of `ids`. Raises BadInput for an id that there is not."""
        if outside := [int(i) for i in ids if not 0 <= i < self.vocab]:
            raise BadInput(f"token {outside[0]}: expected ids below {self.vocab}")
        return bytes(int(i) for i in ids)
