"""Tasks: what a model's outputs are measured by.

A task turns a batch into sums for each example ("loss" and the "count" it is over, and whatever
else its metrics need), so that training and evaluation add up the same numbers, padding is a
weight, and a mean is over all tokens or examples and not over batches.

Dimensions: B batch, T time, M = B·T, V vocabulary, C classes, K outputs; N chunks of a batch, of
M/N tokens each (N divides T, or else the last ones are filled up).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.config.types import NonNegativeInt
from research.data import Dataset
from research.models import Model
from research.runs.schema import Column
from research.training.losses import chunked_cross_entropy, cross_entropy

# Logits of a chunk on one device, where the task may choose: 256 MiB in float32. In a chunk of few
# tokens the product with a large head waits for memory, so a chunk has at least FEW.
LOGITS, FEW = 2**26, 1024


class Task(Protocol):
    """`targets` is the kind of target that it measures (see data.Dataset), `unit` that of its
    loss. METRICS declares the numbers that it measures beside the loss, which are logged, and how
    they are shown. Hashable: compiled programs are cached by it. A class that is one inherits the
    rest."""

    targets: ClassVar[str]
    unit: ClassVar[str]
    METRICS: ClassVar[tuple[Column, ...]] = ()

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


@dataclass(frozen=True)
class LanguageModeling(Task):
    """Next-token prediction: −log P(w_t | w_<t) in nats.

    At most the logits of `chunk` tokens are there at once; 0: of all, None: by the rule of
    `chunk_by_rule`. It is counted on one device until `for_devices` is called, on all of them then.
    """

    chunk: NonNegativeInt | None

    targets: ClassVar[str] = "tokens"
    unit: ClassVar[str] = "nats per token"
    METRICS: ClassVar[tuple[Column, ...]] = (
        Column("perplexity", shown=()),
        Column("bits_per_byte", heading="bits/byte", shown=("line", "table", "page")),
    )

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B] tokens} for inputs and targets [B, T]."""
        B, T = batch["targets"].shape
        x_MxD, target_BxT = model.apply(params, batch["inputs"]), batch["targets"]
        unembed = functools.partial(model.unembed, params)
        if (N := self._chunks(model, B, T)) == 1:
            nats_BxT = cross_entropy(unembed(x_MxD), target_BxT.reshape(B * T)).reshape(B, T)
        else:
            chunks = _split(x_MxD.reshape(B, T, -1), N), _split(target_BxT, N)
            nats_NxM = jax.lax.map(lambda chunk: cross_entropy(unembed(chunk[0]), chunk[1]), chunks)
            nats_BxT = nats_NxM.reshape(N, B, -1).swapaxes(0, 1).reshape(B, -1)[:, :T]
        return {"loss": nats_BxT.sum(-1), "count": jnp.full((B,), T, jnp.float32)}

    def loss(self, model: Model, params: dict, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Σ nats, to be differentiated, and the number of tokens."""
        B, T = batch["targets"].shape
        if (N := self._chunks(model, B, T)) == 1:
            return super().loss(model, params, batch)
        x_NxMxD = _split(model.apply(params, batch["inputs"]).reshape(B, T, -1), N)
        weight_NxM = _split(jnp.ones((B, T), jnp.float32), N)  # 0 where a chunk is filled up
        # The head's parameters, which only `unembed` knows, become arguments.
        unembed, head = jax.closure_convert(functools.partial(model.unembed, params), x_NxMxD[0])
        chunks = x_NxMxD, _split(batch["targets"], N), weight_NxM
        return chunked_cross_entropy(unembed, *chunks, *head), jnp.float32(B * T)

    def describe_rule(self, model: Model, tokens: int) -> str:
        chunk = self.chunk_by_rule(model.spec.vocab)
        if self.chunk is not None or tokens <= chunk:
            return ""
        return (
            f"at most 2^{LOGITS.bit_length() - 1} logits in memory at once on a device, but of at "
            f"least {FEW:,} tokens\nvocabulary {model.spec.vocab:,}: {chunk:,} tokens at once"
        )

    def for_devices(self, model: Model, ways: int) -> "LanguageModeling":
        chunk = self.chunk_by_rule(model.spec.vocab) if self.chunk is None else self.chunk
        return dataclasses.replace(self, chunk=chunk * ways)

    @staticmethod
    def chunk_by_rule(vocab: int) -> int:
        """Tokens in a chunk by rule, a power of two: at most LOGITS logits, but at least FEW
        tokens."""
        return max(FEW, 2 ** math.floor(math.log2(LOGITS / vocab)))

    def _chunks(self, model: Model, B: int, T: int) -> int:
        """In how many chunks B·T tokens are taken: each has as many of every example, so that the
        examples may be split over devices."""
        chunk = self.chunk_by_rule(model.spec.vocab) if self.chunk is None else self.chunk
        if not chunk or chunk >= B * T:
            return 1
        N = math.ceil(T / max(1, chunk // B))
        return next((n for n in range(N, 2 * N) if T % n == 0), N)

    def examined(self, data: Dataset, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if data.count_bytes is None:  # token ids have no known bytes
            return {}
        return {"bytes": data.count_bytes(rows["inputs"], rows["targets"])}

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss (nats per token), perplexity, and bits per byte where bytes are known."""
        loss = float(sums["loss"] / sums["count"])
        out = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if notes.get("bytes"):
            out["bits_per_byte"] = float(sums["loss"]) / math.log(2) / notes["bytes"]
        return out


@dataclass(frozen=True)
class Classification(Task):
    """One class of C for each example: −log P(class | input) in nats."""

    targets: ClassVar[str] = "classes"
    unit: ClassVar[str] = "nats per example"
    METRICS: ClassVar[tuple[Column, ...]] = (
        Column("accuracy"),
        Column("macro_precision", heading="precision", shown=("page",)),
        Column("macro_recall", heading="recall", shown=("page",)),
        Column("macro_f1", heading="F1"),
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


@dataclass(frozen=True)
class Regression(Task):
    """K numbers for each example, by squared error."""

    targets: ClassVar[str] = "numbers"
    unit: ClassVar[str] = "mean squared error"
    METRICS: ClassVar[tuple[Column, ...]] = (
        Column("mse", heading="MSE", format=".4g", shown=("page",)),
        Column("mae", heading="MAE", format=".4g", shown=("line", "page")),
        Column("r2", heading="R²"),
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


def _split(x_BxT: Array, N: int) -> Array:
    """[B, T, ...] → [N, M/N, ...]: the first T/N of every example, the next, …; zeros at the end
    where N does not divide T."""
    B, T = x_BxT.shape[:2]
    each = math.ceil(T / N)
    if each * N > T:
        x_BxT = jnp.pad(x_BxT, [(0, 0), (0, each * N - T), *[(0, 0)] * (x_BxT.ndim - 2)])
    x_BxNxT = x_BxT.reshape(B, N, each, *x_BxT.shape[2:])
    return x_BxNxT.swapaxes(0, 1).reshape(N, B * each, *x_BxT.shape[2:])


TASKS: dict[str, type] = {
    "language_modeling": LanguageModeling,
    "classification": Classification,
    "regression": Regression,
}
