"""A sweep: points → runs → plan → units of pending ones → taken by workers until nothing is left.

Workers pull: each takes the units that nobody holds, and what is to do and what is done is only in
the files of the runs. So two launches of one sweep share its work as two workers of one launch do.
A run that fails becomes a row with its reason and the others go on; nothing is trained twice.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from research.config import cli
from research.errors import (
    BAD_INPUT,
    DONE,
    IO_ERROR,
    PREEMPTED,
    BadInput,
    Damaged,
    Held,
    Lost,
    Preempted,
    StorageError,
    UnsafeFile,
)
from research.io import files
from research.launch import AUTO, EXECUTORS, Job
from research.parallel import distributed
from research.runs import directory as records
from research.runs import lease
from research.runs.directory import Follower, RunDirectory
from research.sweep import watch, work_units
from research.sweep.work_units import Unit
from research.training import trainer as train
from research.training.progress import Progress
from research.training.run import Run, make_run

log = logging.getLogger(__name__)

END = "end"  # what process 0 says to the others when all is done
POLL = 0.5  # seconds between looks at runs that others hold


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the overrides that made it and its checked config, its run, and where
    that stands. `failures` counts its attempts that failed, of which `forgiven` do not keep it from
    being tried again; `deaths` those in a row whose process died."""

    overrides: dict
    config: dict
    run: Run
    status: str
    failures: int = 0
    forgiven: int = 0
    deaths: int = 0

    @property
    def pending(self) -> bool:
        if self.status == "failed":
            return self.failures <= self.forgiven
        return self.status not in ("done", "diverged")


@dataclass
class Outcome:
    """What a launch left. `trained` are done now and were not before; `missing` says, by run id,
    why a run is not done."""

    trained: int = 0
    skipped: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def plan(
    configs: Iterable[tuple[dict, dict]],
    workdir: str | Path,
    forgiven: Mapping[str, int] | None = None,
) -> list[Point]:
    """The points of (overrides, checked config) pairs, smallest FLOPs first, each run once.

    `forgiven` says, by run id, how many failures do not count. Trains nothing. Raises BadInput
    listing what is wrong with every point.
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
            stands = _stands(RunDirectory(workdir, run.id), (forgiven or {}).get(run.id, 0))
            points[run.id] = Point(overrides, config, run, **stands)
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    facts = {key: point.run.facts for key, point in points.items()}
    rank = {key: (f.get("budget", f["flops"]), f["params"]) for key, f in facts.items()}
    return [points[key] for key in sorted(points, key=lambda key: rank[key])]


def _stands(directory: RunDirectory, forgiven: int) -> dict[str, Any]:
    if not directory.path.exists():
        return {"status": "new", "forgiven": forgiven}
    last = None
    with contextlib.suppress(Damaged):  # which the row says
        last = lease.holder(directory.path / "lease")
    return {
        "status": records.row(directory.path)["status"],
        "failures": directory.failures,
        "forgiven": forgiven,
        "deaths": last.deaths if last else 0,
    }


def forgive(points: Iterable[Point]) -> list[Point]:
    """The points, those that failed pending again."""
    return [replace(p, forgiven=p.failures) for p in points]


def chosen(
    executor: str,
    points: Sequence[Point],
    workdir: str | Path,
    grouping: str = "auto",
    workers: int | None = None,
    number: int = 1,
) -> str:
    """The executor that "auto" stands for here; another is itself."""
    if executor != AUTO:
        return executor
    if workers:
        return "local"
    if number > 1:
        return "inline"
    apart = work_units.apart(work_units.units(points, workdir, grouping), points, workdir)
    return "local" if apart else "inline"


def launch(
    points: Sequence[Point],
    workdir: str | Path,
    stop: Callable[[], bool],
    executor: str = "inline",
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    grouping: str = "auto",
    number: int = 1,
) -> Outcome:
    """Have the pending points trained by the workers of `executor`, each of which is `number`
    processes, and wait for them.

    Raises BadInput if the devices of the workers cannot take one of the points, Preempted when
    asked to stop, StorageError when the disk fails; everything else that goes wrong with a run is
    told in the outcome.
    """
    if not any(p.pending for p in points):
        return outcome(points, workdir)
    if executor == "inline" and number == 1:  # the devices of other workers are for them to see
        check(points, workdir)
    file = write(points, workdir, grouping)
    view = watch.View(workdir, file)
    command = [sys.executable, "-m", "experiments.worker", f"--sweep={file.resolve()}"]
    command += [f"--workdir={Path(workdir).resolve()}"]

    def here() -> int:
        with Progress(p.run.facts for p in points if p.pending) as progress:
            work(points, workdir, progress, stop, grouping)
        return 0

    logs = file.with_suffix("")
    files.check_plain(files.make_directory(logs))  # its logs are written to
    job = Job(command, workers, logs, view.finished, view.show, stop, here, number)
    with view:
        codes = EXECUTORS[executor](job, **(options or {}))
    left = outcome(points, workdir)
    said = _last_words(logs, codes)
    if BAD_INPUT in codes:
        raise BadInput(*said)
    if IO_ERROR in codes:
        raise StorageError("\n".join(said))
    if left.missing and (stop() or PREEMPTED in codes):
        raise Preempted(f"stopped with {len(left.missing)} runs left; launch again to go on")
    for line in said:
        log.error("%s", line)
    return left


def _last_words(logs: Path, codes: Sequence[int]) -> list[str]:
    """What the workers said that ended otherwise than done or stopped: the end of their logs."""
    said = []
    for index, code in enumerate(codes):
        path = logs / f"worker-{index}.log"
        if code not in (DONE, PREEMPTED) and path.exists():
            lines = path.read_text(errors="replace").splitlines()[-20:] or [""]
            typed = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            said += typed or [f"worker {index} ended with {code}; {path} ends in: {lines[-1]}"]
    return list(dict.fromkeys(said))


def standing(points: Sequence[Point]) -> str:
    """How many there are to train, and how to have the others trained."""
    pending = sum(p.pending for p in points)
    done = sum(p.status == "done" for p in points)
    text = f"{done} of {len(points)} runs are done, {pending} to train"
    if failed := sum(p.status == "failed" and not p.pending for p in points):
        text += f"; {failed} failed and are left as they are (--retry_failed tries them again)"
    return text


def outcome(points: Iterable[Point], workdir: str | Path) -> Outcome:
    """Where the points stand now, read from their files."""
    out = Outcome()
    for point in points:
        path = RunDirectory(workdir, point.run.id).path
        row = records.row(path) if path.exists() else {"status": "unfinished", "reason": ""}
        if row["status"] != "done":
            reason = row["reason"] or _links(path)
            out.missing[point.run.id] = f"{row['status']}{reason and f': {reason}'}"
        if not point.pending:
            out.skipped += 1
        elif row["status"] == "done":
            out.trained += 1
    return out


def _links(path: Path) -> str:
    """Why nobody may write in a run's directory, or ""."""
    try:
        files.check_plain(path)
    except UnsafeFile as error:
        return str(error)
    except FileNotFoundError:  # it was never begun
        pass
    return ""


def write(points: Iterable[Point], workdir: str | Path, grouping: str = "auto") -> Path:
    """WORKDIR/sweeps/<digest>.json: what workers need to take part, as data. `facts` are there for
    those who watch."""
    rows = [
        {
            "run": p.run.id,
            "overrides": {key: repr(value) for key, value in p.overrides.items()},
            "config": p.config,
            "facts": {k: p.run.facts[k] for k in watch.FACTS},
            "forgiven": p.forgiven,
        }
        for p in points
    ]
    content = {"points": rows, "grouping": grouping}
    path = Path(workdir) / "sweeps" / f"{files.digest_of(content)[:12]}.json"
    if not path.exists():
        records.check_workdir(workdir)
        files.make_directory(path.parent)
        files.write_atomic(path, files.canonical(content))
    return path


def read(path: str | Path, workdir: str | Path) -> tuple[list[Point], str]:
    """The points of a file that `write` made, as they stand now, and how they are grouped. Raises
    BadInput."""
    try:
        content = files.read_json(path, limit=1 << 30)
        rows, grouping = content["points"], content["grouping"]
        configs = [(row["overrides"], cli.checked(row["config"])) for row in rows]
        forgiven = {row["run"]: row["forgiven"] for row in rows}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--sweep={path}: not a sweep of this version ({error})") from error
    points = plan(configs, workdir, forgiven)
    if new := [point for point in points if point.run.id not in forgiven]:
        raise BadInput(
            f"data: not what it was at the launch of --sweep={path}: point {new[0].overrides} is "
            f"another run now, {new[0].run.id}; launch the sweep again"
        )
    return points, grouping


def work(
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


def check(points: Iterable[Point], workdir: str | Path) -> None:
    """Raise BadInput if the devices of this process cannot take one of the pending points."""
    problems: list[str] = []
    for point in (p for p in points if p.pending):
        try:
            train.check(point.run, RunDirectory(workdir, point.run.id))
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
            directories = [Follower(workdir, run_id) for run_id in told["runs"]]
            work_units.train_unit(unit, directories, progress, stop)


def _ended(point: Point, directory: RunDirectory) -> bool:
    return directory.result is not None or directory.failures > point.forgiven
