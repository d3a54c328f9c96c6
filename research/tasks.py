"""Tasks: what a model's outputs are measured by.

A task turns a batch into sums for each example ("loss" and the "count" it is over, and whatever
else its metrics need), so that training and evaluation add up the same numbers, padding is a
weight, and a mean is over all tokens or examples and not over batches.

Dimensions: B batch, T time, M = B·T, V vocabulary, C classes, K outputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.models import Model


class Task(Protocol):
    """`targets` is the kind of target that it measures (see data.Dataset), `unit` that of its
    loss. Hashable: compiled programs are cached by it."""

    targets: ClassVar[str]
    unit: ClassVar[str]

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sums of each example, [B] or [B, ...]; the loss is Σ loss / Σ count."""
        ...

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from the terms, summed over the held-out set; `notes` are the data set's."""
        ...


@dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction: −log P(w_t | w_<t) in nats."""

    targets: ClassVar[str] = "tokens"
    unit: ClassVar[str] = "nats per token"

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B] tokens} for inputs and targets [B, T]."""
        B, T = batch["targets"].shape
        logits_MxV = model.unembed(params, model.apply(params, batch["inputs"]))
        nats_M = _nats(logits_MxV, batch["targets"].reshape(B * T))
        return {"loss": nats_M.reshape(B, T).sum(-1), "count": jnp.full((B,), T, jnp.float32)}

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss (nats per token), perplexity, and bits per byte where bytes are known."""
        loss = float(sums["loss"] / sums["count"])
        out = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if bytes_per_token := notes.get("bytes_per_token"):  # token ids have no known bytes
            out["bits_per_byte"] = loss / math.log(2) / bytes_per_token
        return out


@dataclass(frozen=True)
class Classification:
    """One class of C for each example: −log P(class | input) in nats."""

    targets: ClassVar[str] = "classes"
    unit: ClassVar[str] = "nats per example"

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B], "confusion": [B, C²], the cell (target, prediction)}
        for targets [B]."""
        logits_BxC = model.apply(params, batch["inputs"]).astype(jnp.float32)
        target_B, C = batch["targets"], logits_BxC.shape[-1]
        cell_B = target_B * C + jnp.argmax(logits_BxC, axis=-1)
        return {
            "loss": _nats(logits_BxC, target_B),
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
        seen = (true_C + said_C) > 0
        return {
            "loss": float(sums["loss"] / sums["count"]),
            "accuracy": float(hit_C.sum() / matrix_CxC.sum()),
            **{f"macro_{name}": float(values[seen].mean()) for name, values in each.items()},
            **{f"class_{name}": values.tolist() for name, values in each.items()},
            "confusion": matrix_CxC.tolist(),
            "class_names": list(notes.get("class_names", map(str, range(C)))),
        }


@dataclass(frozen=True)
class Regression:
    """K numbers for each example, by squared error."""

    targets: ClassVar[str] = "numbers"
    unit: ClassVar[str] = "mean squared error"

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
            "target": target_BxK,
            "target_squared": target_BxK**2,
        }

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss (of the targets as the model sees them); mse and mae in the data's own units, R²
        against the held-out mean, each a mean over the outputs."""
        count = float(sums["count"])
        scale_K = np.asarray(notes.get("target_scale", 1.0), np.float64)
        squared_K, absolute_K = (sums[k] / count for k in ("squared", "absolute"))
        variance_K = sums["target_squared"] / count - (sums["target"] / count) ** 2
        return {
            "loss": float(sums["loss"] / count),
            "mse": float(np.mean(squared_K * scale_K**2)),
            "mae": float(np.mean(absolute_K * scale_K)),
            "r2": float(np.mean(1 - squared_K / np.maximum(variance_K, 1e-30))),
        }


def _nats(logits_MxV: Array, target_M: Array) -> Array:
    """−log softmax(logits)[target], [M]."""
    chosen_M = jnp.take_along_axis(logits_MxV, target_M[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits_MxV, axis=-1) - chosen_M


TASKS: dict[str, type] = {
    "language_modelling": LanguageModelling,
    "classification": Classification,
    "regression": Regression,
}
