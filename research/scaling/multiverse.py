"""One question, every defensible way of asking it: the spread of the answer over conventions.

An analyst chooses how to count parameters and FLOPs, which runs are outliers, how wide Huber's
delta is, and whether the smallest models belong. Each choice is made in every combination; the
spread of the exponent, and of the prediction at one target, is what no interval of a single fit
contains.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.io.humanize import amount_text, flops_text
from research.scaling import compute_optimal, isoflop, minima_document
from research.scaling.compute_optimal import AHEAD
from research.scaling.fit import Fit
from research.scaling.law import Law
from research.scaling.laws import METHODS, named_law
from research.scaling.options import Options, split_rows
from research.tables import numbers, states, table

PARAMS = ("params", "params_non_embedding", "params_matmul")
FLOPS = ("flops", "flops_6nd", "flops_6nd_non_embedding", "flops_exact_causal")
OBJECTIVES = (("huber_log", 1e-4), ("huber_log", 1e-3), ("huber_log", 1e-2), ("mse_log", 1e-3))
SMALL = 0.25  # quantile of sizes below which models are left out


def refit_universes(law: str, rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """{"target", "universes": [one entry each], "spread", "by_choice"} (see the module)."""
    universes, failed = [], []
    base = dataclasses.replace(options, bootstrap=0, predict=(), predict_flops=())
    finished = tuple(options.finished)
    rows = [r for r in rows if not states.reason_to_leave_out(r.get("status"), finished)]
    for choice in _choices(law, rows, options):
        changed, universe = _universe(rows, base, choice)
        try:
            exponent, prediction, n = _refit(law, changed, universe, options)
        except BadInput as error:
            failed.append({**choice, "reason": str(error).splitlines()[0]})
            continue
        universes.append({**choice, "n_points": n, "exponent": exponent, "prediction": prediction})
    if not universes:
        raise BadInput(
            "--multiverse: no combination of choices could be fitted", failed[0]["reason"]
        )
    return {
        "target": _target_text(law, options),
        "universes": universes,
        "failed": failed,
        "spread": {k: _spread(universes, k) for k in ("exponent", "prediction")},
        "by_choice": {
            axis: {
                str(value): _median([u for u in universes if u[axis] == value])
                for value in dict.fromkeys(u[axis] for u in universes)
            }
            for axis in _axes(universes)
        },
    }


def _choices(law: str, rows: Sequence[table.Row], options: Options) -> Iterator[dict[str, Any]]:
    def there(names: Sequence[str]) -> list[str]:
        return [n for n in names if all(numbers.parse_number(row.get(n)) for row in rows)]

    counts = there(PARAMS) if options.against in PARAMS or law not in ("power", "broken") else []
    budgets = there(FLOPS) if law in METHODS or options.against in FLOPS else []
    outliers = sorted({0, options.drop_top_loss, max(1, round(0.02 * len(rows)))})
    ways: Sequence[Any] = OBJECTIVES
    if law in METHODS:
        ways = [(m, None) for m in isoflop.LOCATE] if law == "isoflop" else [(None, None)]
    axes = (counts or [None], budgets or [None], outliers, ways, ("all", "without the smallest"))
    for count, budget, outlier, (way, delta), sizes in itertools.product(*axes):
        chosen = {"params": count, "flops": budget, "drop_top_loss": outlier}
        way_of = {"method": way} if law in METHODS else {"objective": way}
        yield {**chosen, **way_of, "huber_delta": delta if way == "huber_log" else None,
               "sizes": sizes}  # fmt: skip


def _universe(
    rows: Sequence[table.Row], base: Options, choice: Mapping[str, Any]
) -> tuple[list[table.Row], Options]:
    out = [dict(row) for row in rows]
    for name in ("params", "flops"):
        if (column := choice[name]) not in (None, name):
            for row in out:
                row[name] = row[column]
    if choice["sizes"] != "all":
        sizes = {n for row in out if (n := numbers.parse_number(row.get("params")))}
        cut = float(np.quantile(sorted(sizes), SMALL, method="lower")) if sizes else 0.0
        out = [row for row in out if (numbers.parse_number(row.get("params")) or 0) > cut]
    against = base.against
    if against in PARAMS and choice["params"]:
        against = "params"
    elif against in FLOPS and choice["flops"]:
        against = "flops"
    overrides = {k: choice[k] for k in ("objective", "method") if choice.get(k)}
    return out, dataclasses.replace(
        base,
        against=against,
        drop_top_loss=choice["drop_top_loss"],
        huber_delta=choice["huber_delta"] or base.huber_delta,
        **overrides,
    )


def _refit(
    law: str, rows: Sequence[table.Row], universe: Options, options: Options
) -> tuple[float, float | None, int]:
    """The exponent, the prediction at the target (a loss; for minima a size), and the rows used."""
    targets = list(options.predict_flops) or list(options.predict)
    if law in METHODS:
        most = max(numbers.parse_number(row.get("flops")) or 0.0 for row in rows)
        document = minima_document.fit_minima(
            law, rows, dataclasses.replace(universe, bootstrap=100, predict_flops=[most * AHEAD])
        )
        k, a = document["params"]["params_coefficient"], document["params"]["params_exponent"]
        c = targets[0] if targets else most * AHEAD
        return a, k * c**a, document["n_points"]
    chosen: Law = named_law(law, universe.against)
    fit = Fit(chosen, split_rows(chosen, rows, universe), universe, best_only=True)
    n = len(fit.parts.fitted)
    if compute_optimal.has_optimum(chosen):
        most = compute_optimal.largest_budget(fit.parts.fitted)
        c = targets[0] if targets else most * AHEAD
        over = compute_optimal.budget_range(fit.parts.fitted)
        a = compute_optimal.power_laws(chosen, fit.best[None], over)[0, 0]
        size = compute_optimal.optimal_params(chosen, fit.best[None], [c])[0]
        loss = compute_optimal.predict_loss(
            chosen, fit.best[None], size, c / compute_optimal.PER_TOKEN / size
        )[0, 0]
        return float(a), float(loss) if math.isfinite(loss) else None, n
    column = chosen.columns[0]
    x = targets[0] if targets else AHEAD * max(row[column] for row in fit.parts.fitted)
    point = chosen.prepare({column: np.array([x])})
    value = float(np.exp(chosen.evaluate(fit.best[None], point)[0][0, 0]))
    exponent = next((n for n in ("alpha", "c0", "k") if n in fit.params), chosen.parameters[0])
    return fit.params[exponent], value, n


def _target_text(law: str, options: Options) -> str:
    what, where = "size" if law in METHODS else "loss", f"{AHEAD:g} times the largest of the table"
    if options.predict_flops:
        where = flops_text(options.predict_flops[0])
    elif options.predict:
        where = amount_text(options.predict[0], options.against)
    return f"the {what} predicted at {where}"


def _spread(universes: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None]:
    values = [u[key] for u in universes if u[key] is not None and math.isfinite(u[key])]
    if not values:
        return {"least": None, "median": None, "most": None}
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _median(universes: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {k: _spread(universes, k)["median"] for k in ("exponent", "prediction")}


def _axes(universes: Sequence[Mapping[str, Any]]) -> list[str]:
    fixed = ("n_points", "exponent", "prediction")
    return [k for k in universes[0] if k not in fixed and len({u[k] for u in universes}) > 1]
