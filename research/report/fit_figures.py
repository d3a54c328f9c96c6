"""Figures of a fit: what the law says, what it was fitted to, and where it is off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.cm
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from research.report import decision_figures, recipe_figures, style
from research.report.style import BLUE, GRAY, GREEN, ORANGE, STYLE
from research.runs.schema import AXES
from research.scaling import Analysis, Fit, compute_optimal, uncertainty
from research.scaling.laws import GROUP
from research.tables import table

LEVELS = 9  # iso-loss contours


def save_figures(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Every figure as PNG and SVG in `out`; returns their paths."""
    drawn = {name: style.render_figure(figure) for name, figure in figures.items()}
    return [path for name, drawing in drawn.items() for path in drawing.save(out / name)]


def draw_figures(analysis: Analysis) -> dict[str, Figure]:
    document, fit = analysis.document, analysis.fit
    out: dict[str, Figure] = {}
    if fit is None:
        return decision_figures.draw_minima(document, analysis.rows)
    if len(fit.law.columns) == 1:
        name = "loss" if fit.law.response == "loss" else "law"
        out[name] = loss_curve(fit.parts.usable, fit.law.columns[0], document["unit"], analysis)
    if compute_optimal.has_optimum(fit.law):
        out["losses"] = loss_panels(fit, document)
        out["contours"] = loss_contours(fit, document)
        out["frontier"] = decision_figures.frontier(
            [p for p in document["predictions"] if p.get("params")], document
        )
    if "recipe" in document:
        out |= recipe_figures.draw_recipe(fit, document)
    out["residuals"] = residual_panels(fit)
    if len(fit.samples) > 50 and (spread := parameter_pairs(fit)):
        out["pairs"] = spread
    if "settling" in document:
        out["settling"] = decision_figures.settling_curve(document["settling"], document["unit"])
    if "compare" in document:
        out["compare"] = decision_figures.group_comparison(
            fit, document["compare"], document["unit"]
        )
    if "multiverse" in document:
        out["multiverse"] = decision_figures.multiverse_spread(document["multiverse"])
    return out


def loss_curve(
    rows: Sequence[table.Row], column: str, unit: str, analysis: Analysis | None = None
) -> Figure:
    """The response against the law's column: the runs, the law with its 95 % band, and the held-out
    runs beside the interval that was predicted for them; the runs alone if there is no law."""
    document = analysis.document if analysis else None
    response = str(document["response"]) if document else "loss"
    held_out = style.held_out_runs(document)
    out = {r["run"] for r in (document or {}).get("dropped", [])}
    done = [r for r in rows if r.get("status", "done") == "done" and r.get(column)]
    x, y = (np.array([r[k] for r in done], float) for k in (column, response))
    kinds = np.array([(r["run"] in held_out) + 2 * (r["run"] in out) for r in done], int)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2))
        axes = figure.subplots()
        if analysis and analysis.fit:
            _draw_band(axes, analysis.fit, x)
            _draw_predictions(axes, analysis.document)
        axes.scatter(x[kinds == 0], y[kinds == 0], s=34, color=BLUE, zorder=3, label="runs, fitted")
        if (kinds >= 2).any():
            axes.scatter(x[kinds >= 2], y[kinds >= 2], s=34, facecolors="none", edgecolors=GRAY,
                         zorder=3, label="left out of the fit")  # fmt: skip
        if (kinds == 1).any():
            axes.scatter(x[kinds == 1], y[kinds == 1], s=70, marker="*", color=ORANGE, zorder=5,
                         label="measured, held out of the fit")  # fmt: skip
        if column != "loss":
            axes.set_xscale("log")
            style.log_ticks(axes.xaxis)
        axes.set_xlabel(AXES.get(column, f"held-out loss ({unit})" if column == "loss" else column))
        axes.set_ylabel(f"held-out loss ({unit})" if response == "loss" else response)
        if response == "loss":
            style.log_loss_axis(axes, y)
        axes.legend(loc="upper right")
    return figure


def _draw_band(axes: Any, fit: Fit, x: np.ndarray) -> None:
    """The law around x, and its 95 % band."""
    column, params = fit.law.columns[0], fit.params
    if column == "loss":
        grid = np.linspace(x.min(), x.max(), 48)
    else:
        grid = np.geomspace(x.min() / 1.3, x.max() * 1.6, 48)
    value, band, _ = fit.at(column, grid)
    band = np.clip(band, 0.5 * value.min(), 2 * value.max())  # an open end leaves the picture
    label = fit.law.name
    if label == "power":
        letter = fit.law.formula[2]  # L(N) = …
        label = f"$E + A/{letter}^\\alpha$: $E$ = {params['E']:.3f}, "
        label += f"$\\alpha$ = {params['alpha']:.3f}"
    axes.plot(grid, value, color=GREEN, lw=1.8, label=label, zorder=2)
    axes.fill_between(
        grid, band[:, 0], band[:, 1], color=GREEN, alpha=0.15, lw=0, label="95 % band of the law"
    )


def _draw_predictions(axes: Any, document: Mapping[str, Any]) -> None:
    """The floor, where it is identified, and what was predicted for the held-out runs."""
    column, response = document["against"], document["response"]
    floor = document["identifiability"].get("E", {"flag": ""})
    if floor["flag"] == "ok":
        axes.axhline(document["params"]["E"], color=GREEN, lw=1, ls=":", label="E")
    for i, row in enumerate((document["holdout"] or {"rows": []})["rows"]):
        low, high = row["run_interval"]
        if low is None or high is None:
            continue
        at = row[column] * 1.06  # beside the measurement, not under it
        axes.errorbar(
            at, row[response], np.array([[row[response] - low], [high - row[response]]]),
            fmt="D", ms=4.5, color=ORANGE, mfc="white", capsize=4, lw=1.4, zorder=4,
            label=None if i else "predicted, 95 % interval of a run",
        )  # fmt: skip


def loss_panels(fit: Fit, document: Mapping[str, Any]) -> Figure:
    """Loss against parameters, tokens and FLOPs 6 N D, the last with the least that the law allows;
    held-out runs are stars."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.6), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        sizes = [row["params"] for row in fit.parts.usable]
        norm = LogNorm(min(sizes), max(max(sizes), 1.01 * min(sizes)))
        for rows, marker, area in ((fit.parts.fitted, "o", 18), (fit.parts.held_out, "*", 60)):
            n, d, y = (np.array([r[k] for r in rows], float) for k in ("params", "tokens", "loss"))
            for axes, x in zip(panels, (n, d, 6 * n * d), strict=True):
                axes.scatter(x, y, area, n, marker=marker, cmap="viridis", norm=norm, zorder=3)
        c = np.array([6 * row["params"] * row["tokens"] for row in fit.parts.usable])
        grid = np.geomspace(c.min(), c.max(), 60)
        best = compute_optimal.optimal_params(fit.law, fit.best[None], grid)[0]
        least = compute_optimal.predict_loss(fit.law, fit.best[None], best, grid / 6 / best)[0]
        panels[2].plot(grid, least, color=ORANGE, lw=1.8, label="least loss of a budget")
        panels[2].legend(fontsize=8)
        for axes, label in zip(panels, ("params", "tokens", "flops"), strict=True):
            words = f"{AXES[label]} (6 N D)" if label == "flops" else AXES[label]
            axes.set(xscale="log", yscale="log", xlabel=words)
            style.log_ticks(axes.xaxis)
            style.plain_ticks(axes.yaxis)
        panels[0].set_ylabel(f"loss ({document['unit']})")
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, "viridis"), ax=panels[2])
        bar.set_label(AXES["params"])
        style.log_ticks(bar.ax.yaxis)
    return figure


def loss_contours(fit: Fit, document: Mapping[str, Any]) -> Figure:
    """Iso-loss contours over parameters and tokens, the runs, and the efficient frontier."""
    rows = fit.parts.usable
    n, d, y = (np.array([row[k] for row in rows], float) for k in ("params", "tokens", "loss"))
    n_grid = np.geomspace(n.min() / 2, n.max() * 2, 90)
    d_grid = np.geomspace(d.min() / 2, d.max() * 2, 90)
    mesh_n, mesh_d = np.meshgrid(n_grid, d_grid)
    values = compute_optimal.predict_loss(fit.law, fit.best[None], mesh_n.ravel(), mesh_d.ravel())[
        0
    ]
    values = values.reshape(mesh_n.shape)
    norm = LogNorm(max(min(values.min(), y.min()), 1e-12), max(values.max(), y.max()))
    levels = np.geomspace(values.min() * 1.001, values.max() * 0.98, LEVELS)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(6.6, 4.8))
        axes = figure.subplots()
        lines = axes.contour(n_grid, d_grid, values, levels, cmap="viridis", norm=norm)
        axes.clabel(lines, fmt="%.3g", fontsize=8)
        fitted, held_out = (
            (fit.parts.fitted, "o", 26, "runs"),
            (fit.parts.held_out, "*", 80, "held out"),
        )
        for some, marker, area, label in (fitted, held_out) if fit.parts.held_out else (fitted,):
            at = [[row[k] for row in some] for k in ("params", "tokens", "loss")]
            axes.scatter(at[0], at[1], s=area, c=at[2], cmap="viridis", norm=norm, marker=marker,
                         edgecolors="white", lw=0.4, zorder=3, label=label)  # fmt: skip
        c = np.geomspace(6 * n.min() * d.min(), 6 * n.max() * d.max(), 60)
        best = compute_optimal.optimal_params(fit.law, fit.best[None], c)[0]
        axes.plot(best, c / 6 / best, color=ORANGE, lw=1.8, label="efficient frontier", zorder=2)
        predicted = [p for p in document["predictions"] if p.get("params")]
        for p in predicted if len(predicted) <= decision_figures.FEW else []:
            axes.scatter(p["params"], p["tokens"], marker="D", s=44, color=ORANGE, zorder=4)
        axes.set(xscale="log", yscale="log", xlabel=AXES["params"], ylabel=AXES["tokens"])
        axes.set_xlim(n_grid[0], n_grid[-1])
        axes.set_ylim(d_grid[0], d_grid[-1])
        style.log_ticks(axes.xaxis)
        style.log_ticks(axes.yaxis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9)
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, "viridis"), ax=axes)
        bar.set_label(f"loss ({document['unit']})")
        style.plain_ticks(bar.ax.yaxis)
    return figure


def residual_panels(fit: Fit) -> Figure:
    """Measured over fitted, against each column that the law reads, and the spread of a run."""
    columns = [c for c in fit.law.columns if c != GROUP]
    sd = uncertainty.run_noise(fit.problem, fit.best)
    if fit.problem.objective == "mse":
        sd /= float(np.exp(fit.problem.log_y).mean())
    fitted, held_out = (fit.parts.fitted, "o", 24, BLUE), (fit.parts.held_out, "*", 70, ORANGE)
    with matplotlib.rc_context(STYLE):
        width = max(6.4, 4.6 * len(columns))
        figure = Figure(figsize=(width, 2.8), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(columns), sharey=True))
        for (rows, marker, area, color), label in ((fitted, "fitted"), (held_out, "held out")):
            if not rows:
                continue
            points = fit.law.prepare(table.column_arrays(rows, fit.law.columns))
            log_y = np.log([row[fit.law.response] for row in rows])
            excess = 100 * np.expm1(log_y - fit.law.evaluate(fit.best[None], points)[0][0])
            for axes, column in zip(panels, columns, strict=True):
                x = [row[column] for row in rows]
                axes.scatter(x, excess, s=area, color=color, marker=marker, label=label,
                             zorder=3)  # fmt: skip
        for axes, column in zip(panels, columns, strict=True):
            axes.axhline(0, color=GRAY, lw=1)
            axes.axhspan(-100 * sd, 100 * sd, color=GRAY, alpha=0.15, lw=0,
                         label="± 1 standard deviation of a run")  # fmt: skip
            if column != "loss":
                axes.set_xscale("log")
                style.log_ticks(axes.xaxis)
            axes.set_xlabel(AXES.get(column, column))
        panels[0].set_ylabel("measured / law − 1 (%)")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, fontsize=8, ncols=3, loc="outside upper left")
    return figure


def parameter_pairs(fit: Fit) -> Figure | None:
    """The resampled parameters against each other, those that are positive by their logarithm; None
    if the data leave nothing open."""
    moving = np.flatnonzero(fit.samples.std(0) > 1e-9 * np.maximum(np.abs(fit.best), 1))
    names, values = fit.law.parameters, fit.samples
    if not (k := len(moving)):
        return None
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.7 * k, 1.7 * k), layout="constrained")
        grid = figure.subplots(k, k, squeeze=False)
        for row, i in enumerate(moving):
            for column, j in enumerate(moving):
                axes = grid[row, column]
                if column > row:
                    axes.axis("off")
                    continue
                if column == row:
                    axes.hist(values[:, i], 30, color=BLUE)
                    axes.set_yticks([])
                else:
                    axes.plot(values[:, j], values[:, i], ".", ms=1.5, color=BLUE, alpha=0.3,
                              rasterized=True)  # fmt: skip
                    axes.plot(fit.best[j], fit.best[i], "*", ms=8, color=ORANGE)
                axes.tick_params(labelsize=6)
                words = [f"log {names[m]}" if names[m] in fit.law.positive else names[m]
                         for m in (j, i)]  # fmt: skip
                if row == k - 1:
                    axes.set_xlabel(words[0], fontsize=8)
                if column == 0 and row:
                    axes.set_ylabel(words[1], fontsize=8)
    return figure
