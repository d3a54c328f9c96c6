"""Fit a law to a table of runs: one JSON document of what the data show and what they do not.

The table is all it reads: no model, no accelerator, numpy in float64. The same table gives the same
document, whatever the order of its rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import table, uncertainty
from research.scaling.laws import LAWS, Law
from research.scaling.solve import OBJECTIVES, Problem, minimise, starts

FEW = 30  # clusters; below, a bootstrap of them is too coarse and the profile is used
AGREE = 1e-8  # relative: starts that end this near to the best have found the same minimum


def fit(
    law: str,
    rows: Sequence[table.Row],
    *,
    against: str = "params",
    objective: str | None = None,
    huber_delta: float = 1e-3,
    where: str | None = None,
    drop_top_loss: int = 0,
    holdout: str | None = None,
    predict: Sequence[float] = (),
    bootstrap: int = 1000,
    cluster: str = "run",
    seed: int = 0,
) -> dict[str, Any]:
    """The document of `fit.json` for the law named `law` on `rows` (see table.read).

    `objective` is huber_log, mse_log or mse, summed over rows; by default mse_log for fewer than
    30 rows and huber_log from there on, where outliers can be told from noise. `holdout` is
    "largest" (the rows with the largest value of `against`) or comparisons; those rows are
    predicted and not fitted. `predict` are values of `against` to predict at.

    Raises BadInput for a table that cannot be fitted.
    """
    if law not in LAWS:
        raise BadInput(f"--law={law}: expected one of {', '.join(LAWS)}")
    if objective not in (None, *OBJECTIVES):
        raise BadInput(f"--objective={objective}: expected one of {', '.join(OBJECTIVES)}")
    made = LAWS[law](against)
    kept, dropped = table.usable(rows, [*made.columns, "loss"])
    kept, dropped = _filter(kept, dropped, where, drop_top_loss)
    fitted, held = _split(kept, holdout, against)
    _enough(made, fitted, len(held), against)
    objective = objective or ("mse_log" if len(fitted) < FEW else "huber_log")
    problem = _problem(made, fitted, objective, huber_delta)
    candidates, values, gradients = minimise(problem, starts(problem))
    order = int(np.argmin(values))
    best, value = candidates[order], float(values[order])
    clusters = np.array([str(row.get(cluster) or row["run"]) for row in fitted])
    few = len(set(clusters)) < FEW
    document = {
        "law": law,
        "formula": made.formula,
        "against": against,
        "unit": unit(rows),
        "n_points": len(fitted),
        "dropped": dropped,
        "objective": value,
        "options": {
            "objective": objective,
            "huber_delta": huber_delta if objective == "huber_log" else None,
            "where": where,
            "drop_top_loss": drop_top_loss,
            "holdout": holdout,
            "seed": seed,
            "cluster": cluster,
            "bootstrap": bootstrap,
        },
        "params": _named(made, made.report(best)),
        "starts": {
            "total": len(values),
            "agree_fraction": float(np.mean(values <= value * (1 + AGREE) + 1e-300)),
        },
        "certificate": {
            "gradient_norm": float(gradients[order]),
            "moved": bool(np.abs(best - starts(problem)[order]).max() > 1e-9),
        },
        "optimal": None,
        "noise": uncertainty.noise(problem, best),
        **seed_noise(kept, made.columns),
    }
    profiles = _profiles(problem, best, value)
    if few or not bootstrap:
        method, draws = "profile likelihood, Student's t", None
    else:
        method = f"bootstrap of {bootstrap} resamples by {cluster}"
        draws = uncertainty.bootstrap(problem, best, clusters, bootstrap, seed)
    predictor = Predictor(problem, best, value, draws)
    document |= {
        "method": method,
        "standard_errors": _errors(made, best, profiles, draws),
        "intervals": _intervals(made, profiles, draws),
        "identifiability": _identifiability(made, best, profiles, fitted),
        "predictions": predictor.rows(against, predict),
        "holdout": _holdout(predictor, held, against, holdout),
    }
    document["warnings"] = _warnings(document, made, few and objective == "huber_log")
    return document


class Predictor:
    """Predictions of a fitted law with their 95 % intervals, for points of one column."""

    def __init__(
        self, problem: Problem, best: np.ndarray, value: float, draws: np.ndarray | None = None
    ):
        self.problem, self.best, self.value, self.draws = problem, best, value, draws

    def at(self, column: str, x: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss [m], interval of the law [m, 2], interval of one new run [m, 2], in nats."""
        terms = self.problem.law.terms({column: np.asarray(x, float)})
        if self.draws is None:
            parts = uncertainty.prediction_intervals(self.problem, self.best, self.value, terms)
            return tuple(np.exp(part) for part in parts)  # type: ignore[return-value]
        law = self.problem.law
        centre = law.log_prediction(self.best[None], terms)[0][0]
        logs = law.log_prediction(self.draws, terms)[0]
        ends = np.quantile(logs, [0.025, 0.975], axis=0).T
        spread = 1.96 * uncertainty.noise(self.problem, self.best)
        one = centre[:, None] + np.array([-1, 1]) * np.hypot(np.abs(ends - centre[:, None]), spread)
        return np.exp(centre), np.exp(ends), np.exp(one)

    def rows(self, column: str, x: Sequence[float]) -> list[dict[str, Any]]:
        if not len(x):
            return []
        loss, law, one = self.at(column, x)
        return [
            {
                column: float(x[i]),
                "loss": float(loss[i]),
                "interval": _finite(law[i]),
                "run_interval": _finite(one[i]),
            }
            for i in range(len(x))
        ]


def predictor(rows: Sequence[table.Row], document: Mapping[str, Any]) -> Predictor:
    """The Predictor of a document, for a plot's curve and band: fits the same rows again."""
    options = document["options"]
    law = LAWS[document["law"]](document["against"])
    kept, _ = table.usable(rows, [*law.columns, "loss"])
    kept, _ = _filter(kept, [], options["where"], options["drop_top_loss"])
    fitted, _ = _split(kept, options["holdout"], document["against"])
    problem = _problem(law, fitted, options["objective"], options["huber_delta"] or 1e-3)
    theta, values, _ = minimise(problem, starts(problem))
    best = int(np.argmin(values))
    return Predictor(problem, theta[best], float(values[best]))


def unit(rows: Sequence[table.Row]) -> str:
    """The unit of the loss, where the rows say it."""
    return next((str(row["loss_unit"]) for row in rows if row.get("loss_unit")), "nats per token")


def seed_noise(rows: Sequence[table.Row], columns: Sequence[str]) -> dict[str, Any]:
    """The spread of the loss over replicates: runs that are equal in the law's columns.

    "seed_noise": standard deviation in nats, pooled over the groups, its degrees of freedom, and
    how many of it the loss falls from the smallest to the largest point.
    """
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[c] for c in columns), []).append(row["loss"])
    several = [np.array(g) for g in groups.values() if len(g) > 1]
    freedom = sum(len(g) - 1 for g in several)
    if not freedom:
        return {"seed_noise": None, "fall": None}
    sd = math.sqrt(sum(((g - g.mean()) ** 2).sum() for g in several) / freedom)
    fall = float(np.mean(groups[min(groups)]) - np.mean(groups[max(groups)]))
    return {
        "seed_noise": {"sd": sd, "degrees_of_freedom": freedom},
        "fall": {"nats": fall, "in_seed_sd": fall / sd if sd else None},
    }


def _filter(
    kept: list[table.Row], dropped: list[dict], text: str | None, top: int
) -> tuple[list[table.Row], list[dict]]:
    if text:
        keep = table.where(kept, text)
        dropped = dropped + [
            {"run": row["run"], "reason": f"not {text}"} for row, k in zip(kept, keep) if not k
        ]
        kept = [row for row, k in zip(kept, keep) if k]
    if top:
        limit = sorted((row["loss"] for row in kept), reverse=True)[min(top, len(kept)) - 1]
        gone = [row for row in kept if row["loss"] >= limit]
        dropped = dropped + [
            {"run": row["run"], "reason": f"one of the {top} highest losses"} for row in gone
        ]
        kept = [row for row in kept if row["loss"] < limit]
    return kept, dropped


def _split(
    rows: list[table.Row], holdout: str | None, against: str
) -> tuple[list[table.Row], list[table.Row]]:
    if not holdout or not rows:
        return rows, []
    if holdout == "largest":
        largest = max(row[against] for row in rows)
        out = np.array([row[against] == largest for row in rows])
    else:
        out = table.where(rows, holdout)
    return (
        [row for row, held in zip(rows, out) if not held],
        [row for row, held in zip(rows, out) if held],
    )


def _enough(law: Law, rows: Sequence[table.Row], held: int, against: str) -> None:
    distinct = len({row[against] for row in rows})
    needed = len(law.parameters) + 1
    if distinct < needed:
        raise BadInput(
            f"{distinct} distinct values of {against} to fit ({held} runs held out); "
            f"{law.formula} has {len(law.parameters)} parameters and needs at least {needed}"
        )


def _problem(law: Law, rows: Sequence[table.Row], objective: str, delta: float) -> Problem:
    values = table.columns(rows, [*law.columns, "loss"])
    weights = np.array([float(row.get("weight") or 1.0) for row in rows])
    return Problem(law, law.terms(values), np.log(values["loss"]), weights, objective, delta)


def _named(law: Law, values: np.ndarray) -> dict[str, float]:
    return {name: float(v) for name, v in zip(law.parameters, values, strict=True)}


def _finite(pair: Sequence[float]) -> list[float | None]:
    """An interval for JSON: an open end is null."""
    return [float(x) if math.isfinite(x) else None for x in pair]


def _profiles(problem: Problem, best: np.ndarray, value: float) -> list[tuple[float, float]]:
    """The profile interval of every parameter, as reported: an open end of E or A is 0 or inf."""
    out = []
    for i, name in enumerate(problem.law.parameters):
        low, high = uncertainty.parameter_interval(problem, best, value, i)
        if name in problem.law.logged:
            low, high = math.exp(low), math.exp(high) if high < 700 else math.inf
        out.append((low, high))
    return out


def _intervals(law: Law, profiles: Sequence[tuple], draws: np.ndarray | None) -> dict[str, list]:
    if draws is None:
        return {n: _finite(p) for n, p in zip(law.parameters, profiles, strict=True)}
    ends = np.quantile(law.report(draws), [0.025, 0.975], axis=0).T
    return {n: _finite(p) for n, p in zip(law.parameters, ends, strict=True)}


def _errors(
    law: Law, best: np.ndarray, profiles: Sequence[tuple], draws: np.ndarray | None
) -> dict[str, float | None]:
    """Standard errors: of the bootstrap, else a quarter of the (closed) 95 % profile interval."""
    if draws is not None:
        return dict(_named(law, law.report(draws).std(0, ddof=1)))
    widths = {n: (high - low) / 4 for n, (low, high) in zip(law.parameters, profiles, strict=True)}
    return {n: w if math.isfinite(w) else None for n, w in widths.items()}


def _identifiability(
    law: Law, best: np.ndarray, profiles: Sequence[tuple], rows: Sequence[table.Row]
) -> dict[str, Any]:
    lowest = min(row["loss"] for row in rows)
    values = law.report(best)
    out = {}
    for name, value, (low, high) in zip(law.parameters, values, profiles, strict=True):
        if name == "E" and value < 1e-3 * lowest:
            flag = "at_bound"
        elif not (math.isfinite(low) and math.isfinite(high)) or (name in law.logged and low <= 0):
            flag = "open"
        elif high - low > abs(value):
            flag = "weak"
        else:
            flag = "ok"
        out[name] = {"profile": _finite((low, high)), "flag": flag}
    return out


def _holdout(
    predictor: Predictor, held: Sequence[table.Row], against: str, text: str | None
) -> dict[str, Any] | None:
    if not held:
        return None
    predicted = predictor.rows(against, [row[against] for row in held])
    rows = []
    for row, p in zip(held, predicted, strict=True):
        low, high = p["run_interval"]
        inside = (low is None or low <= row["loss"]) and (high is None or row["loss"] <= high)
        error = p["loss"] / row["loss"] - 1
        rows.append(
            {"run": row["run"], **p, "measured": row["loss"], "error": error, "covered": inside}
        )
    errors = np.array([row["error"] for row in rows])
    return {
        "rule": text,
        "rows": rows,
        "mean_absolute_error": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "covered": sum(row["covered"] for row in rows),
    }


def _warnings(document: Mapping[str, Any], law: Law, huber_on_few: bool) -> list[str]:
    out = []
    for name, found in document["identifiability"].items():
        if found["flag"] == "at_bound":
            out.append(f"{name} is at its bound: the data show no floor of the loss")
        elif found["flag"] == "open":
            out.append(f"{name} is not pinned by these data: its interval is open")
        elif found["flag"] == "weak":
            out.append(f"{name} is weakly pinned: its interval is wider than its value")
    if document["starts"]["agree_fraction"] < 0.1:
        out.append("fewer than a tenth of the starts agree on the minimum")
    if not document["certificate"]["moved"]:
        out.append("the optimizer did not move from its start")
    if document["dropped"]:
        out.append(f"{len(document['dropped'])} rows were left out; see dropped")
    if huber_on_few:
        out.append("profile intervals assume Gaussian noise, which Huber's objective does not")
    if held := document["holdout"]:
        missed = len(held["rows"]) - held["covered"]
        if missed:
            out.append(f"{missed} of {len(held['rows'])} held-out runs lie outside their interval")
    return out
