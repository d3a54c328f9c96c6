"""The horizon of a run, its batch and its peak learning rate, by rules.

Every rule is put into words that are printed and stored with the run.
"""

from collections.abc import Mapping

from research.errors import BadInput
from research.models import Model, accounting

OF_WIDTH = ("constant", "inverse_width")  # rules of the learning rate that know no length
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


def peak_learning_rate(optim: Mapping, model: Model) -> tuple[float, str]:
    """The peak rate of this model by the section `optim`, and the rule in words (and, on a second
    line, its outcome). With a rule of transfer it is that of the base shape."""
    lr, transfer = optim["lr"], optim["transfer"]
    if optim["lr_rule"] == "constant":
        return lr, f"learning rate = {lr:.4g}, whatever the size"
    width, of = getattr(model.spec, "width", None), "width"
    if width is None:
        raise BadInput("optim.lr_rule: inverse_width needs a model with a width")
    if transfer["rule"] != "none":
        width, of = transfer["width"], "base width"
    return lr / width, f"learning rate = {lr:g} / {of}\n{of} {width}: {lr / width:.4g}"
