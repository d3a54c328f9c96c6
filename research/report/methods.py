"""Every way of asking groups of runs for their compute-optimal sizes, at one target a group.

Budgets are 6 N D throughout, also for the methods that locate minima: a sweep plans its valleys by
its own count of FLOPs, and the power laws through their minima are in 6 N* D*.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from research import scaling
from research.errors import BadInput
from research.io.worker_processes import run_jobs
from research.report import fit_figures, style
from research.scaling.compute_optimal import PER_TOKEN, target_budget
from research.scaling.multiverse import refit_universes
from research.tables import replicates

Row = dict[str, Any]

NAMES = {
    "auto": "average over laws",
    "chinchilla": "L(N, D), Chinchilla's law",
    "isoflop": "isoFLOP minima (Akima)",
    "parabola": "isoFLOP minima (parabola)",
    "envelope": "envelope of all runs",
}
SECTIONS = ("chinchilla", "isoflop", "envelope")  # with figures and a section of their own
BUDGETS = 25  # from the smallest of the table to the target
DISTINCT = 3  # sizes and numbers of tokens, below which no method is tried


@dataclass(frozen=True)
class Methods:
    """The target of all; analyses by the keys of NAMES, without their fits; why the others are
    missing, in a line and in more; the law's multiverse; and the figures of SECTIONS by kind."""

    target: float = math.nan
    analyses: dict[str, scaling.Analysis] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)
    multiverse: dict[str, Any] = field(default_factory=dict)
    drawings: dict[str, dict[str, style.Drawing]] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, scaling.Analysis]:
        """Those that have a section of their own."""
        return {name: self.analyses[name] for name in SECTIONS if name in self.analyses}

    @property
    def answer(self) -> str:
        """The method that answers: the average, else the law alone; "" without either."""
        return next((name for name in ("auto", "chinchilla") if name in self.analyses), "")

    def document(self, name: str) -> dict[str, Any]:
        return self.analyses[name].document

    def prediction(self, name: str) -> dict[str, Any] | None:
        """What a method says of the target; None where it has no optimum there."""
        predictions = self.document(name)["predictions"]
        found = predictions[-1] if predictions else None
        return found if found and found["params"] is not None else None


def fit_methods(
    groups: Mapping[str, Sequence[Row]],
    mix: bool,
    served: float | None = None,
    every_way: bool = False,
    draw: bool = True,
) -> dict[str, Methods]:
    """All methods on the finished runs of each group; none where these do not vary both size and
    tokens. The optima of the law also count `served` tokens of inference. With `every_way` the law
    of a single group is fitted under every convention, and with `draw` all figures are drawn too:
    other processes take part in that (`run_jobs`)."""
    out, jobs = {name: Methods() for name in groups}, {}
    for group, rows in groups.items():
        done = [row for row in rows if row["status"] == "done" and row.get("tokens")]
        done = [row for row in done if row.get("params") and row.get("flops")]
        if all(len({row[name] for row in done}) >= DISTINCT for name in ("tokens", "params")):
            out[group] = Methods(target_budget(done))
            options = {"mix": mix, "best_of": replicates.best_of(done, ("params", "tokens"))}
            fit = functools.partial(_fit_method, done, options, out[group].target, served, draw)
            if every_way and len(groups) == 1:
                jobs[group, ""] = functools.partial(refit_every_way, "chinchilla", done, options)
            jobs |= {(group, name): functools.partial(fit, name) for name in NAMES}
    for (group, name), tried in zip(jobs, run_jobs([*jobs.values()]), strict=True):
        if not name:
            out[group].multiverse.update(tried)
        elif tried.analysis:
            out[group].analyses[name] = tried.analysis
            out[group].drawings[name] = tried.drawings or {}
        else:
            out[group].reasons[name], *out[group].details[name] = tried.problems
    return out


def refit_every_way(law: str, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
    """The multiverse of a law on finished runs; {} where nothing could be fitted."""
    try:
        return refit_universes(law, rows, scaling.Options(**options))
    except BadInput:
        return {}


class _Tried(NamedTuple):
    """A method's analysis and figures, or why it cannot be had."""

    analysis: scaling.Analysis | None = None
    drawings: dict[str, style.Drawing] | None = None
    problems: tuple[str, ...] = ()


def _fit_method(
    done: Sequence[Row],
    common: Mapping[str, Any],
    target: float,
    served: float | None,
    draw: bool,
    name: str,
) -> _Tried:
    """A method of NAMES on finished runs of one group, by options that all methods share."""
    least = min(PER_TOKEN * row["params"] * row["tokens"] for row in done)
    grid = [*np.geomspace(least, target, BUDGETS)[:-1].tolist(), target]
    options = dict(common)
    if name == "chinchilla" and served:
        options["inference_tokens"] = served
    options["predict_flops"], law = [target] if name == "auto" else grid, name
    if name not in ("auto", "chinchilla"):
        options["six_nd"] = True
    if name == "parabola":
        law, options["method"] = "isoflop", "parabola"
    try:
        analysis = scaling.analyze(law, done, options, checks_too=name != "parabola")
    except BadInput as error:
        return _Tried(problems=error.problems)
    drawings = {}
    if draw and name in SECTIONS:
        figures = fit_figures.draw_figures(analysis)
        drawings = {kind: style.render_figure(figure) for kind, figure in figures.items()}
    return _Tried(dataclasses.replace(analysis, fit=None), drawings)
