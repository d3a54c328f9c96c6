"""The envelope of all runs (Hoffmann et al. 2022, approach 1): the lower convex hull of loss
against FLOPs in logarithms, and the power laws through the runs that lie on it. It depends strongly
on which runs and checkpoints are in the table. Beside it, the power laws through given optima.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from research.errors import BadInput
from research.scaling import table
from research.scaling.fit import RESAMPLES, clusters_of
from research.scaling.options import Options

NEEDED = ("flops", "params", "tokens", "loss")


def hull(log_c: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
    """The numbers of the points on the lower convex hull, from the cheapest to the least loss."""
    order = np.lexsort((log_loss, log_c))
    out: list[int] = []
    for i in order:
        while len(out) > 1 and _turns_up(log_c, log_loss, out[-2], out[-1], i):
            out.pop()
        if not out or log_c[i] > log_c[out[-1]]:
            out.append(int(i))
    lowest = int(np.argmin(log_loss[out]))
    return np.array(out[: lowest + 1], int)


def _turns_up(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a])


def trace(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    values = {k: np.log(v) for k, v in table.columns(rows, NEEDED).items()}

    def power_laws(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        on = chosen[hull(values["flops"][chosen], values["loss"][chosen])]
        # Where the best size is the table's least or largest, a better one may lie beyond it.
        sizes = values["params"][on]
        inner = on[(sizes > values["params"].min()) & (sizes < values["params"].max())]
        on = inner if len(inner) >= 3 else on
        if len(on) < 2:
            return np.full(4, np.nan), on
        lines = [np.polyfit(values["flops"][on], values[k][on], 1) for k in ("params", "tokens")]
        return np.array([lines[0][0], np.exp(lines[0][1]), lines[1][0], np.exp(lines[1][1])]), on

    every = np.arange(len(rows))
    optimal, on = power_laws(every) if len(rows) else (np.full(4, np.nan), every)
    if len(on) < 3:
        raise BadInput(
            f"{len(on)} of {len(rows)} runs lie on the envelope of loss against flops; the power "
            "laws through it need at least 3"
        )
    clusters = clusters_of(rows, options.cluster)
    names, member = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(member == i) for i in range(len(names))]
    rng = np.random.default_rng(options.seed)
    wanted = RESAMPLES if options.bootstrap is None else options.bootstrap
    draws = []
    for _ in range(wanted):
        chosen = np.unique(rng.integers(len(names), size=len(names)))
        draws.append(power_laws(np.concatenate([members[i] for i in chosen]))[0])
    drawn = np.array(draws).reshape(-1, 4)
    every_on = hull(values["flops"], values["loss"])
    edge = sorted(set(every_on.tolist()) - set(on.tolist()))
    return {
        "optimal": optimal.tolist(),
        "draws": drawn[np.isfinite(drawn).all(1)],
        "dropped": [
            {"run": rows[i]["run"], "reason": "on the envelope, but of the least or largest size"}
            for i in edge
        ],
        "method": f"{wanted} resamples by {options.cluster}",
        "minima": [
            {k: float(rows[i][k]) for k in NEEDED} | {"run": rows[i]["run"]} for i in on.tolist()
        ],
        "warnings": [
            f"{len(on)} of {len(rows)} points are on the envelope: the exponents depend strongly "
            "on which runs and checkpoints are in the table"
        ],
    }


def given(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The power laws through a table whose rows are optima already, one of each budget, by plain
    least squares of logarithms; the draws are Student's t about them."""
    values = {k: np.log(v) for k, v in table.columns(rows, NEEDED[:3]).items()}
    budgets = len(np.unique(values["flops"])) if len(rows) else 0
    if budgets < 3:
        raise BadInput(f"{budgets} budgets in flops; the power laws through optima need at least 3")
    wanted = RESAMPLES if options.bootstrap is None else options.bootstrap
    rng, freedom = np.random.default_rng(options.seed), len(rows) - 2
    # Uniform draws through the quantile function, so that heavy tails need no second generator.
    t_2xK = stdtrit(freedom, rng.uniform(size=(2, wanted)))
    x = np.stack([values["flops"], np.ones(len(rows))], axis=1)
    root = np.linalg.cholesky(np.linalg.inv(x.T @ x))
    lines, draws = [], []
    for name in ("params", "tokens"):
        best, *_ = np.linalg.lstsq(x, values[name])
        spread = np.sqrt(np.sum((values[name] - x @ best) ** 2) / freedom)
        drawn = best[:, None] + spread * root @ t_2xK
        lines += [best[0], np.exp(best[1])]
        draws += [drawn[0], np.exp(drawn[1])]
    return {
        "optimal": [float(v) for v in lines],
        "draws": np.stack(draws, axis=1),
        "dropped": [],
        "method": f"least squares through {len(rows)} given optima, Student's t",
        "minima": [{k: float(row[k]) for k in NEEDED[:3]} | {"run": row["run"]} for row in rows],
        "warnings": [],
    }
