"""What the compiler of a machine that is not here makes of a run: bytes on a device, collectives,
the largest arrays, and what lies or moves as nobody asked for.

Abstract arrays only: nothing is allocated but the compiler's own memory. A process of its own
compiles, since the devices of a process are chosen before its first use of jax, and what it found
is kept in the user's cache by all that decides it.
"""

import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from research.errors import BadInput, StorageError, first_line
from research.io import files, source
from research.io.humanize import format_bytes
from research.models import sequence_sharding
from research.parallel import device_mesh
from research.params import key_path, leaves_by_path, match_path
from research.planning import cluster, hlo, memory, targets
from research.planning.targets import Target
from research.training.run import Run
from research.training.step import TrainState
from research.training.trainer import Trainer, resident

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt", "nvidia-cudnn-cu12")
PACKAGES += ("nvidia-cudnn-cu13",)
SPMD_WARNING = "Involuntary full rematerialization"  # the partitioner's words


class Reserved(NamedTuple):
    """Bytes on one device, as `memory_analysis` of the compiled dispatch has them; `live` is what
    XLA counts as used at its peak, which is less where there are gaps; `host`, what the host keeps
    for the device."""

    argument: int
    output: int
    temp: int
    alias: int
    live: int
    host: int = 0

    @property
    def peak(self) -> int:
        """What a step needs at most: arguments, results and temporaries, of which `alias` share
        their place."""
        return self.argument + self.output + self.temp - self.alias

    @classmethod
    def from_compiled(cls, compiled: Any) -> "Reserved":
        found = compiled.memory_analysis()
        sizes = {name: getattr(found, f"{name}_size_in_bytes") for name in cls._fields[:4]}
        host = found.host_temp_size_in_bytes
        return cls(**sizes, live=found.peak_memory_in_bytes, host=host)


def describe(compiled: Any, trainer: Trainer) -> dict[str, Any]:
    """What is said of the compiled dispatch of a trainer, as JSON."""
    run, mesh = trainer.run, trainer.mesh
    reserved, held = Reserved.from_compiled(compiled), resident(run, mesh)
    parameters, optimizer = round(held.parameters), round(held.optimizer)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    program, sizes = hlo.Program(compiled.as_text()), dict(mesh.shape)
    collectives = program.collectives(sizes)
    return {
        "bytes": {
            "parameters": parameters,
            "optimizer": optimizer,
            "batches": max(0, reserved.argument - parameters - optimizer),
            "results": reserved.output - reserved.alias,
            "temporaries": reserved.temp,
            "total": reserved.peak,
        },
        # XLA counts what the host keeps in it too; that for CPU leaves out what is temporary.
        "live": reserved.peak if on_cpu else min(reserved.live, reserved.peak),
        "host": reserved.host,
        "collectives": [c._asdict() | {"received": c.received} for c in collectives],
        "buffers": [b._asdict() for b in program.largest()],
        "errors": [
            *_misplaced(compiled, trainer.abstract),
            *unwanted(collectives, largest_parameter(run, trainer.abstract)),
        ],
    }


def largest_parameter(run: Run, abstract: TrainState) -> int:
    """Elements of the largest parameter of one layer: what a device may have to gather at once."""
    sizes = []
    for path, leaf in leaves_by_path(abstract.params).items():
        axes = match_path(run.model.sharding, path, "row of its family's SHARDING")
        sizes.append(math.prod(leaf.shape[leaf.ndim - len(axes) :]) if axes else 1)
    return max(sizes)


def unwanted(collectives: Sequence[hlo.Collective], largest: int) -> list[str]:
    """What moves whole although each device has its part: more than any parameter of one layer, so
    activations that are gathered or laid out anew, or the parameters of many layers at once."""
    found = []
    for one in collectives:
        if sequence_sharding.ASKED in one.operation:
            continue
        dtype, dims = one.array.rpartition(" ")[2][:-1].split("[")
        elements = math.prod(int(n) for n in dims.split(",") if n)
        if one.kind in ("all-gather", "all-to-all", "collective-permute") and elements > largest:
            verb = "gathered" if one.kind == "all-gather" else "laid out anew"
            found.append(
                f"{dtype}[{dims}] is {verb} over {one.axes or 'devices'}, {one.times} times a "
                f"step, by {one.operation or one.kind}: more than the largest parameter of a "
                f"layer, {largest:,} elements"
            )
    return found


def _misplaced(compiled: Any, abstract: TrainState) -> list[str]:
    """Leaves of the state that lie otherwise than asked, before or after a step."""
    found = []
    for when, lies in (
        ("comes in as", compiled.input_shardings[0][0]),
        ("goes out as", compiled.output_shardings[0]),
    ):
        leaves = jax.tree_util.tree_leaves_with_path(abstract)
        for (path, leaf), actual in zip(leaves, jax.tree.leaves(lies), strict=True):
            if not actual.is_equivalent_to(leaf.sharding, leaf.ndim):
                asked = leaf.sharding.spec
                found.append(f"{key_path(path)} {when} {actual}; expected {asked}")
    return found


def compile_for(
    config: Mapping[str, Any], vocab: int | None, run: Run, mesh: Mapping[str, int], target: Target
) -> dict[str, Any]:
    """`describe` of the run on `mesh` of the target, with what the estimate says beside it.

    Raises BadInput with the last line of a compiler that failed, and where the config has no batch
    size.
    """
    if config["batch"]["size"] is None:
        raise BadInput("--compile: batch.size is none; give it")
    abstract = device_mesh.abstract_mesh(mesh)
    estimated = memory.estimate(run, abstract, target.platform).dispatch
    question = {"config": config, "vocab": vocab, "mesh": mesh, "target": target._asdict()}
    versions = _versions()
    key = {"question": question, "model": run.model.described(), "versions": versions}
    key["code"] = source.library().files
    found, cached = _kept(name := files.digest_of(key)[:24]), True
    if found is None:
        found, cached = _ask_child(question, target), False
        _keep(name, found)
    out = {"target": target.text, "mesh": dict(mesh), "versions": versions, "cached": cached}
    return out | found | {"estimated": estimated}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _kept(name: str) -> dict[str, Any] | None:
    try:
        path = files.cache("compiled") / f"{name}.json"
        return files.read_json(path) if path.exists() else None
    except (BadInput, StorageError):
        return None


def _keep(name: str, found: Mapping[str, Any]) -> None:
    try:
        files.write_json(files.cache("compiled") / f"{name}.json", dict(found))
    except StorageError:
        return  # it is only asked again


def _ask_child(question: Mapping[str, Any], target: Target) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(question),
        env=target.environment(),
        capture_output=True,
        text=True,
    )
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise BadInput(f"--compile={target.text}: the compiler ended: {last[0]}")
    found = json.loads(child.stdout.splitlines()[-1])
    told = [line.partition("[SPMD]")[2].strip() for line in child.stderr.splitlines()]
    found["errors"] += [line for line in dict.fromkeys(told) if SPMD_WARNING in line]
    return found


CHILD = f"from {__name__} import compile_in_child; compile_in_child()"


def compile_in_child() -> None:
    """The other process: reads the question as JSON and writes `describe` as JSON."""
    question = json.load(sys.stdin)
    try:
        target = Target(**question["target"])
        run = cluster.run_without_data(question["config"], question["vocab"])
        parts = run.execution.grad_accumulation
        mesh = device_mesh.make_mesh(question["mesh"], run.batch, target.make_devices(), parts)
        began = time.monotonic()
        trainer = Trainer(run, mesh)
        compiled = trainer.lower().compile(targets.COMPILER_OPTIONS.get(target.platform))
        seconds = time.monotonic() - began
        print(json.dumps(describe(compiled, trainer) | {"seconds": seconds}))
    except Exception as error:
        print(first_line(error), file=sys.stderr)
        sys.exit(1)


def format_compiled(found: Mapping[str, Any], available: float | None) -> str:
    """What the compiler says, in lines."""
    sizes, total = found["bytes"], found["bytes"]["total"]
    fits = "" if available is None else f", {'fits' if total <= available else 'does NOT fit'} in "
    fits += "" if available is None else format_bytes(available)
    off = found["estimated"] / found["live"] - 1
    kept = ", kept from before" if found["cached"] else ""
    lines = [
        f"compiled for {found['target']} in {found['seconds']:.0f} s{kept}: bytes on one device",
        *(f"  {name:<12}{format_bytes(n)}" for name, n in sizes.items() if name != "total"),
        f"  {'total':<12}{format_bytes(total)}{fits}",
        f"  {'live':<12}{format_bytes(found['live'])} at the peak; estimated "
        f"{format_bytes(found['estimated'])} ({off:+.0%})",
        *([f"  {'host':<12}{format_bytes(found['host'])}"] if found["host"] else ()),
        "",
        "received by one device in a step",
        *_collective_lines(found["collectives"]),
        "",
        "largest arrays",
        *(
            f"  {format_bytes(b['bytes']):>8}  {b['array']}  {b['operation']}"
            for b in found["buffers"][:6]
        ),
        *(f"error: {line}" for line in found["errors"]),
    ]
    return "\n".join(lines)


def _collective_lines(collectives: Sequence[Mapping[str, Any]]) -> list[str]:
    groups: dict[tuple, list[float]] = {}
    for one in collectives:
        total = groups.setdefault((one["kind"], one["axes"]), [0.0, 0])
        total[0] += one["received"]
        total[1] += one["times"]
    out = [
        f"  {format_bytes(n):>8}  {kind} over {axes or 'devices'}, {times:,.0f} arrays"
        for (kind, axes), (n, times) in sorted(groups.items(), key=lambda item: -item[1][0])
    ]
    return out or ["  nothing"]
