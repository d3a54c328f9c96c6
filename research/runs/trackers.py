"""Experiment trackers: TensorBoard, Weights & Biases, MLflow.

metrics.jsonl is the record and is always written; a tracker is a view of it. So a tracker that
fails is dropped with a warning and the run continues. Each writes below the run's directory or the
workdir, and nothing leaves the machine unless WANDB_MODE or MLFLOW_TRACKING_URI says so. A run that
is launched again continues in the same place. TensorBoard and MLflow show no step twice; offline,
W&B keeps one folder for each launch, with the same run id.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from research.config.schema import flatten
from research.errors import BadInput

log = logging.getLogger(__name__)

# A name of log.trackers, and where its class is; it is imported when a run asks for it.
TRACKERS = {
    "tensorboard": "research.runs.tensorboard:TensorBoard",
    "wandb": "research.runs.wandb:Wandb",
    "mlflow": "research.runs.mlflow:MLflow",
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
FLUSH_SECONDS = 1.0  # for which a tracker may buffer metrics; a kill loses them there alone
Config = Mapping[str, object]


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show `metrics` at `step`; steps never decrease within a launch."""
        ...

    def close(self, result: Config | None) -> None:
        """End with the content of result.json, or None if the run is to be launched again."""
        ...


class Trackers:
    """Several trackers as one. One that raises is named in a warning and dropped."""

    def __init__(self, trackers: Mapping[str, Tracker]):
        self.trackers = dict(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, tracker in list(self.trackers.items()):
            if not _attempt(name, lambda tracker=tracker: tracker.log(step, metrics)):
                del self.trackers[name]

    def close(self, result: Config | None = None) -> None:
        """Close those that are still open; a second call does nothing."""
        while self.trackers:
            name, tracker = self.trackers.popitem()
            _attempt(name, lambda tracker=tracker: tracker.close(result))


def check_trackers(names: Sequence[str]) -> None:
    """Raise BadInput for trackers that do not exist or lack their package; imports none of them."""
    problems = []
    for name in names:
        if name not in TRACKERS:
            problems.append(
                f"log.trackers: {name!r} is unknown; expected one of {', '.join(TRACKERS)}"
            )
        elif importlib.util.find_spec(PACKAGES[name]) is None:
            from research.io.extras import install_command

            command = install_command("track")
            problems.append(f"log.trackers: {name} needs {PACKAGES[name]}; {command}")
    if problems:
        raise BadInput(*problems)


def open_trackers(
    names: Sequence[str], run_id: str, name: str, config: Config, directory: Path, workdir: Path
) -> Trackers:
    """The trackers `names` of a run, which they show as `name`. One that cannot be opened is
    dropped with a warning: a sweep must not fail because a server is down. Raises BadInput as
    `check_trackers` does."""
    check_trackers(names)
    flat = flatten(config)
    opened: dict[str, Tracker] = {}

    def start(key: str) -> None:
        module, _, name_of_class = TRACKERS[key].partition(":")
        kind = getattr(importlib.import_module(module), name_of_class)
        opened[key] = kind(run_id, name, flat, directory.absolute(), workdir.absolute())

    for key in dict.fromkeys(names):
        _attempt(key, lambda key=key: start(key))
    return Trackers(opened)


def _attempt(name: str, act: Callable[[], None]) -> bool:
    try:
        act()
    except Exception as error:  # whatever these packages raise: the run is worth more
        reason = f"{type(error).__name__}: {error}"
        log.warning("%s gets no more metrics of this run; metrics.jsonl does: %s", name, reason)
        return False
    return True


def is_done(result: Config | None) -> bool:
    return result is not None and result["status"] == "done"
