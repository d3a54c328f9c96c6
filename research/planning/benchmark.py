"""How fast a run trains here: its training loop as a user runs it, data included, without files.

What `measure` returns, times being host wall clock:

compile_seconds        until the first step is done, from the moment the run is known, without the
                       step itself: tracing, and compiling or fetching from the cache, the programs
                       that initialize and train
seconds_to_first_step  from the start of the process until the first step's metrics are on the host
ms_per_step            median over blocks of some dispatches each; ms_quartiles their spread
tokens_per_second      (examples_per_second where there are no tokens)
flops_per_second       `flops_exact_full` of a step (see accounting) over ms_per_step
peak_flops_per_second  of all devices of the run: what the data sheet says of the dtype where there
                       is one of exactly this device, otherwise measured: the best of square matrix
                       products, one on every device at the same time; peak_share is what a step
                       reaches of it (of a data sheet's that is MFU)
peak_bytes             on one device: on accelerators what the allocator saw at most, elsewhere what
                       the compiled training program reserves (arguments, outputs and temporary
                       memory, aliases once)
device_ms_per_step     what one more step adds to a dispatch whose batches lie on the devices
                       (the time of one of steps_per_dispatch steps less that of one step)
host_ms_per_step       ms_per_step − device_ms_per_step: what the loop takes beyond it for a step,
                       with everything that the host did not hide behind the devices: batches,
                       dispatch, metrics, and page faults of memory given back between dispatches.
                       host_share is its part of ms_per_step. Noise may make it negative.
"""

import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from research.errors import BadInput
from research.io import host, source
from research.io.text_table import format_table
from research.models import accounting
from research.planning import compiled, hardware
from research.training.loop import TIMED_STEPS, run_loop
from research.training.recorder import DeferredMetrics
from research.training.run import Run
from research.training.trainer import Trainer, run_mesh

IMPORTED = time.monotonic()
# Of the matrices whose products are timed: large enough to hide what a launch costs.
CPU_SIDES, ACCELERATOR_SIDES = (512, 1024, 2048), (4096, 8192)


class TimedLoop:
    """A run's training loop on a mesh, to be timed: no files, no held-out set but a few examples,
    and from a new state, whatever the run would start from.

    The first block chooses how many steps go into a dispatch, as the run itself would; the others
    keep to that.
    """

    def __init__(self, run: Run, mesh: Mesh, heldout: int = 1):
        every = run.cadence._replace(eval=0, at=frozenset())
        heldout = min(run.eval_examples, heldout)
        saving = run.saving._replace(every=0, at=frozenset())
        changes = {"saving": saving, "eval_examples": heldout, "start": None, "sets": ()}
        self.run = dataclasses.replace(run, cadence=every, **changes)
        self.trainer = Trainer(self.run, mesh)
        self.room, self.dispatch, self._seen = every.dispatch, 0, 0
        self.step, self.state = 0, self.trainer.init()

    def settle(self) -> None:
        """Take steps until their number in a dispatch is chosen."""
        self.block(4 * TIMED_STEPS)
        self.dispatch = self._seen
        fixed = self.run.cadence._replace(dispatch=self.dispatch, paced=False)
        self.run = dataclasses.replace(self.run, cadence=fixed)

    def block(self, steps: int) -> float:
        """Seconds of the next `steps` steps, until their metrics are on the host."""
        run, clock = dataclasses.replace(self.run, steps=self.step + steps), _ClockRecorder()
        policy = _NoCheckpoints(self.step, self.state)
        begun = time.perf_counter()
        _, self.state = run_loop(run, _FullRoomTrainer(self), clock, policy, lambda: False)
        self.step, self._seen = self.step + steps, clock.dispatch
        return clock.read - begun

    def device_step(self, repeats: int = 9) -> float:
        """Seconds that one more step adds to a dispatch whose batches lie on the devices."""
        many, room = max(2, self.dispatch), max(2, self.room)
        batches = self.trainer.batches(self.step, many, room)

        def dispatch(n: int) -> float:
            begun = time.perf_counter()
            self.state, metrics = self.trainer.steps(self.state, batches, n)
            jax.block_until_ready(metrics)
            return time.perf_counter() - begun

        dispatch(many)
        pairs = [(dispatch(1), dispatch(many)) for _ in range(repeats)]
        one, full = (statistics.median(times) for times in zip(*pairs, strict=True))
        return (full - one) / (many - 1)

    def bytes(self) -> float:
        """Bytes on one device, see `peak_bytes` above."""
        devices = self.trainer.mesh.devices.flat
        stats = [device.memory_stats() or {} for device in devices if device.platform != "cpu"]
        if peaks := [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]:
            return float(max(peaks))
        return self.compiled_bytes()

    def compiled_bytes(self) -> float:
        """What the compiler says that a dispatch takes of one device."""
        return float(compiled.Reserved.from_compiled(self.trainer.lower().compile()).peak)


class _FullRoomTrainer:
    """A trainer whose batches have room for the most steps of a dispatch, however few there are in
    one: the program that the run would compile."""

    def __init__(self, loop: TimedLoop):
        self.room, self.trainer = loop.room, loop.trainer
        self.steps, self.evaluate = loop.trainer.steps, loop.trainer.evaluate

    def batches(self, step: int, n: int, room: int) -> dict[str, jax.Array]:
        return self.trainer.batches(step, n, self.room)


class _ClockRecorder(DeferredMetrics):
    """Takes the place of a recorder, and notes when the last metrics were on the host."""

    read = math.nan

    def write(self, first: int, n: int, metrics: Mapping[str, Any]) -> None:
        self.read = time.perf_counter()

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def improved(self, step: int) -> bool:
        return False


class _NoCheckpoints:
    """Takes the place of a checkpoint policy: the loop resumes from `state`."""

    kept_steps = ()

    def __init__(self, step: int, state: Any):
        self.restored = step, state

    def restore(self) -> tuple[int, Any]:
        return self.restored

    def due(self, step: int) -> bool:
        return False

    def save(self, step: int, state: Any, must: bool) -> None:
        pass


def measure(run: Run, blocks: int = 10, seconds: float = 0.5) -> dict[str, Any]:
    """Time `run` on the devices that there are: `blocks` blocks of about `seconds` each.

    Raises BadInput for numbers that measure nothing, and where the devices cannot take the run.
    """
    if blocks < 2:
        raise BadInput(f"--blocks: {blocks}; expected at least 2, there is no spread of fewer")
    if not 0 < seconds < math.inf:
        raise BadInput(f"--seconds: {seconds}; expected a number above 0")
    mesh = run_mesh(run)
    begun = time.perf_counter()
    loop = TimedLoop(run, mesh)
    built = time.perf_counter() - begun + loop.block(1)
    first, warm = age(), loop.block(1)
    loop.settle()
    once = loop.block(loop.dispatch) / loop.dispatch
    steps = loop.dispatch * max(1, round(seconds / (once * loop.dispatch)))
    times = [loop.block(steps) / steps for _ in range(blocks)]
    step, device = statistics.median(times), loop.device_step()
    flops = accounting.step_flops(run.model, run.batch)
    peak, how = peak_flops(mesh, getattr(run.model.spec, "dtype", "float32"))
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    unit = "examples" if run.data.tokens_per_example == 1 else "tokens"
    return {
        "name": run.facts["name"],
        "family": run.facts["family"],
        "params": run.facts["params"],
        "batch": run.batch,
        "unit": unit,
        f"{unit}_per_step": run.tokens_per_step,
        "steps_per_dispatch": loop.dispatch,
        "steps_timed": steps * blocks,
        "blocks": blocks,
        "mesh": dict(mesh.shape),
        "device_kind": mesh.devices.flat[0].device_kind,
        "compile_seconds": max(0.0, built - warm),
        "seconds_to_first_step": first,
        "ms_per_step": 1e3 * step,
        "ms_quartiles": [1e3 * low, 1e3 * high],
        f"{unit}_per_second": run.tokens_per_step / step,
        "flops_per_step": flops,
        "flops_per_second": flops / step,
        "peak_flops_per_second": peak,
        "peak": how,
        "peak_share": flops / step / peak,
        "peak_bytes": loop.bytes(),
        "device_ms_per_step": 1e3 * device,
        "host_ms_per_step": 1e3 * (step - device),
        "host_share": 1 - device / step,
        **host.describe(),
        **source.describe(),
    }


def peak_flops(mesh: Mesh, dtype: str) -> tuple[float, str]:
    """FLOP/s that the devices of `mesh` could reach together, and whether that is "data sheet" or
    "measured"."""
    device = mesh.devices.flat[0]
    if machine := hardware.machine_of_kind(device.device_kind):
        return machine.rate(dtype) * mesh.size, "data sheet"
    sides = CPU_SIDES if device.platform == "cpu" else ACCELERATOR_SIDES
    return measured_matmul_flops(tuple(mesh.devices.flat), dtype, sides), "measured"


@functools.cache
def measured_matmul_flops(devices: Sequence[Any], dtype: str, sides: Sequence[int]) -> float:
    """The best FLOP/s of products of two square matrices of one of these `sides`, one product on
    every device at the same time."""
    mesh = Mesh(np.array(devices), ("all",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("all")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=split)
    def squared(x_1xNxN: jax.Array) -> jax.Array:
        return (x_1xNxN[0] @ x_1xNxN[0])[None]

    best = 0.0
    for side in sides:
        shape = len(devices), side, side
        x_KxNxN = jax.jit(
            lambda shape=shape: jnp.full(shape, 0.5, dtype),
            out_shardings=jax.sharding.NamedSharding(mesh, split),
        )()
        jax.block_until_ready(squared(x_KxNxN))
        for _ in range(5):
            begun = time.perf_counter()
            jax.block_until_ready(squared(x_KxNxN))
            seconds = time.perf_counter() - begun
            best = max(best, 2.0 * len(devices) * side**3 / seconds)
    return best


# As text.


def format_measurement(measurement: Mapping[str, Any]) -> str:
    """A measurement, a line for each thing that was measured."""
    unit, (low, high) = measurement["unit"], measurement["ms_quartiles"]
    rate, step = measurement[f"{unit}_per_second"], measurement[f"{unit}_per_step"]
    on_cpu = measurement["device_kind"] == "cpu"
    cores = f", {measurement['cores']} cores" if on_cpu else ""
    of_peak = "MFU" if measurement["peak"] == "data sheet" else "of the measured matmul throughput"
    compiling, first = measurement["compile_seconds"], measurement["seconds_to_first_step"]
    host_ms, share = measurement["host_ms_per_step"], measurement["host_share"]
    lines = {
        "run": f"{measurement['name']}, {measurement['params']:,} parameters, {step:,} {unit} a "
        "step",
        "devices": f"{_mesh_text(measurement['mesh'])} of {measurement['device_kind']}{cores}",
        "compile": f"{compiling:.2f} s; first step {first:.2f} s after the start of the process",
        "step": f"{measurement['ms_per_step']:.3g} ms (quartiles {low:.3g} to {high:.3g})",
        "speed": f"{rate:,.0f} {unit}/s",
        "FLOP/s": f"{measurement['flops_per_second']:.3g}, {measurement['peak_share']:.1%} "
        f"{of_peak} ({measurement['peak_flops_per_second']:.3g})",
        "memory": f"{measurement['peak_bytes'] / 2**20:,.1f} MiB at most on a device",
        "host": f"{host_ms:.3g} ms of a step ({share:.1%}) are not the devices'",
    }
    return "\n".join(f"{name:>8}  {line}" for name, line in lines.items())


def _mesh_text(shape: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {n}" for axis, n in shape.items())


COLUMNS: dict[str, Callable[[Mapping], str]] = {
    "parameters": lambda r: f"{r['params']:,}",
    "compile s": lambda r: f"{r['compile_seconds']:.2f}",
    "first step s": lambda r: f"{r['seconds_to_first_step']:.2f}",
    "ms/step": lambda r: f"{r['ms_per_step']:.2f}",
    "quartiles": lambda r: "–".join(f"{q:.2f}" for q in r["ms_quartiles"]),
    "per second": lambda r: f"{r[r['unit'] + '_per_second']:,.0f} {r['unit']}",
    "GFLOP/s": lambda r: f"{r['flops_per_second'] / 1e9:,.0f}",
    "of peak": lambda r: f"{r['peak_share']:.0%}",
    "MiB": lambda r: f"{r['peak_bytes'] / 2**20:,.0f}",
    "host": lambda r: f"{r['host_share']:.1%}",
}


def markdown_table(measurements: Mapping[str, Mapping[str, Any]]) -> str:
    """Measurements by case, as a table in Markdown."""
    rows = [[name, *(cell(r) for cell in COLUMNS.values())] for name, r in measurements.items()]
    return format_table(["case", *COLUMNS], rows, right=COLUMNS, markdown=True)


def age() -> float:
    """Seconds since this process was started; where that cannot be seen, since this import."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):  # not Linux
        return time.monotonic() - IMPORTED
