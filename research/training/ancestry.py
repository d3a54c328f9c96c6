"""What a run and those that it started from were trained on, kept beside the run by content, to be
compared with what a run that starts from it holds out (heldout_check).

WORKDIR/data/<digest>.contents holds hashes of a training set (see data.contents) as little-endian
uint64, after their number of classes, but for what its held-out part repeats, which tells a file
that was trained on from no other; launch.json names those of a run and of all its ancestors.
"""

from collections.abc import Mapping

import numpy as np

from research.data import Dataset
from research.io import files
from research.runs.directory import RunDirectory
from research.training.run import Run

_trained: dict[tuple[str, int], np.ndarray] = {}


def record(run: Run, directory: RunDirectory) -> list[str]:
    """Keep what `run` and its ancestors are trained on beside `directory`, and return the names."""
    if run.data.contents is None or not directory.writes:
        return []
    own, earlier = run.data.digest[:12], _earlier(run)
    folder = files.make_directory(directory.workdir / "data")
    for name in (names := [own, *(name for name in earlier if name != own)]):
        if not (path := folder / f"{name}.contents").exists():
            of_own = name == own and name not in earlier
            files.write_atomic(path, _told_apart(run.data) if of_own else earlier[name])
    return names


def _earlier(run: Run) -> Mapping[str, bytes]:
    if run.start is None:
        return {}
    from research.runs import trained_on  # which few runs need

    return trained_on.read(run.start.run)


def _told_apart(dataset: Dataset) -> bytes:
    assert dataset.contents is not None
    classes, *_ = trained = of_training(dataset)
    heldout = dataset.contents("heldout", int(classes))
    return np.concatenate([trained[:1], np.setdiff1d(trained[1:], heldout)]).tobytes()


def of_training(dataset: Dataset) -> np.ndarray:
    """The classes and hashes of the training set; computed once, as a sweep asks for every run."""
    key = dataset.digest, len(dataset.train)  # the digest is the same of any number of examples
    if key not in _trained:
        from research.data.contents import classes_for

        assert dataset.contents is not None
        classes = classes_for(dataset.unique_tokens)
        hashes = dataset.contents("train", classes)
        _trained.clear()
        _trained[key] = np.concatenate([np.array([classes], "<u8"), hashes])
    return _trained[key]
