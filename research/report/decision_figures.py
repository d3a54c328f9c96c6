"""Figures of what follows from a fit: optimal sizes, recipes compared, how the answer settled, how
much it depends on the way of asking, and a prediction that was verified."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.cm
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from research.report import style
from research.report.style import BLUE, GRAY, GREEN, ORANGE
from research.runs.schema import AXES
from research.scaling import Fit, isoflop
from research.scaling.budgets import drop_outliers, group_by_budget
from research.scaling.compare import rescaled_columns
from research.scaling.compute_optimal import PER_TOKEN
from research.scaling.law import GROUP
from research.tables import table

SHOWN = 1e3  # times an optimum: an interval that reaches further is cut there, or no axis holds it
FEW = 8  # predictions that are drawn one by one; of more, only the band of their intervals
NEAR = 10.0  # times off: other laws that are further away would only stretch the axes
OPTIMAL = ("optimal parameters $N^*$", "optimal tokens $D^*$", "tokens per parameter $D^*/N^*$")
# Of a method to locate minima: its mark, and the curve that it lays through the runs.
VALLEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "akima": ("*", {"ls": "-", "lw": 1.2}),
    "parabola": ("s", {"ls": "--", "lw": 0.9}),
}
CHOICES = {  # of the multiverse
    "params": "parameters",
    "params_non_embedding": "without embedding",
    "params_matmul": "in matmuls",
    "flops": "FLOPs",
    "flops_6nd": "$6ND$",
    "flops_6nd_non_embedding": "$6ND$ without embedding",
    "flops_exact_causal": "causal attention",
    "mse_log": "least squares of log loss",
    "huber_log": "Huber of log loss",
    "all": "all",
}
# N*(C) of others, for a line beside ours: label, coefficient, exponent, and where it is printed.
PUBLISHED = (
    ("Kaplan et al. 2020", 1.3e9 / 8.64e19**0.73, 0.73, "figure 14: 1.3e9 (C / PF-day)^0.73"),
    ("Hoffmann et al. 2022 (20 tokens per parameter)", 1 / math.sqrt(120), 0.5, "table 3"),
)


def minima_makers(
    document: Mapping[str, Any], rows: Sequence[table.Row]
) -> dict[str, Callable[[], Figure]]:
    """What draws the figures of optimal sizes without a law of the loss, by their names."""
    out: dict[str, Callable[[], Figure]] = {}
    if document["law"] == "isoflop":
        out["isoflop"] = partial(isoflop_curves, document, rows)
    out["frontier"] = partial(frontier, document["minima"], document, rows)
    if document["law"] == "envelope":
        out["envelope"] = partial(envelope, document, rows)
    if "multiverse" in document:
        out["multiverse"] = partial(multiverse_spread, document)
    return out


def frontier(
    points: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    rows: Sequence[table.Row] = (),
) -> Figure:
    """N*(C), D*(C) and D*/N*, with the power laws, their bands, the largest budget of the `rows`
    and laws printed elsewhere that come NEAR these: by C = 6 N D, also where the table counts FLOPs
    in another way."""
    law, few = document["optimal"], len(points) <= FEW
    budgets = [p["flops"] for p in points] or [1e18, 1e22]
    ahead = 3 if few else 1  # a band ends with the predictions, and the line with it
    c = np.geomspace(min(budgets) / ahead, max(budgets) * ahead, 50)
    optima = [PER_TOKEN * p["params"] * p["tokens"] for p in points]
    with style.sheet(9.6, 3.6, 3) as sheet:
        sizes, at = None, c
        if law and law["params_exponent"] is not None:
            n = law["params_coefficient"] * c ** law["params_exponent"]
            d = law["tokens_coefficient"] * c ** law["tokens_exponent"]
            sizes, at = n, PER_TOKEN * n * d
            words = f"this fit: {_exponent_text(law)}"
            for axes, values in zip(sheet.panels, (n, d, d / n), strict=True):
                axes.plot(at, values, color=BLUE, lw=1.8, label=words)
        for (label, k, a, _), color in zip(PUBLISHED, (GRAY, GREEN), strict=True):
            n = k * at**a
            if sizes is not None and np.abs(np.log10(n / sizes)).min() > math.log10(NEAR):
                continue
            for axes, values in zip(sheet.panels, (n, at / 6 / n, at / 6 / n / n), strict=True):
                axes.plot(at, values, color=color, lw=1.1, ls="--", label=label)
        band = document.get("frontier", [])
        for axes, key in zip(sheet.panels, ("params", "tokens", "tokens_per_param"), strict=True):
            _draw_band(axes, key, band)
            _draw_optima(axes, key, optima, points)
            if rows:
                most = max(PER_TOKEN * row["params"] * row["tokens"] for row in rows)
                axes.axvline(most, color=GRAY, lw=1.0, ls=":", label="largest budget of the runs")
            axes.set(xscale="log", yscale="log", xlabel=style.axis_label("flops", AXES, True))
            style.log_ticks(axes.xaxis, flops=True)
            style.log_ticks(axes.yaxis)
            if band:  # which may span many decades, and the line would look flat
                found = [p[key] for p in band]
                low, high = axes.get_ylim()
                axes.set_ylim(max(low, min(found) / NEAR), min(high, max(found) * NEAR))
        for axes, label in zip(sheet.panels, OPTIMAL, strict=True):
            axes.set_ylabel(label)
        style.legend_above(sheet)
    return sheet.figure


def _draw_band(axes: Any, key: str, points: Sequence[Mapping[str, Any]]) -> None:
    """The 95 % band of one panel, through the intervals of `points` along the frontier."""
    spans = [
        (PER_TOKEN * p["params"] * p["tokens"], *np.clip(span, p[key] / SHOWN, p[key] * SHOWN))
        for p in points
        if (span := _closed_interval(p, key))
    ]
    if spans:
        at, low, high = zip(*spans, strict=True)
        axes.fill_between(at, low, high, color=BLUE, alpha=0.15, lw=0, label="95 % band")


def _draw_optima(
    axes: Any, key: str, optima: Sequence[float], points: Sequence[Mapping[str, Any]]
) -> None:
    """The points of one panel with their 95 % intervals; of many the band of these alone."""
    few, told = len(points) <= FEW, False
    spans = [
        (at, *np.clip(span, value / SHOWN, value * SHOWN))
        for at, p in zip(optima, points, strict=True)
        if (span := _closed_interval(p, key)) and (value := _value(p, key))
    ]
    if not few:
        _draw_band(axes, key, points)
    for at, p in zip(optima, points, strict=True) if few else ():
        axes.plot(at, _value(p, key), "o", color=ORANGE, ms=5, zorder=3,
                  label=None if told else "optima of budgets")  # fmt: skip
        told = True
    for i, (at, low, high) in enumerate(spans if few else ()):
        axes.plot([at, at], [low, high], color=ORANGE, lw=1.2,
                  label=None if i else "their 95 % intervals")  # fmt: skip


def _value(point: Mapping[str, Any], key: str) -> float:
    return point.get(key) or point["tokens"] / point["params"]


def _closed_interval(point: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The 95 % interval of a prediction, or of a located minimum; None if it is open. That of a
    minimum is of its size: its tokens and their ratio follow from the budget."""
    ends = (point.get("intervals") or {}).get(key)
    if "sizes" in point:
        ends = point["interval"]
    if not ends or None in ends:
        return None
    if key != "params" and "sizes" in point:
        power = {"tokens": 1, "tokens_per_param": 2}[key]
        high, low = (_value(point, key) * (point["params"] / end) ** power for end in ends)
        return low, high
    return ends[0], ends[1]


def isoflop_curves(document: Mapping[str, Any], rows: Sequence[table.Row]) -> Figure:
    """Loss against size at every budget, the curves that were laid through the runs of each, and
    their minima."""
    budgets, _ = group_by_budget(drop_outliers(rows)[0])
    by_6nd = document["options"]["six_nd"]
    low, high = budgets[0].flops, budgets[-1].flops
    norm = LogNorm(low, max(high, low * 1.01))
    with style.sheet(6.8, 4.6) as sheet:
        (axes,) = sheet.panels
        for i, budget in enumerate(budgets):
            color = style.SIZES(norm(budget.flops))
            at = np.exp(budget.log_n), np.exp(budget.log_loss)
            axes.plot(
                *at,
                "o",
                ms=3.5,
                color=color,
                label=None if i else "runs, labeled with their exact FLOPs",
            )
            for name, side in document["methods"].items():
                if any(m["budget"] == budget.flops for m in side["minima"]):
                    axes.plot(*isoflop.valley_curve(budget, name), color=color, **VALLEYS[name][1])
            if len(budgets) <= FEW:
                axes.annotate(style.flops_text(budget.flops), (at[0][-1], at[1][-1]), (6, 0),
                              textcoords="offset points", va="center",
                              fontsize="small")  # fmt: skip
        for name, side in document["methods"].items():
            at = [(m["params"], m["loss"]) for m in side["minima"]]
            marker, line = VALLEYS[name]
            axes.plot(*zip(*at, strict=True), marker, color=ORANGE, ls="none", mfc="white",
                      ms=7 if marker == "s" else 11, zorder=4)  # fmt: skip
            words = _exponent_text(side) + (", $C = 6ND$" if by_6nd else "")
            axes.plot([], [], marker, color=ORANGE, mfc="white", **line,
                      label=f"{name.capitalize()}, minima: {words}")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=style.axis_label("params", AXES))
        axes.set_ylabel(f"held-out loss ({document['unit']})")
        axes.margins(x=0.1)
        style.log_ticks(axes.xaxis)
        style.plain_ticks(axes.yaxis)
        if len(budgets) > FEW:
            bar = sheet.figure.colorbar(matplotlib.cm.ScalarMappable(norm, style.SIZES), ax=axes)
            bar.set_label(f"{style.axis_label('flops', AXES)}, as the table counts them")
            style.log_ticks(bar.ax.yaxis, flops=True)
        style.legend_above(sheet)
    return sheet.figure


def _exponent_text(side: Mapping[str, Any]) -> str:
    """The power law of N* with its interval, as mathematics and words."""
    ends = side["intervals"]["params_exponent"]
    words = " to ".join("open" if end is None else f"{end:.2f}" for end in ends)
    return rf"$N^* \propto C^{{{side['params_exponent']:.2f}}}$ ({words})"


def envelope(document: Mapping[str, Any], rows: Sequence[table.Row]) -> Figure:
    """Loss against FLOPs of every run, and the lower convex hull."""
    by_6nd = document["options"]["six_nd"]
    c, y, n = (np.array([row[k] for row in rows]) for k in ("flops", "loss", "params"))
    if by_6nd:
        c = PER_TOKEN * n * np.array([row["tokens"] for row in rows])
    on = sorted((m["flops"], m["loss"]) for m in document["minima"])
    with style.sheet(6.8, 4.4) as sheet:
        (axes,) = sheet.panels
        points = axes.scatter(c, y, c=n, s=16, cmap=style.SIZES, norm=LogNorm(), label="runs")
        axes.plot(*zip(*on, strict=True), "o-", color=ORANGE, ms=5, lw=1.4,
                  label="lower convex hull, and the runs on it")  # fmt: skip
        axes.set(xscale="log", yscale="log")
        count = "" if by_6nd else ", as the table counts them"
        axes.set_xlabel(f"{style.axis_label('flops', AXES, by_6nd)}{count}")
        axes.set_ylabel(f"held-out loss ({document['unit']})")
        style.log_ticks(axes.xaxis, flops=True)
        style.plain_ticks(axes.yaxis)
        style.legend_above(sheet)
        bar = sheet.figure.colorbar(points, ax=axes, label=style.axis_label("params", AXES))
        style.log_ticks(bar.ax.yaxis)
    return sheet.figure


def settling_curve(document: Mapping[str, Any]) -> Figure:
    """The prediction at the target and its interval, as FLOPs were spent on the runs."""
    section, unit = document["settling"], document["unit"]
    stages = section["stages"]
    spent = [stage["flops_spent"] for stage in stages]
    closed = [(s["flops_spent"], *s["interval"]) for s in stages if None not in s["interval"]]
    with style.sheet(6.4, 3.8) as sheet:
        (axes,) = sheet.panels
        if closed:
            at, low, high = zip(*closed, strict=True)
            axes.fill_between(at, low, high, color=BLUE, alpha=0.15, lw=0,
                              label="95 % interval of the law")  # fmt: skip
        losses = [stage["loss"] for stage in stages]
        axes.plot(spent, losses, "o-", color=BLUE, lw=1.6, ms=5, label="prediction at the target")
        axes.set(xscale="log", xlabel="FLOPs spent, cheapest runs first")
        axes.set_ylabel(f"predicted loss ({unit})")
        shown = [*losses, *(y for _, *span in closed[-3:] for y in span)]
        room = 0.1 * (max(shown) - min(shown)) + 1e-3 * min(losses)
        axes.set_ylim(min(shown) - room, max(shown) + room)
        axes.set_title(textwrap.fill(section["suggestion"], 60), loc="left", fontsize="small")
        style.log_ticks(axes.xaxis, flops=True)
        axes.legend()
    return sheet.figure


def group_comparison(fit: Fit, section: Mapping[str, Any], unit: str) -> Figure:
    """Every group's losses against compute times its multiplier: on one line if that is right."""
    columns = rescaled_columns(fit.law)
    with style.sheet(9.0, 3.8, 2, sharey=True) as sheet:
        raw, scaled = sheet.panels
        looks = style.group_look(section["groups"])
        for name, entry in section["groups"].items():
            color, mark = looks[name]
            rows = [r for r in fit.parts.usable if str(r[section["column"]]) == name]
            x = np.array([_rescaled_amount(row, columns) for row in rows])
            y = [row["loss"] for row in rows]
            m = entry.get("compute_multiplier", {"value": 1.0})["value"]
            label = style.plain_label(name)
            raw.plot(x, y, mark, ms=5, color=color, label=label)
            needs = ""
            if "needs" in entry:  # as the sentence beside it says
                ends = ("open" if x is None else f"{x:.3g}" for x in entry["needs"]["interval"])
                needs = f" (needs {1 / m:.3g} times; 95 %: {' to '.join(ends)})"
            scaled.plot(x * m, y, mark, ms=5, color=color, label=f"{label}: × {m:.3g}{needs}")
        if len(fit.law.columns) == 2:  # one column, and the group's number: one line for all
            lines = scaled.get_lines()
            reach = np.concatenate([np.asarray(line.get_xdata(), float) for line in lines])
            grid = np.geomspace(reach.min(), reach.max(), 48)
            law = fit.predict({columns[0]: grid, GROUP: np.ones(48)})[0]
            scaled.plot(grid, law, color=GRAY, lw=1.2, zorder=1, label="the shared law")
        if len(columns) == 1:
            words, flops = style.axis_label(columns[0], AXES), "flops" in columns[0]
        else:
            flops = set(columns) == {"params", "tokens"}
            words = style.axis_label("flops", AXES, True) if flops else " · ".join(columns)
        for axes, text in ((raw, words), (scaled, f"{words} × multiplier")):
            axes.set(xscale="log", xlabel=text)
            style.log_ticks(axes.xaxis, flops=flops)
        style.legend_above(sheet, scaled)
        raw.set_ylabel(f"held-out loss ({unit})")
    return sheet.figure


def _rescaled_amount(row: Mapping[str, Any], columns: Sequence[str]) -> float:
    """What a group's multiplier rescales."""
    factor = PER_TOKEN if set(columns) == {"params", "tokens"} else 1.0
    return factor * math.prod(row[column] for column in columns)


def multiverse_spread(document: Mapping[str, Any]) -> Figure:
    """The multiverse: every exponent, sorted; and their medians by each choice."""
    section, law = document["multiverse"], document["law"]
    of = "$\\alpha$ of the law" if law in ("power", "broken") else "$a$ of $N^* \\propto C^a$"
    dots = []
    for axis, choices in section["by_choice"].items():
        dots += [(words, medians["exponent"]) for value, medians in choices.items()
                 if (words := _choice_words(axis, value))]  # fmt: skip
    with style.sheet(9.0, max(3.4, 1.4 + 0.24 * len(dots)), 2, width_ratios=[1, 1.1]) as sheet:
        left, right = sheet.panels
        values = sorted(u["exponent"] for u in section["universes"])
        left.plot(values, np.arange(1, len(values) + 1), ".", color=BLUE)
        middle = section["spread"]["exponent"]["median"]
        left.axvline(middle, color=GRAY, lw=1.0, ls=":", label=f"median {middle:.3g}")
        left.legend()
        left.set(xlabel=f"exponent {of}", ylabel=f"{len(values)} refits, sorted")
        labels = [label for label, _ in dots]
        right.plot([at for _, at in dots], np.arange(len(dots)), "o", color=ORANGE)
        right.axvline(middle, color=GRAY, lw=1.0, ls=":")
        right.set_yticks(np.arange(len(labels)), labels, fontsize="x-small")
        right.invert_yaxis()
        right.set_xlabel("median exponent with this choice")
        for axes in sheet.panels:
            axes.xaxis.set_major_locator(MaxNLocator(5))
    return sheet.figure


# Figures of a section of a document, by its name.
SECTIONS = {"settling": settling_curve, "multiverse": multiverse_spread}


def _choice_words(axis: str, value: str) -> str:
    """A choice of the multiverse as people say it; "" for one that another axis has said."""
    if axis == "huber_delta":
        return "" if value == "None" else f"objective: Huber, $\\delta$ = {float(value):g}"
    if axis == "drop_top_loss":
        dropped = "highest loss" if value == "1" else f"{value} highest losses"
        return f"outliers: {dropped} dropped" if value != "0" else "outliers: all kept"
    if axis == value:
        return f"{CHOICES[axis]}: all counted"
    return f"{CHOICES.get(axis, axis)}: {CHOICES.get(value, value)}"


def ladder(
    name: str, registration: Mapping[str, Any], rungs: Sequence[Mapping[str, Any]]
) -> Figure:
    """Left, loss against FLOPs 6 N D: the runs that were fitted, the least loss of a budget as it
    was registered with its 95 % band, and the rungs as predicted and as measured. Right, the error
    of each prediction and its intervals, relative to what was measured (to the prediction of a rung
    that is not). Rungs of other registrations are gray."""
    line = registration["line"]
    budgets = [point["budget"] for point in line]
    shown = [rung["loss"] for rung in registration["rungs"]] + [row["loss"] for row in line]
    low, high = (
        [min(max(p["interval"][i] or limit, 0.5 * min(shown)), 2 * max(shown)) for p in line]
        for i, limit in enumerate((0.0, math.inf))
    )
    rows = registration["rows"]
    x = [PER_TOKEN * row["params"] * row["tokens"] for row in rows]
    with style.sheet(9.6, 4.2, 2, width_ratios=[1.25, 1]) as sheet:
        left, right = sheet.panels
        left.scatter(x, [row["loss"] for row in rows], s=22, color=BLUE, label="runs, fitted")
        left.plot(budgets, [p["loss"] for p in line], color=GREEN, lw=1.6,
                  label="compute-optimal loss, registered")  # fmt: skip
        left.fill_between(budgets, low, high, color=GREEN, alpha=0.15, lw=0, label="95 % band")
        for rung in rungs:
            _draw_rung(left, right, rung, ORANGE if rung["registration"] == name else GRAY)
        left.plot([], [], "D", color=ORANGE, mfc="white", ms=5, label="predicted")
        left.plot([], [], "*", color=ORANGE, ms=10, label="measured afterwards")
        if any(rung["registration"] != name for rung in rungs):
            left.plot([], [], "D", color=GRAY, mfc="white", ms=5, label="of another registration")
        right.axhline(0, color=GRAY, lw=1.0)
        right.plot([], [], color=ORANGE, lw=4.0, label="95 % interval of the law")
        right.plot([], [], "_-", color=ORANGE, lw=1.2, ms=12, label="95 % interval of a run")
        left.set(xscale="log", yscale="log", xlabel=style.axis_label("flops", AXES, True))
        left.set_ylabel(f"held-out loss ({style.plain_label(registration['unit'])})")
        right.set(xscale="log", xlabel="times the largest budget of the sweep")
        right.set_ylabel("predicted / measured − 1 (%)")
        ratios = sorted({rung["ratio"] for rung in rungs})
        right.set_xticks(ratios, [f"{ratio:.3g}" for ratio in ratios])
        right.set_xticks([], minor=True)
        right.set_xlim(ratios[0] / 1.6, ratios[-1] * 1.6)
        style.log_ticks(left.xaxis, flops=True)
        style.plain_ticks(left.yaxis)
        style.legend_above(sheet)
    return sheet.figure


def _draw_rung(left: Any, right: Any, rung: Mapping[str, Any], color: str) -> None:
    at, center = PER_TOKEN * rung["params"] * rung["tokens"], rung["predicted"]
    measured = rung["measured"]
    for name, width in (("run_interval", 1.2), ("interval", 4.0)):
        # An open end is drawn as far as a half, or twice, what was predicted.
        ends = [x or f * center for x, f in zip(rung[name], (0.5, 2.0), strict=True)]
        off = [100 * (end / (measured or center) - 1) for end in ends]
        marker = "_" if name == "run_interval" else ""
        right.plot([rung["ratio"]] * 2, off, marker=marker, ms=12, color=color, lw=width,
                   solid_capstyle="butt")  # fmt: skip
        if name == "run_interval":
            left.plot([at] * 2, ends, color=color, lw=width)
    left.plot(at, center, "D", color=color, mfc="white", ms=5, zorder=4)
    if measured is not None:
        left.plot(at, measured, "*", color=color, ms=10, zorder=5)
        right.plot(rung["ratio"], 0, "*", color=color, ms=11, zorder=5)
        off = 100 * (center / measured - 1)
        right.plot(rung["ratio"], off, "D", color=color, mfc="white", ms=5, zorder=6)
