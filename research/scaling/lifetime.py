"""What is optimal for a model that is trained and used (Sardana et al. 2023, arXiv:2401.00448).

Training costs 6 N D, and D_inf tokens of inference 2 N D_inf more, so a smaller model that is
trained for longer may cost less in all. Asked are the model that is as good as the optimum of a
budget of training at the least total, and the best one whose total is that budget.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import averaged_predictions
from research.scaling.averaging import Average, Member
from research.scaling.compute_optimal import (
    PER_TOKEN,
    has_optimum,
    largest_budget,
    optimal_params,
    predict_loss,
    vary_together,
)
from research.scaling.extrapolation import FURTHER
from research.scaling.law import GROUP, Law
from research.scaling.options import Options

PER_SERVED = 2.0  # FLOPs of inference per parameter and token
REACH = 5.0  # decades below the optimum without inference, in which sizes are tried
POINTS, AGAIN = 101, 17  # sizes that are tried, and again between the neighbors of the best
ROUNDS = 3
HALVINGS = 30  # of the range of totals; what is left of it is far below any interval
CONVENTION = "training 6 N D, inference 2 N a token"


def lifetime_optima(average: Average, options: Options) -> dict[str, Any]:
    """The section "inference" of fit.json, for the budgets 6 N D and the tokens of inference that
    the options give. Raises BadInput for laws that do not read params and tokens."""
    law, rows = average.best.law, average.best.parts.usable
    if not all(has_optimum(member.fit.law) for member in average.members):
        raise BadInput(f"--inference_tokens: {law.name} does not read params and tokens")
    if vary_together(rows):
        raise BadInput("--inference_tokens: params and tokens vary together in this table")
    served = float(options.inference_tokens or 0.0)
    flops = options.predict_flops or [FURTHER * largest_budget(rows)]
    return {
        "tokens": served,
        "flops_convention": CONVENTION,
        "optima": [_optima(average, float(c), served) for c in flops],
    }


def _optima(average: Average, flops: float, served: float) -> dict[str, Any]:
    """ "training": the optimum of training alone; "same_loss": as good at the least total, with the
    share of the total that this saves; "same_total": the best for `flops` in all."""
    n, _ = averaged_predictions.optimal_size(average, flops)
    out: dict[str, Any] = {"flops": flops, "training": None, "same_loss": None, "same_total": None}
    if not math.isfinite(n):
        return out
    d = flops / PER_TOKEN / n
    total = flops + PER_SERVED * n * served
    out["training"] = {"params": n, "tokens": d, "total_flops": total}
    cheapest = functools.partial(_cheapest, flops=flops, served=served)
    out["same_loss"] = _averaged(average, cheapest, ("params", "tokens", "total_flops", "saved"))
    best = _averaged(average, functools.partial(_best, flops=flops, served=served))
    if best:
        point = {"params": [best["params"]], "tokens": [best["tokens"]]}
        predicted = averaged_predictions.predict_loss(average, _fresh(point))[0]
        best |= {k: predicted[k] for k in ("loss", "interval", "run_interval")}
    out["same_total"] = best
    return out


def _fresh(point: Mapping[str, Any]) -> dict[str, Any]:
    return {**point, "unique_tokens": point["tokens"], GROUP: [0.0]}


def _averaged(
    average: Average, answer: Any, names: tuple[str, ...] = ("params", "tokens")
) -> dict[str, Any] | None:
    """What `answer(law, theta)` [K, len(names)] says, averaged over laws in its logarithm, with
    intervals over their draws; None where no law has an answer. "saved" is a share of what was
    spent: it is averaged as what is left."""
    centers, drawn = [], []
    for member in average.members:
        center, draws = _answers(member, answer)
        centers.append(center)
        drawn.append(draws)
    there = np.isfinite(centers).all(1)
    if not there.any():
        return None
    logs = np.average(np.array(centers)[there], axis=0, weights=average.weights[there])
    values, mass = averaged_predictions.mixture(average, drawn)
    out: dict[str, Any] = {"intervals": {}}
    for i, name in enumerate(names):
        value, ends = math.exp(logs[i]), averaged_predictions.interval(np.exp(values[:, i]), mass)
        if name == "saved":
            value = max(0.0, 1 - value)
            ends = [None if end is None else max(0.0, 1 - end) for end in reversed(ends)]
        out[name], out["intervals"][name] = value, ends
    out["tokens_per_param"] = out["tokens"] / out["params"]
    return out


def _answers(member: Member, answer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms of an answer of the best fit and of its draws, stretched as all that is
    extrapolated."""
    law = member.fit.law
    with np.errstate(all="ignore"):
        center = np.log(answer(law, member.fit.best[None])[0])
        draws = np.log(answer(law, member.draws))
    return center, center + member.stretch * (draws - center)


def _best(law: Law, theta: np.ndarray, flops: float, served: float) -> np.ndarray:
    """Params and tokens [K, 2] of least loss whose training and inference cost `flops`."""
    start = optimal_params(law, theta, [flops])[:, 0]
    n, d, _ = _least_loss(law, theta, np.full(len(theta), flops), served, start)
    return np.stack([n, d], axis=1)


def _cheapest(law: Law, theta: np.ndarray, flops: float, served: float) -> np.ndarray:
    """Params, tokens, total FLOPs and what is left of the total [K, 4] of the cheapest model that
    is as good as the optimum of `flops` of training."""
    start = optimal_params(law, theta, [flops])[:, 0]
    tokens = flops / PER_TOKEN / start
    wanted = predict_loss(law, theta, start[:, None], tokens[:, None])[:, 0]
    whole = flops + PER_SERVED * start * served
    low, high = np.full(len(theta), math.log(flops)), np.log(whole)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        worse = _least_loss(law, theta, np.exp(middle), served, start)[2] > wanted
        low, high = np.where(worse, middle, low), np.where(worse, high, middle)
    n, d, _ = _least_loss(law, theta, np.exp(high), served, start)
    total = PER_TOKEN * n * d + PER_SERVED * n * served
    return np.stack([n, d, total, total / whole], axis=1)


def _least_loss(
    law: Law, theta: np.ndarray, total: np.ndarray, served: float, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Params, tokens and loss [K] of the best model of each law, whose training and inference cost
    a total [K]: no larger than the best without inference, `start` [K]."""
    offsets = np.linspace(-REACH * math.log(10), 0.1, POINTS)
    at = np.log(start)
    found: list[np.ndarray] = []
    for _ in range(ROUNDS):
        log_n = at[:, None] + offsets
        n = np.exp(log_n)
        d = (total[:, None] / n - PER_SERVED * served) / PER_TOKEN
        with np.errstate(all="ignore"):
            loss = predict_loss(law, theta, n, np.where(d > 0, d, math.nan))
        loss = np.where(np.isfinite(loss), loss, math.inf)
        best = loss.argmin(1)[:, None]
        at = np.take_along_axis(log_n, best, 1)[:, 0]
        step = offsets[1] - offsets[0]
        offsets = np.linspace(-step, step, AGAIN)
        found = [np.take_along_axis(values, best, 1)[:, 0] for values in (n, d, loss)]
    lost = ~np.isfinite(found[2]) | ~np.isfinite(start)
    return tuple(np.where(lost, math.nan, values) for values in found)  # type: ignore[return-value]
