"""Text as windows of tokens: the standard library's source, or a local file."""

import functools
import hashlib
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from research import files
from research.errors import BadInput
from research.kinds import Count, Share

SEPARATOR = b"\x00"  # between documents; no text file holds it
BLOCK = 16 << 10  # bytes: a plain file is cut into blocks at line ends, so that it can be split
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
OVERLAP_LENGTH = 32  # tokens


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows: example i predicts tokens [i·T + 1, (i + 1)·T], each token once."""

    tokens: np.ndarray
    context: int

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.context)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{"inputs": [B, T], "targets": [B, T]} int32, the targets one token later."""
        at = index[:, None] * self.context + np.arange(self.context + 1)
        tokens = self.tokens[at].astype(np.int32)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def load(
    *,
    path: str,
    context: Count,
    heldout: Share,
    tokenizer: Literal["bytes"],
    field: str,
    vocab: Count | None,
) -> dict[str, object]:
    """The fields of a `Dataset` of token windows.

    `path` is "stdlib" (the Python source of this interpreter's standard library), a UTF-8 `.txt`,
    a `.jsonl` (the text of each line's `field` is a document) or a `.bin` of token ids (uint16, or
    uint32 when `vocab` > 65,536). About the share `heldout` of the documents, chosen by the hash of
    their content, is never trained on; exact repeats of a document are dropped. Of a `.bin`, whose
    documents are unknown, the last part is held out.
    """
    if path.endswith(".bin"):
        train, held = _token_file(path, vocab, heldout)
        size, bytes_per_token = vocab or 0, None
    else:
        if vocab is not None:
            raise BadInput("data.vocab: only for .bin files; the byte tokenizer has 256")
        train, held = _split(path, _stamp(path), field, heldout)
        size, bytes_per_token = 256, 1.0
    for name, tokens in (("training", train), ("held-out", held)):
        if len(tokens) <= context:
            raise BadInput(
                f"data.path: {path}: {len(tokens)} {name} tokens; "
                f"data.context = {context} needs at least {context + 1}"
            )
    digest = _digest(path, _stamp(path), field, heldout, vocab)
    return {
        "train": Windows(train, context),
        "heldout": Windows(held, context),
        "targets": "tokens",
        "facts": {"vocab": size, "context": context},
        "digest": digest,
        "tokens_per_example": context,
        "unique_tokens": len(train),
        "notes": {"bytes_per_token": bytes_per_token},
        "card": functools.partial(_card, path, tokenizer, digest, train, held),
    }


def _stamp(path: str) -> tuple:
    """Changes when the file does, so that nothing is remembered of an older content."""
    if path == "stdlib":
        return ()
    try:
        with open(path, "rb") as file:  # a folder, or a file that may not be read, is refused here
            stat = os.fstat(file.fileno())
    except OSError as error:
        raise BadInput(f"data.path: {path}: {error.strerror}") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@functools.lru_cache(maxsize=4)
def _digest(path: str, stamp: tuple, field: str, heldout: float, vocab: int | None) -> str:
    if path.endswith(".bin"):
        return files.digest(files.digest_file(path).encode(), repr(heldout).encode())
    return files.digest(*(part.tobytes() for part in _split(path, stamp, field, heldout)))


@functools.lru_cache(maxsize=4)
def _split(path: str, stamp: tuple, field: str, heldout: float) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) bytes, uint8. The hash decides, not the order of reading."""
    documents = _documents(path, field)
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    seen = set()
    for document in documents:
        name = hashlib.sha256(document).digest()
        if document and name not in seen:
            seen.add(name)
            parts[int.from_bytes(name[:8], "big") < heldout * 2**64].append(document)
    train, held = (np.frombuffer(SEPARATOR.join(part), np.uint8) for part in parts)
    return train, held


def _documents(path: str, field: str) -> list[bytes]:
    if path == "stdlib":
        return _standard_library()
    if path.endswith(".jsonl"):
        return _jsonl(path, field)
    if path.endswith(".txt"):
        return _blocks(_utf8(path))
    raise BadInput(f"data.path: {path}: expected stdlib, or a .txt, .jsonl or .bin file")


def _standard_library() -> list[bytes]:
    root = Path(sysconfig.get_paths()["stdlib"])
    out = []
    for folder, names, found in os.walk(root):
        names[:] = sorted(set(names) - SKIPPED)
        # _sysconfigdata is written by the build and holds the paths of one machine
        out += [
            Path(folder, name).read_bytes()
            for name in sorted(found)
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    if not out:
        raise BadInput(f"data.path: stdlib: no Python source below {root}; give a file instead")
    return out


def _utf8(path: str) -> bytes:
    raw = Path(path).read_bytes()
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"data.path: {path}: byte {error.start} is not UTF-8 ({error.reason})"
        ) from error
    return raw


def _blocks(raw: bytes) -> list[bytes]:
    """`raw` cut at the first line end after each BLOCK bytes (or right there, in a long line)."""
    out, start = [], 0
    while start < len(raw):
        end = raw.find(b"\n", start + BLOCK, start + 2 * BLOCK)
        end = start + 2 * BLOCK if end < 0 else end + 1
        out.append(raw[start:end])
        start = end
    return out


def _jsonl(path: str, field: str) -> list[bytes]:
    out = []
    for number, line in enumerate(_utf8(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[field]
            out.append(text.encode())
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"data.path: {path}: line {number}: expected a JSON object whose "
                f"{field!r} (data.field) is text"
            ) from error
    return out


def _token_file(path: str, vocab: int | None, heldout: float) -> tuple[np.ndarray, np.ndarray]:
    if vocab is None:
        raise BadInput(f"data.vocab: none; {path} needs the number of its token ids")
    kind = np.dtype(np.uint16 if vocab <= 1 << 16 else np.uint32)
    size = _stamp(path)[0]
    if size == 0 or size % kind.itemsize:
        raise BadInput(f"data.path: {path}: {size} bytes are no whole number of {kind.name} ids")
    tokens = np.memmap(path, kind, "r")
    # JAX clamps an id that is out of range; only the host can refuse it.
    if (top := int(tokens.max())) >= vocab:
        at = int(np.argmax(tokens >= vocab))
        raise BadInput(
            f"data.path: {path}: id {int(tokens[at])} at position {at} (largest {top}), "
            f"but data.vocab is {vocab}"
        )
    cut = len(tokens) - max(1, round(len(tokens) * heldout))
    return tokens[:cut], tokens[cut:]


def _card(
    path: str, tokenizer: str, digest: str, train: np.ndarray, held: np.ndarray
) -> dict[str, object]:
    source = path
    if path == "stdlib":
        version = ".".join(map(str, sys.version_info[:3]))
        source = f"source of the Python {version} standard library, without tests and site-packages"
    return {
        "source": source,
        "digest": digest,
        "tokenizer": "token ids" if path.endswith(".bin") else tokenizer,
        "train_tokens": len(train),
        "heldout_tokens": len(held),
        "overlap_length": OVERLAP_LENGTH,
        "overlap": overlap(train, held, OVERLAP_LENGTH),
    }


def overlap(train: np.ndarray, held: np.ndarray, n: int) -> float:
    """The share of the `n`-grams of `held` (n a power of two) that also occur in `train`.

    Of a long text, only the n-grams whose hash falls in one class are looked at: about a million,
    the same ones on both sides, so the share is not biased by it.
    """
    if min(len(train), len(held)) < n:
        return 0.0
    classes = np.uint64(max(1, len(train) >> 20))
    seen, wanted = (h[h % classes == 0] for h in (_ngram_hashes(t, n) for t in (train, held)))
    if not len(seen) or not len(wanted):
        return 0.0
    seen = np.unique(seen)
    at = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
    return float(np.mean(seen[at] == wanted))


def _ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every window of n tokens, by doubling: h(2k) = h(k)[i] · p + h(k)[i + k]."""
    hashes = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    k = 1
    while k < n:
        hashes ^= hashes >> np.uint64(29)
        hashes = hashes[:-k] * np.uint64(0xBF58476D1CE4E5B9 + 2 * k) + hashes[k:]
        k *= 2
    return hashes
