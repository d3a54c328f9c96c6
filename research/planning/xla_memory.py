"""What XLA itself reserves for a run, from ahead-of-time compilation on simulated CPU devices.

Abstract arrays only: nothing is allocated but the compiler's own memory. A process of its own is
started for it, so that the devices of this one do not matter.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from research.errors import BadInput, first_line
from research.parallel import sharding
from research.planning import cluster
from research.training.run import Run
from research.training.trainer import Trainer, example, run_mesh

MAX_DEVICES = 512  # simulated devices


class Reserved(NamedTuple):
    """Bytes on one device, as `memory_analysis` of the compiled dispatch has them. `peak` is what a
    step needs at most: arguments, results and temporaries, of which `alias` share their place."""

    argument: int
    output: int
    temp: int
    alias: int

    @property
    def peak(self) -> int:
        return self.argument + self.output + self.temp - self.alias

    @classmethod
    def from_compiled(cls, compiled: Any) -> "Reserved":
        analysis = compiled.memory_analysis()
        return cls(*(getattr(analysis, f"{part}_size_in_bytes") for part in cls._fields))


def compile_dispatch(run: Run, mesh: Any) -> Any:
    """The compiled dispatch of a run on a mesh of devices that are here."""
    trainer, room = Trainer(run, mesh), run.cadence.dispatch
    spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
    split = jax.sharding.NamedSharding(mesh, spec)
    batches = {
        name: jax.ShapeDtypeStruct((room, run.batch, *x.shape[1:]), x.dtype, sharding=split)
        for name, x in example(run).items()
    }
    return trainer.lower(batches).compile()


def measure_reserved(
    config: Mapping[str, Any], vocab: int | None, mesh: Mapping[str, int], most: int = MAX_DEVICES
) -> Reserved:
    """What XLA reserves on `mesh`, in a process with as many simulated devices.

    The data axis only repeats what the others hold, so beyond `most` devices it is shortened, and
    the batch with it. Raises BadInput where the other axes alone are more,
    where the config has no batch size, and with the last line of a compiler that failed.
    """
    mesh, config = dict(mesh), {**config, "batch": dict(config["batch"])}
    others = mesh["fsdp"] * mesh["tensor"]
    if others > most:
        raise BadInput(f"--exact: {others} devices of fsdp and tensor, more than {most}")
    if (size := config["batch"]["size"]) is None:
        raise BadInput("--exact: batch.size is none; give it")
    shorter = max(
        d for d in range(1, mesh["data"] + 1) if not mesh["data"] % d and d * others <= most
    )
    config["batch"]["size"] = size * shorter // mesh["data"]
    config["mesh"] = {**config["mesh"], **mesh, "data": shorter}
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(shorter * others),
    }
    command = [sys.executable, "-c", CHILD]
    question = json.dumps({"config": config, "vocab": vocab})
    child = subprocess.run(command, input=question, env=environment, capture_output=True, text=True)
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise BadInput(f"--exact: the compiler ended: {last[0]}")
    return Reserved(**json.loads(child.stdout))


CHILD = f"from {__name__} import compile_in_child; compile_in_child()"


def compile_in_child() -> None:
    """The other process: reads {"config", "vocab"} as JSON and writes a Reserved as JSON."""
    question = json.load(sys.stdin)
    try:
        run = cluster.run_without_data(question["config"], question["vocab"])
        compiled = compile_dispatch(run, run_mesh(run))
        print(json.dumps(Reserved.from_compiled(compiled)._asdict()))
    except Exception as error:
        print(first_line(error), file=sys.stderr)
        sys.exit(1)
