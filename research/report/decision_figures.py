"""Figures of what follows from a fit: optimal sizes, recipes compared, how the answer settled, how
much it depends on the way of asking, and a prediction that was verified."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.cm
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from research.report import style
from research.report.style import BLUE, GRAY, GREEN, ORANGE, SERIES, STYLE
from research.runs.schema import AXES
from research.scaling import Fit, isoflop
from research.scaling.compare import rescaled_columns
from research.scaling.compute_optimal import PER_TOKEN
from research.scaling.laws import GROUP
from research.tables import table

SHOWN = 1e3  # times an optimum: an interval that reaches further is cut there, or no axis holds it
FEW = 8  # predictions that are drawn one by one; of more, only the band of their intervals
# N*(C) of others, for a line beside ours: label, coefficient, exponent, and where it is printed.
PUBLISHED = (
    ("Kaplan et al. 2020", 1.3e9 / 8.64e19**0.73, 0.73, "figure 14: 1.3e9 (C / PF-day)^0.73"),
    ("Hoffmann et al. 2022 (20 tokens per parameter)", 1 / math.sqrt(120), 0.5, "table 3"),
)


def draw_minima(document: Mapping[str, Any], rows: Sequence[table.Row]) -> dict[str, Figure]:
    """The figures of optimal sizes without a law of the loss."""
    out = {}
    if document["law"] == "isoflop":
        out["isoflop"] = isoflop_curves(document, rows)
    out["frontier"] = frontier(document["minima"], document)
    if document["law"] == "envelope":
        out["envelope"] = envelope(document, rows)
    if "multiverse" in document:
        out["multiverse"] = multiverse_spread(document["multiverse"])
    return out


def frontier(points: Sequence[Mapping[str, Any]], document: Mapping[str, Any]) -> Figure:
    """N*(C), D*(C) and D*/N*, with the power laws, their bands, and laws printed elsewhere: by C =
    6 N D, also where the table counts FLOPs in another way."""
    law = document["optimal"]
    budgets = [p["flops"] for p in points] or [1e18, 1e22]
    c = np.geomspace(min(budgets) / 3, max(budgets) * 3, 50)
    optima = [PER_TOKEN * p["params"] * p["tokens"] for p in points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        panels = figure.subplots(1, 3)
        if law and law["params_exponent"] is not None:
            n = law["params_coefficient"] * c ** law["params_exponent"]
            d = law["tokens_coefficient"] * c ** law["tokens_exponent"]
            for axes, values in zip(panels, (n, d, d / n), strict=True):
                axes.plot(PER_TOKEN * n * d, values, color=BLUE, lw=1.8, label="this fit")
        for (label, k, a, _), color in zip(PUBLISHED, (GRAY, GREEN), strict=True):
            n = k * c**a
            for axes, values in zip(panels, (n, c / 6 / n, c / 6 / n / n), strict=True):
                axes.plot(c, values, color=color, lw=1.1, ls="--", label=label)
        for axes, key in zip(panels, ("params", "tokens", "tokens_per_param"), strict=True):
            spans = [
                (at, *np.clip(span, value / SHOWN, value * SHOWN))
                for at, p in zip(optima, points, strict=True)
                if (span := _closed_interval(p, key)) and (value := _value(p, key))
            ]
            if len(points) > FEW and spans:
                at, low, high = zip(*spans, strict=True)
                axes.fill_between(at, low, high, color=BLUE, alpha=0.15, lw=0)
            for at, p in zip(optima, points, strict=True) if len(points) <= FEW else ():
                axes.plot(at, _value(p, key), "o", color=ORANGE, ms=5, zorder=3)
            for at, low, high in spans if len(points) <= FEW else []:
                axes.plot([at, at], [low, high], color=ORANGE, lw=1.2)
            axes.set(xscale="log", yscale="log", xlabel=f"{AXES['flops']} (6 N D)")
            style.log_ticks(axes.xaxis, steps=(1, 3))
            style.log_ticks(axes.yaxis)
        for axes, label in zip(panels, ("optimal parameters N*", "optimal tokens D*", "D* / N*")):
            axes.set_ylabel(label)
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, ncols=4,
                      loc="outside upper center")  # fmt: skip
    return figure


def _value(point: Mapping[str, Any], key: str) -> float:
    return point.get(key) or point["tokens"] / point["params"]


def _closed_interval(point: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The 95 % interval of a prediction, or of a located minimum; None if it is open."""
    ends = (point.get("intervals") or {}).get(key)
    if key == "params" and "sizes" in point:
        ends = point["interval"]
    return None if not ends or None in ends else (ends[0], ends[1])


def isoflop_curves(document: Mapping[str, Any], rows: Sequence[table.Row]) -> Figure:
    """Loss against size at every budget, and where the minima were located."""
    budgets, _ = isoflop.group_by_budget(rows)
    ends = [budget.flops for budget in (budgets[0], budgets[-1])]
    norm = LogNorm(ends[0], max(ends[1], ends[0] * 1.01))
    colors = matplotlib.colormaps["viridis"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.6))
        axes = figure.subplots()
        for budget in budgets:
            at = np.exp(budget.log_n), np.exp(budget.log_loss)
            axes.plot(*at, "o-", ms=3, lw=0.9, color=colors(norm(budget.flops)))
        sides = document["methods"]
        for (name, side), marker in zip(sides.items(), "*P"):
            at = [(m["params"], m["loss"]) for m in side["minima"]]
            color = ORANGE if name == "akima" else "#CC79A7"
            axes.plot(*zip(*at, strict=True), marker, ms=9, color=color, ls="none", zorder=4,
                      label=f"minima, {name}: N* ~ C^{side['params_exponent']:.3f}")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=AXES["params"])
        axes.set_ylabel(f"loss ({document['unit']})")
        style.log_ticks(axes.xaxis)
        style.plain_ticks(axes.yaxis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, "viridis"), ax=axes)
        bar.set_label(f"{AXES['flops']}, as the table counts them")
        style.log_ticks(bar.ax.yaxis)
    return figure


def envelope(document: Mapping[str, Any], rows: Sequence[table.Row]) -> Figure:
    """Loss against FLOPs of every run, and the lower convex hull."""
    c, y, n = (np.array([row[k] for row in rows]) for k in ("flops", "loss", "params"))
    on = sorted((m["flops"], m["loss"]) for m in document["minima"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.4))
        axes = figure.subplots()
        points = axes.scatter(c, y, c=n, s=16, cmap="viridis", norm=LogNorm(), label="runs")
        axes.plot(*zip(*on, strict=True), "o-", color=ORANGE, ms=5, lw=1.4, label="convex hull")
        axes.set(xscale="log", yscale="log", xlabel=f"{AXES['flops']}, as the table counts them")
        axes.set_ylabel(f"loss ({document['unit']})")
        style.log_ticks(axes.xaxis)
        style.plain_ticks(axes.yaxis)
        axes.legend()
        bar = figure.colorbar(points, ax=axes, label=AXES["params"])
        style.log_ticks(bar.ax.yaxis)
    return figure


def settling_curve(section: Mapping[str, Any], unit: str) -> Figure:
    """The prediction at the target and its interval, as FLOPs were spent on the runs."""
    stages = section["stages"]
    spent = [stage["flops_spent"] for stage in stages]
    closed = [(s["flops_spent"], *s["interval"]) for s in stages if None not in s["interval"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.subplots()
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
        axes.set_title(textwrap.fill(section["suggestion"], 80), fontsize=9, loc="left")
        style.log_ticks(axes.xaxis)
        axes.legend()
    return figure


def group_comparison(fit: Fit, section: Mapping[str, Any], unit: str) -> Figure:
    """Every group's losses against compute times its multiplier: on one line if that is right."""
    columns = rescaled_columns(fit.law)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        raw, scaled = figure.subplots(1, 2, sharey=True)
        for (name, entry), color in zip(section["groups"].items(), SERIES * 9):
            rows = [r for r in fit.parts.usable if str(r[section["column"]]) == name]
            x = np.array([_rescaled_amount(row, columns) for row in rows])
            y = [row["loss"] for row in rows]
            m = entry.get("compute_multiplier", {"value": 1.0})["value"]
            label = style.plain_label(name)
            raw.plot(x, y, "o", ms=5, color=color, label=label)
            scaled.plot(x * m, y, "o", ms=5, color=color, label=f"{label}: x {m:.3g}")
        if len(fit.law.columns) == 2:  # one column, and the group's number: one line for all
            lines = scaled.get_lines()
            reach = np.concatenate([np.asarray(line.get_xdata(), float) for line in lines])
            grid = np.geomspace(reach.min(), reach.max(), 48)
            law = fit.predict({columns[0]: grid, GROUP: np.ones(48)})[0]
            scaled.plot(grid, law, color=GRAY, lw=1.2, zorder=1, label="the shared law")
        words = AXES.get(columns[0], columns[0]) if len(columns) == 1 else " · ".join(columns)
        words = "6 N D" if set(columns) == {"params", "tokens"} else words
        for axes, text in ((raw, words), (scaled, f"{words} x multiplier")):
            axes.set(xscale="log", xlabel=text)
            style.log_ticks(axes.xaxis)
            axes.legend(fontsize=8)
        raw.set_ylabel(f"held-out loss ({unit})")
    return figure


def _rescaled_amount(row: Mapping[str, Any], columns: Sequence[str]) -> float:
    """What a group's multiplier rescales."""
    factor = PER_TOKEN if set(columns) == {"params", "tokens"} else 1.0
    return factor * math.prod(row[column] for column in columns)


def multiverse_spread(section: Mapping[str, Any]) -> Figure:
    """The multiverse: every exponent and prediction, sorted; and their medians by each choice."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
        values = sorted(u["exponent"] for u in section["universes"])
        left.plot(values, np.arange(1, len(values) + 1), ".", color=BLUE)
        left.set_xlabel("exponent")
        left.xaxis.set_major_locator(MaxNLocator(5))
        right.xaxis.set_major_locator(MaxNLocator(5))
        left.set_ylabel("refits, sorted")
        labels, dots = [], []
        for axis, choices in section["by_choice"].items():
            for value, medians in choices.items():
                labels.append(f"{axis}: {value}")
                dots.append(medians["exponent"])
        right.plot(dots, np.arange(len(dots)), "o", color=ORANGE)
        right.set_yticks(np.arange(len(labels)), labels, fontsize=7)
        right.invert_yaxis()
        right.set_xlabel("median exponent with this choice")
    return figure


def ladder(
    name: str, registration: Mapping[str, Any], rungs: Sequence[Mapping[str, Any]]
) -> Figure:
    """Left, loss against FLOPs 6 N D: the runs that were fitted, the least loss of a budget as it
    was registered with its 95 % band, and the rungs as predicted and as measured. Right, how far
    each is off its prediction, within its intervals. Rungs of other
    registrations are gray."""
    line = registration["line"]
    budgets = [point["budget"] for point in line]
    shown = [rung["loss"] for rung in registration["rungs"]] + [row["loss"] for row in line]
    low, high = (
        [min(max(p["interval"][i] or limit, 0.5 * min(shown)), 2 * max(shown)) for p in line]
        for i, limit in enumerate((0.0, math.inf))
    )
    rows = registration["rows"]
    x = [PER_TOKEN * row["params"] * row["tokens"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        left.scatter(x, [row["loss"] for row in rows], s=22, color=BLUE, label="runs, fitted")
        left.plot(budgets, [p["loss"] for p in line], color=GREEN, lw=1.6,
                  label="least loss of a budget, registered")  # fmt: skip
        left.fill_between(budgets, low, high, color=GREEN, alpha=0.15, lw=0, label="95 % band")
        for rung in rungs:
            _draw_rung(left, right, rung, ORANGE if rung["registration"] == name else GRAY)
        left.plot([], [], "D", color=ORANGE, mfc="white", ms=5, label="predicted, 95 % of a run")
        left.plot([], [], "*", color=ORANGE, ms=10, label="measured afterwards")
        if any(rung["registration"] != name for rung in rungs):
            left.plot([], [], "D", color=GRAY, mfc="white", ms=5, label="of another registration")
        right.axhline(0, color=GREEN, lw=1.2)
        right.plot([], [], color=ORANGE, lw=4.0, label="95 % interval of the law")
        right.plot([], [], "_-", color=ORANGE, lw=1.2, ms=12, label="of a run")
        right.legend(fontsize=8, loc="upper left")
        left.set(xscale="log", yscale="log", xlabel=f"{AXES['flops']} (6 N D)")
        left.set_ylabel(f"held-out loss ({style.plain_label(registration['unit'])})")
        right.set(xscale="log", xlabel="times the largest budget of the sweep")
        right.set_ylabel("measured over predicted, %")
        ratios = sorted({rung["ratio"] for rung in rungs})
        right.set_xticks(ratios, [f"{ratio:.3g}" for ratio in ratios])
        right.set_xticks([], minor=True)
        right.set_xlim(ratios[0] / 1.6, ratios[-1] * 1.6)
        style.log_ticks(left.xaxis)
        style.plain_ticks(left.yaxis)
        left.legend(fontsize=8)
    return figure


def _draw_rung(left: Any, right: Any, rung: Mapping[str, Any], color: str) -> None:
    at, center = PER_TOKEN * rung["params"] * rung["tokens"], rung["predicted"]
    for name, width in (("run_interval", 1.2), ("interval", 4.0)):
        # An open end is drawn as far as a half, or twice, what was predicted.
        ends = [x or f * center for x, f in zip(rung[name], (0.5, 2.0), strict=True)]
        off = [100 * (end / center - 1) for end in ends]
        marker = "_" if name == "run_interval" else ""
        right.plot([rung["ratio"]] * 2, off, marker=marker, ms=12, color=color, lw=width,
                   solid_capstyle="butt")  # fmt: skip
        if name == "run_interval":
            left.plot([at] * 2, ends, color=color, lw=width)
    left.plot(at, center, "D", color=color, mfc="white", ms=5, zorder=4)
    if rung["measured"] is not None:
        left.plot(at, rung["measured"], "*", color=color, ms=10, zorder=5)
        off = 100 * (rung["measured"] / center - 1)
        right.plot(rung["ratio"], off, "*", color=color, ms=11, zorder=5)
