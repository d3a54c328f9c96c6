"""The training loop.

The loop's order is a contract: evaluate the old state → save → take the next batches → step; the
metrics of a dispatch are fetched after the next one is on its way, which also bounds how many are
in flight. The final checkpoint is committed before the final evaluation. Since a batch is a
function of (seed, step), a run that was killed goes on from its newest checkpoint as if nothing
had happened, bit for bit on the same devices.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from research.errors import BadInput, Damaged, Diverged, Preempted
from research.parallel import distributed, sharding
from research.planning import memory
from research.runs import checkpoint, trackers
from research.runs.directory import REMEDY, RunDirectory, read_launch
from research.training import watchdog
from research.training.checkpoint_policy import CheckpointPolicy
from research.training.recorder import Progress, Recorder
from research.training.run import Run
from research.training.trainer import Stopped, Trainer, log
from research.training.wsd_branching import Trunk

# Seconds of a dispatch; steps of the one that is timed to choose their number. On CPU a dispatch
# asks the kernel for its temporary memory anew, page by page, so many steps should share it.
LONG, FEW = 1.0, 4


class DispatchSizer:
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


def train_run(
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
        keeper = CheckpointPolicy(trainer, recorder, trunks, branches)
        metrics, state = run_loop(run, trainer, recorder, keeper, stop)
        metrics |= trainer.against_closed_form(state.evaluated)
        return recorder.finish("done", "", *devices, **metrics)
    except Diverged as error:
        recorder.finish("diverged", str(error), *devices)
        raise Diverged(f"{directory.path}: {error}") from error
    finally:
        recorder.shown.close()


def check_run(run: Run, directory: RunDirectory, force: bool = False) -> None:
    """Raise the BadInput that `fit` would raise on this machine, and that of a run which its
    memory cannot hold, unless `force` is set; compiles and writes nothing."""
    trackers.check(run.sinks)
    trainer = Trainer(*_launched(run, directory))
    if not force:
        memory.check(trainer.run, trainer.mesh)


def run_loop(run: Run, trainer: Any, recorder: Any, keeper: Any, stop: Callable[[], bool]) -> tuple:
    """All steps of a run (or of a group, see ensemble), in the order of the contract; returns the
    final evaluation and the final state."""
    every, room, asked = run.every, run.every.dispatch, distributed.late(stop)
    pace = DispatchSizer(room, every.paced)
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
        if stored := read_launch(path):
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
        raise Damaged(f"{file}: how: {error.problems[0]}; {REMEDY[file.name]}") from error
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
