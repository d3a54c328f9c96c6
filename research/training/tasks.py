"""Tasks: what a model's outputs are measured by.

A task turns a batch into sums for each example ("loss" and the "count" it is over, and whatever
else its metrics need), so that training and evaluation add up the same numbers, padding is a
weight, and a mean is over all tokens or examples and not over batches.

`TASKS` names them; the module of one is imported when a run first asks for it.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from jax import Array

from research.data import Dataset
from research.models import Model
from research.runs.schema import Column


class Task(Protocol):
    """`targets` is the kind of target that it measures (see data.Dataset), `unit` that of its
    loss. METRICS declares the numbers that it measures beside the loss, which are logged, and how
    they are shown. Hashable: compiled programs are cached by it. A class that is one inherits the
    rest."""

    targets: ClassVar[str]
    unit: ClassVar[str]
    METRICS: ClassVar[tuple[Column, ...]] = ()

    def prepared(self, data: Dataset, model: Model) -> Dataset:
        """`data` as the task takes them. Raises BadInput for a model that it cannot measure."""
        del model
        return data

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sums of each example, [B] or [B, ...]; the loss is Σ loss / Σ count."""
        ...

    def loss(self, model: Model, params: dict, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Σ loss, to be differentiated, and Σ count of a batch."""
        terms = self.terms(model, params, batch)
        return terms["loss"].sum(), terms["count"].sum()

    def describe_rule(self, model: Model, tokens: int) -> str:
        """What the task chooses for so many tokens at a time, in words; "" where it does not."""
        del model, tokens
        return ""

    def for_devices(self, model: Model, ways: int) -> "Task":
        """The task where every batch is split over `ways` devices."""
        del model, ways
        return self

    def examined(self, data: Dataset, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What metrics must know of the evaluated examples beside the terms: exactly, on the
        host."""
        del data, rows
        return {}

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from the terms, summed over the held-out set; `notes` are the data set's and
        what was `examined`."""
        ...


TASKS = {
    "language_modeling": "research.training.language_modeling:LanguageModeling",
    "masked_language_modeling": "research.training.masked_language_modeling:MaskedLanguageModeling",
    "classification": "research.training.classification:Classification",
    "regression": "research.training.regression:Regression",
}


def task_class(name: str) -> type[Task]:
    """The class of the task `name`."""
    return pkgutil.resolve_name(TASKS[name])
