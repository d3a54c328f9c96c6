"""A training run: all that a config says, as objects and numbers, and what makes its id."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from research.data import Dataset
from research.io import files
from research.models import Model
from research.runs.schema import NOT_IN_ID, PATH_KEYS, Column
from research.training.execution import Execution
from research.training.optimizers import Optimizer
from research.training.schedules import Choice
from research.training.step import Hyper
from research.training.tasks import Task

if TYPE_CHECKING:
    from research.training.evaluation_sets import EvalSet
    from research.training.fine_tuning import StartingPoint
    from research.training.transfer import Transfer


class Cadence(NamedTuple):
    """How often, in steps; 0 is never. None of it changes what is computed."""

    eval: int
    log: int
    dispatch: int  # the most steps in one dispatch
    paced: bool  # whether their number is chosen by the time that they take
    at: frozenset[int] = frozenset()  # more steps after which it is evaluated


class Saving(NamedTuple):
    """The section `save` of a config: nothing of it changes what is computed."""

    every: int  # steps; 0 is never
    every_minutes: float | None
    keep: int
    best: str | None  # the metric by which one more is kept
    asynchronous: bool  # whether training goes on while a state is written
    on_error: str
    at: frozenset[int] = frozenset()  # more steps after which a state is saved, and kept


@dataclass(frozen=True)
class Run:
    """One training run, complete: below here no config decides anything. `hyper` holds the numbers
    that are traced, so runs that differ in them alone share a compiled program. `start` is another
    run that this one starts from; `examples` digests what its examples are, `data_seed` that of
    their order; `facts` is what a table says of the run before it is trained; `config` (resolved)
    is there to be recorded."""

    id: str
    model: Model
    task: Task
    data: Dataset
    examples: str
    optimizer: Optimizer
    schedule: Choice
    hyper: Hyper
    transfer: "Transfer | None"
    seed: int
    data_seed: int
    batch: int
    execution: Execution
    steps: int
    mesh: dict[str, int]
    replicate_indivisible: bool  # leaves that the mesh does not divide
    eval_examples: int
    eval_batch: int
    cadence: Cadence
    saving: Saving
    hang_limits: tuple[float, float]  # seconds: at least, and of what is done for the first time
    trackers: tuple[str, ...]
    start: "StartingPoint | None"
    facts: dict
    config: dict
    sets: "tuple[EvalSet, ...]" = ()  # that are evaluated beside what `data` holds out

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of what it measures beside its loss."""
        if "sets" in self.config["eval"]:
            from research.training import evaluation_sets  # which few runs need

            return *self.task.METRICS, *evaluation_sets.columns(self)
        return self.task.METRICS

    @property
    def evaluated(self) -> int:
        """Examples of an evaluation."""
        return self.eval_examples + sum(one.examples for one in self.sets)

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.data.tokens_per_example


def identity(resolved: Mapping[str, Any], data_digest: str, start: "StartingPoint | None") -> str:
    """The id of a run: what it means, wherever its data lie and whatever it prints."""
    out = identity_config(resolved)
    out["data"]["digest"] = data_digest
    out["init"] = {"digest": start.digest, "what": start.what} if start else None
    return files.digest_of(out)[:12]


def identity_config(resolved: Mapping[str, Any]) -> dict:
    """The part of a resolved config that identifies its run: without NOT_IN_ID, and without the
    paths of its data and of the run that it starts from."""
    out = {k: dict(v) if isinstance(v, Mapping) else v for k, v in resolved.items()}
    for path in NOT_IN_ID:
        section, _, key = path.rpartition(".")
        (out[section] if section else out).pop(key, None)
    for key in PATH_KEYS:
        out["data"].pop(key, None)
    if "transfer" in out["optim"] and out["optim"]["transfer"]["rule"] == "none":
        del out["optim"]["transfer"]  # as in runs before there were rules
    if sets := out["eval"].get("sets"):  # by their digests
        out["eval"]["sets"] = [{k: one[k] for k in one if k != "path"} for one in sets]
    out.pop("init", None)
    return out


def example_inputs(dataset: Dataset) -> jax.ShapeDtypeStruct:
    """Abstract model inputs for a batch of one example."""
    inputs = dataset.train.rows(np.zeros(1, np.int64))["inputs"]
    return jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
