"""A run on a mesh: its state, its programs and its batches, without the loop."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, Mesh

from research.errors import BadInput
from research.models import Model
from research.parallel import device_memory, device_mesh, distributed, sharding
from research.training.optimizers import Optimizer
from research.training.run import Run, example_inputs
from research.training.step import (
    Hyper,
    Placement,
    StepSpec,
    TrainState,
    dispatch_program,
    eval_program,
    init_from_params,
    init_program,
)

AnyMesh = Mesh | AbstractMesh
GLANCE, PATIENT = 0.002, 2.0  # seconds between looks at what the devices compute; before giving up


class Stopped(Exception):
    """Asked to stop while the devices compute what can be computed again."""


def never_stop() -> bool:
    return False


def wait_for(tree: Any, stop: Callable[[], bool]) -> Any:
    """`tree`, when the devices have computed it; raises Stopped if that takes more than PATIENT
    seconds and `stop()` turns true. Of several processes none may leave the others, so they wait.
    """
    if stop is not never_stop and distributed.process_count() == 1:
        began = time.monotonic()
        while not all(x.is_ready() for x in jax.tree.leaves(tree)):
            if time.monotonic() - began > PATIENT and stop():
                raise Stopped
            time.sleep(GLANCE)
    return tree


class Trainer:
    """The state, programs and batches of a Run on a mesh, whose devices `init` needs first."""

    def __init__(self, run: Run, mesh: Mesh):
        self.run, self.mesh = run, mesh
        check_model(run, mesh)
        self.spec = step_spec(run, mesh)
        self.inputs = example_inputs(run.data)
        self.shardings, self.abstract = place_state(run, mesh)
        self._everywhere = sharding.replicated(mesh)
        self._dispatch = dispatch_program(self.spec, self.shardings)

    @functools.cached_property
    def hyper(self) -> Hyper:
        return jax.device_put(self.run.hyper, self._everywhere)

    def init(self) -> TrainState:
        """The first state, made where it lies: no device ever holds what it does not own."""
        zeros = np.zeros(self.inputs.shape, self.inputs.dtype)
        make = init_program(self.spec, self.shardings)
        state = make(jax.random.key(self.run.seed), zeros, self.hyper)
        if (start := self.run.start) is None:
            return state
        if start.what == "state":
            from research.runs import restoring  # as below

            return restoring.restore(start.path, self.abstract)
        from research.training import fine_tuning  # which few runs need

        params = fine_tuning.take_parameters(start, self.abstract.params, state.params)
        average = None if state.average is None else jax.tree.map(jnp.copy, params)
        return state._replace(params=params, average=average)

    def batches(self, step: int, n: int, room: int) -> dict[str, Array]:
        """The batches of steps [step, step + n), stacked; blank rows up to `room`."""
        at = None
        if distributed.process_count() > 1:
            from research.parallel import joining  # which one process does not need

            at = joining.own_rows(self.mesh, self.run.batch)
        rows = host_batches(self.run, step, n, room, at)
        return sharding.put_rows(rows, self.mesh, self.run.batch)

    def steps(self, state: TrainState, batches: dict, n: int) -> tuple[TrainState, dict]:
        """`n` updates in one dispatch; returns at once. `state` is donated."""
        count = jax.device_put(np.int32(n), self._everywhere)
        return self._dispatch(state, batches, self.hyper, count)

    def lower(self, room: int | None = None) -> jax.stages.Lowered:
        """The program of `steps`, for the batches of a run's dispatch or with this `room`."""
        lead, at = (room or self.run.cadence.dispatch, self.run.batch), self._everywhere
        split = sharding.stacked_rows(self.mesh)
        batches = {
            name: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype, sharding=split)
            for name, x in example(self.run).items()
        }
        count = jax.ShapeDtypeStruct((), np.int32, sharding=at)
        hyper = abstract_hyper(jax.tree.structure(self.run.hyper), at)
        return self._dispatch.lower(self.abstract, batches, hyper, count)

    def evaluate(self, params: dict, stop: Callable[[], bool] = never_stop) -> dict[str, Any]:
        """The task's metrics on the fixed held-out set, the same examples for every size, and on
        the run's other sets. Raises Stopped, see `wait_for`."""

        def measure(run: Run, placed: tuple) -> dict[str, Any]:
            held, examined = placed
            sums = eval_program(self.spec, self.mesh)(params, *held)
            sums = distributed.gather(wait_for(sums, stop))
            sums = {name: np.asarray(total, np.float64) for name, total in sums.items()}
            return run.task.metrics(sums, {**run.data.notes, **examined})

        metrics = measure(self.run, self._heldout)
        if "sets" not in self.run.config["eval"]:
            return metrics
        from research.training import evaluation_sets  # which few runs need

        return evaluation_sets.with_sets(self.run, metrics, measure, self._place, self)

    def against_closed_form(self, params: dict) -> dict[str, float]:
        """Where the family knows the best parameters, what `closed_form.compare` says of these."""
        if not hasattr(self.run.model.family, "solve") or self.run.data.targets != "numbers":
            return {}
        from research.training import closed_form  # which few families need

        return closed_form.compare(self.run, self.evaluate, params)

    @functools.cached_property
    def _heldout(self) -> tuple[tuple[dict[str, Array], Array], dict[str, Any]]:
        return self._place(self.run)

    def _place(self, run: Run) -> tuple[tuple[dict[str, Array], Array], dict[str, Any]]:
        rows = host_heldout(run, device_mesh.batch_shards(self.mesh.shape))
        put = sharding.put_rows(rows, self.mesh, rows["weights"].shape[1])
        return (put, put.pop("weights")), examine(run, rows)


def check_model(run: Run, mesh: Mesh) -> None:
    """Raise BadInput where the devices cannot compute the model as it says."""
    check = getattr(run.model.family, "check_platform", None)
    try:
        if check is not None:
            check(run.model.spec, mesh.devices.flat[0].platform)
    except ValueError as error:
        raise BadInput(f"model.{error}") from error


def step_spec(run: Run, mesh: AnyMesh | None = None) -> StepSpec:
    """What the compiled steps of a run depend on: on a mesh, or, without one, on one device whose
    rows are the whole batch."""
    ways = device_mesh.batch_shards(mesh.shape) if mesh else 1
    task, parts = run.task.for_devices(run.model, ways), run.execution.grad_accumulation
    spec = StepSpec(run.model, task, run.optimizer, run.schedule, parts, run.transfer)
    if not run.config["log"].get("internals"):
        return spec
    from research.training import internals  # which few runs need

    return spec._replace(internals=internals.internals(run.cadence.log, run.task, run.model))


def run_mesh(run: Run) -> Mesh:
    """The mesh of a run on the devices that are here. Raises BadInput where there is none."""
    return device_mesh.make_mesh(run.mesh, run.batch, parts=run.execution.grad_accumulation)


def place_state(run: Run, mesh: AnyMesh) -> tuple[Placement, TrainState]:
    """Where every leaf of the state of `run` lies on `mesh`, and the abstract state laid out so.
    Allocates nothing. Raises BadInput where the mesh does not divide a parameter, or a field."""
    inputs, hyper = example_inputs(run.data), jax.tree.structure(run.hyper)
    of_run = run.model, run.optimizer, run.transfer
    placed = _place_state(*of_run, hyper, inputs, mesh, run.replicate_indivisible)
    split = getattr(run.model.family, "MESH_DIVIDES", {})
    sharding.check_fields(run.model.spec, split, mesh.shape)
    return placed


@functools.lru_cache(maxsize=64)
def _place_state(
    model: Model,
    optimizer: Optimizer,
    transfer: Any,
    hyper_structure: Any,
    inputs: Any,
    mesh: Any,
    replicate: bool,
) -> tuple[Placement, TrainState]:
    init = functools.partial(init_from_params, optimizer=optimizer, transfer=transfer)
    abstract = jax.eval_shape(init, model.shapes(inputs), hyper=abstract_hyper(hyper_structure))
    tree = sharding.state_shardings(abstract, model.sharding, mesh, replicate)
    laid_out = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, tree
    )
    leaves, structure = jax.tree.flatten(tree)
    return Placement(mesh, tuple(leaves), structure), laid_out


def abstract_hyper(structure: Any, lies: Any = None) -> Hyper:
    """The traced numbers of all runs whose Hyper has this structure."""
    number = jax.ShapeDtypeStruct((), np.float32, sharding=lies)
    return jax.tree.unflatten(structure, [number] * structure.num_leaves)


class Resident(NamedTuple):
    """Bytes on one device between two steps: `batches` of one dispatch; `waiting`, those of the
    next one and the held-out set."""

    parameters: float
    optimizer: float
    batches: float
    waiting: float


def resident(run: Run, mesh: AnyMesh) -> Resident:
    """What a run holds between two steps, exactly. Raises BadInput as `place_state` does."""
    _, abstract = place_state(run, mesh)
    parameters = device_memory.bytes_per_device(abstract.params)
    ways = device_mesh.batch_shards(mesh.shape)
    each = sum(x.nbytes for x in example(run).values())
    batches = run.cadence.dispatch * math.ceil(run.batch / ways) * each
    heldout = math.ceil(run.evaluated / ways) * (each + 4)
    optimizer = device_memory.bytes_per_device(abstract) - parameters
    return Resident(parameters, optimizer, batches, batches + heldout)


def example(run: Run) -> dict[str, np.ndarray]:
    """A batch of one training example."""
    return run.data.train.rows(np.zeros(1, np.int64))


def host_batches(
    run: Run, step: int, n: int, room: int, at: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The batches of steps [step, step + n), [room, B, ...], or their rows `at`; the rest is
    blank."""
    rows = [run.data.batch(run.data_seed, s, run.batch, at) for s in range(step, step + n)]
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
    heldout = run.data.heldout
    chosen = np.random.default_rng(0).permutation(len(heldout))[:count]
    at = np.concatenate([np.sort(chosen), np.zeros(number * batch - count, np.int64)])
    rows = {k: x.reshape(number, batch, *x.shape[1:]) for k, x in heldout.rows(at).items()}
    real = np.arange(number * batch) < count
    return rows | {"weights": real.astype(np.float32).reshape(number, batch)}


def examine(run: Run, heldout: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the task's metrics must know of the examples of `host_heldout` that have a weight."""
    real = heldout["weights"].reshape(-1) > 0
    flat = {k: x.reshape(-1, *x.shape[2:])[real] for k, x in heldout.items() if k != "weights"}
    return run.task.examined(run.data, flat)
