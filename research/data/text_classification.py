"""Text classification: token windows, each with the class of its document."""

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.config.types import OpenUnit, PositiveInt
from research.data import (
    hub_access,
    labels,
    records,
    sampling,
    standard_library,
    text,
    token_files,
    tokenizers,
)
from research.data.byte_tokenizer import Tokenizer
from research.errors import BadInput
from research.io import files

MOST_BYTES = 4 << 30  # of windows held in memory
Labeled = tuple[str, bytes]  # class, document


@dataclass(frozen=True)
class Examples:
    """Windows [n, T] and their classes [n]."""

    windows: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{"inputs": [B, T], "targets": [B]} int32."""
        return {
            "inputs": self.windows[index].astype(np.int32),
            "targets": self.classes[index].astype(np.int32),
        }


def load(
    *,
    path: str,
    field: str,
    label_field: str,
    classes: PositiveInt | None,
    examples: PositiveInt | None,
    context: PositiveInt,
    heldout: OpenUnit,
    tokenizer: str,
    undecodable: Literal["error", "replace"] = "error",
) -> dict[str, object]:
    """The fields of a `Dataset` of classified token windows.

    `path` is "stdlib" (class: top-level package), a folder with one subfolder of .txt and .jsonl
    files, or one such file, per class, or a `.jsonl` with text in `field` and a class in
    `label_field`. The `classes` with the most text are used (none: all). Documents are split as by
    "text", so what a language model of the same corpus never saw is held out here too; documents
    that occur in two classes are dropped.

    Documents are cut into windows of `context` tokens, the last one padded with the separator.
    `examples` windows are trained on (none: all), balanced over the classes and nested: a smaller
    number is a subset of a larger one.

    `tokenizer` is "bytes" or the path of a `tokenizer.json`, such as the one in a run's directory.
    Raises BadInput for unreadable data and too few classes or windows.
    """
    if tokenizer == "bpe":
        raise BadInput(
            "data.tokenizer: bpe: a classifier needs the tokenizer of its language model; give the "
            "path of its tokenizer.json, or bytes"
        )
    stamps = (_stamp(path), tokenizers.stamp(tokenizer))
    names = (field, label_field)
    loaded = _load(path, names, classes, context, heldout, tokenizer, undecodable, stamps)
    train, heldout_part, names, reader, digest, _ = loaded
    if examples is not None and examples > len(train):
        raise BadInput(
            f"data.examples: {examples}, but {path} gives {len(train)} training windows of "
            f"{context} tokens"
        )
    used = Examples(train.windows[:examples], train.classes[:examples])
    pad = reader.separator
    return {
        "train": used,
        "heldout": heldout_part,
        "targets": "classes",
        "facts": {"vocab": reader.vocab, "context": context, "classes": len(names), "pad": pad},
        "digest": digest,
        "unique_tokens": len(used),
        "notes": {"class_names": list(names)},
        "tokenizer": reader.json,
        "load_set": functools.partial(load_set, names=names, reader=reader),
        "contents": functools.partial(_contents, {"train": used, "heldout": heldout_part}, pad),
        "card": functools.partial(_card, path, tokenizer, loaded),
    }


def load_set(
    path: str, data: Mapping[str, Any], names: Sequence[str], reader: Tokenizer
) -> Examples:
    """All documents of another source, as the data set of the options `data` cuts and numbers its
    own; those of classes that are not among its `data.classes` are left out. Raises BadInput."""
    documents, _ = _documents(path, data["field"], data["label_field"], 0.0, data["undecodable"])
    labeled = list(documents)
    known = [(label, document) for label, document in labeled if label in names and document]
    if data["classes"] is None and len(known) < len(labeled):
        unknown = next(label for label, _ in labeled if label not in names)
        raise BadInput(f"data.path: {path} has a class {unknown!r:.50} of no training document")
    every = reader.encode_each([document for _, document in known])
    rows = [
        (b"", names.index(label), window)
        for (label, _), ids in zip(known, every)
        for window in _windows(ids, data["context"], reader)
    ]
    if not rows:
        raise BadInput(f"data.path: {path}: no document of the classes {', '.join(names)}")
    return _examples(rows)


def _contents(parts: Mapping[str, Examples], pad: int, part: str, classes: int) -> np.ndarray:
    from research.data.row_contents import of_windows

    return of_windows(parts[part].windows, pad, classes)


def _card(path: str, tokenizer: str, loaded: tuple) -> dict[str, object]:
    train, heldout, names, reader, digest, replaced = loaded
    counts = [np.bincount(part.classes, minlength=len(names)) for part in (train, heldout)]
    words = (f"{name} ({a:,} and {b:,})" for name, a, b in zip(names, *counts))
    return {
        "source": text.source(path),
        "digest": digest,
        "tokenizer": text.describe(tokenizer, reader),
        **text.replacement_facts(replaced),
        "train_examples": len(train),
        "heldout_examples": len(heldout),
        "classes": ", ".join(words),
    }


def _stamp(path: str) -> tuple:
    if not os.path.isdir(path):
        return text.stamp(path)
    return tuple((str(p), text.stamp(str(p))) for _, p in _class_files(path))


@functools.lru_cache(maxsize=4)
def _load(
    path: str,
    fields: tuple[str, str],
    classes: int | None,
    context: int,
    heldout: float,
    tokenizer: str,
    undecodable: str,
    stamps: tuple,
) -> tuple[Examples, Examples, tuple[str, ...], Tokenizer, str, int]:
    reader = tokenizers.read(tokenizer)
    documents, replaced = _documents(path, *fields, heldout, undecodable)
    labeled = _drop_ambiguous(documents)
    names = _largest_classes(path, labeled, classes, heldout)
    train: list[tuple[bytes, int, np.ndarray]] = []
    heldout_rows: list[tuple[bytes, int, np.ndarray]] = []
    chosen = {name: item for name, item in labeled.items() if item[0] in names}
    every = reader.encode_each([document for _, document in chosen.values()])
    room = token_files.kind_of(reader.vocab).itemsize * context
    if (size := room * sum(-(-len(ids) // context) for ids in every)) > MOST_BYTES:
        raise BadInput(
            f"data.context: {context:,} makes {size / 1e9:.3g} GB of windows of the documents of "
            f"{path}; expected at most {MOST_BYTES / 1e9:.1f}"
        )
    for (name, (label, _)), ids in zip(chosen.items(), every):
        side = heldout_rows if sampling.is_heldout(name, heldout) else train
        windows = _windows(ids, context, reader)
        side += [(name, names.index(label), window) for window in windows]
    if not train or not heldout_rows:
        raise BadInput(f"data.tokenizer: {tokenizer}: leaves no tokens of {path}")
    parts = _examples(_sort_by_hash(train)), _examples(heldout_rows)
    arrays = (x.tobytes() for part in parts for x in (part.windows, part.classes))
    digest = files.digest(*arrays, "\n".join(names).encode(), reader.digest.encode())
    return *parts, names, reader, digest, replaced


def _drop_ambiguous(documents: Iterable[Labeled]) -> dict[bytes, Labeled]:
    """SHA-256 → (class, document), without documents that occur in more than one class."""
    out: dict[bytes, Labeled] = {}
    several = set()
    for label, document in documents:
        name = hashlib.sha256(document).digest()
        if document and out.setdefault(name, (label, document))[0] != label:
            several.add(name)
    return {name: labeled for name, labeled in out.items() if name not in several}


def _largest_classes(
    path: str, labeled: Mapping[bytes, Labeled], classes: int | None, heldout: float
) -> tuple[str, ...]:
    """The `classes` names with the most text among those with documents on both sides of the
    split, sorted."""
    sizes: dict[str, list[int]] = {}
    for name, (label, document) in labeled.items():
        sizes.setdefault(label, [0, 0])[sampling.is_heldout(name, heldout)] += len(document)
    usable = sorted((label for label in sizes if all(sizes[label])), key=lambda x: -sum(sizes[x]))
    lost = sorted(set(sizes) - set(usable))
    if classes is None and lost:
        raise BadInput(
            f"data.path: {path}: class {lost[0]!r} has no document to train on or none held out "
            f"(data.heldout = {heldout:g}); give it more, or the number of data.classes to keep"
        )
    count = len(usable) if classes is None else classes
    if not 2 <= count <= len(usable):
        raise BadInput(
            f"data.classes: {count}; {path} has {len(usable)} classes with documents to train on "
            "and held out, and at least 2 are needed; none takes all"
        )
    return tuple(sorted(usable[:count]))


def _windows(ids: np.ndarray, context: int, reader: Tokenizer) -> np.ndarray:
    """[n, T], the last window padded with the separator."""
    token_files.check_ids(ids, reader.vocab, "data.tokenizer")
    out = np.full(
        -(-len(ids) // context) * context, reader.separator, token_files.kind_of(reader.vocab)
    )
    out[: len(ids)] = ids
    return out.reshape(-1, context)


def _sort_by_hash(rows: list[tuple[bytes, int, np.ndarray]]) -> list[tuple[bytes, int, np.ndarray]]:
    """Round-robin over the classes, by hash within a class: every prefix is balanced."""
    hashed = sorted(rows, key=lambda row: hashlib.sha256(row[0] + row[2].tobytes()).digest())
    return [
        hashed[i] for i in labels.interleave_classes(np.array([label for _, label, _ in hashed]))
    ]


def _examples(rows: list[tuple[bytes, int, np.ndarray]]) -> Examples:
    return Examples(np.stack([row for *_, row in rows]), np.array([label for _, label, _ in rows]))


def _documents(
    path: str, field: str, label_field: str, heldout: float, undecodable: str
) -> tuple[Iterable[Labeled], int]:
    """(class, document) pairs, and the number of replaced undecodable places."""
    if path == "stdlib":
        labeled = [
            (place.parts[0], source)
            for place, source in standard_library.sources()
            if len(place.parts) > 1 and place.parts[0].isidentifier()
        ]
        return labeled, 0
    if os.path.isdir(path):
        labeled, replaced = [], 0
        for label, file in _class_files(path):
            documents, n = text.documents(str(file), field, heldout, undecodable)
            labeled += [(label, document) for document in documents]
            replaced += n
        return labeled, replaced
    if not path.endswith(".jsonl"):
        raise BadInput(f"data.path: {path}: expected stdlib, a folder or a .jsonl file")
    names = {"data.field": field, "data.label_field": label_field}
    rows, replaced = records.read(path, names, undecodable)
    pairs = list(rows)
    what = f"{label_field!r} (data.label_field)"
    classes = labels.stripped(path, what, [label for _, label in pairs])
    return [(c, document.encode()) for c, (document, _) in zip(classes, pairs)], replaced


def _class_files(path: str) -> list[tuple[str, Path]]:
    """(class, file) pairs of a folder with a subfolder or a file per class."""
    class_files = [
        (file.stem if file.parent == Path(path) else file.relative_to(path).parts[0], file)
        for file in hub_access.check_folder(path)
        if file.suffix in (".txt", ".jsonl")
    ]
    class_files.sort(key=lambda pair: pair[1])
    if not class_files:
        raise BadInput(f"data.path: {path}: the folder holds no .txt or .jsonl files of classes")
    return class_files
