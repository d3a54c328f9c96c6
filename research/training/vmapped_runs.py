"""Vmapped runs: whole runs in one program, vmapped over the members, which are split over devices.

The members share model, data, batch size and steps, and differ in their seeds and in the numbers of
optimizer and schedule. Each has its own directory, with the records and checkpoints that it would
write alone, so it can be evaluated, fine-tuned or resumed like any other run. Its numbers are those
of the run alone up to rounding (vmapped products add up in another order), and they depend on how
many members there are, but not on which: so vmapped runs that are resumed have as many slots on as
many devices as at first, and the slots of members that are done, diverged or gone are filled with a
copy of another."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import Diverged, Held, StorageError
from research.parallel import device_mesh, jax_settings
from research.runs import checkpoint, made_by, trackers
from research.runs.directory import RunDirectory, read_launch
from research.training.checkpoint_policy import (
    DueSaves,
    check_finite,
    tolerate_refused_save,
)
from research.training.loop import run_loop
from research.training.other_execution import with_stored_execution
from research.training.recorder import DeferredMetrics, Recorder
from research.training.run import Run
from research.training.step import (
    Hyper,
    StepSpec,
    TrainState,
    evaluation_sums,
    finite_or_skipped,
    steps_while,
)
from research.training.trainer import (
    Trainer,
    examine,
    host_batches,
    host_heldout,
    never_stop,
    wait_for,
)

log = logging.getLogger(__name__)

ALONE = {"data": 1, "fsdp": 1, "tensor": 1}  # a member lies whole on one device
OnMemberSteps = Callable[[str, int, float], None]  # id, steps done, train loss


class VmappedState(NamedTuple):
    """K runs side by side: every leaf of their states is [K, ...], `alive` is [K]."""

    state: TrainState
    alive: Array

    @property
    def eval_params(self) -> dict:
        """The parameters that are evaluated and used, [K, ...]."""
        return self.state.eval_params


@functools.lru_cache(maxsize=64)
def vmapped_dispatch_program(spec: StepSpec, mesh: Mesh, shared: bool) -> Callable:
    """As `dispatch_program`, of a VmappedState whose K runs are split over the devices of
    `mesh`: hyper [K], batches [S, K, B, ...], or [S, B, ...] where they are `shared`, metrics
    [S, K].

    A member whose step is not `finite_or_skipped` stays as it was before that step, from then on.
    Devices say nothing to each other, and a member's numbers do not depend on the other members'.
    """

    def step(members: VmappedState, batch: dict, hyper: Hyper) -> tuple[VmappedState, dict]:
        vmapped = jax.vmap(spec.step, in_axes=(0, None if shared else 0, 0))
        stepped, metrics = vmapped(members.state, batch, hyper)
        alive_K = members.alive & finite_or_skipped(stepped, metrics)

        def freeze_dead(new: Array, old: Array) -> Array:
            return jnp.where(alive_K.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return VmappedState(jax.tree.map(freeze_dead, stepped, members.state), alive_K), metrics

    by_step = P(None, "runs")
    mapped = jax.shard_map(
        steps_while(step, lambda members, _: members.alive.any()),
        mesh=mesh,
        in_specs=(P("runs"), P() if shared else by_step, P("runs"), P()),
        out_specs=(P("runs"), by_step),
        check_vma=False,  # the loop's first metrics are zeros, the same everywhere
    )
    return jax.jit(mapped, donate_argnums=0)


@functools.lru_cache(maxsize=64)
def vmapped_eval_program(spec: StepSpec, mesh: Mesh) -> Callable:
    """As `eval_program`, of parameters [K, ...] split over the devices of `mesh`; sums [K, ...]."""
    vmapped = jax.vmap(functools.partial(evaluation_sums, spec), in_axes=(0, None, None))
    specs = {"in_specs": (P("runs"), P(), P()), "out_specs": P("runs")}
    return jax.jit(jax.shard_map(vmapped, mesh=mesh, **specs, check_vma=False))


class VmappedTrainer:
    """As trainer.Trainer, for one Run in each of K slots on a mesh with the axis `runs`, which
    divides K."""

    def __init__(self, runs: Sequence[Run], mesh: Mesh):
        self.runs, self.mesh = runs, mesh
        one = device_mesh.make_mesh(ALONE, runs[0].batch, jax.devices()[:1])
        self.single = [Trainer(run, one) for run in runs]
        self.shared = len({run.data_seed for run in runs}) == 1
        self.hyper = self._spread([run.hyper for run in runs])
        spec = self.single[0].spec
        self._dispatch = vmapped_dispatch_program(spec, mesh, self.shared)
        self._eval = vmapped_eval_program(spec, mesh)
        self._held: tuple | None = None

    def init(self) -> VmappedState:
        """The first states, bit for bit those that the members have alone."""
        first = {
            single.run.id: single.init() for single in {s.run.id: s for s in self.single}.values()
        }
        return self.place([first[run.id] for run in self.runs])

    def place(self, states: Sequence[TrainState]) -> VmappedState:
        """The states of all slots, side by side."""
        return VmappedState(self._spread(states), self._spread([np.bool_(True)] * len(states)))

    def member(self, members: VmappedState, slot: int) -> TrainState:
        """One member's state (of `members` on the host), where and as it has it alone."""
        state = jax.tree.map(lambda x: x[slot], members.state)
        return jax.device_put(state, self.single[slot].shardings.tree)

    def batches(self, step: int, n: int, room: int) -> dict[str, jax.Array]:
        """The batches of steps [step, step + n): one copy if all have the same, else one each."""
        each = {r.data_seed: r for r in self.runs}
        by_seed = {seed: host_batches(run, step, n, room) for seed, run in each.items()}
        if self.shared:
            return jax.device_put(by_seed[self.runs[0].data_seed], NamedSharding(self.mesh, P()))
        side_by_side = {
            name: np.stack([by_seed[run.data_seed][name] for run in self.runs], axis=1)
            for name in by_seed[self.runs[0].data_seed]
        }
        return jax.device_put(side_by_side, NamedSharding(self.mesh, P(None, "runs")))

    def steps(self, members: VmappedState, batches: dict, n: int) -> tuple[VmappedState, dict]:
        """`n` updates of all in one dispatch; returns at once. `members` is donated."""
        count = jax.device_put(np.int32(n), NamedSharding(self.mesh, P()))
        return self._dispatch(members, batches, self.hyper, count)

    def evaluate(self, params: dict, stop: Callable[[], bool] = never_stop) -> list[dict[str, Any]]:
        """The task's metrics of every slot, for parameters [K, ...]. Raises trainer.Stopped."""

        def measure(one: Run, placed: tuple) -> list[dict[str, Any]]:
            held, examined = placed
            sums = jax.device_get(wait_for(self._eval(params, *held), stop))
            sums = {name: np.asarray(total, np.float64) for name, total in sums.items()}
            return [
                one.task.metrics(
                    {k: total[slot] for k, total in sums.items()}, {**one.data.notes, **examined}
                )
                for slot in range(len(self.runs))
            ]

        first = self.runs[0]
        self._held = self._held or self._place(first)
        metrics = measure(first, self._held)
        if "sets" not in first.config["eval"]:
            return metrics
        from research.training import evaluation_sets  # which few runs need

        return evaluation_sets.with_sets_each(first, metrics, measure, self._place, self)

    def _place(self, run: Run) -> tuple[tuple, dict[str, Any]]:
        rows = host_heldout(run, 1)
        put = jax.device_put(rows, NamedSharding(self.mesh, P()))
        return (put, put.pop("weights")), examine(run, rows)

    def _spread(self, trees: Sequence[Any]) -> Any:
        """Trees of one structure, stacked, and split over the devices."""
        stacked = jax.tree.map(lambda *leaves: np.stack(jax.device_get(leaves)), *trees)
        return jax.device_put(stacked, NamedSharding(self.mesh, P("runs")))


class VmappedRecorder(DeferredMetrics):
    """Hands every member's numbers to its own recorder, and ends those that diverge."""

    def __init__(self, live: Mapping[int, Recorder], mesh: Mesh, ids: Sequence[str]):
        """`live` are the recorders by slot."""
        super().__init__()
        self.live, self.mesh, self.ids = dict(live), mesh, list(ids)
        self.results: dict[str, dict] = {}

    def write(self, first: int, n: int, metrics: Mapping[str, Any]) -> None:
        self.for_each_live(
            lambda k, r: r.write(first, n, {name: x[:, k] for name, x in metrics.items()})
        )

    def evaluation(self, step: int, metrics: Sequence[Mapping[str, Any]]) -> None:
        self.for_each_live(lambda k, r: r.evaluation(step, metrics[k]))

    def improved(self, step: int) -> bool:
        return any(recorder.improved(step) for recorder in self.live.values())

    def finish(self, slot: int, status: str, reason: str, metrics: Mapping[str, Any]) -> None:
        """End a member. Its seconds are its share of theirs together, and `members` says whose."""
        recorder = self.live.pop(slot)
        recorder.dispatch = self.dispatch
        more = {**metrics, "members": self.ids}
        self.results[recorder.run.id] = recorder.finish(status, reason, self.mesh.size, **more)

    def close(self) -> None:
        for recorder in self.live.values():
            recorder.shown.close()

    def for_each_live(self, act: Callable[[int, Recorder], None]) -> None:
        """Call `act` for every member that is left; one that `act` shows to have diverged ends
        there. Raises Diverged when none is left."""
        for slot, recorder in list(self.live.items()):
            try:
                act(slot, recorder)
            except Diverged as error:
                log.warning("run %s has diverged: %s", recorder.run.id, error)
                self.finish(slot, "diverged", str(error), {})
        if not self.live:
            raise Diverged("every one of the vmapped runs has diverged")


class VmappedCheckpoints(DueSaves):
    """As checkpoint_policy.CheckpointPolicy: every member's states lie in its own directory."""

    def __init__(self, trainer: VmappedTrainer, recorder: VmappedRecorder):
        super().__init__(trainer.runs[0].saving)
        self.trainer, self.recorder = trainer, recorder

    @property
    def directory(self) -> RunDirectory:
        """That of one member, to name them all by."""
        return next(iter(self.recorder.live.values())).directory

    def restore(self) -> tuple[int, VmappedState]:
        """The newest step that all members hold intact, or their start."""
        places = {slot: r.directory.path for slot, r in self.recorder.live.items()}
        single = self.trainer.single
        checkpoints = checkpoint.restore_latest_common(
            [(p, single[slot].abstract) for slot, p in places.items()]
        )
        if checkpoints is None:
            if lost := [path.name for path in places.values() if checkpoint.saved_steps(path)]:
                log.warning(
                    "vmapped runs start from step 0: only %s had a checkpoint", ", ".join(lost)
                )
            restored = 0, self.trainer.init()
        else:
            step, states = checkpoints[0], dict(zip(places, checkpoints[1], strict=True))
            log.info("%d vmapped runs resume from step %d", len(places), step)
            other = next(iter(states.values()))
            slots = range(len(self.trainer.runs))
            restored = step, self.trainer.place([states.get(slot, other) for slot in slots])
        for recorder in self.recorder.live.values():
            recorder.record_start(restored[0])
        return restored

    def save(self, step: int, members: VmappedState, must: bool = True) -> None:
        """Save every member and only then forget older steps: all always have one in common."""
        host, keep = jax.device_get(members), self.saving.keep
        states = {slot: self.trainer.member(host, slot) for slot in self.recorder.live}
        self.recorder.for_each_live(lambda slot, _: check_finite(step, states[slot]))
        with tolerate_refused_save(self.trainer.runs[0], must):
            for slot, recorder in self.recorder.live.items():
                directory = recorder.directory
                directory.sync()
                pinned = {*self.kept_steps, *([step] if recorder.improved(step) else [])}
                check = directory.check_lease
                checkpoint.save(directory.path, step, states[slot], keep + 1, check, pinned)
                recorder.saved(step)
            for recorder in self.recorder.live.values():
                checkpoint.prune(recorder.directory.path, keep, self.kept_steps)


def train_vmapped(
    members: Sequence[tuple[Run, RunDirectory]],
    ids: Sequence[str],
    on_steps: OnMemberSteps = lambda run_id, step, loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]]:
    """Train `members`, whose directories must be held, to their end; returns their results by id.

    `ids` are the runs that were vmapped together at their first launch, in order; slots of those
    that are not in `members` are filled. Resumes from the newest step that all members have. A
    member that diverges is recorded as such and the others continue. Raises Preempted and
    StorageError as loop.train_run.
    """
    for run, _ in members:
        trackers.check_trackers(run.trackers)
    directories = [directory for _, directory in members]
    members = _as_first_launched(members)
    mesh = runs_mesh(len(ids), directories)
    runs, filler = {run.id: run for run, _ in members}, members[0][0]
    slots = [runs.get(run_id, filler) for run_id in ids]
    trainer = VmappedTrainer([*slots, *[filler] * (-len(slots) % mesh.size)], mesh)
    for path in (directory.path for directory in directories):
        checkpoint.check_disk_space(path, trainer.single[0].abstract, len(directories))
    recorder = VmappedRecorder(_recorders(members, ids, mesh, on_steps), mesh, ids)
    try:
        metrics, final = run_loop(
            filler, trainer, recorder, VmappedCheckpoints(trainer, recorder), stop
        )
        host = jax.device_get(final)
        for slot in list(recorder.live):
            params = trainer.member(host, slot).eval_params
            closed = trainer.single[slot].against_closed_form(params)
            recorder.finish(slot, "done", "", metrics[slot] | closed)
    except Diverged:
        pass  # all of them have, and their results say so
    except Held:
        raise
    except Exception:
        with contextlib.suppress(StorageError):
            _forget_launch(directories)
        raise
    finally:
        recorder.close()
    return recorder.results


def _forget_launch(directories: Sequence[RunDirectory]) -> None:
    """Remove launch.json where no checkpoint is kept: nothing decides the last bits yet, so the
    next launch may choose its devices, its members and its execution again."""
    for directory in directories:
        if not checkpoint.saved_steps(directory.path):
            directory.check_lease()
            (directory.path / "launch.json").unlink(missing_ok=True)


def _as_first_launched(
    members: Sequence[tuple[Run, RunDirectory]],
) -> list[tuple[Run, RunDirectory]]:
    """All members with the execution of their first launch. Raises BadInput where other code began
    one of them."""
    begun = [place for _, place in members if checkpoint.saved_steps(place.path)]
    for directory in begun:
        warn = log.warning if directory is begun[0] else log.debug
        made_by.check(directory, jax_settings.describe(), warn)
    for path in (directory.path for directory in begun):
        if stored := read_launch(path):
            return [(with_stored_execution(run, stored, path), place) for run, place in members]
    return list(members)


def _recorders(
    members: Sequence[tuple[Run, RunDirectory]],
    ids: Sequence[str],
    mesh: Mesh,
    on_steps: OnMemberSteps,
) -> dict[int, Recorder]:
    """The members' recorders, by slot."""
    launch = {"mesh": ALONE, "members": list(ids), "members_mesh": dict(mesh.shape)}
    launch["execution"] = vars(members[0][0].execution)
    out = {}
    for run, directory in members:
        shown = functools.partial(on_steps, run.id)
        out[ids.index(run.id)] = Recorder(run, directory, shown, launch, len(members))
    return out


def runs_mesh(count: int, directories: Sequence[RunDirectory] = ()) -> Mesh:
    """The mesh for `count` runs: as few on a device as can be, then as few devices as that takes;
    slots that are left over on the last device are filled. Runs that were launched before have
    the devices that they had, if they are here."""
    available = jax.device_count()
    each = math.ceil(count / min(count, available))
    size = math.ceil(count / each)
    for path in (directory.path for directory in directories):
        stored = (read_launch(path) or {}).get("members_mesh")
        if stored and stored["runs"] <= available:
            size = stored["runs"]
            break
        if stored:
            log.warning("%s: first launched on %s, which is not here", path, stored)
    return Mesh(np.array(jax.devices()[:size]), ("runs",))
