"""Language-model data: non-overlapping token windows of Python's stdlib source or a local file."""

import functools
import hashlib
import importlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.config.types import OpenUnit, PositiveInt
from research.data import ngrams, tokenizers, utf8
from research.data.byte_tokenizer import Tokenizer
from research.data.sampling import is_heldout
from research.data.tokens import Tokens, check_ids
from research.errors import BadInput
from research.io import files

NAMED = {  # sources that are not a file
    "stdlib": "research.data.standard_library",
    "packages": "research.data.installed_packages",
}
BLOCK = 16 << 10  # bytes: a .txt is cut at line ends into documents of about this size,
SMALL, SMALLEST = 4 << 20, 256  # but one below SMALL into shorter ones, down to SMALLEST,
TOLERANCE = 0.1  # until the held-out share is as asked for, relative to it


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of one split of a corpus. Example i predicts tokens i·T + 1 to
    (i + 1)·T, so every token but the first is a target at most once."""

    corpus: Tokens
    part: Literal["train", "heldout"]
    context: int

    @property
    def tokens(self) -> np.ndarray:
        return getattr(self.corpus, self.part)

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.context)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{"inputs": [B, T], "targets": [B, T]} int32, targets one token later. Raises BadInput if
        the memory-mapped file has changed, or an id is outside the vocabulary."""
        at = index[:, None] * self.context + np.arange(self.context + 1)
        self.corpus.unchanged()
        tokens = self.tokens[at]
        check_ids(tokens, self.corpus.vocab, f"data.path: {self.part} tokens", at)
        tokens = tokens.astype(np.int32)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def load(
    *,
    path: str,
    context: PositiveInt,
    heldout: OpenUnit | None,
    tokenizer: str,
    field: str,
    vocab: PositiveInt | None,
    undecodable: Literal["error", "replace"] = "error",
) -> dict[str, object]:
    """The fields of a `Dataset` of token windows.

    `path` is "stdlib" (the Python source of this interpreter's standard library), "packages" (that
    of the packages that Isoflop requires), a UTF-8 `.txt`, a `.jsonl` (each line's `field` is a
    document) or a `.bin` of token ids (uint16, or uint32 when `vocab` > 65,536). Exact duplicates
    are dropped; about a fraction `heldout` of the documents, selected by content hash, is held out;
    of "packages" whole ones; of a `.bin`, which has no document boundaries, the tail. none: nothing
    is, and a set of `eval.sets` is evaluated in its place.

    `tokenizer` is "bytes", "bpe" (`vocab` tokens, trained on the training documents only) or the
    path of a `tokenizer.json`. Except for bytes, token ids are cached on disk and memory-mapped.

    `undecodable` decides about invalid UTF-8 and NUL bytes: "error" raises BadInput with the
    position; "replace" substitutes U+FFFD, counted in the data card.
    """
    stamps = (stamp(path), tokenizers.stamp(tokenizer))
    tokens = _tokens(path, field, heldout or 0.0, tokenizer, vocab, undecodable, stamps)
    return {
        **windows(path, tokens, context, heldout is not None),
        "card": functools.partial(_card, path, tokenizer, tokens),
    }


def windows(path: str, tokens: Tokens, context: int, split: bool = True) -> dict[str, object]:
    """The fields of a `Dataset` that its tokens determine. Raises BadInput if either split (of one
    that is not `split` the first) has fewer than `context` + 1 tokens."""
    for name, ids in (("training", tokens.train), ("held-out", tokens.heldout)):
        if len(ids) <= context and (split or name == "training"):
            raise BadInput(
                f"data.path: {path}: {len(ids)} {name} tokens; "
                f"data.context = {context} needs at least {context + 1}"
            )
    return {
        "train": Windows(tokens, "train", context),
        "heldout": Windows(tokens, "heldout", context),
        "targets": "tokens",
        "facts": {"vocab": tokens.vocab, "context": context},
        "digest": tokens.digest,
        "tokens_per_example": context,
        "unique_tokens": len(tokens.train),
        "count_bytes": tokens.count_bytes,
        "contents": functools.partial(contents, (tokens,)),
        "tokenizer": tokens.tokenizer.json,
    }


def contents(corpora: Sequence[Tokens], part: str, classes: int) -> np.ndarray:
    """See Dataset."""
    from research.data.contents import of_tokens

    streams = (getattr(tokens, part) for tokens in corpora)
    return of_tokens(streams, corpora[0].tokenizer.separator, classes)


def stamp(path: str) -> tuple:
    """A fingerprint that changes with the file. Raises BadInput if it does not exist."""
    return _named(path).stamp() if path in NAMED else files.stamp(path, "data.path")


def _named(path: str) -> Any:
    return importlib.import_module(NAMED[path])


@functools.lru_cache(maxsize=4)
def _tokens(
    path: str,
    field: str,
    heldout: float,
    tokenizer: str,
    vocab: int | None,
    undecodable: str,
    stamps: tuple,
) -> Tokens:
    if path.endswith(".bin"):
        from research.data import token_id_files

        return token_id_files.read(path, tokenizer, vocab, heldout)
    return corpora((path,), field, heldout, tokenizer, vocab, undecodable)[0]


def corpora(
    paths: Iterable[str],
    field: str,
    heldout: float,
    tokenizer: str,
    vocab: int | None,
    undecodable: str,
) -> tuple[Tokens, ...]:
    """Each of `paths` tokenized by one shared tokenizer; "bpe" is trained on all training
    documents."""
    tokenizers.check(tokenizer, vocab)
    parts, replaced = zip(*(_split_source(path, field, heldout, undecodable) for path in paths))
    training = itertools.chain.from_iterable(train for train, _ in parts)
    encoder = tokenizers.choose(tokenizer, vocab, training)
    return tuple(
        tokenize_split(part, encoder)._replace(replaced=n) for part, n in zip(parts, replaced)
    )


def _split_source(
    path: str, field: str, heldout: float, undecodable: str
) -> tuple[tuple[list[bytes], list[bytes]], int]:
    """The (training, held-out) documents of a source, and how many replacements decoding made."""
    if path == "packages":
        return _named(path).split(heldout), 0
    texts, replaced = documents(path, field, heldout, undecodable)
    return split(texts, heldout), replaced


def split(documents: Iterable[bytes], heldout: float) -> tuple[list[bytes], list[bytes]]:
    """Deduplicated (training, held-out) documents, split by content hash: a document is on the same
    side in every corpus and in any reading order."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    digests = set()
    for document in documents:
        name = hashlib.sha256(document).digest()
        if document and name not in digests:
            digests.add(name)
            parts[is_heldout(name, heldout)].append(document)
    return parts


def tokenize_split(parts: tuple[list[bytes], list[bytes]], tokenizer: Tokenizer) -> Tokens:
    """Token ids of both splits: bytes in memory, all others through the disk cache."""
    train, heldout = parts
    if not tokenizer.json:
        train, heldout = (tokenizer.encode_documents(part) for part in parts)
        digest = files.digest(train.tobytes(), heldout.tobytes())
        return Tokens(train, heldout, tokenizer, digest, 1.0, tokenizer.vocab)
    names = (b"".join(hashlib.sha256(d).digest() for d in part) for part in parts)
    train_sha, held_sha = (hashlib.sha256(joined).digest() for joined in names)
    from research.data import token_files

    key = token_files.digest_of(train_sha, held_sha, tokenizer)
    pairs = itertools.chain(((False, d) for d in train), ((True, d) for d in heldout))
    return token_files.find(key) or token_files.store(key, tokenizer, pairs)


def documents(
    path: str, field: str, heldout: float, undecodable: str = "error"
) -> tuple[list[bytes], int]:
    """The documents of a source, in order, and how many replacements decoding made; a file without
    documents is cut so that `heldout` of it can be held out. Raises BadInput if it is not text."""
    if path in NAMED:
        return _named(path).documents(), 0
    if path.endswith(".jsonl"):
        from research.data import records

        rows, replaced = records.read(path, {"data.field": field}, undecodable)
        return [text.encode() for (text,) in rows], replaced
    if path.endswith(".txt"):
        raw, replaced = utf8.read(path, undecodable)
        return _balanced_blocks(raw, heldout), replaced
    raise BadInput(
        f"data.path: {path}: expected {', '.join(NAMED)}, or a .txt, .jsonl or .bin file"
    )


def _balanced_blocks(raw: bytes, heldout: float) -> list[bytes]:
    """The largest blocks of `raw` of which hashes hold out about the share `heldout`, or the ones
    that come nearest to it: of a few large blocks they may take none, or twice too many."""
    size, best, least = BLOCK, _blocks(raw, BLOCK), math.inf
    while heldout and size >= SMALLEST and len(raw) < SMALL:
        blocks = _blocks(raw, size)
        train, held = (sum(map(len, part)) for part in split(blocks, heldout))
        share = held / max(1, train + held)
        off = abs(share - heldout) / min(heldout, 1 - heldout)
        if off < least:
            best, least = blocks, off
        if off <= TOLERANCE:
            break
        size = size * 7 // 8
    return best


def _blocks(raw: bytes, size: int) -> list[bytes]:
    """`raw` cut after the first newline past every `size` bytes (a long line is cut at twice)."""
    out, start = [], 0
    while start < len(raw):
        end = raw.find(b"\n", start + size, start + 2 * size)
        end = start + 2 * size if end < 0 else end + 1
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # inside a UTF-8 sequence
            end -= 1
        out.append(raw[start:end])
        start = end
    return out


def _card(path: str, tokenizer: str, tokens: Tokens) -> dict[str, object]:
    known = tokens.tokenizer.json or not path.endswith(".bin")
    return {
        "source": source(path),
        "digest": tokens.digest,
        "tokenizer": describe(tokenizer, tokens.tokenizer) if known else "token ids",
        **replacement_facts(tokens.replaced),
        **counts(tokens),
    }


def source(path: str) -> str:
    """A human-readable description of `path`."""
    return _named(path).describe() if path in NAMED else path


def replacement_facts(count: int) -> dict[str, object]:
    """The data card's entry for `count` replaced undecodable places."""
    return {"undecodable": f"{count:,} places became U+FFFD"} if count else {}


def describe(name: str, tokenizer: Tokenizer) -> str:
    return f"{name}, {tokenizer.vocab} tokens" if tokenizer.json else "bytes"


def counts(tokens: Tokens) -> dict[str, object]:
    """The data card's token counts, and the held-out text's bytes per token and train overlap."""
    ratio = tokens.bytes_per_token
    return {
        "train_tokens": len(tokens.train),
        "heldout_tokens": len(tokens.heldout),
        **({} if ratio is None else {"bytes_per_token": round(ratio, 4)}),
        "overlap_length": ngrams.OVERLAP_LENGTH,
        "overlap": ngrams.overlap(tokens.train, tokens.heldout, ngrams.OVERLAP_LENGTH),
    }
