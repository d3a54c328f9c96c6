"""Figures of a sweep and its fit, each as PNG and SVG. Draws rows and documents, knows no model.

Colors are those of Okabe and Ito, which the color-blind can tell apart; sizes use viridis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.cm
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from research.io.humanize import quantity
from research.report import style
from research.report.style import (
    GRAY,
    ORANGE,
    held_out_runs,
    log_loss_axis,
    log_ticks,
    plain_label,
    plain_ticks,
)
from research.runs.schema import AXES
from research.scaling import collapse

ONE_SIZE = 1.05  # between sizes, up to which colors would tell nothing


def group_curves(fits: Mapping[str, Mapping[str, Any]], column: str, unit: str) -> Figure:
    """Groups of runs on one plot, each with its law and the law's 95 % band. `fits` maps names to
    {"rows", "analysis" (None: no law)}; the largest runs, which no law has seen, are stars."""
    with style.sheet(6.4, 4.6) as sheet:
        (axes,) = sheet.panels
        every, held, looks = [], False, style.group_look(fits)
        for name, fit in fits.items():
            (color, marker), analysis = looks[name], fit["analysis"]
            done = [r for r in fit["rows"] if r["status"] == "done" and r.get(column)]
            x, y = (np.array([r[k] for r in done], float) for k in (column, "loss"))
            every.append(y)
            out = np.array(
                [r["run"] in held_out_runs(analysis and analysis.document) for r in done], bool
            )
            label, held = plain_label(name), held or bool(out.any())
            if analysis:
                params = analysis.fit.params
                label += f": $\\alpha$ = {params['alpha']:.3f}, $E$ = {params['E']:.3f}"
                grid = np.geomspace(x.min() / 1.2, x.max() * 1.3, 32)
                loss, band, _ = analysis.fit.at(column, grid)
                band = np.clip(band, 0.5 * loss.min(), 2 * loss.max())
                axes.plot(grid, loss, color=color, lw=1.6)
                axes.fill_between(grid, band[:, 0], band[:, 1], color=color, alpha=0.12, lw=0)
            axes.plot(x[~out], y[~out], marker, color=color, ms=6, ls="none", label=label)
            axes.plot(x[out], y[out], "*", color=color, ms=11, ls="none")
        if held:
            axes.plot([], [], "*", color=GRAY, ms=10, ls="none", label="held out of the fit")
        if any(fit["analysis"] for fit in fits.values()):
            axes.plot([], [], color=GRAY, lw=1.6, label="laws")
            axes.fill_between([], [], color=GRAY, alpha=0.12, lw=0, label="their 95 % bands")
        axes.set_xscale("log")
        axes.set_xlabel(style.axis_label(column, AXES))
        axes.set_ylabel(f"held-out loss ({unit})")
        losses = np.concatenate(every)
        log_loss_axis(axes, losses)
        # A band that is open would set the axis, and what is measured be a line.
        room = (losses.max() / losses.min()) ** 0.35
        axes.set_ylim(losses.min() / room, losses.max() * room)
        log_ticks(axes.xaxis, flops="flops" in column)
        style.legend_above(sheet)
    return sheet.figure


def collapse_curves(bundle: collapse.Bundle) -> Figure:
    """Left, the normalized training curves of all runs by size, and their common curve; right, how
    far each deviates from it, with the band of batch noise and spread; runs that leave it are
    orange."""
    sizes = [curve.params or 1.0 for curve in bundle.curves]
    norm, colors = LogNorm(min(sizes), max(*sizes, 1.01 * min(sizes))), style.SIZES
    leaving = {entry["run"]: entry for entry in bundle.leaving()}
    noise = np.nanmedian(bundle.errors[:, bundle.known], 0) / bundle.middle[bundle.known]
    allowed = 100 * np.hypot(noise, bundle.spread)
    with style.sheet(9.6, 3.9, 2) as sheet:
        left, right = sheet.panels
        for curve, size, y, off in zip(
            bundle.curves, sizes, bundle.normalized, 100 * bundle.off, strict=True
        ):
            out = curve.run in leaving
            look: dict[str, Any] = {"color": ORANGE if out else colors(norm(size))}
            look |= {"lw": 1.6 if out else 0.9, "zorder": 4 if out else 2}
            label = f"{plain_label(curve.run)}: {quantity(size)} parameters" if out else None
            left.plot(collapse.SHARES, y, label=label, **look)
            right.plot(collapse.SHARES, off, **look)
        middle = bundle.middle
        left.plot(collapse.SHARES, middle, "k--", lw=1.6, label="common curve", zorder=5)
        for sign, label in ((-2, None), (2, "± 2 sd of noise and spread")):
            at = collapse.SHARES[bundle.known]
            right.plot(at, sign * allowed, "--", color="black", lw=1.0, zorder=5, label=label)
        left.set(yscale="log", ylabel=f"$(L(t) - E) / (L(T) - E)$, $E$ = {bundle.floor:.3g}")
        right.set_ylabel("deviation from the common curve (%)")
        late = collapse.SHARES >= collapse.BEGIN
        reach = 1.15 * np.nanmax(np.abs(100 * bundle.off[:, late]))
        right.set_ylim(-reach, reach)
        for axes in (left, right):
            axes.set_xlabel("share of training")
        plain_ticks(left.yaxis)
        left.legend()
        right.legend(loc="lower left")
        _size_bar(sheet, norm, "params")
    return sheet.figure


def _size_bar(sheet: style.Sheet, norm: LogNorm, column: str, label: str = "") -> None:
    """What the colors of `norm` stand for; nothing where all are of about one size."""
    if (norm.vmax or 1) < ONE_SIZE * (norm.vmin or 1):
        return
    scale = matplotlib.cm.ScalarMappable(norm, style.SIZES)
    bar = sheet.figure.colorbar(scale, ax=sheet.panels, pad=0.02, aspect=30)
    bar.set_label(label or style.axis_label(column, AXES))
    log_ticks(bar.ax.yaxis, flops="flops" in column)


def forecast_curves(
    rungs: Sequence[Mapping[str, Any]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    unit: str,
) -> Figure:
    """The training curve of every rung as it was forecast, with two standard deviations, and as its
    records are, smoothed with the standard error of that."""
    with style.sheet(1.2 + 2.9 * len(rungs), 3.2, len(rungs), sharex=True) as sheet:
        panels = sheet.panels
        for axes, rung in zip(panels, rungs, strict=True):
            share, loss, sd = (np.array(rung["curve"][name]) for name in ("share", "loss", "sd"))
            axes.fill_between(share, loss - 2 * sd, loss + 2 * sd, color=GRAY, alpha=0.25, lw=0)
            axes.plot(share, loss, color=GRAY, lw=1.4, label="forecast, 2 sd")
            seen = [record for record in records[rung["run"]] if "train_loss" in record]
            if seen:
                at = np.array([(record["step"] + 1) / rung["steps"] for record in seen])
                values = np.array([record["train_loss"] for record in seen])
                curve = collapse.Curve(rung["run"], at, values, 0.0, rung["params"], rung["tokens"])
                value, error = collapse.smooth(curve)
                band = {"color": ORANGE, "alpha": 0.25, "lw": 0}
                axes.fill_between(collapse.SHARES, value - 2 * error, value + 2 * error, **band)
                axes.plot(collapse.SHARES, value, color=ORANGE, lw=1.4, label="measured, smoothed")
            axes.set_title(f"{rung['ratio']:.3g} times the largest budget")
            late = share >= collapse.BEGIN / 2
            axes.set_ylim(0.9 * (loss - 2 * sd)[late].min(), 1.1 * (loss + 2 * sd)[late].max())
            axes.set_xlabel("share of training")
        panels[0].set_ylabel(f"training loss ({plain_label(unit)})")
        panels[0].legend()
    return sheet.figure


def score_curves(
    series: Mapping[str, Sequence[tuple[float, float, float, int]]],
    column: str,
    label: str,
    budgets: Sequence[float] = (),
) -> Figure:
    """A score of each group against a column: (x, mean, standard deviation, runs). Points are
    joined where each x has one; others differ in something else, as in their budget: those of a
    single group are colored by `budgets`, the FLOPs of each."""
    with style.sheet(6.4, 3.8) as sheet:
        (axes,) = sheet.panels
        for name, points in series.items():
            if points:
                color, mark = style.group_look(series)[name]
                (x, mean, sd, _), words = np.array(points).T, plain_label(name)
                line = "-" if len(set(x)) == len(x) else ""
                axes.errorbar(x, mean, sd, fmt=f"{mark}{line}", capsize=3,
                              color=color, ms=5, lw=1.4, label=words)  # fmt: skip
                if not line and len(budgets) == len(x) and len(series) == 1:
                    norm = LogNorm(min(budgets), max(*budgets, 1.01 * min(budgets)))
                    axes.scatter(x, mean, 34, budgets, cmap=style.SIZES, norm=norm, zorder=3)
                    _size_bar(sheet, norm, "flops", "exact training FLOPs")
        axes.set_xscale("log")
        axes.set_xlabel(style.axis_label(column, AXES))
        several = any(runs > 1 for points in series.values() for *_, runs in points)
        bars = "\nbars: standard deviation over seeds" if several else ""
        axes.set_ylabel(f"{label}{bars}")
        log_ticks(axes.xaxis, flops="flops" in column)
        if len(series) > 1:
            style.legend_above(sheet)
    return sheet.figure


def confusion_matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Counts of true classes (rows) against predicted ones; the shade is the share of the row."""
    counts, names = np.array(matrix), [plain_label(name) for name in names]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = max(3.6, min(9.0, 0.42 * len(counts) + 1.4))
    with style.sheet(size + 0.8, size, grid=False) as sheet:
        (axes,) = sheet.panels
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if len(counts) <= 20:
            for (i, j), n in np.ndenumerate(counts):
                color = "white" if share[i, j] > 0.6 else "black"
                if n:
                    axes.text(j, i, str(n), ha="center", va="center", fontsize="small", color=color)
            axes.set_xticks(range(len(names)), names, rotation=90 if _are_long(names) else 0)
            axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        sheet.figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return sheet.figure


def _are_long(names: Sequence[str]) -> bool:
    return max(map(len, map(str, names))) > 3


def learning_curves(
    curves: Sequence[tuple[Mapping[str, Any], Sequence[Mapping]]],
    unit: str = "nats per token",
    column: str = "params",
    measure: str = "loss",
) -> Figure:
    """Training loss (smoothed) and held-out loss against tokens or examples, colored by `column`;
    `measure`: that of another set, loss/NAME."""
    with style.sheet(6.4, 4.2) as sheet:
        (axes,) = sheet.panels
        sizes = [row.get(column) or 1 for row, _ in curves]
        norm = LogNorm(min(sizes), max(max(sizes), min(sizes) * 1.01))
        looks = style.group_look(str(row.get("group") or "") for row, _ in curves)
        for row, metrics in curves:
            color = style.SIZES(norm(row.get(column) or 1))
            _, mark = looks[str(row.get("group") or "")]
            train = [(m["tokens"], m["train_loss"]) for m in metrics if "train_loss" in m]
            if len(train) > 3:
                tokens, loss = np.array(train[1:]).T
                axes.plot(tokens, _smooth(loss), color=color, lw=0.8, alpha=0.55,
                          rasterized=len(curves) > 24)  # fmt: skip
            heldout = [(m["tokens"], m[measure]) for m in metrics if measure in m]
            if heldout:
                axes.plot(*np.array(heldout).T, f"{mark}-", color=color, ms=4, lw=1.6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        examples = all(row.get("context") == 1 for row, _ in curves)
        axes.set_xlabel("training examples seen" if examples else "training tokens $D$")
        axes.set_ylabel(f"loss ({unit})")
        low, high = axes.get_ylim()
        if high > 4 * low:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=12))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            plain_ticks(axes.yaxis)
        log_ticks(axes.xaxis)
        axes.plot([], [], color=GRAY, lw=0.8, label="training loss, smoothed")
        other = measure.partition("/")[2]
        what = f"loss on {plain_label(other)}" if other else "held-out loss"
        for group, (_, mark) in looks.items():
            of = f": {plain_label(group)}" if len(looks) > 1 else ""
            axes.plot([], [], f"{mark}-", color=GRAY, ms=4, lw=1.6, label=f"{what}{of}")
        _size_bar(sheet, norm, column)
        style.legend_above(sheet)
    return sheet.figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a twelfth of the curve, without a bias at its start."""
    keep = 1 - 1 / max(2, len(values) / 12)
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        out.append(mean / weight)
    return np.array(out)
