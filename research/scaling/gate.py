"""A promotion decision: does one recipe need less compute than another for the same loss?

The compute multiplier m of B over A at a budget C solves L_A(m C) = L_B(C), where L(C) is the least
loss that a law gives a budget. With shared exponents m is the same at every budget; where an F test
rejects these, each group's own law is asked. B passes if the 95 % interval of m lies above 1.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.errors import BadInput
from research.io.humanize import flops_text
from research.scaling import compute_optimal
from research.scaling.extrapolation import amounts
from research.scaling.fit import Fit
from research.scaling.law import Law
from research.scaling.statistics import usual_range

REACH = 6.0  # decades around a budget in which an equal loss is looked for
POINTS = 241  # of the grid of budgets, between which the logarithm of the loss is a line
FAR = 10.0  # times beyond the budgets of a table, from which the decision says so


class Gate(NamedTuple):
    """B>A@C: whether group `better` needs less than `reference` at `at`, FLOPs, or the law's own
    column."""

    better: str
    reference: str
    at: float


def parse_gate(text: str, names: Sequence[str]) -> Gate:
    """The gate `text`, "B>A@1e21", of groups `names`. Raises BadInput saying what is wrong."""
    match = re.fullmatch(r"(.+)@([^@]+)", text.strip())
    pairs, at = [], math.nan
    if match:
        whole = match[1]
        cuts = [i for i, letter in enumerate(whole) if letter == ">"]
        pairs = [(whole[:i].strip(), whole[i + 1 :].strip()) for i in cuts]
        try:
            at = float(match[2])
        except ValueError:
            pairs = []
    if not pairs or not 0 < at < math.inf:
        raise BadInput(f"--gate={text}: expected BETTER>REFERENCE@FLOPS, such as muon>adamw@1e21")
    known = [pair for pair in pairs if set(pair) <= set(names)]
    if not known:
        raise BadInput(f"--gate={text}: expected two of the groups {', '.join(map(repr, names))}")
    if known[0][0] == known[0][1]:
        raise BadInput(f"--gate={text}: expected two different groups")
    return Gate(*known[0], at)


def decide(
    gate: Gate, law: Law, section: Mapping[str, Any], own: Mapping[str, Fit], shared: Fit
) -> dict[str, Any]:
    """The section "gate" of the comparison `section`, whose reference is that of the gate: the
    multiplier with its interval, by which law, whether it passes, and in words. `own` are the laws
    of the groups, `shared` that of all. Raises BadInput where neither can be asked."""
    of_shared = section["groups"][gate.better]["compute_multiplier"]
    allowed = section["test"]["shared_exponents_justified"]
    alone = None
    if gate.better in own and gate.reference in own:
        alone = own_multiplier(gate, law, own[gate.better], own[gate.reference])
    by_own = allowed is False
    if by_own and alone is None:
        raise BadInput(
            "--gate: the groups do not share their exponents, and no law of their own could be "
            "fitted to both; more rows are needed"
        )
    chosen: Mapping[str, Any] = alone if by_own else of_shared  # type: ignore[assignment]
    low, high = chosen["interval"]
    asked = amounts(shared.parts.fitted, law.columns)
    out = {
        "better": gate.better,
        "reference": gate.reference,
        "at": gate.at,
        "multiplier": dict(chosen),
        "by": "own laws" if by_own else "shared exponents",
        "of_own_laws": alone,
        "times_largest": gate.at / usual_range(asked)[1],
        "times_smallest": gate.at / usual_range(asked)[0],
        "passed": low is not None and low > 1,
    }
    return out | {"words": _sentence(out, section["of"], allowed, high)}


def own_multiplier(gate: Gate, law: Law, better: Fit, reference: Fit) -> dict[str, Any]:
    """{"value", "interval"} of the multiplier at the gate's budget by a law of each group; null
    where the reference reaches the loss at no budget within REACH decades."""
    log_c = math.log(gate.at) + np.linspace(-REACH, REACH, POINTS) * math.log(10)
    middle = POINTS // 2
    loss_b = least_loss(law, better.best[None], np.exp(log_c[middle : middle + 1]))
    loss_a = least_loss(law, reference.best[None], np.exp(log_c))
    value = _equal_budget(log_c, loss_a, loss_b[:, 0])[0] / gate.at
    # The groups were trained apart: a draw of one goes with any draw of the other, but not with
    # that of its own number, which was made from the same random numbers.
    draws_b, draws_a = better.samples, reference.samples
    draws_b = np.random.default_rng(better.options.seed).permutation(draws_b)
    count = min(len(draws_b), len(draws_a))
    drawn_b = least_loss(law, draws_b[:count], np.exp(log_c[middle : middle + 1]))
    drawn_a = least_loss(law, draws_a[:count], np.exp(log_c))
    drawn = _equal_budget(log_c, drawn_a, drawn_b[:, 0]) / gate.at
    # A draw that finds no equal loss is as far off as there is: above, or below, what was reached.
    above = np.isnan(drawn) & (drawn_b[:, 0] < np.nanmin(drawn_a, axis=1)) if count else drawn
    drawn = np.where(np.isnan(drawn), np.where(above, np.inf, 0.0), drawn)
    ends = np.quantile(drawn, [0.025, 0.975], method="nearest") if count else [math.nan] * 2
    interval = [float(x) if math.isfinite(x) and x > 0 else None for x in ends]
    return {"value": float(value) if math.isfinite(value) else None, "interval": interval}


def least_loss(law: Law, theta_KxP: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """The least loss [K, m] of each law at each budget: at the best size, or of a law of one column
    at that column."""
    if compute_optimal.has_optimum(law):
        n = compute_optimal.optimal_params(law, theta_KxP, list(budgets))
        d = budgets / compute_optimal.PER_TOKEN / n
        return compute_optimal.predict_loss(law, theta_KxP, n, d)
    x = law.prepare(dict.fromkeys(law.columns, budgets))
    return np.exp(law.evaluate(theta_KxP, x)[0])


def _equal_budget(log_c: np.ndarray, loss: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The budget [K] at which the falling loss [K, m] on the grid is `target` [K]; NaN where none
    is."""
    out = np.full(len(loss), np.nan)
    for k, (curve, wanted) in enumerate(zip(loss, target, strict=True)):
        known = np.isfinite(curve)
        if not np.isfinite(wanted) or known.sum() < 2:
            continue
        falling, budgets = curve[known][::-1], log_c[known][::-1]
        if falling[0] <= wanted <= falling[-1]:
            out[k] = math.exp(float(np.interp(wanted, falling, budgets)))
    return out


def _sentence(out: Mapping[str, Any], of: str, allowed: bool | None, high: float | None) -> str:
    low = out["multiplier"]["interval"][0]
    ends = " to ".join("open" if x is None else f"{x:.3g}" for x in (low, high))
    value = out["multiplier"]["value"]
    worth = "at no such budget" if value is None else f"{value:.3g}x"
    how = out["by"] if allowed is not None else "shared exponents, which are too few to be tested"
    far, near = out["times_largest"], out["times_smallest"]
    beyond = f", {far:.3g} times beyond the table's largest" if far > FAR else ""
    beyond += f", {1 / near:.3g} times below the table's smallest" if near < 1 / FAR else ""
    verdict = "passed" if out["passed"] else "not passed"
    return (
        f"gate {verdict}: {out['better']} at {flops_text(out['at'])} is "
        f"worth {worth} the {of} of {out['reference']} (95 %: {ends}; {how}{beyond})"
    )
