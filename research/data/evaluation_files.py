"""Files that are evaluated beside what a data set holds out, read as the data set reads its own:
with its tokenizer, its classes and its scale."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from research.data import Dataset, Split, ngrams, text, token_id_files
from research.data.tokens import Tokens
from research.errors import BadInput
from research.io import files

# Training tokens up to which the overlap is measured: it reads them all, some 30 ns each.
MOST_COMPARED = 1 << 28


class EvaluationFile(NamedTuple):
    """The examples of a file, how many bytes of text its targets are, where that is known, a digest
    of its content, the share of it that the training set holds too (None: not measured): of runs of
    32 tokens, or of rows; and, of text, its hashes for a number of classes (see contents)."""

    split: Split
    count_bytes: Callable[[np.ndarray, np.ndarray], int] | None
    digest: str
    overlap: float | None
    contents: Callable[[int], np.ndarray] | None = None


def read(path: str, data: Mapping[str, Any], dataset: Dataset) -> EvaluationFile:
    """The file at `path` for a data set of the section `data` of a config. Raises BadInput for what
    it cannot be read as, and where it gives not one example."""
    known = files.canonical({k: v for k, v in data.items() if k != "seed"}).decode()
    stamp = _stamp(path, dataset.load_set is None)
    return _read(path, known, stamp, _Same(dataset))


class _Same(NamedTuple):
    """A data set, equal to another of the same content: it is not hashable itself."""

    dataset: Dataset

    def __hash__(self) -> int:
        return hash(self.dataset.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.dataset.digest == self.dataset.digest


def _stamp(path: str, of_text: bool) -> tuple:
    """Changes with a file; the names and folders that other data sets know have none."""
    if of_text:
        return text.stamp(path)
    return files.stamp(path, "data.path") if os.path.isfile(path) else ()


@functools.lru_cache(maxsize=16)  # every point of a sweep asks
def _read(path: str, known: str, stamp: tuple, same: _Same) -> EvaluationFile:
    del stamp
    data, dataset = json.loads(known), same.dataset
    if dataset.load_set is not None:
        return _of_rows(dataset.load_set(path, data), dataset)
    if not (corpora := _corpora(dataset.train)):
        raise BadInput(f"data.name: {data['name']} is made here, and has no other files")
    return _of_text(path, data, corpora)


def _corpora(train: Any) -> list[Tokens]:
    """The tokenized sources of a training set of windows of text."""
    parts = getattr(train, "parts", [train])
    return [part.corpus for part in parts if isinstance(part, text.Windows)]


def _of_text(path: str, data: Mapping[str, Any], corpora: list[Tokens]) -> EvaluationFile:
    first, context = corpora[0], data["context"]
    if path in (data.get("paths") or ()):  # one source of a mixture: what is held out of it
        tokens = corpora[data["paths"].index(path)]
    elif path.endswith(".bin"):
        tokens = token_id_files.ids(path, first.tokenizer, first.vocab, 1.0)
    else:
        how = data.get("undecodable") or "error"  # the hub's have none
        documents, _ = text.documents(path, data["field"], 0.0, how)
        if not first.tokenizer.json and first.bytes_per_token is None:
            raise BadInput(f"data.path: {path}: is text, but those of training are ids; expected a "
                           "file of ids, or data.tokenizer, their tokenizer.json")  # fmt: skip
        tokens = text.tokenize_split(([], [d for d in documents if d]), first.tokenizer)
        if tokens.vocab != first.vocab:
            raise BadInput(f"data.vocab: {first.vocab}, but the tokenizer has {tokens.vocab}")
    if len(tokens.heldout) <= context:
        raise BadInput(
            f"data.path: {path}: {len(tokens.heldout)} tokens; data.context = {context} needs at "
            f"least {context + 1}"
        )
    overlap = None
    if sum(len(corpus.train) for corpus in corpora) <= MOST_COMPARED:
        train = np.concatenate([np.asarray(corpus.train) for corpus in corpora])
        overlap = ngrams.overlap(train, tokens.heldout, ngrams.OVERLAP_LENGTH)
    split = text.Windows(tokens, "heldout", context)
    contents = functools.partial(text.contents, (tokens,), "heldout")
    return EvaluationFile(split, tokens.count_bytes, tokens.digest, overlap, contents)


def _of_rows(split: Split, dataset: Dataset) -> EvaluationFile:
    rows, own = _hashes(split), _hashes(dataset.train)
    digest = files.digest(rows.tobytes(), dataset.digest.encode())
    return EvaluationFile(split, None, digest, float(np.isin(rows, own).mean()))


def _hashes(split: Split) -> np.ndarray:
    """One number for each example, by all that it is."""
    out = []
    for start in range(0, len(split), 1024):
        rows = split.rows(np.arange(start, min(start + 1024, len(split))))
        flat = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in rows.values()]
        out += [int(files.digest(*(x[i].tobytes() for x in flat))[:16], 16)
                for i in range(len(flat[0]))]  # fmt: skip
    return np.array(out, np.uint64)
