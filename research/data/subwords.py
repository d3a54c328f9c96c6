"""Subword tokenizers: byte-level BPE trained here, or any tokenizer.json."""

import collections
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import os
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from research.data.byte_tokenizer import LARGEST_VOCAB, Tokenizer
from research.errors import BadInput, first_line
from research.io import files
from research.io.extras import install_command

END = "<|endoftext|>"
# What may stand between documents, the first that a vocabulary has.
SEPARATORS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
TRAINED_ON = 64 << 20  # bytes of training documents
SAMPLE = 16  # pieces of text on which two encoders are compared
# The split rule of ByteLevel, for tiktoken, whose stack a long run of spaces overflows.
SPLIT = r"'(?:s|t|d|m|re|ve|ll)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a byte of a letter that has no token
LONG_SPACE = re.compile(r"\s{1024}")


class Subwords(Tokenizer):
    """What a `tokenizer.json` describes, by the library `tokenizers`.

    Where the merges of a byte-level BPE can be handed to tiktoken, and both give the same ids for a
    sample of the text, tiktoken encodes documents (about ten times faster). `what` begins the
    errors of a description that is none.
    """

    def __init__(self, text: str, what: str = "tokenizer"):
        self.json = text
        self.digest = files.digest(text.encode())
        self._made = _build(text, what)
        ids = self._made.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values(), default=-1) + 1
        if not 0 < self.vocab <= LARGEST_VOCAB:
            raise BadInput(f"{what}: ids up to {self.vocab - 1}; expected 1 to {LARGEST_VOCAB}")
        separators = [ids[name] for name in SEPARATORS if name in ids]
        if not separators:
            raise BadInput(
                f"{what}: none of {' '.join(SEPARATORS)} is in the vocabulary; add one of them, "
                "to stand between documents"
            )
        self.separator = separators[0]
        self._fast: Any = None
        self._compared = False

    def encode(self, text: str | bytes) -> np.ndarray:
        return self._slowly([_as_text(text)])[0]

    def encode_each(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        texts = [_as_text(document) for document in documents]
        if not self._compared and texts:
            self._compared = True
            self._fast = self._agreeing(_tiktoken(self._spec), texts)
        return self._quickly(texts)

    def encode_documents(self, documents: Sequence[bytes]) -> np.ndarray:
        between = np.array([self.separator], np.uint32)
        parts = [part for ids in self.encode_each(documents) for part in (between, ids)]
        return np.concatenate(parts[1:]) if parts else np.zeros(0, np.uint32)

    def count_bytes(self, inputs: np.ndarray, targets: np.ndarray) -> int:
        first = (inputs == self.separator) & (targets != self.separator)
        return int(self._lengths[targets].sum() - self._prefix * first.sum())

    def losses(
        self, documents: Sequence[bytes], ids: Sequence[np.ndarray]
    ) -> tuple[int, int, list[str]]:
        """What does not come back when the `ids` of documents are decoded: the bytes of lines that
        differ, the first of them before and after; and how many documents come back, but not with
        the bytes that `count_bytes` counts."""
        lost, miscounted, example = 0, 0, []
        decoded = self._made.decode_batch([list(map(int, i)) for i in ids], False)
        for document, own, back in zip(documents, ids, decoded, strict=True):
            if (text := _as_text(document)) == back:
                counted = int(self._lengths[own].sum()) - self._prefix * bool(len(own))
                miscounted += counted != len(document)
                continue
            before, after = collections.Counter(text.split("\n")), back.split("\n")
            changed = list((before - collections.Counter(after)).elements())
            lost += sum(len(line.encode()) + 1 for line in changed) or 1
            pairs = zip(text.split("\n"), after, strict=False)
            example = example or next((_around(a, b) for a, b in pairs if a != b), [])
        return lost, miscounted, example

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        """[vocab], the bytes of text that a token stands for inside a document."""
        if (self._spec["decoder"] or {}).get("type") == "ByteLevel":
            out = np.array([len(piece) for piece in self._pieces])
        else:
            # After another one, since decoders treat the first token of a text in their own way.
            anchor = int(self.encode(self._letter)[-1])
            pairs = [[anchor, i] for i in range(self.vocab)]
            alone, *texts = self._made.decode_batch([[anchor], *pairs], False)
            out = np.array([len(text.encode()) for text in texts]) - len(alone.encode())
            for piece, i in self._made.get_vocab(with_added_tokens=False).items():
                if self._spec["model"].get("byte_fallback") and BYTE.fullmatch(piece):
                    out[i] = 1
        out[self.separator] = 1
        return out

    @functools.cached_property
    def _prefix(self) -> int:
        """The bytes that the first token of a document has too many: a space put before it."""
        return int(self._lengths[self.encode(self._letter)].sum()) - len(self._letter.encode())

    @functools.cached_property
    def _letter(self) -> str:
        """A text of one letter that comes back from its tokens."""
        letters = (*string.ascii_letters, *string.digits, "的", "の", "и", "a")
        known = (
            c for c in letters if len(ids := self.encode(c)) and self.decode(ids) == c.encode()
        )
        return next(known, "x")

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        if outside := [int(i) for i in ids if not 0 <= i < self.vocab]:
            raise BadInput(f"token {outside[0]}: expected ids below {self.vocab}")
        if (self._spec["decoder"] or {}).get("type") == "ByteLevel":  # exact, even within a letter
            return b"".join(self._pieces[int(i)] for i in ids)
        return self._made.decode([int(i) for i in ids], skip_special_tokens=False).encode()

    @functools.cached_property
    def _spec(self) -> dict:
        return json.loads(self._made.to_str())  # unlike the file, with every key

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        out, table = [b""] * self.vocab, _byte_of()
        for piece, i in self._made.get_vocab(with_added_tokens=False).items():
            plain = all(c in table for c in piece)
            out[i] = bytes(table[c] for c in piece) if plain else piece.encode()
        for token in self._spec["added_tokens"]:
            out[token["id"]] = token["content"].encode()
        return out

    def _slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._made.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def _quickly(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._fast is None:
            return self._slowly(texts)
        safe = ["" if LONG_SPACE.search(text) else text for text in texts]
        threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
        out = self._fast.encode_ordinary_batch(safe, num_threads=threads)
        return [
            np.array(ids, np.uint32) if text == encoded else self._slowly([text])[0]
            for ids, text, encoded in zip(out, texts, safe)
        ]

    def _agreeing(self, fast: Any, texts: Sequence[str]) -> Any:
        """`fast`, if it gives our ids for a sample of `texts`."""
        if fast is None:
            return None
        sample = [text[:8192] for text in texts[:: max(1, len(texts) // SAMPLE)]]
        sample = [text for text in sample if not LONG_SPACE.search(text)]
        same = [
            fast.encode_ordinary(t) == list(ids) for t, ids in zip(sample, self._slowly(sample))
        ]
        return fast if all(same) else None


def _build(text: str, what: str) -> Any:
    """The library's object, which adds nothing to a text and cuts nothing from it."""
    library = package("tokenizers", what)
    try:
        tokenizer = library.Tokenizer.from_str(text)
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_batch_fast(["probe"], add_special_tokens=False)
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BadInput(f"{what}: not a tokenizer.json: {first_line(error)}") from error
        raise
    return tokenizer


def _tiktoken(spec: dict) -> Any:
    """An encoder from the merges of a byte-level BPE; None where there is no tiktoken, or it could
    not give the same ids: it knows ranks alone, so the merges must be in the order of the ids."""
    try:
        import tiktoken
    except ImportError:
        return None
    model, split = spec["model"], spec["pre_tokenizer"] or {}
    unlike = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if (
        (model["type"], split.get("type"), spec["normalizer"]) != ("BPE", "ByteLevel", None)
        or split["add_prefix_space"]
        or not split["use_regex"]
        or model["ignore_merges"]
        or any(model[key] for key in unlike)
        or not all(token["special"] for token in spec["added_tokens"])
    ):
        return None
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    ids = {piece: i for piece, i in model["vocab"].items() if piece not in special}
    merged = ["".join(pair) for pair in model["merges"]]
    table, order = _byte_of(), [ids.get(piece, -1) for piece in merged]
    if (
        sorted(set(ids) - set(merged)) != sorted(table)
        or order != sorted(set(order))
        or max(ids[c] for c in table) > min(order, default=LARGEST_VOCAB)
    ):
        return None
    ranks = {bytes(table[c] for c in piece): i for piece, i in ids.items()}
    return tiktoken.Encoding("bpe", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)


@functools.cache
def _byte_of() -> dict[str, int]:
    """The printable stand-in of every byte in a byte-level vocabulary -> the byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + k): b for k, b in enumerate(hidden)}


def _around(one: str, other: str) -> list[str]:
    """Where two texts first differ, and a few letters around it."""
    pairs = enumerate(zip(one, other))
    first = next((k for k, (a, b) in pairs if a != b), min(len(one), len(other)))
    at = max(0, first - 12)
    return [one[at : at + 32], other[at : at + 32]]


def _as_text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "replace")


def package(name: str, what: str) -> Any:
    """An optional package. Raises BadInput that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(f"{what}: needs {name}; {install_command('text')}") from error


def trained_bpe(vocab: int, documents: Iterable[bytes]) -> Tokenizer:
    """Byte-level BPE of `vocab` tokens (Sennrich et al. 2016, Radford et al. 2019), trained once
    and then taken from the cache.

    Of a large corpus, a sample of TRAINED_ON bytes is looked at: the documents with the smallest
    hashes, so it does not depend on their order. Raises BadInput if the text is too small for so
    many tokens.
    """
    by_name = {hashlib.sha256(document).digest(): document for document in documents}
    names = sorted(by_name)
    sizes = itertools.accumulate(len(by_name[name]) for name in names)
    names = [name for name, size in zip(names, sizes) if size <= TRAINED_ON] or names[:1]
    settings = {"model": "byte-level BPE", "special": [END], "vocab": vocab}
    name = files.digest(b"".join(names), files.canonical(settings))
    path = files.cache("tokenizers") / f"{name}.json"
    with contextlib.suppress(
        OSError, UnicodeDecodeError, BadInput
    ):  # missing or damaged: train again
        return Subwords(path.read_text(encoding="utf-8"))
    text = train_bpe(vocab, [_as_text(by_name[name]) for name in names])
    tokenizer = Subwords(text)
    if tokenizer.vocab != vocab:
        raise BadInput(
            f"data.vocab: {vocab}, but the training text gives no more than "
            f"{tokenizer.vocab} tokens"
        )
    files.write_atomic(path, text)
    return tokenizer


def train_bpe(vocab: int, texts: Sequence[str]) -> str:
    library = package("tokenizers", "data.tokenizer: bpe")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def bytes_json() -> str:
    """Our bytes as a tokenizer.json: the ids of other programs that read it are the bytes. 0, which
    no text holds, is the special token that ends a document; under its stand-in of letters it would
    be found in texts that have that letter."""
    letters = {byte: letter for letter, byte in _byte_of().items()} | {Tokenizer.separator: "\0"}
    vocab = {letters[byte]: byte for byte in range(256)}
    kept = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": Tokenizer.separator, "content": "\0", **kept, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    level |= {"use_regex": False}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    made = {
        "version": "1.0",
        **rest,
        "added_tokens": [end],
        "pre_tokenizer": level,
        "decoder": level,
    }
    return files.indented({**made, "model": {"type": "BPE", "vocab": vocab, "merges": []}})


def is_bytes(text: str) -> bool:
    """Whether a tokenizer.json is that of `bytes_json`."""
    try:
        return json.loads(text) == json.loads(bytes_json())
    except (ValueError, RecursionError):
        return False
