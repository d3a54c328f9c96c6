"""Work units of a sweep: points that one process trains in one go, because that costs less.

Runs that *share a prefix* (see wsd_branching) differ only in how long they train, by a `wsd`
schedule with an absolute warm-up, and each begins where the decay of a shorter one does. *Vmapped*
runs (see vmapped_runs) are one program: they differ only in seeds and in the numbers of optimizer
and schedule. All others are trained alone. The units are a function of the sweep, and of what
launch.json says of runs launched before, so all workers and all launches see the same ones.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax

from research.errors import BadInput, Damaged, Diverged, IsoflopError, Lost, Preempted, StorageError
from research.io import host
from research.io.humanize import flops_text
from research.parallel import distributed, joining
from research.runs import checkpoint
from research.runs.directory import RunDirectory, read_launch
from research.runs.schema import scores
from research.sweep.sweep_file import GROUPING
from research.training import shared_prefix, wsd_branching
from research.training.loop import train_run
from research.training.progress import Progress
from research.training.run import Run
from research.training.shared_prefix import SharedPrefix
from research.training.vmapped_runs import train_vmapped

log = logging.getLogger(__name__)

# Vmapping is never chosen by itself: no measurement has shown a gain. On 2 CPU cores it made 0.73
# to 0.96 of the steps per second of the same runs one after the other.
MAX_VMAPPED = 64  # runs in one program
# Workers of a core each compile and train side by side without waiting for each other at every sum:
# on 2 cores tools/bench/sweep.py took 57.7 s with them and 68.8 s without (an earlier step, one run
# of each). But they take seconds to start.
WORTH = 1e12  # FLOPs of a sweep from which on these are made up for
UNEVEN = 1.2  # times the mean, what the busiest worker may have
ONE_PROCESS = "vmapped runs need workers of one process"


class Point(Protocol):
    """What is asked of a point of a sweep."""

    @property
    def run(self) -> Run: ...

    @property
    def pending(self) -> bool: ...


@dataclass(frozen=True)
class WorkUnit:
    """The pending `points` that are trained together, and how.

    `members` are the ids of vmapped runs at their first launch, in order. `prefixes` says, by run,
    from which runs it may begin and how many of its steps they have, the best first; `kept_steps`
    after how many steps its state is kept for others. `saved_flops` are those that others spend for
    these points.
    """

    points: tuple[Any, ...]
    members: tuple[str, ...] = ()
    prefixes: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    kept_steps: Mapping[str, int] = field(default_factory=dict)
    saved_flops: float = 0.0

    @property
    def flops(self) -> float:
        """What training the points costs."""
        return sum(p.run.facts["flops"] for p in self.points) - self.saved_flops

    @property
    def program(self) -> Hashable:
        """Units of one program compile once."""
        return _program(self.points[0].run), len(self.members)


def make_units(
    points: Iterable[Point], workdir: str | Path, grouping: str, num_processes: int | None = None
) -> list[WorkUnit]:
    """The units of all pending `points`, in the order of their first ones, for workers of
    `num_processes` processes each (as this one, if not given); the other points are needed too,
    pending ones may begin from them.

    "auto" shares prefixes, "force" vmaps whatever can be one program before that, "off" does
    neither; runs that were launched vmapped stay so. Raises BadInput if `grouping` is none of
    GROUPING, or asks for vmapped runs of workers that are several processes.
    """
    if grouping not in GROUPING:
        raise BadInput(f"--grouping={grouping}: expected one of {', '.join(GROUPING)}")
    several = (num_processes or distributed.process_count()) > 1
    if grouping == "force" and several:
        raise BadInput(f"--grouping=force: {ONE_PROCESS}; expected auto or off")
    points, runs = list(points), Path(workdir) / "runs"
    launched = _launched_members(points, runs)
    units, rest = _launched_units(points, launched)
    if several and (begun := next((p for u in units for p in u.points if p.pending), None)):
        raise BadInput(
            f"--num_processes: run {begun.run.id} was begun vmapped; {ONE_PROCESS}; expected 1"
        )
    if grouping == "force":
        more, rest = _vmapped_units(rest, launched)
        units += more
    if grouping != "off":
        more, rest = _prefix_units(rest, runs)
        units += more
    units += [WorkUnit((p,)) for p in rest]
    order = {p.run.id: i for i, p in enumerate(points)}
    units = [
        dataclasses.replace(unit, points=tuple(p for p in unit.points if p.pending))
        for unit in units
    ]
    return sorted((u for u in units if u.points), key=lambda u: order[u.points[0].run.id])


def prefers_workers(
    units: Sequence[WorkUnit],
    points: Iterable[Point],
    workdir: str | Path,
    platform: str | None = None,
    cores: int | None = None,
) -> bool:
    """Whether a worker for each core is expected to end the units sooner than one process with all
    of them: on CPU, where there is enough to do, the cores can be kept busy to the end, and every
    run of the sweep may lie on one device and was not launched on more."""
    cores = cores or host.cores()
    busy = [0.0] * cores
    for flops in sorted(unit.flops for unit in units):  # in the order in which workers take them
        busy[busy.index(min(busy))] += flops
    enough = sum(busy) >= WORTH and max(busy) <= UNEVEN * sum(busy) / cores
    if cores < 2 or not enough or (platform or jax.default_backend()) != "cpu":
        return False
    return all(_on_one_device(p.run, Path(workdir) / "runs" / p.run.id) for p in points)


def _on_one_device(run: Run, path: Path) -> bool:
    mesh = run.mesh
    with contextlib.suppress(Damaged):  # which the run itself will tell
        mesh = (read_launch(path) or {"mesh": mesh})["mesh"]
    return all(n in (1, *([-1] if axis == "data" else [])) for axis, n in mesh.items())


def describe_units(units: Sequence[WorkUnit], grouping: str, num_processes: int = 1) -> list[str]:
    """What a plan says of its units, for workers of `num_processes` processes, a line each."""
    lines = [f"grouping={grouping}"]
    if num_processes > 1:
        lines = [f"each run in {num_processes} processes, none vmapped: {ONE_PROCESS}"]
    if shared := [u for u in units if u.saved_flops]:
        saved = sum(u.saved_flops for u in shared)
        total = saved + sum(u.flops for u in units)
        lines.append(
            f"{len(shared)} shared prefixes of {sum(len(u.points) for u in shared)} runs save "
            f"{flops_text(saved)} of {flops_text(total)} FLOPs ({saved / total:.0%})"
        )
    if vmapped := [u for u in units if u.members]:
        sizes = ", ".join(str(len(u.members)) for u in vmapped)
        lines.append(f"{len(vmapped)} vmapped programs, of {sizes} runs")
    return lines


def train_unit(
    unit: WorkUnit,
    directories: Sequence[RunDirectory],
    progress: Progress,
    stop: Callable[[], bool],
) -> dict[str, dict[str, Any]]:
    """Train the points of a unit, whose directories are held; what became of each, by run id:
    its result, or {"status": "failed", "reason"}.

    A run that fails is recorded so in its directory and the others continue. Raises Preempted when
    asked to stop, StorageError since a disk that refuses one run refuses the next.
    """
    if unit.members:
        return _train_vmapped(unit, directories, progress, stop)
    results: dict[str, dict[str, Any]] = {}
    for point, directory in zip(unit.points, directories, strict=True):
        results[point.run.id] = _train_one(unit, point.run, directory, progress, stop)
    if distributed.is_primary() and all(
        result["status"] != "failed" for result in results.values()
    ):
        runs, keep = directories[0].path.parent, unit.points[0].run.saving.keep
        sources = {name for choices in unit.prefixes.values() for name, _ in choices}
        for path in (runs / name for name in sources):
            if (path / "result.json").exists():  # nobody writes there
                checkpoint.prune(path, keep)
    return results


def _train_one(
    unit: WorkUnit,
    run: Run,
    directory: RunDirectory,
    progress: Progress,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    runs = directory.path.parent
    prefixes = [SharedPrefix(runs / name, steps) for name, steps in unit.prefixes.get(run.id, ())]
    kept_steps = [unit.kept_steps[run.id]] if run.id in unit.kept_steps else []
    started = time.time()
    progress.start_run(run.facts)
    try:
        result = train_run(run, directory, progress.update, stop, prefixes, kept_steps)
    except Diverged:
        result = directory.result or {}
    except (Preempted, StorageError, Lost):
        raise
    except Exception as error:
        joining.barrier(error)
        if not isinstance(error, IsoflopError):
            log.exception("run %s failed", run.id)
        reason = f"{type(error).__name__}: {error}"
        directory.record_failure(reason, started=started, ended=time.time())
        result = {"status": "failed", "reason": reason}
    progress.finish_run(_result_line(result))
    return result


def _train_vmapped(
    unit: WorkUnit,
    directories: Sequence[RunDirectory],
    progress: Progress,
    stop: Callable[[], bool],
) -> dict[str, dict[str, Any]]:
    members = [(p.run, d) for p, d in zip(unit.points, directories, strict=True)]
    shown = members[0][0]
    progress.start_run(shown.facts)

    def show(run_id: str, step: int, loss: float) -> None:
        if run_id == shown.id:
            progress.update(step, loss)

    try:
        results = train_vmapped(members, unit.members, show, stop)
    except (Preempted, StorageError):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        log.warning("vmapped runs failed (%s): trained one by one", words)
        results = {run.id: directory.result for run, directory in members if directory.result}
        left = [member for member in members if member[0].id not in results]
        return results | {
            run.id: _train_one(WorkUnit(unit.points), run, directory, progress, stop)
            for run, directory in left
        }
    for index, (run, _) in enumerate(members):
        if index:
            progress.start_run(run.facts)
        progress.finish_run(_result_line(results[run.id]))
    return results


def _result_line(result: Mapping[str, Any]) -> str:
    if result.get("status") == "done":
        return f"{', '.join(scores(result))} in {result['seconds']:.0f} s"
    return f"{result.get('status')}: {result.get('reason')}"


def _launched_members(points: Sequence[Point], runs: Path) -> dict[str, tuple[str, ...]]:
    """For every run that was launched, the ids of the runs that it was vmapped with; none, if it
    was launched alone or cannot say."""
    out = {}
    for point in points:
        try:
            stored = read_launch(runs / point.run.id)
        except Damaged:  # which the run itself will tell
            stored = {}
        if stored is not None:
            out[point.run.id] = tuple(stored.get("members", ()))
    return out


def _launched_units(
    points: list[Point], launched: Mapping[str, tuple[str, ...]]
) -> tuple[list[WorkUnit], list[Point]]:
    """The units that were launched vmapped, and the points of none. Of one killed while it was
    being launched, some runs have their launch.json and name the others."""
    members_of = {
        name: members
        for members in dict.fromkeys(launched.values())
        for name in members
        if launched.get(name, members) == members
    }
    units = [
        WorkUnit(tuple(p for p in points if members_of.get(p.run.id) == members), members)
        for members in dict.fromkeys(members_of.values())
    ]
    return units, [p for p in points if p.run.id not in members_of]


def _vmapped_units(
    points: list[Point], launched: Collection[str]
) -> tuple[list[WorkUnit], list[Point]]:
    """Units of points that can be one program and are not in `launched`, and the points of none."""
    buckets: dict[Hashable, list[Point]] = {}
    for point in points:
        if point.run.id not in launched and _can_be_vmapped(point.run):
            buckets.setdefault((_program(point.run), point.run.steps), []).append(point)
    units = []
    for bucket in buckets.values():
        for start in range(0, len(bucket), MAX_VMAPPED):
            members = bucket[start : start + MAX_VMAPPED]
            if len(members) > 1:
                units.append(WorkUnit(tuple(members), tuple(p.run.id for p in members)))
    vmapped = {name for unit in units for name in unit.members}
    return units, [p for p in points if p.run.id not in vmapped]


def _prefix_units(points: list[Point], runs: Path) -> tuple[list[WorkUnit], list[Point]]:
    """Units of points that share a prefix, and the points of none: those that start from another
    run, and those that keep states (`save.at`), which have to be in their own directories."""
    buckets: dict[Hashable, list[Point]] = {}
    for point in points:
        own = point.run.start is not None or point.run.saving.at
        if wsd_branching.steps_before_decay(point.run) and not own:
            numbers = tuple(jax.tree.leaves(point.run.hyper._replace(total=0)))
            key = (_program(point.run), point.run.seed, point.run.data_seed, numbers)
            buckets.setdefault(key, []).append(point)
    units = [_prefix_unit(bucket, runs) for bucket in buckets.values() if len(bucket) > 1]
    sharing = {p.run.id for unit in units for p in unit.points}
    return units, [p for p in points if p.run.id not in sharing]


def _prefix_unit(points: list[Point], runs: Path) -> WorkUnit:
    """The shortest run first; each may begin from any that is shorter."""
    points = sorted(points, key=lambda p: p.run.steps)
    stable = {p.run.id: wsd_branching.steps_before_decay(p.run) for p in points}
    prefixes, kept_steps, saved_flops = {}, {}, 0.0
    for index, point in enumerate(points):
        if not point.pending:
            continue
        steps = {q.run.id: _usable_step(q, stable[q.run.id], runs) for q in points[:index]}
        best = sorted((name for name in steps if steps[name]), key=lambda n: -steps[n])
        shared = steps[best[0]] if best else 0
        if own := checkpoint.saved_steps(runs / point.run.id):  # it has begun, from wherever
            with contextlib.suppress(Damaged):
                shared = min(shared_prefix.shared_steps(runs / point.run.id), own[0])
        prefixes[point.run.id] = tuple((name, stable[name]) for name in best)
        saved_flops += point.run.facts["flops"] * shared / point.run.steps
        if any(q.pending for q in points[index + 1 :]):
            kept_steps[point.run.id] = stable[point.run.id]
    return WorkUnit(
        tuple(points), prefixes=prefixes, kept_steps=kept_steps, saved_flops=saved_flops
    )


def _usable_step(point: Point, stable: int, runs: Path) -> int:
    """The step, before its decay, of which a run has a checkpoint or will have."""
    if point.pending:
        return stable
    return max((s for s in checkpoint.saved_steps(runs / point.run.id) if s <= stable), default=0)


def _program(run: Run) -> Hashable:
    """What runs have in common that one compiled program could train, and the same records."""
    content = (run.examples, run.batch, tuple(run.mesh.items()))
    records = (
        run.eval_examples,
        tuple((one.name, one.examples) for one in run.sets),
        run.eval_batch,
        run.cadence,
        run.saving,
        run.trackers,
    )
    numbers = jax.tree.structure(run.hyper)
    program = run.model, run.task, run.optimizer, run.schedule, run.execution, run.transfer
    return program, numbers, content, records


def _can_be_vmapped(run: Run) -> bool:
    """Whether it may lie whole on one device, and begins from nothing."""
    mesh = run.mesh
    small = mesh["data"] in (-1, 1) and mesh["fsdp"] == mesh["tensor"] == 1
    return small and run.start is None
