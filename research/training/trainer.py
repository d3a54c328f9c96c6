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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from research.errors import BadInput
from research.parallel import distributed, sharding
from research.planning import memory
from research.runs import checkpoint
from research.training import fine_tuning
from research.training.run import Run, example_inputs
from research.training.step import (
    StepSpec,
    TrainState,
    dispatch_program,
    eval_program,
    init_program,
    placement,
)

log = logging.getLogger(__name__)
GLANCE, PATIENT = 0.002, 2.0  # seconds between looks at what the devices compute; before giving up


class Stopped(Exception):
    """Asked to stop while the devices compute what can be computed again."""


def never() -> bool:
    return False


def wait_for(tree: Any, stop: Callable[[], bool]) -> Any:
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
        self.recipe = step_spec(run, mesh)
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
        sums = distributed.fetch(wait_for(sums, stop))
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


def step_spec(run: Run, mesh: Mesh) -> StepSpec:
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
