"""The memory estimate: bytes that a run takes on one device, by part, before anything is compiled.

Parameters and optimizer state follow exactly from their shardings, batches and the held-out set
from their shapes. What a step needs besides is read from the traced step (see `jaxpr_sharding` and
`jaxpr_liveness`): the gradients, what the forward pass keeps for the backward pass, the logits, and
workspace, at the moment when their sum is largest. Devices may be real or not: all that is asked of
a mesh is the sizes of its axes.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from research.errors import BadInput
from research.io.humanize import format_bytes
from research.parallel import device_memory, device_mesh
from research.planning import jaxpr_liveness, jaxpr_sharding
from research.training.run import Run, example_inputs
from research.training.step import StepSpec, init_from_params
from research.training.trainer import abstract_hyper, example, place_state, resident, step_spec

AnyMesh = Mesh | AbstractMesh


class MemoryEstimate(NamedTuple):
    """Of one device. `batches` are those of one dispatch; `waiting` those of the next one, and the
    held-out set. The others are of the step where it needs most: gradients, `activations` of
    the forward pass that the backward pass reads, logits, and workspace."""

    parameters: float
    optimizer: float
    batches: float
    waiting: float
    gradients: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    workspace: float = 0.0

    @property
    def dispatch(self) -> float:
        """What the compiled dispatch of steps needs at most."""
        return sum(self) - self.waiting

    @property
    def temporary(self) -> float:
        """What is there within a step alone."""
        return self.gradients + self.activations + self.logits + self.workspace

    @property
    def total(self) -> float:
        return sum(self)

    def breakdown(self) -> str:
        """The parts, the largest first, for a message."""
        parts = sorted(self._asdict().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {format_bytes(value)}" for name, value in parts if value)


def estimate(run: Run, mesh: AnyMesh, platform: str = "cpu") -> MemoryEstimate:
    """What `run` takes on one device of `mesh`, with the kernels that its model has on `platform`.

    Raises BadInput where the mesh does not divide a parameter.
    """
    fixed = MemoryEstimate(*resident(run, mesh))
    parts = jaxpr_liveness.peak_bytes(trace_step(run, mesh, platform))
    kinds = {k: parts.pop(k, 0.0) for k in ("gradients", "activations", "logits")}
    batch = fixed.batches / run.cadence.dispatch  # of one step, taken out of those of a dispatch
    return fixed._replace(**kinds, workspace=max(0.0, sum(parts.values())) + batch)


def check_fits(run: Run, mesh: Mesh) -> None:
    """Raise BadInput, with the parts and what would fit, where a run needs more than there is.

    A step is traced for it, which takes a second.
    """
    available, needed = device_memory.available(), MemoryEstimate(*resident(run, mesh))
    if needed.total <= available:
        needed = estimate(run, mesh, mesh.devices.flat[0].platform)
    device = f"of each device, which has {format_bytes(available)}"
    count = run.cadence.dispatch
    if count > 1 and not run.cadence.paced and needed.batches > available / 4:
        most = max(1, int(count * available / 4 / needed.batches))
        raise BadInput(
            f"loop.steps_per_dispatch: {count}; their batches take {format_bytes(needed.batches)} "
            f"{device}; expected auto, or at most {most} (--force tries it)"
        )
    if needed.total > available:
        fitting = run.facts["params"] * available / needed.total
        raise BadInput(
            f"size: {run.facts['params']:,} parameters need {format_bytes(needed.total)} {device}: "
            f"{needed.breakdown()}; about {fitting:.2g} parameters would fit, or more devices of "
            "mesh.fsdp, a larger batch.grad_accumulation, model.remat (--force tries it)"
        )


def trace_step(run: Run, mesh: AnyMesh, platform: str = "cpu") -> jaxpr_sharding.Program:
    """The training step on one device of `mesh`. It is traced without kernels, which tell nothing
    of what is in them; what those of `platform` keep to themselves takes no bytes."""
    _, abstract = place_state(run, mesh)
    row_shards = device_mesh.batch_shards(mesh.shape)
    shard_rows = math.ceil(run.batch / row_shards)
    shapes = tuple((k, (shard_rows, *x.shape[1:]), x.dtype) for k, x in example(run).items())
    tensor = mesh.shape["tensor"]
    structure = jax.tree.structure(run.hyper)
    traced = step_spec(run), example_inputs(run.data), structure, shapes, tensor
    layouts = tuple(_layout(x) for x in jax.tree.leaves(abstract))
    unwritten = getattr(run.model.family, "unwritten_map", lambda spec, platform: ())
    last = unwritten(run.model.spec, platform)
    vocab = getattr(run.model.spec, "vocab", None)
    return _program(traced, layouts, row_shards, last, vocab, platform)


@functools.lru_cache(maxsize=16)
def _program(
    traced: tuple, layouts: tuple, rows: int, unwritten: tuple, vocab: int | None, platform: str
) -> jaxpr_sharding.Program:
    jaxpr, names = _step_jaxpr(*traced), {} if vocab is None else {vocab: "logits"}
    return jaxpr_sharding.Program(jaxpr, layouts, traced[-1], rows, unwritten, names, platform)


@functools.lru_cache(maxsize=256)
def _step_jaxpr(
    spec: StepSpec, inputs: Any, hyper_structure: Any, shapes: tuple, tensor: int
) -> Any:
    hyper = abstract_hyper(hyper_structure)
    init = functools.partial(init_from_params, optimizer=spec.optimizer, transfer=spec.transfer)
    state = jax.eval_shape(init, spec.model.shapes(inputs), hyper=hyper)
    batch = {name: jax.ShapeDtypeStruct(shape, kind) for name, shape, kind in shapes}
    cpu = AbstractDevice(device_kind="cpu", num_cores=None, platform="cpu")
    mesh = device_mesh.abstract_mesh({"data": 1, "fsdp": 1, "tensor": tensor})
    mesh = mesh.update(abstract_device=cpu)  # wherever it is traced
    return jax.make_jaxpr(device_mesh.with_mesh_names(mesh, spec.step))(state, batch, hyper)


def _layout(leaf: Any) -> tuple[int | None, int]:
    """The dimension that the tensor axis splits, and over how many devices it lies in all."""
    spec = [*leaf.sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
    split = next((i for i, axis in enumerate(spec) if axis == "tensor"), None)
    whole, part = math.prod(leaf.shape), math.prod(leaf.sharding.shard_shape(leaf.shape))
    return split, whole // max(1, part)
