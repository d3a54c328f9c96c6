"""A target parameter count fills a model's fields, by the size rule of its family."""

import functools
import math
from collections.abc import Mapping
from typing import Any

from research import models
from research.errors import BadInput
from research.models import Model, accounting

MOST_RUNGS = 4096


def without_sized(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` without those that `size` fills: SIZED, except given FIXABLE ones."""
    fixed = {k for k in getattr(models.family(name), "FIXABLE", ()) if fields.get(k) is not None}
    return {k: v for k, v in fields.items() if k not in set(models.family(name).SIZED) - fixed}


def model_at_size(target: float, name: str, fields: Mapping[str, object], inputs: Any) -> Model:
    """The member of family `name` whose parameter count is nearest to `target`, in the logarithm.

    The family's `nth_size(i)` sets the SIZED fields that are not in `fields` (see
    `without_sized`). Raises BadInput if the nearest size is off by more than a factor of 2.
    """
    return _at_size(target, name, tuple(fields.items()), inputs)


@functools.lru_cache(maxsize=512)
def _at_size(target: float, name: str, fields: tuple, inputs: Any) -> Model:
    fixed = dict(fields)
    family = models.family(name)

    @functools.cache
    def member(i: int) -> tuple[float, Model]:
        model = models.build(name, **family.nth_size(i, **fixed) | fixed)
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
