"""Tokenized corpora as memory-mapped files in the user's cache."""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from research.data import tokenizers
from research.data.byte_tokenizer import Tokenizer
from research.data.tokens import Tokens, check_ids
from research.errors import BadInput, StorageError
from research.io import files

BATCH = 4 << 20  # bytes tokenized at a time

log = logging.getLogger(__name__)


def memory_map(path: Path, kind: np.dtype) -> tuple[np.ndarray, Callable[[], None]]:
    """The file as a read-only memmap, and a function that raises BadInput once it was modified:
    reading a truncated mapping would kill the process with SIGBUS. Renaming another file over this
    one is harmless."""
    file = os.open(path, os.O_RDONLY)
    begun = _stamp(file)

    def unchanged() -> None:
        if _stamp(file) != begun:
            raise BadInput(f"data.path: {path}: was written to while it is in use")

    weakref.finalize(unchanged, os.close, file)
    with open(path, "rb") as same:
        ids = np.memmap(same, kind, "r") if begun[0] else np.zeros(0, kind)
        if _stamp(same.fileno()) != begun:
            raise BadInput(f"data.path: {path}: was written to while it was opened")
    return ids, unchanged


def _stamp(file: int) -> tuple[int, int, int]:
    stat = os.fstat(file)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def find(key: str) -> Tokens | None:
    """The corpus that `store` wrote under `key`; None if it is missing or damaged."""
    folder = files.cache("tokens") / key
    try:
        tokenizer = tokenizers.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
        facts = files.read_json(folder / "facts.json")
        parts = [_part(folder, name, tokenizer.vocab, facts) for name in ("train", "heldout")]
        ratio = facts["heldout_bytes"] / max(1, facts["heldout_tokens"])
        lost = facts["heldout_lost"] / max(1, facts["heldout_bytes"])
        countable, example = not facts["heldout_miscounted"], facts["heldout_example"]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, BadInput):
        return None
    (train, one), (heldout, other) = parts

    def unchanged() -> None:
        one()
        other()

    found = Tokens(train, heldout, tokenizer, facts["digest"], ratio, tokenizer.vocab, unchanged)
    found = found._replace(countable=countable, lost=lost)
    if lost:
        words = " becomes ".join(map(repr, example)) or "line ends"
        log.warning(
            "data.tokenizer: %.2g %% of the held-out text does not come back from its tokens (%s); "
            "bits per byte are %s",
            *(100 * lost, words, "of the rest" if found.count_bytes else "not reported"),
        )
    return found


def _part(
    folder: Path, name: str, vocab: int, facts: dict
) -> tuple[np.ndarray, Callable[[], None]]:
    """One split, memory-mapped. Raises ValueError or BadInput if it is not as written."""
    path = folder / f"{name}.bin"
    ids, unchanged = memory_map(path, kind_of(vocab))
    if len(ids) != facts[f"{name}_tokens"] or files.digest_file(path) != facts[f"{name}_sha256"]:
        raise ValueError(f"{path}: not as it was written")
    check_ids(ids, vocab, str(path))
    unchanged()
    return ids, unchanged


def kind_of(vocab: int) -> np.dtype:
    """The smallest unsigned dtype that holds every id."""
    return np.min_scalar_type(vocab - 1)


def store(key: str, tokenizer: Tokenizer, documents: Iterable[tuple[bool, bytes]]) -> Tokens:
    """Tokenize (is held out, text) documents into `<cache>/tokens/<key>`, in bounded memory, and
    map the files. Of concurrent writers of a key the first to finish wins; all read its files.

    Raises StorageError if they cannot be written.
    """
    target = files.cache("tokens") / key
    try:
        with (
            _building(target) as folder,
            open(folder / "train.bin", "wb") as train,
            open(folder / "heldout.bin", "wb") as heldout,
        ):
            parts = _Part(train, tokenizer), _Part(heldout, tokenizer, compared=True)
            for is_heldout, document in documents:
                parts[is_heldout].add(document)
            facts: dict[str, object] = {}
            for name, part in zip(("train", "heldout"), parts):
                part.end()
                facts |= {f"{name}_tokens": part.tokens, f"{name}_bytes": part.bytes}
                facts[f"{name}_sha256"] = files.digest_file(part.file.name)
            facts |= {
                "heldout_lost": parts[1].lost,
                "heldout_miscounted": parts[1].miscounted,
                "heldout_example": parts[1].example,
            }
            shas = parts[0].sha.digest(), parts[1].sha.digest()
            facts["digest"] = digest_of(*shas, tokenizer)
            files.write_json(folder / "facts.json", facts)
            files.write_atomic(folder / "tokenizer.json", tokenizer.json)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror}") from error
    if (tokens := find(key)) is None:
        raise StorageError(f"{target}: was written, but cannot be read")
    return tokens


def digest_of(train: bytes, heldout: bytes, tokenizer: Tokenizer) -> str:
    """`Tokens.digest`, from each split's SHA-256 over the SHA-256s of its documents."""
    return files.digest(train, heldout, tokenizer.digest.encode())


class _Part:
    """A file of token ids, appended to document by document; `compared` with what they decode
    to."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, compared: bool = False):
        self.file, self.tokenizer, self.kind = file, tokenizer, kind_of(tokenizer.vocab)
        self.sha, self.tokens, self.bytes = hashlib.sha256(), 0, 0
        self.pending: list[bytes] = []
        self.size, self.begun = 0, False
        self.losses = getattr(tokenizer, "losses", None) if compared else None
        self.lost, self.miscounted, self.example = 0, 0, []

    def add(self, document: bytes) -> None:
        self.sha.update(hashlib.sha256(document).digest())
        self.pending.append(document)
        self.size += len(document)
        if self.size >= BATCH:
            self._write()

    def end(self) -> None:
        self._write()
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self) -> None:
        if not self.pending:
            return
        ids = self.tokenizer.encode_documents(self.pending)
        if self.losses is not None:
            self._compare(self.losses)
        check_ids(ids, self.tokenizer.vocab, "data.tokenizer")
        if self.begun:
            ids = np.concatenate([np.array([self.tokenizer.separator], ids.dtype), ids])
        self.file.write(ids.astype(self.kind).tobytes())
        self.tokens += len(ids)
        self.bytes += self.size + len(self.pending) - (not self.begun)
        self.pending, self.size, self.begun = [], 0, True

    def _compare(self, losses: Callable) -> None:
        lost, miscounted, example = losses(self.pending, self.tokenizer.encode_each(self.pending))
        self.lost, self.miscounted = self.lost + lost, self.miscounted + miscounted
        self.example = self.example or example


@contextlib.contextmanager
def _building(target: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `target` on success and removed on failure."""
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        yield folder
        with open(target.parent / ".lock", "wb") as lock:
            files.lock(lock)
            if find(target.name) is None:  # missing or damaged; existing mappings stay valid
                shutil.rmtree(target, ignore_errors=True)
                try:
                    os.rename(folder, target)
                except OSError:  # without locks another writer may have been faster
                    if find(target.name) is None:
                        raise
                files.sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
