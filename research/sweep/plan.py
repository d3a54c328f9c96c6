"""A sweep before it trains: isoFLOP cells that tell nothing are dropped, the other points are
resolved, priced and held to the limits, and the plan says what is trained together and what it
costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from research.config import schema
from research.errors import BadInput
from research.parallel import device_memory
from research.planning import calibration
from research.runs.settings import settings_columns
from research.sweep import work_units
from research.sweep.limits import Facts, Limits, PlannedRun, apply_limits
from research.sweep.plan_text import plan_text
from research.sweep.points import (
    Point,
    ResolvedConfig,
    describe_changes,
    launched_with,
    locate_points,
    resolve_configs,
    retry_failed,
)
from research.sweep.work_units import WorkUnit

# An isoFLOP cell outside these is dropped. Both are wide: the best sizes lie between 5 and 1,000
# tokens per parameter, the tiny ones at the upper end, and a cell is there to bracket them.
MIN_STEPS = 50
TOKENS_PER_PARAM = (0.1, 1e4)
# Where the problem is the cell itself: a size or a length that cannot be.
CELL_KEYS = ("size:", "horizon.amount:", "optim.warmup.amount:")


class Plan(NamedTuple):
    """The `points` to train, pending or not, what there is to say of them, and what they cost."""

    points: list[Point]
    text: str
    rows: list[PlannedRun]


def plan_sweep(
    configs: Sequence[tuple[dict, dict]],
    workdir: str | Path,
    limits: Limits,
    grouping: str = "auto",
    retry: bool = False,
    num_processes: int = 1,
    accept_changes: bool = False,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """The plan of (overrides, checked config) pairs for workers of `num_processes` processes each;
    with `retry`, runs that failed are pending again; with `accept_changes`, runs that other code
    began are continued. `labels` are recorded of them.

    Trains nothing; every distinct config is made into a run once. Raises BadInput for points that
    cannot be run, and for more than the limits allow.
    """
    cells, dropped = drop_cells(resolve_configs(configs))
    points = locate_points(cells, workdir)
    points = retry_failed(points) if retry else points
    points = launched_with(points, accept_changes, labels)
    rows = price_points(points, limits.calibrate, needs_seconds=limits.max_hours is not None)
    rows, trimmed = apply_limits(rows, limits)
    ids, repeats = {row.run for row in rows}, len(cells) - len(points)
    points = [point for point in points if point.run.id in ids]
    units = work_units.make_units(points, workdir, grouping, num_processes=num_processes)
    names = _unit_names(units)
    notes = work_units.describe_units(units, grouping, num_processes) + dropped + trimmed
    text = plan_text(
        [row._replace(unit=names.get(row.run, "")) for row in rows],
        notes=notes + describe_changes(points, workdir),
        repeats=repeats,
        device_memory=device_memory.available(),
    )
    return Plan(points, text, rows)


def _unit_names(units: Sequence[WorkUnit]) -> dict[str, str]:
    """A name for the unit of every run that is not trained alone, by run id."""
    shared = [unit for unit in units if unit.members or unit.prefixes]
    return {
        point.run.id: f"{'vmapped' if unit.members else 'prefix'} {number}"
        for number, unit in enumerate(shared, 1)
        for point in unit.points
    }


def drop_cells(
    resolved: Sequence[ResolvedConfig],
) -> tuple[list[ResolvedConfig], list[str]]:
    """`resolved` without the isoFLOP cells that tell nothing, and a message for each of these, with
    the reason. Raises BadInput if none is left."""
    cells, messages = [], []
    for cell in resolved:
        if reason := _reject_reason(cell):
            size = cell.config["size"]
            horizon = "{amount:.3g} {unit}".format(**cell.config["horizon"])
            name = f"{cell.overrides}" if size is None else f"size {size:g} at {horizon}"
            messages.append(f"dropped: {name}: {reason}")
        else:
            cells.append(cell)
    if messages and not cells:
        raise BadInput(*messages)
    return cells, list(dict.fromkeys(messages))


def _reject_reason(cell: ResolvedConfig) -> str:
    """Why a point is dropped, or "": it is no isoFLOP cell, a good one, or one that cannot be run
    for a reason that is not its own, which is an error."""
    if cell.config["horizon"]["unit"] not in schema.FLOPS_UNITS:
        return ""
    if cell.run is not None:
        return reject_cell(cell.run.facts)
    own = all(line.startswith(CELL_KEYS) for line in cell.problems)
    return "; ".join(cell.problems) if own else ""


def reject_cell(facts: Facts) -> str:
    """Why an isoFLOP cell tells nothing about its budget, or ""."""
    if "budget" not in facts:
        return ""
    ratio, (low, high) = facts["tokens"] / facts["params"], TOKENS_PER_PARAM
    if facts["steps"] < MIN_STEPS:
        return f"{facts['steps']} steps, fewer than {MIN_STEPS}"
    if not low <= ratio <= high:
        return f"{ratio:.3g} tokens per parameter, outside {low:g} to {high:g}"
    return ""


def price_points(points: Sequence[Point], calibrate: bool, needs_seconds: bool) -> list[PlannedRun]:
    """The points as rows of the plan's table, with what they cost. With `calibrate`, or where
    seconds are needed and not known, the smallest and the largest of the pending programs are
    timed first."""
    pending = [point.run for point in points if point.pending]
    known = not needs_seconds or all(
        cost.seconds is not None for cost in calibration.predict(pending)
    )
    if calibrate or not known:
        calibration.calibrate(pending)
    costs = calibration.predict([point.run for point in points])
    return [
        PlannedRun(
            point.run.id,
            point.status,
            point.run.facts,
            *cost,
            settings=settings_columns(point.config),
        )
        for point, cost in zip(points, costs, strict=True)
    ]
