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
import numpy as np

from research.errors import BadInput, first_line
from research.parallel import sharding
from research.planning import cluster
from research.training.run import Run
from research.training.trainer import Trainer

MOST = 512  # simulated devices


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
    def of(cls, compiled: Any) -> "Reserved":
        found = compiled.memory_analysis()
        return cls(*(getattr(found, f"{part}_size_in_bytes") for part in cls._fields))


def compiled(run: Run, mesh: Any) -> Any:
    """The compiled dispatch of a run on a mesh of devices that are here (see step)."""
    trainer, room = Trainer(run, mesh), run.cadence.dispatch
    spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
    lies = jax.sharding.NamedSharding(mesh, spec)
    batches = {
        name: jax.ShapeDtypeStruct((room, run.batch, *x.shape[1:]), x.dtype, sharding=lies)
        for name, x in run.data.train.rows(np.zeros(1, np.int64)).items()
    }
    return trainer.lower(batches).compile()


def measured(
    config: Mapping[str, Any], vocab: int | None, mesh: Mapping[str, int], most: int = MOST
) -> Reserved:
    """What XLA reserves on `mesh`, in a process with as many simulated devices.

    The data axis only repeats what the others hold, so beyond `most` devices it is shortened, and
    the batch with it. Raises BadInput where the other axes alone are more.
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
    asked = {"config": config, "vocab": vocab, "mesh": mesh | {"data": shorter}}
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(shorter * others),
    }
    command = [sys.executable, "-c", "from research.planning import xla_memory; xla_memory.child()"]
    done = subprocess.run(
        command, input=json.dumps(asked), env=environment, capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BadInput(f"--exact: the compiler ended: {last[0]}")
    return Reserved(**json.loads(done.stdout))


def child() -> None:
    """The other process: what is asked comes as JSON, and so does the answer go."""
    asked = json.load(sys.stdin)
    try:
        run = cluster.made(asked["config"], asked["vocab"])
        mesh = sharding.make_mesh(asked["mesh"], run.batch, parts=run.execution.grad_accumulation)
        print(json.dumps(Reserved.of(compiled(run, mesh))._asdict()))
    except Exception as error:
        print(first_line(error), file=sys.stderr)
        sys.exit(1)
