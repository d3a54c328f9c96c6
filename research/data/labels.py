"""Class labels as people write them: what is a class, and what was left blank."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.errors import BadInput

# What programs write where there is no value, and what people write there but call classes too.
MISSING = ("", "na", "n/a", "#n/a", "nan", "null")
DOUBTFUL = ("none", "nil", "-", "?", "unknown")
SHOWN = 5  # labels in a message

log = logging.getLogger(__name__)


def stripped(path: str, what: str, values: Sequence[Any]) -> list[Any]:
    """`values` without the spaces around them, by which one class would be two. Raises BadInput
    where one is blank or says that it is missing, with its row."""
    out = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [i for i, v in enumerate(out) if isinstance(v, str) and v.lower() in MISSING]
    if missing:
        raise BadInput(
            f"data.path: {path}: {what} has {len(missing)} labels that are blank or stand for a "
            f"missing one, the first {values[missing[0]]!r} in row {missing[0] + 1}; remove those "
            "rows, or give the class another name"
        )
    if doubtful := sorted({v for v in out if isinstance(v, str) and v.lower() in DOUBTFUL}):
        log.warning("data.path: %s: %s: %r is taken for a class", path, what, doubtful[0])
    spaced = sorted({v for v, s in zip(values, out) if v != s and isinstance(v, str)})
    if spaced:
        log.warning(
            "data.path: %s: %s: spaces around labels are not read: %s",
            *(path, what, ", ".join(map(repr, spaced[:SHOWN]))),
        )
    return out


def check_counts(path: str, names: Sequence[str], train: np.ndarray, heldout: np.ndarray) -> None:
    """Raise BadInput for a class that no row is there to learn from; warn of one that none is held
    out of, and of which nothing is measured."""
    learned, measured = (np.bincount(y, minlength=len(names)) for y in (train, heldout))
    untrained = [name for name, count in zip(names, learned) if not count]
    if untrained:
        raise BadInput(
            f"data.target: {_listed(untrained)} of {path} have no row to train on (data.heldout); "
            "give them more rows, or remove them"
        )
    if unmeasured := [name for name, count in zip(names, measured) if not count]:
        log.warning("data.target: %s of %s have no held-out row", _listed(unmeasured), path)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} classes ({', '.join(map(repr, names[:SHOWN]))}{more})"


def interleave_classes(labels: np.ndarray) -> np.ndarray:
    """The positions [n] in an order that takes the classes in turn: the first of every class, the
    second of every class, and so on. Any beginning is as balanced as the classes allow."""
    place = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        here = labels == label
        place[here] = np.arange(here.sum())
    return np.lexsort((labels, place))
