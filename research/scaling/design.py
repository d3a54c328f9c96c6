"""Which runs to make next, and whether more are worth making.

Near the optimum a law is linear in its fitted parameters: with J the derivative of the log
prediction at the runs made and s the noise of a run, their covariance S is s² (J^T J)^-1, and more
where rows of one size or budget err together; that of the log prediction at a target with
derivative g is v = g^T S g. One more run with derivative j
takes (g^T S j)² / (s² + j^T S j) away from v (the c-optimal design of Elfving 1952, made greedily).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import compute_optimal
from research.scaling.fit import ROUNDING, Fit, finite_ends
from research.scaling.laws import Law
from research.scaling.options import Options, Split

MOST = 12  # runs of a proposal
REACH = 3.0  # times the largest size and tokens of the table: how far proposals go
ENOUGH = 0.1  # of the noise of a run: a stage that narrows the interval by less changes nothing
STAGES = 8


def propose_runs(fit: Fit, target: Mapping[str, float], budget: float) -> dict[str, Any]:
    """The runs of at most `budget` FLOPs in all that narrow the prediction at `target` (the columns
    of the law) most. Raises BadInput if no run is that cheap."""
    candidates = _candidates(fit)
    cost = _cost(fit, candidates)
    affordable = cost <= budget
    if not affordable.any():
        raise BadInput(
            f"--next_runs={budget:g}: the cheapest run that would tell anything costs "
            f"{cost.min():.3g} FLOPs"
        )
    noise = max(fit.run_noise, ROUNDING)  # of a law without any
    plans = [
        _choose_greedily(fit, target, candidates, cost, budget, noise, by_cost)
        for by_cost in (True, False)
    ]
    chosen, before, after = min(plans, key=lambda plan: plan[2])
    names = fit.law.columns
    rows = [
        {**{name: float(candidates[name][i]) for name in names}, "flops": float(cost[i])}
        for i in sorted(chosen, key=lambda i: cost[i])
    ]
    return {
        "target": {k: float(v) for k, v in target.items()},
        "budget": float(budget),
        "spent": float(sum(row["flops"] for row in rows)),
        "runs": rows,
        "half_width_before": 1.96 * math.sqrt(before),
        "half_width_after": 1.96 * math.sqrt(after),
        "what": "half-widths of the 95 % interval of the law's log loss at the target",
    }


def _candidates(fit: Fit) -> dict[str, np.ndarray]:
    """A grid over what the law reads, from the least of the table to REACH times its largest, with
    no more and no fewer tokens per parameter than the table has: there nobody has seen the law."""
    axes = {}
    for name in fit.law.columns:
        values = np.array([row[name] for row in fit.parts.usable], float)
        axes[name] = np.geomspace(values.min(), REACH * values.max(), 16)
    mesh = np.meshgrid(*axes.values())
    out = {name: m.ravel() for name, m in zip(axes, mesh, strict=True)}
    if {"params", "tokens"} <= out.keys():
        ratio = out["tokens"] / out["params"]
        ratios = [row["tokens"] / row["params"] for row in fit.parts.usable]
        inside = (ratio >= min(ratios)) & (ratio <= max(ratios))
        out = {name: values[inside] for name, values in out.items()}
    return out


def _cost(fit: Fit, candidates: Mapping[str, np.ndarray]) -> np.ndarray:
    """FLOPs of each candidate: 6 N D, or for a law of one column what its runs have cost."""
    if {"params", "tokens"} <= candidates.keys():
        return compute_optimal.PER_TOKEN * candidates["params"] * candidates["tokens"]
    (name,) = candidates
    if name == "flops":
        return candidates[name]
    pairs = [
        (math.log(row[name]), math.log(row["flops"]))
        for row in fit.parts.usable
        if (row.get("flops") or 0) > 0
    ]
    if len({x for x, _ in pairs}) < 2:
        raise BadInput("--next_runs: the table has no column 'flops' to tell what a run costs")
    x, y = np.array(pairs).T
    slope, start = np.polyfit(x, y, 1)
    return np.exp(start + slope * np.log(candidates[name]))


def _choose_greedily(
    fit: Fit,
    target: Mapping[str, float],
    candidates: Mapping[str, np.ndarray],
    cost: np.ndarray,
    budget: float,
    noise: float,
    by_cost: bool,
) -> tuple[list[int], float, float]:
    """(chosen candidates, variance at the target before, and after)."""
    free = ~fit.problem.fixed_mask
    jacobian = fit.problem.residuals(fit.best[None])[1][0][free]
    prior = jacobian @ (fit.problem.weights[:, None] * jacobian.T)
    prior += 1e-9 * np.diag(np.diag(prior) + 1e-12)
    away = np.linalg.inv(prior)
    covariance = noise**2 * away
    if fit.effects is not None and fit.effects.shared:  # rows that err together tell less
        away = away @ jacobian
        shared = fit.effects.covariance() - noise**2 * np.eye(fit.problem.n)
        covariance = covariance + away @ shared @ away.T
    there = {k: np.array([v]) for k, v in target.items()}
    g = _derivative(fit, there)[free][:, 0]
    j_PxM = _derivative(fit, candidates)[free]
    before, left, chosen = float(g @ covariance @ g), budget, []
    while len(chosen) < MOST:
        sj_PxM = covariance @ j_PxM
        gain = (g @ sj_PxM) ** 2 / (noise**2 + (j_PxM * sj_PxM).sum(0))
        score = np.where(cost <= left, gain / cost if by_cost else gain, -1.0)
        best = int(np.argmax(score))
        if score[best] <= 0:
            break
        chosen.append(best)
        left -= cost[best]
        s = covariance @ j_PxM[:, best]
        covariance = covariance - np.outer(s, s) / (noise**2 + j_PxM[:, best] @ s)
    return chosen, before, float(g @ covariance @ g)


def _derivative(fit: Fit, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of the log prediction by the fitted parameters [P, m]."""
    return fit.law.evaluate(fit.best[None], fit.law.prepare(columns))[1][0]


def prediction_target(fit: Fit, options: Options) -> dict[str, float]:
    """Where the prediction is wanted: the optimum of the first budget, or a value of the column;
    ten times the largest of the table where none is given."""
    law = fit.law
    if compute_optimal.has_optimum(law):
        most = compute_optimal.largest_budget(fit.parts.usable)
        c = next(iter(options.predict_flops), 10 * most)
        n = float(compute_optimal.optimal_params(law, fit.best[None], [c])[0, 0])
        if compute_optimal.vary_together(fit.parts.fitted):
            raise BadInput("params and tokens vary together in this table: no optimum to aim at")
        if not math.isfinite(n):
            raise BadInput(f"the law has no optimum at {c:g} FLOPs to aim at")
        d = c / compute_optimal.PER_TOKEN / n
        every = {"params": n, "tokens": d, "unique_tokens": d}
        return {name: every.get(name, 0.0) for name in law.columns}
    (column,) = law.columns
    most = max(row[column] for row in fit.parts.usable)
    return {column: next(iter([*options.predict, *options.predict_flops]), 10 * most)}


def settling_stages(law: Law, parts: Split, options: Options, target: Mapping[str, float]) -> dict:
    """How the prediction at `target` settled as FLOPs were spent, cheapest runs first, and whether
    the last stage still changed it."""
    if not all(_run_flops(row) for row in parts.usable):
        raise BadInput("--anytime: rows without 'flops' cannot be ordered by what they cost")
    rows = sorted(parts.usable, key=_run_flops)
    needs = len(law.parameters) - len(options.fix) + 2
    counts = np.unique(np.linspace(min(needs, len(rows)), len(rows), STAGES).astype(int))
    # Steps that a run has from another one are paid for once.
    spent = np.cumsum([row.get("flops_spent") or _run_flops(row) for row in rows])
    quick = dataclasses.replace(options, bootstrap=0, holdout=None)
    stages = []
    for count in counts:
        some = sorted(rows[:count], key=lambda row: (*(row[c] for c in law.columns), row["run"]))
        if len({tuple(row[c] for c in law.columns) for row in some}) < needs - 1:
            continue
        try:
            fit = Fit(law, Split(some, [], []), quick, resample=False)
        except BadInput:
            continue
        loss, interval, _ = fit.predict({k: [v] for k, v in target.items()})
        stages.append(
            {
                "runs": int(count),
                "flops_spent": float(spent[count - 1]),
                "loss": float(loss[0]),
                "interval": finite_ends(interval[0]),
                "noise": fit.run_noise,
            }
        )
    return {"target": dict(target), "stages": stages, "suggestion": _suggestion(stages)}


def _run_flops(row: Mapping[str, Any]) -> float:
    """The FLOPs of a run: of the table, else 6 N D; 0 where neither is known."""
    if flops := row.get("flops"):
        return float(flops)
    size, tokens = row.get("params") or 0.0, row.get("tokens") or 0.0
    return compute_optimal.PER_TOKEN * size * tokens


def _suggestion(stages: Sequence[Mapping[str, Any]]) -> str:
    closed = [s for s in stages if None not in s["interval"]]
    if len(closed) < 2 or closed[-1] is not stages[-1]:
        return "continue: the interval at the target is still open"
    (a, b), (c, d) = closed[-2]["interval"], closed[-1]["interval"]
    narrowed = ((b - a) - (d - c)) / 2
    moved = abs(closed[-1]["loss"] - closed[-2]["loss"])
    noise = closed[-1]["noise"] * closed[-1]["loss"]
    if not a <= closed[-1]["loss"] <= b:
        return "continue, and doubt the law: the last stage left the interval of the one before it"
    if (d - c) / 2 <= noise:
        return "stop: the law at the target is known better than the noise of one run"
    if narrowed <= ENOUGH * noise and moved <= noise:
        return "stop, or make larger runs: the last stage neither moved nor narrowed the prediction"
    return "continue: the last stage still moved or narrowed the prediction"
