"""Statistics of groups of runs, which several analyses share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

NORMAL = 1.96  # standard deviations in half of a 95 % interval
MEDIAN_OF_NORMAL = 0.6745  # of the size of what is normal with a standard deviation of one
EFFICIENCY = 0.37  # of a scale from the median, beside one from squares, for normal noise
SAME_BUDGET = 0.05  # relative: FLOPs this near to each other are one budget
BUDGET_SPREAD = 0.2  # relative: FLOPs of one budget are not further apart than this
FEW_STRAY = 0.1  # share of the values (at least one) that may be strays
STRAY = 1e3  # factor beyond all others, from which on a value may be one
FALSE_ALARM = 0.001  # share of tables of normal noise in which a row is taken for an outlier


def held_out_row(
    run: str,
    known: Mapping[str, Any],
    predicted: Mapping[str, Any],
    response: str,
    measured: float,
) -> dict[str, Any]:
    """What was `predicted` for one held-out run (with its "run_interval", of which an end may be
    open), beside what was measured."""
    low, high = predicted["run_interval"]
    return {
        "run": run,
        **known,
        **predicted,
        "measured": measured,
        "error": float(predicted[response] / measured - 1),
        "covered": (low is None or low <= measured) and (high is None or measured <= high),
    }


def held_out_summary(rule: str | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The section "holdout" of rows with an "error" and whether they are "covered"; "half_width" is
    the median of their intervals, relative (not finite where that is open)."""
    errors = np.array([row["error"] for row in rows])
    ends = [row["run_interval"] for row in rows]
    halves = [math.inf if None in pair or pair[0] <= 0 else math.log(pair[1] / pair[0]) / 2
              for pair in ends]  # fmt: skip
    return {
        "rule": rule,
        "rows": rows,
        "half_width": math.expm1(float(np.median(halves))),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "covered": sum(row["covered"] for row in rows),
    }


def pooled_sd(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation within groups of replicates, and its degrees of freedom. What lies far
    off the median of its group is no noise of a seed: a run that diverged, or one of another kind;
    of two that differ so much neither is kept."""
    several = [np.array(g) for g in groups if len(g) > 1]
    if several:
        off = [g - np.median(g) for g in several]
        outliers = find_outliers(np.concatenate(off), len(several))[1]
        parts = np.split(~outliers, np.cumsum([len(g) for g in several])[:-1])
        several = [g[kept] for g, kept in zip(several, parts, strict=True) if kept.sum() > 1]
    freedom = sum(len(g) - 1 for g in several)
    squares = sum(float(((g - g.mean()) ** 2).sum()) for g in several)
    return math.sqrt(squares / freedom) if freedom else 0.0, freedom


def robust_scale(residuals: np.ndarray, parameters: int) -> float:
    """The standard deviation of residuals about what was fitted with so many parameters, from their
    median, which a minority of outliers hardly moves. The smallest are left out, as many as there
    are parameters: a fit passes near to so many rows whatever their noise."""
    size = np.sort(np.abs(residuals))[parameters:]
    return float(np.median(size)) / MEDIAN_OF_NORMAL if len(size) else math.nan


def find_outliers(residuals: np.ndarray, parameters: int) -> tuple[np.ndarray, np.ndarray]:
    """How many robust standard deviations each residual is off, and which are outliers: so far off
    as none would be in 999 of 1000 tables of noise alone. The scale counts with the degrees of
    freedom that its efficiency leaves, so few rows have hardly any outliers."""
    from scipy.special import stdtrit

    scale, freedom = robust_scale(residuals, parameters), len(residuals) - parameters
    if freedom < 2 or not scale > 0:
        return np.full(len(residuals), math.nan), np.zeros(len(residuals), bool)
    limit = stdtrit(max(1.0, EFFICIENCY * freedom), 1 - FALSE_ALARM / 2 / len(residuals))
    off = residuals / scale
    return off, np.abs(off) > limit


def usual_range(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The least and the largest of positive values [n] without strays: a few that lie STRAY times
    beyond the others, and further from them than these from each other. A typing error, or a run of
    another kind: near it a law has nothing else to go by. None among fewer than five."""
    x = np.sort(np.asarray(values, float))
    few = max(1, int(FEW_STRAY * len(x))) if len(x) > 4 else 0
    core = x[few : len(x) - few]
    low, high, limit = core[0], core[-1], max(STRAY, core[-1] / core[0])
    for value in x[:few][::-1]:
        low = value if low / value <= limit else low
    for value in x[len(x) - few :]:
        high = value if value / high <= limit else high
    return float(low), float(high)


def number_budgets(flops: Sequence[float] | np.ndarray) -> np.ndarray:
    """The number [n] of the budget of each run, by its FLOPs (or another amount), from the least
    on."""
    return number_groups(flops, SAME_BUDGET, BUDGET_SPREAD)


def number_groups(
    values: Sequence[float] | np.ndarray, apart: float, spread: float = math.inf
) -> np.ndarray:
    """The number [n] of the group of each positive value, from the least on: neighbors that differ
    by no more than a share `apart` are in one group, which reaches no further than a share `spread`
    above its least."""
    values = np.asarray(values, float)
    order = np.argsort(values, kind="stable")
    out, current, first, before = np.empty(len(values), int), -1, -math.inf, -math.inf
    for i in order:
        if values[i] > before * (1 + apart) or values[i] > first * (1 + spread):
            current, first = current + 1, values[i]
        before, out[i] = values[i], current
    return out
