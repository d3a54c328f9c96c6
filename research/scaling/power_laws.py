"""Power laws of the compute-optimal size, N* = k C^a and D* = k' C^a', through located optima.

An optimum misses the line by the error of locating it and by what all runs of its budget share (a
learning rate tuned there, a batch size that no longer suits), which more seeds do not average out.
The line is therefore a random-effects regression (Berkey et al. 1995): log N* of a budget has
variance sd² + tau². The scatter tau between budgets is not estimated but integrated out, by its
restricted likelihood and a half-Cauchy prior (Gelman 2006): a few budgets cannot show that tau is
nothing, and then the interval says so. Far from the optima the exponent may be another one
(research/scaling/drift.py), which intervals of N* and D* carry.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import drift
from research.scaling.drift import Drift
from research.tables.table import PER_TOKEN

NAMES = ("params_exponent", "params_coefficient", "tokens_exponent", "tokens_coefficient")
PRIOR_SCALE = 0.1  # of the half-Cauchy prior of tau, in log N: published optima scatter by .1 to .2
SIX_ND = "6 * params * tokens"
TAUS = np.concatenate([[0.0], np.geomspace(1e-3, 3.0, 60)])


@dataclass(frozen=True)
class PowerLaws:
    """`optimal` [4] in the order of NAMES, of coefficients the logarithm; `draws` [K, 4] of what
    the data leave open; and the scatter of an optimum about its line, in log N, beyond the error of
    locating it. `convention` says how a budget C counts FLOPs. `drift` is of the line of log N*;
    what a draw of it gains, log D* changes by `along`."""

    optimal: np.ndarray
    draws: np.ndarray
    scatter: float
    convention: str = "the table's"
    drift: Drift | None = None
    along: float = -1.0

    def predict(self, c: float) -> dict[str, Any]:
        """The optimum of a budget of c FLOPs, with 95 % intervals."""
        every = np.concatenate([self.optimal[None], self.draws])
        log_n, log_d = (every[:, i] * math.log(c) + every[:, i + 1] for i in (0, 2))
        off = self._drifted(math.log(c), log_n) - log_n[1:]
        log_n[1:], log_d[1:] = log_n[1:] + off, log_d[1:] + self.along * off
        values, *draws = _exp(np.stack([log_n, log_d, log_d - log_n], axis=1))
        ends = quantiles(np.array(draws).reshape(-1, 3))
        names = ("params", "tokens", "tokens_per_param")
        return (
            {"flops": float(c)}
            | dict(zip(names, values.tolist(), strict=True))
            | {"intervals": dict(zip(names, ends, strict=True))}
        )

    def _drifted(self, log_c: float, log_n: np.ndarray) -> np.ndarray:
        """Draws [K] of log N* of a budget, whose line has `log_n` [1 + K] there, the best first."""
        k = len(log_n) - 1
        if not k or self.drift is None:
            return log_n[1:]
        at = np.array([1.0, log_c])
        if self.drift.levels.any():
            return log_n[0] + self.drift.draw(log_c, at, k, k)
        # Where no error is known, the line's own is by Student's t.
        off = self.drift.miss(at[1:], at[None])[0]
        return log_n[1:] + off * np.random.default_rng(k).standard_normal(k)

    def by_6nd(self) -> "PowerLaws":
        """The same optima, draw by draw, as powers of the budget 6 N* D*. Raises BadInput where
        that does not grow with the FLOPs of the table."""
        if not self.optimal[0] + self.optimal[2] > 0:
            raise BadInput("6 N* D* of its power laws does not grow with the FLOPs of the table")
        walk, (a, log_k, b, log_l) = self.drift, self.optimal
        if walk:
            log_c = math.log(PER_TOKEN) + log_k + log_l + (a + b) * walk.log_c
            walk = replace(walk, log_c=log_c, jacobian=_of_line(log_c), slope=a / (a + b))
        return PowerLaws(_in_6nd(self.optimal), _in_6nd(self.draws), self.scatter, SIX_ND, walk)

    def summary(self) -> dict[str, Any]:
        """The sections "params", "intervals", "standard_errors" and "optimal" of fit.json."""
        exponents = np.array([not name.endswith("coefficient") for name in NAMES])
        every = np.concatenate([self.optimal[None], self.draws])
        every = np.where(exponents, every, _exp(every))
        values: dict[str, Any] = dict(zip(NAMES, every[0].tolist(), strict=True))
        intervals: dict[str, Any] = dict(zip(NAMES, quantiles(every[1:]), strict=True))
        with np.errstate(all="ignore"):  # coefficients may span hundreds of decades
            spread = every[1:].std(0, ddof=1) if len(every) > 2 else np.full(len(NAMES), np.nan)
        spread = [float(x) if np.isfinite(x) else None for x in spread]
        return {
            "params": values,
            "intervals": intervals,
            "standard_errors": dict(zip(NAMES, spread, strict=True)),
            "optimal": {**values, "intervals": intervals, "flops_convention": self.convention},
        }


def _in_6nd(laws: np.ndarray) -> np.ndarray:
    """Laws [..., 4] of C as those of C' = 6 N* D* = 6 k k' C^(a + a')."""
    a, log_k, b, log_l = np.moveaxis(laws, -1, 0)
    with np.errstate(all="ignore"):
        each, at_one = a + b, math.log(PER_TOKEN) + log_k + log_l
        lines = [a / each, log_k - a / each * at_one, b / each, log_l - b / each * at_one]
    return np.stack(lines, axis=-1)


def random_effects(
    log_c: np.ndarray,
    log_n: np.ndarray,
    log_d: np.ndarray,
    sd: np.ndarray,
    floor: np.ndarray,
    tokens_slope: np.ndarray,
    freedom: int | None,
    k: int,
    seed: int,
) -> PowerLaws:
    """The power laws through optima [M] located within sd [M] in log N.

    An optimum weighs 1 / (max(sd, floor)² + tau²): none decides the line because its own error
    seems small. `tokens_slope` [M] is d log D / d log N within the budget (-1 where FLOPs are
    6 N D), so that a draw of N* has its D*. `freedom` counts the degrees of freedom from which the
    noise behind `sd` is known; None: it is given.
    """
    rng = np.random.default_rng(seed)
    factor = np.ones(max(k, 1))
    if freedom and k:  # the noise itself is known within a chi-squared
        factor = np.sqrt(freedom / rng.chisquare(freedom, k))
    sd_KxM = np.outer(factor, sd)
    center = log_c.mean()
    x = log_c - center
    posterior = _scatter_posterior(x, log_n, sd_KxM)
    tau = float(np.sqrt(np.mean(posterior @ TAUS**2)))
    weights = 1 / (np.maximum(sd, floor) ** 2 + tau**2)
    n, d = (np.array(_weighted_line(x, y, weights)) for y in (log_n, log_d))
    drawn = np.empty((0, 2))
    if k:
        chosen = (posterior.cumsum(1) > rng.random(k)[:, None]).argmax(1)
        errors = rng.standard_normal(sd_KxM.shape) * np.sqrt(sd_KxM**2 + TAUS[chosen, None] ** 2)
        drawn = n + np.stack(_weighted_line(x, errors, weights), -1)
    along = float(np.average(tokens_slope, weights=weights))
    walk = _drift_of(n, log_c, log_n, drift.levels(sd, freedom))
    return _assemble(n, d, drawn, d + along * (drawn - n), center, tau, walk, along)


def _drift_of(
    line: np.ndarray, log_c: np.ndarray, log_n: np.ndarray, levels_SxM: np.ndarray
) -> Drift:
    """The drift of (slope, level at the mean of log C) through optima known to any of S levels."""
    slope, level = line
    off = log_n - level - slope * (log_c - log_c.mean())
    return Drift(log_c, _of_line(log_c), off, levels_SxM, slope, PRIOR_SCALE)


def _of_line(log_c: np.ndarray) -> np.ndarray:
    """Derivatives [M, 2] of a line by its level and slope."""
    return np.stack([np.ones(len(log_c)), log_c], 1)


def least_squares(
    log_c: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, k: int, seed: int
) -> PowerLaws:
    """The power laws through optima [M] of which no error is known: least squares, and draws of
    Student's t with M - 2 degrees of freedom about it."""
    rng, freedom = np.random.default_rng(seed), len(log_c) - 2
    center = log_c.mean()
    x = np.stack([log_c - center, np.ones(len(log_c))], axis=1)
    y = np.stack([log_n, log_d], axis=1)
    best_2x2, *_ = np.linalg.lstsq(x, y)
    # Sizes and tokens miss their lines together (where N D is given, one by as much as the other).
    errors = y - x @ best_2x2
    size, axes = np.linalg.eigh(errors.T @ errors / freedom)
    root = axes * np.sqrt(np.maximum(size, 0))
    z = rng.standard_normal((k, 2, 2)) / np.sqrt((x * x).sum(0))[:, None] @ root.T
    drawn = best_2x2 + z * np.sqrt(freedom / rng.chisquare(freedom, k))[:, None, None]
    scatter = float(np.sqrt((errors[:, 0] ** 2).sum() / freedom))
    n, d = best_2x2[:, 0], best_2x2[:, 1]
    walk = _drift_of(n, log_c, log_n, np.zeros((1, len(log_c))))
    return _assemble(n, d, drawn[..., 0], drawn[..., 1], center, scatter, walk, -1.0)


def wider(one: PowerLaws, other: PowerLaws) -> PowerLaws:
    """The first, with the draws of that whose exponent is the less certain, without a drift: for
    the many resamples of an envelope, whose lines differ by more."""
    spread = [np.ptp(np.quantile(p.draws[:, 0], [0.025, 0.975])) if len(p.draws) else 0.0
              for p in (one, other)]  # fmt: skip
    return PowerLaws(one.optimal, (one, other)[int(spread[1] > spread[0])].draws, other.scatter)


def _assemble(
    n: np.ndarray,
    d: np.ndarray,
    n_Kx2: np.ndarray,
    d_Kx2: np.ndarray,
    center: float,
    tau: float,
    walk: Drift,
    along: float,
) -> PowerLaws:
    """From (slope, level at the center) of both lines to exponents and log coefficients."""

    def laws(lines: np.ndarray) -> np.ndarray:
        slope, level = lines[..., 0], lines[..., 1]
        return np.stack([slope, level - slope * center], -1)

    draws = np.concatenate([laws(n_Kx2), laws(d_Kx2)], -1)
    optimal = np.concatenate([laws(n), laws(d)])
    return PowerLaws(optimal, draws, tau, drift=walk, along=along)


def _scatter_posterior(x: np.ndarray, y: np.ndarray, sd_KxM: np.ndarray) -> np.ndarray:
    """The posterior [K, G] of every tau of TAUS, for every level of noise."""
    variance = sd_KxM[:, None] ** 2 + TAUS[:, None] ** 2
    weights = 1 / variance
    s0, s1, s2 = (np.sum(weights * x**p, -1) for p in range(3))
    b0, b1 = (np.sum(weights * y * x**p, -1) for p in range(2))
    det = s0 * s2 - s1**2
    slope, level = (s0 * b1 - s1 * b0) / det, (s2 * b0 - s1 * b1) / det
    r = y - level[..., None] - slope[..., None] * x
    ends = np.concatenate([[0.0], (TAUS[1:] + TAUS[:-1]) / 2, TAUS[-1:]])
    prior = np.log(np.diff(ends)) - np.log1p((TAUS / PRIOR_SCALE) ** 2)
    misfit = np.log(variance).sum(-1) + np.log(det) + (weights * r * r).sum(-1)
    p = np.exp(prior - misfit / 2 - (prior - misfit / 2).max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _weighted_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple:
    """(slope, level at x = 0) of weighted least squares through y [..., M]."""
    mean = np.average(x, weights=weights)
    along = weights * (x - mean)
    slope = y @ along / (along @ (x - mean))
    return slope, y @ weights / weights.sum() - slope * mean


def _exp(logs: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(logs)


def quantiles(draws_KxM: np.ndarray) -> list[list[float | None]]:
    """The 95 % interval of each column; open without draws, and where an end is beyond all
    numbers."""
    if not len(draws_KxM):
        return [[None, None] for _ in range(draws_KxM.shape[1])]
    ends = np.quantile(draws_KxM, [0.025, 0.975], axis=0, method="nearest").T
    return [[float(x) if np.isfinite(x) else None for x in pair] for pair in ends]
