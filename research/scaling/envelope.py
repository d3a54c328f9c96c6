"""The envelope of all runs (Hoffmann et al. 2022, approach 1): the lower convex hull of loss
against FLOPs in logarithms, and the power laws through the runs that lie on it. It depends strongly
on which runs and checkpoints are in the table. Beside it, the power laws through given optima.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import power_laws
from research.scaling.fit import RESAMPLES, cluster_names
from research.scaling.options import Options
from research.scaling.power_laws import PowerLaws
from research.scaling.statistics import SAME_BUDGET, number_budgets
from research.tables import table

NEEDED = ("flops", "params", "tokens", "loss")
NEAR, OTHER_RATIO = 2.0, 1.5  # factors: compute that is compared, tokens per parameter that differ


def lower_hull(log_c: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
    """The numbers of the points on the lower convex hull, from the cheapest to the least loss."""
    order = np.lexsort((log_loss, log_c))
    # The least loss for at most SAME_BUDGET more: runs of one budget are never equal to the last
    # FLOP, and the cheapest by a hair would be on any hull.
    least = np.minimum.accumulate(log_loss[order])
    within = np.searchsorted(log_c[order], log_c[order] + np.log1p(SAME_BUDGET), side="right") - 1
    order = order[log_loss[order] <= least[within]]
    out: list[int] = []
    for i in order:
        while len(out) > 1 and _turns_up(log_c, log_loss, out[-2], out[-1], i):
            out.pop()
        if not out or log_c[i] > log_c[out[-1]]:
            out.append(int(i))
    lowest = int(np.argmin(log_loss[out]))
    return np.array(out[: lowest + 1], int)


def _lines(log_c: np.ndarray, *logs: np.ndarray) -> np.ndarray:
    """Slope and level at log C = 0 of the line of least squares through each of `logs`."""
    mean, y = log_c.mean(), np.stack(logs)
    slopes = y @ (log_c - mean) / ((log_c - mean) @ (log_c - mean))
    return np.stack([slopes, y.mean(1) - slopes * mean], 1).ravel()


def _turns_up(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a])


def _had_a_choice(values: dict[str, np.ndarray], on: np.ndarray) -> int:
    """Of how many points `on` the envelope there are runs of about the same compute with both more
    and fewer tokens per parameter. Any other is the best of what was run by the choice of runs."""
    ratio = values["tokens"] - values["params"]
    count = 0
    for i in on:
        near = np.abs(values["flops"] - values["flops"][i]) <= np.log(NEAR)
        off = ratio[near] - ratio[i]
        count += bool(off.max() > np.log(OTHER_RATIO) and off.min() < -np.log(OTHER_RATIO))
    return count


def _no_choice(chosen: int, on: int) -> list[str]:
    """A warning where most points on the envelope had nothing to be better than. Raises BadInput
    where all had."""
    words = (
        "on the envelope, the table has no runs of about the same compute with both more and fewer "
        "tokens per parameter: the power laws through them are how the runs were chosen, not what "
        "is optimal"
    )
    if not chosen:
        raise BadInput(f"of all {on} runs {words}")
    return [f"of {on - chosen} of the {on} runs {words}"] if 2 * chosen < on else []


def fit_envelope(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The power laws through the envelope. Raises BadInput where few runs lie on it, and where none
    of them is compared with others of its compute."""
    values = {k: np.log(v) for k, v in table.column_arrays(rows, NEEDED).items()}

    def through_hull(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        on = chosen[lower_hull(values["flops"][chosen], values["loss"][chosen])]
        # Where the best size is the table's least or largest, a better one may lie beyond it.
        sizes = values["params"][on]
        inner = on[(sizes > values["params"].min()) & (sizes < values["params"].max())]
        on = inner if len(inner) >= 3 else on
        if len(on) < 2:
            return np.full(4, np.nan), on
        return _lines(values["flops"][on], values["params"][on], values["tokens"][on]), on

    every = np.arange(len(rows))
    optimal, on = through_hull(every) if len(rows) else (np.full(4, np.nan), every)
    if len(on) < 3:
        raise BadInput(
            f"{len(on)} of {len(rows)} runs lie on the envelope of loss against flops; the power "
            "laws through it need at least 3"
        )
    told = _no_choice(_had_a_choice(values, on), len(on))
    clusters = cluster_names(rows, options.cluster)
    names, member = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(member == i) for i in range(len(names))]
    rng = np.random.default_rng(options.seed)
    resamples = RESAMPLES if options.bootstrap is None else options.bootstrap
    draws = []
    for _ in range(resamples):
        chosen = np.unique(rng.integers(len(names), size=len(names)))
        draws.append(through_hull(np.concatenate([members[i] for i in chosen]))[0])
    drawn = np.array(draws).reshape(-1, 4)
    every_on = lower_hull(values["flops"], values["loss"])
    edge = sorted(set(every_on.tolist()) - set(on.tolist()))
    laws = PowerLaws(optimal, drawn[np.isfinite(drawn).all(1)], 0.0)
    log_c, log_n, log_d = (values[name][on] for name in ("flops", "params", "tokens"))
    about = power_laws.least_squares(log_c, log_n, log_d, resamples, options.seed)
    laws = power_laws.wider(laws, about)
    return {
        "laws": laws,
        "dropped": [
            {
                "run": rows[i]["run"],
                "reason": "on the envelope, but of the smallest or largest size",
            }
            for i in edge
        ],
        "method": f"{resamples} resamples by {options.cluster}, or Student's t about the line "
        "where that is wider",
        "noise": {"value": None, "source": "not read", "freedom": None},
        "scatter": laws.scatter,
        "minima": [
            {k: float(rows[i][k]) for k in NEEDED} | {"run": rows[i]["run"]} for i in on.tolist()
        ],
        "warnings": [
            f"{len(on)} of {len(rows)} points are on the envelope: the exponents depend strongly "
            "on which runs and checkpoints are in the table",
            *told,
        ],
    }


def fit_given_optima(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The power laws through a table whose rows are optima already, one of each budget."""
    values = {k: np.log(v) for k, v in table.column_arrays(rows, NEEDED[:3]).items()}
    budgets = len(np.unique(values["flops"])) if len(rows) else 0
    if budgets < 3:
        raise BadInput(f"{budgets} budgets in flops; the power laws through optima need at least 3")
    resamples = RESAMPLES if options.bootstrap is None else options.bootstrap
    log_c, log_n, log_d = values.values()
    laws = power_laws.least_squares(log_c, log_n, log_d, resamples, options.seed)
    return {
        "laws": laws,
        "dropped": [],
        "method": f"least squares through {len(rows)} given optima, Student's t",
        "noise": {"value": None, "source": "not read", "freedom": None},
        "scatter": laws.scatter,
        "minima": [{k: float(row[k]) for k in NEEDED[:3]} | {"run": row["run"]} for row in rows],
        "warnings": _several_warning(rows),
    }


def _several_warning(rows: Sequence[table.Row]) -> list[str]:
    """A warning where budgets have several optima, which have to be runs of a sweep."""
    several = len(rows) - len(np.unique(number_budgets([row["flops"] for row in rows])))
    if 2 * several < len(rows):
        return []
    return [
        f"{len(rows)} rows of {len(rows) - several} budgets were given as optima, of which a "
        "budget has one: are they the runs of a sweep? --law=isoflop locates the optima of those"
    ]
