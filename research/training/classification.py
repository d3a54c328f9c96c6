"""Classes. Dimensions: B batch, C classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.models import Model
from research.runs.schema import Column
from research.training.losses import cross_entropy
from research.training.tasks import Task


@dataclass(frozen=True)
class Classification(Task):
    """One class of C for each example: −log P(class | input) in nats."""

    targets: ClassVar[str] = "classes"
    unit: ClassVar[str] = "nats per example"
    METRICS: ClassVar[tuple[Column, ...]] = (
        Column("accuracy", better="high"),
        Column("macro_precision", heading="precision", shown=("page",), better="high"),
        Column("macro_recall", heading="recall", shown=("page",), better="high"),
        Column("macro_f1", heading="F1", better="high"),
    )

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B], "confusion": [B, C²], the cell (target, prediction)}
        for targets [B]."""
        logits_BxC = model.apply(params, batch["inputs"]).astype(jnp.float32)
        target_B, C = batch["targets"], logits_BxC.shape[-1]
        cell_B = target_B * C + jnp.argmax(logits_BxC, axis=-1)
        return {
            "loss": cross_entropy(logits_BxC, target_B),
            "count": jnp.ones(target_B.shape, jnp.float32),
            "confusion": jax.nn.one_hot(cell_B, C * C),
        }

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss, accuracy, macro precision, recall and F1, the same for each class, and the
        confusion matrix (rows: true classes). A class that is never predicted has precision 0, and
        one without examples recall 0, as in scikit-learn."""
        C = round(math.sqrt(sums["confusion"].size))
        matrix_CxC = np.rint(sums["confusion"]).astype(int).reshape(C, C)
        hit_C, true_C, said_C = np.diag(matrix_CxC), matrix_CxC.sum(1), matrix_CxC.sum(0)
        each = {
            "precision": hit_C / np.maximum(said_C, 1),
            "recall": hit_C / np.maximum(true_C, 1),
            "f1": 2 * hit_C / np.maximum(said_C + true_C, 1),
        }
        # A label that neither occurs nor is predicted is not averaged over.
        present = (true_C + said_C) > 0
        return {
            "loss": float(sums["loss"] / sums["count"]),
            "accuracy": float(hit_C.sum() / matrix_CxC.sum()),
            **{f"macro_{name}": float(values[present].mean()) for name, values in each.items()},
            **{f"class_{name}": values.tolist() for name, values in each.items()},
            "confusion": matrix_CxC.tolist(),
            "class_names": list(notes.get("class_names", map(str, range(C)))),
        }
