"""Corpora as files of token ids in the user's cache, memory-mapped."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from research.data import tokenizers
from research.data.byte_tokenizer import Tokenizer
from research.errors import BadInput, StorageError
from research.io import files

BATCH = 4 << 20  # bytes that are tokenised at once


class Tokens(NamedTuple):
    """A corpus as ids below `vocab`. `digest` names the documents of both parts and the tokenizer;
    a separator counts as the one byte that it is in a file of bytes. `unchanged` raises BadInput
    where the files are no longer what they were; in `replaced` places the text was no text."""

    train: np.ndarray
    heldout: np.ndarray
    tokenizer: Tokenizer
    digest: str
    bytes_per_token: float | None
    vocab: int
    unchanged: Callable[[], None] = lambda: None
    replaced: int = 0


def check_ids(ids: np.ndarray, vocab: int, what: str, at: np.ndarray | None = None) -> None:
    """Raise BadInput, naming the first, for ids that are not below `vocab`. JAX takes another row
    of the embedding for them and says nothing, so all that goes to a device is looked at here.

    `what` begins the error; `at` are the positions of the ids, if not 0, 1, …
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


def memory_map(path: Path, kind: np.dtype) -> tuple[np.ndarray, Callable[[], None]]:
    """The ids of a file in memory that is the file, and a function that raises BadInput once it was
    written to: what is cut off would end the process without a word when it is read. A file of
    another content that takes the place of this one does no harm."""
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
    """What `store` wrote under `key`; None if there is nothing, or it is damaged."""
    folder = files.cache("tokens") / key
    try:
        tokenizer = tokenizers.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
        facts = files.read_json(folder / "facts.json")
        parts = [_part(folder, name, tokenizer.vocab, facts) for name in ("train", "heldout")]
        ratio = facts["heldout_bytes"] / max(1, facts["heldout_tokens"])
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, BadInput):
        return None
    (train, one), (heldout, other) = parts

    def unchanged() -> None:
        one()
        other()

    return Tokens(train, heldout, tokenizer, facts["digest"], ratio, tokenizer.vocab, unchanged)


def _part(
    folder: Path, name: str, vocab: int, facts: dict
) -> tuple[np.ndarray, Callable[[], None]]:
    """One of the files, mapped. Raises ValueError or BadInput if it is not as it was written."""
    path = folder / f"{name}.bin"
    ids, unchanged = memory_map(path, kind_of(vocab))
    if len(ids) != facts[f"{name}_tokens"] or files.digest_file(path) != facts[f"{name}_sha256"]:
        raise ValueError(f"{path}: not as it was written")
    check_ids(ids, vocab, str(path))
    unchanged()
    return ids, unchanged


def kind_of(vocab: int) -> np.dtype:
    """The smallest unsigned type that holds all ids."""
    return np.min_scalar_type(vocab - 1)


def store(key: str, tokenizer: Tokenizer, documents: Iterable[tuple[bool, bytes]]) -> Tokens:
    """Token files below `<cache>/tokens/<key>` of documents (held out?, text), in bounded memory,
    mapped. Of several that write one key at once, the first to end wins and all read its files.

    Raises StorageError when the disk refuses.
    """
    target = files.cache("tokens") / key
    try:
        with (
            _building(target) as folder,
            open(folder / "train.bin", "wb") as train,
            open(folder / "heldout.bin", "wb") as heldout,
        ):
            parts = _Part(train, tokenizer), _Part(heldout, tokenizer)
            for is_heldout, document in documents:
                parts[is_heldout].add(document)
            facts: dict[str, object] = {}
            for name, part in zip(("train", "heldout"), parts):
                part.end()
                facts |= {f"{name}_tokens": part.tokens, f"{name}_bytes": part.bytes}
                facts[f"{name}_sha256"] = files.digest_file(part.file.name)
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
    """The digest of `Tokens`, from the SHA-256 of the SHA-256s of the documents of each part."""
    return files.digest(train, heldout, tokenizer.digest.encode())


class _Part:
    """A file of ids that grows by documents."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self.file, self.tokenizer, self.kind = file, tokenizer, kind_of(tokenizer.vocab)
        self.sha, self.tokens, self.bytes = hashlib.sha256(), 0, 0
        self.pending: list[bytes] = []
        self.size, self.begun = 0, False

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
        check_ids(ids, self.tokenizer.vocab, "data.tokenizer")
        if self.begun:
            ids = np.concatenate([np.array([self.tokenizer.separator], ids.dtype), ids])
        self.file.write(ids.astype(self.kind).tobytes())
        self.tokens += len(ids)
        self.bytes += self.size + len(self.pending) - (not self.begun)
        self.pending, self.size, self.begun = [], 0, True


@contextlib.contextmanager
def _building(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` when the block ends well, and is removed when it does not."""
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        yield folder
        with open(target.parent / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if find(target.name) is None:  # absent, or damaged; who has that mapped keeps it
                shutil.rmtree(target, ignore_errors=True)
                os.rename(folder, target)
                files.sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
