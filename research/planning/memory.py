"""Bytes that a run takes on one device, by part, before anything is compiled.

Parameters and optimizer state follow exactly from their shardings, batches and the held-out set
from their shapes. What a step needs besides is read from the traced step (see `traced`): the
gradients, what the forward pass keeps for the backward pass, the logits, and workspace, where they
are most together. Devices may be real or not: all that is asked of a mesh is the sizes of its axes.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from research.errors import BadInput
from research.parallel import sharding
from research.planning import jaxpr_liveness, jaxpr_sharding
from research.training.run import Run, example_inputs
from research.training.step import StepSpec
from research.training.trainer import example, place_state, resident, step_spec

AnyMesh = Mesh | AbstractMesh


class Bytes(NamedTuple):
    """Of one device. `batches` are those of one dispatch; `waiting` those of the next one, and the
    held-out set. The others are of the step where it needs most: gradients, what is `kept` of the
    forward pass for the backward pass, logits, and workspace."""

    parameters: float
    optimizer: float
    batches: float
    waiting: float
    gradients: float = 0.0
    kept: float = 0.0
    logits: float = 0.0
    workspace: float = 0.0

    @property
    def dispatch(self) -> float:
        """What the compiled dispatch of steps needs at most."""
        return sum(self) - self.waiting

    @property
    def temporary(self) -> float:
        """What is there within a step alone."""
        return self.gradients + self.kept + self.logits + self.workspace

    @property
    def total(self) -> float:
        return sum(self)

    def words(self) -> str:
        """The parts by size, for a message."""
        parts = sorted(self._asdict().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {size(value)}" for name, value in parts if value)


def size(count: float) -> str:
    """Bytes in words."""
    power = min(4, int(math.log10(max(1, count))) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def of(run: Run, mesh: AnyMesh, fused: bool = False) -> Bytes:
    """What `run` takes on one device of `mesh`; with `fused` attention, whose map is never written.

    Raises BadInput where the mesh does not divide a parameter.
    """
    fixed, parts = Bytes(*resident(run, mesh)), jaxpr_liveness.peak(step(run, mesh, fused))
    kinds = {k: parts.pop(k, 0.0) for k in ("gradients", "kept", "logits")}
    batch = fixed.batches / run.cadence.dispatch  # of one step, taken out of those of a dispatch
    return fixed._replace(**kinds, workspace=max(0.0, sum(parts.values())) + batch)


def check(run: Run, mesh: Mesh) -> None:
    """Raise BadInput, with the parts and what would fit, where a run needs more than there is.

    A step is traced for it, which takes a second.
    """
    there, found = sharding.device_memory(), Bytes(*resident(run, mesh))
    if found.total <= there:
        found = of(run, mesh, fused=mesh.devices.flat[0].platform == "gpu")
    count = run.cadence.dispatch
    if count > 1 and not run.cadence.paced and found.batches > there / 4:
        most = max(1, int(count * there / 4 / found.batches))
        raise BadInput(
            f"loop.steps_per_dispatch: {count}; their batches are {size(found.batches)} on each "
            f"device, which has {size(there)}; expected auto, or at most {most} (--force tries it)"
        )
    if found.total > there:
        fits = run.facts["params"] * there / found.total
        raise BadInput(
            f"size: {run.facts['params']:,} parameters need {size(found.total)} of each device, "
            f"which has {size(there)}: {found.words()}; about {fits:.2g} parameters would fit, or "
            "more devices of mesh.fsdp, a larger batch.accumulate, model.remat (--force tries it)"
        )


def step(run: Run, mesh: AnyMesh, fused: bool = False) -> jaxpr_sharding.Program:
    """The training step on one device of `mesh`."""
    _, abstract = place_state(run, mesh)
    rows = math.ceil(run.batch / (mesh.shape["data"] * mesh.shape["fsdp"]))
    shapes = tuple((k, (rows, *x.shape[1:]), x.dtype) for k, x in example(run).items())
    tensor = mesh.shape["tensor"]
    structure = jax.tree.structure(run.hyper)
    jaxpr = _traced(step_spec(run), example_inputs(run.data), structure, shapes, tensor)
    lies = [_lies(x) for x in jax.tree.leaves(abstract)]
    names = {run.model.spec.vocab: "logits"} if hasattr(run.model.spec, "vocab") else {}
    unwritten = getattr(run.model.family, "unwritten", None) if fused else None
    hidden = functools.partial(unwritten, run.model.spec) if unwritten else lambda shape: False
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    return jaxpr_sharding.Program(jaxpr, lies, tensor, rows, hidden, names)


@functools.lru_cache(maxsize=256)
def _traced(spec: StepSpec, inputs: Any, structure: Any, shapes: tuple, tensor: int) -> Any:
    hyper = jax.tree.unflatten(
        structure, [jax.ShapeDtypeStruct((), np.float32)] * structure.num_leaves
    )
    state = jax.eval_shape(spec.begin, spec.model.shapes(inputs), hyper)
    batch = {name: jax.ShapeDtypeStruct(shape, kind) for name, shape, kind in shapes}
    mesh = sharding.abstract_mesh({"data": 1, "fsdp": 1, "tensor": tensor})
    return jax.make_jaxpr(sharding.on(mesh, spec.step))(state, batch, hyper)


def _lies(leaf: Any) -> tuple[int | None, int]:
    """The dimension that the tensor axis splits, and over how many devices it lies in all."""
    spec = [*leaf.sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
    split = next((i for i, axis in enumerate(spec) if axis == "tensor"), None)
    whole, part = math.prod(leaf.shape), math.prod(leaf.sharding.shard_shape(leaf.shape))
    return split, whole // max(1, part)
