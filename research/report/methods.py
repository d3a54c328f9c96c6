"""Every way of asking a group of runs for its compute-optimal size, at one target.

Budgets are 6 N D throughout. Methods that locate minima count in the table's own FLOPs, in which
the valleys were planned, so they are asked for the budget of that count whose optimum costs 6 N D.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research import scaling
from research.errors import BadInput
from research.scaling.compute_optimal import PER_TOKEN, target_budget

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
    """Analyses by the keys of NAMES, why the others are missing, and the target of all."""

    target: float = math.nan
    analyses: dict[str, scaling.Analysis] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

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
        options: dict[str, Any] = {"mix": mix}
        if name == "chinchilla" and served:
            options["inference_tokens"] = served
        try:
            if name in ("auto", "chinchilla"):
                options["predict_flops"] = [target] if name == "auto" else grid
                out.analyses[name] = scaling.analyze(name, done, options)
            else:
                out.analyses[name] = _locate(name, done, options, grid)
        except BadInput as error:
            out.reasons[name] = error.problems[0]
    return out


def _locate(
    name: str, rows: Sequence[Row], options: dict[str, Any], budgets: Sequence[float]
) -> scaling.Analysis:
    """The minima of a method, and its optima at budgets 6 N D."""
    law = "isoflop" if name == "parabola" else name
    options |= {"method": "parabola"} if name == "parabola" else {}
    optimal = scaling.analyze(law, rows, options, checks_too=False).document["optimal"]
    options["predict_flops"] = [table_budget(optimal, c) for c in budgets]
    return scaling.analyze(law, rows, options, checks_too=name != "parabola")


def table_budget(optimal: Mapping[str, Any], budget: float) -> float:
    """The FLOPs C, as the table counts them, whose optimum N*(C), D*(C) costs `budget` as 6 N* D*.
    Raises BadInput where no such C follows from the power laws."""
    exponent = optimal["params_exponent"] + optimal["tokens_exponent"]
    logs = math.log(optimal["params_coefficient"]) + math.log(optimal["tokens_coefficient"])
    if not exponent > 0:
        raise BadInput("N* D* of its power laws does not grow with the FLOPs of the table")
    try:
        return math.exp((math.log(budget / PER_TOKEN) - logs) / exponent)
    except OverflowError as error:
        raise BadInput(f"its power laws reach no optimum of {budget:.3g} FLOPs") from error
