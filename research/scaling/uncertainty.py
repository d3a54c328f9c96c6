"""How far the data let a parameter or a prediction move.

Profile likelihood: fix what is asked about, refit everything else, and see where the objective has
risen too far. With s² = 2·(least objective)/(n − P) estimated from the same rows, the 95 % interval
ends where the objective has grown by a factor 1 + t²/(n − P), t the quantile of Student's
distribution with n − P degrees of freedom. A handful of runs is enough for it, and a side on which
the objective never rises that far is reported as open, which no standard error can say.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import stats

from research.scaling.solve import Problem, minimise

PINNED = 1e6  # weight of a row that a fit must pass through


def freedom(problem: Problem) -> int:
    """Degrees of freedom that are left for the noise."""
    return problem.terms.shape[0] - problem.terms.shape[2]


def noise(problem: Problem, theta: np.ndarray) -> float:
    """Standard deviation of one run about the law, in the units of the residuals."""
    r = problem.residuals(theta[None])[0][0]
    return float(np.sqrt(np.sum(problem.weights * r * r) / max(freedom(problem), 1)))


def _rise(problem: Problem, level: float) -> float:
    nu = freedom(problem)
    return 1 + stats.t.ppf((1 + level) / 2, nu) ** 2 / nu


def parameter_interval(
    problem: Problem, best: np.ndarray, value: float, index: int, level: float = 0.95
) -> tuple[float, float]:
    """The profile interval of theta[index]; an end is ±inf where the data do not bound it."""
    fixed = np.arange(len(best)) == index

    def profile(targets: np.ndarray) -> np.ndarray:
        theta = np.repeat(best[None], len(targets), 0)
        theta[:, index] = targets
        return minimise(problem, theta, fixed, 200)[1]

    width = 1.0 if problem.law.parameters[index] in problem.law.logged else 0.3 * abs(best[index])
    return _bracket(profile, float(best[index]), max(width, 1e-3), value * _rise(problem, level))


def prediction_intervals(
    problem: Problem, best: np.ndarray, value: float, terms: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For points with `terms` [m, T, P]: log L [m], the interval of the law there [m, 2], and the
    interval of the loss of one new run there [m, 2], which has the noise of a run as well."""
    centre = problem.law.log_prediction(best[None], terms)[0][0]
    limit = value * _rise(problem, level)
    reach = noise(problem, best)
    law = np.array(
        [
            _bracket(_pinned(problem, best, row), float(c), max(reach, 1e-6), limit)
            for row, c in zip(terms, centre, strict=True)
        ]
    ).reshape(len(terms), 2)
    spread = stats.t.ppf((1 + level) / 2, freedom(problem)) * reach
    if problem.objective == "mse":  # noise in nats, here wanted in log loss
        spread = (spread / np.exp(centre))[:, None]
    one_run = np.hypot(np.abs(law - centre[:, None]), spread)
    return centre, law, centre[:, None] + np.array([-1, 1]) * one_run


def _pinned(problem: Problem, best: np.ndarray, row: np.ndarray) -> Callable:
    """The objective of the best law that passes through a log loss at one more point."""

    def profile(targets: np.ndarray) -> np.ndarray:
        k = len(targets)
        y = np.concatenate([np.repeat(problem.log_loss[None], k, 0), targets[:, None]], axis=1)
        held = dataclasses.replace(
            problem,
            terms=np.concatenate([problem.terms, row[None]]),
            log_loss=y,
            weights=np.concatenate([problem.weights, [PINNED * problem.weights.sum()]]),
        )
        return problem.value(minimise(held, np.repeat(best[None], k, 0), None, 300)[0])

    return profile


def _bracket(
    profile: Callable[[np.ndarray], np.ndarray], centre: float, width: float, limit: float
) -> tuple[float, float]:
    """Where `profile` first exceeds `limit` below and above `centre`, to 1e-4 of the width found.

    Each pass evaluates a fan of points at once; the first is geometric, since nobody knows how far.
    """
    ends = []
    for side in (-1.0, 1.0):
        fan = width * 2.0 ** np.arange(-6, 8)
        above = profile(centre + side * fan) > limit
        if not above.any():
            ends.append(side * np.inf)
            continue
        first = int(np.argmax(above))
        low, high = (fan[first - 1] if first else 0.0), fan[first]
        for _ in range(3):
            inner = np.linspace(low, high, 18)
            above = profile(centre + side * inner[1:-1]) > limit
            first = int(np.argmax(above)) if above.any() else 16
            low, high = inner[first], inner[first + 1]
        ends.append(centre + side * (low + high) / 2)
    return ends[0], ends[1]


def bootstrap(
    problem: Problem, best: np.ndarray, clusters: np.ndarray, k: int, seed: int
) -> np.ndarray:
    """theta [k, P] refitted to resamples of whole clusters [n], drawn with replacement.

    Checkpoints of one run are not independent: resampling them as if they were makes the intervals
    too narrow. A resample is a row's weight times how often its cluster was drawn.
    """
    names, member = np.unique(clusters, return_inverse=True)
    draws = np.random.default_rng(seed).integers(len(names), size=(k, len(names)))
    counts = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws])
    resampled = dataclasses.replace(problem, weights=problem.weights * counts[:, member])
    return minimise(resampled, np.repeat(best[None], k, 0))[0]
