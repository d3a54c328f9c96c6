"""What rows have in common beside the law: effects of a whole size and of a whole budget.

An architecture may be worth a few percent more or fewer parameters than it has, at every budget
alike; the runs of one budget may have been tuned so that its valley lies at another size, or higher
than it should. Seeds do not tell of this, and rows that share it do not average it out. These are
random effects, of standard deviations that are integrated over their posterior (half-Cauchy priors;
Gelman 2006) from the residuals of a fit, linearized about it:

  log loss = law + (d log L / d log N at constant D) size effect, in log N
                 + (d log L / d log N at constant N D) valley effect of a budget, in log N
                 + level effect of a budget, in log L + noise of a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from research.scaling.law import GROUP, Law
from research.scaling.optimize import Problem
from research.scaling.statistics import number_groups
from research.tables import table

NEAR = 0.05  # relative: sizes, or budgets, this near to each other share an effect
# Half-Cauchy scales of the effects: of a size and of a budget's valley in log N, of its level in
# log loss.
PRIORS = (0.03, 0.1, 0.001)
LARGEST = 5.0  # of these scales: the scale of a normal density, that misfit is no effect
RATIOS = np.concatenate([[0.0], np.geomspace(0.1, 40.0, 9)])  # of an effect to the noise of a run
MIN_GROUPS, MIN_PER_BUDGET = 3, 3
STEP = 1e-4  # of log N, for derivatives
REACH = 3.0  # of the logarithm of a parameter, about a fit
WINSOR = 4.0  # robust standard deviations at which a residual counts no more


@dataclass(frozen=True)
class Effects:
    """Designs [n, q] of the effects of sizes, of budgets' valleys and of budgets' levels; over a
    grid [G] of ratios of theirs to the noise of a run, the posterior, that noise, and their
    standard deviations."""

    designs: tuple[np.ndarray, ...]
    posterior: np.ndarray
    noise: np.ndarray
    sds: tuple[np.ndarray, ...]
    off_the_law: float  # root mean square of the rows' residuals
    deviance: float  # -2 log likelihood of the rows, at its largest
    freedom: int

    @property
    def shared(self) -> bool:
        """Whether there are sizes or budgets with rows enough to share anything."""
        return any(design.size for design in self.designs)

    @property
    def run_noise(self) -> float:
        """The standard deviation of the log loss of one run beside what rows share."""
        return float(np.sqrt(np.sum(self.posterior * self.noise**2)))

    def mean_sds(self) -> tuple[float, ...]:
        """Root mean squares of the standard deviations of the effects."""
        return tuple(float(np.sqrt(np.sum(self.posterior * sd**2))) for sd in self.sds)

    def of_budget(self, slope: float) -> float:
        """The standard deviation in log loss of what a budget is off the law, where the log loss
        changes by `slope` with log N at a constant budget; no more than rows are off in all."""
        _, valley, level = self.mean_sds()
        return min(float(np.hypot(level, slope * valley)), self.off_the_law)

    def covariance(self) -> np.ndarray:
        """The covariance [n, n] of the rows' log losses about the law."""
        out = self.run_noise**2 * np.eye(len(self.designs[0]))
        for design, sd in zip(self.designs, self.mean_sds(), strict=True):
            out += sd**2 * design @ design.T
        return out

    def draw(self, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Errors [k, n] of the rows that they share, and the noise [k] of runs."""
        at = rng.choice(self.posterior.size, size=k, p=self.posterior)
        scale = np.sqrt(self.freedom / rng.chisquare(self.freedom, k))
        shared = np.zeros((k, len(self.designs[0])))
        for design, sd in zip(self.designs, self.sds, strict=True):
            effects = rng.standard_normal((k, design.shape[1])) * (sd[at] * scale)[:, None]
            shared += effects @ design.T
        return shared, self.noise[at] * scale


def estimate_effects(
    law: Law, problem: Problem, theta: np.ndarray, rows: Sequence[table.Row]
) -> Effects:
    """The effects in the residuals of a law of params and tokens; none where fewer than MIN_GROUPS
    sizes were trained more than once, or budgets have fewer than MIN_PER_BUDGET sizes."""
    r, j = (part[0] for part in problem.residuals(theta[None]))
    if problem.objective == "mse":
        scale = np.exp(problem.log_y)
        r, j = r / scale, j / scale
    root = np.sqrt(problem.weights / problem.weights.mean())
    spread = 1.4826 * float(np.median(np.abs(r)))
    r = np.clip(r, -WINSOR * spread, WINSOR * spread) if spread else r
    designs = _designs(law, theta, rows)
    weighted = tuple(design * root[:, None] for design in designs)
    return _posterior(r * root, (j[~problem.fixed_mask] * root).T, weighted, designs)


def _designs(law: Law, theta: np.ndarray, rows: Sequence[table.Row]) -> tuple[np.ndarray, ...]:
    if law.response != "loss" or not {"params", "tokens"} <= set(law.columns):
        return (np.zeros((len(rows), 0)),) * len(PRIORS)
    values = table.column_arrays(rows, law.columns)
    along_n, along_budget = log_loss_slope(law, theta, values)
    n = values["params"]
    recipe = values.get(GROUP, np.zeros(len(rows)))
    sizes = _members(n, recipe, 2)
    budgets = _members(n * values["tokens"], recipe, MIN_PER_BUDGET)
    return along_n[:, None] * sizes, along_budget[:, None] * budgets, budgets


def log_loss_slope(
    law: Law, theta: np.ndarray, values: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """d log L / d log N [n] at constant tokens, and at a constant budget N D; nothing for a law
    that does not read both."""
    if not {"params", "tokens"} <= set(law.columns):
        zero = np.zeros(len(values[law.columns[0]]))
        return zero, zero

    def log_loss(size: float, tokens: float) -> np.ndarray:
        moved = {**values, "params": values["params"] * np.exp(size)}
        moved["tokens"] = values["tokens"] * np.exp(tokens)
        return law.evaluate(theta[None], law.prepare(moved))[0][0]

    along_n, along_budget = (
        (log_loss(STEP, by * STEP) - log_loss(-STEP, -by * STEP)) / (2 * STEP) for by in (0.0, -1.0)
    )
    return along_n, along_budget


def _members(values: np.ndarray, recipe: np.ndarray, least: int) -> np.ndarray:
    """Which row [n] belongs to which group [q] of near values of one recipe; none where fewer than
    MIN_GROUPS have `least` rows, which tell what groups of one row have as well."""
    both = np.stack([number_groups(values, NEAR, NEAR), recipe])
    number = np.unique(both, axis=1, return_inverse=True)[1].ravel()
    groups = np.eye(number.max() + 1)[number]
    told = int((groups.sum(0) >= least).sum()) >= MIN_GROUPS
    return groups if told else groups[:, :0]


def _posterior(
    r: np.ndarray,
    j: np.ndarray,
    weighted: tuple[np.ndarray, ...],
    designs: tuple[np.ndarray, ...],
) -> Effects:
    """By the likelihood of the residuals restricted to what the law cannot follow (REML)."""
    n, q = len(r), np.linalg.qr(_able(j, r))[0]
    freedom = max(n - q.shape[1], 1)
    off = float(np.sqrt(np.mean(r**2)))
    r, *parts = (x - q @ (q.T @ x) for x in (r, *weighted))
    counts = [part.shape[1] for part in parts]
    z, whole = np.concatenate(parts, axis=1), np.concatenate(weighted, axis=1)
    gram, whole = z.T @ z, whole.T @ whole
    cross, rss = z.T @ r, max(float(r @ r), 1e-24 * n)
    units = [1 / max(float(np.sqrt(np.mean(part**2))), 1e-12) if part.size else 0.0
             for part in parts]  # fmt: skip
    axes = [np.arange(len(RATIOS)) if count else np.zeros(1, int) for count in counts]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    left, spread = np.empty(len(grid)), np.empty((2, len(grid)))
    last = RATIOS[axes[-1]] * units[-1]
    for first in range(0, len(grid), len(last)):
        part = slice(first, first + len(last))
        scale = np.repeat(RATIOS[grid[first, :-1]] * units[:-1], counts[:-1])
        explained, spread[0, part] = _along_last(gram, cross, scale, last)
        left[part] = np.maximum(rss - explained, 1e-9 * rss)
        spread[1, part] = _along_last(whole, cross, scale, last)[1]
    noise = np.sqrt(left / freedom)
    log_p = -0.5 * (freedom * np.log(left) + spread[0])
    deviance = n * np.log(left / n) + spread[1]
    sds = tuple((RATIOS[grid] * units * noise[:, None]).T)
    widths = np.log(np.gradient(RATIOS))
    for sd, prior, index, count in zip(sds, PRIORS, grid.T, counts, strict=True):
        if count:  # the density of the standard deviation, by that of the ratio
            log_p += widths[index] + np.log(noise) - np.log1p((sd / prior) ** 2)
            log_p -= 0.5 * (sd / (LARGEST * prior)) ** 2
    posterior = np.exp(log_p - log_p.max())
    posterior /= posterior.sum()
    return Effects(designs, posterior, noise, sds, off, float(deviance.min()), freedom)


def _able(j: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The derivatives [n, p] of the parameters that could follow residuals [n] of this size. One
    near its bound, as E or an interaction of 0, is fitted as a logarithm that hardly moves the law:
    linearized, it would take any residual that lies along it, with a value below 0."""
    return j[:, np.linalg.norm(j, axis=0) * REACH > np.linalg.norm(r)]


def _along_last(
    gram: np.ndarray, cross: np.ndarray, scale: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For columns scaled by `scale` [p], and the others [q - p] by each of `last` [m]: the squares
    [m] that effects explain, c^T (I + G)^-1 c, and log det (I + G) [m]. One decomposition of what
    the first leave of the others serves all m."""
    p = len(scale)
    inner = np.eye(p) + gram[:p, :p] * np.outer(scale, scale)
    beside = scale[:, None] * gram[:p, p:]
    solved = np.linalg.solve(inner, np.column_stack([scale * cross[:p], beside]))
    values, vectors = np.linalg.eigh(gram[p:, p:] - beside.T @ solved[:, 1:])
    values = np.maximum(values, 0)
    pull = vectors.T @ (cross[p:] - beside.T @ solved[:, 0])
    grown = 1 + np.outer(last**2, values)
    explained = (scale * cross[:p]) @ solved[:, 0] + (last**2) * (pull**2 / grown).sum(1)
    return explained, np.linalg.slogdet(inner)[1] + np.log(grown).sum(1)
