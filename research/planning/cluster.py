"""A plan for machines that are not here: what a run takes of each device, what the devices say to
each other, how fast a step can be, on which mesh, and the largest model that would fit.

Nothing is allocated or compiled. Bytes are those of `memory`, seconds a bound (see `roofline`).
"""

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
from research.models import accounting
from research.models.sizing import MOST_RUNGS
from research.parallel import sharding
from research.planning import hardware, jaxpr_liveness, memory, roofline
from research.planning.hardware import Machine
from research.planning.memory import Bytes
from research.planning.roofline import Seconds, Traffic
from research.training.run import Run, make_run
from research.training.trainer import place_state

TEXT = ("text", "mixture", "hub")  # data of which context and vocabulary are all that is asked


class Plan(NamedTuple):
    """A run on `mesh`, {axis: devices}. `mfu` counts FLOPs as `accounting` does, without those that
    are done again. `instead` is what it would take otherwise, by a key of the config."""

    mesh: dict[str, int]
    bytes: Bytes
    room: float
    traffic: Traffic
    seconds: Seconds
    mfu: float
    tokens_per_second: float
    instead: dict[str, Bytes]

    @property
    def fits(self) -> bool:
        return self.bytes.total <= self.room


def made(config: Mapping[str, Any], vocab: int | None = None) -> Run:
    """The Run of a checked config. Text need not be there where `vocab` (or data.vocab, of a file
    that does not exist) says what it would have."""
    config = copy.deepcopy(dict(config))
    text = config["data"]["name"] in TEXT and config["task"]["name"] == "language_modelling"
    if vocab is not None and not text:
        raise BadInput(
            f"--vocab={vocab}: only for language modelling on text, not data.name = "
            f"{config['data']['name']}"
        )
    if text and vocab is not None:
        config["eval"]["examples"] = config["eval"]["examples"] or config["batch"]["size"]
        return make_run(config, placeholder.tokens(config["data"]["context"], vocab))
    return make_run(config)


def on(run: Run, machine: Machine, mesh: Mapping[str, int], alternatives: bool = False) -> Plan:
    """The plan for one mesh. Raises BadInput where it does not divide the batch or a parameter."""
    mesh = dict(mesh)
    sharding.check_rows(mesh, run.batch, run.execution.grad_accumulation)
    abstract = sharding.abstract_mesh(mesh)
    program = memory.step(run, abstract, machine.fused)
    kernels = list(jaxpr_liveness.kernels(program))
    dtype = getattr(run.model.spec, "dtype", "float32")
    sharded, whole = _parameters(run, mesh, 2 if dtype == "bfloat16" else 4)
    moved = roofline.traffic(kernels, mesh, sharded, whole, run.execution.grad_accumulation)
    busy = roofline.kernels(kernels, machine, dtype)
    seconds = roofline.seconds(busy, moved, mesh, machine)
    devices = math.prod(mesh.values())
    flops = accounting.step_flops(run.model, run.batch)
    return Plan(
        mesh=mesh,
        bytes=memory.of(run, abstract, machine.fused),
        room=hardware.USABLE * machine.memory,
        traffic=moved,
        seconds=seconds,
        mfu=flops / (seconds.step * devices * machine.rate(dtype)),
        tokens_per_second=run.tokens_per_step / seconds.step,
        instead=_instead(run, abstract, machine.fused) if alternatives else {},
    )


def unfused(run: Run, mesh: Mapping[str, int]) -> float:
    """Bytes of a dispatch where attention is no single kernel, as in what XLA compiles on CPU."""
    return memory.of(run, sharding.abstract_mesh(mesh)).dispatch


def _parameters(run: Run, mesh: Mapping[str, int], item: int) -> tuple[float, float]:
    """Bytes of one tensor slice of the parameters that the fsdp axis splits, in the type of `item`
    bytes that products are in; and, in float32, of all others."""
    _, abstract = place_state(run, sharding.abstract_mesh(mesh))
    sharded = whole = 0.0
    for leaf in jax.tree.leaves(abstract.params):
        own = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if "fsdp" in tuple(leaf.sharding.spec):
            sharded += own * mesh["fsdp"] * item
        else:
            whole += own * 4
    return sharded, whole


def _instead(run: Run, mesh: Any, fused: bool) -> dict[str, Bytes]:
    """What it takes with another Execution, which does not change the result."""
    out = {}
    name = next(k for k in (run.model.described()["name"],))
    fields = registry.fields(*registry.table("models/__init__.py", "MODELS")[name])
    if "remat" in fields:
        for kept in fields["remat"].choices:
            out[f"model.remat={kept}"] = memory.of(_otherwise(run, remat=kept), mesh, fused)
    if hasattr(run.task, "chunk"):
        for chunk, words in ((0, "0"), (None, "none")):
            key = f"task.chunk={words}"
            out[key] = memory.of(_otherwise(run, chunk=chunk), mesh, fused)
    return out


def _otherwise(run: Run, **changes: Any) -> Run:
    """`run` with a changed Execution."""
    return run.with_execution(dataclasses.replace(run.execution, **changes))


def meshes(run: Run, machine: Machine, devices: int) -> Iterator[dict[str, int]]:
    """All factorisations that the batch and the parameters allow; tensor within a node alone."""
    for tensor in _divisors(devices):
        if tensor > machine.node:
            break
        for fsdp in _divisors(devices // tensor):
            mesh = {"data": devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
            try:
                sharding.check_rows(mesh, run.batch, run.execution.grad_accumulation)
                place_state(run, sharding.abstract_mesh(mesh))
            except BadInput:
                continue
            yield mesh


def best(run: Run, machine: Machine, devices: int, alternatives: bool = False) -> Plan:
    """The mesh whose step has the lowest bound among those that fit, or, if none does, that which
    takes the fewest bytes. Raises BadInput where there is no mesh at all."""
    plans = [on(run, machine, mesh) for mesh in meshes(run, machine, devices)]
    if not plans:
        raise BadInput(
            f"--devices={devices}: no mesh of so many devices divides batch.size / "
            f"batch.accumulate = {run.batch // run.execution.grad_accumulation} and the "
            "parameters; a power of two of both, or --mesh, may"
        )
    chosen = min(plans, key=lambda p: (not p.fits, p.seconds.step if p.fits else p.bytes.total))
    return on(run, machine, chosen.mesh, alternatives) if alternatives else chosen


def given(config: Mapping[str, Any], text: str, devices: int) -> dict[str, int] | None:
    """The mesh that --mesh=`text` or else the config asks for, with -1 for what is left; None where
    the config leaves it all open. Raises BadInput for what makes no mesh of so many devices."""
    sizes = {axis: config["mesh"][axis] for axis in sharding.AXES}
    if text:
        sizes = dict.fromkeys(sharding.AXES, 1)
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


def largest(
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
    def tried(rung: int) -> Plan | None:
        run = _at(config, vocab, rung)
        tries = [dict(mesh)] if mesh else _tightest(run, machine, devices)
        plans = []
        for one in tries:
            try:
                plans.append(on(run, machine, one))
            except BadInput:
                continue
        fitting = [p for p in plans if p.fits]
        return min(fitting, key=lambda p: p.bytes.total) if fitting else None

    family = registry.literal(
        registry.table(*schema.PLUGS["model"])[config["model"]["name"]][0], "SIZED"
    )
    if not family:
        return None
    low, high = 0, 1
    while high < MOST_RUNGS and tried(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):  # to 3 % of a rung
        middle = (low + high) // 2
        low, high = (middle, high) if tried(middle) else (low, middle)
    if not low:
        return None
    found = tried(low)
    assert found
    return _at(config, vocab, low).facts["params"], found.mesh


def _at(config: Mapping[str, Any], vocab: int | None, rung: int) -> Run:
    """The run with the model of one rung of its family."""
    config = copy.deepcopy(dict(config))
    name = config["model"]["name"]
    family = models.family(name)
    fields = {k: v for k, v in config["model"].items() if k != "name"}
    if config["size"] is None:  # its fields are those of another member
        fields |= dict.fromkeys(family.SIZED)
    given = models.unfilled(name, fields)
    config["size"] = None
    config["model"] |= family.rung(rung, **given) | given
    return made(config, vocab)


def _tightest(run: Run, machine: Machine, devices: int) -> list[dict[str, int]]:
    """The meshes that may take the fewest bytes: as much fsdp as can be, for each tensor size."""
    most: dict[int, dict[str, int]] = {}
    for mesh in meshes(run, machine, devices):
        if mesh["fsdp"] >= most.get(mesh["tensor"], mesh)["fsdp"]:
            most[mesh["tensor"]] = mesh
    return list(most.values())


def document(plan: Plan, run: Run, device: str, most: tuple[int, dict] | None) -> dict[str, Any]:
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
        "room": plan.room,
        "fits": plan.fits,
        "instead": {key: b._asdict() | {"total": b.total} for key, b in plan.instead.items()},
        "traffic": plan.traffic._asdict(),
        "seconds": plan.seconds._asdict()
        | {"step": plan.seconds.step, "bound": plan.seconds.bound},
        "mfu": plan.mfu,
        "tokens_per_second": plan.tokens_per_second,
        "largest": most and {"params": most[0], "mesh": most[1]},
    }


def text(plan: Plan, run: Run, device: str, most: tuple[int, dict] | None) -> str:
    """The plan in lines."""
    size, count = memory.size, math.prod(plan.mesh.values())
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items())
    verdict = "fits" if plan.fits else "does NOT fit"
    rows = [(name, size(value)) for name, value in plan.bytes._asdict().items()]
    rows += [("total", f"{size(plan.bytes.total)}, {verdict} in {size(plan.room)}")]
    links = zip(plan.traffic._asdict().items(), plan.seconds[1:], strict=True)
    unit = "tokens" if run.data.tokens_per_example > 1 else "examples"
    lines = [
        f"{run.facts['family']}, {run.facts['params']:,} parameters, on {count} x {device}: {mesh}",
        f"batch {run.batch}, in {run.execution.grad_accumulation} parts, "
        f"{run.tokens_per_step:,} {unit} a step",
        "",
        "bytes on one device",
        *(f"  {name:<12}{words}" for name, words in rows),
        *(f"  with {key:<22}{size(b.total)}" for key, b in plan.instead.items()),
        "",
        "received by one device in a step, and the time of the links at least",
        *(f"  {axis:<8}{size(moved):>8}  {took:.3g} s" for (axis, moved), took in links),
        "",
        f"a step takes at least {plan.seconds.step:.3g} s ({plan.seconds.kernels:.3g} s of "
        f"kernels; {plan.seconds.bound} decide): MFU at most {plan.mfu:.1%}, "
        f"{plan.tokens_per_second:,.0f} {unit}/s at most",
    ]
    if most:
        where = " x ".join(f"{axis} {n}" for axis, n in most[1].items())
        family = run.facts["family"]
        lines.append(f"largest {family} that fits, by size: {most[0]:,} parameters, on {where}")
    return "\n".join([*lines, "a bound from data sheets; nothing was measured on these machines"])


# The table of docs/machines.md.
SIZES = (125e6, 350e6, 1.3e9, 7e9, 13e9, 70e9)
COUNTS = (8, 64, 512, 4096)
EACH, VOCAB = 4, 32768  # sequences for each device, vocabulary


def table(config: Mapping[str, Any], device: str) -> str:
    """SIZES on COUNTS of `device`, as Markdown: the best of some meshes, and the least remat with
    which it fits. The config says all but the sizes and the batch, which is EACH for each device.
    """
    machine = hardware.machine_named(device)
    lines = [
        "| parameters | devices | data, fsdp, tensor | remat | GB | fits | step ≥ | MFU ≤ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        for devices in COUNTS:
            plan, run = _cell(config, size, devices, machine)
            mesh = ", ".join(str(n) for n in plan.mesh.values())
            remat, fits = str(run.execution.remat), "yes" if plan.fits else "no"
            cells = (f"{run.facts['params'] / 1e9:.3g}B", f"{devices}", mesh, remat)
            rates = (
                f"{plan.bytes.total / 1e9:.3g}",
                fits,
                f"{plan.seconds.step:.3g}",
                f"{plan.mfu:.0%}",
            )
            lines.append("| " + " | ".join((*cells, *rates)) + " |")
    return "\n".join(lines)


def _cell(
    config: Mapping[str, Any], size: float, devices: int, machine: Machine
) -> tuple[Plan, Run]:
    config = copy.deepcopy(dict(config))
    config["size"], config["batch"]["size"] = size, EACH * devices
    first = made(config, VOCAB)
    tried = []
    for remat in ("none", "dots", "full"):
        run = _otherwise(first, remat=remat)
        some = _few(list(meshes(run, machine, devices)), machine)
        tried += [(on(run, machine, mesh), run) for mesh in some]
        if fitting := [pair for pair in tried if pair[0].fits]:
            return min(fitting, key=lambda pair: pair[0].seconds.step)
    return min(tried, key=lambda pair: pair[0].bytes.total)


def _few(found: list[dict[str, int]], machine: Machine) -> list[dict[str, int]]:
    """For each tensor size the meshes whose fsdp axis is a node, 64 devices or the longest."""
    most: dict[int, int] = {}
    for mesh in found:
        most[mesh["tensor"]] = max(most.get(mesh["tensor"], 0), mesh["fsdp"])
    return [
        mesh
        for mesh in found
        if mesh["fsdp"] in (machine.node // mesh["tensor"], 64, most[mesh["tensor"]])
    ]
