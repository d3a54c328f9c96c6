"""Every way of asking a group of runs for its compute-optimal size, at one target.

Budgets are 6 N D throughout, also for the methods that locate minima: a sweep plans its valleys by
its own count of FLOPs, and the power laws through their minima are in 6 N* D*.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research import scaling
from research.errors import BadInput
from research.scaling.compute_optimal import PER_TOKEN, target_budget
from research.tables.replicates import OTHER_COUNTS, varied_within

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
    """Analyses by the keys of NAMES, why the others are missing, in a line and in more, and the
    target of all."""

    target: float = math.nan
    analyses: dict[str, scaling.Analysis] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)

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


def best_of(rows: Sequence[Row], columns: Sequence[str]) -> str | None:
    """The option of a fit to rows of which some were tuned: what a law through all that was tried
    says is not what the best setting does. None where they differ in size, length or unique data,
    too, which nobody tunes."""
    varied = varied_within(rows, columns)
    counts = [n for n in varied if n in ("params", "tokens") or OTHER_COUNTS.fullmatch(n)]
    return "cell" if varied and not counts else None


def fit_methods(rows: Sequence[Row], mix: bool, served: float | None) -> Methods:
    """All methods on the finished runs of a group; none where these do not vary both size and
    tokens. The optima of the law also count `served` tokens of inference."""
    done = [row for row in rows if row["status"] == "done" and row.get("tokens")]
    done = [row for row in done if row.get("params") and row.get("flops")]
    if any(len({row[name] for row in done}) < DISTINCT for name in ("tokens", "params")):
        return Methods()
    target = target_budget(done)
    least = min(PER_TOKEN * row["params"] * row["tokens"] for row in done)
    grid = [*np.geomspace(least, target, BUDGETS)[:-1].tolist(), target]
    out = Methods(target)
    for name in NAMES:
        options: dict[str, Any] = {"mix": mix, "best_of": best_of(done, ("params", "tokens"))}
        if name == "chinchilla" and served:
            options["inference_tokens"] = served
        try:
            options["predict_flops"] = [target] if name == "auto" else grid
            law = name
            if name not in ("auto", "chinchilla"):
                options["six_nd"] = True
            if name == "parabola":
                law, options["method"] = "isoflop", "parabola"
            checks_too = name != "parabola"
            out.analyses[name] = scaling.analyze(law, done, options, checks_too=checks_too)
        except BadInput as error:
            out.reasons[name], *out.details[name] = error.problems
    return out
