"""The checkpoint of a run with the best value of a metric, which is kept beside the latest ones.

best.json  {"step", "metric", "value"}, in the directory of a run: `checkpoint.prune` spares it
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import BadInput
from research.parallel import distributed
from research.runs import checkpoint
from research.runs.directory import RunDirectory
from research.runs.schema import COLUMNS, Column

log = logging.getLogger(__name__)


def direction(metric: str, metrics: Sequence[Column]) -> str:
    """Whether "low" or "high" values of a metric are better, of a task that measures `metrics`
    beside the loss. Raises BadInput where nothing says so."""
    loss = next(column for column in COLUMNS if column.name == "loss")
    known = {column.name: column.better for column in (loss, *metrics) if column.better}
    if metric not in known:
        raise BadInput(f"save.best: {metric!r:.50}; expected one of {', '.join(known)}, or none")
    return known[metric]


class Best:
    """The best state of a run so far, by one of the metrics of its evaluations. All processes of a
    run make the same calls and come to the same answers."""

    def __init__(self, directory: RunDirectory, metric: str, metrics: Sequence[Column]):
        self.directory, self.metric = directory, metric
        self.sign = 1.0 if direction(metric, metrics) == "high" else -1.0
        self.step: int | None = None
        self.value = math.nan
        self.found: tuple[int, float] | None = None  # better, and not saved yet

    def resume(self, step: int) -> None:
        """Steps from `step` on are done: what an earlier launch found later than that is found
        again, and what has no checkpoint any more is not the best that there is."""
        stored = distributed.broadcast(lambda: checkpoint.read_best(self.directory.path))
        if not stored or stored["metric"] != self.metric or stored["step"] > step:
            return
        if distributed.broadcast(lambda: self._is_saved(stored["step"])):
            self.step, self.value = stored["step"], stored["value"]
        else:
            log.warning("%s: the best checkpoint is gone", self.directory.path)

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Look at an evaluation. A state that is saved already is the best from now on."""
        if self.metric not in metrics:
            raise BadInput(f"save.best: {self.metric} cannot be measured on these data")
        value = float(metrics[self.metric])
        if math.isnan(value) or (self.step is not None and self.sign * (value - self.value) <= 0):
            return
        self.found = step, value
        if distributed.broadcast(lambda: self._is_saved(step)):
            self.saved(step)

    def saved(self, step: int) -> None:
        """The state after `step` has its checkpoint, which is kept if it is the best."""
        if self.found and self.found[0] == step:
            self.step, self.value = self.found
            content = {"step": self.step, "metric": self.metric, "value": self.value}
            self.directory.write(checkpoint.BEST, content)
        self.found = None

    def summary(self) -> dict[str, Any]:
        """What the result of a run says of it."""
        return {} if self.step is None else {"best_step": self.step, "best_score": self.value}

    def _is_saved(self, step: int) -> bool:
        return step in checkpoint.saved_steps(self.directory.path)
