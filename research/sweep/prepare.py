"""A sweep before it trains: the points that make sense and are within the limits, how they would be
trained together, what they cost, and the plan that says so."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from research.config import schema
from research.errors import BadInput
from research.planning import calibration, memory
from research.sweep import work_units
from research.sweep.plan import Limits, Row, nonsense, text, within
from research.sweep.points import Point, resolve_points, retry_failed
from research.sweep.work_units import Unit
from research.training.run import make_run


def prepare(
    configs: Sequence[tuple[dict, dict]],
    workdir: str | Path,
    limits: Limits,
    grouping: str = "auto",
    retry: bool = False,
    number: int = 1,
) -> tuple[list[Point], str]:
    """The points to train (those that failed too, with `retry`) by workers of `number`
    processes each, and the plan as text.

    Raises BadInput for points that cannot be run, and for more than the limits allow.
    """
    kept, left_out = sensible(configs)
    points = resolve_points(kept, workdir)
    points = retry_failed(points) if retry else points
    rows = priced(points, limits.calibrate, needed=limits.max_hours is not None)
    rows, trimmed = within(rows, limits)
    left, repeats = {row.run for row in rows}, len(kept) - len(points)
    points = [point for point in points if point.run.id in left]
    made = work_units.units(points, workdir, grouping, number=number)
    saved = sum(unit.saved for unit in made)
    told = text(
        [row._replace(group=_together(row.run, made)) for row in rows],
        saved={"by shared trunks": saved} if saved else {},
        left_out=[*work_units.words(made, grouping, number), *left_out, *trimmed],
        repeats=repeats,
        room=memory.room(),
    )
    return points, told


def _together(run_id: str, made: Sequence[Unit]) -> str:
    """What a run is trained with, for the plan; "" if alone."""
    for number, unit in enumerate((u for u in made if u.members or u.trunks), 1):
        if run_id in {point.run.id for point in unit.points}:
            return f"{'group' if unit.members else 'trunk'} {number}"
    return ""


def sensible(
    configs: Iterable[tuple[dict, dict]],
) -> tuple[list[tuple[dict, dict]], list[str]]:
    """The (overrides, checked config) pairs without the isoFLOP cells that make no sense, and a
    line with the reason for each of these. Raises BadInput if none is left."""
    kept, dropped = [], []
    for overrides, config in configs:
        if reason := _senseless(config):
            size, horizon = config["size"], "{amount:.3g} {unit}".format(**config["horizon"])
            cell = f"{overrides}" if size is None else f"size {size:g} at {horizon}"
            dropped.append(f"dropped: {cell}: {reason}")
        else:
            kept.append((overrides, config))
    if dropped and not kept:
        raise BadInput(*dropped)
    return kept, list(dict.fromkeys(dropped))


def _senseless(config: dict) -> str:
    """Why an isoFLOP cell makes no sense, or ""."""
    if config["horizon"]["unit"] not in schema.FLOPS_UNITS:
        return ""
    try:
        return nonsense(make_run(config).facts)
    except BadInput as error:  # all but a size or a length that cannot be is for `plan` to tell
        lengths = ("size:", "horizon.amount:", "optim.warmup.amount:")
        cannot = all(line.startswith(lengths) for line in error.problems)
        return "; ".join(error.problems) if cannot else ""


def priced(points: Sequence[Point], calibrate: bool, needed: bool) -> list[Row]:
    """The points as rows of the plan's table, with what they cost. With `calibrate`, or where
    seconds are `needed` and not known, the smallest and the largest of the pending programs are
    timed first."""
    runs = [point.run for point in points]
    pending = [point.run for point in points if point.pending]
    known = not needed or all(price.seconds is not None for price in calibration.of(pending))
    if calibrate or not known:
        calibration.calibrate(pending)
    return [
        Row(point.run.id, point.status, point.run.facts, *price)
        for point, price in zip(points, calibration.of(runs), strict=True)
    ]
