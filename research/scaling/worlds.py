"""Simulated tables with a known truth, under assumptions of which a method may or may not know.

A table has the shape of another one: its sizes, budgets and replicates. Its losses follow the law
L(N, D) = E + A / N^alpha + B / D^beta, or one that is near to it, and what a world adds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import uncertainty
from research.scaling.analysis import analyze
from research.scaling.compute_optimal import PER_TOKEN, SPAN
from research.scaling.statistics import number_budgets
from research.tables import table
from research.tables.columns import COUNTS

# Hoffmann's data, fitted by Besiroglu et al. 2024: the truth where there is no table.
CHINCHILLA = {"E": 1.81722, "A": 477.83, "B": 2143.42, "alpha": 0.34731, "beta": 0.36717}
BUDGETS = 1e18 * 3.0 ** np.arange(7)
SIZES = 1.6e7 * 2.0 ** (np.arange(21) / 2)
WITHIN = 4.0  # factor around the optimum from which a budget has sizes
NOISE = 0.001  # standard deviation of the log loss of a run
SCATTER = 0.015  # standard deviation of the log of a size's efficiency
TILT = 0.1  # standard deviation of the log of what moves a budget's optimum
INTERACTION = 0.25
BEND, BEND_WIDTH = 0.08, 0.5  # by how much the exponent of N falls, and within which log N
TENFOLD = 10.0
CRASHED, FEWEST_CRASHED = 0.03, 2  # share of the runs, and at least so many
CRASH = (1.05, 2.0)  # factors on the loss of a crashed run


@dataclass(frozen=True)
class World:
    """How losses come about beside the noise of each run."""

    about: str
    scatter: bool = False  # every size has an efficiency of its own, the same at every budget
    tilted: bool = False  # every budget has its optimum a little off
    uneven: bool = False  # the noise of the sizes differs tenfold
    crashed: bool = False  # a few runs ended with a loss that is far too high
    interaction: float = 0.0  # a term that the law does not have
    bend: float = 0.0  # by how much the exponent of N falls around the middle of the sizes


WORLDS = {
    "seed": World("seed noise alone"),
    "scatter": World("every size has an efficiency of its own", scatter=True),
    "uneven": World("noise that differs tenfold between sizes", uneven=True),
    "interaction": World(
        "the true law has a term of N and D together", scatter=True, interaction=INTERACTION
    ),
    "broken": World("the true exponent of N falls with the size", scatter=True, bend=BEND),
    "crashed": World("a few runs crashed", crashed=True),
    "tilted": World("the optimum of every budget is moved", scatter=True, tilted=True),
}
GROUPS = {"wrong_law": ("interaction", "broken")}


@dataclass(frozen=True)
class Shape:
    """What simulated tables have in common: rows without a loss, the true law and the noise."""

    rows: Sequence[table.Row]
    truth: Mapping[str, float]
    noise: float
    scatter: float = SCATTER
    warnings: Sequence[str] = ()  # about the table that it was read from, and the truth in it

    @property
    def largest_budget(self) -> float:
        return max(row["flops"] for row in self.rows)


@dataclass(frozen=True)
class Simulator:
    """Tables of one shape in one world."""

    shape: Shape
    world: World

    def loss(self, n: Any, d: Any) -> Any:
        """The true loss of runs without noise."""
        truth = self.shape.truth
        of_size = truth["A"] / n ** truth["alpha"]
        if self.world.bend:
            sizes = [row["params"] for row in self.shape.rows]
            middle = math.sqrt(min(sizes) * max(sizes))
            of_size *= (1 + (n / middle) ** (1 / BEND_WIDTH)) ** (self.world.bend * BEND_WIDTH)
        of_tokens = truth["B"] / d ** truth["beta"]
        return truth["E"] + of_size + of_tokens + self.world.interaction * of_size * of_tokens

    def optimum(self, flops: float) -> tuple[float, float]:
        """The true optimal size of a budget, and the loss there."""
        from scipy.optimize import minimize_scalar

        c = flops / PER_TOKEN
        reach = SPAN / 2 * math.log(10)
        found = minimize_scalar(
            lambda log_n: self.loss(math.exp(log_n), c / math.exp(log_n)),
            bounds=(math.log(c) / 2 - reach, math.log(c) / 2 + reach),
            method="bounded",
            options={"xatol": 1e-7},
        )
        return math.exp(found.x), float(found.fun)

    def exponent(self) -> float:
        """The slope of log N* over the budgets of the table, each counted once."""
        log_c = np.log([row["flops"] for row in self.shape.rows])
        numbers = number_budgets([row["flops"] for row in self.shape.rows])
        log_c = np.array([log_c[numbers == i].mean() for i in range(numbers.max() + 1)])
        if len(log_c) < 2:
            log_c = log_c[-1] + np.array([-0.1, 0.0])
        log_n = [math.log(self.optimum(math.exp(x))[0]) for x in log_c]
        return float(np.polyfit(log_c, log_n, 1)[0])

    def table(self, seed: int, number: int) -> list[table.Row]:
        """The rows of one simulated table. All worlds share the noise of a number."""
        rng, rows = np.random.default_rng([seed, number]), self.shape.rows
        sizes, of_size = np.unique([row["params"] for row in rows], return_inverse=True)
        of_budget = number_budgets([row["flops"] for row in rows])
        noise = self.shape.noise * rng.standard_normal(len(rows))
        efficiency = self.shape.scatter * rng.standard_normal(len(sizes))
        moved = TILT * rng.standard_normal(of_budget.max() + 1)
        unevenness = TENFOLD ** rng.permutation(np.linspace(-0.5, 0.5, len(sizes)))
        crashes = max(FEWEST_CRASHED, round(CRASHED * len(rows)))
        crashed = rng.permutation(len(rows))[:crashes]
        factors = rng.uniform(*CRASH, len(rows))

        values = table.column_arrays(rows, ("params", "tokens"))
        log_n, log_d = np.log(values["params"]), np.log(values["tokens"])
        if self.world.scatter:
            log_n = log_n + efficiency[of_size]
        if self.world.tilted:
            log_n, log_d = log_n - moved[of_budget], log_d + moved[of_budget]
        if self.world.uneven:
            noise = noise * unevenness[of_size]
        loss = self.loss(np.exp(log_n), np.exp(log_d)) * np.exp(noise)
        if self.world.crashed:
            loss[crashed] *= factors[crashed]
        return [{**row, "loss": float(y)} for row, y in zip(rows, loss, strict=True)]


def isoflop_shape() -> Shape:
    """Seven budgets, at each the sizes of one ladder within a factor of the optimum."""
    whole = Simulator(Shape([], CHINCHILLA, NOISE), World(""))
    rows = []
    for flops in BUDGETS:
        best = whole.optimum(flops)[0]
        for n in SIZES[np.abs(np.log(SIZES / best)) <= math.log(WITHIN)]:
            rows.append({"run": f"r{len(rows):04}", **_counts(float(n), float(flops))})
    return replace(whole.shape, rows=rows)


def shape_of(rows: Sequence[table.Row], options: Mapping[str, Any], found: bool = True) -> Shape:
    """The shape of a table: the runs that `options` (of Options) choose, the law fitted to them,
    and the noise about it. Raises BadInput for a table that the law cannot be fitted to, and where
    the law that is `found` has no optimum, so that it is no truth."""
    analysis = analyze("chinchilla", rows, options, checks_too=False)
    fit, optimal = analysis.fit, analysis.document["optimal"]
    assert fit
    if found and not (optimal and optimal["params_exponent"]):
        values = ", ".join(f"{name} = {value:.4g}" for name, value in fit.params.items())
        raise BadInput(
            f"the law that was found in the table has no optimal size ({values}), so no truth of "
            "simulated tables: --truth=E=…,A=…,B=…,alpha=…,beta=… gives one",
            *analysis.document["warnings"],
        )
    shaped = []
    for row in fit.parts.fitted:
        n, flops = row["params"], row.get("flops") or PER_TOKEN * row["params"] * row["tokens"]
        others = {k: v for k, v in row.items() if not k.startswith((*COUNTS, "loss"))}
        shaped.append({**others, **_counts(n, flops)})
    noise = uncertainty.run_noise(fit.problem, fit.best)
    return Shape(shaped, fit.params, noise, warnings=tuple(analysis.document["warnings"]))


def _counts(n: float, flops: float) -> dict[str, float]:
    """A budget is 6 N D: the tokens follow from it and the size."""
    return {"params": n, "flops": flops, "tokens": flops / PER_TOKEN / n}
