"""The training loop.

The loop's order is a contract: evaluate the old state → save → take the next batches → step; the
metrics of a dispatch are fetched after the next one is on its way, which also bounds how many are
in flight. The final checkpoint is committed before the final evaluation. Since a batch is a
function of (seed, step), a run that was killed resumes from its latest checkpoint as if nothing
had happened, bit for bit on the same devices.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from research.errors import Diverged, Preempted
from research.parallel import device_memory, distributed
from research.runs import checkpoint, trackers
from research.runs.directory import RunDirectory
from research.training import resume, watchdog
from research.training.checkpoint_policy import CheckpointPolicy
from research.training.recorder import OnSteps, Recorder
from research.training.run import Run
from research.training.shared_prefix import SharedPrefix
from research.training.trainer import Stopped, Trainer, check_model, resident

# Seconds of a dispatch; steps of the one that is timed to choose their number. On CPU a dispatch
# asks the kernel for its temporary memory anew, page by page, so many steps should share it.
DISPATCH_SECONDS, TIMED_STEPS = 1.0, 4
NEGLIGIBLE_SHARE = 0.01  # of a device: a smaller state is not looked at before it is allocated


class LoopTrainer(Protocol):
    """What the loop asks of one run, or of several that are vmapped: their state is one."""

    def batches(self, step: int, n: int, room: int) -> dict[str, Any]: ...
    def steps(self, state: Any, batches: dict[str, Any], n: int, /) -> tuple[Any, dict]: ...
    def evaluate(self, params: dict, stop: Callable[[], bool]) -> Any: ...


class LoopRecorder(Protocol):
    dispatch: int

    def push(self, step: int, n: int, metrics: dict[str, Any]) -> None: ...
    def settle(self) -> None: ...
    def evaluation(self, step: int, metrics: Any) -> None: ...
    def improved(self, step: int) -> bool: ...


class LoopCheckpoints(Protocol):
    @property
    def directory(self) -> RunDirectory: ...
    @property
    def kept_steps(self) -> Collection[int]: ...

    def restore(self) -> tuple[int, Any]: ...
    def due(self, step: int) -> bool: ...
    def save(self, step: int, state: Any, must: bool, /) -> None: ...


class DispatchSizer:
    """How many steps go into a dispatch: the most that fit, or, if `paced`, as many as take about
    DISPATCH_SECONDS, so that the host's part is small and a signal to stop is heard.

    That is chosen once, by the time of the first dispatches, and for all processes of a run alike:
    they must make the same dispatches. No choice changes what is computed.
    """

    def __init__(self, most: int, paced: bool):
        self.most, self.fixed = most, not paced
        self.steps = most if self.fixed else 1
        self._last: tuple[int, float] | None = None

    def reset_timer(self) -> None:
        """Something else than steps comes next, so the time to the next dispatch says nothing."""
        self._last = None

    def record(self, n: int) -> None:
        """`n` steps were just sent, and all that was sent before is done."""
        now = time.perf_counter()
        last, self._last = self._last, (n, now)
        if self.fixed:
            return
        few = min(TIMED_STEPS, self.most)
        if last is None or last[0] != few:
            self.steps = few
        else:  # the dispatch before this one has been done meanwhile, and nothing else
            each = distributed.broadcast(lambda: (now - last[1]) / few)
            self.steps = max(1, min(self.most, round(DISPATCH_SECONDS / each)))
            self.fixed = True


def train_run(
    run: Run,
    directory: RunDirectory,
    on_steps: OnSteps = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
    prefixes: Sequence[SharedPrefix] = (),
    kept_steps: Collection[int] = (),
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Train `run` to its end, from its newest checkpoint if there is one; returns its result.

    `directory` must be held. `on_steps(steps, train_loss)` is called after each dispatch; when
    `stop()` turns true the state is saved. Without a checkpoint of its own it starts from the first
    of `prefixes` that has one, with the same result; its own after `kept_steps` are kept for
    others. `profile_steps` are traced into the run's directory. Raises Preempted when stopped,
    Diverged when the loss is no longer finite (which is recorded as this run's result),
    StorageError when the disk fails.
    """
    trackers.check_trackers(run.trackers)  # whatever is refused leaves no file behind
    resume.check_one_code()
    trainer = Trainer(*resume.as_first_launched(run, directory, prefixes))
    run = trainer.run
    distributed.broadcast(lambda: checkpoint.check_disk_space(directory.path, trainer.abstract))
    launch: dict[str, Any] = {"mesh": dict(trainer.mesh.shape), "execution": vars(run.execution)}
    if distributed.process_count() > 1:  # which may decide the last bits
        launch["processes"] = distributed.process_count()
    recorder = Recorder(run, directory, on_steps, launch)
    profile = None
    if profile_steps and directory.writes:
        from research.training import profiling

        profile = profiling.Profile(directory.path / "profile", profile_steps)
    policy_type = CheckpointPolicy
    if run.saving.asynchronous and distributed.process_count() == 1:
        from research.training.asynchronous_saves import AsynchronousCheckpoints as policy_type
    policy = policy_type(trainer, recorder, prefixes, kept_steps)
    try:
        metrics, state = run_loop(run, trainer, recorder, policy, stop, profile)
        metrics |= trainer.against_closed_form(state.eval_params)
        return recorder.finish("done", "", trainer.mesh.size, **metrics)
    except Diverged as error:
        recorder.finish("diverged", str(error), trainer.mesh.size)
        raise Diverged(f"{directory.path}: {error}") from error
    finally:
        policy.close()
        recorder.shown.close()


def preflight(run: Run, directory: RunDirectory) -> tuple[Run, Mesh] | None:
    """Raise the BadInput that `train_run` would raise on these devices; compiles and writes
    nothing. Returns the run as it would be launched and its mesh where its memory has to be
    estimated first, None where its state is less than NEGLIGIBLE_SHARE of a device."""
    trackers.check_trackers(run.trackers)
    run, mesh = resume.as_first_launched(run, directory, warn=lambda *_: None)  # train_run tells
    check_model(run, mesh)
    negligible = sum(resident(run, mesh)) < NEGLIGIBLE_SHARE * device_memory.available()
    return None if negligible else (run, mesh)


def run_loop(
    run: Run,
    trainer: LoopTrainer,
    recorder: LoopRecorder,
    policy: LoopCheckpoints,
    stop: Callable[[], bool],
    profile: Any = None,
) -> tuple[Any, Any]:
    """All steps of a run (or of several, see vmapped_runs), in the order of the contract; returns
    the final evaluation and the final state. Nothing is moved between host and devices but what
    the loop puts and gets explicitly. A `profile` (profiling.Profile) traces some of them."""
    cadence, stop_asked = run.cadence, distributed.any_process_delayed(stop)
    sizer = DispatchSizer(cadence.dispatch, cadence.paced)
    watchdog.start_run(run.hang_limits)
    with watchdog.doing("start"):
        step, state = policy.restore()
    first, stopped = step, False

    def evaluate() -> Any:
        with watchdog.doing("evaluation"):
            metrics = trainer.evaluate(state.eval_params, stop)
        recorder.evaluation(step, metrics)
        return metrics

    def save(must: bool) -> None:
        with watchdog.doing("checkpoint"), jax.transfer_guard("allow"):  # orbax has its own ways
            policy.save(step, state, must)

    def settle() -> None:
        sizer.reset_timer()
        with watchdog.doing("wait"):
            recorder.settle()

    with jax.transfer_guard("disallow"), profile or nullcontext():
        while step < run.steps:
            if step and (step in cadence.at or (cadence.eval and step % cadence.eval == 0)):
                settle()
                try:
                    evaluate()
                except Stopped:  # the next launch evaluates this state
                    stopped = True
            leaving = stopped or (step > first and stop_asked())
            due = step > first and (policy.due(step) or recorder.improved(step))
            if due or leaving or step in policy.kept_steps:
                settle()
                save(must=leaving)
            if leaving:
                raise _preempted(run, policy, step)
            n = min(sizer.steps, _steps_to_next(step, run, policy.kept_steps))
            with watchdog.doing("dispatch"), profile.step(step) if profile else nullcontext():
                state, metrics = trainer.steps(state, trainer.batches(step, n, cadence.dispatch), n)
                recorder.push(step, n, metrics)
            if profile:
                profile.on_dispatch(n, metrics)
            sizer.record(n)
            recorder.dispatch = sizer.steps
            step += n
        settle()
        if step > first:
            save(must=True)
        try:
            return evaluate(), state
        except Stopped:
            raise _preempted(run, policy, step) from None


def _steps_to_next(step: int, run: Run, kept_steps: Collection[int]) -> int:
    """Steps to the next evaluation, save or end of the run."""
    every = (run.cadence.eval, run.saving.every)
    ends = [k - step % k for k in every if k]
    ends += [other - step for other in {*kept_steps, *run.cadence.at} if other > step]
    return min([run.steps - step, *ends])


def _preempted(run: Run, policy: LoopCheckpoints, step: int) -> Preempted:
    return Preempted(f"{policy.directory.path}: stopped and saved at step {step} of {run.steps}")
