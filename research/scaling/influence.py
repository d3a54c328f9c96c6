"""Which rows decide the answer: the optimum and the loss at the target without each of them.

The decision is N* and the loss there at the first budget that was asked for (else ten times the
largest of the table), or the prediction of a law of one column. The law is fitted again without
each row, from where it was; of a large table, without those rows that move the decision furthest in
a first approximation (Cook and Weisberg 1982). Rows are off the law by so many robust standard
deviations, measured about a fit that outliers do not move. Minima that were located without a law
are found again without each budget, and without each row of one that decides.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import BadInput
from research.io.humanize import quantity
from research.scaling import compute_optimal
from research.scaling.fit import Fit
from research.scaling.optimize import minimize, multistart_minimize
from research.scaling.options import Options, Split, hold_out_rows
from research.scaling.statistics import find_outliers, number_budgets
from research.tables import table

ROUNDING = 1e-6  # of log loss, to which a law follows rows that were computed by one
EXACT = 60  # rows, below which each is left out in turn
CANDIDATES = 30  # rows of a larger table
STEP = 1e-5  # in a fitted parameter, for the slope of a decision
SHOWN = 10  # rows with the largest influence, beside all outliers
NAMED = 3  # rows in a warning
LABELS = {"n_star": "N*"}


@dataclass(frozen=True)
class Decision:
    """What is asked of a law: numbers at a target, by name, each with its interval [2] (NaN where
    it is open). `values` gives them [K, Q] for parameters [K, P]."""

    target: Mapping[str, float]
    names: Sequence[str]
    values: Callable[[np.ndarray], np.ndarray]
    intervals: np.ndarray


def influence_section(
    fit: Fit, predictions: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The section "influence" of fit.json, the row with the largest first, and its warnings."""
    decision = _decision(fit, predictions)
    if decision is None:
        return [], []
    robust = _robust_theta(fit)
    off, outlying = off_the_law(fit, robust)
    here = decision.values(fit.best[None])[0]
    chosen = _candidates(fit, decision, outlying)
    without = decision.values(_without_each(fit, robust, chosen))
    moves = _moves(decision, here, without)
    largest = np.nan_to_num(moves, nan=0.0).max(1)
    entries = []
    for k in sorted(range(len(chosen)), key=lambda k: (not outlying[chosen[k]], -largest[k])):
        i = chosen[k]
        row = fit.parts.fitted[i]
        columns = (*fit.law.columns, fit.law.response)
        entries.append(
            {
                "run": row["run"],
                **{name: row[name] for name in columns},
                "robust_sd_off": float(off[i]),
                "outlier": bool(outlying[i]),
                "without": dict(zip(decision.names, without[k].tolist(), strict=True)),
                "half_widths_moved": dict(zip(decision.names, moves[k].tolist(), strict=True)),
                "decides": bool(largest[k] > 1),
            }
        )
    entries = entries[: max(SHOWN, int(outlying.sum()))]
    return entries, _warnings(fit, decision, here, entries, outlying)


def _decision(fit: Fit, predictions: Sequence[Mapping[str, Any]]) -> Decision | None:
    """None for a law without an optimum that reads several columns."""
    law, options, column = fit.law, fit.options, fit.law.columns[0]
    if not compute_optimal.has_optimum(law):
        if len(law.columns) > 1:
            return None
        asked = [*options.predict, *options.predict_flops]
        x = asked[0] if asked else 10 * max(row[column] for row in fit.parts.usable)
        point = law.prepare({column: np.array([x])})
        ends = predictions[0]["interval"] if asked else fit.at(column, [x])[1][0]
        return Decision(
            {column: float(x)},
            (law.response,),
            lambda theta: np.exp(law.evaluate(theta, point)[0]),
            _float_pairs([ends]),
        )
    if compute_optimal.vary_together(fit.parts.fitted):
        return None
    most = compute_optimal.largest_budget(fit.parts.usable)
    c = float(next(iter(options.predict_flops), 10 * most))

    def values(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            n = compute_optimal.optimal_params(law, theta, [c])[:, 0]
            d = c / compute_optimal.PER_TOKEN / n
            loss = compute_optimal.predict_loss(law, theta, n[:, None], d[:, None])
        return np.stack([n, loss[:, 0]], axis=1)

    predicted = predictions[0] if predictions else compute_optimal.predict_optima(fit, [c])[0]
    if predicted["params"] is None:
        return None
    intervals = [predicted["intervals"][name] for name in ("params", "loss")]
    return Decision({"flops": c}, ("n_star", "loss"), values, _float_pairs(intervals))


def _float_pairs(intervals: Sequence[Any]) -> np.ndarray:
    """Intervals [Q, 2], with NaN for an open end."""
    ends = [[math.nan if x is None else float(x) for x in pair] for pair in intervals]
    return np.where(np.isfinite(ends), ends, math.nan)


def _moves(decision: Decision, here: np.ndarray, without: np.ndarray) -> np.ndarray:
    """By how many half-widths of its interval each number moves [n, Q], in the logarithm. Without
    an interval, or where the fit without a row has no answer, NaN."""
    with np.errstate(all="ignore"):
        half = (np.log(decision.intervals[:, 1]) - np.log(decision.intervals[:, 0])) / 2
        return np.abs(np.log(without / here)) / half


def _robust_theta(fit: Fit) -> np.ndarray:
    """The law as it is fitted by Huber's loss, which outliers do not move."""
    problem = fit.problem
    if problem.objective == "huber_log":
        return fit.best
    robust = dataclasses.replace(problem, objective="huber_log", prior=None)
    theta, values, _ = multistart_minimize(robust, np.concatenate([fit.best[None], fit.begun]))
    return theta[int(np.argmin(values))]


def off_the_law(fit: Fit, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust standard deviations of each row above the law, and which rows are outliers: none that
    a table without noise is off by in its last digits."""
    problem = dataclasses.replace(fit.problem, objective="huber_log")
    residuals = -problem.residuals(theta[None])[0][0] * np.sqrt(problem.weights)
    off, outlying = find_outliers(residuals, problem.n - problem.freedom)
    return off, outlying & (np.abs(residuals) > ROUNDING)


def _candidates(fit: Fit, decision: Decision, outlying: np.ndarray) -> np.ndarray:
    """The numbers of the rows that are left out in turn: all of a small table; of a large one the
    outliers, and those that would move the decision furthest if the law were linear."""
    problem, free = fit.problem, np.flatnonzero(~fit.problem.fixed_mask)
    if problem.n < EXACT:
        return np.arange(problem.n)
    j = problem.residuals(fit.best[None])[1][0][free]
    toward = np.linalg.pinv((j * problem.weights) @ j.T, hermitian=True) @ (j * problem.weights)
    leverage = np.clip((toward * j).sum(0), 0, 1 - 1e-6)
    steps_PxN = toward * problem.influence(fit.best[None])[0] / (1 - leverage)
    nearby = fit.best + STEP * np.concatenate([np.eye(len(fit.best))[free] * s for s in (1, -1)])
    with np.errstate(all="ignore"):
        ahead, behind = np.split(np.log(decision.values(nearby)), 2)
    moves = np.abs(((ahead - behind) / (2 * STEP)).T @ steps_PxN)
    moves = np.nan_to_num(moves / np.maximum(moves.max(1, keepdims=True), 1e-300)).max(0)
    return np.argsort(-(moves + 2 * outlying), kind="stable")[:CANDIDATES]


def _without_each(fit: Fit, robust: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The fitted parameters without each of the chosen rows [k, P]."""
    problem, k = fit.problem, len(chosen)
    # From the robust fit as well: an outlier may have led to where there is no way back from.
    begun = np.array([fit.best] if robust is fit.best else [fit.best, robust])
    weights = np.tile(problem.weights * (1 - np.eye(problem.n)[chosen]), (len(begun), 1))
    theta, values, _ = minimize(
        dataclasses.replace(problem, weights=weights), np.repeat(begun, k, axis=0)
    )
    least = values.reshape(len(begun), k).argmin(0)
    return theta.reshape(len(begun), k, -1)[least, np.arange(k)]


def _warnings(
    fit: Fit,
    decision: Decision,
    here: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
    outlying: np.ndarray,
) -> list[str]:
    out = []
    outliers = [entry for entry in entries if entry["outlier"]]
    if outliers:
        some = "; ".join(_describe_outlier(entry, fit.law.response) for entry in outliers[:NAMED])
        more = f" and {len(outliers) - NAMED} more" if len(outliers) > NAMED else ""
        words = f"far off the law that the other rows show: {some}{more}"
        if fit.problem.objective == "huber_log":
            words += "; Huber's loss keeps them out of the law and of the noise of a run"
        else:
            words += f"; {_without_all(fit, decision, here, outlying)}"
            words += "; see whether they diverged or crashed, or give --objective=huber_log"
        out.append(words)
    return out + _deciding(decision.target, here, [e for e in entries if not e["outlier"]])


def _deciding(
    target: Mapping[str, float], here: Sequence[float] | np.ndarray, entries: Sequence[Any]
) -> list[str]:
    """What changes without each of the rows, or runs, or budgets, that decide."""
    return [
        f"without {entry['run']}: {_change(target, entry['without'], here)}"
        for entry in [entry for entry in entries if entry["decides"]][:NAMED]
    ]


def _describe_outlier(entry: Mapping[str, Any], response: str) -> str:
    side = "above" if entry["robust_sd_off"] > 0 else "below"
    return (
        f"{entry['run']} ({response} {entry[response]:.4g}, {abs(entry['robust_sd_off']):.0f} "
        f"robust standard deviations {side})"
    )


def _without_all(fit: Fit, decision: Decision, here: np.ndarray, outlying: np.ndarray) -> str:
    """What changes without any of the outliers."""
    rows = [row for row, out in zip(fit.parts.fitted, outlying, strict=True) if not out]
    options = dataclasses.replace(fit.options, bootstrap=0, init={})
    others = Fit(fit.law, Split(rows, [], []), options, resample=False)
    values = decision.values(others.best[None])[0].tolist()
    words = "it" if outlying.sum() == 1 else "them"
    after = dict(zip(decision.names, values, strict=True))
    return f"without {words}: {_change(decision.target, after, here)}"


def _change(
    target: Mapping[str, float],
    after: Mapping[str, float | None],
    here: Sequence[float] | np.ndarray,
) -> str:
    """The decision before and after, at the target."""
    where = ", ".join(f"{name} {value:.3g}" for name, value in target.items())
    parts = []
    for (name, now), before in zip(after.items(), here, strict=True):
        written = quantity if name == "n_star" else "{:.4g}".format
        words = written(now) if now is not None and math.isfinite(now) else "none"
        parts.append(f"{LABELS.get(name, name)} {written(float(before))} → {words}")
    return f"{', '.join(parts)} (at {where})"


def minima_influence(
    rows: Sequence[table.Row],
    options: Options,
    document: Mapping[str, Any],
    refit: Callable[[Sequence[table.Row], Options], Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The same for located minima: without each budget, and without each row of a budget that
    decides; or without each run that lies on the envelope. `rows` can all be used; `refit` makes
    the document of some."""
    rows, _ = hold_out_rows([*rows], options.holdout, "flops")
    c = float(next(iter(options.predict_flops), 10 * max(row["flops"] for row in rows)))
    plain = dataclasses.replace(options, where=None, holdout=None, predict_flops=[c])
    if not options.predict_flops:
        document = refit(rows, plain)
    plain = dataclasses.replace(plain, bootstrap=0)
    here, intervals = _predicted(refit(rows, plain)), document["predictions"][0]["intervals"]
    names = [name for name, value in here.items() if value is not None]
    decision = Decision(
        {"flops": c},
        names,
        lambda theta: theta,
        _float_pairs([intervals[{"n_star": "params"}.get(name, name)] for name in names]),
    )
    before = np.array([here[name] for name in names], float)

    def without(run: str, left_out: Collection[int]) -> dict[str, Any] | None:
        try:
            others = refit([row for i, row in enumerate(rows) if i not in left_out], plain)
        except BadInput:
            return None  # what is too few says nothing of which one decides
        values = _predicted(others)
        after = np.array([[math.nan if values[k] is None else values[k] for k in names]], float)
        moved = _moves(decision, before, after)[0]
        return {
            "run": run,
            "without": {name: values[name] for name in names},
            "half_widths_moved": dict(zip(names, moved.tolist(), strict=True)),
            "decides": bool(np.nan_to_num(moved).max(initial=0.0) > 1),
        }

    entries = []
    for run, left_out in _groups(rows, document):
        entry = without(run, left_out)
        if entry is None:
            continue
        entries.append(entry)
        if entry["decides"] and len(left_out) > 1:
            alone = [without(str(rows[i]["run"]), [i]) for i in left_out]
            entries += [one for one in alone if one]
    entries.sort(key=lambda entry: -max(map(_or_zero, entry["half_widths_moved"].values())))
    return entries[:SHOWN], _deciding(decision.target, before, entries)


def _predicted(document: Mapping[str, Any]) -> dict[str, float | None]:
    predicted = document["predictions"][0]
    return {"n_star": predicted["params"], "loss": predicted["loss"]}


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _groups(rows: Sequence[table.Row], document: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    """The name and the rows of what is left out together: a budget; or a run on the envelope, or
    an optimum that was given."""
    if document["law"] == "isoflop":
        numbers = number_budgets([row["flops"] for row in rows])
        members = [np.flatnonzero(numbers == i).tolist() for i in range(numbers.max() + 1)]
        return [(f"budget {rows[group[0]]['flops']:.4g}", group) for group in members]
    runs = dict.fromkeys(str(minimum["run"]) for minimum in document["minima"])
    return [(run, [i for i, row in enumerate(rows) if str(row["run"]) == run]) for run in runs]
