"""What a run holds out, compared by content with what the runs that it started from were trained on
(see ancestry)."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.data import Dataset
from research.errors import BadInput
from research.io import files
from research.training.ancestry import of_training

# Of what a run holds out and its own training set does not repeat, the share that an ancestor was
# trained on: above TOLD it is told, above REFUSED the run is refused.
TOLD, REFUSED = 0.01, 0.1
LARGEST = 8 << 20  # bytes of one file
NAME, MOST_SETS = re.compile("[0-9a-f]{12}"), 64

log = logging.getLogger(__name__)


def check(dataset: Dataset, start: Path) -> str:
    """What is to be said of the held-out part of `dataset` in a run that starts from the one at
    `start`; "" where nothing is. Raises BadInput where it was trained on."""
    if dataset.contents is None:
        return ""
    ancestors = read_ancestors(start)
    if not ancestors:
        return "not known: what it was trained on, and so whether that is held out here"
    worst = max(share_seen(dataset, raw) for raw in ancestors.values())
    words = f"{worst:.0%} of what is held out here was trained on by init.run or its ancestors"
    if worst > REFUSED:
        raise BadInput(
            f"data.heldout: {words}; expected at most {REFUSED:.0%}: the same data with the same "
            "share, or other data"
        )
    if worst > TOLD:
        log.warning("data.heldout: %s", words)
        return words
    return ""


def share_seen(dataset: Dataset, raw: bytes) -> float:
    """The share of the held-out contents that are in the training set `raw` and, so that ordinary
    repetition does not count, not in the data set's own."""
    assert dataset.contents is not None
    theirs, own = np.frombuffer(raw, "<u8").astype(np.uint64), of_training(dataset)
    classes = np.maximum(theirs[0], own[0])  # what both have looked at
    heldout = dataset.contents("heldout", int(classes))
    fresh = heldout[~np.isin(heldout, own[1:])]
    return float(np.isin(fresh, theirs[1:]).mean()) if len(fresh) else 0.0


def read_ancestors(run: Path) -> Mapping[str, bytes]:
    """{name: contents} of what the run in a directory and its ancestors were trained on; none where
    it is not known."""
    if not (path := run / "launch.json").exists():
        return {}
    launch: dict[str, Any] = files.read_json(path, follow=False)
    names, out = launch.get("trained_on", []), {}
    if not isinstance(names, list) or len(names) > MOST_SETS:
        raise BadInput(f"{run / 'launch.json'}: trained_on is {names!r:.50}, expected names")
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadInput(f"{run / 'launch.json'}: trained_on holds {name!r:.50}, expected a name")
        path = run.parent.parent / "data" / f"{name}.contents"
        if not path.exists():
            return {}  # of a run that was moved without its workdir
        raw = files.read(path, LARGEST, follow=False)
        if len(raw) % 8 or len(raw) < 8 or not int.from_bytes(raw[:8], "little"):
            raise BadInput(f"{path}: not the contents of a training set; remove it")
        out[name] = raw
    return out
