"""The JSON document of a fit: what the data show, and what they do not."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.io import files
from research.scaling import compute_optimal, influence, uncertainty
from research.scaling.fit import AGREE, Fit, by_parameter, finite_ends
from research.scaling.followed_rules import ratio_warning, repeat_warning, rule_warnings
from research.scaling.lack_of_fit import misfit_warning
from research.scaling.optimize import Problem, minimize, parameter_bounds
from research.scaling.statistics import held_out_row, held_out_summary, pooled_sd
from research.scaling.trends import beyond_scores
from research.tables import numbers, table
from research.tables.replicates import replicate_groups, tuning_warnings

UNIT = "as in the table"
PLAIN = re.compile(r"[\w %/().,-]{1,60}")
WILD = 0.08  # of log loss: no noise of a run
OTHER = 1.1  # factor from which two ways of counting FLOPs are told apart


def write_document(directory: Path, document: Mapping[str, Any], name: str = "fit") -> Path:
    """Write fit.json, or the document of one of several fits, and return where it is."""
    path = directory / f"{name}.json"
    files.write_json(path, document)
    return path


def build_document(
    fit: Fit,
    predictions: list[dict[str, Any]] | None = None,
    holdout: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of `fit.json`: with the predictions of the fit, and what it says of held-out
    rows, unless those of an average are given."""
    law, options, told = fit.law, fit.options, []
    if predictions is None:
        told = misfit_warning([fit])
        predictions, holdout = _predictions(fit), held_out_section(fit)
    agree = float(np.mean(fit.values <= fit.value * (1 + AGREE) + fit.exact))
    document = {
        "law": law.name,
        "formula": law.formula,
        "against": law.columns[0],
        "response": law.response,
        "unit": loss_unit(fit.parts.usable) if law.response == "loss" else law.response,
        "n_points": len(fit.parts.fitted),
        "dropped": fit.parts.dropped,
        "objective": fit.value,
        "options": _options(fit),
        "params": fit.params,
        "starts": {"total": len(fit.values), "agree_fraction": agree},
        "certificate": {
            "gradient_norm": fit.gradient,
            "moved": bool(np.abs(fit.best - fit.start).max() > 1e-9 or fit.value <= fit.exact),
            "converged": fit.converged,
        },
        "r2": _r2(fit.problem, fit.best),
        "noise": _noise(fit),
        **seed_noise(fit.parts.usable, law.columns, law.response),
        "method": _method(fit),
        "standard_errors": _standard_errors(fit),
        "intervals": fit.reported_intervals(),
        "identifiability": _identifiability(fit),
        "optimal": compute_optimal.optimal_power_laws(fit)
        if compute_optimal.has_optimum(law)
        else None,
        "predictions": predictions,
        "holdout": holdout,
    }
    if options.score:
        document["score"] = _score(fit)
    document["influence"], decisive = influence.influence_section(fit, predictions)
    document["warnings"] = (
        told
        + _collinearity_warning(fit)
        + _unfinished_warning(fit)
        + _flops_convention_warning(fit)
        + _scatter_warning(fit)
        + beyond_scores(fit.parts.fitted, predictions)
        + decisive
        + rule_warnings(fit.parts.fitted)
        + ratio_warning(fit.parts.fitted, predictions)
        + ([] if "unique_tokens" in law.columns else repeat_warning(fit.parts.fitted, predictions))
        + tuning_warnings(fit.parts.fitted, law.columns, fit.parts.dropped, law.response)
        + _warnings(document)
    )
    return document


def _options(fit: Fit) -> dict[str, Any]:
    chosen = dataclasses.asdict(fit.options)
    for name in ("method", "noise", "against"):
        chosen.pop(name)
    huber = fit.problem.objective == "huber_log"
    chosen["objective"] = fit.problem.objective
    chosen["huber_delta"] = fit.options.huber_delta if huber else None
    chosen["bootstrap"] = 0 if fit.draws is None else len(fit.draws)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}


def _noise(fit: Fit) -> dict[str, Any]:
    """The standard deviation of a run, in log of the response (for --objective=mse in its own
    units), what tells it, and from how many degrees of freedom."""
    value = uncertainty.run_noise(fit.problem, fit.best)
    left = int((~uncertainty.outliers(fit.problem, fit.best)).sum())
    freedom = max(left - fit.problem.n + fit.problem.freedom, 1)
    return {"value": value, "source": "scatter about the law", "freedom": freedom}


def _method(fit: Fit) -> str:
    if fit.draws is None:
        return "profile likelihood, Student's t"
    return f"bootstrap of {len(fit.draws)} resamples by {fit.options.cluster}"


def _standard_errors(fit: Fit) -> dict[str, float | None]:
    """Standard errors: of the bootstrap, else a quarter of the (closed) profile interval."""
    if fit.draws is not None:
        return {**by_parameter(fit.law, fit.law.report(fit.draws).std(0, ddof=1))}
    names = zip(fit.law.parameters, fit.profiles, strict=True)
    widths = {n: (high - low) / 4 for n, (low, high) in names}
    return {n: w if math.isfinite(w) else None for n, w in widths.items()}


def _identifiability(fit: Fit) -> dict[str, Any]:
    lowest = min(row[fit.law.response] for row in fit.parts.fitted)
    low_bound, high_bound = parameter_bounds(fit.law)
    out = {}
    values = fit.law.report(fit.best)
    for i, (name, (low, high)) in enumerate(zip(fit.law.parameters, fit.profiles, strict=True)):
        value = values[i]
        if name in fit.options.fix:
            flag = "fixed"
        elif (name == "E" and value < 1e-3 * lowest) or not (
            low_bound[i] < fit.best[i] < high_bound[i]
        ):
            flag = "at_bound"
        elif not (math.isfinite(low) and math.isfinite(high)) or (
            name in fit.law.positive and low <= 0
        ):
            flag = "open"
        elif high - low > abs(value):
            flag = "weak"
        else:
            flag = "ok"
        out[name] = {"profile": finite_ends((low, high)), "flag": flag}
    return out


def _predictions(fit: Fit) -> list[dict[str, Any]]:
    if len(fit.law.columns) == 1:
        column = fit.law.columns[0]
        return fit.rows(column, [*fit.options.predict, *fit.options.predict_flops])
    return compute_optimal.predict_optima(fit, fit.options.predict_flops)


def held_out_section(fit: Fit) -> dict[str, Any] | None:
    """What was predicted for the rows that were held out, beside what was measured."""
    if not fit.parts.held_out:
        return None
    columns = table.column_arrays(fit.parts.held_out, fit.law.columns)
    center, law, one = fit.predict(columns)
    rows = []
    for i, row in enumerate(fit.parts.held_out):
        predicted = {
            fit.law.response: float(center[i]),
            "interval": finite_ends(law[i]),
            "run_interval": finite_ends(one[i]),
        }
        known = {name: row[name] for name in fit.law.columns}
        measured = row[fit.law.response]
        rows.append(held_out_row(row["run"], known, predicted, fit.law.response, measured))
    return held_out_summary(fit.options.holdout, rows)


def _score(fit: Fit) -> dict[str, Any]:
    """The objective at a given point, on the same rows, and what a local fit makes of it."""
    point = np.array([fit.options.score[name] for name in fit.law.parameters], float)
    theta = fit.law.fitted(point)
    value = float(fit.problem.value(theta[None])[0])
    local = float(minimize(fit.problem, theta[None])[1][0])
    return {
        "params": dict(fit.options.score),
        "objective": value,
        "r2": _r2(fit.problem, theta),
        "above_optimum": value / max(fit.value, fit.exact) - 1,
        "improvable": bool(value > fit.value * (1 + AGREE) + fit.exact),
        "after_local_fit": local,
    }


def _unfinished_warning(fit: Fit) -> list[str]:
    """A warning where rows are from the middle of a run."""
    count = sum((numbers.parse_number(row.get("part_of_run")) or 1) < 1 for row in fit.parts.fitted)
    if not count:
        return []
    return [
        f"{count} rows are from before the end of a run, where its schedule had not come down yet: "
        "a law of final losses does not hold for them; --law=envelope is meant for them"
    ]


def _collinearity_warning(fit: Fit) -> list[str]:
    """A warning where no fit can tell what size does and what tokens do."""
    if not compute_optimal.has_optimum(fit.law):
        return []
    held = (*fit.options.fix, *fit.options.prior)
    if few := compute_optimal.too_few_values(fit.law, fit.parts.fitted, held):
        return [
            f"{few} have fewer than {compute_optimal.MIN_VALUES} values: what they do beyond them "
            "is not told by any data (a floor, a coefficient and an exponent), so there is no "
            "optimal size; --fix=E=… or --prior=E=… gives what is missing"
        ]
    if not compute_optimal.vary_together(fit.parts.fitted):
        return []
    for name in ("params", "tokens"):
        low, high = (end(row[name] for row in fit.parts.fitted) for end in (min, max))
        if math.log(high / low) < compute_optimal.TOGETHER:
            return [
                f"{name} hardly vary ({low:.3g} to {high:.3g}): what they do cannot be told, so "
                "there is no optimal size; --law=power is of the other column alone"
            ]
    return [
        "params and tokens vary together: what each does cannot be told apart, so the exponents "
        "mean little and there is no optimal size; runs with other tokens per parameter are needed"
    ]


def _flops_convention_warning(fit: Fit) -> list[str]:
    """A warning where the budgets of the answer are not those of the table."""
    if not compute_optimal.has_optimum(fit.law):
        return []
    ratios = [
        float(row["flops"]) / (compute_optimal.PER_TOKEN * row["params"] * row["tokens"])
        for row in fit.parts.fitted
        if isinstance(row.get("flops"), (int, float)) and row["flops"] > 0
    ]
    if not ratios or 1 / OTHER < (middle := float(np.median(ratios))) < OTHER:
        return []
    return [
        f"budgets of optimal sizes are 6 * params * tokens; the table's flops are {middle:.2g} "
        "times that (median)"
    ]


def _scatter_warning(fit: Fit) -> list[str]:
    """A warning where rows are off the law by far more than runs of one recipe are."""
    if not {"params", "tokens", "loss"} <= {*fit.law.columns, fit.law.response}:
        return []
    noise = uncertainty.run_noise(fit.problem, fit.best)
    if fit.problem.objective == "mse" or noise < WILD:
        return []
    return [
        f"a run is off the law by {math.expm1(noise):.0%} (standard deviation), which no "
        "seed does: rows of several recipes or data, losses in several units, or another law"
    ]


def loss_unit(rows: Sequence[table.Row]) -> str:
    """The unit of the loss, where the rows say it in a few plain words."""
    units = (str(row["loss_unit"]) for row in rows if row.get("loss_unit"))
    return next((words for words in units if PLAIN.fullmatch(words)), UNIT)


def seed_noise(
    rows: Sequence[table.Row], columns: Sequence[str], response: str = "loss"
) -> dict[str, Any]:
    """The spread of the loss over replicates: runs that differ in nothing but the seed.

    "seed_noise": standard deviation in nats, pooled over the groups, its degrees of freedom, and
    how many of it the loss falls from the smallest to the largest point.
    """
    groups = {
        key: [row[response] for row in group]
        for key, group in replicate_groups(rows, columns).items()
    }
    sd, freedom = pooled_sd(groups.values())
    if not freedom:
        return {"seed_noise": None, "fall": None}
    fall = float(np.mean(groups[min(groups)]) - np.mean(groups[max(groups)]))
    return {
        "seed_noise": {"sd": sd, "degrees_of_freedom": freedom},
        "fall": {"nats": fall, "in_seed_sd": fall / sd if sd else None},
    }


def _r2(problem: Problem, theta: np.ndarray) -> float | None:
    """The share of the variance that is explained, of what the objective is about: the log of the
    response, or the response itself."""
    r = problem.residuals(theta[None])[0][0]
    y = np.exp(problem.log_y) if problem.objective == "mse" else problem.log_y
    mean = np.average(y, weights=problem.weights)
    total = float(np.sum(problem.weights * (y - mean) ** 2))
    return 1 - float(np.sum(problem.weights * r * r)) / total if total else None


def left_out_warning(dropped: Sequence[Mapping[str, str]]) -> list[str]:
    """A warning that says how many rows were left out, and of some of them why."""
    if not dropped:
        return []
    some = "; ".join(f"{row['run']}: {row['reason']}" for row in dropped[:3])
    more = "; …" if len(dropped) > 3 else ""
    noun = "budget" if all(row["run"].startswith("budget ") for row in dropped) else "row"
    count = f"1 {noun} was" if len(dropped) == 1 else f"{len(dropped)} {noun}s were"
    return [f"{count} left out ({some}{more})"]


def _warnings(document: Mapping[str, Any]) -> list[str]:
    out = []
    for name, entry in document["identifiability"].items():
        if entry["flag"] == "at_bound" and name == "E":
            out.append("E is at its bound: these data identify no irreducible loss")
        elif entry["flag"] == "at_bound":
            out.append(f"{name} is at its bound: these data do not identify it")
        elif entry["flag"] == "open":
            out.append(f"{name} is not identified by these data: its interval is open")
        elif entry["flag"] == "weak":
            out.append(f"{name} is poorly constrained: its interval is wider than its value")
    starts_ = document["starts"]
    if starts_["total"] > 1 and starts_["agree_fraction"] < 0.05:
        out.append(
            f"only {starts_['agree_fraction']:.1%} of {starts_['total']} starts agree on the "
            "minimum"
        )
    # Towards a bound there is no arriving, and that it is there is said already.
    bound = any(entry["flag"] == "at_bound" for entry in document["identifiability"].values())
    if not (document["certificate"]["converged"] or bound):
        out.append("the optimizer had not arrived when it was stopped: the objective still falls")
    if not document["certificate"]["moved"]:
        out.append("the optimizer did not move from its start")
    scored = document.get("score")
    if scored and scored["improvable"]:
        out.append(
            f"the given point is {scored['above_optimum']:.2%} above the optimum: it is not the "
            "least of this objective on these rows"
        )
    elif scored and scored["above_optimum"] < -AGREE:
        out.append("the given point has a lower objective: a better minimum exists")
    if document["r2"] is None:
        out.append("the response is the same in every row: there is nothing to explain")
    for name in ("alpha", "beta", "eta"):
        if document["params"].get(name, 0.0) < 0:
            out.append(f"{name} is negative: the loss rises where the law lets it fall")
    out += left_out_warning(document["dropped"])
    if holdout := document["holdout"]:
        missed = len(holdout["rows"]) - holdout["covered"]
        if missed:
            out.append(
                f"{missed} of {len(holdout['rows'])} held-out runs lie outside their interval"
            )
    return out
