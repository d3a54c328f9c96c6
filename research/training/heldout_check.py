"""What a run holds out, compared by content with what the runs that it started from were trained on
(see ancestry)."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from research.data import Dataset
from research.errors import BadInput
from research.runs import trained_on
from research.training.ancestry import of_training
from research.training.fine_tuning import StartingPoint

# Of what a run holds out and its own training set does not repeat, the share that an ancestor was
# trained on: above TOLD it is told, above REFUSED the run is refused.
TOLD, REFUSED = 0.01, 0.1

log = logging.getLogger(__name__)


def checked(start: StartingPoint, dataset: Dataset, measured: Dataset) -> StartingPoint:
    """`start` of a run on `dataset`, with what `check` says among its rules, and how much of the
    headline of its other sets, which `measured` holds out, was trained on."""
    seen = [check(dataset, start.run)]
    ancestors = trained_on.read(start.run)
    if measured.contents is not dataset.contents and ancestors:
        seen.append(_told("eval.headline", "that set", _worst(measured, ancestors)))
    return dataclasses.replace(start, rule="\n".join(filter(None, [start.rule, *seen])))


def check(dataset: Dataset, start: Path) -> str:
    """What is to be said of the held-out part of `dataset` in a run that starts from the one at
    `start`; "" where nothing is. Raises BadInput where it was trained on."""
    if dataset.contents is None:
        return ""
    ancestors = trained_on.read(start)
    if not ancestors:
        return "not known: what it was trained on, and so whether that is held out here"
    worst, what = _worst(dataset, ancestors), "what is held out here"
    if worst > REFUSED:
        raise BadInput(
            f"data.heldout: {worst:.0%} of {what} was trained on by init.run or its ancestors; "
            f"expected at most {REFUSED:.0%}: the same data with the same share, or other data"
        )
    return _told("data.heldout", what, worst)


def _worst(dataset: Dataset, ancestors: Mapping[str, bytes]) -> float:
    return max(share_seen(dataset, raw) for raw in ancestors.values())


def _told(key: str, what: str, share: float) -> str:
    if share <= TOLD:
        return ""
    words = f"{key}: {share:.0%} of {what} was trained on by init.run or its ancestors"
    log.warning("%s", words)
    return words


def share_seen(dataset: Dataset, raw: bytes) -> float:
    """The share of the held-out contents that are in the training set `raw` and, so that ordinary
    repetition does not count, not in the data set's own."""
    assert dataset.contents is not None
    theirs, own = np.frombuffer(raw, "<u8").astype(np.uint64), of_training(dataset)
    classes = np.maximum(theirs[0], own[0])  # what both have looked at
    heldout = dataset.contents("heldout", int(classes))
    fresh = heldout[~np.isin(heldout, own[1:])]
    return float(np.isin(fresh, theirs[1:]).mean()) if len(fresh) else 0.0
