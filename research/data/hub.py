"""Text sets of the Hugging Face hub, or local folders of the same kinds of files."""

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.config.types import OpenUnit, PositiveInt
from research.data import hub_access, subwords, text, token_files, tokenizers
from research.data.sampling import is_heldout
from research.data.subwords import package
from research.data.token_files import Tokens
from research.errors import BadInput, first_line
from research.io import files

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # of a set on the hub
TIMEOUT = 30.0  # seconds


def load(
    *,
    path: str,
    subset: str | None,
    split: str,
    field: str,
    documents: PositiveInt | None,
    context: PositiveInt,
    heldout: OpenUnit,
    tokenizer: str,
    vocab: PositiveInt | None,
) -> dict[str, object]:
    """The fields of a `Dataset` of token windows.

    `path` is the name of a set on the hub, or a local folder that `datasets` can load (.jsonl,
    .parquet, .txt). `field` is the column of the text. Of the set's own `split`, at most the first
    `documents` are read, once, as a stream, into token files in the cache; repeats are dropped and
    the share `heldout` is chosen by the hash of a document, as by "text". Memory grows by about 100
    bytes a document. "bpe" is trained on the training documents among those with which the stream
    begins, tokenizers.TRAINED_ON bytes of them.

    What is in the cache is used without a network, so a set can be prepared where there is one. The
    code of a set is never run. Raises BadInput, naming the set, when it cannot be loaded.
    """
    tokenizers.check(tokenizer, vocab)
    name = {"subset": subset, "split": split, "field": field, "documents": documents}
    name |= {"heldout": heldout, "tokenizer": tokenizer, "vocab": vocab}
    if tokenizer not in ("bytes", "bpe"):
        name["tokenizer"] = tokenizers.choose(tokenizer, vocab, ()).digest
    where, revision = _revision(path, name)
    tokens = _tokens(where, revision, tokenizer, tuple(name.items()))
    part = "/".join(part for part in (path, subset, split) if part)
    return {
        **text.windows(path, tokens, context),
        "card": functools.partial(_card, part, revision, documents, tokenizer, tokens),
    }


def _card(
    part: str, revision: str, documents: int | None, tokenizer: str, tokens: Tokens
) -> dict[str, object]:
    some = f", its first {documents:,} documents" if documents else ""
    return {
        "source": f"{part}{some}, revision {revision[:12]}",
        "digest": tokens.digest,
        "tokenizer": text.describe(tokenizer, tokens.tokenizer),
        **text.counts(tokens),
    }


def _revision(path: str, name: dict) -> tuple[str, str]:
    """The path, and what changes when the content behind it does: of a folder, the digest of its
    files; of a set on the hub, its commit. Without a network, that of the last time."""
    if os.path.isdir(path):
        return path, _folder(path)
    if not NAME.fullmatch(path):
        raise BadInput(f"data.path: {path}: no folder, and no name of a set on the hub")
    package("datasets", f"data.path: {path}")
    last = files.cache("hub") / f"{files.digest_of({**name, 'path': path})}.json"
    try:
        revision = _commit(path)
    except Exception as error:
        if last.is_file():
            return path, str(files.read_json(last).get("revision"))
        raise BadInput(
            f"data.path: {path}: not in the cache, and the hub does not give it: "
            f"{first_line(error)}"
        ) from error
    files.write_json(last, {"path": path, "revision": revision})
    return path, revision


def _commit(path: str) -> str:
    import huggingface_hub

    return str(huggingface_hub.HfApi().dataset_info(path, timeout=TIMEOUT).sha)


def _folder(path: str) -> str:
    paths = hub_access.check_folder(path)
    if not paths:
        raise BadInput(f"data.path: {path}: the folder is empty")
    return _contents(path, tuple(paths), tuple(files.stamp(p, "data.path") for p in paths))


@functools.lru_cache(maxsize=4)
def _contents(path: str, paths: tuple[Path, ...], stamps: tuple) -> str:
    parts = [(str(p.relative_to(path)).encode(), files.digest_file(p).encode()) for p in paths]
    return files.digest(*itertools.chain.from_iterable(parts))


@functools.lru_cache(maxsize=4)
def _tokens(path: str, revision: str, tokenizer: str, items: tuple) -> Tokens:
    name = dict(items)
    place = {} if os.path.isdir(path) else {"path": path}
    key = files.digest_of({**name, **place, "revision": revision})
    if (cached := token_files.find(key)) is not None:
        return cached
    stream = _split(_documents(path, revision, name), name["heldout"])
    if tokenizer != "bpe":
        return token_files.store(key, tokenizers.choose(tokenizer, name["vocab"], ()), stream)
    first, size = [], 0
    for heldout, document in stream:
        first.append((heldout, document))
        size += 0 if heldout else len(document)
        if size >= subwords.TRAINED_ON:
            break
    bpe = tokenizers.choose("bpe", name["vocab"], (d for heldout, d in first if not heldout))
    return token_files.store(key, bpe, itertools.chain(first, stream))


def _split(documents: Iterator[str], heldout: float) -> Iterator[tuple[bool, bytes]]:
    """(held out?, document), each once: as text.split, but one at a time."""
    hashes: set[int] = set()
    for document in documents:
        raw = document.encode()
        name = hashlib.sha256(raw).digest()
        prefix = int.from_bytes(name[8:16], "big")  # 64 bits: two of 10^8 are equal once in 4,000
        if raw and prefix not in hashes:
            hashes.add(prefix)
            yield is_heldout(name, heldout), raw


def _documents(path: str, revision: str, name: dict) -> Iterator[str]:
    rows, field = _rows(path, revision, name), name["field"]
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise BadInput(
                f"data.path: {path}: cannot be read after {number} documents: {first_line(error)}"
            ) from error
        number += 1
        if not isinstance(row.get(field), str):
            raise BadInput(
                f"data.field: {field!r} of document {number} of {path} is not text; "
                f"there are {', '.join(row)}"
            )
        try:
            row[field].encode()
        except UnicodeEncodeError as error:  # half of a pair, from an escape in JSON
            raise BadInput(
                f"data.field: document {number} of {path}: character {error.start} is not valid "
                f"Unicode ({error.reason})"
            ) from error
        yield row[field]


def _rows(path: str, revision: str, name: dict) -> Iterator[dict[str, Any]]:
    package("datasets", f"data.path: {path}")
    try:
        splits = hub_access.load_safe_builder(path, name["subset"], revision).as_streaming_dataset()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"data.path: {path}: cannot be loaded: {first_line(error)}") from error
    if name["split"] not in splits:
        raise BadInput(f"data.split: {name['split']!r}: {path} has {', '.join(map(str, splits))}")
    return itertools.islice(iter(splits[name["split"]]), name["documents"])
