"""Some of very many rows: a sample that covers sizes and lengths as the table does."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.tables import curves, table, where
from research.tables.columns import Row
from research.tables.numbers import parse_number

MOST_ROWS = 10_000  # beyond which intervals and checks of a fit take very long
MOST_OF_AVERAGE = 1_000  # of a fit of several laws, which took 65 s of a core
ENOUGH = 500  # rows, where no number is given
STRATA = 32  # of sizes; within each, rows are taken evenly by length
SIZES, LENGTHS = ("params", "size"), ("tokens", "flops", "steps")


def sample_rows(
    rows: Sequence[Row],
    count: int | None,
    seed: int = 0,
    condition: str | None = None,
    last_rows: bool = False,
    most: float = MOST_ROWS,
) -> tuple[Sequence[Row], dict[str, int] | None]:
    """`count` of the rows that meet `condition` (of each run the last one where `last_rows` asks
    for it), and {"rows", "of"}; all rows and None where there are no more than that.

    The same for the same table and seed, whatever the order of its rows. Raises BadInput for more
    than `most` of which no sample is asked for.
    """
    if len(rows) <= (count or most):
        return rows, None
    met = _met(rows, condition, last_rows)
    if len(met) <= (count or most):
        return rows, None
    if count is None:
        average = most < MOST_ROWS
        what = "several laws are fitted" if average else "a law is fitted"
        other = f", --law=chinchilla up to {MOST_ROWS:,} of them" if average else ""
        raise BadInput(
            f"{len(met):,} rows: {what} to at most {most:,}; --sample={ENOUGH} fits a sample of "
            f"them that covers sizes and lengths alike, --where or --last_rows fewer{other}"
        )
    ordered = sorted(met, key=_order(met))
    start = np.random.default_rng(seed).uniform()
    chosen = ((start + np.arange(count)) * len(ordered) / count).astype(int)
    sample = [ordered[i] for i in chosen]
    places = {id(row): place for row, place in zip(rows, table.places_of(rows), strict=True)}
    out = table.with_rows(rows, sample)
    out.places = [places[id(row)] for row in sample]
    return out, {"rows": count, "of": len(met)}


def _met(rows: Sequence[Row], condition: str | None, last_rows: bool) -> list[Row]:
    met = list(rows)
    if condition:
        keep = where.match_where(met, condition)
        met = [row for row, meets in zip(met, keep, strict=True) if meets]
    if last_rows:
        met = [row for row, keep in zip(met, curves.last_rows(met), strict=True) if keep]
    return met


def _order(rows: Sequence[Row]) -> Any:
    """Sorts by stratum of size, then by length, then by whatever tells rows apart."""
    sizes = np.array([_number(row, SIZES) for row in rows])
    edges = np.unique(np.quantile(sizes, np.arange(1, STRATA) / STRATA))

    def key(row: Row) -> tuple:
        stratum = int(np.searchsorted(edges, _number(row, SIZES), side="right"))
        length = _number(row, LENGTHS)
        return stratum, length, str(row.get("run")), str(row.get("loss")), str(sorted(row.items()))

    return key


def _number(row: Row, names: Sequence[str]) -> float:
    for name in names:
        value = parse_number(row.get(name))
        if value is not None and math.isfinite(value):
            return value
    return 0.0
