"""What laws do beyond rows that they were fitted to, tried within a table.

The nearest thing in a table to what is asked of it: its largest runs, predicted from runs that are
smaller by the factor by which the target lies beyond the table (by FURTHER where there is none), or
by one as near to that as leaves enough to fit. Runs in between are left out. The same, law by law
and over fixed factors, weighs the laws of an average and stretches their errors.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import BadInput
from research.io.humanize import amount_text
from research.scaling import uncertainty
from research.scaling.compute_optimal import PER_TOKEN, vary_together
from research.scaling.effects import Effects
from research.scaling.fit import Fit
from research.scaling.fit_document import held_out_section
from research.scaling.law import Law
from research.scaling.options import Options, Split
from research.scaling.power_laws import SIX_ND
from research.scaling.statistics import SAME_BUDGET, number_budgets, usual_range
from research.tables import table

LARGEST_SHARE = 0.1  # of the rows, at least, that are predicted from the others
FURTHER = 10.0  # times the largest budget: what is asked where nothing is
ENOUGH = 1 / 3  # of the rows, from which the largest are predicted at least
MIN_LEFT = 4  # rows beyond its parameters from which a law of params and tokens is extrapolated
MIN_BUDGETS, MIN_SIZES = 2, 3  # that it is fitted to, and as many numbers of tokens
LEAST_RATIO = 1.5  # of amounts, below which nothing is extrapolated
FACTORS = (3.0, 10.0)  # on compute, over which a law is tried for what its errors are
COUNTS = ("params", "tokens")
TRIED = 200  # draws of a law, for the intervals of a trial


@dataclass(frozen=True)
class Trial:
    """Rows to fit and far larger ones to predict; `column` is what they are larger in."""

    parts: Split
    column: str
    rule: str
    largest: float  # budget (geometric mean) of the rows to fit
    ratio: float  # of those to predict (geometric mean) to that
    convention: str | None = None  # by which both count FLOPs

    def section(self, holdout: Mapping[str, Any] | None) -> dict[str, Any]:
        """The section "extrapolation" of fit.json, of what was predicted and measured."""
        return {
            "column": self.column,
            "n_points": len(self.parts.fitted),
            "largest": self.largest,
            "ratio": self.ratio,
            "flops_convention": self.convention,
            **(holdout or {}),
        }


def find_trial(rows: Sequence[table.Row], law: Law, options: Options) -> Trial:
    """The trial of a law that is nearest to what the options ask. Raises BadInput, with the reason,
    where the table allows none."""
    if law.response in law.columns or "loss" in law.columns:
        raise BadInput(f"{law.name} predicts {law.response} from the loss: no run is the largest")
    asked = [*options.predict, *options.predict_flops]
    return nearest_trial(rows, law.columns, len(law.parameters), asked)


def nearest_trial(
    rows: Sequence[table.Row],
    columns: Sequence[str],
    parameters: int,
    asked: Sequence[float],
    budgets: int = MIN_BUDGETS,
) -> Trial:
    """The trial of what reads `columns`, has so many parameters and needs so many budgets that is
    nearest to the amounts that are asked. Raises BadInput as `find_trial` does."""
    low, high = usual_range(amounts(rows, columns))
    rows = [r for r, x in zip(rows, amounts(rows, columns), strict=True) if low <= x <= high]
    both = {"params", "tokens"} <= set(columns)
    column = "flops" if both else columns[0]
    amount, most = amounts(rows, columns), max(amounts(rows, columns))
    if both and all(isinstance(row.get("flops"), int | float) and row["flops"] > 0 for row in rows):
        amount = amounts(rows, ("flops",))  # runs of one budget are so by its own FLOPs
    held = largest_rows(amount)
    at = math.exp(float(np.mean(np.log(amount[held]))))
    wanted = max((x / most for x in asked if x > most), default=FURTHER)
    needs = parameters + (MIN_LEFT if both else 1)  # of distinct points
    least = max(needs, math.ceil(ENOUGH * len(rows)))  # of rows, of which some are seeds of a point
    numbers = number_budgets(amount)
    found: list[tuple[float, float, list[table.Row]]] = []
    for limit in [float(amount[numbers == i].max()) for i in np.unique(numbers[~held])]:
        some = [row for row, x in zip(rows, amount, strict=True) if x <= limit]
        distinct = {tuple(row[c] for c in columns) for row in some}
        enough = len(distinct) >= needs and len(some) >= least and LEAST_RATIO * limit <= at
        if enough and len(columns) > 1:  # each of them has to vary
            varied = [len({row[c] for row in some}) for c in COUNTS if c in columns]
            enough = min(varied) >= MIN_SIZES and not (both and vary_together(some))
            enough &= len(set(numbers[amount <= limit])) >= budgets
        if enough:
            found.append((abs(math.log(at / limit / wanted)), limit, some))
    if not found:
        more = f", of {budgets} budgets and {MIN_SIZES} sizes" if len(columns) > 1 else ""
        raise BadInput(
            f"a fit to the rows below the largest {column} ({amount_text(amount.max(), column)}) "
            f"needs at least {least}{more}, and there are fewer"
        )
    _, limit, some = min(found, key=lambda entry: entry[:2])
    far = [row for row, out in zip(rows, held, strict=True) if out]
    rule, parts = f"the largest from {column} <= {limit:.4g}", Split(some, far, [])
    if not both:
        return Trial(parts, column, rule, limit, at / limit)
    # As targets count, also where the runs of one budget are told by FLOPs of another count.
    logs, of_largest = np.log(amounts(rows, columns)), numbers == numbers[amount <= limit].max()
    largest, at = (math.exp(float(logs[of].mean())) for of in (of_largest, held))
    return Trial(parts, column, rule, largest, at / largest, SIX_ND)


def fit_trial(fit: Fit, trial: Trial) -> Fit:
    """The law of a fit, fitted to the rows of a trial from where it is. Raises BadInput for rows
    that are too few for it."""
    rows, needs = trial.parts.fitted, len(fit.law.parameters) + 1
    if len({tuple(row[c] for c in fit.law.columns) for row in rows}) < needs:
        raise BadInput(f"{len(rows)} rows; {fit.law.name} needs {needs}")
    return _refit(fit, trial.parts, trial.rule)


def extrapolate_fit(fit: Fit) -> dict[str, Any]:
    """The section "extrapolation": the largest runs, predicted by the law fitted to far smaller
    ones. Raises BadInput, with the reason, where the table allows no trial."""
    trial = find_trial(fit.parts.fitted, fit.law, fit.options)
    part = fit_trial(fit, trial)
    if part.enough:  # profiles of many runs about many rows would take longer than the fit
        part.draws = part.simulate(TRIED)
    return trial.section(held_out_section(part))


def _refit(fit: Fit, parts: Split, rule: str | None = None) -> Fit:
    options = dataclasses.replace(
        fit.options, objective=fit.problem.objective, bootstrap=None, init=fit.params, holdout=rule
    )
    return Fit(fit.law, parts, options, resample=False)


def _extrapolate(fit: Fit, held: np.ndarray) -> tuple[np.ndarray, np.ndarray, Fit] | None:
    """Errors [h] in log loss of the held rows, predicted by the law fitted to the others, the
    derivatives [P, h] of these predictions, and that fit; None where too few rows would be left.
    A run that the objective keeps out of the law, as one that crashed, is no measure of it."""
    rows, kept = fit.parts.fitted, ~uncertainty.outliers(fit.problem, fit.best)
    rest = [row for row, out in zip(rows, held, strict=True) if not out]
    far = [row for row, out in zip(rows, held & kept, strict=True) if out]
    distinct = len({tuple(row[c] for c in fit.law.columns) for row in rest})
    if distinct < len(fit.law.parameters) + MIN_LEFT or not far:
        return None
    part = _refit(fit, Split(rest, far, []))
    values = table.column_arrays(far, fit.law.columns)
    measured = np.log([row[fit.law.response] for row in far])
    log_loss, slopes, _ = fit.law.evaluate(part.best[None], fit.law.prepare(values))
    return log_loss[0] - measured, slopes[0], part


def score_largest(fit: Fit) -> float | None:
    """The log density of the mean error, in log loss, of the largest budgets, predicted from the
    others: by the error of the parameters, and the noise. None where too few rows would be left."""
    split = _extrapolate(fit, largest_rows(amounts(fit.parts.fitted, fit.law.columns)))
    if split is None:
        return None
    errors, slopes, part = split
    along = slopes.mean(1)
    variance = float(along @ part.covariance @ along)
    variance += effects_of(part).run_noise ** 2 / len(errors)
    return -0.5 * (float(errors.mean()) ** 2 / variance + math.log(variance))


def stretch(fit: Fit) -> float:
    """How many times the errors of extrapolations within the table exceed their standard deviation
    (root mean square, at least 1): what a wrong law, or noise that is not the same everywhere, has
    cost already."""
    amount, ratios = amounts(fit.parts.fitted, fit.law.columns), []
    for factor in FACTORS:
        split = _extrapolate(fit, amount > amount.max() / factor)
        if split is None:
            continue
        errors, slopes, part = split
        variance = np.einsum("pn,pq,qn->n", slopes, part.covariance, slopes)
        variance += effects_of(part).run_noise ** 2
        ratios.append(float(np.mean(errors**2 / variance)))
    return max(1.0, math.sqrt(float(np.mean(ratios)))) if ratios else 1.0


def effects_of(fit: Fit) -> Effects:
    """The effects in the rows of a fit. Raises BadInput where rows of one run err together."""
    if fit.effects is None:
        runs = len(set(fit.clusters))
        raise BadInput(
            f"{fit.problem.n} rows of {runs} runs: rows of one run err together, and an average is "
            f"over laws of final losses; --last_rows fits the last of each run, "
            f"--law={fit.law.name} all of them"
        )
    return fit.effects


def amounts(rows: Sequence[table.Row], columns: Sequence[str]) -> np.ndarray:
    """What rows are large in [n]: compute, for laws of params and tokens."""
    if {"params", "tokens"} <= set(columns):
        return np.array([PER_TOKEN * row["params"] * row["tokens"] for row in rows])
    return np.array([float(row[columns[0]]) for row in rows])


def largest_rows(amount: np.ndarray) -> np.ndarray:
    """Which rows [n] are the largest: LARGEST_SHARE of them, and those that are as large."""
    return amount >= np.quantile(amount, 1 - LARGEST_SHARE, method="lower") / (1 + SAME_BUDGET)
