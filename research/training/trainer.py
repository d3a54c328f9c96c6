"""Training: a run on a mesh, and its loop.

The loop's order is a contract: evaluate the old state → save → take the next batches → step; the
metrics of a dispatch are fetched after the next one is on its way, which also bounds how many are
in flight. The final checkpoint is committed before the final evaluation. Since a batch is a
function of (seed, step), a run that was killed goes on from its newest checkpoint as if nothing
had happened, bit for bit on the same devices.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from research.errors import BadInput, Damaged, Diverged, Preempted
from research.parallel import distributed, sharding
from research.planning import memory
from research.runs import checkpoint, trackers
from research.runs import directory as records
from research.runs.directory import RunDirectory
from research.training import fine_tuning, watchdog
from research.training.checkpoint_policy import Keeper
from research.training.recorder import Progress, Recorder
from research.training.run import Run, example_inputs
from research.training.step import (
    Recipe,
    TrainState,
    dispatch_program,
    eval_program,
    init_program,
    placement,
)
from research.training.wsd_branching import Trunk

log = logging.getLogger(__name__)

GLANCE, PATIENT = 0.002, 2.0  # seconds between looks at what the devices compute; before giving up
# Seconds of a dispatch; steps of the one that is timed to choose their number. On CPU a dispatch
# asks the kernel for its temporary memory anew, page by page, so many steps should share it.
LONG, FEW = 1.0, 4


class Stopped(Exception):
    """Asked to stop while the devices compute what can be computed again."""


def never() -> bool:
    return False


def awaited(tree: Any, stop: Callable[[], bool]) -> Any:
    """`tree`, when the devices have computed it; raises Stopped if that takes more than PATIENT
    seconds and `stop()` turns true. Of several processes none may leave the others, so they wait.
    """
    if stop is not never and distributed.count() == 1:
        began = time.monotonic()
        while not all(x.is_ready() for x in jax.tree.leaves(tree)):
            if time.monotonic() - began > PATIENT and stop():
                raise Stopped
            time.sleep(GLANCE)
    return tree


class Trainer:
    """A Run on a mesh: its state, its programs and its batches, without files or a loop."""

    def __init__(self, run: Run, mesh: Mesh):
        self.run, self.mesh = run, mesh
        _check_model(run, mesh)
        self.recipe = recipe(run, mesh)
        self.inputs = example_inputs(run.data)
        self.shardings, self.abstract = placement(
            self.recipe, mesh, self.inputs, jax.tree.structure(run.hyper)
        )
        self.hyper = jax.device_put(run.hyper, sharding.replicated(mesh))
        self._dispatch = dispatch_program(self.recipe, self.shardings)
        self._rows = sharding.own_rows(mesh, run.batch)
        self._held: tuple | None = None

    def init(self) -> TrainState:
        """The first state, made where it lies: no device ever holds what it does not own."""
        zeros = np.zeros(self.inputs.shape, self.inputs.dtype)
        make = init_program(self.recipe, self.shardings)
        state = make(jax.random.key(self.run.seed), zeros, self.hyper)
        start = self.run.start
        if start is None:
            return state
        if start.what == "state":
            return checkpoint.restore(start.path, self.abstract)
        params = fine_tuning.transplanted(start, self.abstract.params, state.params)
        average = None if state.average is None else jax.tree.map(jnp.copy, params)
        return state._replace(params=params, average=average)

    def batches(self, step: int, n: int, room: int) -> dict[str, Array]:
        """The batches of steps [step, step + n), stacked; blank rows up to `room`."""
        rows = host_batches(self.run, step, n, room, self._rows)
        return sharding.put_rows(rows, self.mesh, True, self.run.batch, self._rows)

    def steps(self, state: TrainState, batches: dict, n: int) -> tuple[TrainState, dict]:
        """`n` updates in one dispatch; returns at once. `state` is given away."""
        return self._dispatch(state, batches, self.hyper, jax.device_put(np.int32(n)))

    def lower(self, batches: dict) -> Any:
        """The program of `steps` for abstract batches, to be compiled; nothing is allocated."""
        return self._dispatch.lower(self.abstract, batches, self.hyper, np.int32(0))

    def evaluate(self, params: dict, stop: Callable[[], bool] = never) -> dict[str, Any]:
        """The task's metrics on the fixed held-out set, the same examples for every size. Raises
        Stopped, see `awaited`."""
        if self._held is None:
            self._held = self._heldout()
        sums = eval_program(self.recipe, self.mesh)(params, *self._held)
        sums = distributed.fetch(awaited(sums, stop))
        sums = {name: np.asarray(total, np.float64) for name, total in sums.items()}
        return self.run.task.metrics(sums, self.run.data.notes)

    def against_closed_form(self, params: dict) -> dict[str, float]:
        """Where the family knows the best parameters for targets that are numbers: their held-out
        loss, and how far `params` are from them (the largest difference of a parameter)."""
        solve = getattr(self.run.model.family, "solve", None)
        if solve is None or self.run.data.targets != "numbers":
            return {}
        train = self.run.data.train
        best = solve(train.rows(np.arange(len(train))))
        there = distributed.fetch(params)
        away = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), there, best)
        placed = jax.tree.map(lambda p, b: jax.device_put(np.float32(b), p.sharding), params, best)
        return {
            "closed_form_loss": self.evaluate(placed)["loss"],
            "closed_form_distance": max(jax.tree.leaves(away)),
        }

    def _heldout(self) -> tuple[dict[str, Array], Array]:
        rows = host_heldout(self.run, self.mesh.shape["data"] * self.mesh.shape["fsdp"])
        put = sharding.put_rows(rows, self.mesh, stacked=True)
        return put, put.pop("weights")


def _check_model(run: Run, mesh: Mesh) -> None:
    """Raise BadInput where the devices cannot compute the model as it says."""
    check = getattr(run.model.family, "check", None)
    try:
        if check is not None:
            check(run.model.spec, mesh.devices.flat[0].platform)
    except ValueError as error:
        raise BadInput(f"model.{error}") from error


def recipe(run: Run, mesh: Mesh) -> Recipe:
    """What the compiled steps of a run on a mesh depend on."""
    return memory.recipe(run, mesh.shape["data"] * mesh.shape["fsdp"])


def host_batches(
    run: Run, step: int, n: int, room: int, at: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The batches of steps [step, step + n), [room, B, ...], or their rows `at`; the rest is
    blank."""
    rows = [run.data.batch(run.order, s, run.batch, at) for s in range(step, step + n)]
    stacked = {}
    for name, x in rows[0].items():
        stacked[name] = np.zeros((room, *x.shape), x.dtype)
        np.stack([row[name] for row in rows], out=stacked[name][:n])
    return stacked


def host_heldout(run: Run, ways: int) -> dict[str, np.ndarray]:
    """The fixed held-out set in batches [S, B, ...] that `ways` divides, filled up with rows whose
    "weights" [S, B] are 0."""
    count, batch = run.eval_examples, run.eval_batch
    batch = math.ceil(min(batch, count) / ways) * ways
    number = math.ceil(count / batch)
    held = run.data.heldout
    chosen = np.random.default_rng(0).permutation(len(held))[:count]
    at = np.concatenate([np.sort(chosen), np.zeros(number * batch - count, np.int64)])
    rows = {k: x.reshape(number, batch, *x.shape[1:]) for k, x in held.rows(at).items()}
    real = np.arange(number * batch) < count
    return rows | {"weights": real.astype(np.float32).reshape(number, batch)}


class Pace:
    """How many steps go into a dispatch: the most that fit, or, if `paced`, as many as take about
    LONG seconds, so that the host's part is small and a signal to stop is heard.

    That is chosen once, by the time of the first dispatches, and for all processes of a run alike:
    they must make the same dispatches. No choice changes what is computed.
    """

    def __init__(self, most: int, paced: bool):
        self.most, self.settled = most, not paced
        self.steps = most if self.settled else 1
        self._sent: tuple[int, float] | None = None

    def interrupt(self) -> None:
        """Something else than steps comes next, so the time to the next dispatch says nothing."""
        self._sent = None

    def sent(self, n: int) -> None:
        """`n` steps were just sent, and all that was sent before is done."""
        now = time.perf_counter()
        before, self._sent = self._sent, (n, now)
        if self.settled:
            return
        few = min(FEW, self.most)
        if before is None or before[0] != few:
            self.steps = few
        else:  # the dispatch before this one has been done meanwhile, and nothing else
            each = distributed.agree(lambda: (now - before[1]) / few)
            self.steps = max(1, min(self.most, round(LONG / each)))
            self.settled = True


def fit(
    run: Run,
    directory: RunDirectory,
    progress: Progress = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
    trunks: Sequence[Trunk] = (),
    branches: Collection[int] = (),
) -> dict[str, Any]:
    """Train `run` to its end, from its newest checkpoint if there is one; returns its result.

    `directory` must be held. `progress(steps, train_loss)` is called after each dispatch; when
    `stop()` turns true the state is saved. Without a checkpoint of its own it begins from the first
    of `trunks` that has one, with the same result; its own after the steps `branches` are kept for
    others. Raises Preempted when stopped, Diverged when the loss is no longer finite (which is
    recorded as this run's result), StorageError when the disk fails.
    """
    trackers.check(run.sinks)  # whatever is refused leaves no file behind
    run, mesh = _launched(run, directory, trunks)
    trainer = Trainer(run, mesh)
    distributed.agree(lambda: checkpoint.check_room(directory.path, trainer.abstract))
    distributed.agree(lambda: unbind([directory]))
    launched: dict[str, Any] = {"mesh": dict(mesh.shape), "how": run.how}
    if distributed.count() > 1:  # which may decide the last bits
        launched["processes"] = distributed.count()
    recorder = Recorder(run, directory, progress, launched)
    devices = trainer.mesh.size, trainer.mesh.devices.flat[0].device_kind
    try:
        keeper = Keeper(trainer, recorder, trunks, branches)
        metrics, state = loop(run, trainer, recorder, keeper, stop)
        metrics |= trainer.against_closed_form(state.evaluated)
        return recorder.finish("done", "", *devices, **metrics)
    except Diverged as error:
        recorder.finish("diverged", str(error), *devices)
        raise Diverged(f"{directory.path}: {error}") from error
    finally:
        recorder.shown.close()


def check(run: Run, directory: RunDirectory, force: bool = False) -> None:
    """Raise the BadInput that `fit` would raise on this machine, and that of a run which its
    memory cannot hold, unless `force` is set; compiles and writes nothing."""
    trackers.check(run.sinks)
    trainer = Trainer(*_launched(run, directory))
    if not force:
        memory.check(trainer.run, trainer.mesh)


def loop(run: Run, trainer: Any, recorder: Any, keeper: Any, stop: Callable[[], bool]) -> tuple:
    """All steps of a run (or of a group, see ensemble), in the order of the contract; returns the
    final evaluation and the final state."""
    every, room, asked = run.every, run.every.dispatch, distributed.late(stop)
    pace = Pace(room, every.paced)
    watchdog.anew()
    with watchdog.doing("start"):
        step, state = keeper.restore()
    first, stopped = step, False

    def evaluate() -> Any:
        with watchdog.doing("evaluation"):
            metrics = trainer.evaluate(state.evaluated, stop)
        recorder.evaluation(step, metrics)
        return metrics

    def save(must: bool) -> None:
        with watchdog.doing("checkpoint"):
            keeper.save(step, state, must)

    def settle() -> None:
        pace.interrupt()
        with watchdog.doing("wait"):
            recorder.settle()

    while step < run.steps:
        if every.eval and step and step % every.eval == 0:
            settle()
            try:
                evaluate()
            except Stopped:  # the next launch evaluates this state
                stopped = True
        leaving = stopped or (step > first and asked())
        due = step in keeper.branches or (every.save and step > first and step % every.save == 0)
        if due or leaving:
            settle()
            save(must=leaving)
        if leaving:
            raise _preempted(run, keeper, step)
        ends = [k - step % k for k in (every.eval, every.save) if k]
        ends += [branch - step for branch in keeper.branches if branch > step]
        n = min(pace.steps, run.steps - step, *ends)
        with watchdog.doing("dispatch"):
            state, metrics = trainer.steps(state, trainer.batches(step, n, room), n)
            recorder.push(step, n, metrics)
        pace.sent(n)
        recorder.dispatch = pace.steps
        step += n
    settle()
    if step > first:
        save(must=True)
    try:
        return evaluate(), state
    except Stopped:
        raise _preempted(run, keeper, step) from None


def _preempted(run: Run, keeper: Any, step: int) -> Preempted:
    return Preempted(f"{keeper.directory.path}: stopped and saved at step {step} of {run.steps}")


def _launched(run: Run, directory: RunDirectory, trunks: Sequence[Trunk] = ()) -> tuple[Run, Mesh]:
    """The run as it was computed at its first launch, or as what it begins from was, and that mesh
    where its devices are there: both decide the last bits."""
    begun = [directory.path] if checkpoint.steps(directory.path) else []
    for path in (*begun, *(trunk.path for trunk in trunks)):
        if stored := records.launch(path):
            run, mesh = as_launched(run, stored, path), stored["mesh"]
            used = math.prod(mesh.values())
            if used <= jax.device_count() and used % distributed.count() == 0:
                return run, sharding.make_mesh(mesh, run.batch, parts=run.accumulate)
            log.warning("%s: first launched on mesh %s, which is not here", path, mesh)
    return run, sharding.make_mesh(run.mesh, run.batch, parts=run.accumulate)


def as_launched(run: Run, stored: Mapping[str, Any], path: Path) -> Run:
    """`run`, computed as the launch.json `stored` at `path` says. Raises Damaged where it cannot
    be."""
    try:
        out = run.computed(stored.get("how", {}))
    except BadInput as error:
        file = path / "launch.json"
        raise Damaged(f"{file}: how: {error.problems[0]}; {records.REMEDY[file.name]}") from error
    changed = {k: v for k, v in out.how.items() if v != run.how[k]}
    if changed:
        words = ", ".join(f"{key} {value}" for key, value in changed.items())
        log.warning("%s: goes on as it was first launched, with %s", path, words)
    return out


def unbind(directories: Sequence[RunDirectory]) -> None:
    """Where nothing is kept that was computed, nothing decides the last bits yet, and the next
    launch may choose its devices, its members and all that a run does not mean again."""
    for directory in directories:
        if not checkpoint.steps(directory.path):
            directory.check()
            (directory.path / "launch.json").unlink(missing_ok=True)
