"""A plan for machines that are not here: what a run takes of each device, what the devices send to
each other, how fast a step can be, on which mesh, and the largest model that would fit.

Nothing is allocated or compiled. Bytes are those of `memory`, seconds a bound (see `roofline`).
"""

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from research import models
from research.config import registry, schema
from research.data import placeholder
from research.errors import BadInput
from research.io.humanize import format_bytes
from research.models import accounting
from research.models.sizing import MOST_RUNGS, without_sized
from research.parallel import device_mesh
from research.planning import (
    hardware,
    jaxpr_liveness,
    jaxpr_sharding,
    memory,
    parameter_traffic,
    roofline,
)
from research.planning.hardware import Machine
from research.planning.memory import MemoryEstimate
from research.planning.roofline import ParameterBytes, StepSeconds, Traffic
from research.training import other_execution
from research.training.make_run import make_run
from research.training.run import Run
from research.training.tasks import task_class
from research.training.trainer import place_state

# Data of which context and vocabulary are all that is asked.
TEXT_DATASETS = ("text", "mixture", "hub")


class Plan(NamedTuple):
    """A run on `mesh`, {axis: devices}; `available` are the bytes that it may fill on one device.
    `mfu` counts FLOPs as `accounting` does, without those that are done again. `alternatives` are
    the bytes that it would take with another value of a key of the config, by "key=value"."""

    mesh: dict[str, int]
    bytes: MemoryEstimate
    available: float
    traffic: Traffic
    seconds: StepSeconds
    mfu: float
    tokens_per_second: float
    alternatives: dict[str, MemoryEstimate]

    @property
    def fits(self) -> bool:
        return self.bytes.total <= self.available


def run_without_data(config: Mapping[str, Any], vocab: int | None = None) -> Run:
    """The Run of a validated config. Text need not be there where `vocab` (or data.vocab, of a file
    that does not exist) says what it would have. Raises BadInput for `vocab` without text."""
    config = copy.deepcopy(dict(config))
    is_text = config["data"]["name"] in TEXT_DATASETS
    is_text &= task_class(config["task"]["name"]).targets == "tokens"
    if vocab is not None and not is_text:
        raise BadInput(
            f"--vocab={vocab}: only for language modeling on text, not data.name = "
            f"{config['data']['name']}"
        )
    if vocab is not None:
        config["eval"]["examples"] = config["eval"]["examples"] or config["batch"]["size"]
        return make_run(config, placeholder.tokens(config["data"]["context"], vocab))
    return make_run(config)


def plan_for_mesh(
    run: Run, machine: Machine, mesh: Mapping[str, int], alternatives: bool = False
) -> Plan:
    """The plan for one mesh. Raises BadInput where it does not divide the batch or a parameter."""
    mesh, parts = dict(mesh), run.execution.grad_accumulation
    device_mesh.check_rows(mesh, run.batch, parts)
    abstract = device_mesh.abstract_mesh(mesh)
    program = memory.trace_step(run, abstract, machine.platform)
    kernels = list(jaxpr_liveness.list_kernels(program))
    dtype = getattr(run.model.spec, "dtype", "float32")
    moved = _parameter_traffic(run, mesh, program, 2 if dtype == "bfloat16" else 4)
    traffic = roofline.collective_traffic(kernels, mesh, moved)
    kernel_seconds = roofline.kernel_seconds(kernels, machine, dtype)
    seconds = roofline.step_seconds(kernel_seconds, traffic, mesh, machine)
    devices = math.prod(mesh.values())
    flops = accounting.step_flops(run.model, run.batch)
    return Plan(
        mesh=mesh,
        bytes=memory.estimate(run, abstract, machine.platform),
        available=hardware.USABLE * machine.memory,
        traffic=traffic,
        seconds=seconds,
        mfu=flops / (seconds.step * devices * machine.rate(dtype)),
        tokens_per_second=run.tokens_per_step / seconds.step,
        alternatives=_alternatives(run, abstract, machine.platform) if alternatives else {},
    )


def _parameter_traffic(
    run: Run, mesh: Mapping[str, int], program: jaxpr_sharding.Program, item: int
) -> ParameterBytes:
    """What moves of the parameters, in the type of `item` bytes that products are in; in float32
    of those that the fsdp axis does not split."""
    _, abstract = place_state(run, device_mesh.abstract_mesh(mesh))
    sharded = replicated = 0.0
    shared, before = [], len(jax.tree.leaves(abstract.step))
    for at, leaf in enumerate(jax.tree.leaves(abstract.params), before):
        own = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if "fsdp" in tuple(leaf.sharding.spec):
            sharded += own * item
            shared.append((program.level.ins[at], float(own * mesh["fsdp"])))
        else:
            replicated += own * 4
    parts = run.execution.grad_accumulation
    uses = parameter_traffic.parameter_uses(program.level, shared, parts)
    moved = item * (uses.gathered + uses.added) + uses.rows
    return ParameterBytes(moved, parts * sharded, replicated)


def _alternatives(run: Run, mesh: Any, platform: str) -> dict[str, MemoryEstimate]:
    """What it takes with another Execution, which does not change the result."""
    options: list[tuple[str, dict[str, Any]]] = []
    fields = registry.fields(*registry.table(*schema.PLUGS["model"])[run.facts["family"]])
    if "remat" in fields:
        options += [(f"model.remat={x}", {"remat": x}) for x in fields["remat"].choices]
    if hasattr(run.task, "chunk"):
        options += [("task.chunk=0", {"chunk": 0}), ("task.chunk=none", {"chunk": None})]
    return {
        key: memory.estimate(with_execution(run, **changes), mesh, platform)
        for key, changes in options
    }


def with_execution(run: Run, **changes: Any) -> Run:
    """`run` with a changed Execution."""
    return other_execution.with_execution(run, dataclasses.replace(run.execution, **changes))


def candidate_meshes(run: Run, machine: Machine, devices: int) -> Iterator[dict[str, int]]:
    """All factorizations that the batch and the parameters allow; tensor within a node alone."""
    for tensor in _divisors(devices):
        if tensor > machine.node:
            break
        for fsdp in _divisors(devices // tensor):
            mesh = {"data": devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
            try:
                device_mesh.check_rows(mesh, run.batch, run.execution.grad_accumulation)
                place_state(run, device_mesh.abstract_mesh(mesh))
            except BadInput:
                continue
            yield mesh


def best_mesh(run: Run, machine: Machine, devices: int, alternatives: bool = False) -> Plan:
    """The mesh whose step has the lowest bound among those that fit, or, if none does, that which
    takes the fewest bytes. Raises BadInput where there is no mesh at all."""
    plans = [plan_for_mesh(run, machine, mesh) for mesh in candidate_meshes(run, machine, devices)]
    if not plans:
        raise BadInput(
            f"--devices={devices}: no mesh of so many devices divides batch.size / "
            f"batch.grad_accumulation = {run.batch // run.execution.grad_accumulation} and the "
            "parameters; a power of two of both, or --mesh, may"
        )
    chosen = min(plans, key=lambda p: (not p.fits, p.seconds.step if p.fits else p.bytes.total))
    return plan_for_mesh(run, machine, chosen.mesh, alternatives) if alternatives else chosen


def parse_mesh(config: Mapping[str, Any], text: str, devices: int) -> dict[str, int] | None:
    """The mesh that --mesh=`text` or else the config asks for, with -1 for what is left; None where
    the config leaves it all open. Raises BadInput for what makes no mesh of so many devices."""
    sizes = {axis: config["mesh"][axis] for axis in device_mesh.AXES}
    if text:
        sizes = dict.fromkeys(device_mesh.AXES, 1)
        for part in text.split(","):
            axis, _, size = part.partition(":")
            if axis not in sizes or not (size == "-1" or (size.isdigit() and int(size))):
                raise BadInput(
                    f"--mesh={text}: {part!r}; expected AXIS:DEVICES,… with {', '.join(sizes)}"
                )
            sizes[axis] = int(size)
    elif sizes == {"data": -1, "fsdp": 1, "tensor": 1}:
        return None
    fixed = math.prod(n for n in sizes.values() if n != -1)
    free = [axis for axis, n in sizes.items() if n == -1]
    if len(free) > 1 or devices % fixed or (not free and fixed != devices):
        words = ", ".join(f"{axis} {n}" for axis, n in sizes.items())
        raise BadInput(f"--devices={devices}: the mesh {words} is not of so many devices")
    return {axis: devices // fixed if n == -1 else n for axis, n in sizes.items()}


def _divisors(count: int) -> list[int]:
    return [k for k in range(1, count + 1) if count % k == 0]


def largest_size(
    config: Mapping[str, Any],
    vocab: int | None,
    machine: Machine,
    devices: int,
    mesh: Mapping | None,
) -> tuple[int, dict[str, int]] | None:
    """Parameters of the largest member of the family, by its size rule, that fits; and its mesh.

    Found by halving between rungs, so sizes between two that fit are taken to fit. None where the
    family has no sizes, or not even the smallest fits.
    """

    @functools.cache
    def fitting_plan(rung: int) -> Plan | None:
        run, plans = _run_at_rung(config, vocab, rung), []
        for candidate in [dict(mesh)] if mesh else _most_sharded_meshes(run, machine, devices):
            with contextlib.suppress(BadInput):
                plans.append(plan_for_mesh(run, machine, candidate))
        return min((p for p in plans if p.fits), key=lambda p: p.bytes.total, default=None)

    if not getattr(models.family(config["model"]["name"]), "SIZED", ()):
        return None
    low, high = 0, 1
    while high < MOST_RUNGS and fitting_plan(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):  # to 3 % of a rung
        middle = (low + high) // 2
        low, high = (middle, high) if fitting_plan(middle) else (low, middle)
    if not low:
        return None
    plan = fitting_plan(low)
    assert plan
    return _run_at_rung(config, vocab, low).facts["params"], plan.mesh


def _run_at_rung(config: Mapping[str, Any], vocab: int | None, rung: int) -> Run:
    """The run with the model of one rung of its family."""
    config = copy.deepcopy(dict(config))
    name = config["model"]["name"]
    family = models.family(name)
    fields = {k: v for k, v in config["model"].items() if k != "name"}
    if config["size"] is None:  # its fields are those of another member
        fields |= dict.fromkeys(family.SIZED)
    unsized = without_sized(name, fields)
    config["size"] = None
    config["model"] |= family.nth_size(rung, **unsized) | unsized
    return run_without_data(config, vocab)


def _most_sharded_meshes(run: Run, machine: Machine, devices: int) -> list[dict[str, int]]:
    """The meshes that may take the fewest bytes: as much fsdp as can be, for each tensor size."""
    by_tensor: dict[int, dict[str, int]] = {}
    for mesh in candidate_meshes(run, machine, devices):
        if mesh["fsdp"] >= by_tensor.get(mesh["tensor"], mesh)["fsdp"]:
            by_tensor[mesh["tensor"]] = mesh
    return list(by_tensor.values())


def plan_to_json(
    plan: Plan, run: Run, device: str, largest: tuple[int, dict] | None
) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "device": device,
        "sources": list(hardware.MACHINES[device].sources),
        "devices": math.prod(plan.mesh.values()),
        "mesh": plan.mesh,
        "model": run.model.described(),
        "params": run.facts["params"],
        "batch": run.batch,
        "grad_accumulation": run.execution.grad_accumulation,
        "bytes": plan.bytes._asdict() | {"total": plan.bytes.total},
        "available": plan.available,
        "fits": plan.fits,
        "alternatives": {
            key: b._asdict() | {"total": b.total} for key, b in plan.alternatives.items()
        },
        "traffic": plan.traffic._asdict(),
        "seconds": plan.seconds._asdict()
        | {"step": plan.seconds.step, "bound": plan.seconds.bound},
        "mfu": plan.mfu,
        "tokens_per_second": plan.tokens_per_second,
        "largest": largest and {"params": largest[0], "mesh": largest[1]},
    }


def format_plan(plan: Plan, run: Run, device: str, largest: tuple[int, dict] | None) -> str:
    """The plan in lines."""
    size, count = format_bytes, math.prod(plan.mesh.values())
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items())
    verdict = "fits" if plan.fits else "does NOT fit"
    rows = [(name, size(value)) for name, value in plan.bytes._asdict().items()]
    rows += [("total", f"{size(plan.bytes.total)}, {verdict} in {size(plan.available)}")]
    links = zip(plan.traffic._asdict().items(), plan.seconds[1:], strict=True)
    unit = "tokens" if run.data.tokens_per_example > 1 else "examples"
    parts = run.execution.grad_accumulation
    in_parts = f", in {parts} parts" if parts > 1 else ""
    lines = [
        f"{run.facts['family']}, {run.facts['params']:,} parameters, on {count} x {device}: {mesh}",
        f"batch {run.batch}{in_parts}, {run.tokens_per_step:,} {unit} a step",
        "",
        "bytes on one device, estimated to about 30 % (--compile asks the compiler)",
        *(f"  {name:<12}{amount}" for name, amount in rows),
        *(f"  with {key:<24}{size(b.total)}" for key, b in plan.alternatives.items()),
        "",
        "received by one device in a step, and the time on the links at least",
        *(f"  {axis:<8}{size(count):>8}  {seconds:.3g} s" for (axis, count), seconds in links),
        "",
        f"a step takes at least {plan.seconds.step:.3g} s ({plan.seconds.kernels:.3g} s of "
        f"kernels; bound by {plan.seconds.bound}): MFU at most {plan.mfu:.1%}, "
        f"{plan.tokens_per_second:,.0f} {unit}/s at most",
    ]
    if largest:
        mesh = " x ".join(f"{axis} {n}" for axis, n in largest[1].items())
        family = run.facts["family"]
        lines.append(f"largest {family} that fits, by size: {largest[0]:,} parameters, on {mesh}")
    return "\n".join([*lines, "a bound from data sheets; nothing was measured on these machines"])
