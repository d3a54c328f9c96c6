"""The next token. Dimensions: B batch, T time, M = B·T, V vocabulary; N chunks of a batch, of M/N
tokens each (N divides T, or else the last ones are filled up)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.config.types import NonNegativeInt
from research.data import Dataset
from research.errors import BadInput
from research.models import Model
from research.runs.schema import Column
from research.training.losses import cross_entropy
from research.training.tasks import Task

# Logits of a chunk on one device, where the task may choose: 256 MiB in float32. In a chunk of few
# tokens the product with a large head waits for memory, so a chunk has at least FEW.
LOGITS, FEW = 2**26, 1024


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
        Column("perplexity", shown=(), better="low"),
        Column(
            "bits_per_byte",
            heading="bits/byte",
            shown=("line", "table", "page"),
            better="low",
        ),
    )

    def prepared(self, data: Dataset, model: Model) -> Dataset:
        if not getattr(model.module, "causal", True):
            words = "the next token, which this model is given; expected masked_language_modeling"
            raise BadInput(f"task.name: language_modeling measures {words}")
        return data

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B] tokens} for inputs and targets [B, T]."""
        B, T = batch["targets"].shape
        nats_BxT = self.by_token(cross_entropy, model, params, batch)
        return {"loss": nats_BxT.sum(-1), "count": jnp.full((B,), T, jnp.float32)}

    def by_token(self, measure: Callable, model: Model, params: dict, batch: Mapping) -> Any:
        """What `measure` (logits [M, V], targets [M]) says of each token, [B, T]."""
        B, T = batch["targets"].shape
        if (N := self._chunks(model, B, T)) > 1:
            from research.training import chunked_losses  # of large vocabularies

            return chunked_losses.by_token(measure, model, params, batch, N)
        logits_MxV = model.unembed(params, model.apply(params, batch["inputs"]))
        each = measure(logits_MxV, batch["targets"].reshape(B * T))
        return jax.tree.map(lambda x_M: x_M.reshape(B, T), each)

    def loss(self, model: Model, params: dict, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Σ nats, to be differentiated, and the number of tokens."""
        if (N := self._chunks(model, *batch["targets"].shape)) == 1:
            return super().loss(model, params, batch)
        from research.training import chunked_losses  # as above

        weight_BxT, count = self.weights(batch["targets"])
        return chunked_losses.loss(model, params, batch, weight_BxT, N), count

    def weights(self, target_BxT: Array) -> tuple[Array, Array]:
        """How much each target counts, [B, T], and their sum."""
        return jnp.ones(target_BxT.shape, jnp.float32), jnp.float32(target_BxT.size)

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
