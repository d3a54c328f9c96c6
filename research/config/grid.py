"""Helpers for `sweep()` functions: points as lists of flat overrides. Imports nothing.

A point is a dict from dotted config keys to values, such as {"size": 1e5, "optim.lr": 0.3}. A sweep
is a list of points; these functions combine lists.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

Point = dict[str, object]

# N* = k C^a, the center of an isoFLOP sweep's sizes: with D = 20 N, C = 6 N D is C = 120 N^2
# (Hoffmann et al. 2022, whose approaches 1 and 2 found exponents of 0.50 and 0.49).
CHINCHILLA = (120**-0.5, 0.5)


def values(key: str, choices: Iterable[object]) -> list[Point]:
    """One point for each value of one key."""
    return [{key: choice} for choice in choices]


def sizes(targets: Iterable[float]) -> list[Point]:
    """One point for each target parameter count."""
    return values("size", [float(t) for t in targets])


def seeds(n: int, first: int = 0) -> list[Point]:
    """`n` replicates: both the initialization and the order of the data differ."""
    return [{"seed": k, "data.seed": k} for k in range(first, first + n)]


def ladder(targets: Iterable[float], replicated: float, n: int = 3) -> list[Point]:
    """One point for each target parameter count, and `n` seeds of the one that is `replicated`:
    their spread is the noise of a run."""
    return chain(product(sizes(targets), seeds(1)), product(sizes([replicated]), seeds(n)))


def section(path: str, fields: Mapping[str, object]) -> Point:
    """A whole section, such as the model of another config, as one point."""
    return {f"{path}.{key}": value for key, value in fields.items()}


def product(*sweeps: Sequence[Point]) -> list[Point]:
    """Every combination of one point from each sweep. Raises ValueError if two set one key."""
    return [_merge(*points) for points in itertools.product(*sweeps)]


def zip_(*sweeps: Sequence[Point]) -> list[Point]:
    """The i-th points of all sweeps together. Raises ValueError if their lengths differ."""
    return [_merge(*points) for points in zip(*sweeps, strict=True)]


def chain(*sweeps: Sequence[Point]) -> list[Point]:
    """All sweeps one after the other, without exact repeats."""
    out: list[Point] = []
    for point in itertools.chain(*sweeps):
        if point not in out:
            out.append(point)
    return out


def log_grid(low: float, high: float, n: int) -> list[float]:
    """`n` values from `low` to `high`, both included, evenly spaced in the logarithm; one value is
    their geometric mean. Raises ValueError unless both are above 0 and `n` at least 1."""
    if n < 1 or not (low > 0 and high > 0):
        raise ValueError(f"log_grid({low}, {high}, {n}): expected ends above 0 and n of at least 1")
    if n == 1:
        return [math.sqrt(low * high)]
    ratio = math.log(high / low) / (n - 1)
    return [low * math.exp(ratio * k) for k in range(n)]


def isoflop(
    budgets: Iterable[float],
    targets: Iterable[float] | None = None,
    *,
    n: int | None = None,
    around: tuple[float, float] = CHINCHILLA,
    spread: float = 4.0,
    unit: str = "flops",
) -> list[Point]:
    """Every size at every budget; a budget is a horizon in training FLOPs.

    Either `targets` are the sizes of all budgets, or each budget C has `n` sizes of its own, from
    N* / `spread` to N* `spread`, evenly spaced in the logarithm, around a prior law N* = k C^a,
    `around` = (k, a). `unit` says how FLOPs are counted when tokens are solved from them: "flops"
    (exact, with head and whole attention map), "flops_exact_causal", "flops_6nd" or
    "flops_6nd_non_embedding". Raises ValueError for both or neither of `targets` and `n`.
    """
    if (targets is None) == (n is None):
        raise ValueError("isoflop: give either the sizes or n, how many around the prior law")
    fixed, out = None if targets is None else list(targets), []
    for budget in budgets:
        horizon = {"horizon.unit": unit, "horizon.amount": float(budget)}
        best = around[0] * budget ** around[1]
        own = log_grid(best / spread, best * spread, n or 1) if fixed is None else fixed
        out += product([horizon], sizes(own))
    return out


def _merge(*points: Point) -> Point:
    merged: Point = {}
    for point in points:
        if twice := merged.keys() & point.keys():
            raise ValueError(f"two sweeps set {sorted(twice)}")
        merged |= point
    return merged
