"""How far the data let a parameter or a prediction move.

Profile likelihood: fix what is asked about, refit everything else, and see where the objective has
risen too far. The 95 % interval ends where it has risen by ½ t² · var(ψ) / mean(ψ'), with ψ the
derivative of the loss of a row by its residual, and t the quantile of Student's distribution with
n - P degrees of freedom. For squares that is ½ t² s², s² the variance of the rows about the law;
for Huber's loss it is what makes the rise right for rows whose noise is larger than delta (Heritier
and Ronchetti 1994), with Huber's correction for few rows (1973, section 4). Rows of one cluster err
together: the rise then grows by their design effect (Moulton 1986), and clusters are counted in
place of rows. Where there are MANY runs, noise that is not the same for all is seen, and what is
asked about gets the rise of its own direction, by the sandwich of White (1980), if that is more. A
handful of runs is enough for a profile, and a side on which the objective never rises that far is
reported as open, which no standard error can say.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from research.scaling.effects import Effects
from research.scaling.optimize import Prior, Problem, minimize
from research.scaling.statistics import find_outliers

PINNED = 20  # relative weight of a row that a fit passes through: off it by under 1 % of a width,
# while a stiffer one keeps the solver from moving along it
PASSES = 100  # steps of a refit; those that need more are far beyond the limit
OF_A_DRAW = 1e-9  # relative decrease that is none: what is left of it is some ten thousandth of a
# standard deviation of what is drawn
LEVEL = 0.95  # of every interval
MANY = 30  # clusters, from which on their scores tell how noise differs between rows


def run_noise(problem: Problem, theta: np.ndarray) -> float:
    """Standard deviation of one run about the law, in the units of the residuals. What Huber's loss
    keeps out of the law, outliers are kept out of here."""
    r = _weighted_residuals(problem, theta)
    squares = r[~outliers(problem, theta)] ** 2
    fitted = problem.n - problem.freedom
    return float(np.sqrt(np.sum(squares) / max(len(squares) - fitted, 1)))


def outliers(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Which rows [n] are outliers that Huber's loss keeps out of the law; none for squares."""
    if problem.objective != "huber_log":
        return np.zeros(problem.n, bool)
    return find_outliers(_weighted_residuals(problem, theta), problem.n - problem.freedom)[1]


def _weighted_residuals(problem: Problem, theta: np.ndarray) -> np.ndarray:
    weights = problem.weights / problem.weights.mean()  # 100 for every row is as 1 for every row
    return np.sqrt(weights) * problem.residuals(theta[None])[0][0]


def allowed_rise(problem: Problem, theta: np.ndarray, level: float = LEVEL) -> float:
    """By how much the objective may exceed its least value within the interval."""
    pull = np.sqrt(problem.weights) * problem.influence(theta[None])[0]
    count, freedom = _count_clusters(problem)
    t = float(stdtrit(freedom, (1 + level) / 2))
    variance = float(np.mean(pull**2)) * count / freedom * design_effect(problem, pull)
    return t * t / 2 * variance / _mean_curvature(problem, theta)


def _count_clusters(problem: Problem) -> tuple[int, int]:
    """How many clusters there are, and how many degrees of freedom they leave."""
    count = problem.n if problem.clusters is None else int(problem.clusters.max()) + 1
    return count, max(problem.freedom - problem.n + count, 1)


def allowed_rises(
    problem: Problem, theta: np.ndarray, along_MxP: np.ndarray, level: float
) -> np.ndarray:
    """`allowed_rise` [m] for functions of the parameters with these derivatives."""
    equal, (count, freedom) = allowed_rise(problem, theta, level), _count_clusters(problem)
    if count < MANY and problem.covariance is None:
        return np.full(len(along_MxP), equal)
    free = ~problem.fixed_mask
    j_PxN = problem.residuals(theta[None])[1][0][free]
    weighted = j_PxN * problem.weights
    bread = weighted @ j_PxN.T * _mean_curvature(problem, theta)
    away = np.linalg.pinv(bread, hermitian=True) @ along_MxP[:, free].T
    equal = equal * _shared_error_factor(problem, theta, weighted.T @ away)
    if count < MANY:
        return equal
    scores = weighted * problem.influence(theta[None])[0]
    if problem.clusters is not None:
        scores = np.stack([np.bincount(problem.clusters, row) for row in scores])
    meat = np.sum((scores.T @ away) ** 2, 0) * count / freedom
    t = float(stdtrit(freedom, (1 + level) / 2))
    plain = np.sum(along_MxP[:, free].T * away, 0)
    with np.errstate(all="ignore"):
        own = t * t / 2 * meat / plain
    return np.where(np.isfinite(own), np.maximum(own, equal), equal)


def _shared_error_factor(problem: Problem, theta: np.ndarray, pull_NxM: np.ndarray) -> np.ndarray:
    """By how much the variance [m] of what the rows pull on grows, since they share effects."""
    if problem.covariance is None:
        return np.ones(pull_NxM.shape[1])
    weights = np.maximum(problem.weights / problem.weights.mean(), 1e-12)
    shared = np.sum(pull_NxM * (problem.covariance @ pull_NxM), 0)
    alone = np.sum(pull_NxM**2 / weights[:, None], 0) * run_noise(problem, theta) ** 2
    with np.errstate(all="ignore"):
        factor = shared / alone
    return np.where(np.isfinite(factor), np.maximum(factor, 1.0), 1.0)


def design_effect(problem: Problem, pull: np.ndarray) -> float:
    """By how much the variance grows since rows of one cluster err together."""
    if problem.clusters is None or not pull.any():
        return 1.0
    sums = np.bincount(problem.clusters, pull)
    return max(1.0, float(np.sum(sums**2) / np.sum(pull**2)))


def _mean_curvature(problem: Problem, theta: np.ndarray) -> float:
    """The mean of ψ': one for squares. For Huber's loss, the share of rows within delta, estimated
    from a wider neighborhood where delta is narrow and few rows would be counted, and divided by
    1 + P/n var(ψ') / mean(ψ')², since a fit to few rows passes nearer to them than the law does."""
    if problem.objective != "huber_log":
        return 1.0
    size = np.abs(problem.residuals(theta[None])[0][0])
    spread = 1.4826 * float(np.median(size))
    width = max(problem.delta, spread * len(size) ** -0.2)
    share = max(float(np.mean(size <= width)), 1 / len(size))
    nearer = 1 + (problem.n - problem.freedom) / problem.n * (1 - share) / share
    return share * problem.delta / width / nearer


def parameter_intervals(
    problem: Problem,
    best: np.ndarray,
    value: float,
    rivals: np.ndarray,
) -> list[tuple[float, float]]:
    """The profile interval of each fitted parameter; an end is ±inf where the data leave it open.
    That of one that is held is its value. It reaches over `rivals` [r, P], other minima that the
    data allow."""
    limits = value + allowed_rises(problem, best, np.eye(len(best)), LEVEL)
    out = []
    for i, name in enumerate(problem.law.parameters):
        if problem.fixed_mask[i]:
            out.append((float(best[i]), float(best[i])))
            continue
        width = 1.0 if name in problem.law.positive else 0.3 * abs(best[i])
        ends = [
            _bracket_ends(
                lambda targets, i=i, begun=begun: _profile_objective(problem, begun, i, targets),
                begun[i : i + 1], max(width, 1e-3), limits[i],
            )[0]
            for begun in (best, *rivals)
        ]  # fmt: skip
        out.append((float(min(low for low, _ in ends)), float(max(high for _, high in ends))))
    return out


def _profile_objective(
    problem: Problem, best: np.ndarray, i: int, targets_1xF: np.ndarray
) -> np.ndarray:
    """The least objective [1, F] with parameter i at each target."""
    theta = np.repeat(best[None], targets_1xF.size, 0)
    theta[:, i] = targets_1xF[0]
    return minimize(problem, theta, np.arange(len(best)) == i, PASSES)[1][None]


def prediction_intervals(
    problem: Problem,
    best: np.ndarray,
    value: float,
    rivals: np.ndarray,
    points: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For points (what `law.prepare` makes of m rows): the log prediction [m], the interval of the
    law there [m, 2], and that of one new run there [m, 2], which has the noise of a run as well."""
    center = problem.law.evaluate(best[None], points)[0][0]
    reach = run_noise(problem, best)
    m = points.shape[-1]

    def profile(targets_MxF: np.ndarray, starts: Sequence[np.ndarray] = ()) -> np.ndarray:
        """The objective of the best laws that pass through these log predictions at the points."""
        fits = targets_MxF.size
        at = np.repeat(np.arange(m), targets_MxF.shape[1])
        rows = np.broadcast_to(problem.x, (fits, *problem.x.shape))
        row = np.moveaxis(points[..., at], -1, 0)[..., None]
        y = np.broadcast_to(problem.log_y, (fits, problem.n))
        constrained = dataclasses.replace(
            problem,
            x=np.concatenate([rows, row], axis=-1),
            log_y=np.concatenate([y, targets_MxF.reshape(-1, 1)], axis=1),
            weights=np.concatenate([problem.weights, [PINNED * problem.weights.sum()]]),
        )
        least = np.inf
        for begun in starts or (best, *rivals):
            theta = minimize(constrained, np.repeat(begun[None], fits, 0), None, PASSES)[0]
            least = np.minimum(least, problem.value(theta))
        return np.reshape(least, targets_MxF.shape)

    limit = value + allowed_rises(
        problem, best, problem.law.evaluate(best[None], points)[1][0].T, LEVEL
    )
    if problem.fixed_mask.all():  # nothing is left open
        law = np.stack([center, center], 1)
    else:
        law = _bracket_ends(profile, center, max(reach, 1e-6), limit[:, None])
    for rival in rivals:  # is allowed itself, where no steps from the best lead to it
        there = problem.law.evaluate(rival[None], points)[0][0]
        if ((law[:, 0] <= there) & (there <= law[:, 1])).all():
            continue
        ends = _bracket_ends(
            lambda targets, rival=rival: profile(targets, [rival]),
            there, max(reach, 1e-6), limit[:, None],
        )  # fmt: skip
        law = np.stack([np.minimum(law[:, 0], ends[:, 0]), np.maximum(law[:, 1], ends[:, 1])], 1)
    spread = stdtrit(max(problem.freedom, 1), (1 + LEVEL) / 2) * reach
    if problem.objective == "mse":  # noise in the units of the loss, here wanted in log loss
        spread = (spread / np.exp(center))[:, None]
    one_run = np.hypot(np.abs(law - center[:, None]), spread)
    return center, law, center[:, None] + np.array([-1, 1]) * one_run


def _bracket_ends(
    profile: Callable[[np.ndarray], np.ndarray],
    center_M: np.ndarray,
    width: float,
    limit: float | np.ndarray,
) -> np.ndarray:
    """[m, 2]: where `profile` first exceeds `limit` below and above each center; ±inf if nowhere.

    Each pass evaluates a fan of targets [m, F] at once; the first is geometric, since nobody knows
    how far the ends are, and two more divide the step in which the limit was passed.
    """
    fan = np.concatenate([[0.0], width * 2.0 ** np.arange(-5, 8)])
    ends = []
    for side in (-1.0, 1.0):
        low = np.broadcast_to(fan, (len(center_M), len(fan)))
        open_end = np.zeros(len(center_M), bool)
        for _ in range(3):
            above = profile(center_M[:, None] + side * low[:, 1:]) > limit
            open_end |= ~above.any(1)
            first = np.argmax(above, axis=1)
            start, stop = (np.take_along_axis(low, (first + d)[:, None], 1) for d in (0, 1))
            low = start + (stop - start) * np.linspace(0, 1, 12)
        end = center_M + side * low[:, 6]
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
    weights = problem.weights * counts[:, member]
    prior = _drawn_prior(problem.prior, problem.prior.mean, k, seed) if problem.prior else None
    resampled = dataclasses.replace(problem, weights=weights, prior=prior)
    return minimize(resampled, np.repeat(best[None], k, 0), small=OF_A_DRAW)[0]


def parametric_bootstrap(
    problem: Problem,
    best: np.ndarray,
    k: int,
    seed: int,
    effects: Effects | None = None,
    others: Sequence[np.ndarray] | np.ndarray = (),
) -> np.ndarray:
    """theta [k, P] refitted, from the best and `others` [r, P], to tables simulated from the law
    with the noise of a run and, where there are any, with what rows share. Of MANY rows, each keeps
    the size of its own residual, since noise may differ between them (Wu 1986)."""
    rng = np.random.default_rng(seed)
    center = problem.law.evaluate(best[None], problem.x)[0][0]
    noise = rng.standard_normal((k, problem.n))
    if effects is None:
        pull = np.sqrt(problem.weights) * problem.influence(best[None])[0]
        noise *= run_noise(problem, best) * math.sqrt(design_effect(problem, pull))
        shared = np.zeros_like(noise)
    else:
        shared, reach = effects.draw(k, rng)
        noise *= reach[:, None]
    if problem.n >= MANY:
        size = np.abs(problem.residuals(best[None])[0][0])
        noise *= size / max(float(np.sqrt(np.mean(size**2))), 1e-300)
    if problem.objective == "mse" and effects is None:
        y = np.log(np.maximum(np.exp(center) + noise, 1e-6 * math.exp(center.min())))
    else:
        y = center + shared + noise / np.sqrt(np.maximum(problem.weights, 1e-12))
    prior = problem.prior
    if prior:  # the tables are of this law, and so is what is known of it beside them
        prior = _drawn_prior(prior, problem.law.report(best)[prior.at], k, seed)
    simulated = dataclasses.replace(problem, log_y=y, prior=prior)
    theta, values, _ = minimize(simulated, np.repeat(best[None], k, 0), small=OF_A_DRAW)
    for begun in others:
        other, less, _ = minimize(simulated, np.repeat(begun[None], k, 0), small=OF_A_DRAW)
        theta = np.where((less < values)[:, None], other, theta)
        values = np.minimum(values, less)
    return theta


def _drawn_prior(prior: Prior, center: np.ndarray, k: int, seed: int) -> Prior:
    """A prior whose means [k, q] err as it says, for fits that are as uncertain as it is."""
    noise = np.random.default_rng((seed, k)).standard_normal((k, len(center)))
    return dataclasses.replace(prior, mean=center + prior.sd * noise)
