"""Runs of which a table has several rows, along their training."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from research.tables.columns import Row
from research.tables.numbers import parse_number

AXES = ("tokens", "step", "steps", "flops", "iteration", "training_iteration", "global_step")


def curve_warning(rows: Sequence[Row]) -> list[str]:
    """A warning where usable rows look like points of curves. (Evaluations of this project say
    themselves which part of a run they are.)"""
    curves = [
        of_run
        for of_run in _by_run(rows).values()
        if len(of_run) > 2
        and len({row.get("params") for row in of_run}) == 1
        and _training_axis(of_run)
    ]
    if not curves:
        return []
    count = sum(len(of_run) - 1 for of_run in curves)
    return [
        f"{len(curves)} runs have several rows at growing tokens or steps (such as "
        f"{curves[0][0]['run']}, {len(curves[0])} rows): {count} rows look like points of a curve, "
        "from before the end of its schedule, for which a law of final losses does not hold; "
        "--last_rows fits the last row of each run, --law=envelope is meant for curves"
    ]


def last_rows(rows: Sequence[Row]) -> list[bool]:
    """Which of the usable rows are the last of their run."""
    last = set()
    for of_run in _by_run(rows).values():
        axis = _training_axis(of_run) or "tokens"
        last.add(id(max(of_run, key=lambda row: parse_number(row.get(axis)) or 0.0)))
    return [bool(row.get("unnamed")) or id(row) in last for row in rows]


def _by_run(rows: Sequence[Row]) -> dict[str, list[Row]]:
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.get("unnamed") and parse_number(row.get("part_of_run")) is None:
            runs[str(row["run"])].append(row)
    return runs


def _training_axis(rows: Sequence[Row]) -> str | None:
    """The column in which all rows of a run differ: tokens, steps or FLOPs."""
    for name in dict.fromkeys(str(k) for row in rows for k in row):
        last = name.replace("/", ".").split(".")[-1].lower().strip("_ ")
        if last in AXES:
            values: list[Any] = [parse_number(row.get(name)) for row in rows]
            if None not in values and len(set(values)) == len(values):
                return name
    return None
