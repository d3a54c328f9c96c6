"""Have the pending points of a sweep trained by the workers of an executor."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import BAD_INPUT, DONE, IO_ERROR, PREEMPTED, BadInput, Preempted, StorageError
from research.io import files
from research.launch import AUTO, EXECUTORS, Job
from research.sweep import watch, work_units
from research.sweep.points import Outcome, Point, read_outcome, write_sweep_file
from research.sweep.worker import check_points, log, run_worker
from research.training.progress import Progress


def choose_executor(
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


def launch_sweep(
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
        return read_outcome(points, workdir)
    if executor == "inline" and number == 1:  # the devices of other workers are for them to see
        check_points(points, workdir)
    file = write_sweep_file(points, workdir, grouping)
    view = watch.View(workdir, file)
    command = [sys.executable, "-m", "experiments.worker", f"--sweep={file.resolve()}"]
    command += [f"--workdir={Path(workdir).resolve()}"]

    def here() -> int:
        with Progress(p.run.facts for p in points if p.pending) as progress:
            run_worker(points, workdir, progress, stop, grouping)
        return 0

    logs = file.with_suffix("")
    files.check_plain(files.make_directory(logs))  # its logs are written to
    job = Job(command, workers, logs, view.finished, view.show, stop, here, number)
    with view:
        codes = EXECUTORS[executor](job, **(options or {}))
    left = read_outcome(points, workdir)
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
