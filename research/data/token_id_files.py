"""A .bin of token ids, which has no documents."""

from pathlib import Path

import numpy as np

from research.data import token_files, tokenizers
from research.data.byte_tokenizer import Tokenizer
from research.data.tokens import Tokens, check_ids
from research.errors import BadInput
from research.io import files


def read(path: str, tokenizer: str, vocab: int | None, heldout: float) -> Tokens:
    if tokenizer == "bpe":
        raise BadInput("data.tokenizer: bpe: not for ids; expected bytes or a tokenizer.json")
    encoder = tokenizers.read(tokenizer)
    vocab = vocab or (encoder.vocab if encoder.json else None)
    if vocab is None:
        raise BadInput(f"data.vocab: none; {path} needs the number of its token ids")
    if encoder.json and vocab != encoder.vocab:
        raise BadInput(f"data.vocab: {vocab}, but {tokenizer} has {encoder.vocab} tokens")
    return ids(path, encoder, vocab, heldout)


def ids(path: str, encoder: Tokenizer, vocab: int, heldout: float) -> Tokens:
    """The ids of a file, of which the last share `heldout` is held out (0: nothing, 1: all)."""
    kind = np.dtype(np.uint16 if vocab <= 1 << 16 else np.uint32)
    size = files.stamp(path, "data.path")[0]
    if size == 0 or size % kind.itemsize:
        raise BadInput(f"data.path: {path}: {size} bytes is not a whole number of {kind.name} ids")
    tokens, unchanged = token_files.memory_map(Path(path), kind)
    _check_token_ids(path, tokens, kind, vocab)
    cut = len(tokens) - (max(1, round(len(tokens) * heldout)) if heldout else 0)
    digest = files.digest(files.digest_file(path).encode(), repr(heldout).encode())
    unchanged()
    return Tokens(tokens[:cut], tokens[cut:], encoder, digest, None, vocab, unchanged)


def _check_token_ids(path: str, tokens: np.ndarray, kind: np.dtype, vocab: int) -> None:
    """Raise BadInput for out-of-range ids, .npy files, and ids stored with a wider dtype."""
    if tokens[:3].tobytes().startswith(b"\x93NUMPY"[: tokens[:3].nbytes]):
        raise BadInput(f"data.path: {path}: is a .npy file; expected its array.tofile(path)")
    if len(tokens) > 2 and not tokens[1::2].any():
        raise BadInput(
            f"data.path: {path}: every second id is 0, so it seems to hold wider numbers; "
            f"expected {kind.name} for data.vocab = {vocab}"
        )
    check_ids(tokens, vocab, f"data.path: {path}")
