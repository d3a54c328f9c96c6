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
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtr

from research.errors import BadInput
from research.scaling import power_laws
from research.scaling.fit import RESAMPLES
from research.scaling.options import Options
from research.scaling.power_laws import PowerLaws
from research.scaling.statistics import SAME_BUDGET, number_budgets, number_groups, pooled_sd
from research.tables import table
from research.tables.replicates import replicate_groups

SAME_SIZE = 0.05  # relative: sizes this near to each other are one
MIN_SIZES = 4  # of a budget
POINTS = 25  # at which an interpolation is evaluated, between two sizes
WINDOW = 5  # sizes around a minimum, through which a cubic has one degree of freedom left
DEFAULT_NOISE = 5e-4  # of log loss, where nothing tells it: 0.002 nats at a loss of 4
DIFFERENT = 0.05  # p-value below which replicates and valleys are of different noise
OUTLIER, OUTLIER_SHARE = 1e-4, 0.02  # p-value, and share of the loss above the valley
DISAGREE = 0.02  # in the exponent of N*, between the two methods


@dataclass(frozen=True)
class Budget:
    """The runs of one budget by log size: log tokens and log loss are means over the runs of one
    size, which `runs` counts."""

    flops: float
    log_n: np.ndarray
    log_d: np.ndarray
    log_loss: np.ndarray
    runs: np.ndarray

    @property
    def name(self) -> str:
        return f"budget {self.flops:.4g}"


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
class Noise:
    """The standard deviation of the log loss of one run, what tells it, and from how many degrees
    of freedom (None: it is given or assumed)."""

    value: float
    source: str
    freedom: int | None = None


@dataclass(frozen=True)
class Minima:
    """The minima of all budgets by one method, the power laws through them (None for fewer than
    two), and the budgets without one, with the reason."""

    minima: list[Minimum]
    laws: PowerLaws | None
    dropped: list[dict[str, str]] = field(default_factory=list)


def group_by_budget(rows: Sequence[table.Row]) -> tuple[list[Budget], list[dict[str, str]]]:
    """The budgets with enough sizes, and the others with the reason."""
    out, dropped = [], []
    for group in _budgets(rows):
        flops = math.exp(_mean_log(group, "flops"))
        sizes = list(_sizes(group))
        if len(sizes) < MIN_SIZES:
            reason = f"{len(sizes)} sizes at this budget; at least {MIN_SIZES} are needed"
            dropped.append({"run": f"budget {flops:.4g}", "reason": reason})
            continue
        log_n, log_d, log_loss = (
            np.array([_mean_log(rows, name) for rows in sizes])
            for name in ("params", "tokens", "loss")
        )
        runs = np.array([len(rows) for rows in sizes])
        out.append(Budget(flops, log_n, log_d, log_loss, runs))
    return out, dropped


def _budgets(rows: Iterable[table.Row]) -> Iterable[list[table.Row]]:
    """The rows of each budget."""
    return _groups(rows, "flops", number_budgets)


def _sizes(rows: Iterable[table.Row]) -> Iterable[list[table.Row]]:
    """The rows of each size, of which nearly equal ones are one."""
    return _groups(rows, "params", lambda values: number_groups(values, SAME_SIZE, SAME_SIZE))


def _groups(
    rows: Iterable[table.Row], column: str, number: Callable[[list[float]], np.ndarray]
) -> Iterable[list[table.Row]]:
    rows = sorted(rows, key=lambda row: row[column])
    numbers = number([row[column] for row in rows])
    for _, group in itertools.groupby(zip(numbers, rows, strict=True), key=lambda pair: pair[0]):
        yield [row for _, row in group]


def _mean_log(rows: Sequence[table.Row], column: str) -> float:
    return float(np.mean([math.log(row[column]) for row in rows]))


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
            f"{len(budgets)} budgets with at least {MIN_SIZES} sizes; isoflop needs 2. A budget is "
            f"a distinct value of flops (to {SAME_BUDGET:.0%})",
            *(f"{row['run']}: {row['reason']}" for row in dropped[:5]),
        )
    noise = estimate_noise(rows, budgets, options)
    resamples = RESAMPLES if options.bootstrap is None else options.bootstrap
    methods = {name: _locate_by(name, budgets, noise, resamples, options) for name in LOCATE}
    chosen = methods[options.method]
    if chosen.laws is None:
        raise BadInput(
            f"isoflop needs two budgets whose minimum lies between their sizes ({options.method})",
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
        "warnings": _warnings(rows, budgets, noise, chosen, sides),
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
    chosen: Minima,
    sides: dict[str, Any],
) -> list[str]:
    out = []
    if few := sum(len(budget.log_n) < 5 for budget in budgets):
        out.append(f"{few} {'budget has' if few == 1 else 'budgets have'} fewer than 5 sizes")
    if merged := _merged_sizes(rows):
        out.append(
            f"sizes within {SAME_SIZE:.0%} of each other are one size, with the mean of their "
            f"losses: {merged[0]}" + ("; …" if len(merged) > 1 else "")
        )
    if noise.source.startswith(("assumed", "scatter")):
        words = "assumed to be" if noise.source.startswith("assumed") else "taken from the scatter:"
        why = "no run was repeated" if "replicates" not in noise.source else noise.source
        out.append(f"{why}: the noise of a run is {words} {noise.value:.2%} of its loss (--noise)")
    if len(chosen.minima) == 2:
        out.append("two budgets draw a line, and say nothing of how far others would lie from it")
    if len(sides) == 2:
        one, two = (side["params_exponent"] for side in sides.values())
        if abs(one - two) > DISAGREE:
            out.append(
                f"akima and parabola differ: the exponent of N* is {one:.3f} and {two:.3f}; the "
                "valleys are not parabolas"
            )
    return out


def _merged_sizes(rows: Sequence[table.Row]) -> list[str]:
    """Of every budget, the sizes that differ and are counted as one."""
    out = []
    for group in _budgets(rows):
        for size in _sizes(group):
            counts = sorted({row["params"] for row in size})
            if len(counts) > 1:
                out.append(f"{counts[0]:,.9g} and {counts[-1]:,.9g} at {size[0]['flops']:.4g}")
    return out


def drop_outliers(
    rows: Sequence[table.Row],
) -> tuple[list[table.Row], list[dict[str, str]]]:
    """The rows without those far above the valley of their own budget, and those with the reason.

    A run that crashed or was cut off has a loss that is too high, and the minimum of a smooth curve
    would follow it. Studentized deleted residuals about a cubic, one row after another:
    statistics.find_outliers, whose scale is a median, has no say over so few (of seven rows with
    three degrees of freedom, 2,000 standard deviations off).
    """
    kept, dropped = [], []
    for group in _budgets(rows):
        while (worst := _worst_outlier(group)) is not None:
            index, sds, above = worst
            reason = (
                f"its loss lies {above:.1%} above the valley of its budget, {sds:.0f} standard "
                "deviations: an outlier"
            )
            dropped.append({"run": group[index]["run"], "reason": reason})
            group = [row for i, row in enumerate(group) if i != index]
        kept += group
    return kept, dropped


def _worst_outlier(group: Sequence[table.Row]) -> tuple[int, float, float] | None:
    """(index, standard deviations, share of the loss) of the row furthest above a cubic through the
    others, if that is no chance; never the smallest or largest size, which a cubic cannot judge."""
    x, y = (np.log([row[name] for row in group]) for name in ("params", "loss"))
    if len(np.unique(x)) < 7:
        return None
    basis = np.vander((x - x.mean()) / np.ptp(x), 4)
    q, _ = np.linalg.qr(basis)
    r, leverage = y - q @ (q.T @ y), (q * q).sum(1)
    freedom = len(x) - 5
    rest = np.maximum((r @ r) - r * r / np.maximum(1 - leverage, 1e-9), 1e-24) / freedom
    with np.errstate(all="ignore"):
        t = r / np.sqrt(rest * (1 - leverage))
        above = np.expm1(r / (1 - leverage))
    t[(x == x.min()) | (x == x.max()) | ~np.isfinite(t)] = -np.inf
    worst = int(t.argmax())
    p = float(stdtr(freedom, -t[worst])) * len(x)
    if p < OUTLIER and above[worst] > OUTLIER_SHARE:
        return worst, float(t[worst]), float(above[worst])
    return None


def estimate_noise(rows: Sequence[table.Row], budgets: Sequence[Budget], options: Options) -> Noise:
    """The standard deviation of log loss of one run: given, or that of replicates unless the
    valleys are rougher than they, or that of the valleys, or an assumption."""
    if options.noise is not None:
        return Noise(options.noise, "given")
    groups = replicate_groups(rows, ("flops", "params")).values()
    sd, freedom = pooled_sd([[math.log(row["loss"]) for row in group] for group in groups])
    rough, valleys = _valley_scatter(budgets)
    if freedom >= 2 and sd:
        ratio = (rough / sd) ** 2
        if not valleys or fdtrc(valleys, freedom, ratio) > DIFFERENT:
            return Noise(sd, "replicates", freedom)
        source = f"scatter about smooth valleys; replicates alone say {sd:.2%}"
        return Noise(rough, source, valleys)
    if valleys >= 2:
        return Noise(max(DEFAULT_NOISE, rough), "scatter about smooth valleys", valleys)
    return Noise(DEFAULT_NOISE, "assumed: no budget has replicates")


def _valley_scatter(budgets: Sequence[Budget]) -> tuple[float, int]:
    """The standard deviation of a run about a cubic through the WINDOW sizes around the least loss
    of each budget, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for budget in budgets:
        middle = int(budget.log_loss.argmin())
        first = max(0, min(middle - WINDOW // 2, len(budget.log_n) - WINDOW))
        at = slice(first, first + WINDOW)
        x, y = budget.log_n[at] - budget.log_n[middle], budget.log_loss[at]
        if len(x) == WINDOW:
            r = y - np.polyval(np.polyfit(x, y, WINDOW - 2), x)
            # A cubic through means of several runs is off by less than one run is.
            squares += float(np.sum(r * r)) * float(np.mean(budget.runs[at]))
            freedom += 1
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


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
        where = f"its least loss is at the {side} size" if edge else "its valley is not convex"
        return f"the minimum is inside in {valid.mean():.0%} of the draws; {where}"
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
