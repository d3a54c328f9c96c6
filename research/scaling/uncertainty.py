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

PINNED = 300  # relative weight of a row that a fit passes through: off it by under 1e-4 of a width,
# while a stiffer one would keep the solver from moving along it
PASSES = 80  # of a refit; those that need more are far beyond the limit


def freedom(problem: Problem) -> int:
    """Degrees of freedom that are left for the noise."""
    return problem.terms.shape[0] - problem.terms.shape[2]


def noise(problem: Problem, theta: np.ndarray) -> float:
    """Standard deviation of one run about the law, in the units of the residuals."""
    r = problem.residuals(theta[None])[0][0]
    return float(np.sqrt(np.sum(problem.weights * r * r) / max(freedom(problem), 1)))


def _rise(problem: Problem, level: float) -> float:
    nu = freedom(problem)
    return 1 + float(stats.t.ppf((1 + level) / 2, nu)) ** 2 / nu


def parameter_interval(
    problem: Problem, best: np.ndarray, value: float, index: int, level: float = 0.95
) -> tuple[float, float]:
    """The profile interval of theta[index]; an end is ±inf where the data do not bound it."""
    fixed = np.arange(len(best)) == index

    def profile(targets_1xF: np.ndarray) -> np.ndarray:
        theta = np.repeat(best[None], targets_1xF.size, 0)
        theta[:, index] = targets_1xF[0]
        return minimise(problem, theta, fixed, PASSES)[1][None]

    width = 1.0 if problem.law.parameters[index] in problem.law.logged else 0.3 * abs(best[index])
    limit = value * _rise(problem, level)
    low, high = _bracket(profile, best[index : index + 1], max(width, 1e-3), limit)[0]
    return float(low), float(high)


def prediction_intervals(
    problem: Problem, best: np.ndarray, value: float, terms: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For points with `terms` [m, T, P]: log L [m], the interval of the law there [m, 2], and the
    interval of the loss of one new run there [m, 2], which has the noise of a run as well."""
    centre = problem.law.log_prediction(best[None], terms)[0][0]
    reach = noise(problem, best)

    def profile(targets_MxF: np.ndarray) -> np.ndarray:
        """The objective of the best laws that pass through these log losses at the points."""
        m, f = targets_MxF.shape
        rows = np.broadcast_to(problem.terms, (m * f, *problem.terms.shape))
        row = np.repeat(terms, f, 0)[:, None]
        y = np.broadcast_to(problem.log_loss, (m * f, len(problem.log_loss)))
        held = dataclasses.replace(
            problem,
            terms=np.concatenate([rows, row], axis=1),
            log_loss=np.concatenate([y, targets_MxF.reshape(-1, 1)], axis=1),
            weights=np.concatenate([problem.weights, [PINNED * problem.weights.sum()]]),
        )
        theta = minimise(held, np.repeat(best[None], m * f, 0), None, PASSES)[0]
        return problem.value(theta).reshape(m, f)

    limit = value * _rise(problem, level)
    law = _bracket(profile, centre, max(reach, 1e-6), limit)
    spread = stats.t.ppf((1 + level) / 2, freedom(problem)) * reach
    if problem.objective == "mse":  # noise in nats, here wanted in log loss
        spread = (spread / np.exp(centre))[:, None]
    one_run = np.hypot(np.abs(law - centre[:, None]), spread)
    return centre, law, centre[:, None] + np.array([-1, 1]) * one_run


def _bracket(
    profile: Callable[[np.ndarray], np.ndarray], centre_M: np.ndarray, width: float, limit: float
) -> np.ndarray:
    """[m, 2]: where `profile` first exceeds `limit` below and above each centre; ±inf if nowhere.

    Each pass evaluates a fan of targets [m, F] at once; the first is geometric, since nobody knows
    how far the ends are, and two more divide the step in which the limit was passed.
    """
    fan = np.concatenate([[0.0], width * 2.0 ** np.arange(-5, 8)])
    ends = []
    for side in (-1.0, 1.0):
        low = np.broadcast_to(fan, (len(centre_M), len(fan)))
        open_end = np.zeros(len(centre_M), bool)
        for _ in range(3):
            above = profile(centre_M[:, None] + side * low[:, 1:]) > limit
            open_end |= ~above.any(1)
            first = np.argmax(above, axis=1)
            start, stop = (np.take_along_axis(low, (first + d)[:, None], 1) for d in (0, 1))
            low = start + (stop - start) * np.linspace(0, 1, 12)
        end = centre_M + side * low[:, 6]
        ends.append(np.where(open_end, side * np.inf, end))
    return np.stack(ends, axis=-1)


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
