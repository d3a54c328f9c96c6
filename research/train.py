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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from research import branch, checkpoint, environment, records, sharding, sinks
from research.errors import Diverged, Preempted
from research.files import read_json
from research.records import RunDirectory, read_metrics
from research.run import Run, example_inputs
from research.step import (
    Recipe,
    TrainState,
    dispatch_program,
    eval_program,
    init_program,
    placement,
)

log = logging.getLogger(__name__)


class Trainer:
    """A Run on a mesh: its state, its programs and its batches, without files or a loop."""

    def __init__(self, run: Run, mesh: Mesh):
        self.run, self.mesh = run, mesh
        self.recipe = Recipe(run.model, run.task, run.optimizer, run.schedule)
        self.inputs = example_inputs(run.data)
        self.shardings, self.abstract = placement(
            self.recipe, mesh, self.inputs, jax.tree.structure(run.hyper)
        )
        self.hyper = jax.device_put(run.hyper, sharding.replicated(mesh))
        self._dispatch = dispatch_program(self.recipe, self.shardings)
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
        params = branch.transplanted(start, self.abstract.params, state.params)
        average = None if state.average is None else jax.tree.map(jnp.copy, params)
        return state._replace(params=params, average=average)

    def batches(self, step: int, n: int, room: int) -> dict[str, Array]:
        """The batches of steps [step, step + n), stacked; blank rows up to `room`."""
        run = self.run
        rows = [run.data.batch(run.order, s, run.batch) for s in range(step, step + n)]
        stacked = {}
        for name, x in rows[0].items():
            stacked[name] = np.zeros((room, *x.shape), x.dtype)
            np.stack([row[name] for row in rows], out=stacked[name][:n])
        return sharding.put_rows(stacked, self.mesh, stacked=True)

    def steps(self, state: TrainState, batches: dict, n: int) -> tuple[TrainState, dict]:
        """`n` updates in one dispatch; returns at once. `state` is given away."""
        return self._dispatch(state, batches, self.hyper, jax.device_put(np.int32(n)))

    def evaluate(self, params: dict) -> dict[str, Any]:
        """The task's metrics on the fixed held-out set, the same examples for every size."""
        if self._held is None:
            self._held = self._heldout()
        sums = jax.device_get(eval_program(self.recipe)(params, *self._held))
        sums = {name: np.asarray(total, np.float64) for name, total in sums.items()}
        return self.run.task.metrics(sums, self.run.data.notes)

    def against_closed_form(self, params: dict) -> dict[str, float]:
        """Where the family knows the best parameters: their held-out loss, and how far `params`
        are from them (the largest difference of a parameter)."""
        solve = getattr(self.run.model.family, "solve", None)
        if solve is None:
            return {}
        train = self.run.data.train
        best = solve(train.rows(np.arange(len(train))))
        away = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), params, best)
        placed = jax.tree.map(lambda p, b: jax.device_put(np.float32(b), p.sharding), params, best)
        return {
            "closed_form_loss": self.evaluate(placed)["loss"],
            "closed_form_distance": max(jax.tree.leaves(away)),
        }

    def _heldout(self) -> tuple[dict[str, Array], Array]:
        count, batch = self.run.eval_examples, self.run.eval_batch
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch = math.ceil(min(batch, count) / ways) * ways
        number = math.ceil(count / batch)
        held = self.run.data.heldout
        chosen = np.random.default_rng(0).permutation(len(held))[:count]
        at = np.concatenate([np.sort(chosen), np.zeros(number * batch - count, np.int64)])
        rows = {k: x.reshape(number, batch, *x.shape[1:]) for k, x in held.rows(at).items()}
        real = np.arange(number * batch) < count
        rows["weights"] = real.astype(np.float32).reshape(number, batch)
        put = sharding.put_rows(rows, self.mesh, stacked=True)
        return put, put.pop("weights")


class Recorder:
    """Writes the metrics of dispatches, one dispatch late, and notices when they diverge."""

    def __init__(
        self,
        run: Run,
        directory: RunDirectory,
        progress: Callable[[int, float], None],
        shown: sinks.Sinks,
    ):
        self.run, self.directory, self.progress, self.shown = run, directory, progress, shown
        self.before = max(
            (r.get("seconds", 0.0) for r in read_metrics(directory.path)), default=0.0
        )
        self.started = time.monotonic()
        self.loss = math.nan
        self._pending: tuple[int, int, dict] | None = None

    @property
    def seconds(self) -> float:
        """Spent on this run, by earlier launches too."""
        return self.before + time.monotonic() - self.started

    def push(self, step: int, n: int, metrics: dict[str, Array]) -> None:
        """Take the metrics of a dispatch just sent; wait for the one before it."""
        pending, self._pending = self._pending, (step, n, metrics)
        if pending:
            self._write(*pending)

    def settle(self) -> None:
        """Wait for all that was sent. Raises Diverged."""
        pending, self._pending = self._pending, None
        if pending:
            self._write(*pending)

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not math.isfinite(metrics["loss"]):
            raise Diverged(f"held-out loss {metrics['loss']} after step {step}")
        self._line(step, **{k: v for k, v in metrics.items() if isinstance(v, float)})

    def _write(self, first: int, n: int, metrics: dict[str, Array]) -> None:
        host = jax.device_get(metrics)
        for i in range(n):
            loss, norm = float(host["train_loss"][i]), float(host["grad_norm"][i])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise Diverged(
                    f"loss {loss}, gradient norm {norm} at step {first + i}; "
                    f"the last finite loss was {self.loss:.4g}"
                )
            self.loss = loss
            if (first + i) % self.run.every.log == 0:
                values = {k: float(v[i]) for k, v in host.items()}
                self._line(first + i, **values)
        self.progress(first + n, self.loss)

    def _line(self, step: int, **values: float) -> None:
        tokens = step * self.run.tokens_per_step
        seconds = round(self.seconds, 3)
        self.directory.append(step=step, tokens=tokens, **values, seconds=seconds)
        self.shown.log(step, values)


def fit(
    run: Run,
    directory: RunDirectory,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train `run` to its end, from its newest checkpoint if there is one; returns its result.

    `directory` must be held. `progress(steps, train_loss)` is called after each dispatch; when
    `stop()` turns true the state is saved. Raises Preempted then, Diverged when the loss is no
    longer finite (which is recorded as this run's result), StorageError when the disk fails.
    """
    sinks.check(run.sinks)  # whatever is refused leaves no file behind
    trainer = Trainer(run, _mesh(run, directory))
    mesh = trainer.mesh
    records.write_card(directory.workdir, run.data.digest, run.data.card)
    directory.once("config.json", run.config)
    launch = {"mesh": dict(mesh.shape), "facts": run.facts, **environment.describe()}
    directory.once("launch.json", launch | {"model": run.model.described()})
    if run.data.tokenizer:
        directory.once_text("tokenizer.json", run.data.tokenizer)
    name = f"{run.facts['name']} {run.id}"
    shown = sinks.open_all(run.sinks, run.id, name, run.config, directory.path, directory.workdir)
    recorder = Recorder(run, directory, progress, shown)
    try:
        metrics = _loop(run, trainer, directory, recorder, stop)
        status = {"status": "done", "reason": ""}
    except Diverged as error:
        metrics, status = {}, {"status": "diverged", "reason": str(error)}
    except BaseException:
        shown.close()
        raise
    seconds = round(recorder.seconds, 3)
    result = {
        **status,
        **run.facts,
        **metrics,
        "train_loss": recorder.loss if math.isfinite(recorder.loss) else None,
        "seconds": seconds,
        "device_seconds": round(seconds * mesh.size, 3),
        "devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "data_digest": run.data.digest,
        **environment.describe(),
    }
    directory.finish(result)
    shown.close(result)
    if status["status"] == "diverged":
        raise Diverged(f"{directory.path}: {status['reason']}")
    return result


def check(run: Run, directory: RunDirectory) -> None:
    """Raise the BadInput that `fit` would raise on this machine; compiles and writes nothing."""
    sinks.check(run.sinks)
    Trainer(run, _mesh(run, directory))


def _loop(
    run: Run,
    trainer: Trainer,
    directory: RunDirectory,
    recorder: Recorder,
    stop: Callable[[], bool],
) -> dict[str, float]:
    """All steps, in the order of the contract; returns the final evaluation."""
    every, room, keep = run.every, run.every.dispatch, run.keep
    restored = checkpoint.restore_newest(directory.path, trainer.abstract)
    if restored:
        first, state = restored
        log.info("run %s goes on from step %d of %d", run.id, first, run.steps)
    else:
        state = trainer.init()
        first = int(state.step)  # not 0 where it is another run's state
    directory.append(resume=first)
    step = first
    while step < run.steps:
        if every.eval and step and step % every.eval == 0:
            recorder.settle()
            recorder.evaluation(step, trainer.evaluate(state.evaluated))
        if every.save and step > first and step % every.save == 0:
            recorder.settle()
            checkpoint.save(directory.path, step, state, keep, directory.check)
        ends = [k - step % k for k in (every.eval, every.save) if k]
        n = min(room, run.steps - step, *ends)
        state, metrics = trainer.steps(state, trainer.batches(step, n, room), n)
        recorder.push(step, n, metrics)
        step += n
        if stop() and step < run.steps:
            recorder.settle()
            checkpoint.save(directory.path, step, state, keep, directory.check)
            raise Preempted(f"{directory.path}: stopped and saved at step {step} of {run.steps}")
    recorder.settle()
    if step > first:
        checkpoint.save(directory.path, step, state, keep, directory.check)
    metrics = trainer.evaluate(state.evaluated)
    recorder.evaluation(step, metrics)
    return metrics | trainer.against_closed_form(state.evaluated)


def _mesh(run: Run, directory: RunDirectory) -> Mesh:
    """The mesh of the first launch where the devices are there, since it decides the last bits."""
    path = directory.path / "launch.json"
    if path.exists():
        stored = read_json(path)["mesh"]
        if math.prod(stored.values()) <= jax.device_count():
            return sharding.make_mesh(stored, run.batch)
        log.warning("%s: first launched on mesh %s, which is not here", directory.path, stored)
    return sharding.make_mesh(run.mesh, run.batch)
