"""The least of an objective, for many starts or many resamples at once.

Damped Gauss–Newton (Levenberg–Marquardt) in float64 with the law's own derivative; Huber's loss by
reweighting. Residuals are divided by a scale first: an objective of size 1e-3 meets the default
tolerances of a general optimizer long before its minimum.
"""

from dataclasses import dataclass

import numpy as np

from research.scaling.laws import Law

OBJECTIVES = ("huber_log", "mse_log", "mse")


@dataclass(frozen=True)
class Problem:
    """Rows to fit: terms [n, T, P], log loss [n] (or [K, n], one for each fit), weights [n]."""

    law: Law
    terms: np.ndarray
    log_loss: np.ndarray
    weights: np.ndarray
    objective: str = "huber_log"
    delta: float = 1e-3

    def residuals(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals [K, n] and their derivative [K, n, P]."""
        log_prediction, derivative = self.law.log_prediction(theta, self.terms)
        if self.objective == "mse":
            prediction = np.exp(log_prediction)
            return prediction - np.exp(self.log_loss), derivative * prediction[..., None]
        return log_prediction - self.log_loss, derivative

    def value(self, theta: np.ndarray) -> np.ndarray:
        """The objective [K]: the sum over rows of weight · ½r², or of Huber's loss of r."""
        return self._loss(self.residuals(theta)[0])

    def _loss(self, r: np.ndarray) -> np.ndarray:
        size = np.abs(r)
        if self.objective == "huber_log":
            loss = np.where(size <= self.delta, r * r / 2, self.delta * (size - self.delta / 2))
        else:
            loss = r * r / 2
        return (self.weights * loss).sum(-1)

    def derivatives(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objective [K], gradient [K, P], Gauss–Newton matrix [K, P, P] of the reweighted rows."""
        r, j = self.residuals(theta)
        w = np.broadcast_to(self.weights, r.shape)
        if self.objective == "huber_log":
            w = w * np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-300))
        gradient = np.einsum("knp,kn->kp", j, w * r)
        matrix = np.einsum("knp,kn,knq->kpq", j, w, j)
        return self._loss(r), gradient, matrix


def minimise(
    problem: Problem, theta: np.ndarray, fixed: np.ndarray | None = None, iterations: int = 500
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local minima from starts theta [K, P]: (theta [K, P], objective [K], gradient norm [K]).

    Parameters where `fixed` [P] is true stay. Exact to rounding unless `iterations` run out, which
    the gradient norm shows.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a step too far is refused, not feared
        return _descend(problem, np.array(theta, float), fixed, iterations)


def _descend(
    problem: Problem, theta: np.ndarray, fixed: np.ndarray | None, iterations: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    free = np.ones(theta.shape[1]) if fixed is None else (~fixed).astype(float)
    damping = np.full(len(theta), 1e-3)
    value, gradient, matrix = problem.derivatives(theta)
    still = np.zeros(len(theta), int)
    for _ in range(iterations):
        gradient *= free
        diagonal = np.einsum("kpp->kp", matrix) * free + (1 - free)
        floor = 1e-12 * diagonal.max(-1, keepdims=True) + 1e-300
        system = matrix * free[:, None] * free[None, :]
        np.einsum("kpp->kp", system)[...] = (1 + damping[:, None]) * (diagonal + floor)
        step = -np.linalg.solve(system, gradient[..., None])[..., 0]
        step = np.clip(step, -3, 3)
        trial = theta + step
        new_value, new_gradient, new_matrix = problem.derivatives(trial)
        better = new_value < value
        still = np.where(better & (value - new_value > 1e-15 * value), 0, still + 1)
        theta = np.where(better[:, None], trial, theta)
        gradient = np.where(better[:, None], new_gradient, gradient)
        matrix = np.where(better[:, None, None], new_matrix, matrix)
        value = np.where(better, new_value, value)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        if (still > 12).all():
            break
    return theta, value, np.linalg.norm(gradient * free, axis=-1)


def starts(problem: Problem) -> np.ndarray:
    """Starts [K, P]: every combination of the law's exponents, and for each the best non-negative
    coefficients in relative squared error (variable projection), which leaves no bad guesses."""
    from scipy.optimize import nnls

    law = problem.law
    exponents = [name for name in law.parameters if name not in law.logged]
    grid = np.array(np.meshgrid(*[law.starts] * len(exponents))).reshape(len(exponents), -1).T
    columns = {name: i for i, name in enumerate(law.parameters)}
    loss, weights = np.exp(problem.log_loss), np.sqrt(problem.weights)
    out = []
    for values in grid:
        theta = np.zeros(len(law.parameters))
        for name, value in zip(exponents, values, strict=True):
            theta[columns[name]] = value
        basis = np.exp(np.einsum("ntp,p->nt", problem.terms, theta))  # coefficients of one
        scale = basis.mean(0)
        rows = basis / scale / loss[:, None] * weights[:, None]
        coefficients, _ = nnls(rows, weights)
        for i, name in enumerate(law.logged):
            floor = 1e-3 * loss.min()  # a zero would be minus infinity, from where nothing moves
            theta[columns[name]] = np.log(max(coefficients[i], floor) / scale[i])
        out.append(theta)
    return np.array(out)
