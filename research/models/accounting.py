"""Parameter and FLOP counts under every convention in use.

Scaling exponents depend on the convention (0.37, 0.54 or 0.70 for the same optima, depending on
whether embedding and head are counted), so a run records all of them and the analysis chooses.

Parameters: `params`, all; `params_non_embedding`, without token and position embeddings and head
(Kaplan et al. 2020); `params_matmul`, those in matmuls, including a tied embedding as the head.

Training FLOPs of D tokens: `flops_6nd` = 6 · params · D (Hoffmann et al. 2022);
`flops_6nd_non_embedding`, the same with that count; `flops_exact_full`, the matmuls the program
performs: 1 forward and 2 backward (1 in the first layer, since the data need no gradient), with the
head and the whole attention map; `flops_exact_causal`, with only the unmasked half of the map.
Rematerialization and elementwise work are never counted. `flops` is `flops_exact_full`.
"""

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any

from research.models import Model
from research.params import flatten_dict, match_path

FLOPS_CONVENTION = "exact_full"
FIRST = "first_layer"  # the part of `forward_flops` whose input is the data
OUTSIDE = ("embedding", "position", "head")  # what "non-embedding" leaves out


def params(model: Model, inputs: Any) -> dict[str, Any]:
    """Parameter counts under every convention, and per group under "groups", for abstract `inputs`.

    Raises BadInput unless every leaf belongs to exactly one group, so the groups sum to `params`.
    """
    return copy.deepcopy(_params(model, inputs))


@functools.lru_cache(maxsize=4096)  # a sweep asks for every size many times
def _params(model: Model, inputs: Any) -> dict[str, Any]:
    groups: dict[str, int] = {}
    matmul = 0
    for path, leaf in flatten_dict(model.shapes(inputs)):
        size = math.prod(leaf.shape)  # type: ignore[attr-defined]
        group = match_path(model.groups, path, "row of its family's GROUPS")
        groups[group] = groups.get(group, 0) + size
        head = group == "embedding" and getattr(model.spec, "tie_embeddings", False)
        matmul += size if path.endswith("kernel") or head else 0
    total = sum(groups.values())
    return {
        "params": total,
        "params_non_embedding": total - sum(groups.get(name, 0) for name in OUTSIDE),
        "params_matmul": matmul,
        "groups": groups,
    }


def flops(
    model: Model, counts: Mapping[str, Any], tokens: int, examples: float
) -> dict[str, float]:
    """Training FLOPs under every convention, for `examples` examples, `tokens` tokens in total."""
    full, causal = _exact(model)
    return {
        "flops_6nd": 6.0 * counts["params"] * tokens,
        "flops_6nd_non_embedding": 6.0 * counts["params_non_embedding"] * tokens,
        "flops_exact_full": full * examples,
        "flops_exact_causal": causal * examples,
    }


def step_flops(model: Model, batch: int) -> float:
    """`flops_exact_full` of one training step."""
    return _exact(model)[0] * batch


def shares(model: Model) -> dict[str, float]:
    """The fractions of `flops_exact_full` due to the head and the whole attention map. Where one is
    large and varies with size, the exponent depends on whether it is counted."""
    parts, total = model.forward_flops(), _exact(model)[0]
    head, attention = parts.get("head", 0), parts.get("attention_full", 0)
    return {"head_share": 3 * head / total, "attention_share": 3 * attention / total}


def _exact(model: Model) -> tuple[float, float]:
    """Training FLOPs of one example: with the full attention map, and with its causal half."""
    parts = model.forward_flops()
    causal, full = parts.pop("attention_causal", 0), parts.pop("attention_full", 0)
    dots = sum(parts.values()) - parts.get(FIRST, 0) / 3
    return 3.0 * (dots + full), 3.0 * (dots + causal)
