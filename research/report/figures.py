"""Figures by name, of a sweep's workdir or a table: what a paper or a talk shows of it.

Each is drawn by the function that draws it for the page, in the look that was asked for. A figure
that the runs do not allow is refused with the reason.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from research import scaling
from research.errors import BadInput
from research.report import build, decision_figures, fit_figures, style, sweep_figures
from research.report import transfer_text as transfer
from research.report.methods import BUDGETS, DISTINCT
from research.runs import metrics_log
from research.runs.ladder import read_ladder, read_registrations
from research.scaling.compute_optimal import PER_TOKEN, target_budget
from research.scaling.laws import METHODS
from research.tables import table

INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72}


@dataclass(frozen=True)
class Source:
    """What figures are of: the finished `rows` of one group, their `workdir` (None: a table from
    elsewhere), and the law (None: the figure's own)."""

    rows: Sequence[table.Row]
    workdir: Path | None = None
    law: str | None = None

    @functools.cached_property
    def analyses(self) -> dict[str, scaling.Analysis]:
        """Those that figures have asked for: two of a frontier share one fit."""
        return {}

    def analysis(self, law: str) -> scaling.Analysis:
        """Raises BadInput where the runs have no such law."""
        if law not in self.analyses:
            options: dict[str, Any] = {}
            if law in METHODS:
                options["six_nd"] = law != "optima"
            elif law != "power":
                options["predict_flops"] = _budgets(self.rows)
            self.analyses[law] = scaling.analyze(law, self.rows, options, checks_too=False)
        return self.analyses[law]

    def folder(self, figure: str, command: str) -> Path:
        """The workdir. Raises BadInput for a table."""
        if self.workdir is None:
            raise BadInput(f"{figure}: is of a workdir, which {command} makes, and not of a table")
        return self.workdir


def _budgets(rows: Sequence[table.Row]) -> list[float]:
    """Budgets 6 N D from the least of the rows to beyond the largest, evenly in their logarithm."""
    for name in ("params", "tokens"):
        if not all(row.get(name) for row in rows):
            raise BadInput(f"the runs have no column {name!r}")
    least = min(PER_TOKEN * row["params"] * row["tokens"] for row in rows)
    step = (target_budget(rows) / least) ** (1 / (BUDGETS - 1))
    return [least * step**i for i in range(BUDGETS)]


def _of_law(kind: str, default: str) -> Callable[[Source], Figure]:
    """A figure of `fit_figures`, of the law that was asked for."""

    def draw(source: Source) -> Figure:
        law = source.law or default
        figures = fit_figures.draw_figures(source.analysis(law), only=kind)
        if kind not in figures:
            raise BadInput(f"{kind}: is no figure of the law {law}")
        return figures[kind]

    return draw


def _frontier(source: Source) -> Figure:
    """By L(N, D), or by isoFLOP minima where the runs have no such law."""
    if source.law:
        return _of_law("frontier", source.law)(source)
    reasons = []
    for law in ("chinchilla", "isoflop"):
        try:
            return _of_law("frontier", law)(source)
        except BadInput as error:
            reasons.append(f"{law}: {error.problems[0]}")
    raise BadInput(*reasons)


def _loss(source: Source) -> Figure:
    """Against the first column in which the runs differ, with a power law where there is one."""
    from research.report import text

    if all(
        len({row.get(name) for row in source.rows}) >= DISTINCT for name in ("params", "tokens")
    ):
        raise BadInput(
            "loss: parameters and tokens both vary, so no line joins the runs: see losses"
        )
    against, unit = text.varying_column(source.rows), scaling.loss_unit(source.rows)
    try:
        analysis = scaling.analyze("power", source.rows, {"against": against})
    except BadInput:
        if source.law:
            raise
        analysis = None
    return fit_figures.loss_curve(source.rows, against, unit, analysis)


def _ladder(source: Source) -> Figure:
    workdir = source.folder("ladder", "isoflop verify")
    if not (registrations := read_registrations(workdir)):
        raise BadInput(
            f"ladder: nothing is registered in {workdir}; isoflop verify --runs={workdir} predicts "
            "larger runs and trains them"
        )
    return decision_figures.ladder(*[*registrations.items()][-1], read_ladder(workdir))


def _transfer(name: str, part: str, source: Source) -> Figure:
    workdir = source.folder(name, "isoflop transfer")
    place = workdir / transfer.FILE
    if not place.exists():
        raise BadInput(f"{name}: no {place}; isoflop transfer --workdir={workdir} measures it")
    found = transfer.stages(workdir, part).figures
    if part not in found:
        raise BadInput(f"{name}: {place} has no stage {part!r}: isoflop transfer --stages={part}")
    return found[part]


def _curves(source: Source) -> Figure:
    workdir = source.folder("curves", "isoflop sweep")
    found = [(row, metrics_log.read_records(workdir / "runs" / row["run"])) for row in source.rows]
    found = [(row, records) for row, records in found if records]
    if not found:
        raise BadInput(f"curves: the runs of {workdir} have no records of their training")
    return sweep_figures.learning_curves(found, scaling.loss_unit(source.rows))


# Those of a workdir alone that need no finished run of a sweep.
OWN: dict[str, Callable[[Source], Figure]] = {
    "ladder": _ladder,
    "transfer": functools.partial(_transfer, "transfer", "rate"),
    "coordinates": functools.partial(_transfer, "coordinates", "coordinates"),
    "regret": functools.partial(_transfer, "regret", "regret"),
}
FIGURES: dict[str, Callable[[Source], Figure]] = {
    "isoflop": _of_law("isoflop", "isoflop"),
    "frontier": _frontier,
    "loss": _loss,
    "losses": _of_law("losses", "chinchilla"),
    "contours": _of_law("contours", "chinchilla"),
    "residuals": _of_law("residuals", "chinchilla"),
    "envelope": _of_law("envelope", "envelope"),
    "curves": _curves,
    **OWN,
}


def check_names(names: Sequence[str]) -> None:
    """Raises BadInput for what is no figure, and for one that is named twice."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown or not names:
        raise BadInput(
            *(f"figure: {n!r}; expected one of {', '.join(FIGURES)}" for n in unknown or [""])
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"figure: {twice[0]!r} is given twice")


def parse_width(text: str) -> float:
    """Inches of "3.3in", "84mm", "8.4cm" or "240pt". Raises BadInput for anything else."""
    number, unit = text[:-2], text[-2:]
    try:
        inches = float(number) * INCHES[unit]
    except (KeyError, ValueError):
        inches = math.nan
    if not math.isfinite(inches):
        raise BadInput(f"width: {text!r}; expected a number and one of {', '.join(INCHES)}")
    return inches


def draw(
    names: Sequence[str],
    source: Source,
    look: str = "page",
    width: float | None = None,
) -> dict[str, Figure]:
    """Figures of FIGURES by their names. Raises BadInput with a line for each that the runs do not
    allow."""
    check_names(names)
    out, problems = {}, []
    with style.looking(look, width):
        for name in names:
            try:
                out[name] = FIGURES[name](source)
            except BadInput as error:
                lines = [str(line) for line in error.problems]
                problems += [x if x.startswith(f"{name}: ") else f"{name}: {x}" for x in lines]
    if problems:
        raise BadInput(*problems)
    return out


def read_source(
    runs: str | os.PathLike[str],
    names: Sequence[str],
    where: str | None = None,
    law: str | None = None,
    all_runs: bool = False,
) -> Source:
    """The rows of a workdir or of a table from elsewhere, of one group. Raises BadInput where they
    are several that share no law."""
    place = Path(runs)
    workdir = place if place.is_dir() else None
    if workdir and all(name in OWN for name in names):
        return Source([], workdir, law)
    rows = table.read_runs(runs, all_runs=all_runs)
    return of_rows(rows, workdir, where, law)


def of_rows(
    rows: Sequence[table.Row], workdir: Path | None, where: str | None, law: str | None
) -> Source:
    """Finished rows of one group. Raises BadInput where there are none, or several groups."""
    from research.tables.comparable import group_rows
    from research.tables.where import match_where

    if where:
        met = match_where(rows, where)
        rows = [row for row, keep in zip(rows, met, strict=True) if keep]
    done = [row for row in rows if row.get("status", "done") == "done"]
    if not done:
        raise BadInput("no finished runs" + (f" with --where={where}" if where else ""))
    grouping = group_rows(done, [True] * len(done))
    if grouping.several:
        told = build.told_of_groups(len(set(grouping.labels)), grouping, True)
        column = grouping.columns[0]
        raise BadInput(f"{told}; choose one: --where={column}==VALUE")
    return Source(done, workdir, law)
