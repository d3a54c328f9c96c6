"""Experiment trackers: metrics shown in TensorBoard, Weights & Biases, MLflow too.

metrics.jsonl is the record and is always written; a sink is a view of it. So a sink that fails is
dropped with a warning and the run goes on. Each writes below the run's directory or the workdir,
and nothing leaves the machine unless WANDB_MODE or MLFLOW_TRACKING_URI says so. A run that is
launched again goes on in the same place. TensorBoard and MLflow show no step twice; offline, W&B
keeps one folder for each launch, of one run id, with what each did.
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


# A name of log.sinks, and where its class is; it is imported when a run asks for it.
SINKS = {
    "tensorboard": "research.runs.tensorboard:TensorBoard",
    "wandb": "research.runs.wandb:Wandb",
    "mlflow": "research.runs.mlflow:MLflow",
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


SECONDS = 1.0  # that a sink may hold metrics back; a kill loses them, and only there


Config = Mapping[str, object]


class Sink(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show `metrics` at `step`; steps never go back within a launch."""
        ...

    def close(self, result: Config | None) -> None:
        """End with the content of result.json, or None if the run is to be launched again."""
        ...


class Sinks:
    """Several sinks as one. One that raises is named in a warning, once, and gets no more."""

    def __init__(self, sinks: Mapping[str, Sink]):
        self.sinks = dict(sinks)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, sink in list(self.sinks.items()):
            if not _attempt(name, lambda sink=sink: sink.log(step, metrics)):
                del self.sinks[name]

    def close(self, result: Config | None = None) -> None:
        """Close what is still open; a second call finds nothing to do."""
        while self.sinks:
            name, sink = self.sinks.popitem()
            _attempt(name, lambda sink=sink: sink.close(result))


def check(names: Sequence[str]) -> None:
    """Raise BadInput for sinks that do not exist or lack their package; imports none of them."""
    problems = []
    for name in names:
        if name not in SINKS:
            problems.append(
                f"log.sinks: {name!r} is not offered; expected one of {', '.join(SINKS)}"
            )
        elif importlib.util.find_spec(PACKAGES[name]) is None:
            problems.append(
                f"log.sinks: {name} needs the package {PACKAGES[name]}, which is not installed; "
                "pip install isoflop[track]"
            )
    if problems:
        raise BadInput(*problems)


def open_all(
    names: Sequence[str], run_id: str, name: str, config: Config, directory: Path, workdir: Path
) -> Sinks:
    """The sinks `names` of a run, called `name` where people read. One that cannot be opened is
    dropped with a warning: the last run of a sweep must not fall with a server. Raises BadInput as
    `check` does."""
    check(names)
    flat = flatten(config)
    opened: dict[str, Sink] = {}

    def start(key: str) -> None:
        module, _, name_of_class = SINKS[key].partition(":")
        kind = getattr(importlib.import_module(module), name_of_class)
        opened[key] = kind(run_id, name, flat, directory.absolute(), workdir.absolute())

    for key in dict.fromkeys(names):
        _attempt(key, lambda key=key: start(key))
    return Sinks(opened)


def _attempt(name: str, act: Callable[[], None]) -> bool:
    try:
        act()
    except Exception as error:  # whatever these packages raise, the run is worth more
        what = f"{type(error).__name__}: {error}"
        log.warning("%s gets no more of this run, metrics.jsonl does: %s", name, what)
        return False
    return True


def is_done(result: Config | None) -> bool:
    return result is not None and result["status"] == "done"
