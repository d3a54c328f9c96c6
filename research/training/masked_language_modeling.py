"""Masked tokens (Devlin et al. 2019): what some tokens of a text were, most of which are hidden.
Dimensions: B batch, T time, M = B·T, V vocabulary."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from research.config.types import NonNegativeInt, OpenUnit
from research.data import Dataset, Split, tokenizers
from research.data.sampling import GOLDEN, splitmix64
from research.errors import BadInput
from research.models import Model
from research.runs.schema import Column
from research.training.language_modeling import LanguageModeling
from research.training.losses import cross_entropy

HIDDEN, RANDOM = 0.8, 0.1  # of the tokens asked about; the others stay as they are
NOT_ASKED = -1  # the target of all other tokens


@dataclass(frozen=True)
class MaskedLanguageModeling(LanguageModeling):
    """−log P(w_t | a text in which w_t is masked) in nats, of a `share` of all tokens.

    All positions are computed, so tokens and FLOPs count all of them; the loss is a mean over those
    that are asked about. `chunk` as in language modeling.
    """

    chunk: NonNegativeInt | None
    share: OpenUnit

    unit: ClassVar[str] = "nats per masked token"
    METRICS: ClassVar[tuple[Column, ...]] = (Column("accuracy", better="high"),)

    def prepared(self, data: Dataset, model: Model) -> Dataset:
        """`data` with masked windows. Raises BadInput for a model that has no mask."""
        if getattr(model.module, "causal", True):
            raise BadInput(
                "task.name: masked_language_modeling needs a model that looks to both sides and "
                "has a mask; expected model.name = encoder, or language_modeling"
            )
        # Ids whose words are not known have no separator.
        known = data.tokenizer or data.count_bytes is not None
        separator = _separator(data.tokenizer) if known else None
        masked = functools.partial(
            Masked, share=self.share, vocab=data.facts["vocab"], separator=separator
        )
        return dataclasses.replace(
            data, train=masked(data.train), heldout=masked(data.heldout), count_bytes=None
        )

    def terms(self, model: Model, params: dict, batch: Mapping[str, Array]) -> dict[str, Array]:
        """{"loss": [B] nats, "count": [B] tokens asked about, "hits": [B]} for inputs and targets
        [B, T]."""

        def measure(logits_MxV: Array, target_M: Array) -> tuple[Array, Array]:
            hit_M = jnp.argmax(logits_MxV, axis=-1) == target_M
            # NOT_ASKED reads the logit of the last token, and weighs nothing.
            return cross_entropy(logits_MxV, target_M), hit_M.astype(jnp.float32)

        nats_BxT, hit_BxT = self.by_token(measure, model, params, batch)
        weight_BxT, _ = self.weights(batch["targets"])
        return {
            "loss": (nats_BxT * weight_BxT).sum(-1),
            "count": weight_BxT.sum(-1),
            "hits": (hit_BxT * weight_BxT).sum(-1),
        }

    def weights(self, target_BxT: Array) -> tuple[Array, Array]:
        weight_BxT = (target_BxT != NOT_ASKED).astype(jnp.float32)
        return weight_BxT, weight_BxT.sum()

    def describe_rule(self, model: Model, tokens: int) -> str:
        words = (
            f"{self.share:.3g} of all tokens are asked about: {HIDDEN:.0%} of them are masked, "
            f"{RANDOM:.0%} are other tokens, the rest is as it was; tokens and FLOPs count all"
        )
        return "\n".join(filter(None, [words, super().describe_rule(model, tokens)]))

    def examined(self, data: Dataset, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        del data, rows
        return {}

    def metrics(self, sums: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss (nats per token asked about), and the share of these whose likeliest token is it."""
        del notes
        return {
            "loss": float(sums["loss"] / sums["count"]),
            "accuracy": float(sums["hits"] / sums["count"]),
        }


@dataclass(frozen=True)
class Masked:
    """The windows of `split`, masked. A mask is drawn for each example in training; in evaluation
    it follows from the window alone, so that all runs are asked the same."""

    split: Split
    share: float
    vocab: int
    separator: int | None

    def __len__(self) -> int:
        return len(self.split)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{"inputs": [B, T], where `vocab` is the mask, "targets": [B, T], the token or NOT_ASKED},
        int32."""
        tokens_BxT = self.split.rows(index, draw)["inputs"]
        bits_B = _content_bits(tokens_BxT) if draw is None else draw
        return mask(tokens_BxT, bits_B, self.share, self.vocab, self.separator)


def mask(
    tokens_BxT: np.ndarray, bits_B: np.ndarray, share: float, vocab: int, separator: int | None
) -> dict[str, np.ndarray]:
    """Inputs and targets (see Masked): a pure function of the tokens and one random uint64 for each
    window. Each token but the `separator` is asked about with the probability `share`, and one in
    every window at least, so that no mean is over nothing."""
    T = tokens_BxT.shape[1]
    number_3xT = np.arange(3 * T, dtype=np.uint64).reshape(3, 1, T)
    chosen, changed, other = splitmix64(bits_B[:, None] + number_3xT * GOLDEN)
    ordinary_BxT = tokens_BxT != separator if separator is not None else tokens_BxT >= 0
    chance_BxT = np.where(ordinary_BxT, _uniform(chosen), 1.0)
    bound_Bx1 = np.maximum(chance_BxT.min(1, keepdims=True), np.nextafter(share, 0))
    asked_BxT = ordinary_BxT & (chance_BxT <= bound_Bx1)
    kind_BxT, random_BxT = _uniform(changed), (other % np.uint64(vocab)).astype(np.int32)
    other_BxT = np.where(kind_BxT < HIDDEN + RANDOM, random_BxT, tokens_BxT)
    shown_BxT = np.where(kind_BxT < HIDDEN, vocab, other_BxT)
    return {
        "inputs": np.where(asked_BxT, shown_BxT, tokens_BxT).astype(np.int32),
        "targets": np.where(asked_BxT, tokens_BxT, NOT_ASKED).astype(np.int32),
    }


def _uniform(bits: np.ndarray) -> np.ndarray:
    """Random uint64 as numbers from 0 to below 1."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _content_bits(tokens_BxT: np.ndarray) -> np.ndarray:
    """A uint64 for each window, by its tokens alone, [B]."""
    rows = np.ascontiguousarray(tokens_BxT, "<i4")
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


@functools.lru_cache(maxsize=4)  # every point of a sweep asks
def _separator(tokenizer: str) -> int:
    return tokenizers.from_json(tokenizer).separator
