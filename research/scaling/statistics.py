"""Statistics of groups of runs, which several analyses share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def held_out_summary(rule: str | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The section "holdout" of rows with an "error" and whether they are "covered"."""
    errors = np.array([row["error"] for row in rows])
    return {
        "rule": rule,
        "rows": rows,
        "mean_absolute_error": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "covered": sum(row["covered"] for row in rows),
    }


def pooled_sd(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation within groups of replicates, and its degrees of freedom."""
    several = [np.array(g) for g in groups if len(g) > 1]
    freedom = sum(len(g) - 1 for g in several)
    squares = sum(float(((g - g.mean()) ** 2).sum()) for g in several)
    return math.sqrt(squares / freedom) if freedom else 0.0, freedom
