"""A prediction averaged over laws, by their weights (research/scaling/averaging.py).

Draws of every law, weighted so, are one predictive distribution: its interval holds noise,
parameters and the choice of the law, and says how much of it is which. Beyond the table a law may
also drift away from what is true, as budgets are seen to do within it: at a decade by DRIFT times
as much, and with the root of the distance, as a random walk does. DRIFT is set by what public
ladders showed at ten to a hundred times their compute (docs/reproductions.md).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from research.scaling import compute_optimal, drift
from research.scaling.averaging import Average, weigh
from research.scaling.effects import log_loss_slope
from research.scaling.extrapolation import TRIED, effects_of, find_trial, fit_trial
from research.scaling.fit import Fit
from research.scaling.fit_document import build_document
from research.scaling.lack_of_fit import misfit_warning
from research.scaling.law import Law
from research.scaling.options import Options, Split
from research.scaling.power_laws import NAMES, SIX_ND
from research.scaling.statistics import held_out_row, held_out_summary, usual_range
from research.tables import table

WIDE = 0.2  # of a log loss: half an interval, from which on a prediction says little
EQUAL = 0.5  # exponent of N* where sizes and tokens grow alike
SURELY = 10.0  # of AIC, by which a law follows rows better than another beyond doubt
DRIFT = 6.0  # at a decade of compute beyond the table, in what a budget is off the law (sd)


def build_average(average: Average, options: Options) -> dict[str, Any]:
    """The document of fit.json: that of `Average.best`, with averaged predictions."""
    predictions = _predictions(average, options)
    document = build_document(average.best, predictions, _check_held_out(average, options.holdout))
    document["warnings"][:0] = misfit_warning([m.fit for m in average.members], averaged=True)
    document["warnings"] += _floor_warning(average)
    document["warnings"] += _wide_warnings(average.best.law.response, predictions)
    document |= {
        "law": "auto",
        "laws": [
            {
                "law": m.fit.law.name,
                "formula": m.fit.law.formula,
                "weight": m.weight,
                "aic": m.aic,
                "largest_budgets": m.score,
                "stretch": m.stretch,
                "params": m.fit.params,
            }
            for m in average.members
        ]
        + average.others,
    }
    if document["optimal"]:
        document["optimal"] = _optimal_power_laws(average)
    return document


def mixture(average: Average, values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All draws of all members [K] (or [K, m]), and their weights [K]."""
    weights = [np.full(len(v), m.weight / len(v)) for m, v in zip(average.members, values)]
    return np.concatenate(values), np.concatenate(weights)


def interval(values: np.ndarray, weights: np.ndarray) -> list[float | None]:
    """The weighted 2.5 and 97.5 % quantiles; open where draws have no finite value, or there is but
    one."""
    finite = np.isfinite(values)
    if len(values) < 3 or weights[finite].sum() < 0.95 * weights.sum():
        return [None, None]
    return _quantiles(values[finite], weights[finite], [0.025, 0.975])


def _quantiles(values: np.ndarray, weights: np.ndarray, levels: Sequence[float]) -> list[Any]:
    return np.quantile(values, levels, weights=weights, method="inverted_cdf").tolist()


def _predictions(average: Average, options: Options) -> list[dict[str, Any]]:
    laws = [m.fit.law for m in average.members]
    if len(laws[0].columns) == 1:
        column = laws[0].columns[0]
        points = [*options.predict, *options.predict_flops]
        return [{column: float(x), **predict_loss(average, {column: [x]})[0]} for x in points]
    return [_optimum(average, c) for c in options.predict_flops]


def _floor_warning(average: Average) -> list[str]:
    """A warning where a law that was left out for want of a floor follows the rows better than all
    that were averaged."""
    least = min(m.aic for m in average.members)
    better = [x for x in average.others if not x.get("floor", True) and x["aic"] < least - SURELY]
    return [
        f"{other['law']} follows these rows better than the laws that are averaged (AIC lower by "
        f"{least - other['aic']:.3g}), and is left out, as its E vanishes: if this loss has no "
        f"floor, --law={other['law']} is nearer, and the average too high beyond the table"
        for other in better[:1]
    ]


def _wide_warnings(response: str, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where what was asked is hardly known."""
    for point in predictions:
        low, high = point.get("interval") or (None, None)
        if low is None or high is None or low <= 0:
            continue
        if (half := math.log(high / low) / 2) <= WIDE:
            continue
        parts = point["parts"]
        why = "the laws that fit these rows disagree so far out"
        if parts["law"] < parts["parameters"]:
            why = "these rows do not determine the parameters of a law well enough to go so far"
        if "flops" in point and "params" in point:
            why += (
                "; runs far from the best size of their budget are the usual reason (--where "
                "leaves them out, --law=isoflop reads the valleys alone)"
            )
        known = f"±{math.expm1(half):.0%}" if half < 1 else f"a factor of {math.exp(half):.3g}"
        return [f"the {response} is known to {known} only: {why}"]
    return []


def optimal_size(average: Average, c: float) -> tuple[float, list[float]]:
    """The size of least loss at a budget, averaged in its logarithm, and that of every member; NaN
    where a law has none, and of the average where no law has."""
    best = [float(compute_optimal.optimal_params(m.fit.law, m.fit.best[None], [c])[0, 0])
            for m in average.members]  # fmt: skip
    there = np.isfinite(best)
    if not there.any():
        return math.nan, best
    logs = np.log(np.where(there, best, 1.0))
    return math.exp(float(np.average(logs, weights=average.weights * there))), best


def _optimum(average: Average, c: float) -> dict[str, Any]:
    n, best = optimal_size(average, c)
    if not math.isfinite(n):
        return compute_optimal.no_optimum(c)
    d = c / compute_optimal.PER_TOKEN / n
    point = {"params": [n], "tokens": [d]}
    predicted, losses = predict_loss(average, point)
    sizes = [compute_optimal.optimal_params(m.fit.law, m.draws, [c])[:, 0]
             for m in average.members]  # fmt: skip
    sizes = [at * (drawn / at) ** m.stretch if np.isfinite(at) else drawn
             for m, at, drawn in zip(average.members, best, sizes)]  # fmt: skip
    regret = []
    for member, size, here in zip(average.members, sizes, losses, strict=True):
        tokens = c / compute_optimal.PER_TOKEN / size
        with np.errstate(all="ignore"):
            least = compute_optimal.predict_loss(
                member.fit.law, member.draws, size[:, None], tokens[:, None]
            )[:, 0]
        regret.append(np.maximum(np.exp(here[:, 0]) - least, 0))
    drawn, mass = mixture(average, [_drift_size(average, c, drawn) for drawn in sizes])
    cost, of_cost = mixture(average, regret)
    known = np.isfinite(cost)
    wasted = _quantiles(cost[known], of_cost[known], [0.5, 0.95]) if known.any() else [None, None]
    tokens = c / compute_optimal.PER_TOKEN / drawn
    return {
        "flops": float(c),
        "params": n,
        "tokens": d,
        "tokens_per_param": d / n,
        **predicted,
        "intervals": {
            "params": interval(drawn, mass),
            "tokens": interval(tokens, mass),
            "tokens_per_param": interval(tokens / drawn, mass),
            "loss": predicted["interval"],
            "run": predicted["run_interval"],
        },
        "regret": dict(zip(("median", "quantile_95"), wasted, strict=True)),
    }


def _drift_size(average: Average, c: float, drawn: np.ndarray) -> np.ndarray:
    """Sizes [k] of a member at a budget with what N* may drift outside the table's budgets: all
    members may lack what changes it there."""
    fit = average.best
    over = compute_optimal.budget_range(fit.parts.fitted)
    slope = float(compute_optimal.power_laws(fit.law, fit.best[None], over)[0, 0])
    slope = slope if math.isfinite(slope) else EQUAL
    away = compute_optimal.beyond_slope(fit.parts.fitted, c)
    return drawn * np.exp(drift.draw_outside(slope, away, len(drawn), fit.options.seed))


def predict_loss(
    average: Average, columns: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The averaged prediction at one point, its intervals and their parts; and the draws [k, 1] of
    the log loss of every member."""
    centers, laws, runs, spreads, drifts, of_floor = [], [], [], [], [], []
    arrays = {name: np.asarray(values, float) for name, values in columns.items()}
    for member in average.members:
        law, effects = member.fit.law, effects_of(member.fit)
        x = law.prepare(arrays)
        centers.append(float(law.evaluate(member.fit.best[None], x)[0][0, 0]))
        drawn = law.evaluate(member.draws, x)[0]
        drawn = centers[-1] + member.stretch * (drawn - centers[-1])
        slope = log_loss_slope(law, member.fit.best, arrays)
        sd = math.hypot(effects.run_noise, effects.mean_sds()[0] * abs(float(slope[0][0])))
        rng = np.random.default_rng(member.fit.options.seed)
        scale = np.sqrt(effects.freedom / rng.chisquare(effects.freedom, len(drawn)))
        of_budget = effects.of_budget(float(slope[1][0]))
        walk = DRIFT * of_budget * math.sqrt(_decades_outside(member.fit, arrays))
        drawn = drawn + walk * rng.standard_normal(drawn.shape)
        laws.append(drawn)
        drifts.append(walk)
        runs.append(drawn[:, 0] + sd * scale * rng.standard_normal(len(drawn)))
        spreads.append(sd)
        of_floor.append(compute_optimal.floor_share(law, member.draws, drawn[:, 0]))
    weights = average.weights
    center = float(weights @ centers)
    away = float(weights @ np.square(drifts))
    within = np.array([float(np.var(drawn)) for drawn in laws])
    within = np.maximum(within - np.square(drifts), 0)
    ends = interval(*mixture(average, [np.exp(drawn[:, 0]) for drawn in laws]))
    parts = {
        "noise": float(np.sqrt(weights @ np.square(spreads))),
        "parameters": float(np.sqrt(weights @ within)),
        "law": float(np.sqrt(weights @ (np.array(centers) - center) ** 2 + away)),
        "floor": float(np.sqrt(weights @ (within * of_floor))),
    }
    response = average.best.law.response
    return {
        response: math.exp(center),
        "interval": ends,
        "run_interval": interval(*mixture(average, [np.exp(run) for run in runs])),
        "parts": {name: 1.96 * value for name, value in parts.items()},
    }, laws


def _decades_outside(fit: Fit, columns: Mapping[str, np.ndarray]) -> float:
    """How far a point lies outside the convex hull of the table, in decades of what the law reads:
    by its support function in all directions of the plane. For params and tokens that grow alike it
    is decades of compute."""
    names = fit.law.columns[:2]
    values = np.array([[row[name] for name in names] for row in fit.parts.fitted])
    low, high = usual_range(size := values.prod(1))
    rows = np.log10(values[(size >= low) & (size <= high)])
    point = np.log10([float(columns[name][0]) for name in names])
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])[: len(names)]
    beyond = point @ directions - (rows @ directions).max(0)
    return max(0.0, float(beyond.max())) * math.sqrt(len(names))


def _optimal_power_laws(average: Average) -> dict[str, Any]:
    """N* and D* as powers of the budget over those of the table, averaged."""
    over = compute_optimal.budget_range(average.best.parts.fitted)
    centers, draws = [], []
    for m in average.members:
        both = np.concatenate([m.fit.best[None], m.draws])
        values = compute_optimal.power_laws(m.fit.law, both, over)
        centers.append(values[0])
        draws.append(values[0] + m.stretch * (values[1:] - values[0]))
    there = np.isfinite(centers).all(1)
    if not there.any():
        return dict.fromkeys(NAMES) | {"intervals": {}}
    center = np.average(np.array(centers)[there], axis=0, weights=average.weights[there])
    drawn, mass = mixture(average, draws)
    out: dict[str, Any] = {"intervals": {}}
    for i, name in enumerate(NAMES):
        ends = interval(drawn[:, i], mass)
        value = float(center[i])
        if name.endswith("coefficient"):
            value = math.exp(value)
            ends = [None if x is None else math.exp(x) for x in ends]
        out[name], out["intervals"][name] = value, ends
    out["flops_convention"] = SIX_ND
    return out


def _check_held_out(average: Average, rule: str | None) -> dict[str, Any] | None:
    """What was predicted for the rows that were held out, beside what was measured."""
    law = average.best.law
    rows = []
    for row in average.best.parts.held_out:
        predicted, _ = predict_loss(average, {c: [row[c]] for c in law.columns})
        known = {name: row[name] for name in law.columns}
        rows.append(held_out_row(row["run"], known, predicted, law.response, row[law.response]))
    return held_out_summary(rule, rows) if rows else None


def extrapolate_average(average: Average, options: Options) -> dict[str, Any]:
    """The section "extrapolation": the largest runs, predicted by an average over the laws fitted
    to far smaller ones. Raises BadInput, with the reason, where the table allows no trial."""
    best = average.best
    trial = find_trial(best.parts.fitted, best.law, options)
    laws = [(fit.law.name, functools.partial(fit_trial, fit, trial)) for fit in average.fits]
    return trial.section(_check_held_out(weigh(laws, TRIED), trial.rule))


def settle_average(
    laws: Sequence[Law], options: Options, target: Mapping[str, float]
) -> Callable[[Sequence[table.Row]], tuple[float, list[float | None], float]]:
    """What the average of laws, fitted to some rows, predicts at the target: as design.Settle."""
    quick = dataclasses.replace(options, bootstrap=None, holdout=None)
    there = {k: [v] for k, v in target.items()}

    def predict(rows: Sequence[table.Row]) -> tuple[float, list[float | None], float]:
        parts = Split([*rows], [], [])
        makers = [(law.name, functools.partial(Fit, law, parts, quick)) for law in laws]
        average = weigh(makers, TRIED)
        found = predict_loss(average, there)[0]
        noise = float(average.weights @ [m.fit.run_noise for m in average.members])
        return found[average.best.law.response], found["interval"], noise

    return predict
