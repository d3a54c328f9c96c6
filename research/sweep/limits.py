"""What a sweep may cost: the flags that say so, and the most expensive runs dropped or the sweep
rejected. Works on predicted prices; needs no jax."""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from research.errors import BadInput
from research.io.humanize import flops_text

Facts = Mapping[str, Any]  # what a table says of a run before it is trained (see run.make_run)


class PlannedRun(NamedTuple):
    """A point of the plan. `seconds` to train it and `compile_seconds` for its `program` (once for
    all points that share it), where they can be predicted; `memory` in bytes on one device; `unit`
    names the runs that it is trained with; `settings` are the keys of its config."""

    run: str
    status: str
    facts: Facts
    seconds: float | None = None
    compile_seconds: float = 0.0
    program: object = None
    memory: float | None = None
    unit: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def pending(self) -> bool:
        return self.status not in ("done", "diverged")

    def __str__(self) -> str:
        f = self.facts
        size = f"{f['params']:,} params, {flops_text(f['flops'])} FLOPs"
        return f"run {self.run} ({size}, seed {f['seed']})"


class Limits(NamedTuple):
    """What a sweep may cost, and whether one that costs more loses its most expensive runs (`trim`)
    or is rejected. `calibrate` times the programs again."""

    max_flops: float | None = None
    max_hours: float | None = None
    trim: bool = False
    calibrate: bool = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of planning."""
    parser.add_argument("--plan", action="store_true", help="show the points, train nothing")
    help_ = "time the smallest and the largest program here first, to predict seconds (kept)"
    parser.add_argument("--calibrate", action="store_true", help=help_)
    for name, what in (("max_flops", "training FLOPs"), ("max_hours", "predicted hours")):
        help_ = f"reject a sweep whose pending runs need more {what}"
        parser.add_argument(f"--{name}", type=float, metavar="X", help=help_)
    help_ = "drop the most expensive runs instead of rejecting the sweep"
    parser.add_argument("--trim", action="store_true", help=help_)


def parse_limits(args: argparse.Namespace) -> Limits:
    """The limits that the flags set. Raises BadInput for a limit that is not a finite number above
    0, and for --trim without one."""
    out = Limits(args.max_flops, args.max_hours, args.trim, args.calibrate)
    problems = [
        f"--{name}={value:g}: expected a finite number above 0"
        for name, value in (("max_flops", out.max_flops), ("max_hours", out.max_hours))
        if value is not None and not 0 < value < math.inf
    ]
    if out.trim and out.max_flops is None and out.max_hours is None:
        problems.append("--trim: nothing to trim to; give --max_flops or --max_hours")
    if problems:
        raise BadInput(*problems)
    return out


def apply_limits(rows: Sequence[PlannedRun], limits: Limits) -> tuple[list[PlannedRun], list[str]]:
    """The rows that the limits allow, and a message for each dropped one, most expensive first.

    Only pending runs count. Raises BadInput, saying what would fit, where not all do and `trim` is
    not set, or none does.
    """
    allowed, messages = list(rows), []
    for name, limit, cost in (
        ("flops", limits.max_flops, total_flops),
        ("hours", limits.max_hours, _total_hours),
    ):
        if limit is not None:
            allowed, dropped = _drop_expensive(allowed, name, limit, cost, limits.trim)
            messages += [f"dropped by --max_{name}={limit:g}: {row}" for row in dropped]
    return allowed, messages


def total_flops(rows: Iterable[PlannedRun]) -> float:
    return sum(row.facts["flops"] for row in rows)


def total_compile_seconds(rows: Iterable[PlannedRun]) -> float:
    """Each program counts once."""
    return sum({row.program: row.compile_seconds for row in rows}.values())


def _total_hours(rows: Iterable[PlannedRun]) -> float:
    rows = list(rows)
    if untimed := [row for row in rows if row.seconds is None]:
        raise BadInput(f"--max_hours: {untimed[0]} cannot be timed on this machine")
    return (sum(row.seconds or 0.0 for row in rows) + total_compile_seconds(rows)) / 3600


def _drop_expensive(
    rows: list[PlannedRun],
    name: str,
    limit: float,
    cost: Callable[[Sequence[PlannedRun]], float],
    trim: bool,
) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """The rows without the most expensive of the pending ones, and these."""
    pending = sorted((row for row in rows if row.pending), key=lambda row: cost([row]))
    total, fit = cost(pending), len(pending)
    while fit and cost(pending[:fit]) > limit:
        fit -= 1
    if fit == len(pending):
        return rows, []
    needs = f"--max_{name}={limit:g}: the {len(pending)} runs to train need {total:.3g} {name}"
    if not fit:
        raise BadInput(f"{needs}; not even the cheapest fits, with {cost(pending[:1]):.3g}")
    if not trim:
        raise BadInput(
            f"{needs}; the {fit} cheapest would fit ({cost(pending[:fit]):.3g}); --trim drops the "
            f"{len(pending) - fit} most expensive, --max_{name}={_round_up(total)} allows all"
        )
    dropped = pending[fit:][::-1]
    ids = {row.run for row in dropped}
    return [row for row in rows if row.run not in ids], dropped


def _round_up(value: float) -> str:
    """In two digits, not less than `value`."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / scale) * scale:.2g}"
