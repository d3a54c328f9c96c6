"""Numbers. Dimensions: B batch, K outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from research.data import Dataset
from research.models import Model
from research.runs.schema import Column
from research.training.tasks import Task


@dataclass(frozen=True)
class Regression(Task):
    """K numbers for each example, by squared error."""

    targets: ClassVar[str] = "numbers"
    unit: ClassVar[str] = "mean squared error"
    METRICS: ClassVar[tuple[Column, ...]] = (
        Column("mse", heading="MSE", format=".4g", shown=("page",), better="low"),
        Column("mae", heading="MAE", format=".4g", shown=("line", "page"), better="low"),
        Column("r2", heading="R²", better="high"),
    )

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B], the mean square over the outputs, "count": [B], and the sums that the
        metrics need, [B, K]} for targets [B, K]."""
        target_BxK = batch["targets"]
        error_BxK = model.apply(params, batch["inputs"]).astype(jnp.float32) - target_BxK
        return {
            "loss": jnp.mean(error_BxK**2, axis=-1),
            "count": jnp.ones(target_BxK.shape[:1], jnp.float32),
            "squared": error_BxK**2,
            "absolute": jnp.abs(error_BxK),
        }

    def examined(self, data: Dataset, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The variance of the targets; from sums of their squares in float32, nothing would be left
        of it far from zero."""
        return {"variance": rows["targets"].var(axis=0, dtype=np.float64)}

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss (of the targets as the model sees them); mse and mae in the data's own units, R²
        against the held-out mean, each a mean over the outputs."""
        count = float(sums["count"])
        scale_K = np.asarray(notes.get("target_scale", 1.0), np.float64)
        squared_K, absolute_K = (sums[k] / count for k in ("squared", "absolute"))
        return {
            "loss": float(sums["loss"] / count),
            "mse": float(np.mean(squared_K * scale_K**2)),
            "mae": float(np.mean(absolute_K * scale_K)),
            "r2": float(np.mean(1 - squared_K / np.maximum(notes["variance"], 1e-30))),
        }
