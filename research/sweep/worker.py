"""A sweep: points → runs → plan → units of pending ones → taken by workers until nothing is left.

Workers pull: each takes the units that nobody holds, and what is to do and what is done is only in
the files of the runs. So two launches of one sweep share its work as two workers of one launch do.
A run that fails becomes a row with its reason and the others go on; nothing is trained twice.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from research.errors import BadInput, Damaged, Held, Lost, Preempted, UnsafeFile
from research.parallel import distributed
from research.runs.directory import ReadOnlyRunDirectory, RunDirectory
from research.sweep import work_units
from research.sweep.points import Point
from research.sweep.work_units import Unit
from research.training.loop import check_run
from research.training.progress import Progress

log = logging.getLogger(__name__)
END = "end"  # what process 0 says to the others when all is done
POLL = 0.5  # seconds between looks at runs that others hold


def run_worker(
    points: Sequence[Point],
    workdir: str | Path,
    progress: Progress,
    stop: Callable[[], bool],
    grouping: str = "auto",
) -> None:
    """Take units and train them until every one is done, failed or diverged, by whomever.

    Units of a shape that this process has compiled come first, those of a shape that others are
    at last, smaller ones before larger; one that its process died of comes after all others. What
    a live process holds is waited for: if it dies, it is taken over.

    Of a worker of several processes the first does this, and the others train what it says.
    Raises Preempted when asked to stop, StorageError since a disk that refuses one run refuses the
    next.
    """
    if not distributed.first():
        _follow(points, workdir, progress, stop)
        return
    left: list[Unit] = work_units.units(points, workdir, grouping)
    held: list[Unit] = []
    compiled, elsewhere = set(), set()

    def rank(unit: Unit) -> tuple:
        mine = 0 if unit.shape in compiled else 2 if unit.shape in elsewhere else 1
        return max(p.deaths for p in unit.points), mine, unit.flops

    while left or held:
        if distributed.either(stop()):
            raise Preempted(f"stopped with {len(left) + len(held)} units left")
        if not left:
            time.sleep(POLL)
            left, held = held, []
        unit = min(left, key=rank)
        left.remove(unit)
        try:
            trained = _take(unit, workdir, progress, stop)
        except Held as error:
            log.debug("%s", error)
            held.append(unit)
            elsewhere.add(unit.shape)
        else:
            if trained:
                compiled.add(unit.shape)
    distributed.either(False)
    distributed.agree(lambda: END)


def check_points(points: Iterable[Point], workdir: str | Path) -> None:
    """Raise BadInput if the devices of this process cannot take one of the pending points."""
    problems: list[str] = []
    for point in (p for p in points if p.pending):
        try:
            check_run(point.run, RunDirectory(workdir, point.run.id))
        except BadInput as error:
            problems += [f"point {point.overrides}: {line}" for line in error.problems]
        except Damaged as error:  # this run fails, the others go on
            log.warning("%s", error)
    if problems:
        raise BadInput(*problems)


def _take(unit: Unit, workdir: str | Path, progress: Progress, stop: Callable[[], bool]) -> bool:
    """Train what is pending of a unit; whether anything was. Raises Held if another process is at
    a part of it, Preempted and StorageError; what else goes wrong is noted."""
    with contextlib.ExitStack() as stack:
        points, directories = [], []
        for point in unit.points:
            directory = RunDirectory(workdir, point.run.id)
            if _ended(point, directory):
                progress.passed(point.run.facts)
                continue
            try:
                stack.enter_context(directory)
            except Held:
                distributed.agree(lambda: None)
                raise
            except (Damaged, UnsafeFile) as error:  # nothing is written there, not even why
                log.error("%s", error)
                progress.passed(point.run.facts)
                continue
            if not _ended(point, directory):  # by one that held it until now
                points.append(point)
                directories.append(directory)
        names = [point.run.id for point in points]
        distributed.agree(lambda: {"runs": names, "trunks": unit.trunks, "branches": unit.branches})
        if points:
            try:
                work_units.train_unit(
                    replace(unit, points=tuple(points)), directories, progress, stop
                )
            except Held as error:  # the other processes are in the midst of it
                if distributed.count() > 1:
                    raise Lost(str(error)) from error
                raise
        return bool(points)


def _follow(
    points: Sequence[Point], workdir: str | Path, progress: Progress, stop: Callable[[], bool]
) -> None:
    """Train, with process 0, what `work` takes there."""
    known = {point.run.id: point for point in points}
    while True:
        if distributed.either(stop()):
            raise Preempted("stopped")
        if (told := distributed.agree(lambda: None)) == END:
            return
        if told and told["runs"]:
            some = tuple(known[run_id] for run_id in told["runs"])
            unit = Unit(some, trunks=told["trunks"], branches=told["branches"])
            directories = [ReadOnlyRunDirectory(workdir, run_id) for run_id in told["runs"]]
            work_units.train_unit(unit, directories, progress, stop)


def _ended(point: Point, directory: RunDirectory) -> bool:
    return directory.result is not None or directory.failures > point.forgiven
