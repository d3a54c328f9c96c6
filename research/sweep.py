"""A sweep: points → runs → plan → the pending ones, one after the other → table.

A run that fails becomes a row with its reason and the others go on. Launching a sweep again trains
what is not done: results are keyed by what a run means, so nothing is trained twice.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research import check, cost, records, train
from research.errors import BadInput, Diverged, Held, IsoflopError, Preempted, StorageError
from research.plan import Limits, Row, nonsense, text, within
from research.progress import Progress
from research.records import RunDirectory
from research.run import Run, make_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the overrides that made it, its run, and where that run stands."""

    overrides: dict
    run: Run
    status: str

    @property
    def pending(self) -> bool:
        return self.status not in ("done", "diverged")


@dataclass
class Outcome:
    """What a launch did. `missing` says, by run id, why a run is not done."""

    trained: int = 0
    skipped: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def prepare(
    configs: Sequence[tuple[dict, dict]], workdir: str | Path, limits: Limits
) -> tuple[list[Point], str]:
    """The points that make sense and are within the limits, and the plan as text.

    Raises BadInput for points that cannot be run, and for more than the limits allow.
    """
    kept, left_out = sensible(configs)
    points = plan(kept, workdir)
    rows = priced(points, limits.calibrate, needed=limits.max_hours is not None)
    rows, trimmed = within(rows, limits)
    left, repeats = {row.run for row in rows}, len(kept) - len(points)
    told = text(rows, left_out=left_out + trimmed, repeats=repeats, room=cost.room())
    return [point for point in points if point.run.id in left], told


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
    if config["horizon"]["unit"] not in check.FLOPS_UNITS:
        return ""
    try:
        return nonsense(make_run(config).facts)
    except BadInput as error:  # all but a size or a length that cannot be is for `plan` to tell
        cannot = all(line.startswith(("size:", "optim.warmup.amount:")) for line in error.problems)
        return "; ".join(error.problems) if cannot else ""


def plan(configs: Iterable[tuple[dict, dict]], workdir: str | Path) -> list[Point]:
    """The points of (overrides, checked config) pairs, smallest FLOPs first, each run once.

    Trains nothing. Raises BadInput listing what is wrong with every point.
    """
    points: dict[str, Point] = {}
    problems: list[str] = []
    for overrides, config in configs:
        try:
            run = make_run(config)
        except BadInput as error:
            problems += [f"point {overrides}: {line}" for line in error.problems]
            continue
        if run.id not in points:
            path = RunDirectory(workdir, run.id).path
            status = records.row(path)["status"] if path.exists() else "new"
            points[run.id] = Point(overrides, run, status)
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    facts = {key: point.run.facts for key, point in points.items()}
    rank = {key: (f.get("budget", f["flops"]), f["params"]) for key, f in facts.items()}
    return [points[key] for key in sorted(points, key=lambda key: rank[key])]


def priced(points: Sequence[Point], calibrate: bool, needed: bool) -> list[Row]:
    """The points as rows of the plan's table, with what they cost. With `calibrate`, or where
    seconds are `needed` and not known, the smallest and the largest of the pending programs are
    timed first."""
    runs = [point.run for point in points]
    pending = [point.run for point in points if point.pending]
    known = not needed or all(price.seconds is not None for price in cost.of(pending))
    if calibrate or not known:
        cost.calibrate(pending)
    return [
        Row(point.run.id, point.status, point.run.facts, *price)
        for point, price in zip(points, cost.of(runs), strict=True)
    ]


def launch(
    points: Iterable[Point],
    workdir: str | Path,
    progress: Progress,
    stop: Callable[[], bool],
) -> Outcome:
    """Train the pending points in this process, one after the other.

    Raises BadInput, before the first run, if these devices cannot take one of them; Preempted when
    asked to stop; StorageError, since a disk that refuses one run refuses the next. Everything else
    that goes wrong with a run is noted and the next one starts.
    """
    points = list(points)
    _check(points, workdir)
    outcome = Outcome()
    for point in points:
        if not point.pending:
            outcome.skipped += 1
            if point.status != "done":
                outcome.missing[point.run.id] = point.status
            continue
        progress.begin(point.run.facts)
        directory = RunDirectory(workdir, point.run.id)
        try:
            with directory:
                # Another launch may have finished it while this one was busy.
                result = directory.result or _attempt(point, directory, progress.update, stop)
        except Held as error:  # another launch of this sweep is at it
            result = {"status": "held", "reason": str(error)}
        except (Preempted, StorageError):
            raise
        except Exception as error:
            if not isinstance(error, IsoflopError):
                log.exception("run %s failed", point.run.id)
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        if result["status"] == "done":
            outcome.trained += 1
            progress.ended(f"loss {result['loss']:.4f} in {result['seconds']:.0f} s")
        else:
            outcome.missing[point.run.id] = f"{result['status']}: {result['reason']}"
            progress.ended(outcome.missing[point.run.id])
    return outcome


def _check(points: Iterable[Point], workdir: str | Path) -> None:
    problems: list[str] = []
    for point in points:
        try:
            if point.pending:
                train.check(point.run, RunDirectory(workdir, point.run.id))
        except BadInput as error:
            problems += [f"point {point.overrides}: {line}" for line in error.problems]
    if problems:
        raise BadInput(*problems)


def _attempt(
    point: Point,
    directory: RunDirectory,
    progress: Callable[[int, float], None],
    stop: Callable[[], bool],
) -> Mapping[str, Any]:
    started = time.time()
    try:
        return train.fit(point.run, directory, progress, stop)
    except Diverged:
        return directory.result or {}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        directory.fail(reason, started=started, ended=time.time())
        raise
