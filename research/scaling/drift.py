"""How far a law of compute may drift from what is true outside the points that it was fitted to.

No law of compute holds for ever: over decades its slope (of log N*, or of log loss, by log C)
changes by what the law does not have, and few points hardly show it. The slope is therefore taken
for a random walk in log C, which is the prior of a smoothing spline (Wahba 1978): an error of the
law that grows with the distance to the power of 1.5. The size of its steps is integrated over what
the points show beside their own errors and a scatter (restricted likelihood), under a half-normal
prior: SHARE of the slope in a decade.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri

# Standard deviation of the change of a slope in a decade of compute, relative to it. The minima of
# the six published sweeps of Porian et al. allow about so much, and no more (by Akima, docs/
# reproductions.md).
SHARE = 0.06
STEPS = np.concatenate([[0.0], np.geomspace(0.05, 4.0, 12)])  # of the prior's scale
SCATTERS = np.concatenate([[0.0], np.geomspace(0.05, 30.0, 12)])
QUANTILES = np.linspace(0.1, 0.9, 5)  # of the level of noise, over which is integrated
NOTHING = 1e-6  # of the scatter's scale: what points are off by at least, in rounding
LEAST = 1e-4  # probability, below which a combination of sizes is not drawn


def levels(sds: np.ndarray, freedom: int | None) -> np.ndarray:
    """Errors [S, M] of points as they may be, where the noise behind `sds` [M] is known from so
    many degrees of freedom (None: it is given)."""
    if not freedom:
        return sds[None]
    return np.outer(np.sqrt(freedom / chdtri(freedom, QUANTILES)), sds)


def step_size(slope: float) -> float:
    """The prior's scale of the steps of such a slope, by the root of log compute."""
    return SHARE * abs(slope) / math.sqrt(math.log(10))


def draw_outside(slope: float, distance: float, k: int, seed: int) -> np.ndarray:
    """Draws [k] of what a law of such a slope misses at a distance in log compute, of which its
    points say nothing."""
    of_size, of_walk = np.random.default_rng(seed).standard_normal((2, k))
    return step_size(slope) * abs(of_size) * math.sqrt(max(distance, 0) ** 3 / 3) * of_walk


@dataclass(frozen=True)
class Drift:
    """A law through points at `log_c` [M] from which it is off by `residuals` [M], with derivatives
    `jacobian` [M, P] by its parameters there. Points have errors of their own (any of S `levels`)
    and a scatter of half-Cauchy prior of that scale; the law has a slope of about `slope`."""

    log_c: np.ndarray
    jacobian: np.ndarray
    residuals: np.ndarray
    levels: np.ndarray
    slope: float
    scatter: float

    @property
    def sizes(self) -> np.ndarray:
        """Of the steps [G], in slope by the root of log compute."""
        return STEPS * step_size(self.slope)

    def posterior(self) -> np.ndarray:
        """The probability [S, T, G] of every level of noise, scatter, and size of the steps."""
        free = np.linalg.svd(self.jacobian)[0][:, self.jacobian.shape[1] :]  # not followed by laws
        r, walk = free.T @ self.residuals, free.T @ self._walk(self.log_c, self.log_c) @ free
        own = np.einsum("Ma,sM,Mb->sab", free, self.levels**2, free)[:, None, None]
        alike = self._scatters[:, None, None, None] ** 2 * np.eye(len(r))
        variance = own + alike + self.sizes[:, None, None] ** 2 * walk
        misfit = np.einsum("a,...ab,b->...", r, np.linalg.inv(variance), r)
        prior = np.log(_cells(SCATTERS) / (1 + SCATTERS**2))[:, None]
        prior = prior + np.log(_cells(STEPS)) - STEPS**2 / 2
        log_p = prior - (np.linalg.slogdet(variance)[1] + misfit) / 2
        p = np.exp(log_p - log_p.max())
        return p / p.sum()

    def miss(self, at: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
        """The standard deviation [m], at log compute `at` [m], of what the law of least squares
        misses."""
        size = math.sqrt(float(self.posterior().sum((0, 1)) @ self.sizes**2))
        pull = jacobian @ np.linalg.pinv(self.jacobian)
        across = np.einsum("mM,Mm->m", pull, self._walk(self.log_c, at))
        within = np.einsum("mM,MN,mN->m", pull, self._walk(self.log_c, self.log_c), pull)
        own = np.diag(self._walk(at, at))
        return size * np.sqrt(np.maximum(own - 2 * across + within, 0))

    def draw(self, at: float, jacobian: np.ndarray, k: int, seed: int) -> np.ndarray:
        """Draws [k] of what is true at log compute `at`, less what the law has there: from the
        normal distribution given the points, for sizes drawn from their posterior."""
        rng, p = np.random.default_rng(seed), self.posterior()
        s, t, g = np.nonzero(p > LEAST)
        p = p[s, t, g] / p[s, t, g].sum()
        there, eye = np.array([at]), np.eye(len(self.log_c))
        steps = self.sizes[g, None, None] ** 2
        own = self.levels[s] ** 2 + self._scatters[t, None] ** 2
        variance = own[:, :, None] * eye + steps * self._walk(self.log_c, self.log_c)
        across = steps * self._walk(self.log_c, there)  # [cells, M, 1]
        x, inverse = self.jacobian, np.linalg.inv(variance)
        of_law = np.linalg.inv(x.T @ inverse @ x)
        beta = of_law @ (x.T @ inverse @ self.residuals)[..., None]
        off = self.residuals[:, None] - x @ beta
        left = jacobian[:, None] - x.T @ inverse @ across
        mean = jacobian[None] @ beta + np.swapaxes(across, 1, 2) @ inverse @ off
        spread = steps * self._walk(there, there) - np.swapaxes(across, 1, 2) @ inverse @ across
        spread = spread + np.swapaxes(left, 1, 2) @ of_law @ left
        chosen = rng.choice(len(p), size=k, p=p)
        sd = np.sqrt(np.maximum(spread[chosen].reshape(k), 0))
        return mean[chosen].reshape(k) + sd * rng.standard_normal(k)

    @property
    def _scatters(self) -> np.ndarray:
        return np.hypot(SCATTERS, NOTHING) * self.scatter

    def _walk(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The covariance of a random walk's integral between all of x [m] and y [n], for steps of
        1; of the walk's start, the law has the level and the slope."""
        x, y = x[:, None] - self.log_c.min(), y - self.log_c.min()
        low, high = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
        return np.where(x * y > 0, low**2 * (high / 2 - low / 6), 0.0)


def _cells(grid: np.ndarray) -> np.ndarray:
    """How much of the axis each value [G] of a grid stands for."""
    return np.diff(np.concatenate([[0.0], (grid[1:] + grid[:-1]) / 2, grid[-1:]]))
