"""The pending points of a sweep are trained by the workers of an executor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from research.errors import BAD_INPUT, DONE, IO_ERROR, PREEMPTED, BadInput, Preempted, StorageError
from research.io import files, host
from research.launch import AUTO, EXECUTORS, Job
from research.sweep import watch, work_units
from research.sweep.points import Outcome, Point, read_outcome, write_points
from research.sweep.worker import check_points, log, run_worker
from research.training.progress import Progress


@dataclass(frozen=True)
class LaunchOptions:
    """How a sweep is launched: by which of `launch.CHOICES`, with which of its own options; how
    many workers (None: as many as there is room for) of how many processes each; and which runs are
    trained together."""

    executor: str = "inline"
    workers: int | None = None
    executor_options: Mapping[str, Any] = field(default_factory=dict)
    num_processes: int = 1
    grouping: str = "auto"


def choose_executor(
    options: LaunchOptions, points: Sequence[Point], workdir: str | Path
) -> LaunchOptions:
    """The options, with the executor that "auto" stands for here in its place."""
    if options.executor != AUTO:
        return options
    if options.workers:
        return replace(options, executor="local")
    if options.num_processes > 1:
        return replace(options, executor="inline")
    units = work_units.make_units(points, workdir, options.grouping)
    several = work_units.prefers_workers(units, points, workdir)
    return replace(options, executor="local" if several else "inline")


def launch_sweep(
    points: Sequence[Point],
    workdir: str | Path,
    stop: Callable[[], bool],
    options: LaunchOptions | None = None,
) -> Outcome:
    """Have the pending points trained, and wait for it.

    Raises BadInput if the devices of the workers cannot take one of the points, Preempted when
    asked to stop, StorageError when the disk fails; everything else that goes wrong with a run is
    in the outcome.
    """
    options = options or LaunchOptions()
    if not any(p.pending for p in points):
        write_points(points, workdir, options.grouping)  # what the sweep is now, for its report
        return read_outcome(points, workdir)
    if options.executor == "inline" and options.num_processes == 1:
        check_points(points, workdir)  # of other workers, each checks its own devices
    file = write_points(points, workdir, options.grouping)
    logs = files.make_directory(file.with_suffix(""))
    files.check_plain(logs)
    view = watch.StatusDisplay(workdir, file)

    def train_here() -> int:
        with Progress(p.run.facts for p in points if p.pending) as progress:
            run_worker(points, workdir, progress, stop, options.grouping)
        return 0

    job = Job(
        _worker_command(file, workdir),
        options.workers,
        logs,
        progress_mark=view.progress_mark,
        show=view.show,
        stop=stop,
        run_inline=train_here,
        num_processes=options.num_processes,
    )
    with view:
        codes = EXECUTORS[options.executor](job, **options.executor_options)
    outcome = read_outcome(points, workdir)
    _raise_for(codes, _error_lines(logs, codes), outcome, stop)
    return outcome


def _worker_command(file: Path, workdir: str | Path) -> list[str]:
    """Executors add to it which process of a worker a process is."""
    paths = [f"--sweep={file.resolve()}", f"--workdir={Path(workdir).resolve()}"]
    return [*host.command("worker"), *paths]


def _raise_for(
    codes: Sequence[int], lines: list[str], outcome: Outcome, stop: Callable[[], bool]
) -> None:
    """Raise what the exit codes of the workers stand for; what is not fatal is logged."""
    if BAD_INPUT in codes:
        raise BadInput(*lines)
    if IO_ERROR in codes:
        raise StorageError("\n".join(lines))
    if outcome.missing and (stop() or PREEMPTED in codes):
        raise Preempted(f"stopped with {len(outcome.missing)} runs left; launch again to resume")
    for line in lines:
        log.error("%s", line)


def _error_lines(logs: Path, codes: Sequence[int]) -> list[str]:
    """From the ends of their logs, why workers ended other than done or stopped."""
    out = []
    for index, code in enumerate(codes):
        path = logs / f"worker-{index}.log"
        if code not in (DONE, PREEMPTED) and path.exists():
            lines = path.read_text(errors="replace").splitlines()[-20:] or [""]
            typed = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            out += typed or [f"worker {index} ended with {code}; {path} ends in: {lines[-1]}"]
    return list(dict.fromkeys(out))
