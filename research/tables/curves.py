"""Runs of which a table has several rows, along their training."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from research.tables.columns import Row
from research.tables.numbers import parse_number
from research.tables.states import is_missing

NAMES = ("name", "run_name", "run_id", "id", "trial_id", "experiment")  # that are no column run
_ID = re.compile(r"(?!(?:data|dataset|group|sweep|user|node|gpu|job|task)_)\w+_u?u?id")
EVEN, POINTS = 0.02, 6  # relative differences, and how many, of tokens along a logged curve
AT_STEP = ("step", "global_step", "iteration", "training_iteration", "iter")
AXES = ("tokens", "step", "steps", "flops", "iteration", "training_iteration", "global_step")


def curve_warning(rows: Sequence[Row]) -> list[str]:
    """A warning where usable rows look like points of curves. (Evaluations of this project say
    themselves which part of a run they are.)"""
    curves = {
        name: of_run
        for name, of_run in _by_run(rows).items()
        if len(of_run) > 2
        and len({row.get("params") for row in of_run}) == 1
        and _training_axis(of_run)
    }
    if not curves:
        return _evenly_logged(rows) or _of_steps(rows)
    first, of_first = next(iter(curves.items()))
    count = sum(len(of_run) - 1 for of_run in curves.values())
    return [
        f"{len(curves)} runs have several rows at growing tokens or steps (such as "
        f"{first}, {len(of_first)} rows): {count} rows look like points of a curve, "
        "from before the end of its schedule, for which a law of final losses does not hold; "
        "--last_rows fits the last row of each run, --law=envelope is meant for curves"
    ]


def _evenly_logged(rows: Sequence[Row]) -> list[str]:
    """A warning where rows without names are of several sizes, each at evenly spaced tokens, as a
    run logs them: who plans a sweep takes factors."""
    sizes: dict[Any, set[float]] = defaultdict(set)
    for row in rows:
        if row.get("unnamed") and isinstance(row.get("tokens"), float | int):
            sizes[row.get("params")].add(float(row["tokens"]))
    even = []
    for size, tokens in sizes.items():
        at = sorted(tokens)
        gaps = [b - a for a, b in itertools.pairwise(at)]
        if len(at) >= POINTS and max(gaps) - min(gaps) <= EVEN * max(gaps) + 1:
            even.append((size, len(at)))
    if len(even) < 2 or 2 * len(even) < len(sizes):
        return []
    size, count = even[0]
    return [
        f"rows of {len(even)} sizes are at evenly spaced tokens (params {size:.4g}: {count} rows), "
        "as a run logs its curve: from before the end of a schedule they are too high, and a law "
        "of final losses does not hold; give a column run, and --last_rows fits the last of each"
    ]


def _of_steps(rows: Sequence[Row]) -> list[str]:
    """A warning where rows without names are of a few steps each, as a log has them: who plans a
    sweep says how many steps a run has, not at which it is."""
    names = dict.fromkeys(str(k) for row in rows for k in row)
    name = next((n for n in names if _bare(n) in AT_STEP), None)
    if name is None or not all(row.get("unnamed") for row in rows):
        return []
    counts = Counter(parse_number(row.get(name)) for row in rows)
    if len(counts) < 3 or min(counts.values()) < 2:
        return []
    return [
        f"{name!r} has {len(counts)} values, each of several rows: points of curves, from before "
        "the end of a schedule, are too high for a law of final losses; give a column run, and "
        f"--last_rows fits the last of each, or --where='{name}==VALUE'"
    ]


def last_rows(rows: Sequence[Row]) -> list[bool]:
    """Which of the usable rows are the last of their run."""
    last = set()
    for of_run in _by_run(rows).values():
        axis = _training_axis(of_run) or "tokens"
        last.add(id(max(of_run, key=lambda row: parse_number(row.get(axis)) or 0.0)))
    named = {id(row) for of_run in _by_run(rows).values() for row in of_run}
    return [id(row) not in named or id(row) in last for row in rows]


def _by_run(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by their run, or where no column is called so by one that names runs otherwise."""
    runs: dict[str, list[Row]] = defaultdict(list)
    names = [str(n) for n in (rows[0] if rows else ())]
    name = next((n for n in names if _bare(n) in NAMES), None)
    name = name or next((n for n in names if _ID.fullmatch(_bare(n))), None)
    for row in rows:
        own = None if row.get("unnamed") else row.get("run")
        called = own if own is not None or name is None else row.get(name)
        if not is_missing(called) and parse_number(row.get("part_of_run")) is None:
            runs[str(called)].append(row)
    return runs


def _bare(name: str) -> str:
    return name.replace("/", ".").split(".")[-1].strip("_ ").lower().replace(" ", "_")


def _training_axis(rows: Sequence[Row]) -> str | None:
    """The column in which all rows of a run differ: tokens, steps or FLOPs."""
    for name in dict.fromkeys(str(k) for row in rows for k in row):
        if _bare(name) in AXES:
            values: list[Any] = [parse_number(row.get(name)) for row in rows]
            if None not in values and len(set(values)) == len(values):
                return name
    return None
