"""The least of an objective, for many starts or many resamples at once, in float64.

Damped Newton steps with the law's own derivatives. Far from a minimum, and wherever Newton's matrix
does not lead down, the Gauss–Newton matrix of Huber's loss by reweighting takes its place, which
always does; near it, Newton converges in a few steps where reweighting needs hundreds. Damping is
relative to the objective's own curvature, so an objective of size 1e-3 does not meet a tolerance
long before its minimum, as it does in a general optimizer.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from research.scaling.law import Columns, Law

OBJECTIVES = ("huber_log", "mse_log", "mse")
BLOCK = 1 << 15  # fits x rows that are worked on at once: what a core's cache holds
CAUTIOUS = 30  # first steps without Newton, which from afar runs to plateaus
HOPELESS = 3.0  # times the best objective: after SURVEY steps such starts are left where they are
SURVEY = 40
LAPS = 7  # of so many steps again, at most
SMALL = 1e-14  # relative decrease, expected of a step or made, that is none
PATIENCE = 3  # steps in a row without one until a fit is left
STUCK = 1e9  # damping at which not even a tiny step leads down


@dataclass(frozen=True)
class Prior:
    """What is known of parameters beside the rows: they are normal, as they are reported. `mean`
    [q] or, each fit its own, [K, q]; `scale` is by how much the objective rises for half of a
    squared standard deviation."""

    at: np.ndarray  # the numbers of the parameters [q]
    mean: np.ndarray
    sd: np.ndarray
    scale: np.ndarray

    def off(self, law: Law, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many standard deviations parameters are off [K, q], and the derivative of that by
        the fitted ones."""
        value = law.report(theta)[:, self.at]
        logged = [law.parameters[i] in law.positive for i in self.at]
        return (value - self.mean) / self.sd, np.where(logged, value, 1.0) / self.sd

    def value(self, law: Law, theta: np.ndarray) -> np.ndarray:
        """What is added to the objective [K]."""
        return (self.scale * self.off(law, theta)[0] ** 2).sum(-1) / 2

    def derivatives(self, law: Law, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is added to the gradient [K, q], and to the diagonals of both matrices."""
        off, slope = self.off(law, theta)
        logged = [law.parameters[i] in law.positive for i in self.at]
        gauss = self.scale * slope**2
        return (
            self.scale * off * slope,
            gauss,
            gauss + np.where(logged, self.scale * off * slope, 0),
        )


@dataclass(frozen=True)
class Problem:
    """Rows to fit: what `law.prepare` makes of them (or, [K, n, ...], each fit its own), the log of
    the response [n] or [K, n], weights [n] or [K, n], and the number of the cluster [n] that each
    row belongs to (None: each is its own)."""

    law: Law
    x: np.ndarray
    log_y: np.ndarray
    weights: np.ndarray
    objective: str = "huber_log"
    delta: float = 1e-3
    fixed: tuple[str, ...] = ()  # parameters that are given and not fitted
    clusters: np.ndarray | None = None
    covariance: np.ndarray | None = None  # of the residuals [n, n], where rows share effects
    prior: Prior | None = None

    @property
    def n(self) -> int:
        return self.log_y.shape[-1]

    @property
    def fixed_mask(self) -> np.ndarray:
        """[P], true for the parameters that are not fitted."""
        return np.array([name in self.fixed for name in self.law.parameters])

    @property
    def freedom(self) -> int:
        """Degrees of freedom that are left for the noise."""
        return self.n - int((~self.fixed_mask).sum())

    def residuals(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals [K, n] and their derivative [K, P, n]."""
        return self._evaluate(theta)[:2]

    def _evaluate(self, theta: np.ndarray) -> tuple:
        log_prediction, derivative, share = self.law.evaluate(theta, self.x)
        if self.objective == "mse":
            prediction = np.exp(log_prediction)
            return prediction - np.exp(self.log_y), derivative * prediction[:, None], None
        return log_prediction - self.log_y, derivative, share

    def value(self, theta: np.ndarray) -> np.ndarray:
        """The objective [K]: the sum over rows of weight · ½r², or of Huber's loss of r; and what
        a prior adds."""
        loss = self._loss(self.residuals(theta)[0])
        return loss + self.prior.value(self.law, theta) if self.prior else loss

    def _loss(self, r: np.ndarray) -> np.ndarray:
        size = np.abs(r)
        if self.objective == "huber_log":
            loss = np.where(size <= self.delta, r * r / 2, self.delta * (size - self.delta / 2))
        else:
            loss = r * r / 2
        loss = (self.weights * loss).sum(-1)
        return np.where(np.isfinite(loss), loss, np.inf)

    def influence(self, theta: np.ndarray) -> np.ndarray:
        """The derivative of the loss of each row by its residual, without weights [K, n]."""
        r = self.residuals(theta)[0]
        return np.clip(r, -self.delta, self.delta) if self.objective == "huber_log" else r

    def derivatives(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Objective [K], gradient [K, P], reweighted Gauss–Newton and Newton matrix [K, P, P]."""
        r, j, share = self._evaluate(theta)
        w = np.broadcast_to(self.weights, r.shape)
        if self.objective == "huber_log":
            size = np.abs(r)
            slope = w * np.clip(r, -self.delta, self.delta)
            again = w * np.minimum(1.0, self.delta / np.maximum(size, 1e-300))
            curved = w * (size <= self.delta)
        else:
            slope, again, curved = w * r, w, w
        transposed = j.swapaxes(1, 2)
        gradient = (j @ slope[..., None])[..., 0]
        gauss = (j * again[:, None]) @ transposed
        if share is None:  # without the curvature of the law
            newton = gauss if curved is again else (j * curved[:, None]) @ transposed
        else:
            newton = (j * (curved - slope)[:, None]) @ transposed
            share *= slope
            newton += self._curvature(share)
        loss = self._loss(r)
        if self.prior:
            of_prior = self.prior.derivatives(self.law, theta)
            newton = newton.copy() if newton is gauss else newton
            loss = loss + self.prior.value(self.law, theta)
            at = self.prior.at
            gradient[:, at] += of_prior[0]
            gauss[:, at, at] += of_prior[1]
            newton[:, at, at] += of_prior[2]
        return loss, gradient, gauss, newton

    def _curvature(self, pull_TxKxn: np.ndarray) -> np.ndarray:
        """Σ pull · x xᵀ over rows and terms [K, P, P]."""
        *_, T, P, n = self.x.shape
        if not self.law.shared(self.x):
            return np.einsum("tkn,ktpn,ktqn->kpq", pull_TxKxn, self.x, self.x, optimize=True)
        squares = (self.x[:, :, None] * self.x[:, None]).reshape(T, P * P, n)
        return (pull_TxKxn @ squares.swapaxes(1, 2)).sum(0).reshape(-1, P, P)

    def take(self, fits: np.ndarray) -> "Problem":
        """The problem of these fits alone, where fits have rows, losses or weights of their own."""
        prior = self.prior
        if prior and prior.mean.ndim == 2:
            prior = dataclasses.replace(prior, mean=prior.mean[fits])
        return dataclasses.replace(
            self,
            x=self.x if self.law.shared(self.x) else self.x[fits],
            log_y=self.log_y if self.log_y.ndim == 1 else self.log_y[fits],
            weights=self.weights if self.weights.ndim == 1 else self.weights[fits],
            covariance=None,
            prior=prior,
        )


def minimize(
    problem: Problem,
    theta: np.ndarray,
    fixed: np.ndarray | None = None,
    iterations: int = 300,
    cautious: int = 2,
    small: float = SMALL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local minima from starts theta [K, P]: (theta [K, P], objective [K], gradient norm [K]).

    Parameters where `fixed` [P] is true stay, as do those that the problem holds, and all stay
    within the law's bounds; the gradient is that of the free ones. Exact to rounding unless
    `iterations` run out, which the gradient shows; a relative decrease of the objective by `small`
    is none. The first `cautious` steps do without Newton's matrix.
    """
    theta = np.array(theta, float)
    fixed = problem.fixed_mask if fixed is None else problem.fixed_mask | fixed
    size = max(8, BLOCK // problem.n)
    blocks = [np.arange(i, min(i + size, len(theta))) for i in range(0, len(theta), size)]

    def work(fits: np.ndarray) -> tuple:
        with np.errstate(all="ignore"):  # a step too far is refused, not feared
            return _Descent(problem.take(fits), theta[fits], fixed, cautious, small).run(iterations)

    if len(blocks) == 1:
        return work(blocks[0])
    with ThreadPoolExecutor(_cores()) as pool:  # numpy lets go of the interpreter's lock
        done = list(pool.map(work, blocks))
    return tuple(np.concatenate(parts) for parts in zip(*done))  # type: ignore[return-value]


def multistart_minimize(
    problem: Problem, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `minimize`, from starts far away: those that a survey shows to be on their way to a much
    worse minimum are not followed to its end."""
    minima = minimize(problem, theta, None, SURVEY, CAUTIOUS)
    promising = np.flatnonzero(minima[1] <= HOPELESS * minima[1].min())
    better = minimize(problem, minima[0][promising])
    for all_, some in zip(minima, better, strict=True):
        all_[promising] = some
    return minima


def least_minimum(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `multistart_minimize`, where the least of the minima is all that is asked for: others are
    followed only while, at the pace of their last steps, they could still get below it."""
    minima = minimize(problem, theta, None, SURVEY, CAUTIOUS)
    running = np.flatnonzero(minima[1] <= HOPELESS * minima[1].min())
    for left in range(LAPS, 0, -1):
        lap = minimize(problem, minima[0][running], None, SURVEY)
        fallen = minima[1][running] - lap[1]
        for all_, some in zip(minima, lap, strict=True):
            all_[running] = some
        running = running[fallen * left > lap[1] - minima[1].min()]
        if not len(running):
            break
    return minima


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Descent:
    """Fits on their way down, side by side; those that have arrived step out."""

    def __init__(
        self,
        problem: Problem,
        theta: np.ndarray,
        fixed: np.ndarray,
        cautious: int,
        small: float,
    ):
        K = len(theta)
        self.problem, self.fixed, self.cautious, self.small = problem, fixed, cautious, small
        self.low, self.high = parameter_bounds(problem.law)
        self.theta = np.where(fixed, theta, np.clip(theta, self.low, self.high))
        self.value, self.gradient, self.gauss, self.newton = problem.derivatives(self.theta)
        self.damping, self.still = np.full(K, 1e-3), np.zeros(K, int)
        self.bold = np.zeros(K, bool)  # whether Newton's matrix is used
        self.out = [theta.copy(), np.full(K, np.inf), np.full(K, np.inf)]
        self.fits = np.arange(K)

    def run(self, iterations: int) -> tuple:
        for k in range(iterations):
            self._step(k)
            if (done := (self.still >= PATIENCE) | (self.damping > STUCK)).any():
                self._leave(done)
            if not len(self.fits):
                break
        self._leave(np.ones(len(self.fits), bool))
        return tuple(self.out)

    def _free(self) -> np.ndarray:
        """[K, P], false also at a bound from which the gradient leads outward."""
        out = (self.theta <= self.low) & (self.gradient > 0)
        out |= (self.theta >= self.high) & (self.gradient < 0)
        return ~(out | self.fixed)

    def _step(self, k: int) -> None:
        free, tried = self._free(), self.damping
        gradient = np.where(free, self.gradient, 0.0)
        diagonal = np.where(free, np.einsum("kpp->kp", self.gauss), 1.0)
        floor = 1e-14 * diagonal.max(-1, keepdims=True) + 1e-300
        extra = self.damping[:, None] * (diagonal + floor) + floor
        step = self._solve(self.gauss, extra, free, gradient)
        if self.bold.any():
            bold = self._solve(self.newton, extra, free, gradient)
            down = np.isfinite(bold).all(-1) & (np.einsum("kp,kp->k", bold, gradient) < 0)
            self.bold &= down
            step = np.where(self.bold[:, None], bold, step)
        expected = -np.einsum("kp,kp->k", step, gradient) / 2
        trial = np.clip(self.theta + np.clip(step, -3, 3), self.low, self.high)
        trial = np.where(free, trial, self.theta)
        new = self.problem.derivatives(trial)
        better = new[0] < self.value
        least = self.small * self.value
        none = np.where(better, self.value - new[0] <= least, (expected <= least) & (tried < 1))
        self.still = np.where(none, self.still + 1, 0)
        calmer = np.where(self.bold, tried / 30, tried / 6)
        harder = np.where(self.bold, tried, tried * 10)
        self.damping = np.maximum(np.where(better, calmer, harder), 1e-12)
        # After a failure the other matrix is tried, from where the fit is.
        self.bold = (better | ~self.bold) & (k + 1 >= self.cautious)
        old = (self.value, self.gradient, self.gauss, self.newton)
        chosen = [_choose_rows(better, a, b) for a, b in zip(new, old, strict=True)]
        self.value, self.gradient, self.gauss, self.newton = chosen
        self.theta = _choose_rows(better, trial, self.theta)

    def _solve(
        self, matrix: np.ndarray, extra: np.ndarray, free: np.ndarray, gradient: np.ndarray
    ) -> np.ndarray:
        system = matrix * (free[:, :, None] & free[:, None, :])
        np.einsum("kpp->kp", system)[...] += np.where(free, extra, 1.0)
        system = np.where(np.isfinite(system), system, 0.0)
        try:
            return -np.linalg.solve(system, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:  # one of them is singular to the last bit
            return -(np.linalg.pinv(system) @ gradient[..., None])[..., 0]

    def _leave(self, done: np.ndarray) -> None:
        norm = np.linalg.norm(np.where(self._free(), self.gradient, 0.0), axis=-1)
        for all_, some in zip(self.out, (self.theta, self.value, norm), strict=True):
            all_[self.fits[done]] = some[done]
        stay = ~done
        self.problem = self.problem.take(stay)
        for name in ("theta", "value", "gradient", "gauss", "newton"):
            setattr(self, name, getattr(self, name)[stay])
        self.damping, self.still = self.damping[stay], self.still[stay]
        self.bold, self.fits = self.bold[stay], self.fits[stay]


def _choose_rows(choose_K: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(choose_K.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def parameter_bounds(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest fitted value of every parameter."""
    low, high = np.full(len(law.parameters), -np.inf), np.full(len(law.parameters), np.inf)
    for name, ends in law.bounds.items():
        i = law.parameters.index(name)
        logged = name in law.positive
        low[i], high[i] = np.log(ends) if logged else ends
    return low, high


def starting_points(
    problem: Problem, columns: Columns, fixed: Mapping[str, Sequence[float]] | None = None
) -> np.ndarray:
    """Starts [K, P]: every combination of `law.starts`, and for each the best non-negative values
    of the other parameters in relative squared error (variable projection), which leaves no bad
    guesses. Parameters that are `fixed` (reported values) take those instead."""
    from scipy.optimize import nnls

    law, y = problem.law, np.exp(problem.log_y)
    chosen = {n: f(columns, y) if callable(f) else f for n, f in law.starts.items()}
    chosen |= dict(fixed or {})
    linear = [name for name in law.parameters if name not in chosen]
    root = np.sqrt(problem.weights)
    out = []
    for values in itertools.product(*chosen.values()):
        point = dict(zip(chosen, map(float, values), strict=True))
        if linear:
            basis = _linear_basis(law, problem.x, point, linear)
            scale = np.maximum(basis.mean(0), 1e-300)
            relative = np.clip(basis / scale / y[:, None] * root[:, None], 0, 1e150)
            coefficients, _ = nnls(relative, root)
            # A zero would be minus infinity, from where nothing moves.
            floor = 1e-3 * y.min()
            coefficients = np.maximum(coefficients, floor) / scale
            point |= dict(zip(linear, map(float, coefficients), strict=True))
        out.append(law.fitted(np.array([point[name] for name in law.parameters])))
    return np.array(out)


def _linear_basis(
    law: Law, x: np.ndarray, point: dict[str, float], linear: list[str]
) -> np.ndarray:
    """What each linear parameter is multiplied by [n, len(linear)]: the prediction where it is one
    and the other linear ones are nothing."""
    tiny = 1e-200
    rows = [[1.0 if n == name else point.get(n, tiny) for n in law.parameters] for name in linear]
    theta = law.fitted(np.array(rows))
    with np.errstate(all="ignore"):
        basis = np.exp(law.evaluate(theta, x)[0])
    return np.where(np.isfinite(basis), basis, 0.0).T
