"""The next token. Dimensions: B batch, T time, M = B·T, V vocabulary; N chunks of a batch, of M/N
tokens each (N divides T, or else the last ones are filled up)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.config.types import NonNegativeInt
from research.data import Dataset
from research.models import Model, activation_sharding
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

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B] tokens} for inputs and targets [B, T]."""
        B, T = batch["targets"].shape
        x_MxD, target_BxT = model.apply(params, batch["inputs"]), batch["targets"]
        unembed = functools.partial(model.unembed, params)
        if (N := self._chunks(model, B, T)) == 1:
            nats_BxT = cross_entropy(unembed(x_MxD), target_BxT.reshape(B * T)).reshape(B, T)
        else:
            from research.training.chunked_losses import split  # of large vocabularies

            chunks = split(x_MxD.reshape(B, T, -1), N), split(target_BxT, N)
            nats_NxM = jax.lax.map(lambda chunk: cross_entropy(unembed(chunk[0]), chunk[1]), chunks)
            nats_BxT = nats_NxM.reshape(N, B, -1).swapaxes(0, 1).reshape(B, -1)[:, :T]
        return {"loss": nats_BxT.sum(-1), "count": jnp.full((B,), T, jnp.float32)}

    def loss(self, model: Model, params: dict, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Σ nats, to be differentiated, and the number of tokens."""
        B, T = batch["targets"].shape
        if (N := self._chunks(model, B, T)) == 1:
            return super().loss(model, params, batch)
        from research.training.chunked_losses import chunked_cross_entropy, split  # as above

        x_NxMxD = split(model.apply(params, batch["inputs"]).reshape(B, T, -1), N)
        weight_NxM = split(jnp.ones((B, T), jnp.float32), N)  # 0 where a chunk is filled up
        # The head's parameters, which only `unembed` knows, become arguments.
        unembed, head = jax.closure_convert(functools.partial(model.unembed, params), x_NxMxD[0])
        chunks = x_NxMxD, split(batch["targets"], N), weight_NxM
        gather = functools.partial(activation_sharding.gather_head, model.spec)
        return chunked_cross_entropy((gather, unembed), *chunks, *head), jnp.float32(B * T)

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
