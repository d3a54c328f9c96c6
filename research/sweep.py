"""A sweep: points → runs → plan → the pending ones, one after the other → table.

A run that fails becomes a row with its reason and the others go on. Launching a sweep again trains
what is not done: results are keyed by what a run means, so nothing is trained twice.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research import records, train
from research.errors import BadInput, Diverged, Held, IsoflopError, Preempted, StorageError
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
    return sorted(points.values(), key=lambda p: p.run.facts["flops"])


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
