"""Tasks: what a model's outputs are measured by.

A task turns a batch into per-example sums ("loss" in nats and the "count" it is over, and whatever
else its metrics need), so that training and evaluation add up the same numbers, padding is a
weight, and the mean is over all tokens and not over batches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from research.models import Model


@dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction: −log P(w_t | w_<t) in nats."""

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B] tokens} for inputs and targets [B, T]."""
        B, T = batch["targets"].shape
        logits_MxV = model.unembed(params, model.apply(params, batch["inputs"]))
        target_M = batch["targets"].reshape(B * T)
        chosen_M = jnp.take_along_axis(logits_MxV, target_M[:, None], axis=-1)[:, 0]
        nats_M = jax.nn.logsumexp(logits_MxV, axis=-1) - chosen_M
        return {"loss": nats_M.reshape(B, T).sum(-1), "count": jnp.full((B,), T, jnp.float32)}

    def metrics(self, sums: Mapping[str, float], bytes_per_token: float) -> dict[str, float]:
        """Loss (nats per token), perplexity, and bits per byte where bytes are known."""
        loss = sums["loss"] / sums["count"]
        out = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if bytes_per_token == bytes_per_token:  # a file of token ids has no known bytes
            out["bits_per_byte"] = loss / math.log(2) / bytes_per_token
        return out


TASKS = {"language_modelling": LanguageModelling}
