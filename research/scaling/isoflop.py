"""IsoFLOP minima (Hoffmann et al. 2022, approach 2): the best size of every budget.

A minimum is located twice, side by side. "akima" interpolates log loss over log size by Akima's
local cubics, which assume no shape; "parabola" fits one to the whole budget, which is biased where
the sizes are off-center or the valley is not symmetric. Noise is added to the losses again and
again (Porian et al. 2024): a budget whose minimum lies on the edge of its sizes in half of the
cases is dropped, and the others count by how sharply they are located, though never more sharply
than a third of the distance between sizes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import table
from research.scaling.compute_optimal import NAMES
from research.scaling.envelope import SAME
from research.scaling.fit import RESAMPLES, Fit
from research.scaling.laws import power
from research.scaling.options import Options, Split
from research.scaling.statistics import held_out_summary, pooled_sd

MOST = 0.2  # relative: FLOPs of one budget are not further apart than this
PER_INTERVAL = 25  # points at which an interpolation is looked at, between two sizes
NOISE = 5e-4  # of log loss, where no replicates tell it: 0.002 nats at a loss of 4
FEWEST = 4  # sizes of a budget
NEAR = 5  # sizes around a minimum, through which a cubic has one degree of freedom left


@dataclass(frozen=True)
class Budget:
    """The runs of one budget by log size: loss in logs, averaged over runs of one size, of which
    there are so many."""

    flops: float
    log_n: np.ndarray
    log_d: np.ndarray
    log_loss: np.ndarray
    runs: np.ndarray


def group_by_budget(rows: Sequence[table.Row]) -> tuple[list[Budget], list[dict[str, str]]]:
    """The budgets with enough sizes, and the others with the reason."""
    groups: list[list[table.Row]] = []
    for row in sorted(rows, key=lambda row: row["flops"]):
        near = groups and row["flops"] <= groups[-1][-1]["flops"] * (1 + SAME)
        if near and row["flops"] <= groups[-1][0]["flops"] * (1 + MOST):
            groups[-1].append(row)
        else:
            groups.append([row])
    out, dropped = [], []
    for group in groups:
        flops = float(np.exp(np.mean([math.log(row["flops"]) for row in group])))
        sizes = sorted({row["params"] for row in group})
        if len(sizes) < FEWEST:
            reason = f"{len(sizes)} sizes at this budget; at least {FEWEST} are needed"
            dropped.append({"run": f"budget {flops:.4g}", "reason": reason})
            continue
        same = [[row for row in group if row["params"] == size] for size in sizes]

        def mean(column: str, same: list = same) -> np.ndarray:
            return np.array([np.mean([math.log(row[column]) for row in rows]) for rows in same])

        runs = np.array([len(rows) for rows in same])
        budget = Budget(flops, np.log(sizes), mean("tokens"), mean("loss"), runs)
        out.append(budget)
    return out, dropped


Located = tuple[np.ndarray, np.ndarray]  # log N* [K] (NaN on the edge), log loss there [K]


def akima_minimum(log_n: np.ndarray, log_loss_nxK: np.ndarray) -> Located:
    """The minimum of Akima's interpolation between the sizes, for K sets of losses at once."""
    from scipy.interpolate import Akima1DInterpolator

    part = np.arange(PER_INTERVAL) / PER_INTERVAL
    grid = np.append((log_n[:-1, None] + np.diff(log_n)[:, None] * part).ravel(), log_n[-1])
    values = Akima1DInterpolator(log_n, log_loss_nxK)(grid)
    at = values.argmin(0)
    edge = (at == 0) | (at == len(grid) - 1)
    least = np.take_along_axis(values, at[None], 0)[0]
    return np.where(edge, np.nan, grid[at]), least


def parabola_minimum(log_n: np.ndarray, log_loss_nxK: np.ndarray) -> Located:
    """The vertex of the least-squares parabola, for K sets of losses at once."""
    center, width = log_n.mean(), np.ptp(log_n)
    x = (log_n - center) / width
    c, b, a = np.linalg.lstsq(np.stack([np.ones_like(x), x, x * x], 1), log_loss_nxK)[0]
    with np.errstate(all="ignore"):
        at = -b / (2 * a)
        bad = ~((a > 0) & (at > x[0]) & (at < x[-1]))
        return np.where(bad, np.nan, center + width * at), c - b * b / (4 * a)


LOCATE: dict[str, Callable[[np.ndarray, np.ndarray], Located]] = {
    "akima": akima_minimum,
    "parabola": parabola_minimum,
}


def locate_minima(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    budgets, dropped = group_by_budget(rows)
    if len(budgets) < 2:
        raise BadInput(
            f"{len(budgets)} budgets with at least {FEWEST} sizes; isoflop needs 2. A budget is a "
            f"distinct value of flops (to {SAME:.0%})",
            *(f"{row['run']}: {row['reason']}" for row in dropped[:5]),
        )
    noise, source = _estimate_noise(rows, budgets, options)
    resamples = RESAMPLES if options.bootstrap is None else options.bootstrap
    methods, reasons = {}, {}
    for name in LOCATE:
        minima, reasons[name] = _sample_minima(budgets, name, noise, resamples, options.seed)
        methods[name] = _power_laws(minima) if len(minima) >= 2 else None
        if methods[name]:
            methods[name]["minima"] = minima
    chosen = methods[options.method]
    if chosen is None:
        raise BadInput(
            f"isoflop needs two budgets whose minimum lies between their sizes ({options.method})",
            *(f"{row['run']}: {row['reason']}" for row in reasons[options.method][:8]),
        )
    side = {}
    for name, estimate in methods.items():
        if estimate:
            side[name] = {
                **(found_by := summarize_power_laws(estimate))["params"],
                "intervals": found_by["intervals"],
                "budgets": len(estimate["minima"]),
                "minima": [_minimum_entry(m) for m in estimate["minima"]],
            }
    warnings = []
    if few := sum(len(budget.log_n) < 5 for budget in budgets):
        warnings.append(f"{few} budgets have fewer than 5 sizes")
    if source.startswith(("assumed", "scatter")):
        words = "assumed to be" if source.startswith("assumed") else "taken from the scatter:"
        warnings.append(
            f"no run was repeated: the noise of a run is {words} {noise:.2%} of its loss (--noise)"
        )
    return {
        **chosen,
        "dropped": dropped + reasons[options.method],
        "method": f"{options.method}, {resamples} draws of noise {noise:.2g} ({source})",
        "noise": noise,
        "noise_source": source,
        "methods": side,
        "minima": side[options.method]["minima"],
        "law_of_minima": _loss_law(chosen["minima"], options),
        "warnings": warnings,
    }


def _estimate_noise(
    rows: Sequence[table.Row], budgets: Sequence[Budget], options: Options
) -> tuple[float, str]:
    """The standard deviation of log loss of one run: given, or that of replicates, or the scatter
    about smooth valleys, or an assumption."""
    if options.noise is not None:
        return options.noise, "given"
    replicas: dict[tuple, list[float]] = {}
    for row in rows:
        replicas.setdefault((row["flops"], row["params"]), []).append(math.log(row["loss"]))
    sd, freedom = pooled_sd(replicas.values())
    if freedom >= 2 and sd:
        return sd, "replicates"
    squares, freedom = 0.0, 0
    for budget in budgets:
        middle = int(budget.log_loss.argmin())
        first = max(0, min(middle - NEAR // 2, len(budget.log_n) - NEAR))
        at = slice(first, first + NEAR)
        x, y = budget.log_n[at] - budget.log_n[middle], budget.log_loss[at]
        if len(x) == NEAR:
            squares += float(np.sum((y - np.polyval(np.polyfit(x, y, NEAR - 2), x)) ** 2))
            freedom += 1
    if freedom >= 2:
        return max(NOISE, math.sqrt(squares / freedom)), "scatter about smooth valleys"
    return NOISE, "assumed: no budget has replicates"


def _sample_minima(
    budgets: Sequence[Budget], method: str, noise: float, k: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    rng = np.random.default_rng(seed)
    out, dropped = [], []
    for budget in budgets:
        sd = (noise / np.sqrt(budget.runs))[:, None]
        draws = budget.log_loss[:, None] + sd * rng.standard_normal((len(budget.log_n), k))
        every = np.concatenate([budget.log_loss[:, None], draws], axis=1)
        at, least = LOCATE[method](budget.log_n, every)
        drawn, least = (at[1:], least[1:]) if k else (at, least)  # without noise, once
        valid = np.isfinite(drawn)
        if valid.mean() < 0.5:
            side = "smallest" if budget.log_loss.argmin() == 0 else "largest"
            edge = budget.log_loss.argmin() in (0, len(budget.log_n) - 1)
            where = f"its least loss is at the {side} size" if edge else "its valley is not convex"
            reason = f"{method}: the minimum is inside in {valid.mean():.0%} of the draws; {where}"
            dropped.append({"run": f"budget {budget.flops:.4g}", "reason": reason})
            continue
        median = float(np.median(drawn[valid]))
        place = min(max(int(np.searchsorted(budget.log_n, median)), 1), len(budget.log_n) - 1)
        spacing = float(budget.log_n[place] - budget.log_n[place - 1])
        out.append(
            {
                "flops": budget.flops,
                "log_n": median,
                "log_d": float(np.interp(median, budget.log_n, budget.log_d)),
                "loss": float(np.exp(np.median(least[valid]))),
                "sd": max(float(drawn[valid].std()), spacing / 3),
                "draws": at[1:],
                "budget": budget,
                "sizes": len(budget.log_n),
                "valid": float(valid.mean()),
            }
        )
    return out, dropped


def _power_laws(minima: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """N* and D* as powers of the budget, and the same for every draw."""
    log_c = np.log([m["flops"] for m in minima])
    weights = 1 / np.array([m["sd"] for m in minima]) ** 2
    log_n_MxK = np.array([m["draws"] for m in minima])
    log_d_MxK = np.array(
        [np.interp(m["draws"], m["budget"].log_n, m["budget"].log_d) for m in minima]
    )
    n = np.array([[m["log_n"]] for m in minima])
    d = np.array([[m["log_d"]] for m in minima])
    optimal = np.concatenate(
        [_weighted_line(log_c, n, weights)[0], _weighted_line(log_c, d, weights)[0]]
    )
    draws = np.concatenate(
        [_weighted_line(log_c, log_n_MxK, weights), _weighted_line(log_c, log_d_MxK, weights)],
        axis=1,
    )
    draws = draws[np.isfinite(draws).all(1)]
    optimal[[1, 3]], draws[:, [1, 3]] = np.exp(optimal[[1, 3]]), np.exp(draws[:, [1, 3]])
    return {"optimal": optimal.tolist(), "draws": draws}


def _weighted_line(x: np.ndarray, y_MxK: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(slope, intercept) [K, 2] of weighted least squares; a missing y has no weight."""
    there = np.isfinite(y_MxK)
    w = weights[:, None] * there
    y = np.where(there, y_MxK, 0.0)
    with np.errstate(all="ignore"):
        total = w.sum(0)
        mx, my = (w * x[:, None]).sum(0) / total, (w * y).sum(0) / total
        dx = x[:, None] - mx
        slope = (w * dx * (y - my)).sum(0) / (w * dx * dx).sum(0)
    slope = np.where(there.sum(0) >= 2, slope, np.nan)
    return np.stack([slope, my - slope * mx], axis=1)


def _minimum_entry(minimum: Mapping[str, Any]) -> dict[str, Any]:
    draws = minimum["draws"][np.isfinite(minimum["draws"])]
    n, d = math.exp(minimum["log_n"]), math.exp(minimum["log_d"])
    (ends,) = quantiles(np.exp(draws)[:, None])
    return {
        "flops": minimum["flops"],
        "params": n,
        "tokens": d,
        "tokens_per_param": d / n,
        "loss": minimum["loss"],
        "interval": ends,
        "sizes": minimum["sizes"],
        "valid_fraction": minimum["valid"],
    }


def _loss_law(minima: Sequence[Mapping[str, Any]], options: Options) -> dict[str, Any] | None:
    """L = E + A / C^alpha through the losses at the minima, for predictions; None if too few."""
    if len(minima) < 5:
        return None
    rows = [{"run": str(i), "flops": m["flops"], "loss": m["loss"]} for i, m in enumerate(minima)]
    law = Fit(power("flops"), Split(rows, [], []), Options(against="flops", bootstrap=0))
    predicted = law.rows("flops", options.predict_flops)
    return {"formula": law.law.formula, "params": law.params, "predictions": predicted}


def predict_optimum(estimate: Mapping[str, Any], c: float) -> dict[str, Any]:
    draws = estimate["draws"]
    a, k, a2, k2 = estimate["optimal"]
    n, d = k * c**a, k2 * c**a2
    n_K, d_K = draws[:, 1] * c ** draws[:, 0], draws[:, 3] * c ** draws[:, 2]
    law = estimate.get("law_of_minima")
    of_loss = next((p for p in law["predictions"] if p["flops"] == c), None) if law else None
    ends = quantiles(np.stack([n_K, d_K, d_K / n_K], axis=1))
    return {
        "flops": float(c),
        "params": float(n),
        "tokens": float(d),
        "tokens_per_param": float(d / n),
        "loss": of_loss["loss"] if of_loss else None,
        "intervals": {
            "params": ends[0],
            "tokens": ends[1],
            "tokens_per_param": ends[2],
            "loss": of_loss["interval"] if of_loss else [None, None],
        },
    }


def check_held_out(
    estimate: Mapping[str, Any], held_out: Sequence[table.Row], options: Options
) -> dict[str, Any] | None:
    """The optimal sizes of held-out budgets, beside what was extrapolated."""
    budgets, _ = group_by_budget(held_out)
    minima, _ = _sample_minima(budgets, options.method, estimate["noise"], RESAMPLES, options.seed)
    rows = []
    for m in minima:
        predicted = predict_optimum({**estimate, "law_of_minima": None}, m["flops"])
        measured = math.exp(m["log_n"])
        # Both the law and the measured minimum are uncertain.
        ends = predicted["intervals"]["params"]
        law = np.log([predicted["params"] if x is None else x for x in ends])
        reach = np.hypot(law - math.log(predicted["params"]), 1.96 * m["sd"]) * [-1, 1]
        low, high = predicted["params"] * np.exp(reach)
        error = predicted["params"] / measured - 1
        rows.append(
            {
                "run": f"budget {m['flops']:.4g}",
                "flops": m["flops"],
                "params": predicted["params"],
                "interval": predicted["intervals"]["params"],
                "run_interval": [float(low), float(high)],
                "measured": measured,
                "error": float(error),
                "covered": bool(low <= measured <= high),
            }
        )
    return held_out_summary(options.holdout, rows) if rows else None


def summarize_power_laws(estimate: Mapping[str, Any]) -> dict[str, Any]:
    draws = estimate["draws"]
    values = dict(zip(NAMES, estimate["optimal"], strict=True))
    ends = dict(zip(NAMES, quantiles(draws), strict=True))
    spread = draws.std(0, ddof=1).tolist() if len(draws) > 1 else [None] * len(NAMES)
    errors = dict(zip(NAMES, spread, strict=True))
    optimal = {**values, "intervals": ends, "flops_convention": "the table's"}
    return {"params": values, "intervals": ends, "standard_errors": errors, "optimal": optimal}


def quantiles(draws_KxM: np.ndarray) -> list[list[float | None]]:
    """The 95 % interval of each column; open without draws."""
    if not len(draws_KxM):
        return [[None, None] for _ in range(draws_KxM.shape[1])]
    return np.quantile(draws_KxM, [0.025, 0.975], axis=0).T.tolist()
