"""Learning rate and batch as laws: one fit to a sweep over rates, batches, sizes and lengths,

    L = L(N, D) + k (log lr - log lr*(N, D, B))^2 + h (log B - log B*(N, D))^2,

with log lr* and log B* linear in the logarithms of what they depend on: N parameters, D tokens of
the run, B tokens of a batch. A run counts by where it lies on the parabola of its cell, so a best
rate at the edge of those that were tried is no minimum here, only a slope, and no winner of a noisy
sweep is taken for one. What does not vary in the table is left out of the law.

The outcome is a recipe, which `optim.lr_rule = fitted` of a config reads. Published rules are
scored beside it on the largest cells of the table, from constants fitted to the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling.fit import Fit
from research.scaling.law import Columns, Law, Params
from research.scaling.laws import EXPONENTS, RECIPE, chinchilla, power
from research.scaling.options import Options, split_rows
from research.tables.table import Row, usable_rows, with_rows

FORMAT = "isoflop-recipe-1"
PARABOLA = 0.1  # of the best loss of a cell: further up, a parabola in the logarithm does not hold
DEPENDS = {"params": "N", "tokens": "D", "batch_tokens": "B"}
FAR = 1e4  # times the center of a table, beyond which no optimum is looked for
SLOPES = {"lr": (-0.3, 0.0), "batch_tokens": (0.3,)}  # of an optimum, from which fits begin
DRAWS = 200  # simulated tables for the intervals of the optima
LEAST = 3  # values of a column from which a law can have a parabola in it
# Exponents of lr in (params, tokens, batch_tokens), and the constant where one is published.
RULES: dict[str, tuple[tuple[float, float, float], float | None]] = {
    "constant": ((0.0, 0.0, 0.0), None),
    "square root of the batch (Power Lines, 2505.13738)": ((0.0, 0.0, 0.5), None),
    "tokens^-0.32 (token horizon, 2409.19913)": ((0.0, -0.32, 0.0), None),
    "sqrt(batch / tokens) (Complete(d)P, 2512.22382)": ((0.0, -0.5, 0.5), None),
    "1.79 params^-0.713 tokens^0.307 (Step Law, 2503.04715)": ((-0.713, 0.307, 0.0), 1.79),
    "0.3118 flops^-0.125 (DeepSeek, 2401.02954)": ((-0.125, -0.125, 0.0), 0.3118 * 6**-0.125),
    "params^(-1/3) (OLMo ladder)": ((-1 / 3, 0.0, 0.0), None),
}


@dataclass(frozen=True)
class RecipeLaw(Law):
    """A law whose optima are parameters at the `center` of the table, the geometric mean of each
    column. `bases` are the terms (coefficient, exponent, column) of L(N, D) beside E; `parabolas`
    the curvature, the optimum, its slopes by column, and the column itself."""

    center: Mapping[str, float] = field(default_factory=dict)
    bases: tuple[tuple[str, str, str], ...] = ()
    parabolas: tuple[tuple[str, str, Mapping[str, str], str], ...] = ()

    def evaluate(self, theta_KxP: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        """As the complex step of `predict`, which takes an evaluation for each parameter."""
        column = {name: np.log(x[..., i, :]) for i, name in enumerate(self.columns)}
        p = {name: theta_KxP[:, i, None] for i, name in enumerate(self.parameters)}
        with np.errstate(all="ignore"):  # far from the data a law may have no finite value
            by: dict[str, np.ndarray] = {"E": np.exp(p["E"])}
            for coefficient, exponent, name in self.bases:
                by[coefficient] = np.exp(p[coefficient] - p[exponent] * column[name])
            total: Any = sum(by.values())
            by |= {exponent: -by[a] * column[name] for a, exponent, name in self.bases}
            for curvature, star, slopes, name in self.parabolas:
                logs = {s: column[of] - math.log(self.center[of]) for s, of in slopes.items()}
                off = column[name] - p[star] - sum(p[s] * log_x for s, log_x in logs.items())
                k = np.exp(p[curvature])
                by |= {curvature: k * off**2, star: -2 * k * off}
                by |= {slope: -2 * k * off * log_x for slope, log_x in logs.items()}
                total = total + by[curvature]
            shape = np.broadcast_shapes(total.shape, (len(theta_KxP), x.shape[-1]))
            by_parameter = [np.broadcast_to(by[name] / total, shape) for name in self.parameters]
            return np.log(np.broadcast_to(total, shape)), np.stack(by_parameter, axis=1), None


def with_batch_tokens(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows with the column batch_tokens, of batch and context where a table has these."""
    out = []
    for row in rows:
        if row.get("batch_tokens") in (None, "") and row.get("batch") not in (None, ""):
            try:
                each = float(row.get("context") or 1.0)
                row = {**row, "batch_tokens": float(row["batch"]) * each}
            except (TypeError, ValueError):
                pass  # a text, which the check of the columns reports
        out.append(row)
    return with_rows(rows, out)


def recipe_law(rows: Sequence[Row]) -> RecipeLaw:
    """The law of the columns that vary in rows with numbers. Raises BadInput where the learning
    rate does not."""
    values = {
        name: np.array([float(row[name]) for row in rows if row.get(name) not in (None, "")])
        for name in ("lr", *DEPENDS)
    }
    vary = {name: len(np.unique(np.round(np.log(v), 6))) for name, v in values.items() if len(v)}
    if vary.get("lr", 0) < LEAST:
        raise BadInput(
            f"--law={RECIPE}: {vary.get('lr', 0)} values of lr; expected a sweep over at least "
            f"{LEAST} learning rates"
        )
    center = {name: math.exp(float(np.mean(np.log(v)))) for name, v in values.items() if len(v)}
    moving = [name for name in DEPENDS if vary.get(name, 0) > 1]
    batches = vary.get("batch_tokens", 0) >= LEAST
    return _build_law(moving, batches, center)


def _build_law(moving: Sequence[str], batches: bool, center: Mapping[str, float]) -> RecipeLaw:
    """The law whose optimum moves with the columns `moving`, with a parabola in the batch too if
    `batches`; parameters of the optima hold at the `center` of the table."""
    sizes = [name for name in moving if name != "batch_tokens"]
    base = {0: None, 1: power(sizes[0]) if len(sizes) == 1 else None, 2: chinchilla()}[len(sizes)]
    parabolas = [("k", "lr_star", {f"lr_{DEPENDS[name]}": name for name in moving}, "lr")]
    if batches:
        slopes = {f"batch_{DEPENDS[name]}": name for name in sizes}
        parabolas.append(("h", "batch_star", slopes, "batch_tokens"))

    def predict(p: Params, x: Columns) -> Any:
        loss: Any = base.predict(p, x) if base and base.predict else p["E"]
        for curvature, star, slopes, column in parabolas:
            off = np.log(x[column]) - np.log(p[star])
            for slope, of in slopes.items():
                off = off - p[slope] * np.log(x[of] / center[of])
            loss = loss + p[curvature] * off * off
        return loss

    def around(column: str) -> Any:
        return lambda x, y: np.quantile(x[column], [0.25, 0.5, 0.75], method="nearest")

    parameters, positive = (base.parameters, base.positive) if base else (("E",), ("E",))
    starts: dict[str, Any] = {}
    bounds: dict[str, tuple[float, float]] = {}
    formula, optima = base.formula if base else "L = E", []
    for curvature, star, slopes, column in parabolas:
        parameters, positive = (*parameters, curvature, star, *slopes), (*positive, curvature, star)
        starts |= {star: around(column), **dict.fromkeys(slopes, SLOPES[column])}
        bounds |= dict.fromkeys(slopes, (-3.0, 3.0))
        bounds[star] = center[column] / FAR, center[column] * FAR
        letter = {"batch_tokens": "B"}.get(column, column)
        formula += f" + {curvature} log({letter} / {letter}*)^2"
        powers = [f"{DEPENDS[of]}^{slope}" for slope, of in slopes.items()]
        optima.append(" ".join([f"{letter}* = {star}", *powers]))
    if len(sizes) == 1:
        starts["alpha"] = EXPONENTS[2:8]
    return RecipeLaw(
        name=RECIPE,
        formula=f"{formula}; {', '.join(optima)}, relative to the table's center",
        columns=(*sizes, "lr", *(("batch_tokens",) if "batch_tokens" in moving else ())),
        parameters=parameters,
        positive=positive,
        starts=starts,
        predict=predict,
        bounds=bounds,
        nested=base if len(sizes) == 2 else None,
        center=center,
        bases=tuple(zip("AB", ("alpha", "beta"), sizes, strict=False)),
        parabolas=tuple(parabolas),
    )


def prepare(
    rows: Sequence[Row], options: Options
) -> tuple[Sequence[Row], RecipeLaw, list[dict[str, str]]]:
    """The rows that a recipe can be fitted to, its law, and the others with why not. Raises
    BadInput where there is nothing to fit."""
    rows = with_batch_tokens(rows)
    usable, dropped = usable_rows(rows, ["lr", "loss"], options.where, options.finished)
    law = recipe_law(usable)
    usable, left = usable_rows(usable, [*law.columns, "loss"], None, options.finished)
    near, far = near_optimum(usable, law)
    law = recipe_law(near)
    return with_rows(rows, near), law, dropped + left + far


def near_optimum(rows: Sequence[Row], law: Law) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows within PARABOLA of the best loss of their cell, and the others with the reason. A
    cell is equal in sizes and tokens."""
    best: dict[tuple, float] = {}
    for row in rows:
        cell = _cell(row, law)
        best[cell] = min(best.get(cell, math.inf), row["loss"])
    limit = 1 + PARABOLA
    kept = [row for row in rows if row["loss"] <= limit * best[_cell(row, law)]]
    reason = f"more than {PARABOLA:.0%} above the best of its size and tokens, beyond a parabola"
    left = [row for row in rows if row["loss"] > limit * best[_cell(row, law)]]
    return kept, [{"run": str(row["run"]), "reason": reason} for row in left]


def _cell(row: Row, law: Law) -> tuple:
    return tuple(row[name] for name in law.columns if name in ("params", "tokens"))


def build_recipe(fit: Fit) -> dict[str, Any]:
    """The recipe of a fit of a RecipeLaw: natural logarithms of the best learning rate, and where
    batches varied of the best batch in tokens, as linear functions of those of params, tokens and
    batch (in tokens); "where" is the range of each column that it was fitted to."""
    rows = fit.parts.fitted
    names = [name for name in ("lr", *DEPENDS) if all(_number(row, name) for row in rows)]
    ranges = {n: [float(f(float(row[n]) for row in rows)) for f in (min, max)] for n in names}
    return {
        "format": FORMAT,
        "n_points": len(rows),
        "log_lr": _linear(fit, "lr"),
        "log_batch": _linear(fit, "batch") if _has_best_batch(fit) else None,
        "where": ranges,
    }


def _has_best_batch(fit: Fit) -> bool:
    """Whether batches varied, and the losses bend with them for certain."""
    return bool(fit.reported_intervals().get("h", [None])[0])


def _number(row: Row, name: str) -> bool:
    return isinstance(row.get(name), int | float)


def _linear(fit: Fit, of: str) -> dict[str, float]:
    """The constant and the slopes of log lr* or of log B*, of the columns as they are."""
    assert isinstance(fit.law, RecipeLaw)
    p, center = fit.params, fit.law.center
    slopes = {n: p[f"{of}_{s}"] for n, s in DEPENDS.items() if f"{of}_{s}" in p}
    constant = math.log(p[f"{of}_star"]) - sum(b * math.log(center[n]) for n, b in slopes.items())
    out = {"constant": constant, **{n: float(slopes.get(n, 0.0)) for n in ("params", "tokens")}}
    return {**out, "batch": float(slopes.get("batch_tokens", 0.0))} if of == "lr" else out


def check(compare_by: str | None, next_budget: float | None, anytime: bool, every: bool) -> None:
    """Raise BadInput for what is of laws of size and tokens alone."""
    asked = {"compare": compare_by, "next_runs": next_budget, "anytime": anytime}
    if given := [name for name, value in {**asked, "multiverse": every}.items() if value]:
        raise BadInput(f"--{given[0]}: is for a law of size and tokens, not for --law={RECIPE}")


def sections(
    law: RecipeLaw,
    fit: Fit,
    options: Options,
    far: Sequence[Mapping[str, str]],
    document: Mapping[str, Any],
) -> dict[str, Any]:
    """What a recipe adds to the document of its fit, `far` being the rows that were left out."""
    intervals = fit.reported_intervals()
    if not intervals["k"][0]:
        raise BadInput(
            f"--law={RECIPE}: these losses show no best learning rate: the curvature k is "
            f"{fit.params['k']:.3g}, and may be 0; a sweep over a wider range of rates is needed"
        )
    section = recipe_section(law, fit, options)
    told = section.pop("warnings")
    if "h" in intervals and not _has_best_batch(fit):
        told.append("these losses show no best batch: the curvature h may be 0")
    if beyond := sum("beyond a parabola" in row["reason"] for row in far):
        told.append(f"{beyond} rows more than {PARABOLA:.0%} above the best of their size and "
                    "tokens are left out: there a parabola in log lr does not hold")  # fmt: skip
    return {
        "recipe": section,
        "dropped": [*document["dropped"], *far],
        "warnings": [*told, *document["warnings"]],
    }


def recipe_section(law: RecipeLaw, fit: Fit, options: Options) -> dict[str, Any]:
    """The section "recipe" of fit.json: the recipe, the best learning rate of every cell with its
    interval and whether it lies within what was tried, and what rules would cost."""
    cells = _cells(fit.parts.fitted, law)
    best, ends = _log_optimum(law, fit.best[None], cells), None
    if options.bootstrap != 0:
        drawn = _log_optimum(law, fit.simulate(DRAWS), cells)
        ends = np.exp(np.quantile(drawn, [0.025, 0.975], axis=0)).T
    optima = []
    for i, cell in enumerate(cells):
        tried, lr = cell["tried"], float(np.exp(best[0, i]))
        entry = {name: cell[name] for name in DEPENDS if name in cell}
        inside = tried[0] <= lr <= tried[1]
        interval = [None, None] if ends is None else [float(x) for x in ends[i]]
        optima.append({**entry, "lr": lr, "interval": interval}
                      | {"tried": tried, "inside": inside})  # fmt: skip
    rules, words = _score_rules(law, fit, options, cells)
    section = {**build_recipe(fit), "optima": optima, "rules": rules}
    outside = sum(not entry["inside"] for entry in optima)
    told = []
    if outside:
        told.append(
            f"the best learning rate of {outside} of {len(optima)} cells lies beyond the rates "
            "tried there: the law of all cells places it, no run does"
        )
    return {**section, "words": [*_recipe_words(fit), *words], "warnings": told}


def _cells(rows: Sequence[Row], law: Law) -> list[dict[str, Any]]:
    """The cells of rows: what they are equal in but the learning rate, and the rates tried."""
    names = [name for name in DEPENDS if name in law.columns]
    found: dict[tuple, list[float]] = {}
    for row in rows:
        found.setdefault(tuple(float(row[n]) for n in names), []).append(float(row["lr"]))
    return [
        {**dict(zip(names, cell, strict=True)), "tried": [min(rates), max(rates)]}
        for cell, rates in sorted(found.items())
    ]


def _log_optimum(law: RecipeLaw, theta: np.ndarray, cells: Sequence[Mapping]) -> np.ndarray:
    """log lr* [K, m] of each fitted theta [K, P] at m cells."""
    values = dict(zip(law.parameters, law.report(theta).T[:, :, None], strict=True))
    out = np.log(values["lr_star"]) + np.zeros(len(cells))
    for name, letter in DEPENDS.items():
        if f"lr_{letter}" in values:
            x = np.log([cell[name] / law.center[name] for cell in cells])
            out = out + values[f"lr_{letter}"] * x
    return out


def _score_rules(
    law: RecipeLaw, fit: Fit, options: Options, cells: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What each rule costs in loss, by the law of all rows, at the largest cells, with a constant
    from the others; and the fitted rule, from the others alone. [] where no cell is left out."""
    sizes = np.array([c.get("params", 1.0) * c.get("tokens", 1.0) for c in cells])
    large = sizes >= 0.99 * sizes.max()
    if large.all():
        return [], ["no rule is scored: all cells are of one size and length"]
    true, k = _log_optimum(law, fit.best[None], cells)[0], fit.params["k"]
    rows = [row for row in fit.parts.fitted
            if row.get("params", 1.0) * row.get("tokens", 1.0) < 0.99 * sizes.max()]  # fmt: skip
    out = []

    def score(name: str, log_lr: np.ndarray, published: bool) -> None:
        cost = k * (log_lr - true)[large] ** 2
        out.append({"rule": name, "constant": "published" if published else "fitted"}
                   | {"loss": float(cost.mean()), "largest": float(cost.max())})  # fmt: skip

    try:
        smaller = _smaller_law(law, rows)
        alone = Fit(smaller, split_rows(smaller, rows, _plain(options)), _plain(options), False)
        score(f"fitted to the other {len(alone.parts.fitted)} rows",
              _log_optimum(smaller, alone.best[None], cells)[0], False)  # fmt: skip
    except BadInput:
        pass  # too few are left for a law of their own
    for name, (slopes, constant) in RULES.items():
        shape = np.zeros(len(cells))
        for column, slope in zip(DEPENDS, slopes, strict=True):
            shape += slope * np.log([c.get(column, law.center.get(column, 1.0)) for c in cells])
        score(name, shape + float(np.mean((true - shape)[~large])), False)
        if constant is not None:
            score(name, shape + math.log(constant), True)
    out.sort(key=lambda entry: entry["loss"])
    best = out[0]
    words = [f"of {len(out)} rules, asked at the {int(large.sum())} largest of {len(cells)} cells, "
             f"{best['rule']} costs least: {best['loss']:.3g} of loss"]  # fmt: skip
    return out, words


def _smaller_law(law: RecipeLaw, rows: Sequence[Row]) -> RecipeLaw:
    """The law of fewer rows: without a column that no longer varies in them."""
    moving = [n for n in DEPENDS if n in law.columns and len({row[n] for row in rows}) > 1]
    smaller = _build_law(moving, "batch_star" in law.parameters, law.center)
    if len(moving) < len([n for n in DEPENDS if n in law.columns]):
        raise BadInput("a column does not vary without the largest cells")
    return smaller


def _plain(options: Options) -> Options:
    return replace(options, where=None, holdout=None, drop_top_loss=0, best_of=None, prior={},
                   fix={}, init={}, score={})  # fmt: skip


def _recipe_words(fit: Fit) -> list[str]:
    """The recipe in words, each exponent with its interval."""
    intervals, out = fit.reported_intervals(), []
    told = [("lr", "best learning rate")]
    told += [("batch", "best batch")] if _has_best_batch(fit) else []
    for of, name in told:
        parts = []
        for letter in DEPENDS.values():
            if (key := f"{of}_{letter}") in fit.params:
                low, high = ("open" if x is None else f"{x:.3g}" for x in intervals[key])
                parts.append(f"{letter}^{fit.params[key]:.3g} ({low} to {high})")
        if f"{of}_star" in fit.params:
            value = f"{fit.params[f'{of}_star']:.3g}"
            unit = " tokens" if of == "batch" else ""
            out.append(f"{name}: {value}{unit} at the center of the table"
                       + (f", and as {' '.join(parts)}" if parts else ""))  # fmt: skip
    return out
