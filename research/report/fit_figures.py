"""Figures of a fit: what the law says, what it was fitted to, and where it is off."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.cm
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from research.io import files
from research.report import decision_figures, recipe_figures, style
from research.report.style import BLUE, GRAY, GREEN, ORANGE
from research.runs.schema import AXES
from research.scaling import Analysis, Fit, compute_optimal, fit_document, flags, uncertainty
from research.scaling.law import GROUP
from research.tables import table

LEVELS = 9  # iso-loss contours, about
SHARE = 0.98  # of the resamples, that a panel of two parameters shows
EDGE, CLEAR = 0.07, 0.05  # of the axes, without labels of contours: of a border, and of a mark
WITHOUT_LIMIT = 1e6  # times the most of a table


def write_fit(analysis: Analysis, out: Path, next_config: str | None = None) -> list[Path]:
    """Write an analysis: fit.json, every figure, a recipe, and next.py, a config by
    `next_config`; returns their paths."""
    document, figures = analysis.document, draw_figures(analysis)
    files.make_directory(out)  # from here on only the disk can fail
    written = [fit_document.write_document(out, document), *save_figures(figures, out)]
    if recipe := document.get("recipe"):
        written.append(fit_document.write_document(out, recipe, "recipe"))
    if next_config:
        files.write_atomic(
            out / "next.py", flags.render_sweep_config(next_config, document).encode()
        )
        written.append(out / "next.py")
    return written


def save_figures(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Every figure as PNG and SVG in `out`; returns their paths."""
    drawn = {name: style.render_figure(figure) for name, figure in figures.items()}
    return [path for name, drawing in drawn.items() for path in drawing.save(out / name)]


def draw_figures(analysis: Analysis, only: str | None = None) -> dict[str, Figure]:
    """The figures of an analysis by their names, or the `only` one, where it has that."""
    makers = _makers(analysis)
    return {name: make() for name, make in makers.items() if only in (None, name)}


def figure_names(analysis: Analysis) -> list[str]:
    """What `draw_figures` draws."""
    return [*_makers(analysis)]


def _makers(analysis: Analysis) -> dict[str, Callable[[], Figure]]:
    """What draws each figure: some take a second, and not all are always wanted."""
    document, fit = analysis.document, analysis.fit
    if fit is None:
        return decision_figures.minima_makers(document, analysis.rows)
    out: dict[str, Callable[[], Figure]] = {}
    usable = fit.parts.usable
    if len(fit.law.columns) == 1:
        name, column = "loss" if fit.law.response == "loss" else "law", fit.law.columns[0]
        out[name] = partial(loss_curve, usable, column, document["unit"], analysis)
    if compute_optimal.has_optimum(fit.law):
        optima = [p for p in document["predictions"] if p.get("params")]
        out["losses"] = partial(loss_panels, fit, document)
        out["contours"] = partial(loss_contours, fit, document)
        out["frontier"] = partial(decision_figures.frontier, optima, document, usable)
    if "recipe" in document:
        out["recipe"] = partial(recipe_figures.draw_recipe, fit, document)
    out["residuals"] = partial(residual_panels, fit)
    if len(fit.samples) > 50 and len(_moving(fit)):
        out["pairs"] = partial(parameter_pairs, fit)
    for name, draw in decision_figures.SECTIONS.items():
        if name in document:
            out[name] = partial(draw, document)
    if "compare" in document:
        draw = decision_figures.group_comparison
        out["compare"] = partial(draw, fit, document["compare"], document["unit"])
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
    done = [r for r in rows if r.get(column)]
    x, y = (np.array([r[k] for r in done], float) for k in (column, response))
    kinds = np.array([(r["run"] in held_out) + 2 * (r["run"] in out) for r in done], int)
    with style.sheet(6.4, 4.2) as sheet:
        (axes,) = sheet.panels
        if analysis and analysis.fit:
            _draw_band(axes, analysis.fit, x)
            _draw_predictions(axes, analysis.document)
        axes.scatter(x[kinds == 0], y[kinds == 0], s=34, color=BLUE, zorder=3,
                     label="runs, fitted" if analysis else "runs")  # fmt: skip
        if (kinds >= 2).any():
            axes.scatter(x[kinds >= 2], y[kinds >= 2], s=34, facecolors="none", edgecolors=GRAY,
                         zorder=3, label="left out of the fit")  # fmt: skip
        if (kinds == 1).any():
            axes.scatter(x[kinds == 1], y[kinds == 1], s=70, marker="*", color=ORANGE, zorder=5,
                         label="measured, held out of the fit")  # fmt: skip
        if column != "loss":
            axes.set_xscale("log")
            style.log_ticks(axes.xaxis, flops="flops" in column)
        words = f"held-out loss ({unit})" if column == "loss" else style.axis_label(column, AXES)
        axes.set_xlabel(words)
        axes.set_ylabel(f"held-out loss ({unit})" if response == "loss" else response)
        if response == "loss":
            style.log_loss_axis(axes, y)
        style.legend_above(sheet)
    return sheet.figure


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
        axes.axhline(
            document["params"]["E"], color=GREEN, lw=1, ls=":", label="irreducible loss $E$"
        )
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
    """Loss against parameters, tokens and FLOPs 6 N D, with what the law allows at the least: for a
    size with tokens, for tokens with parameters, without limit, and for a budget; held-out runs are
    stars."""
    with style.sheet(10.4, 3.8, 3, sharey=True) as sheet:
        sizes = [row["params"] for row in fit.parts.usable]
        norm = LogNorm(min(sizes), max(max(sizes), 1.01 * min(sizes)))
        kinds = (fit.parts.fitted, "o", 18, "runs"), (fit.parts.held_out, "*", 60, "held out")
        for rows, marker, area, label in kinds:
            n, d, y = (np.array([r[k] for r in rows], float) for k in ("params", "tokens", "loss"))
            for axes, x in zip(sheet.panels, (n, d, 6 * n * d), strict=True):
                axes.scatter(x, y, area, n, marker=marker, cmap=style.SIZES, norm=norm, zorder=3,
                             label=label if rows else None)  # fmt: skip
        for axes, (x, least) in zip(sheet.panels, _least_losses(fit), strict=True):
            axes.plot(x, least, color=ORANGE, lw=1.8, label="lowest loss that the law allows")
        for axes, name in zip(sheet.panels, ("params", "tokens", "flops"), strict=True):
            axes.set(xscale="log", yscale="log", xlabel=style.axis_label(name, AXES, True))
            style.log_ticks(axes.xaxis, flops=name == "flops")
            style.plain_ticks(axes.yaxis)
        losses = [row["loss"] for row in fit.parts.usable]
        least = min(losses) * min(losses) / max(losses)  # the runs keep half of the panel
        sheet.panels[0].set_ylim(bottom=max(least, sheet.panels[0].get_ylim()[0]))
        sheet.panels[0].set_ylabel(f"held-out loss ({document['unit']})")
        bar = sheet.figure.colorbar(
            matplotlib.cm.ScalarMappable(norm, style.SIZES), ax=sheet.panels, aspect=30
        )
        bar.set_label(style.axis_label("params", AXES))
        style.log_ticks(bar.ax.yaxis)
        style.legend_above(sheet)
    return sheet.figure


def _least_losses(fit: Fit) -> list[tuple[np.ndarray, np.ndarray]]:
    """For sizes, numbers of tokens and budgets 6 N D: (values, the least loss of the law there)."""
    n, d = (np.array([row[k] for row in fit.parts.usable], float) for k in ("params", "tokens"))
    n_grid, d_grid, c = (np.geomspace(x.min(), x.max(), 60) for x in (n, d, 6 * n * d))
    best = compute_optimal.optimal_params(fit.law, fit.best[None], c)[0]

    def loss(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return compute_optimal.predict_loss(fit.law, fit.best[None], params, tokens)[0]

    # Some laws rise again where one of both is far beyond the other: the least is looked for. One
    # that rises from the table on has none there: its least lies at fewer tokens or parameters.
    far = np.geomspace(1, WITHOUT_LIMIT, 61)

    def least(losses: list[np.ndarray]) -> np.ndarray:
        return np.where(losses[1] > losses[0], np.nan, np.nanmin(losses, 0))

    by_n = least([loss(n_grid, np.full(60, d.max() * times)) for times in far])
    by_d = least([loss(np.full(60, n.max() * times), d_grid) for times in far])
    return [(n_grid, by_n), (d_grid, by_d), (c, loss(best, c / 6 / best))]


def loss_contours(fit: Fit, document: Mapping[str, Any]) -> Figure:
    """Iso-loss contours over parameters and tokens, the runs, and the efficient frontier."""
    rows = fit.parts.usable
    n, d, y = (np.array([row[k] for row in rows], float) for k in ("params", "tokens", "loss"))
    n_grid = np.geomspace(n.min() / 2, n.max() * 2, 90)
    d_grid = np.geomspace(d.min() / 2, d.max() * 2, 90)
    mesh = [axis.ravel() for axis in np.meshgrid(n_grid, d_grid)]
    values = compute_optimal.predict_loss(fit.law, fit.best[None], *mesh)[0]
    values = values.reshape(len(d_grid), len(n_grid))
    norm = LogNorm(y.min(), max(y.max(), 1.001 * y.min()))
    with style.sheet(6.6, 4.8, grid=False) as sheet:
        (axes,) = sheet.panels
        # Before labels are placed, which look at what is shown.
        axes.set(xscale="log", yscale="log", xlim=n_grid[[0, -1]], ylim=d_grid[[0, -1]])
        levels = _round_levels(values.min(), values.max())
        lines = axes.contour(n_grid, d_grid, values, levels, colors="#999999", linewidths=1.0)
        kinds = (fit.parts.fitted, "o", 30, "runs"), (fit.parts.held_out, "*", 90, "held out")
        for some, marker, area, label in kinds:
            at = [[row[k] for row in some] for k in ("params", "tokens", "loss")]
            axes.scatter(at[0], at[1], s=area, c=at[2], cmap=style.SIZES, norm=norm, marker=marker,
                         edgecolors="white", lw=0.4, zorder=3,
                         label=label if some else None)  # fmt: skip
        c = np.geomspace(6 * n.min() * d.min(), 6 * n.max() * d.max(), 60)
        best = compute_optimal.optimal_params(fit.law, fit.best[None], c)[0]
        inside = (best > n_grid[0]) & (best < n_grid[-1])
        seen = inside & (c / 6 / best > d_grid[0]) & (c / 6 / best < d_grid[-1])
        axes.plot(best, c / 6 / best, color=ORANGE, lw=1.8, zorder=2,
                  label="efficient frontier" if seen.any() else None)  # fmt: skip
        predicted = [p for p in document["predictions"] if p.get("params")]
        for i, p in enumerate(predicted if len(predicted) <= decision_figures.FEW else []):
            axes.scatter(p["params"], p["tokens"], marker="D", s=44, color=ORANGE, zorder=4,
                         label=None if i else "optima predicted")  # fmt: skip
        axes.plot([], [], color="#999999", lw=1.0, label="equal loss")
        axes.set(xlabel=style.axis_label("params", AXES), ylabel=style.axis_label("tokens", AXES))
        style.log_ticks(axes.xaxis)
        style.log_ticks(axes.yaxis)
        style.legend_above(sheet)
        bar = sheet.figure.colorbar(matplotlib.cm.ScalarMappable(norm, style.SIZES), ax=axes)
        bar.set_label(f"measured loss ({document['unit']})")
        style.plain_ticks(bar.ax.yaxis)
        for _ in range(2):  # the gaps of labels are of the layout, which settles as it is drawn
            sheet.figure.draw_without_rendering()
        drawn = [*n, *best], [*d, *c / 6 / best]
        axes.clabel(lines, fmt="%g", fontsize="x-small", colors="#444444", inline_spacing=3,
                    manual=_label_places(axes, lines, drawn))  # fmt: skip
    return sheet.figure


def _label_places(axes: Any, lines: Any, drawn: Any) -> list[tuple[float, float]]:
    """A point of each contour for its label: well inside the axes, to the lower right, where
    contours are far from each other, and on nothing that is `drawn`, if that can be."""
    out, to_axes = [], axes.transData + axes.transAxes.inverted()
    taken = to_axes.transform(np.transpose(drawn))
    for segments in lines.allsegs:
        points = np.concatenate([np.asarray(s) for s in segments]) if len(segments) else None
        if points is None or not len(points):
            continue
        at = to_axes.transform(points)
        inside = ((at > EDGE) & (at < 1 - EDGE)).all(1)
        free = inside & (np.abs(at[:, None] - taken).max(2).min(1) > CLEAR)
        inside = free if free.any() else inside
        if inside.any():
            best = np.where(inside, at[:, 0] - at[:, 1], -np.inf).argmax()
            out.append((float(points[best, 0]), float(points[best, 1])))
    return out


def _round_levels(low: float, high: float) -> list[float]:
    """About LEVELS losses in two digits, nearer to each other where they are low."""
    if high <= low:  # a law without a fall
        return [low]
    found: set[float] = set()
    for level in np.geomspace(low, high, LEVELS + 2)[1:-1]:
        digits = max(0, 1 - math.floor(math.log10((high - low) / LEVELS)))
        found.add(round(float(level), max(1, digits - 1)))
    return sorted(level for level in found if low < level < high) or [math.sqrt(low * high)]


def residual_panels(fit: Fit) -> Figure:
    """Measured over fitted, against each column that the law reads, and the spread of a run."""
    columns = [c for c in fit.law.columns if c != GROUP]
    sd = uncertainty.run_noise(fit.problem, fit.best)
    if fit.problem.objective == "mse":
        sd /= float(np.exp(fit.problem.log_y).mean())
    fitted, held_out = (fit.parts.fitted, "o", 24, BLUE), (fit.parts.held_out, "*", 70, ORANGE)
    with style.sheet(max(6.4, 4.6 * len(columns)), 2.8, len(columns), sharey=True) as sheet:
        panels = sheet.panels
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
                style.log_ticks(axes.xaxis, flops="flops" in column)
            axes.set_xlabel(style.axis_label(column, AXES))
        panels[0].set_ylabel("measured / law − 1 (%)")
        style.legend_above(sheet, panels[0])
    return sheet.figure


def _moving(fit: Fit) -> np.ndarray:
    """The parameters that the data leave open, by their places."""
    return np.flatnonzero(fit.samples.std(0) > 1e-9 * np.maximum(np.abs(fit.best), 1))


def parameter_pairs(fit: Fit) -> Figure:
    """The resampled parameters against each other, those that are positive by their natural
    logarithm."""
    moving = _moving(fit)
    names, values, k = fit.law.parameters, fit.samples, len(moving)
    shown = np.quantile(values, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)
    shown = shown + 0.05 * (shown[1] - shown[0]) * [[-1], [1]]
    with style.sheet(1.4 * k, 1.4 * k, grid=False) as sheet:
        figure = sheet.figure
        figure.clear()
        grid = figure.subplots(k, k, squeeze=False)
        for row, i in enumerate(moving):
            for column, j in enumerate(moving):
                axes = grid[row, column]
                if column > row:
                    axes.axis("off")
                    continue
                axes.set_xlim(shown[:, j])
                if column == row:
                    axes.hist(values[:, i], 30, range=tuple(shown[:, i]), color=BLUE)
                    axes.set_yticks([])
                else:
                    axes.set_ylim(shown[:, i])
                    axes.plot(values[:, j], values[:, i], ".", ms=1.5, color=BLUE, alpha=0.3,
                              rasterized=True)  # fmt: skip
                    axes.plot(fit.best[j], fit.best[i], "*", ms=8, color=ORANGE)
                axes.tick_params(labelsize="xx-small")
                words = [f"ln {names[m]}" if names[m] in fit.law.positive else names[m]
                         for m in (j, i)]  # fmt: skip
                if row == k - 1:
                    axes.set_xlabel(words[0], fontsize="small")
                if column == 0 and row:
                    axes.set_ylabel(words[1], fontsize="small")
    return figure
