"""Which runs to make next, and whether more are worth making.

Near the optimum a law is linear in its fitted parameters: with J the derivative of the log
prediction at the runs made and s the noise of a run, their covariance S is s² (J^T J)^-1, and more
where rows of one size or budget err together; that of the log prediction at a target with
derivative g is v = g^T S g. One more run with derivative j
takes (g^T S j)² / (s² + j^T S j) away from v (the c-optimal design of Elfving 1952, made greedily).
Of several laws these variances count by the laws' weights: a run is worth what it tells whichever
of them holds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import compute_optimal
from research.scaling.fit import ROUNDING, Fit, finite_ends
from research.scaling.law import Law
from research.scaling.options import Options, Split
from research.tables.table import Row

Weighted = Sequence[tuple[Fit, float]]  # fits of laws, the simplest first, with their weights
# From rows to the loss at a target, the interval of that, and the noise of a run.
Settle = Callable[[Sequence[Row]], tuple[float, list[float | None], float]]

MOST = 12  # runs of a proposal
REACH = 3.0  # times the largest size and tokens of the table: how far proposals go
ENOUGH = 0.1  # of the noise of a run: a stage that narrows the interval by less changes nothing
STAGES = 8


def propose_runs(laws: Weighted, target: Mapping[str, float], budget: float) -> dict[str, Any]:
    """The runs of at most `budget` FLOPs in all that narrow the prediction at `target` (the columns
    of the laws) most. Raises BadInput if no run is that cheap."""
    fit = laws[0][0]
    candidates = _candidates(fit)
    cost = _cost(fit, candidates)
    affordable = cost <= budget
    if not affordable.any():
        raise BadInput(
            f"--next_runs={budget:g}: the cheapest run that would tell anything costs "
            f"{cost.min():.3g} FLOPs"
        )
    beliefs = [_belief(each, weight, target, candidates) for each, weight in laws]
    plans = [_choose_greedily(beliefs, cost, budget, by_cost) for by_cost in (True, False)]
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
        "what": "half-widths of the 95 % interval of the law's log loss at the target, without the "
        "choice of the law",
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


@dataclasses.dataclass(frozen=True)
class _Belief:
    """What one law says near its optimum: derivatives of the log prediction by its free parameters
    at the target [P] and at the candidates [P, m], the parameters' covariance, a run's noise."""

    weight: float
    target: np.ndarray
    candidates: np.ndarray
    covariance: np.ndarray
    noise: float

    @property
    def variance(self) -> float:
        return self.weight * float(self.target @ self.covariance @ self.target)

    def gains(self) -> np.ndarray:
        """By how much each candidate would lower the variance [m]."""
        sj_PxM = self.covariance @ self.candidates
        told = self.noise**2 + (self.candidates * sj_PxM).sum(0)
        return self.weight * (self.target @ sj_PxM) ** 2 / told

    def after(self, i: int) -> "_Belief":
        """The belief after a run of candidate i."""
        j = self.candidates[:, i]
        s = self.covariance @ j
        left = self.covariance - np.outer(s, s) / (self.noise**2 + j @ s)
        return dataclasses.replace(self, covariance=left)


def _belief(
    fit: Fit, weight: float, target: Mapping[str, float], candidates: Mapping[str, np.ndarray]
) -> _Belief:
    noise = max(fit.run_noise, ROUNDING)  # of a law without any
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
    return _Belief(weight, g, _derivative(fit, candidates)[free], covariance, noise)


def _choose_greedily(
    beliefs: Sequence[_Belief], cost: np.ndarray, budget: float, by_cost: bool
) -> tuple[list[int], float, float]:
    """(chosen candidates, variance at the target before, and after)."""
    before, left, chosen = sum(belief.variance for belief in beliefs), budget, []
    while len(chosen) < MOST:
        gain = np.sum([belief.gains() for belief in beliefs], axis=0)
        score = np.where(cost <= left, gain / cost if by_cost else gain, -1.0)
        best = int(np.argmax(score))
        if score[best] <= 0:
            break
        chosen.append(best)
        left -= cost[best]
        beliefs = [belief.after(best) for belief in beliefs]
    return chosen, before, sum(belief.variance for belief in beliefs)


def _derivative(fit: Fit, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of the log prediction by the fitted parameters [P, m]."""
    return fit.law.evaluate(fit.best[None], fit.law.prepare(columns))[1][0]


def prediction_target(laws: Weighted, options: Options) -> dict[str, float]:
    """Where the prediction is wanted: the optimum of the first budget, or a value of the column;
    ten times the largest of the table where none is given."""
    fit = laws[0][0]
    law = fit.law
    if compute_optimal.has_optimum(law):
        most = compute_optimal.largest_budget(fit.parts.usable)
        c = next(iter(options.predict_flops), compute_optimal.AHEAD * most)
        sizes = [compute_optimal.optimal_params(each.law, each.best[None], [c])[0, 0]
                 for each, _ in laws]  # fmt: skip
        if compute_optimal.vary_together(fit.parts.fitted):
            raise BadInput("params and tokens vary together in this table: no optimum to aim at")
        there = np.isfinite(sizes)
        if not there.any():
            raise BadInput(f"the law has no optimum at {c:g} FLOPs to aim at")
        weights = np.array([weight for _, weight in laws])[there]
        n = math.exp(float(np.average(np.log(np.array(sizes)[there]), weights=weights)))
        d = c / compute_optimal.PER_TOKEN / n
        every = {"params": n, "tokens": d, "unique_tokens": d}
        return {name: every.get(name, 0.0) for name in law.columns}
    (column,) = law.columns
    most = max(row[column] for row in fit.parts.usable)
    return {
        column: next(iter([*options.predict, *options.predict_flops]), compute_optimal.AHEAD * most)
    }


def settle_law(law: Law, options: Options, target: Mapping[str, float]) -> Settle:
    """What one law, fitted to some rows, predicts at the target."""
    quick = dataclasses.replace(options, bootstrap=0, holdout=None)
    there = {k: [v] for k, v in target.items()}

    def predict(rows: Sequence[Row]) -> tuple[float, list[float | None], float]:
        fit = Fit(law, Split([*rows], [], []), quick, resample=False)
        loss, interval, _ = fit.predict(there)
        return float(loss[0]), finite_ends(interval[0]), fit.run_noise

    return predict


def settling_stages(
    law: Law, parts: Split, options: Options, target: Mapping[str, float], predict: Settle
) -> dict[str, Any]:
    """How the prediction at `target` settled as FLOPs were spent, cheapest runs first, and whether
    the last stage still changed it; of an average, `law` is the simplest."""
    if not all(_run_flops(row) for row in parts.usable):
        raise BadInput("--anytime: rows without 'flops' cannot be ordered by what they cost")
    rows = sorted(parts.usable, key=_run_flops)
    needs = len(law.parameters) - len(options.fix) + 2
    counts = np.unique(np.linspace(min(needs, len(rows)), len(rows), STAGES).astype(int))
    # Steps that a run has from another one are paid for once.
    spent = np.cumsum([row.get("flops_spent") or _run_flops(row) for row in rows])
    stages = []
    for count in counts:
        some = sorted(rows[:count], key=lambda row: (*(row[c] for c in law.columns), row["run"]))
        if len({tuple(row[c] for c in law.columns) for row in some}) < needs - 1:
            continue
        try:
            loss, interval, noise = predict(some)
        except BadInput:
            continue
        stages.append(
            {
                "runs": int(count),
                "flops_spent": float(spent[count - 1]),
                "loss": loss,
                "interval": interval,
                "noise": noise,
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
