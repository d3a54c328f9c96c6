"""Compute-optimal sizes without a law of the loss: isoFLOP minima, the envelope of all runs, or
optima that somebody else has located; the power laws through them, and the document of that.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from research.errors import BadInput
from research.io.humanize import flops_text
from research.scaling import drift, effects, envelope, isoflop
from research.scaling.budgets import Noise, group_by_budget
from research.scaling.compute_optimal import NO_PARTS
from research.scaling.extrapolation import nearest_trial
from research.scaling.fit import RESAMPLES, Fit
from research.scaling.fit_document import left_out_warning, loss_unit, seed_noise
from research.scaling.laws import power
from research.scaling.options import Options, Split, filter_rows, hold_out_rows
from research.scaling.power_laws import PowerLaws
from research.scaling.statistics import held_out_row, held_out_summary
from research.tables import table
from research.tables.advice import flag, guess
from research.tables.replicates import tuning_warnings

NEEDED = envelope.NEEDED
WAYS = {
    "isoflop": isoflop.locate_minima,
    "envelope": envelope.fit_envelope,
    "optima": envelope.fit_given_optima,
}
MIN_FOR_LOSS = 5  # minima, from which on a law of three parameters says how it is uncertain
MIN_BUDGETS = 3  # two draw a line that no other is compared with
BEYOND, BAND_POINTS = 3.0, 13  # of the band of a frontier: its reach in budgets, and its points
SLOPE_STEP = 1e-3  # of log compute, for a derivative
TOO_WIDE = 2.0  # factor between the ends of an interval of a loss, from which it says nothing


def needed_columns(name: str) -> tuple[str, ...]:
    """The columns that one of WAYS reads."""
    return NEEDED[:3] if name == "optima" else NEEDED


def _what_compute_is(rows: Sequence[table.Row], options: Options) -> str:
    """By which convention the formula counts FLOPs, which moves its exponents."""
    away = [row["flops"] / (table.PER_TOKEN * row["params"] * row["tokens"]) - 1 for row in rows]
    of_size = options.six_nd or all(abs(x) < 1e-6 for x in away)
    return "C = 6 N D" if of_size else "C the FLOPs of the table"


def fit_minima(name: str, rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The document of fit.json for one of WAYS. Raises BadInput for fewer than two budgets whose
    minimum can be located, and for options that belong to a law."""
    unfit = [
        k for k in ("fix", "prior", "init", "score", "starts", "predict") if getattr(options, k)
    ]
    unfit += ["drop_top_loss"] if name == "optima" and options.drop_top_loss else []
    if unfit:
        raise BadInput(f"--{unfit[0]}: {name} has no parameters of that kind")
    usable, dropped = table.usable_rows(rows, needed_columns(name), options.where, options.finished)
    usable, dropped = filter_rows(usable, dropped, options, ("flops", "params"), "loss")
    if name == "envelope" and options.six_nd:
        usable = [
            {**row, "flops": table.PER_TOKEN * row["params"] * row["tokens"]} for row in usable
        ]
    fitted, held_out = hold_out_rows(usable, options.holdout, "flops")
    parts = WAYS[name](fitted, options)
    laws: PowerLaws = parts.pop("laws")
    noise, tuned = {"seed_noise": None, "fall": None}, []
    if name != "optima":
        noise = seed_noise(fitted, ("flops", "params"))
        tuned = tuning_warnings(fitted, ("flops", "params"), dropped)
    law_of_minima, unknown = None, []
    if name == "isoflop":
        law_of_minima, unknown = _law_of_minima(parts["minima"], parts["noise"]["freedom"], options)
    document = {
        "law": name,
        "formula": f"N* = k C^a, D* = k' C^a', {_what_compute_is(fitted, options)}",
        "against": "flops",
        "response": "loss",
        "unit": loss_unit(usable),
        "n_points": len(fitted),
        "dropped": dropped + parts.pop("dropped"),
        "objective": None,
        "options": {
            "method": options.method if name == "isoflop" else None,
            "where": options.where,
            "drop_top_loss": options.drop_top_loss,
            "holdout": options.holdout,
            "seed": options.seed,
            "six_nd": options.six_nd,
            "cluster": options.cluster,
            "bootstrap": len(laws.draws),
        },
        **laws.summary(),
        "starts": None,
        **noise,
        "identifiability": {},
        "certificate": None,
        **parts,
        "law_of_minima": law_of_minima,
        "frontier": frontier_points(laws, parts["minima"]),
        "predictions": [_prediction(laws, law_of_minima, c) for c in options.predict_flops],
        "holdout": _check_held_out(laws, parts["noise"], held_out, options)
        if held_out and name == "isoflop"
        else None,
    }
    document["warnings"] = parts["warnings"] + tuned + unknown + _warnings(document)
    if name == "isoflop" and (other := _budgets_elsewhere(rows, usable, document["dropped"])):
        document["warnings"].append(other)
    return document


def frontier_points(laws: PowerLaws, minima: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The optima of budgets from BEYOND below the located minima to BEYOND above them, each with
    its 95 % intervals: what a figure of the frontier draws as a band."""
    if not minima or not len(laws.draws) or not np.isfinite(laws.optimal).all():
        return []
    budgets = [m["flops"] for m in minima]
    grid = np.geomspace(min(budgets) / BEYOND, max(budgets) * BEYOND, BAND_POINTS)
    return [laws.predict(float(c)) for c in grid]


def _budgets_elsewhere(
    table_rows: Sequence[table.Row],
    rows: Sequence[table.Row],
    dropped: Sequence[Mapping[str, str]],
) -> str:
    """What to say where budgets of 6 N D, of the usable `rows`, have too few sizes and another
    column of the table may name those that were meant; else ""."""
    few = any("at this budget; at least" in row["reason"] for row in dropped)
    if not few or any(abs((table.flops_ratio(row) or 1.0) - 1) > 1e-9 for row in rows):
        return ""
    without = [{k: v for k, v in row.items() if k != "flops"} for row in rows]
    found = guess(without, "flops")
    if not found or found in getattr(table_rows, "names", {}).values():
        return ""
    return (
        "budgets are 6 * params * tokens, by which runs of one budget may fall apart; perhaps "
        f"--columns='{flag(table_rows, {'flops': found})}'"
    )


def _law_of_minima(
    minima: Sequence[Mapping[str, Any]], freedom: int | None, options: Options
) -> tuple[dict[str, Any] | None, list[str]]:
    """L = E + A / C^alpha through the losses at the minima, for predictions; or None, and why. The
    sizes do not depend on it, and are not lost with it. `freedom`: from how many degrees of
    freedom the noise behind the errors of these losses is known (None: it is given)."""
    if len(minima) < MIN_FOR_LOSS:
        why = f"{len(minima)} minima: a law of their losses needs {MIN_FOR_LOSS}"
        return None, [f"no loss is predicted: {why}"] if options.predict_flops else []
    rows = [{"run": str(i), "flops": m["flops"], "loss": m["loss"]} for i, m in enumerate(minima)]
    try:
        law = Fit(power("flops"), Split(rows, [], []), Options(against="flops", bootstrap=0))
        predictions = law.rows("flops", options.predict_flops)
        _widen(predictions, law, np.array([m["loss_sd"] for m in minima]), freedom)
    except (BadInput, np.linalg.LinAlgError) as error:
        return None, [f"no loss is predicted: the losses at the minima have no law: {error}"]
    out, unknown = [], []
    for point in predictions:
        low, high = point["interval"]
        known = (
            math.isfinite(point["loss"])
            and None not in (low, high)
            and low > 0
            and high < TOO_WIDE * low
        )
        out.append({**point, "loss": point["loss"] if known else None})
        if not known:
            unknown.append(
                "the losses at the minima do not tell what the loss is at "
                f"{flops_text(point['flops'])} FLOPs: it is not predicted"
            )
    return {"formula": law.law.formula, "params": law.params, "predictions": out}, unknown


def _widen(
    predictions: Sequence[dict[str, Any]], law: Fit, sds: np.ndarray, freedom: int | None
) -> None:
    """Intervals with what the law may drift: its form is an assumption, of which the losses of a
    few minima show little. Its slope is that at the largest budget."""
    if not predictions:
        return
    flops = np.array([row["flops"] for row in law.parts.fitted])
    at = np.array([point["flops"] for point in predictions])
    ends = flops.max() * np.exp([0.0, SLOPE_STEP])
    (_, of_points), (center, there), (along, _) = (
        [part[0] for part in law.law.evaluate(law.best[None], law.law.prepare({"flops": c}))[:2]]
        for c in (flops, at, ends)
    )
    off = law.problem.residuals(law.best[None])[0][0]
    slope, levels = float(np.diff(along)[0]) / SLOPE_STEP, drift.levels(sds, freedom)
    walk = drift.Drift(np.log(flops), of_points.T, off, levels, slope, effects.PRIORS[-1])
    reach = float(stdtrit(math.inf, 0.975)) * walk.miss(np.log(at), there.T)
    for point, log_loss, away in zip(predictions, center, reach, strict=True):
        point["parts"]["law"] = float(away)
        for name in ("interval", "run_interval"):
            point[name] = [
                end and math.exp(log_loss + side * math.hypot(math.log(end) - log_loss, away))
                for end, side in zip(point[name], (-1, 1), strict=True)
            ]


def _prediction(laws: PowerLaws, law: Mapping[str, Any] | None, c: float) -> dict[str, Any]:
    """The optimum of a budget, and the loss there if the minima have a law of their losses."""
    optimum = laws.predict(c)
    of_loss = next((p for p in law["predictions"] if p["flops"] == c), None) if law else None
    known = of_loss is not None and of_loss["loss"] is not None
    optimum["loss"] = of_loss["loss"] if known and of_loss else None
    ends = of_loss["interval"] if known and of_loss else [None, None]
    optimum["intervals"] = {**optimum["intervals"], "loss": ends}
    optimum["interval"] = ends
    optimum["run_interval"] = of_loss["run_interval"] if known and of_loss else [None, None]
    optimum["parts"] = of_loss["parts"] if known and of_loss else dict(NO_PARTS)
    return optimum


def extrapolate_minima(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The section "extrapolation": the optimal size of the largest budgets, by power laws through
    the minima of far smaller ones. Raises BadInput, with the reason, where there are too few."""
    plain = dataclasses.replace(options, where=None, drop_top_loss=0, predict_flops=[])
    rows, _ = filter_rows([*rows], [], options, ("flops", "params"), "loss")
    trial = nearest_trial(
        rows, ("flops", "params"), isoflop.MIN_SIZES, options.predict_flops, MIN_BUDGETS
    )
    least = min(row["flops"] for row in trial.parts.held_out)
    plain = dataclasses.replace(plain, holdout=f"flops>={least!r}")
    holdout = fit_minima("isoflop", trial.parts.usable, plain)["holdout"]
    if holdout is None:
        raise BadInput(
            f"the minimum of the largest budgets ({flops_text(least)} FLOPs) cannot be located"
        )
    return trial.section({**holdout, "rule": trial.rule})


def _check_held_out(
    laws: PowerLaws,
    noise: Mapping[str, Any],
    held_out: Sequence[table.Row],
    options: Options,
) -> dict[str, Any] | None:
    """The optimal sizes of held-out budgets, beside what was extrapolated."""
    budgets, _ = group_by_budget(held_out)
    minima, _ = isoflop.sample_minima(
        budgets, options.method, Noise(**noise), RESAMPLES, options.seed
    )
    rows = []
    for minimum in minima:
        at = minimum.flops_6nd if options.six_nd else minimum.budget.flops
        predicted = laws.predict(at)
        measured = math.exp(minimum.log_n)
        # The law is uncertain, the measured minimum too, and a budget has a scatter of its own.
        ends = predicted["intervals"]["params"]
        law = np.log([predicted["params"] if x is None else x for x in ends])
        own = 1.96 * math.hypot(minimum.sd, laws.scatter)
        reach = np.hypot(law - math.log(predicted["params"]), own) * [-1, 1]
        size = {
            "params": predicted["params"],
            "interval": ends,
            "run_interval": (predicted["params"] * np.exp(reach)).tolist(),
        }
        flops = {"flops": at}
        rows.append(held_out_row(minimum.budget.name, flops, size, "params", measured))
    return held_out_summary(options.holdout, rows) if rows else None


def _warnings(document: Mapping[str, Any]) -> list[str]:
    out = left_out_warning(document["dropped"])
    if holdout := document["holdout"]:
        missed = len(holdout["rows"]) - holdout["covered"]
        if missed:
            out.append(f"{missed} of {len(holdout['rows'])} held-out budgets lie outside")
    return out
