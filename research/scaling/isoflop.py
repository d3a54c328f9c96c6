"""IsoFLOP minima (Hoffmann et al. 2022, approach 2): the best size of every budget.

A minimum is located twice, side by side. "akima" interpolates log loss over log size by Akima's
local cubics, which assume no shape; "parabola" fits one to the whole budget, which is biased where
the sizes are off-center or the valley is not symmetric. Noise is added to the losses again and
again (Porian et al. 2024), which says how sharply each is located. A minimum is believed only where
there are data: a budget is left out whose minimum lies on the edge of its sizes in half of the
draws, or where what was located lies below every loss that was measured by more than noise and the
valley's own curve allow.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import power_laws
from research.scaling.budgets import (
    DEFAULT_NOISE,
    MIN_SIZES,
    SAME_SIZE,
    Budget,
    Noise,
    drop_outliers,
    estimate_noise,
    group_by_budget,
    merged_sizes,
)
from research.scaling.fit import RESAMPLES
from research.scaling.options import Options
from research.scaling.power_laws import PowerLaws
from research.scaling.statistics import SAME_BUDGET
from research.tables import table

POINTS = 25  # at which an interpolation is evaluated, between two sizes
DISAGREE = 0.02  # in the exponent of N*, between the two methods
OTHERWISE = "--law=auto fits laws to the rows of a grid of sizes and lengths, which has no valleys"


@dataclass(frozen=True)
class Minimum:
    """Where the loss of a budget is least: `sd` in log N by `draws` [K] (NaN on the edge), of which
    the share `valid` lies inside; `loss_sd` in log loss."""

    budget: Budget
    log_n: float
    log_d: float
    loss: float
    sd: float
    draws: np.ndarray
    valid: float
    loss_sd: float

    @property
    def _beside(self) -> tuple[float, float]:
        """From the size below the minimum to that above: differences of log N and of log D."""
        n, d = self.budget.log_n, self.budget.log_d
        i = min(max(int(np.searchsorted(n, self.log_n)), 1), len(n) - 1)
        return float(n[i] - n[i - 1]), float(d[i] - d[i - 1])

    @property
    def tokens_slope(self) -> float:
        """d log D / d log N within the budget, at the minimum."""
        return self._beside[1] / self._beside[0]

    @property
    def sharpest(self) -> float:
        """What its sd counts for at least (Porian et al. 2024): a third of the sizes' distance."""
        return self._beside[0] / 3

    @property
    def flops_6nd(self) -> float:
        return table.PER_TOKEN * math.exp(self.log_n + self.log_d)

    def entry(self, six_nd: bool) -> dict[str, Any]:
        """Its row of fit.json. `budget` are the FLOPs that its runs have in the table, `flops` the
        same or 6 N* D*."""
        n, d = math.exp(self.log_n), math.exp(self.log_d)
        draws = self.draws[np.isfinite(self.draws)]
        return {
            "budget": self.budget.flops,
            "flops": self.flops_6nd if six_nd else self.budget.flops,
            "params": n,
            "tokens": d,
            "tokens_per_param": d / n,
            "loss": self.loss,
            "loss_sd": self.loss_sd,
            "interval": power_laws.quantiles(np.exp(draws)[:, None])[0],
            "sizes": len(self.budget.log_n),
            "valid_fraction": self.valid,
        }


@dataclass(frozen=True)
class Minima:
    """The minima of all budgets by one method, the power laws through them (None for fewer than
    two), and the budgets without one, with the reason."""

    minima: list[Minimum]
    laws: PowerLaws | None
    dropped: list[dict[str, str]] = field(default_factory=list)


Located = tuple[np.ndarray, np.ndarray]  # log N* [K] (NaN on the edge), log loss there [K]


def akima_minimum(log_n: np.ndarray, log_loss_nxK: np.ndarray) -> Located:
    """The minimum of Akima's interpolation between the sizes, for K sets of losses at once."""
    from scipy.interpolate import Akima1DInterpolator

    grid = _between(log_n)
    values = Akima1DInterpolator(log_n, log_loss_nxK)(grid)
    at = values.argmin(0)
    edge = (at == 0) | (at == len(grid) - 1)
    least = np.take_along_axis(values, at[None], 0)[0]
    return np.where(edge, np.nan, grid[at]), least


def _between(log_n: np.ndarray) -> np.ndarray:
    """The sizes, and POINTS - 1 others between every two."""
    part = np.arange(POINTS) / POINTS
    return np.append((log_n[:-1, None] + np.diff(log_n)[:, None] * part).ravel(), log_n[-1])


def valley_curve(budget: Budget, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and losses along the curve of which a method takes the minimum."""
    from scipy.interpolate import Akima1DInterpolator

    grid, x, y = _between(budget.log_n), budget.log_n, budget.log_loss
    if method == "akima":
        return np.exp(grid), np.exp(Akima1DInterpolator(x, y)(grid))
    return np.exp(grid), np.exp(np.polynomial.Polynomial.fit(x, y, 2)(grid))


def parabola_minimum(log_n: np.ndarray, log_loss_nxK: np.ndarray) -> Located:
    """The vertex of the least-squares parabola, for K sets of losses at once."""
    center, width = log_n.mean(), np.ptp(log_n)
    x = (log_n - center) / width
    c, b, a = np.linalg.lstsq(np.stack([np.ones_like(x), x, x * x], 1), log_loss_nxK)[0]
    with np.errstate(all="ignore"):
        at = -b / (2 * a)
        bad = ~((a > 0) & (at > x[0]) & (at < x[-1]))
        return np.where(bad, np.nan, center + width * at), c - b * b / (4 * a)


LOCATE: dict[str, Callable[[np.ndarray, np.ndarray], Located]] = {
    "akima": akima_minimum,
    "parabola": parabola_minimum,
}


def locate_minima(rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The parts of fit.json that are of isoFLOP minima alone, and their "laws" (PowerLaws).

    Raises BadInput for fewer than two budgets whose minimum can be located.
    """
    rows, outliers = drop_outliers(rows)
    budgets, dropped = group_by_budget(rows)
    dropped = outliers + dropped
    if len(budgets) < 2:
        raise BadInput(
            f"{'1 budget' if budgets else 'no budgets'} with at least {MIN_SIZES} sizes; isoflop "
            f"needs 2. A budget is a distinct value of flops (to {SAME_BUDGET:.0%}); {OTHERWISE}",
            *(f"{row['run']}: {row['reason']}" for row in dropped[:5]),
        )
    noise = estimate_noise(rows, budgets, options)
    resamples = RESAMPLES if options.bootstrap is None else options.bootstrap
    methods = {name: _locate_by(name, budgets, noise, resamples, options) for name in LOCATE}
    chosen = methods[options.method]
    if chosen.laws is None:
        raise BadInput(
            f"isoflop needs two budgets whose minimum lies between their sizes ({options.method}); "
            f"{OTHERWISE}",
            *(f"{row['run']}: {row['reason']}" for row in chosen.dropped[:8]),
        )
    sides = {
        name: {
            **(summary := found.laws.summary())["params"],
            "intervals": summary["intervals"],
            "budgets": len(found.minima),
            "minima": [minimum.entry(options.six_nd) for minimum in found.minima],
        }
        for name, found in methods.items()
        if found.laws
    }
    return {
        "laws": chosen.laws,
        "dropped": dropped + chosen.dropped,
        "method": f"{options.method}, {resamples} draws of noise {noise.value:.2g} "
        f"({noise.source}), a random effect of each budget",
        "noise": dataclasses.asdict(noise),
        "scatter": chosen.laws.scatter,
        "methods": sides,
        "minima": sides[options.method]["minima"],
        "warnings": _warnings(rows, budgets, noise, methods, options.method, sides),
    }


def _locate_by(
    method: str, budgets: Sequence[Budget], noise: Noise, resamples: int, options: Options
) -> Minima:
    minima, dropped = sample_minima(budgets, method, noise, resamples, options.seed)
    if len(minima) < 2:
        return Minima(minima, None, dropped)
    log_n, log_d, sd, floor, slope = (
        np.array([getattr(m, name) for m in minima])
        for name in ("log_n", "log_d", "sd", "sharpest", "tokens_slope")
    )
    log_c = np.log([m.budget.flops for m in minima])
    laws = power_laws.random_effects(
        log_c, log_n, log_d, sd, floor, slope, noise.freedom, resamples, options.seed
    )
    return Minima(minima, laws.by_6nd() if options.six_nd else laws, dropped)


def _warnings(
    rows: Sequence[table.Row],
    budgets: Sequence[Budget],
    noise: Noise,
    methods: dict[str, Minima],
    method: str,
    sides: dict[str, Any],
) -> list[str]:
    out, chosen = [], methods[method]
    if few := sum(len(budget.log_n) < 5 for budget in budgets):
        out.append(f"{few} {'budget has' if few == 1 else 'budgets have'} fewer than 5 sizes")
    if merged := merged_sizes(rows):
        out.append(
            f"sizes within {SAME_SIZE:.0%} of each other are one size, with the mean of their "
            f"losses: {merged[0]}" + ("; …" if len(merged) > 1 else "")
        )
    if why := noise.source.partition(": ")[2]:
        assumed = noise.value <= DEFAULT_NOISE  # which is also the least that a scatter counts for
        words = "assumed to be" if assumed else "taken from the scatter:"
        out.append(f"{why}: the noise of a run is {words} {noise.value:.2%} of its loss (--noise)")
    if len(chosen.minima) == 2:
        out.append("two budgets lie on any line: how far others would lie from it is unknown")
    for name, found in methods.items():  # what the method of choice leaves out is named elsewhere
        if name != method and len(found.minima) < len(chosen.minima):
            out.append(
                f"{name} has the minima of {len(found.minima)} budgets, {method} of "
                f"{len(chosen.minima)}: {found.dropped[0]['run']}: {found.dropped[0]['reason']}"
            )
    if len(sides) == 2:
        one, two = (side["params_exponent"] for side in sides.values())
        if abs(one - two) > DISAGREE:
            out.append(
                f"akima and parabola differ: the exponent of N* is {one:.3f} and {two:.3f}; the "
                "valleys are not parabolas"
            )
    return out


def sample_minima(
    budgets: Sequence[Budget], method: str, noise: Noise, k: int, seed: int
) -> tuple[list[Minimum], list[dict[str, str]]]:
    """The minimum of every budget with k draws of noise, and the budgets without one."""
    rng = np.random.default_rng(seed)
    out, dropped = [], []
    for budget in budgets:
        sd = (noise.value / np.sqrt(budget.runs))[:, None]
        draws = budget.log_loss[:, None] + sd * rng.standard_normal((len(budget.log_n), k))
        every = np.concatenate([budget.log_loss[:, None], draws], axis=1)
        at, least = LOCATE[method](budget.log_n, every)
        # Without draws, the located minimum stands for itself.
        drawn, drawn_least = (at[1:], least[1:]) if k else (at, least)
        valid = np.isfinite(drawn)
        if reason := _unbelievable(budget, valid, float(least[0]), noise):
            dropped.append({"run": budget.name, "reason": f"{method}: {reason}"})
            continue
        log_n = float(np.median(drawn[valid]))
        # The least of what is noisy is too low; by how much, the draws show once more.
        log_loss = 2 * float(least[0]) - float(np.median(drawn_least[valid]))
        grid = float(np.diff(budget.log_n).mean()) / POINTS / math.sqrt(12)
        out.append(
            Minimum(
                budget,
                log_n,
                float(np.interp(log_n, budget.log_n, budget.log_d)),
                math.exp(log_loss),
                max(float(drawn[valid].std()), grid),
                at[1:],
                float(valid.mean()),
                float(drawn_least[valid].std()),
            )
        )
    return out, dropped


def _unbelievable(budget: Budget, valid: np.ndarray, least: float, noise: Noise) -> str:
    """Why there is no minimum between the sizes of this budget; "" if there is."""
    lowest = int(budget.log_loss.argmin())
    if valid.mean() < 0.5:
        side = "smallest" if lowest == 0 else "largest"
        edge = lowest in (0, len(budget.log_n) - 1)
        where = f"its lowest loss is at its {side} size" if edge else "its valley is not convex"
        return f"{where}: the minimum lies between its sizes in {valid.mean():.0%} of the draws"
    # Through equally spaced sizes, the least of a parabola is below both sizes beside it by at most
    # an eighth of the rise to the next.
    beside = budget.log_loss[max(lowest - 1, 0) : lowest + 2] - budget.log_loss[lowest]
    below = budget.log_loss[lowest] - least
    allowed = 3 * noise.value / math.sqrt(budget.runs[lowest]) + float(beside.max()) / 4
    if not below <= allowed:
        return (
            f"the located loss is {below:.1%} below every measured one, where noise and the curve "
            f"of the valley allow {allowed:.1%}"
        )
    return ""
