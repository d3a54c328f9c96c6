"""The tokenizer of a config: bytes, byte-level BPE trained here, or any tokenizer.json."""

import os
from collections.abc import Iterable

from research.data.byte_tokenizer import LARGEST_VOCAB, Tokenizer
from research.errors import BadInput
from research.io import files

LARGEST_FILE = 64 << 20  # bytes of a tokenizer.json


def from_json(text: str) -> Tokenizer:
    """The tokenizer that was kept with a run as `Tokenizer.json`; none is bytes."""
    if text.strip() in ("", "bytes"):
        return Tokenizer()
    from research.data.subwords import Subwords

    return Subwords(text)


def read(path: str) -> Tokenizer:
    """The tokenizer of the config: "bytes", or the path of a `tokenizer.json`."""
    if path == "bytes":
        return Tokenizer()
    size = stamp(path)[0]
    if size > LARGEST_FILE:
        raise BadInput(f"data.tokenizer: {path}: {size} bytes; expected at most {LARGEST_FILE}")
    try:
        text = files.read(path, LARGEST_FILE).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"data.tokenizer: {path}: not a tokenizer.json: not UTF-8") from error
    from research.data.subwords import Subwords

    return Subwords(text, f"data.tokenizer: {path}")


def stamp(name: str) -> tuple:
    """Changes when the file of the tokenizer does."""
    if name in ("bytes", "bpe"):
        return ()
    if not os.path.isfile(name):
        raise BadInput(
            f"data.tokenizer: {name}: no such file; expected bytes, bpe or a tokenizer.json"
        )
    return files.stamp(name, "data.tokenizer")


def check(name: str, vocab: int | None) -> None:
    """Refuses what `choose` would, without the documents."""
    if name == "bytes" and vocab not in (None, 256):
        raise BadInput("data.vocab: only for .bin files and bpe; the byte tokenizer has 256")
    if name == "bpe" and (vocab is None or not 256 < vocab <= LARGEST_VOCAB):
        raise BadInput(f"data.vocab: {vocab}; bpe needs 257 to {LARGEST_VOCAB} tokens")


def choose(name: str, vocab: int | None, documents: Iterable[bytes]) -> Tokenizer:
    """The tokenizer of the config; `documents` are those that may be trained on."""
    check(name, vocab)
    if name == "bpe":
        from research.data.subwords import trained_bpe

        return trained_bpe(vocab or 0, documents)
    tokenizer = read(name)
    if vocab not in (None, tokenizer.vocab):
        raise BadInput(
            f"data.vocab: {vocab}, but {name} has {tokenizer.vocab} tokens; expected none"
        )
    return tokenizer
