"""What the laws of a table say of runs beyond it: the rungs of a ladder, each with its size, its
loss with intervals and what these are made of, and the line of least loss that they lie on.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import BadInput
from research.io import files
from research.scaling import averaged_predictions, averaging, compute_optimal
from research.scaling.analysis import has_outliers
from research.scaling.averaging import Average
from research.scaling.compute_optimal import PER_TOKEN, has_optimum, largest_budget
from research.scaling.fit_document import loss_unit
from research.scaling.law import GROUP
from research.scaling.laws import AUTO, LAWS, named_law
from research.scaling.options import Options
from research.tables import replicates
from research.tables.table import Row

STEP = 1.1  # of a budget, for the slope of the least loss
LINE = 24  # points of the line


@dataclass(frozen=True)
class Forecaster:
    """The laws of a table, averaged, or one of them that was chosen."""

    average: Average
    law: str

    @property
    def rows(self) -> Sequence[Row]:
        return self.average.best.parts.fitted

    @property
    def largest_budget(self) -> float:
        return largest_budget(self.rows)

    def optimal_size(self, budget: float) -> float:
        """N* of a budget 6 N D. Raises BadInput where no law has one."""
        n = math.nan
        if not compute_optimal.vary_together(self.rows):
            n = averaged_predictions.optimal_size(self.average, budget)[0]
        if not 0 < n < math.inf:
            raise BadInput(
                f"--law={self.law}: it has no optimal size at {budget:g} FLOPs; a ladder needs a "
                "sweep over sizes and tokens"
            )
        return n

    def predict(self, params: float, tokens: float) -> dict[str, Any]:
        """ "loss", "interval" (of the law), "run_interval", "parts" (half-widths of 95 %, relative:
        "noise" of a run, "parameters", "law", and "floor", which is of the parameters what goes
        with E), and "slope", d log loss / d log C along the optimum."""
        out = averaged_predictions.predict_loss(self.average, _point(params, tokens))[0]
        budget = PER_TOKEN * params * tokens
        lower, upper = (self._least(by * budget) for by in (1 / STEP, STEP))
        inside = (out["loss"],)  # also where all draws lie on one side of the best fit
        for name in ("interval", "run_interval"):  # and a run is not known better than the law
            low, high = out[name]
            out[name] = [low and min(low, *inside), high and max(high, *inside)]
            inside = tuple(end for end in (out["loss"], *out[name]) if end)
        return {**out, "slope": math.log(upper / lower) / (2 * math.log(STEP))}

    def _least(self, budget: float) -> float:
        n = self.optimal_size(budget)
        return averaged_predictions.predict_loss(self.average, _point(n, budget / PER_TOKEN / n))[
            0
        ]["loss"]

    def line(self, budget: float) -> list[dict[str, Any]]:
        """The least loss from the smallest budget of the table to `budget`, with its interval."""
        least = min(PER_TOKEN * row["params"] * row["tokens"] for row in self.rows)
        out = []
        for c in np.geomspace(least, budget, LINE).tolist():
            n = self.optimal_size(c)
            found = averaged_predictions.predict_loss(self.average, _point(n, c / PER_TOKEN / n))[0]
            out.append({"budget": c, "params": n, **{k: found[k] for k in ("loss", "interval")}})
        return out

    def describe(self) -> dict[str, Any]:
        """What the predictions rest on: the laws with their weights, the rows that were fitted, and
        digests of both."""
        laws = [
            {"law": m.fit.law.name, "formula": m.fit.law.formula, "weight": m.weight,
             "stretch": m.stretch, "params": m.fit.params}
            for m in self.average.members
        ]  # fmt: skip
        names = ("params", "tokens", "loss")
        rows = [{"run": str(row["run"]), **{k: float(row[k]) for k in names}} for row in self.rows]
        return {
            "law": self.law,
            "laws": laws,
            "fit": files.digest_of({"laws": laws}),
            "rows": rows,
            "table": files.digest_of({"rows": rows}),
            "n_points": len(rows),
            "unit": loss_unit(self.rows),
            "largest_budget": self.largest_budget,
        }


def _point(params: float, tokens: float) -> Mapping[str, Sequence[float]]:
    """A run whose tokens are all fresh, as far as a law asks."""
    return {"params": [params], "tokens": [tokens], "unique_tokens": [tokens], GROUP: [0.0]}


def make_forecaster(law: str, rows: Sequence[Row]) -> Forecaster:
    """The forecaster of a law by name, or of the average. Raises BadInput for a law that does not
    read params and tokens, and for rows that cannot be fitted. Of settings that were tried at one
    size and length, the best counts."""
    fitting = [name for name in LAWS if has_optimum(named_law(name))]
    if law not in (AUTO, *fitting):
        words = f"--law={law}: expected one of {', '.join((AUTO, *fitting))}"
        raise BadInput(f"{words}, which read params and tokens")
    done = [row for row in rows if row["status"] == "done"]
    options = Options(best_of=replicates.best_of(done, ("params", "tokens")))
    laws = averaging.candidates(rows, options) if law == AUTO else [named_law(law)]
    if not has_optimum(laws[0]):
        raise BadInput(
            f"--law={law}: sizes and tokens of these runs do not vary each in its own way, so "
            "there is no optimal size; a ladder needs a sweep over both"
        )
    if has_outliers(laws[0], rows, options):
        options = dataclasses.replace(options, objective="huber_log")
    return Forecaster(averaging.fit_average(laws, rows, options), law)
