"""A law fitted to a table: the optimum, resamples of it, and predictions with their intervals.

The table is all it reads: no model, no accelerator, numpy in float64. The same table gives the same
fit, whatever the order of its rows.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from research.errors import BadInput
from research.scaling import uncertainty
from research.scaling.effects import Effects, estimate_effects
from research.scaling.law import Law
from research.scaling.optimize import (
    Prior,
    Problem,
    least_minimum,
    minimize,
    multistart_minimize,
    starting_points,
)
from research.scaling.options import Options, Split
from research.scaling.statistics import NORMAL
from research.scaling.trends import highest_score
from research.tables import table

ONE_SD = 0.6827  # the share of what is normal within one standard deviation
FEW = 30  # clusters; below, a bootstrap of them is too coarse
RESAMPLES = 1000
AGREE = 1e-8  # relative: starts that end this near to the best have found the same minimum
ROUNDING = 1e-10  # of log loss: a law that is this near to every row fits them exactly
ROUNDS = 12  # of steps for the best start, until it has arrived
APART = 0.02  # in a fitted parameter: minima that are further apart are not the same
MOST_RIVALS = 3
NO_FLOOR = 1e-3  # of the least response: an E below that is none
FLOORS = (0.3, 0.6, 0.9)  # of the least response, that E may be instead


def build_problem(law: Law, rows: Sequence[table.Row], options: Options) -> Problem:
    values = table.column_arrays(rows, [*law.columns, law.response])
    objective = options.objective or ("mse_log" if len(rows) < FEW else "huber_log")
    weights = np.array([table.row_weight(row) for row in rows])
    log_y, fixed = np.log(values[law.response]), tuple(options.fix)
    x = law.prepare(values)
    names, clusters = np.unique(cluster_names(rows, options.cluster), return_inverse=True)
    alone = len(names) == len(rows)
    return Problem(law, x, log_y, weights, objective, options.huber_delta, fixed,
                   None if alone else clusters)  # fmt: skip


def _build_prior(fit: "Fit", options: Options) -> Prior:
    """The priors of the options beside the rows of a fit without them. What one standard deviation
    is worth there is what the fit's own intervals say."""
    at = np.array([fit.law.parameters.index(name) for name in options.prior])
    mean, sd = np.array(list(options.prior.values()), float).T
    rises = uncertainty.allowed_rises(fit.correlated, fit.best, np.eye(len(fit.best))[at], ONE_SD)
    return Prior(at, mean, sd, 2 * rises)


@dataclass(frozen=True)
class _Task:
    """A problem, known by its `content`: many laws nest one, and all ask for its fit."""

    content: tuple
    problem: Problem = field(compare=False)
    columns: Mapping[str, np.ndarray] = field(compare=False)


@functools.lru_cache(maxsize=64)
def _least_point(task: _Task) -> np.ndarray:
    """The reported parameters [P] of the least minimum."""
    starts = starting_points(task.problem, task.columns)
    theta, values, _ = multistart_minimize(task.problem, starts)
    return task.problem.law.report(theta[int(np.argmin(values))])


class Fit:
    """A law fitted to a split table: the optimum, resamples of it, and what follows from them.
    With `best_only`, other minima are not followed to their end (see `least_minimum`)."""

    def __init__(
        self,
        law: Law,
        parts: Split,
        options: Options,
        resample: bool = True,
        best_only: bool = False,
    ):
        self.law, self.parts, self.options = law, parts, options
        self.problem = build_problem(law, parts.fitted, options)
        if options.prior:
            alone = Fit(law, parts, dataclasses.replace(options, prior={}), resample=False)
            self.problem = dataclasses.replace(self.problem, prior=_build_prior(alone, options))
        self.columns = table.column_arrays(parts.fitted, law.columns)
        self.begun = self._starts()
        search = least_minimum if best_only else multistart_minimize
        theta, self.values, gradients = search(self.problem, self.begun)
        order = int(np.argmin(self.values))
        if not np.isfinite(self.values[order]):
            raise BadInput(f"{law.formula} has no finite value on these rows from any start")
        self.exact = self.problem.n * ROUNDING**2
        theta[order], self.values[order], self.gradient, self.converged = self._polish(
            theta[order], float(self.values[order]), float(gradients[order])
        )
        self.best, self.value = theta[order], float(self.values[order])
        self.start, self._ends = self.begun[order], theta
        self.clusters = cluster_names(parts.fitted, options.cluster)
        self.enough = len(set(self.clusters)) >= FEW
        resamples = options.bootstrap
        if resamples is None and self.problem.clusters is not None and self.enough:
            resamples = RESAMPLES  # rows of one run err together, each run in its own way
        resample &= not best_only
        self.draws = self._resampled(resamples) if resamples and resample else None

    def _starts(self) -> np.ndarray:
        starts = {**self.options.starts, **{k: [v] for k, v in self.options.fix.items()}}
        if self.options.init:
            point = [self.options.init[name] for name in self.law.parameters]
            theta = self.law.fitted(np.array(point, float))[None]
        else:
            if self.law.nested:
                starts = {**self._nested(), **starts}
            theta = starting_points(self.problem, self.columns, starts)
        for name, value in self.options.fix.items():
            i = self.law.parameters.index(name)
            theta[:, i] = math.log(value) if name in self.law.positive else value
        return theta

    def _nested(self) -> dict[str, list[float]]:
        """The parameters of the nested law, fitted to the same rows."""
        law, p = self.law.nested, self.problem
        assert law
        x = law.prepare(self.columns)
        simple = dataclasses.replace(p, law=law, x=x, fixed=(), prior=None)
        rows = tuple(array.tobytes() for array in (x, p.log_y, p.weights))
        found = _least_point(
            _Task((law.formula, law.parameters, p.objective, p.delta, rows), simple, self.columns)
        )
        return {name: [float(v)] for name, v in zip(law.parameters, found, strict=True)}

    def _polish(self, best: np.ndarray, value: float, gradient: float) -> tuple:
        """Minimize again from the best point until converged; (theta, value, gradient, converged).
        Along a flat valley, as that of a small exponent, a fit needs thousands of steps."""
        for _ in range(ROUNDS):
            theta, values, gradients = minimize(self.problem, best[None])
            before, best, value, gradient = value, theta[0], float(values[0]), float(gradients[0])
            if value <= self.exact or before - value <= AGREE * value:
                return best, value, gradient, True
        return best, value, gradient, False

    @functools.cached_property
    def effects(self) -> Effects | None:
        """What rows of one size or one budget share; None where clusters say what they share."""
        if self.problem.clusters is not None:
            return None
        return estimate_effects(self.law, self.problem, self.best, self.parts.fitted)

    @functools.cached_property
    def run_noise(self) -> float:
        """The standard deviation of one run, in the units of the residuals: beside what rows
        share, where that is known."""
        if self.effects is not None and self.effects.shared:
            return self.effects.run_noise
        return uncertainty.run_noise(self.problem, self.best)

    @functools.cached_property
    def correlated(self) -> Problem:
        """The problem with the covariance of rows that share effects, for intervals."""
        if self.effects is None or not self.effects.shared:
            return self.problem
        return dataclasses.replace(self.problem, covariance=self.effects.covariance())

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """Of the fitted parameters [P, P], linearized, with the errors that rows share; that of a
        parameter which is held is 0."""
        problem, free = self.problem, ~self.problem.fixed_mask
        j = problem.residuals(self.best[None])[1][0][free] * np.sqrt(problem.weights)
        away = np.linalg.pinv(j @ j.T, hermitian=True) @ j
        if self.effects is None:
            pull = np.sqrt(problem.weights) * problem.influence(self.best[None])[0]
            noise = uncertainty.run_noise(problem, self.best) ** 2
            noise *= uncertainty.design_effect(problem, pull)
            of_rows = noise * np.eye(problem.n)
        else:
            of_rows = self.effects.covariance()
        out = np.zeros((len(free), len(free)))
        out[np.ix_(free, free)] = away @ of_rows @ away.T
        if prior := problem.prior:
            by = np.zeros((len(prior.at), len(free)))
            by[np.arange(len(prior.at)), prior.at] = prior.off(self.law, self.best[None])[1][0]
            known = np.linalg.solve(np.eye(len(by)) + by @ out @ by.T, by @ out)
            out -= out @ by.T @ known
        return out

    @functools.cached_property
    def rivals(self) -> np.ndarray:
        """Other minima [r, P] that the data cannot tell from the best one, at most MOST_RIVALS."""
        limit = self.value + uncertainty.allowed_rise(self.problem, self.best)
        out = [self.best]
        # An E of none is one law, however little it is.
        told = np.array([not len(self.floors) or name != "E" for name in self.law.parameters])
        for i in np.argsort(self.values, kind="stable"):
            near = [np.abs(self._ends[i] - other)[told].max() < APART for other in out]
            if self.values[i] > limit or len(out) > MOST_RIVALS:
                break
            if not any(near):
                out.append(self._ends[i])
        return np.array([*out[1:], *self.floors]).reshape(-1, len(self.best))

    @functools.cached_property
    def floors(self) -> np.ndarray:
        """Laws [r, P] with an E that the data allow as well, where the best has none: no step of
        its logarithm leads away from there."""
        names, least = self.law.parameters, float(self.problem.log_y.min())
        at = np.array([name == "E" for name in names])
        held = self.problem.fixed_mask[at]
        if held.all() or self.best[at][0] > least + math.log(NO_FLOOR):
            return self.best[None][:0]
        theta = np.repeat(self.best[None], len(FLOORS), 0)
        theta[:, at] = least + np.log(FLOORS)[:, None]
        theta, values, _ = minimize(self.problem, theta, at)
        limit = self.value + uncertainty.allowed_rise(self.problem, self.best)
        return theta[values <= limit]

    def _resampled(self, k: int) -> np.ndarray:
        return uncertainty.bootstrap(self.problem, self.best, self.clusters, k, self.options.seed)

    @property
    def params(self) -> dict[str, float]:
        return by_parameter(self.law, self.law.report(self.best))

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """Draws of the fitted parameters [k, P] that stand for what the data leave open: the
        bootstrap, or where there are too few clusters for one, tables simulated from the law. None
        [0, P] if resamples were declined."""
        if self.draws is not None:
            return self.draws
        if self.options.bootstrap == 0:
            return self.best[None][:0]
        if self.enough and not (self.effects and self.effects.shared):
            return self._resampled(RESAMPLES)
        return self.simulate(RESAMPLES)

    def simulate(self, k: int) -> np.ndarray:
        """theta [k, P] refitted to tables that this law, with what it leaves, could have made."""
        return uncertainty.parametric_bootstrap(
            self.problem, self.best, k, self.options.seed, self.effects, self.floors
        )

    def predict(self, columns: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Response [m], interval of the law [m, 2], interval of one new run [m, 2], at m rows."""
        points = self.law.prepare({k: np.asarray(v, float) for k, v in columns.items()})
        if self.draws is None:
            intervals = uncertainty.prediction_intervals(
                self.correlated, self.best, self.value, self.rivals, points
            )
            return tuple(np.exp(part) for part in intervals)  # type: ignore[return-value]
        center = self.law.evaluate(self.best[None], points)[0][0]
        logs = self.law.evaluate(self.draws, points)[0]
        ends = np.quantile(logs, [0.025, 0.975], axis=0).T
        spread = stdtrit(max(self.problem.freedom, 1), 0.975)
        spread *= uncertainty.run_noise(self.problem, self.best)
        if self.problem.objective == "mse":
            spread = (spread / np.exp(center))[:, None]
        one = center[:, None] + np.array([-1, 1]) * np.hypot(np.abs(ends - center[:, None]), spread)
        return np.exp(center), np.exp(ends), np.exp(one)

    def at(self, column: str, x: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`predict` for a law of one column."""
        return self.predict({column: x})

    @functools.cached_property
    def profiles(self) -> list[tuple[float, float]]:
        """The profile interval of every parameter, as reported: an open end of one that is
        positive is 0 or inf."""
        intervals = uncertainty.parameter_intervals(
            self.correlated, self.best, self.value, self.rivals
        )
        out = []
        for name, (low, high) in zip(self.law.parameters, intervals, strict=True):
            if name in self.law.positive:
                low, high = math.exp(low), math.exp(high) if high < 700 else math.inf
            out.append((low, high))
        return out

    def reported_intervals(self) -> dict[str, list]:
        """The 95 % interval of every parameter: of the bootstrap, else of the profile."""
        if self.draws is None:
            ends = self.profiles
        else:
            ends = np.quantile(self.law.report(self.draws), [0.025, 0.975], axis=0).T
        return {n: finite_ends(p) for n, p in zip(self.law.parameters, ends, strict=True)}

    def parts_of(
        self, loss: float, ends: Sequence[float] | np.ndarray, floor: float | None = None
    ) -> dict[str, float | None]:
        """What the interval of a prediction is made of, as half-widths of 95 % in log loss: noise
        of a run, parameters (None where that is open), of that E alone where its share of the
        variance is known (`floor`), and nothing for the choice of the law, which is taken for
        true."""
        noise = uncertainty.run_noise(self.problem, self.best)
        noise /= loss if self.problem.objective == "mse" else 1.0
        low, high = ends
        open_ = not (math.isfinite(high) and low > 0)
        width = None if open_ else float(math.log(high / low)) / 2
        of_floor = {} if floor is None or width is None else {"floor": math.sqrt(floor) * width}
        return {"noise": NORMAL * noise, "parameters": width, "law": 0.0, **of_floor}

    def rows(self, column: str, x: Sequence[float]) -> list[dict[str, Any]]:
        if not len(x):
            return []
        loss, law, one = self.at(column, x)
        if self.law.response == "accuracy":
            most = highest_score(self.parts.fitted)
            loss, law, one = (np.minimum(ends, most) for ends in (loss, law, one))
        return [
            {
                column: float(x[i]),
                self.law.response: float(loss[i]),
                "interval": finite_ends(law[i]),
                "run_interval": finite_ends(one[i]),
                "parts": self.parts_of(float(loss[i]), law[i]),
            }
            for i in range(len(x))
        ]


def cluster_names(rows: Sequence[table.Row], column: str) -> np.ndarray:
    """The name [n] of what each row is resampled with; a row without one is on its own, and named
    by its place among the sorted rows, so that the order of the table is no matter."""
    if column != "run":
        table.require_column(rows, "cluster", column)
    names = [
        f"{i:09d}"
        if row.get(column) in (None, "") or (column == "run" and row.get(table.UNNAMED))
        else str(row[column])
        for i, row in enumerate(rows)
    ]
    return np.array(names)


def by_parameter(law: Law, values: np.ndarray) -> dict[str, float]:
    return {name: float(v) for name, v in zip(law.parameters, values, strict=True)}


def finite_ends(pair: Sequence[float] | np.ndarray) -> list[float | None]:
    """An interval for JSON: an open end is null."""
    return [float(x) if math.isfinite(x) else None for x in pair]
