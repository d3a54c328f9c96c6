"""A worker of a sweep: it takes work units and trains them until nothing is left.

How launcher and workers work together:

- A launch writes one file (see sweep_file) with the points and their grouping. A worker is started
  with its path and that of the workdir, and with no list of what to do: every worker makes the same
  units from it (see work_units).
- A worker takes the units that nobody holds, by the leases of their runs. What is done, and what
  failed why, is only in the files of the runs. So two launches of one sweep share its work as two
  workers of one launch do, and nothing is trained twice.
- Of a worker of several processes the first takes units, and sends each to the others, who train
  it together with the first (see `Assignment`).
- On SIGTERM, which the launcher sends, a worker saves and ends with PREEMPTED. It ends with
  BAD_INPUT if its devices cannot take a point, with IO_ERROR if the disk fails; a run that fails
  does not end it. A worker that dies, hangs or is preempted is started again (see launch.job).
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from research.config.sweeps import problems_of_points
from research.errors import BadInput, Damaged, Held, Lost, Preempted, UnsafeFile
from research.parallel import distributed
from research.planning import memory
from research.runs.directory import ReadOnlyRunDirectory, RunDirectory
from research.sweep import work_units
from research.sweep.points import Point
from research.sweep.work_units import WorkUnit
from research.training.loop import preflight
from research.training.progress import Progress

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between looks at runs that others hold


class Assignment(NamedTuple):
    """What process 0 sends to the others of its worker before each unit: the runs that all of them
    train now, of which there may be none, and the fields of the unit. None ends the worker."""

    runs: Sequence[str]
    prefixes: Mapping[str, Sequence[tuple[str, int]]]
    kept_steps: Mapping[str, int]


def check_points(points: Iterable[Point], workdir: str | Path) -> None:
    """Raise BadInput if the devices of this process cannot take one of the pending points."""
    problems: list[tuple[str, str]] = []
    for point in (p for p in points if p.pending):
        try:
            if large := preflight(point.run, _directory(point, workdir)):
                memory.check_fits(*large)
        except BadInput as error:
            problems += [(str(point.overrides), line) for line in error.problems]
        except Damaged as error:  # this run fails, the others continue
            log.warning("%s", error)
    if problems:
        raise BadInput(*problems_of_points(problems))


def run_worker(
    points: Sequence[Point],
    workdir: str | Path,
    progress: Progress,
    stop: Callable[[], bool],
    grouping: str = "auto",
) -> None:
    """Take units and train them until every one is done, failed or diverged, by whomever.

    Units of a program that this process has compiled come first, those of a program that others are
    at last, smaller ones before larger; one that its process died of comes after all others. What
    a live process holds is waited for: if it dies, it is taken over.

    Of a worker of several processes the first does this, and the others train what it sends.
    Raises Preempted when asked to stop, StorageError since a disk that refuses one run refuses the
    next.
    """
    if not distributed.is_primary():
        _train_assignments(points, workdir, progress, stop)
        return
    left = work_units.make_units(points, workdir, grouping)
    busy: list[WorkUnit] = []
    compiled, elsewhere = set(), set()

    def priority(unit: WorkUnit) -> tuple:
        mine = 0 if unit.program in compiled else 2 if unit.program in elsewhere else 1
        return max(p.deaths for p in unit.points), mine, unit.flops

    while left or busy:
        if distributed.any_process(stop()):
            raise Preempted(f"stopped with {len(left) + len(busy)} units left")
        if not left:
            time.sleep(POLL)
            left, busy = busy, []
        unit = min(left, key=priority)
        left.remove(unit)
        try:
            trained = _train_unit(unit, workdir, progress, stop)
        except Held as error:
            log.debug("%s", error)
            busy.append(unit)
            elsewhere.add(unit.program)
        else:
            if trained:
                compiled.add(unit.program)
    distributed.any_process(False)
    _send(None)


def _train_unit(
    unit: WorkUnit, workdir: str | Path, progress: Progress, stop: Callable[[], bool]
) -> bool:
    """Train the pending runs of a unit; False if there were none. Raises Held if another process
    trains one of them, Preempted and StorageError; other errors are recorded."""
    with contextlib.ExitStack() as stack:
        points, directories = [], []
        for point in unit.points:
            directory = _directory(point, workdir)
            if _has_ended(point, directory):
                progress.skip_run(point.run.facts)
                continue
            try:
                stack.enter_context(directory)
            except Held:
                _send(Assignment((), {}, {}))
                raise
            except (Damaged, UnsafeFile) as error:  # nothing is written there, not even why
                log.error("%s", error)
                progress.skip_run(point.run.facts)
                continue
            if not _has_ended(point, directory):  # by one that held it until now
                points.append(point)
                directories.append(directory)
        names = [point.run.id for point in points]
        _send(Assignment(names, unit.prefixes, unit.kept_steps))
        if points:
            unit = replace(unit, points=tuple(points))
            try:
                work_units.train_unit(unit, directories, progress, stop)
            except Held as error:  # the other processes are in the midst of it
                if distributed.process_count() > 1:
                    raise Lost(str(error)) from error
                raise
        return bool(points)


def _directory(
    point: Point, workdir: str | Path, kind: type[RunDirectory] = RunDirectory
) -> RunDirectory:
    out = kind(workdir, point.run.id)
    out.accept_changes, out.labels = point.accept_changes, point.labels
    return out


def _has_ended(point: Point, directory: RunDirectory) -> bool:
    return directory.result is not None or directory.failures > point.ignored_failures


def _send(assignment: Assignment | None) -> None:
    distributed.broadcast(lambda: assignment and assignment._asdict())


def _receive() -> Assignment | None:
    fields = distributed.broadcast(lambda: None)
    return Assignment(**fields) if fields is not None else None


def _train_assignments(
    points: Sequence[Point], workdir: str | Path, progress: Progress, stop: Callable[[], bool]
) -> None:
    """Train, with process 0, what it sends."""
    known = {point.run.id: point for point in points}
    while True:
        if distributed.any_process(stop()):
            raise Preempted("stopped")
        if (sent := _receive()) is None:
            return
        if sent.runs:
            some = tuple(known[run_id] for run_id in sent.runs)
            unit = WorkUnit(some, prefixes=sent.prefixes, kept_steps=sent.kept_steps)
            directories = [_directory(point, workdir, ReadOnlyRunDirectory) for point in some]
            work_units.train_unit(unit, directories, progress, stop)
