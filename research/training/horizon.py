"""The horizon of a run, its batch and its peak learning rate, by rules.

Every rule is put into words that are printed and stored with the run.
"""

import math
from collections.abc import Mapping
from typing import Any

from research.config import schema
from research.errors import BadInput
from research.models import Model, accounting

REFERENCE_TOKENS = 1e6  # at which batch.rule = sqrt_tokens gives batch.size itself
TOLERANCE = 0.01  # by how much whole steps may miss a horizon without a word


def per_example(model: Model, counts: Mapping, tokens: int, n: int) -> dict[str, float]:
    """What one training example adds to a horizon of each unit but "steps".

    `tokens` per example, `n` unique examples. "flops" is exact, with head and whole attention map;
    the other units of FLOPs are named as `accounting` names their conventions; "tokens_per_param"
    counts all parameters (20 is Chinchilla's rule of thumb).
    """
    flops = accounting.flops(model, counts, tokens, 1)
    return {
        "examples": 1.0,
        "tokens": tokens,
        "epochs": 1 / n,
        "tokens_per_param": tokens / counts["params"],
        "flops": flops[f"flops_{accounting.FLOPS_CONVENTION}"],
        **flops,
    }


def batch_size(rule: str, size: int, horizon: Mapping, per: Mapping[str, float]) -> tuple[int, str]:
    """Examples in a batch, and the rule in words ("" where the size is simply given).

    "sqrt_tokens": the batch that is best for a run grows about as the square root of its tokens,
    whatever the model's size (exponents of 0.38 to 0.5: Zhang et al. 2024, "How does critical batch
    size scale in pre-training?"; Bergsma et al. 2025, "Power lines"). `per` is of `per_example`.
    """
    if rule == "constant":
        return size, ""
    if horizon["unit"] == "steps":
        raise BadInput(
            "batch.rule: sqrt_tokens, but horizon.unit is steps, which fix no tokens until the "
            "batch is known; expected constant, or a horizon of another unit"
        )
    examples = horizon["amount"] / per[horizon["unit"]]
    tokens = examples * per["tokens"]
    if not 0 < tokens < 2**63:
        raise BadInput(
            f"horizon.amount: {horizon['amount']:g} {horizon['unit']} are {tokens:.3g} tokens; "
            "expected fewer than 2^63, and some"
        )
    power = 2 ** max(0, round(math.log2(size * math.sqrt(tokens / REFERENCE_TOKENS))))
    while power > 1 and abs(max(1, round(examples / power)) * power / examples - 1) > TOLERANCE:
        power //= 2
    return power, (
        f"batch = {size} sqrt(tokens / {REFERENCE_TOKENS:g}), to a power of 2, halved until whole "
        f"steps are within {TOLERANCE:.0%} of the horizon; the learning rate does not follow it\n"
        f"{tokens:.4g} tokens: batch {power}"
    )


def training_steps(horizon: Mapping, batch: int, per: Mapping[str, float]) -> tuple[int, str]:
    """Training steps for a horizon {"unit", "amount"}, to the nearest whole step; and in words,
    with what rounding changes if that is more than TOLERANCE. Raises BadInput for less than half a
    step, and for more than can be counted."""
    unit, amount, tokens = horizon["unit"], horizon["amount"], per["tokens"]
    steps = amount if unit == "steps" else amount / (batch * per[unit])
    each = f"{batch} x {tokens:g} tokens" if tokens > 1 else f"{batch} examples"
    if not 0.5 <= steps < 2**31 - 1:
        raise BadInput(
            f"horizon.amount: {amount:g} {unit} are {steps:.3g} steps of {each}; expected at "
            "least 1 step, and fewer than 2^31"
        )
    count = max(1, round(steps))
    away = count / steps - 1
    rounding = f" ({away:+.1%} by whole steps)" if abs(away) > TOLERANCE else ""
    return count, f"{count:,} steps of {each} for {amount:g} {unit}{rounding}"


def isoflop_budget(horizon: Mapping, examples: int, per: Mapping[str, float]) -> dict[str, Any]:
    """Of an isoFLOP cell: the FLOPs that it was given, by which convention, and by what part whole
    steps miss them. {} for a horizon of another unit."""
    unit, amount = horizon["unit"], horizon["amount"]
    if unit not in schema.FLOPS_UNITS:
        return {}
    name = accounting.FLOPS_CONVENTION if unit == "flops" else unit.removeprefix("flops_")
    away = examples * per[unit] / amount - 1
    return {"budget": amount, "budget_convention": name, "budget_away": away}


def peak_learning_rate(rule: str, lr: float, model: Model) -> tuple[float, str]:
    """The peak rate of this model, and the rule in words (and, on a second line, its outcome)."""
    if rule == "constant":
        return lr, f"learning rate = {lr:.4g}, whatever the size"
    width = getattr(model.spec, "width", None)
    if width is None:
        raise BadInput("optim.lr_rule: inverse_width needs a model with a width")
    return lr / width, f"learning rate = {lr:g} / width\nwidth {width}: {lr / width:.4g}"
