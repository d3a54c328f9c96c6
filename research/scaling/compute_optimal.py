"""The compute-optimal size and tokens of a budget, and what it costs to miss them.

For a law L(N, D) and a budget C = 6 N D (Hoffmann et al. 2022; any other accounting belongs in the
columns), N*(C) is the size with the least loss. For E + A / N^alpha + B / D^beta it has a closed
form: with G = (alpha A / (beta B))^(1 / (alpha + beta)), N* = G (C / 6)^(beta / (alpha + beta)) and
D* = (C / 6)^(alpha / (alpha + beta)) / G. Other laws are searched.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling.fit import Fit
from research.scaling.law import GROUP, Law
from research.scaling.power_laws import NAMES, SIX_ND
from research.scaling.statistics import (
    SAME_BUDGET,
    number_budgets,
    number_groups,
    usual_range,
)
from research.tables.table import Row

PER_TOKEN = 6.0  # training FLOPs per parameter and token
MIN_VALUES = 3  # of params, and of tokens
TOGETHER = 0.2  # range of a logarithm in which it is one value
SPAN = 12.0  # decades around sqrt(C / 6) in which an optimum is looked for
WIDE = 1e6  # factor on a budget or on tokens within which an equal loss is looked for
POINTS, FINER = 61, 17  # of the grid on which an optimum is searched for, and about its least
BUDGETS, STEP = 5, 1.1  # of the power law of N*(C): how many, and their range at least
AHEAD = 10.0  # times the largest budget of a table: where its answer is wanted
EXPONENTS, FALLS = ("alpha", "beta", "eta"), 1e-9  # of what falls, and more than rounding makes
NO_PARTS: dict[str, None] = dict.fromkeys(("noise", "parameters", "law"))  # of no loss
FACTORS = (0.25, 0.5, 2.0, 4.0)  # of the optimal size, whose cost is reported


def has_optimum(law: Law) -> bool:
    """Whether the law can say what is optimal: it reads parameters and tokens (and perhaps unique
    tokens, which are then all fresh)."""
    reads = set(law.columns)
    known = {"params", "tokens", "unique_tokens", GROUP}
    return law.response == "loss" and {"params", "tokens"} <= reads <= known


def vary_together(rows: Sequence[Row]) -> bool:
    """Whether no fit can tell what parameters and tokens each do: one of them hardly varies, or
    tokens go with a positive power of the parameters, so that either term may be the other's."""
    log_n, log_d = (np.log([row[name] for row in rows]) for name in ("params", "tokens"))
    if min(np.ptp(log_n), np.ptp(log_d), np.ptp(log_d - log_n)) < TOGETHER:
        return True
    if len(rows) < 3:
        return False
    slope, level = np.polyfit(log_n, log_d, 1)
    return bool(slope > 0 and np.ptp(log_d - level - slope * log_n) < TOGETHER)


def too_few_values(law: Law, rows: Sequence[Row], fixed: Collection[str]) -> str:
    """The count, params or tokens, of which there are too few values for a floor, a coefficient and
    an exponent; "" where there are enough, or the law has no exponent for each."""
    if fixed or not {"E", "alpha", "beta"} <= {*law.parameters}:
        return ""
    for name in ("params", "tokens"):
        values = number_groups([row[name] for row in rows], SAME_BUDGET, SAME_BUDGET)
        if len(np.unique(values)) < MIN_VALUES:
            return name
    return ""


def predict_loss(law: Law, theta_KxP: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The loss [K, m] of each law at m points, or at its own points [K, m]."""
    columns = {"params": n, "tokens": d, "unique_tokens": d, GROUP: np.zeros(np.shape(n))}
    if np.ndim(n) == 1:
        return np.exp(law.evaluate(theta_KxP, law.prepare(columns))[0])
    if not len(theta_KxP):
        return np.empty(np.shape(n))
    flat = law.prepare({k: np.ravel(v) for k, v in columns.items()})
    own = np.moveaxis(flat.reshape(*flat.shape[:-1], *np.shape(n)), -2, 0)
    return np.exp(law.evaluate(theta_KxP, own)[0])


def optimal_params(law: Law, theta_KxP: np.ndarray, flops: Sequence[float]) -> np.ndarray:
    """N* [K, m] of each law at each budget; NaN where the loss has no minimum within reach."""
    c = np.asarray(flops, float) / PER_TOKEN
    if law.name == "chinchilla":
        values = dict(zip(law.parameters, law.report(theta_KxP).T[:, :, None], strict=True))
        a, b = values["alpha"], values["beta"]
        with np.errstate(all="ignore"):
            log_g = np.log(a * values["A"] / (b * values["B"])) / (a + b)
            optima = np.exp(log_g + b / (a + b) * np.log(c))
            there = (a > FALLS) & (b > FALLS) & np.isfinite(np.log(optima))
        return np.where(there, optima, np.nan)
    found = np.stack([_search_optima(law, theta_KxP, budget) for budget in c], axis=1)
    at = [i for i, name in enumerate(law.parameters) if name in EXPONENTS]
    falls = np.all(law.report(theta_KxP)[:, at] > FALLS, axis=1)
    return np.where(falls[:, None], found, np.nan)  # of a loss that rises nothing is the least


def _search_optima(law: Law, theta_KxP: np.ndarray, c: float) -> np.ndarray:
    """The size [K] of least loss along N D = c: the least on a grid of log N, then on a finer one
    about it, between whose points the loss is a parabola. NaN where the least is at an end; of
    several minima the lowest."""
    reach = SPAN / 2 * np.log(10)
    grid = np.log(c) / 2 + np.linspace(-reach, reach, POINTS)
    at = _losses_along(law, theta_KxP, grid, c).argmin(1)
    inside = (at > 0) & (at < POINTS - 1)
    finer = np.linspace(-1, 1, FINER) * (grid[1] - grid[0])
    about = grid[np.clip(at, 1, POINTS - 2)][:, None] + finer
    loss = _losses_along(law, theta_KxP, about, c)
    at = np.clip(loss.argmin(1), 1, FINER - 2)[:, None]
    low, middle, high = (np.take_along_axis(loss, at + d, 1)[:, 0] for d in (-1, 0, 1))
    with np.errstate(all="ignore"):
        shift = (low - high) / (2 * (low - 2 * middle + high))
        shift = np.where(np.isfinite(shift), np.clip(shift, -1, 1), 0.0)
        best = np.take_along_axis(about, at, 1)[:, 0] + shift * (finer[1] - finer[0])
        return np.where(inside, np.exp(best), np.nan)


def _losses_along(law: Law, theta_KxP: np.ndarray, log_n: np.ndarray, c: float) -> np.ndarray:
    """The losses [K, m] at sizes along N D = c; infinite where the law has none."""
    with np.errstate(all="ignore"):
        loss = predict_loss(law, theta_KxP, np.exp(log_n), c / np.exp(log_n))
    return np.where(np.isfinite(loss), loss, np.inf)


def optimal_power_laws(fit: Fit) -> dict[str, Any] | None:
    """N* = k C^a and D* = k' C^a' over the budgets of the table, with 95 % intervals; exact where a
    law's optimum is a power of the budget. None if sizes and tokens vary together."""
    if vary_together(fit.parts.fitted):
        return None
    over = budget_range(fit.parts.fitted)
    estimates = power_laws(fit.law, fit.best[None], over)[0]
    drawn = power_laws(fit.law, fit.samples, over)
    out: dict[str, Any] = {}
    for i, name in enumerate(NAMES):
        logged = name.endswith("coefficient")
        value = np.exp(estimates[i]) if logged else estimates[i]
        out[name] = _or_none(value)
    out["intervals"] = {}
    for i, name in enumerate(NAMES):
        ends = _quantiles(drawn[:, i])
        if name.endswith("coefficient"):
            ends = [None if x is None else float(np.exp(x)) for x in ends]
        out["intervals"][name] = ends
    out["flops_convention"] = SIX_ND
    return out


def power_laws(law: Law, theta_KxP: np.ndarray, flops: np.ndarray) -> np.ndarray:
    """[K, 4] in the order of NAMES, of coefficients the logarithm: the power of the budget that is
    nearest to N*(C) at these budgets [m] (least squares of its logarithm), which approaches 1 and 2
    fit to the optima that they find. NaN where a budget has no optimum."""
    log_c = np.log(flops)
    off = log_c - log_c.mean()
    with np.errstate(all="ignore"):
        log_n = np.log(optimal_params(law, theta_KxP, list(flops)))
        a = log_n @ off / (off @ off)
        log_k = log_n.mean(1) - a * log_c.mean()
    return np.stack([a, log_k, 1 - a, -np.log(PER_TOKEN) - log_k], axis=-1)


def budget_range(rows: Sequence[Row]) -> np.ndarray:
    """A few budgets from the least to the largest of the rows, evenly in their logarithm; about the
    largest where there is but one."""
    least, most = _usual_budgets(rows)
    return np.geomspace(min(least, most / STEP), most, BUDGETS)


def largest_budget(rows: Sequence[Row]) -> float:
    """The largest budget 6 N D of the rows; strays are none (statistics.usual_range)."""
    return _usual_budgets(rows)[1]


def _usual_budgets(rows: Sequence[Row]) -> tuple[float, float]:
    return usual_range([PER_TOKEN * row["params"] * row["tokens"] for row in rows])


def beyond_slope(rows: Sequence[Row], c: float) -> float:
    """How far a budget outside those of the rows is, in log compute, from where the slope of what
    changes with the budget is last seen: between the last two. 0 within them."""
    low, high = _usual_budgets(rows)
    amounts = np.array([PER_TOKEN * row["params"] * row["tokens"] for row in rows])
    amounts = amounts[(amounts >= low) & (amounts <= high)]
    numbers = number_budgets(amounts)
    logs = np.array([np.log(amounts[numbers == i]).mean() for i in range(numbers.max() + 1)])
    if low <= c <= high:
        return 0.0
    last = logs[-2:] if c > high else logs[:2]
    return abs(math.log(c) - float(last.mean()))


def target_budget(rows: Sequence[Row]) -> float:
    """The budget 6 N D of which every answer speaks where none is asked for."""
    return AHEAD * largest_budget(rows)


def predict_optima(fit: Fit, flops: Sequence[float]) -> list[dict[str, Any]]:
    """The compute-optimal run of each budget: size, tokens, loss, each with its 95 % interval, and
    what the choice may cost.

    "regret" is the loss of the recommended (N*, D*) above the least loss that the budget allows, if
    one of the resampled laws were the true one: its median and 95 % quantile. "off_size" is the
    loss at other sizes of the same budget, and the share of FLOPs that this wastes. "overtrained"
    trains a smaller model longer to the same loss: the factor on training FLOPs, and on the cost of
    a generated token.
    """
    if not len(flops):
        return []
    if not has_optimum(fit.law):
        raise BadInput(f"--predict_flops: {fit.law.name} does not read params and tokens")
    samples = fit.samples
    n_all = optimal_params(fit.law, samples, flops)
    n_best = optimal_params(fit.law, fit.best[None], flops)[0]
    few = too_few_values(fit.law, fit.parts.fitted, (*fit.options.fix, *fit.options.prior))
    if few or vary_together(fit.parts.fitted):
        n_best = np.full(len(flops), np.nan)
    c_all = np.asarray(flops, float)
    found = np.isfinite(n_best)
    n, d = n_best[found], c_all[found] / PER_TOKEN / n_best[found]
    # All at once: an interval takes hundreds of refits, side by side as cheap as a few.
    points = {"params": n, "tokens": d, "unique_tokens": d, GROUP: np.zeros(len(n))}
    losses = iter(zip(*fit.predict(points), strict=True) if len(n) else ())
    return [
        _prediction(fit, c, n_best[i], samples, n_all[:, i], next(losses))
        if found[i]
        else no_optimum(c)
        for i, c in enumerate(flops)
    ]


def no_optimum(c: float) -> dict[str, Any]:
    """The prediction of a budget at which no optimum is known: all its keys, without a value."""
    names = ("params", "tokens", "tokens_per_param", "loss")
    return {
        "flops": float(c),
        **dict.fromkeys(names),
        "intervals": {name: [None, None] for name in (*names, "run")},
        "interval": [None, None],
        "run_interval": [None, None],
        "parts": dict(NO_PARTS),
    }


def _prediction(
    fit: Fit,
    c: float,
    n: float,
    samples: np.ndarray,
    n_K: np.ndarray,
    loss: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """One budget's, whose loss with its intervals `fit.predict` has given."""
    law, (at, of_law, of_run) = fit.law, loss
    d, d_K = c / PER_TOKEN / n, c / PER_TOKEN / n_K
    with np.errstate(all="ignore"):
        here = predict_loss(law, samples, np.array([n]), np.array([d]))[:, 0]
        least = predict_loss(law, samples, n_K[:, None], d_K[:, None])[:, 0]
    regret = np.maximum(here - least, 0)
    regret = regret[np.isfinite(regret)]
    return {
        "flops": float(c),
        "params": float(n),
        "tokens": float(d),
        "tokens_per_param": float(d / n),
        "loss": float(at),
        "intervals": {
            "params": _quantiles(n_K),
            "tokens": _quantiles(d_K),
            "tokens_per_param": _quantiles(d_K / n_K),
            "loss": _finite_ends(of_law),
            "run": _finite_ends(of_run),
        },
        "interval": _finite_ends(of_law),
        "run_interval": _finite_ends(of_run),
        "parts": fit.parts_of(float(at), of_law, floor_share(law, samples, here)),
        "regret": {
            "median": _or_none(np.median(regret)) if len(regret) else None,
            "quantile_95": _or_none(np.quantile(regret, 0.95)) if len(regret) else None,
        },
        "off_size": [_off_size(fit, c, n, factor) for factor in FACTORS],
        "overtrained": [_overtrained(fit, n, d, factor) for factor in (0.5, 0.25, 0.125)],
    }


def floor_share(law: Law, draws: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the variance of a prediction [K] that goes with E of the draws [K, P]: what a
    known floor would take away."""
    if "E" not in law.parameters or len(predicted) < 3 or not predicted.std():
        return 0.0
    floor = np.exp(draws[:, law.parameters.index("E")])
    return float(np.corrcoef(floor, predicted)[0, 1] ** 2) if floor.std() else 0.0


def _off_size(fit: Fit, c: float, n: float, factor: float) -> dict[str, Any]:
    """A size off by `factor` at the same budget: its loss, and the FLOPs that the optimal size
    would have needed for that."""
    best = fit.best[None]
    value = predict_loss(
        fit.law, best, np.array([n * factor]), np.array([c / PER_TOKEN / n / factor])
    )

    def worse(budget: float) -> bool:
        size = optimal_params(fit.law, best, [budget])[0]
        return predict_loss(fit.law, best, size, budget / PER_TOKEN / size)[0, 0] > value[0, 0]

    same = _crossing(worse, c / WIDE, c)
    return {"factor": factor, "loss": float(value[0, 0]), "wasted_flops": float(1 - same / c)}


def _overtrained(fit: Fit, n: float, d: float, factor: float) -> dict[str, Any]:
    """A model smaller by `factor` with the same loss: tokens, and the factor on training FLOPs;
    None if no number of tokens brings it there."""
    best, small = fit.best[None], np.array([n * factor])
    target = predict_loss(fit.law, best, np.array([n]), np.array([d]))[0, 0]
    high = np.log(d * WIDE)
    out: dict[str, Any] = {"params_factor": factor, "params": float(small[0])}
    if not predict_loss(fit.law, best, small, np.exp([high]))[0, 0] <= target:
        return {**out, "tokens": None, "training_flops_factor": None}
    tokens = _crossing(
        lambda tokens: predict_loss(fit.law, best, small, np.array([tokens]))[0, 0] > target,
        d,
        d * WIDE,
    )
    return {**out, "tokens": tokens, "training_flops_factor": factor * tokens / d}


def _crossing(worse: Callable[[float], bool], low: float, high: float) -> float:
    """Where what is worse below becomes no worse, by bisection in the logarithm."""
    low, high = math.log(low), math.log(high)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if worse(math.exp(middle)) else (low, middle)
    return math.exp((low + high) / 2)


def _quantiles(values: np.ndarray) -> list[float | None]:
    """The 2.5 and 97.5 % quantiles; open where too many of the draws have no optimum."""
    finite = values[np.isfinite(values)]
    if not len(finite) or len(finite) < 0.95 * len(values):
        return [None, None]
    return [float(x) for x in np.quantile(finite, [0.025, 0.975])]


def _finite_ends(pair: np.ndarray) -> list[float | None]:
    return [_or_none(x) for x in pair]


def _or_none(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
