"""Figures of a recipe: what a learning rate off its optimum costs, and how the optimum moves."""

from collections.abc import Mapping
from typing import Any

import matplotlib.cm
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from research.report import style
from research.report.style import GRAY, GREEN, ORANGE
from research.runs.schema import AXES
from research.scaling import Fit
from research.scaling.recipes import DEPENDS, RecipeLaw
from research.tables import table

COSTLY = 10.0  # times off the optimum: where the parabola is drawn to
BESIDE = 1.25  # by which factor cells of one size are spread


def draw_recipe(fit: Fit, document: Mapping[str, Any]) -> Figure:
    """Left, the loss of each run above the best that the law has for its size, tokens and batch,
    against its learning rate over the optimum: one parabola for all, if the law holds. Right, the
    optimum of each cell with its interval, and the range that was tried."""
    law, cells = fit.law, document["recipe"]["optima"]
    assert isinstance(law, RecipeLaw)
    names = [name for name in DEPENDS if name in law.columns]
    columns = table.column_arrays(fit.parts.fitted, [*law.columns, "loss"])
    best = {tuple(cell[n] for n in names): cell["lr"] for cell in cells}
    at = np.array([best[tuple(r[n] for n in names)] for r in map(_floats(names), fit.parts.fitted)])
    floor = np.exp(law.evaluate(fit.best[None], law.prepare({**columns, "lr": at}))[0][0])
    off = columns["lr"] / at
    shade = names[0] if names else None
    values = columns[shade] if shade else np.ones(len(at))
    norm = LogNorm(values.min(), max(values.max(), values.min() * 1.01))
    with style.sheet(9.6, 3.8, 2) as sheet:
        left, right = sheet.panels
        left.scatter(off, columns["loss"] - floor, s=16, color=style.SIZES(norm(values)), zorder=3,
                     label="runs")  # fmt: skip
        reach = min(COSTLY, max(off.max(), 1 / off.min()) * 1.1)
        grid = np.geomspace(1 / reach, reach, 101)
        k = fit.params["k"]
        law = rf"${k:.3g}\,\ln(\mathrm{{lr}} / \mathrm{{lr}}^*)^2$"
        left.plot(grid, k * np.log(grid) ** 2, color=GREEN, lw=1.8, label=law)
        left.set(xscale="log", xlabel="learning rate / best learning rate of its cell")
        left.set_ylabel(f"loss above the best ({document['unit']})")
        left.set_title("What a learning rate off its optimum costs")
        left.legend()
        _draw_optima(right, cells, names)
        if shade:
            scale = matplotlib.cm.ScalarMappable(norm, style.SIZES)
            bar = sheet.figure.colorbar(scale, ax=left, label=style.axis_label(shade, AXES))
            style.log_ticks(bar.ax.yaxis)
    return sheet.figure


def _floats(names: list[str]) -> Any:
    return lambda row: {name: float(row[name]) for name in names}


def _draw_optima(axes: Any, cells: list[dict[str, Any]], names: list[str]) -> None:
    """The optimum of each cell against the first column that varies."""
    x = np.array([cell[names[0]] if names else 1.0 for cell in cells])
    for value in np.unique(x):  # cells of one size beside each other
        x[x == value] *= np.geomspace(1 / BESIDE, BESIDE, (x == value).sum())
    for i, (at, cell) in enumerate(zip(x, cells, strict=True)):
        axes.plot([at, at], cell["tried"], color=GRAY, lw=3, alpha=0.25, solid_capstyle="butt",
                  label=None if i else "rates tried")  # fmt: skip
        if None not in cell["interval"]:
            axes.plot([at, at], cell["interval"], color=ORANGE, lw=1.3,
                      label=None if i else "95 % interval")  # fmt: skip
        inside = "o" if cell["inside"] else "x"
        axes.plot(at, cell["lr"], inside, color=ORANGE, ms=4.5, zorder=3,
                  label=None if i else "best learning rate (x: beyond those tried)")  # fmt: skip
    axes.set(xscale="log", yscale="log", ylabel="learning rate")
    axes.set_xlabel(style.axis_label(names[0], AXES) if names else "")
    axes.set_title("How the best learning rate moves")
    style.log_ticks(axes.xaxis)
    axes.legend()
