"""Text from several files, each drawn by its weight."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from research.config.types import OpenUnit, Positive, PositiveInt
from research.data import ngrams, text, tokenizers
from research.data.text import Windows
from research.data.tokens import Tokens
from research.errors import BadInput
from research.io import files


@dataclass(frozen=True)
class ConcatenatedWindows:
    """The windows of several sources, numbered consecutively, one source after the other."""

    parts: tuple["Windows | WindowSubset", ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        starts = np.cumsum([0, *map(len, self.parts)])
        source = np.searchsorted(starts, index, side="right") - 1
        out: dict[str, np.ndarray] = {}
        for i in np.unique(source):
            here = source == i
            for name, x in self.parts[i].rows(index[here] - starts[i]).items():
                out.setdefault(name, np.empty((len(index), *x.shape[1:]), x.dtype))[here] = x
        return out


@dataclass(frozen=True)
class WindowSubset:
    """The windows of a source that `numbers` selects."""

    windows: Windows
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return self.windows.rows(self.numbers[index])


def load(
    *,
    paths: list[str],
    weights: list[Positive],
    context: PositiveInt,
    heldout: OpenUnit,
    tokenizer: str,
    field: str,
    vocab: PositiveInt | None,
    undecodable: Literal["error", "replace"] = "error",
) -> dict[str, object]:
    """The fields of a `Dataset` of token windows from several sources.

    `weights` are the shares of the windows that are drawn from each of `paths` (any scale), which
    are what `path` is for "text", but no `.bin`. Each is split as there, by the hash of a document,
    so one that is in two sources is on the same side in both. One tokenizer serves all; "bpe" is
    trained on all training documents, each once, whatever the weights.

    The held-out set is in proportion to the weights too, so that its loss is that of the mixture:
    as many windows as the source that runs out first allows, evenly spaced in the others.
    """
    if not paths or len(paths) != len(weights):
        raise BadInput(
            f"data.weights: {len(weights)} for {len(paths)} data.paths; expected as many"
        )
    with _errors_name_paths():
        stamps = (*map(text.stamp, paths), tokenizers.stamp(tokenizer))
        corpora = _sources(tuple(paths), field, heldout, tokenizer, vocab, undecodable, stamps)
        sources = [text.windows(path, t, context) for path, t in zip(paths, corpora)]
    train = [Windows(tokens, "train", context) for tokens in corpora]
    evaluated = _proportional_subsets([Windows(t, "heldout", context) for t in corpora], weights)
    rows = [
        {"path": path, "weight": weight, "unique_tokens": len(tokens.train)}
        for path, weight, tokens in zip(paths, weights, corpora)
    ]
    digest = files.digest(*(t.digest.encode() for t in corpora), files.canonical(list(weights)))
    return {
        **sources[0],
        "train": ConcatenatedWindows(tuple(train)),
        "heldout": ConcatenatedWindows(tuple(evaluated)),
        "digest": digest,
        "unique_tokens": sum(len(tokens.train) for tokens in corpora),
        "notes": {"sources": rows},
        "contents": functools.partial(text.contents, corpora),
        "count_bytes": corpora[0].count_bytes if all(t.count_bytes for t in corpora) else None,
        "mixture": tuple((len(part), weight) for part, weight in zip(train, weights)),
        "card": functools.partial(
            _card, digest, tokenizer, corpora, rows, [len(h) for h in evaluated]
        ),
    }


@contextlib.contextmanager
def _errors_name_paths() -> Iterator[None]:
    """Errors about data.path, which `text` raises, are raised as errors about data.paths."""
    try:
        yield
    except BadInput as error:
        words = (
            f"data.paths:{problem.removeprefix('data.path:')}"
            if problem.startswith("data.path:")
            else problem
            for problem in error.problems
        )
        raise BadInput(*words) from error


@functools.lru_cache(maxsize=2)
def _sources(
    paths: tuple[str, ...],
    field: str,
    heldout: float,
    tokenizer: str,
    vocab: int | None,
    undecodable: str,
    stamps: tuple,
) -> tuple[Tokens, ...]:
    if ids := [path for path in paths if path.endswith(".bin")]:
        raise BadInput(f"data.paths: {ids[0]}: token ids cannot be mixed; expected text")
    return text.corpora(paths, field, heldout, tokenizer, vocab, undecodable)


def _proportional_subsets(parts: Sequence[Windows], weights: Sequence[float]) -> list[WindowSubset]:
    share = np.asarray(weights) / sum(weights)
    lengths = np.array([len(part) for part in parts])
    counts = np.floor(share * (lengths / share).min() + 1e-6).astype(np.int64)
    return [
        WindowSubset(part, np.arange(count) * length // count)
        for part, length, count in zip(parts, lengths, np.clip(counts, 1, lengths))
    ]


def _card(
    digest: str,
    tokenizer: str,
    corpora: Sequence[Tokens],
    rows: Sequence[Mapping[str, object]],
    windows: Sequence[int],
) -> dict[str, object]:
    train, heldout = (
        np.concatenate([getattr(t, side) for t in corpora]) for side in ("train", "heldout")
    )
    total = sum(float(str(row["weight"])) for row in rows)
    words = [
        f"{text.source(str(row['path']))} (weight {float(str(row['weight'])) / total:.3g}, "
        f"{row['unique_tokens']:,} unique tokens, {count} held-out windows)"
        for row, count in zip(rows, windows)
    ]
    return {
        "source": "; ".join(words),
        "digest": digest,
        "tokenizer": text.describe(tokenizer, corpora[0].tokenizer),
        **text.replacement_facts(sum(tokens.replaced for tokens in corpora)),
        "train_tokens": len(train),
        "heldout_tokens": len(heldout),
        "overlap_length": ngrams.OVERLAP_LENGTH,
        "overlap": ngrams.overlap(train, heldout, ngrams.OVERLAP_LENGTH),
    }
