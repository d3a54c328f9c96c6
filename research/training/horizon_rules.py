"""Rules by which a batch follows the tokens of a run."""

import math
from collections.abc import Mapping

from research.errors import BadInput
from research.training.horizon import TOLERANCE

REFERENCE_TOKENS = 1e6  # at which batch.rule = sqrt_tokens gives batch.size itself


def batch_size(rule: str, size: int, horizon: Mapping, per: Mapping[str, float]) -> tuple[int, str]:
    """Examples in a batch, and the rule in words.

    "sqrt_tokens": the batch that is best for a run grows about as the square root of its tokens,
    whatever the model's size (exponents of 0.38 to 0.5: Zhang et al. 2024, "How does critical batch
    size scale in pre-training?"; Bergsma et al. 2025, "Power lines"). `per` is of `per_example`.
    """
    if horizon["unit"] == "steps":
        raise BadInput(
            f"batch.rule: {rule}, but horizon.unit is steps, which fix no tokens until the "
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
