"""Units of a sweep: points that one process trains in one go, because that costs less.

A *group* runs as one program (see ensemble): its points differ only in seeds and in the numbers of
optimizer and schedule. A *chain* has one trunk (see trunk): its points differ only in how long they
train, by a `wsd` schedule with an absolute warm-up, and each begins where the decay of a shorter
one does. All others are trained alone. Which are together is a function of the sweep, and of what
launch.json says of runs launched before, so all workers and all launches see the same units.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax

from research.errors import BadInput, Damaged, Diverged, IsoflopError, Lost, Preempted, StorageError
from research.io import files, host
from research.parallel import distributed
from research.runs import checkpoint
from research.runs.directory import RunDirectory, read_launch
from research.training import wsd_branching
from research.training.loop import train_run
from research.training.progress import Progress
from research.training.run import PLACES, Run
from research.training.vmapped_runs import train_vmapped
from research.training.wsd_branching import Trunk

log = logging.getLogger(__name__)

GROUPING = ("auto", "off", "force")
# A group pays where a step is so small that starting it costs more than computing it. On 2 CPU
# cores it never did (measured: vmapped 0.73 to 0.96 of the steps per second of one after the
# other); the bound for accelerators is an estimate, 1e10 FLOPs are a fraction of a millisecond.
SMALL = 1e10
MOST = 64  # members of a group
RULE = (
    "grouping auto: shared trunks wherever there are some; one program for up to "
    f"{MOST} runs on accelerators, if a step takes at most {SMALL:g} FLOPs; never on CPU"
)
# Workers of a core each compile and train side by side without waiting for each other at every sum:
# on 2 cores tools/bench/sweep.py took 57.7 s with them and 68.8 s without (an earlier step, one run
# of each). But they take seconds to start.
WORTH = 1e12  # FLOPs of a sweep from which on these are made up for
UNEVEN = 1.2  # times the mean, what the busiest worker may have
ONE_PROCESS = "a group of runs in one program is for workers of one process"


class Point(Protocol):
    """What is asked of a point of a sweep."""

    @property
    def run(self) -> Run: ...

    @property
    def pending(self) -> bool: ...


@dataclass(frozen=True)
class Unit:
    """The pending `points` that are trained together, and how.

    `members` are the ids of a group at its first launch, in order. `trunks` says from which runs a
    run may begin and how many of its steps they have, the best first; `branches` after how many
    steps its state is kept for others. `saved` are the FLOPs that others spend for these points.
    """

    points: tuple[Any, ...]
    members: tuple[str, ...] = ()
    trunks: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    branches: Mapping[str, int] = field(default_factory=dict)
    saved: float = 0.0

    @property
    def flops(self) -> float:
        """What training the points costs."""
        return sum(p.run.facts["flops"] for p in self.points) - self.saved

    @property
    def shape(self) -> Hashable:
        """Units of one shape run the same compiled programs."""
        return _program(self.points[0].run), len(self.members)


def units(
    points: Iterable[Point],
    workdir: str | Path,
    grouping: str,
    platform: str | None = None,
    number: int | None = None,
) -> list[Unit]:
    """The units of all pending `points`, in the order of their first ones; the others are needed
    too, they may be trunks. `platform` is that of the workers, `number` of how many processes each
    is (as this one, if not given).

    "off" shares nothing, "force" groups whatever can be one program; groups that were launched
    stay as they are. Raises BadInput if `grouping` is none of GROUPING, or asks for groups of
    workers that are several processes.
    """
    if grouping not in GROUPING:
        raise BadInput(f"--grouping={grouping}: expected one of {', '.join(GROUPING)}")
    several = (number or distributed.count()) > 1
    if grouping == "force" and several:
        raise BadInput(f"--grouping=force: {ONE_PROCESS}; expected auto or off")
    points, runs = list(points), Path(workdir) / "runs"
    launched = _launched(points, runs)
    out, rest = _stored(points, launched)
    if several and (begun := next((p for u in out for p in u.points if p.pending), None)):
        raise BadInput(
            f"--num_processes: run {begun.run.id} was begun in a group; {ONE_PROCESS}; expected 1"
        )
    free = {p.run.id for p in rest if p.run.id not in launched}
    if grouping == "force":
        made, rest = _groups(rest, lambda run: run.id in free)
        out += made
    if grouping != "off":
        made, rest = _chains(rest, runs)
        out += made
    if grouping == "auto" and not several:
        here = platform or jax.default_backend()
        made, rest = _groups(rest, lambda run: run.id in free and _pays(run, here))
        out += made
    out += [Unit((p,)) for p in rest]
    order = {p.run.id: i for i, p in enumerate(points)}
    out = [dataclasses.replace(u, points=tuple(p for p in u.points if p.pending)) for u in out]
    return sorted((u for u in out if u.points), key=lambda u: order[u.points[0].run.id])


def apart(
    made: Sequence[Unit],
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
    for flops in sorted(unit.flops for unit in made):  # in the order in which workers take them
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


def words(made: Sequence[Unit], grouping: str, number: int = 1) -> list[str]:
    """What a plan says of its units, for workers of `number` processes, a line each."""
    lines = [RULE] if grouping == "auto" else [f"grouping {grouping}"]
    if number > 1:
        lines = [f"each run in {number} processes, none in a group: {ONE_PROCESS}"]
    if chains := [u for u in made if u.saved]:
        saved = sum(u.saved for u in chains)
        total = saved + sum(u.flops for u in made)
        lines.append(
            f"{len(chains)} shared trunks for {sum(len(u.points) for u in chains)} runs save "
            f"{saved:.3g} of {total:.3g} FLOPs ({saved / total:.0%})"
        )
    if groups := [u for u in made if u.members]:
        sizes = ", ".join(str(len(u.members)) for u in groups)
        lines.append(f"{len(groups)} groups of runs in one program each, of {sizes} runs")
    return lines


def train_unit(
    unit: Unit, directories: Sequence[RunDirectory], progress: Progress, stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Train the points of a unit, whose directories are held; what became of each, by run id:
    its result, or {"status": "failed", "reason"}.

    A run that fails is noted in its directory and the others go on. Raises Preempted when asked to
    stop, StorageError since a disk that refuses one run refuses the next.
    """
    if unit.members:
        return _train_group(unit, directories, progress, stop)
    out: dict[str, dict[str, Any]] = {}
    for point, directory in zip(unit.points, directories, strict=True):
        out[point.run.id] = _train_one(unit, point.run, directory, progress, stop)
    if distributed.first() and all(result["status"] != "failed" for result in out.values()):
        runs, keep = directories[0].path.parent, unit.points[0].run.keep
        of_trunks = {name for options in unit.trunks.values() for name, _ in options}
        for path in (runs / name for name in of_trunks):
            if (path / "result.json").exists():  # nobody writes there
                checkpoint.prune(path, keep)
    return out


def _train_one(
    unit: Unit,
    run: Run,
    directory: RunDirectory,
    progress: Progress,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    places = directory.path.parent
    trunks = [Trunk(places / name, steps) for name, steps in unit.trunks.get(run.id, ())]
    branches = [unit.branches[run.id]] if run.id in unit.branches else []
    started = time.time()
    progress.begin(run.facts)
    try:
        result = train_run(run, directory, progress.update, stop, trunks, branches)
    except Diverged:
        result = directory.result or {}
    except (Preempted, StorageError, Lost):
        raise
    except Exception as error:
        distributed.meet(error)
        if not isinstance(error, IsoflopError):
            log.exception("run %s failed", run.id)
        reason = f"{type(error).__name__}: {error}"
        directory.fail(reason, started=started, ended=time.time())
        result = {"status": "failed", "reason": reason}
    progress.ended(_line(result))
    return result


def _train_group(
    unit: Unit, directories: Sequence[RunDirectory], progress: Progress, stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    members = [(p.run, d) for p, d in zip(unit.points, directories, strict=True)]
    shown = members[0][0]
    progress.begin(shown.facts)

    def show(run_id: str, step: int, loss: float) -> None:
        if run_id == shown.id:
            progress.update(step, loss)

    try:
        out = train_vmapped(members, unit.members, show, stop)
    except (Preempted, StorageError):
        raise
    except Exception as error:
        log.warning("a group failed (%s: %s): its runs alone", type(error).__name__, error)
        out = {run.id: directory.result for run, directory in members if directory.result}
        left = [member for member in members if member[0].id not in out]
        return out | {
            run.id: _train_one(Unit(unit.points), run, directory, progress, stop)
            for run, directory in left
        }
    for index, (run, _) in enumerate(members):
        if index:
            progress.begin(run.facts)
        progress.ended(_line(out[run.id]))
    return out


def _line(result: Mapping[str, Any]) -> str:
    if result.get("status") == "done":
        return f"loss {result['loss']:.4f} in {result['seconds']:.0f} s"
    return f"{result.get('status')}: {result.get('reason')}"


def _launched(points: Sequence[Point], runs: Path) -> dict[str, tuple[str, ...]]:
    """For every run that was launched, the ids of its group; none, if it was launched alone or
    cannot say."""
    out = {}
    for point in points:
        try:
            stored = read_launch(runs / point.run.id)
        except Damaged:  # which the run itself will tell
            stored = {}
        if stored is not None:
            out[point.run.id] = tuple(stored.get("members", ()))
    return out


def _stored(
    points: list[Point], launched: Mapping[str, tuple[str, ...]]
) -> tuple[list[Unit], list[Point]]:
    """The groups that were launched, and the points of none. Of a group killed while it was being
    launched, some runs have their launch.json and name the others."""
    group_of = {
        name: members
        for members in dict.fromkeys(launched.values())
        for name in members
        if launched.get(name, members) == members
    }
    out = [
        Unit(tuple(p for p in points if group_of.get(p.run.id) == members), members)
        for members in dict.fromkeys(group_of.values())
    ]
    return out, [p for p in points if p.run.id not in group_of]


def _groups(points: list[Point], may: Callable[[Run], bool]) -> tuple[list[Unit], list[Point]]:
    """Groups of the points that `may` be in one, and the points of none."""
    buckets: dict[Hashable, list[Point]] = {}
    for point in points:
        if may(point.run) and _fits_a_group(point.run):
            buckets.setdefault((_program(point.run), point.run.steps), []).append(point)
    out = []
    for bucket in buckets.values():
        for at in range(0, len(bucket), MOST):
            some = bucket[at : at + MOST]
            if len(some) > 1:
                out.append(Unit(tuple(some), tuple(p.run.id for p in some)))
    inside = {name for unit in out for name in unit.members}
    return out, [p for p in points if p.run.id not in inside]


def _chains(points: list[Point], runs: Path) -> tuple[list[Unit], list[Point]]:
    """Chains of points that have a trunk in common, and the points of none."""
    buckets: dict[Hashable, list[Point]] = {}
    for point in points:
        if wsd_branching.stable_steps(point.run) and point.run.start is None:
            numbers = tuple(jax.tree.leaves({**point.run.hyper, "total": 0}))
            key = (_program(point.run), point.run.seed, point.run.order, numbers)
            buckets.setdefault(key, []).append(point)
    out = [_chain(bucket, runs) for bucket in buckets.values() if len(bucket) > 1]
    inside = {p.run.id for unit in out for p in unit.points}
    return out, [p for p in points if p.run.id not in inside]


def _chain(points: list[Point], runs: Path) -> Unit:
    """The shortest first; each may begin from any that is shorter."""
    points = sorted(points, key=lambda p: p.run.steps)
    stable = {p.run.id: wsd_branching.stable_steps(p.run) for p in points}
    trunks, branches, saved = {}, {}, 0.0
    for index, point in enumerate(points):
        if not point.pending:
            continue
        have = {q.run.id: _has(q, stable[q.run.id], runs) for q in points[:index]}
        best = sorted((name for name in have if have[name]), key=lambda n: have[n], reverse=True)
        shared = have[best[0]] if best else 0
        if own := checkpoint.steps(runs / point.run.id):  # it has begun, from wherever
            with contextlib.suppress(Damaged):
                shared = min(wsd_branching.shared_steps(runs / point.run.id), own[0])
        trunks[point.run.id] = tuple((name, stable[name]) for name in best)
        saved += point.run.facts["flops"] * shared / point.run.steps
        if any(q.pending for q in points[index + 1 :]):
            branches[point.run.id] = stable[point.run.id]
    return Unit(tuple(points), trunks=trunks, branches=branches, saved=saved)


def _has(point: Point, stable: int, runs: Path) -> int:
    """The step, before its decay, of which a run has a checkpoint or will have."""
    if point.pending:
        return stable
    return max((s for s in checkpoint.steps(runs / point.run.id) if s <= stable), default=0)


def _program(run: Run) -> Hashable:
    """What runs have in common that one compiled program could train, and the same records."""
    data = {k: v for k, v in run.config["data"].items() if k not in PLACES}
    content = (run.data.digest, files.digest_of(data), run.batch, tuple(run.mesh.items()))
    kept = (run.eval_examples, run.eval_batch, run.every, run.keep, run.on_save_error, run.sinks)
    numbers = jax.tree.structure(run.hyper)
    program = run.model, run.task, run.optimizer, run.schedule, run.accumulate
    return program, numbers, content, kept


def _fits_a_group(run: Run) -> bool:
    """Whether it may lie whole on one device, and begins from nothing."""
    mesh = run.mesh
    small = mesh["data"] in (-1, 1) and mesh["fsdp"] == mesh["tensor"] == 1
    return small and run.start is None


def _pays(run: Run, platform: str) -> bool:
    return platform != "cpu" and run.facts["flops"] / run.steps <= SMALL
