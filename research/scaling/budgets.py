"""The isoFLOP budgets of a table, runs far above their valleys, and the noise of a run there."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc, stdtr

from research.scaling.options import Options
from research.scaling.statistics import number_budgets, number_groups, pooled_sd
from research.tables import table
from research.tables.replicates import replicate_groups

SAME_SIZE = 0.05  # relative: sizes this near to each other are one
MIN_SIZES = 4  # of a budget
WINDOW = 5  # sizes around a minimum, through which a cubic has one degree of freedom left
DEFAULT_NOISE = 5e-4  # of log loss, where nothing tells it: 0.002 nats at a loss of 4
DIFFERENT = 0.05  # p-value below which replicates and valleys are of different noise
OUTLIER, OUTLIER_SHARE = 1e-4, 0.02  # p-value, and share of the loss above the valley
SCATTER, ASSUMED = "scatter about smooth valleys", "assumed"  # what tells the noise, and ": why"


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
class Noise:
    """The standard deviation of the log loss of one run, what tells it, and from how many degrees
    of freedom (None: it is given or assumed)."""

    value: float
    source: str
    freedom: int | None = None


def group_by_budget(rows: Sequence[table.Row]) -> tuple[list[Budget], list[dict[str, str]]]:
    """The budgets with enough sizes, and the others with the reason."""
    out, dropped = [], []
    for group in _budgets(rows):
        flops = math.exp(_mean_log(group, "flops"))
        sizes = list(_sizes(group))
        if len(sizes) < MIN_SIZES:
            s = "" if len(sizes) == 1 else "s"
            reason = f"{len(sizes)} size{s} at this budget; at least {MIN_SIZES} are needed"
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


def merged_sizes(rows: Sequence[table.Row]) -> list[str]:
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
        return Noise(rough, f"{SCATTER}: replicates alone say {sd:.2%}", valleys)
    why = "too few runs are repeated" if any(len(g) > 1 for g in groups) else "no run was repeated"
    if freedom and not sd:
        why = "only copies are repeated"
    if valleys >= 2:
        return Noise(max(DEFAULT_NOISE, rough), f"{SCATTER}: {why}", valleys)
    return Noise(DEFAULT_NOISE, f"{ASSUMED}: {why}")


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
