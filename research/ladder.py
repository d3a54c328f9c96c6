"""One dial: a target size fills the model's fields, a horizon becomes steps, a rule gives the rate.

Every rule is written down in words that are printed and stored with the run.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

from research import accounting, models
from research.errors import BadInput
from research.models import Model

MOST_RUNGS = 4096


def at_size(target: float, name: str, fields: Mapping[str, object], inputs: Any) -> Model:
    """The member of family `name` whose parameter count is nearest to `target`, in the logarithm.

    The family's `rung(i)` fills the fields of its SIZED; `fields` are the others. Raises BadInput
    when the target is outside the ladder by more than a factor of two.
    """
    return _at_size(target, name, tuple(fields.items()), inputs)


@functools.lru_cache(maxsize=512)
def _at_size(target: float, name: str, fields: tuple, inputs: Any) -> Model:
    given = dict(fields)
    family = models.family(name)

    @functools.cache
    def member(i: int) -> tuple[float, Model]:
        model = models.build(name, **given | family.rung(i, **given))
        return math.log(accounting.params(model, inputs)["params"] / target), model

    low, high = 1, 2
    while member(high)[0] < 0 and high < MOST_RUNGS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if member(middle)[0] < 0 else (low, middle)
    error, model = min((member(low), member(high)), key=lambda m: abs(m[0]))
    if abs(error) > math.log(2):
        raise BadInput(
            f"size: {target:g} parameters cannot be met; the nearest {name} with these fields "
            f"has {math.exp(error) * target:,.0f}"
        )
    return model


def steps(
    unit: str, amount: float, *, batch: int, counts: Mapping, flops: float, tokens: int, n: int
) -> int:
    """Training steps for a horizon, to the nearest whole step, at least 1.

    `tokens` per example, `flops` per step (exact, full attention map), `n` unique examples;
    tokens_per_param counts all parameters (20 is Chinchilla's rule of thumb).
    """
    per_step = {
        "steps": 1,
        "examples": batch,
        "tokens": batch * tokens,
        "epochs": batch / n,
        "flops": flops,
        "tokens_per_param": batch * tokens / counts["params"],
    }[unit]
    count = round(amount / per_step)
    if count >= 2**31 - 1:
        raise BadInput(f"horizon.amount: {amount:g} {unit} are {count:.3g} steps, more than 2^31")
    return max(1, count)


def learning_rate(rule: str, lr: float, model: Model) -> tuple[float, str]:
    """The peak rate of this model, and the rule in words (and, on a second line, its outcome)."""
    if rule == "constant":
        return lr, f"learning rate = {lr:.4g}, whatever the size"
    width = getattr(model.spec, "width", None)
    if width is None:
        raise BadInput("optim.lr_rule: inverse_width needs a model with a width")
    return lr / width, f"learning rate = {lr:g} / width\nwidth {width}: {lr / width:.4g}"
