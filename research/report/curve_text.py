"""Training curves beside the law of their schedule: the runs read, the words, the figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from research.errors import BadInput
from research.io import files
from research.io.text_table import format_table
from research.report import fit_figures, style
from research.report.style import GRAY, SERIES
from research.runs import metrics_log
from research.scaling import fit_document
from research.scaling.loss_curves import CurveFit, LossCurve, fit_curves, read_curves
from research.scaling.options import Options
from research.tables import numbers, where
from research.tables.table import Row, has_curves

COLUMNS = ("step", "lr", "loss")  # of a table whose rows are points of curves
MOST = 8  # curves in a figure


def write_fit(rows: Sequence[Row], path: str, options: Options, out: Path) -> str:
    """Fit the curves of the runs that --where chooses and write fit.json and the figure; what there
    is to say of them. Raises BadInput before anything is written."""
    if options.where:
        keep = where.match_where(rows, options.where)
        rows = [row for row, k in zip(rows, keep, strict=True) if k]
    runs, curves = runs_and_curves(rows, path)
    document, law = fit_curves(runs, curves, options)
    figure = draw_curves(law, curves, document)
    out = files.make_directory(out)
    written = [fit_document.write_document(out, document)]
    written += fit_figures.save_figures({"curves": figure}, out)
    return "\n".join([summary(document), *map(str, written)])


def runs_and_curves(rows: Sequence[Row], path: str) -> tuple[list[Row], list[LossCurve]]:
    """One row per run, and its curve: of a workdir from the records of the runs, else from the rows
    of a table, of which a run has several. Raises BadInput where there are no curves."""
    if Path(path).is_dir():
        done = [row for row in rows if row.get("status") == "done"]

        def read(run: str) -> list[dict[str, Any]]:
            return metrics_log.read_records(Path(path) / "runs" / run)

        return done, read_curves(done, read)
    if not has_curves(rows) or any(name not in rows[0] for name in COLUMNS[:2]):
        raise BadInput(
            f"--runs={path}: --law=curve needs the curve of each run, rows with the columns run, "
            f"step, lr and loss; this table has {', '.join(map(str, rows[0]))} (--columns=lr=NAME)"
        )
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(str(row["run"]), []).append(row)
    points_of = {
        run: sorted(map(_numbers, points), key=lambda point: point["step"])
        for run, points in of.items()
    }
    return [points[-1] for points in of.values()], read_curves(
        [points[-1] for points in of.values()], points_of.__getitem__
    )


def _numbers(row: Row) -> dict[str, float]:
    found = {name: numbers.parse_number(row.get(name)) for name in COLUMNS}
    if found["step"] is None:
        raise BadInput(f"run {row['run']}: step is {row.get('step')!r}; expected a number")
    return {name: value for name, value in found.items() if value is not None}


def summary(document: Mapping[str, Any]) -> str:
    """The law, and how far it is off, for a terminal."""
    params = ", ".join(f"{name} = {value:.4g}" for name, value in document["params"].items())
    lines = [document["formula"], f"fitted to {document['n_points']} runs: {params}", ""]
    checked = document["holdout"]["rows"]
    rows = [_cells("fitted", row) for row in document["runs"]]
    rows += [_cells("predicted", row) for row in checked]
    lines.append(format_table(HEADINGS, rows, right=HEADINGS[3:]))
    if checked:
        mean = 100 * float(np.mean([row["error"] for row in checked]))
        worst = 100 * max(row["worst"] for row in checked)
        lines += [
            "",
            f"Predicted curves ({document['holdout']['rule']}) are off by {mean:.2f}% of the loss "
            f"on average over their steps, {worst:.2f}% at most.",
        ]
    lines += [f"warning: {line}" for line in document["warnings"]]
    return "\n".join(lines)


HEADINGS = ("", "run", "schedule", "mean error", "worst", "last loss", "by the law")


def _cells(kind: str, row: Mapping[str, Any]) -> list[str]:
    errors = [f"{100 * row[name]:.2f}%" for name in ("error", "worst")]
    ends = [f"{row[name]:.4f}" for name in ("loss", "predicted")]
    return [kind, row["run"], row["schedule"], *errors, *ends]


def draw_curves(law: CurveFit, curves: Sequence[LossCurve], document: Mapping[str, Any]) -> Figure:
    """Measured losses and those of the law against steps, and beside them how far it is off; runs
    that were held out of the law are dashed."""
    held = {row["run"] for row in document["holdout"]["rows"]} - {
        row["run"] for row in document["runs"]
    }
    with style.sheet(10.4, 3.8, 2) as sheet:
        left, right = sheet.panels
        for i, curve in enumerate(curves[:MOST]):
            color, out = SERIES[i % len(SERIES)], curve.run in held
            predicted = law.predict(curve)
            name = f"{curve.run[:12]}, {'predicted' if out else 'fitted'}"
            left.plot(curve.step, curve.loss, ".", ms=3, color=color, alpha=0.5)
            dashes = "--" if out else "-"
            left.plot(curve.step, predicted, dashes, color=color, lw=1.4, label=name)
            right.plot(curve.step, 100 * (predicted / curve.loss - 1), dashes, color=color, lw=1)
        peak = max(float(c.rate_step[int(np.argmax(c.rate))]) for c in curves)
        late = np.concatenate([c.loss[c.step >= peak] for c in curves])
        left.set(
            ylim=(0.98 * late.min(), 1.02 * np.quantile(late, 0.98)),
            xlabel="steps",
            ylabel="held-out loss",
        )
        right.axhline(0, color=GRAY, lw=1)
        off = np.concatenate([law.predict(c) / c.loss - 1 for c in curves])
        most = max(0.5, 110 * float(np.quantile(np.abs(off), 0.98)))
        right.set(ylim=(-most, most), xlabel="steps", ylabel="law / measured − 1 (%)")
        style.legend_above(sheet, left)
    return sheet.figure
