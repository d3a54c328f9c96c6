"""From compute to the score of a task: by the loss, and directly.

Two steps (as Bhagia et al. 2024): FLOPs to loss by a power law, and loss to score by a logistic
curve that begins at the chance of the task. Directly: FLOPs to score by a logistic curve of their
logarithm. Both are fitted without the largest runs, whose scores they predict, and then to all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.errors import BadInput
from research.scaling.extrapolation import largest_rows
from research.scaling.fit import Fit, finite_ends
from research.scaling.law import Law
from research.scaling.laws import logistic, power, saturating
from research.scaling.options import Options, Split
from research.scaling.trends import is_trend, rank_correlation
from research.tables import table, where
from research.tables.numbers import parse_number

NEEDED = ("flops", "loss", "accuracy")
CHANCE, RECIPE, ERROR = "score_chance", "score_recipe", "score_error"  # columns beside score/TASK
SURE = 2.0  # standard errors from which on a score is above chance
LEAST_FLOOR = 1e-6  # in place of a chance of 0, whose logarithm there is not
LEAST_RISE = 1e-3
AHEAD = 10.0  # times the largest budget: what is predicted where nothing is asked
ROUTES = ("measured_loss", "two_steps", "direct")


class Laws(NamedTuple):
    """The laws of both ways, fitted to the same rows."""

    loss_of_flops: Fit
    score_of_loss: Fit
    score_of_flops: Fit


def fit_downstream(rows: Sequence[table.Row], options: Options, column: str) -> dict[str, Any]:
    """The section "downstream" of fit.json: the laws of a column of scores, the largest runs as
    each way predicts them, and both ways at the budgets that are asked for.

    Raises BadInput where no row has such a column, where scores were not measured alike, are no
    shares between 0 and 1, or get worse as the loss falls, and for rows that are too few for the
    laws.
    """
    table.require_column(rows, "downstream", column)
    chance = _alike(rows, column)
    named = table.with_rows(rows, [{**row, "accuracy": row.get(column)} for row in rows])
    usable, dropped = table.usable_rows(named, NEEDED, options.where, options.finished)
    known = [row for row in usable if table.row_weight(row)]
    _check_scores(known, column)
    laws = _laws(known, chance, options)
    out: dict[str, Any] = {
        "score": column,
        "chance": chance,
        "n_points": len(known),
        "above_chance": _above_chance(known, column, chance),
        "dropped": dropped,
        "laws": {name: _described(fit) for name, fit in laws._asdict().items()},
        "holdout": _holdout(known, chance, options),
    }
    budgets = list(options.predict_flops) or [AHEAD * max(row["flops"] for row in known)]
    points = {"flops": np.array(budgets, float)}
    ways = [_predicted(way, laws, points, options.seed) for way in ROUTES[1:]]
    out["predictions"] = [
        {"flops": float(at), **{way: found[i] for way, found in zip(ROUTES[1:], ways)}}
        for i, at in enumerate(budgets)
    ]
    return out


def _alike(rows: Sequence[table.Row], column: str) -> float | None:
    """The chance of a column of scores, None where it is unknown. Raises BadInput where it is none,
    and where the scores were not measured in the same way."""
    task = column.partition("/")[2]
    for name in (RECIPE, CHANCE):
        beside = {row.get(f"{name}/{task}") for row in rows if row.get(column) not in (None, "")}
        if len(beside) > 1:
            told = ", ".join(sorted(map(str, beside)))
            raise BadInput(
                f"--downstream={column}: the scores were not measured alike ({name}/{task}: "
                f"{told}); evaluate all runs with the same options, or choose some with --where"
            )
    if (cell := next(iter(beside), None)) in (None, ""):
        return None
    chance = parse_number(cell)
    if chance is None or not 0 <= chance < 1:
        raise BadInput(f"{CHANCE}/{task}: {str(cell)[:60]!r}; expected a share from 0 to below 1")
    return chance


def _check_scores(rows: Sequence[table.Row], column: str) -> None:
    """Raise BadInput for scores that neither way can describe: both rise, from chance to at most
    1, as compute grows and the loss falls."""
    scores, losses = ([row[name] for row in rows] for name in ("accuracy", "loss"))
    if scores and not 0 <= min(scores) <= max(scores) <= 1:
        raise BadInput(
            f"--downstream={column}: scores from {min(scores):.4g} to {max(scores):.4g}; expected "
            f"shares between 0 and 1: of percent, --columns='{column}={column}/100'"
        )
    if (along := rank_correlation(losses, scores)) > 0 and is_trend(along, len(rows)):
        raise BadInput(
            f"--downstream={column}: the scores get worse as the loss falls (rank correlation with "
            f"the loss {along:+.2f}), and these laws are of scores that get better; of an error "
            "rate, add a column of 1 minus it to the table"
        )


def _above_chance(rows: Sequence[table.Row], column: str, chance: float | None) -> int | None:
    """How many scores are above chance by more than SURE of their standard errors; None where
    chance or errors are not known."""
    found = [row.get(f"{ERROR}/{column.partition('/')[2]}") for row in rows]
    errors = [error for error in found if isinstance(error, int | float)]
    if chance is None or len(errors) < len(rows):
        return None
    return sum(row["accuracy"] - chance > SURE * error for row, error in zip(rows, errors))


def _laws(rows: Sequence[table.Row], chance: float | None, options: Options) -> Laws:
    """The laws fitted to rows. Raises BadInput where there are too few."""
    kept = {"seed": options.seed, "cluster": options.cluster, "bootstrap": options.bootstrap}
    floor = {} if chance is None else {"floor": max(chance, LEAST_FLOOR)}
    of_score = Options(**kept, objective=options.objective or "mse", fix=floor)
    most = 1.0 - floor.get("floor", 0.0)

    def fit(law: Law, how: Options) -> Fit:
        if law.response == "accuracy":  # no score is above 1
            law = dataclasses.replace(law, bounds={**law.bounds, "rise": (LEAST_RISE, most)})
        distinct = len({tuple(row[name] for name in law.columns) for row in rows})
        needs = len(law.parameters) - len(how.fix) + 1
        if distinct < needs:
            raise BadInput(
                f"{distinct} distinct values of {law.columns[0]}; {law.formula} needs {needs}"
            )
        return Fit(law, Split(list(rows), [], []), how)

    return Laws(
        fit(power("flops"), Options(**kept)),
        fit(saturating(), of_score),
        fit(logistic("flops"), of_score),
    )


def _described(fit: Fit) -> dict[str, Any]:
    return {
        "formula": fit.law.formula,
        "params": fit.params,
        "intervals": fit.reported_intervals(),
        "noise": fit.run_noise,
        "objective": fit.problem.objective,
    }


def _holdout(rows: Sequence[table.Row], chance: float | None, options: Options) -> dict[str, Any]:
    """The largest runs (or those that the options hold out), as the laws of the others predict
    them; or why there is no such thing."""
    flops = np.array([row["flops"] for row in rows])
    rule = options.holdout or "largest"
    held = largest_rows(flops) if rule == "largest" else where.match_where(rows, rule, "holdout")
    rest, far = ([row for row, out in zip(rows, held) if bool(out) == which] for which in (0, 1))
    if not far:
        return {"rule": rule, "rows": [], "why": "it holds out no run"}
    try:
        laws = _laws(rest, chance, options)
    except BadInput as error:
        return {"rule": rule, "rows": [], "why": f"without the largest runs: {error}"}
    points = table.column_arrays(far, ("flops", "loss"))
    found = {way: _predicted(way, laws, points, options.seed) for way in ROUTES}
    out = [
        {
            "run": row["run"],
            "flops": row["flops"],
            "loss": row["loss"],
            "measured": row["accuracy"],
            **{way: predicted[i] for way, predicted in found.items()},
        }
        for i, row in enumerate(far)
    ]
    return {
        "rule": rule,
        "n_points": len(rest),
        "largest": float(max(row["flops"] for row in rest)),
        "rows": out,
        "errors": {way: _errors(out, way) for way in ROUTES},
    }


def _errors(rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """How far off predictions of one way are, in score, and how many intervals hold what was
    measured."""
    off = [row[way]["score"] - row["measured"] for row in rows]
    return {
        "mean_absolute_error": float(np.mean(np.abs(off))),
        "bias": float(np.mean(off)),
        "covered": sum(_inside(row["measured"], row[way]["run_interval"]) for row in rows),
    }


def _inside(value: float, ends: Sequence[float | None]) -> bool:
    low, high = ends
    return (low is None or low <= value) and (high is None or value <= high)


def _predicted(
    way: str, laws: Laws, points: Mapping[str, np.ndarray], seed: int
) -> list[dict[str, Any]]:
    """The score at each point by one way, with the 95 % intervals of the law and of a run."""
    if way == "two_steps":
        score, law, run = _two_steps(laws, points["flops"], seed)
    elif way == "direct":
        score, law, run = laws.score_of_flops.at("flops", list(points["flops"]))
    else:
        score, law, run = laws.score_of_loss.at("loss", list(points["loss"]))
    ends = zip(np.clip(law, 0, 1), np.clip(run, 0, 1), strict=True)  # of a score
    return [
        {"score": float(x), "interval": finite_ends(a), "run_interval": finite_ends(b)}
        for x, (a, b) in zip(score, ends, strict=True)
    ]


def _two_steps(laws: Laws, flops: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """The score [m] of the loss that FLOPs come to, its interval [m, 2] over draws of both laws,
    and that of a run [m, 2], with the noise of both steps."""
    first, second = laws.loss_of_flops, laws.score_of_loss

    def score(theta_KxP: np.ndarray, loss_Kxm: np.ndarray) -> np.ndarray:
        return np.exp(second.law.evaluate(theta_KxP, loss_Kxm[:, None])[0])

    at = first.law.prepare({"flops": flops})
    center = score(second.best[None], np.exp(first.law.evaluate(first.best[None], at)[0]))[0]
    a, b = first.samples, second.samples
    k = min(len(a), len(b))
    if not k:
        none = np.full((len(flops), 2), np.nan)
        return center, none, none
    log_loss = first.law.evaluate(a[:k], at)[0]
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, k, len(flops)))
    drawn = score(b[:k], np.exp(log_loss))
    run = score(b[:k], np.exp(log_loss + first.run_noise * noise[0]))
    step = second.run_noise * noise[1]
    run = run + step if second.problem.objective == "mse" else run * np.exp(step)
    return center, *(np.quantile(x, [0.025, 0.975], axis=0).T for x in (drawn, run))
