"""What a run costs on these devices, before it is trained: seconds from a quick calibration that is
kept in the cache, and bytes on a device.

Seconds: the programs of the fewest and of the most FLOPs per step are compiled and timed, and those
between are interpolated, seconds over FLOPs in logarithms. To the steps come the evaluations, at
the seconds per held-out example of the same two programs. Checkpoints are not counted.

Bytes are those of `memory`; of many runs that differ in size a few are traced.
"""

import functools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from research.errors import BadInput, StorageError
from research.io import files, host
from research.models import accounting
from research.planning import benchmark, memory
from research.training.run import Run, example_inputs
from research.training.trainer import resident, run_mesh, step_spec

log = logging.getLogger(__name__)

MIN_TIMED_SECONDS = 1.0  # seconds that a program is timed for
MAX_EXTRAPOLATION = 4.0  # how many times beyond the programs that were timed a prediction goes
# Programs whose activations are traced. Those between are interpolated: in the shipped sweeps all
# bytes together are at most 12 % off (with four traces: 13 %).
TRACED_PROGRAMS = 3


class Cost(NamedTuple):
    """Of one run: seconds to train it, seconds to compile what it runs, bytes on one device; None
    where these devices or this calibration cannot tell. Runs of one `program` compile once."""

    seconds: float | None
    compiling: float
    program: tuple
    memory: float | None = None


class Sample(NamedTuple):
    """A program that was timed: seconds of a step of so many FLOPs, of compiling it, and of one
    held-out example."""

    flops: float
    step: float
    compiling: float
    example: float


def predict(runs: Sequence[Run]) -> list[Cost]:
    """What each run costs, by earlier calibrations."""
    meshes = [_mesh_or_none(run) for run in runs]
    runnable = [(run, mesh) for run, mesh in zip(runs, meshes, strict=True) if mesh]
    memory_by_program, load_samples = _predict_memory(runnable), functools.cache(stored_samples)
    costs = []
    for run, mesh in zip(runs, meshes, strict=True):
        if mesh is None:
            costs.append(Cost(None, 0.0, ("", run.id)))
            continue
        program, seconds, compiling = program_key(run, mesh), None, 0.0
        if sample := _interpolate(load_samples(_calibration_key(run, mesh)), run):
            evaluated = _evaluation_count(run) * run.evaluated
            seconds = run.steps * sample.step + evaluated * sample.example
            compiling = sample.compiling
        costs.append(Cost(seconds, compiling, program, memory_by_program[program]))
    return costs


def calibrate(runs: Sequence[Run]) -> None:
    """Time the programs of the fewest and of the most FLOPs per step of each kind, and keep it.

    Takes seconds to minutes, as long as it takes to compile them. Raises StorageError where the
    cache cannot be written.
    """
    meshes = ((run, _mesh_or_none(run)) for run in runs)
    kinds = _group_by_key([(run, mesh) for run, mesh in meshes if mesh])
    for key, pairs in kinds.items():
        pairs.sort(key=lambda pair: _step_flops(pair[0]))
        samples = {sample.flops: sample for sample in stored_samples(key)}
        for run, mesh in {_step_flops(pair[0]): pair for pair in (pairs[0], pairs[-1])}.values():
            sample = time_programs(run, mesh)
            samples[sample.flops] = sample
            name, count = run.facts["family"], f"{run.facts['params']:,}"
            took = f"{1000 * sample.step:.3g} ms a step, {sample.compiling:.1f} s to compile"
            log.info("timed %s with %s parameters: %s", name, count, took)
        rows = [sample._asdict() for sample in sorted(samples.values())]
        files.write_json(_cache_file(key), {"samples": rows})


def program_key(run: Run, mesh: Mesh) -> tuple:
    """What decides the compiled programs of a run; runs that share it compile once."""
    inputs, heldout = example_inputs(run.data), (run.eval_examples, run.eval_batch)
    structure = jax.tree.structure(run.hyper)
    sizes = (run.batch, run.cadence.dispatch, *heldout, tuple(mesh.shape.items()))
    return step_spec(run, mesh), inputs, structure, sizes


def _mesh_or_none(run: Run) -> Mesh | None:
    """None where these devices cannot take the run, which a launch refuses with the reason."""
    try:
        return run_mesh(run)
    except BadInput:
        return None


def _evaluation_count(run: Run) -> int:
    every = run.cadence.eval
    return 1 + len({*(range(every, run.steps, every) if every else ()), *run.cadence.at})


# Seconds.


def _calibration_key(run: Run, mesh: Mesh) -> str:
    """The digest of all that decides how long a step takes, but for its size."""
    fields = {k: v for k, v in run.model.described().items() if k not in run.model.family.SIZED}
    inputs = example_inputs(run.data)
    return files.digest_of(
        {
            "device": mesh.devices.flat[0].device_kind,
            "mesh": dict(mesh.shape),
            **{k: v for k, v in host.describe().items() if k in ("cores", "xla_flags")},
            "versions": host.describe()["versions"],
            "model": fields,
            "inputs": [list(inputs.shape), str(inputs.dtype)],
            "task": [type(run.task).__name__, vars(run.execution)],
            "optimizer": [run.optimizer, run.schedule, str(jax.tree.structure(run.hyper))],
            "dispatch": run.cadence.dispatch,
        }
    )[:24]


def _group_by_key(placed: Iterable[tuple[Run, Mesh]]) -> dict[str, list[tuple[Run, Mesh]]]:
    """Runs that differ in size alone, as far as cost goes, together."""
    kinds: dict[str, list[tuple[Run, Mesh]]] = {}
    for run, mesh in placed:
        kinds.setdefault(_calibration_key(run, mesh), []).append((run, mesh))
    return kinds


def stored_samples(key: str) -> list[Sample]:
    """What was timed before, by FLOPs; nothing where the file is damaged."""
    try:
        path = _cache_file(key)
        rows = files.read_json(path)["samples"] if path.exists() else []
        samples = [Sample(**{k: float(row[k]) for k in Sample._fields}) for row in rows]
    except (BadInput, StorageError, KeyError, TypeError, ValueError):
        return []
    return sorted(s for s in samples if s.flops > 0 and s.step > 0)


def _cache_file(key: str) -> Path:
    return files.cache("cost") / f"{key}.json"


def time_programs(run: Run, mesh: Mesh) -> Sample:
    """Time a run's programs as its loop uses them."""
    few = min(run.eval_examples, 4 * run.eval_batch)
    begun = time.perf_counter()
    loop = benchmark.TimedLoop(run, mesh, few)
    loop.block(1)
    built = time.perf_counter() - begun
    loop.settle()
    once = loop.block(loop.dispatch) / loop.dispatch
    if (steps := min(50 * loop.dispatch, math.floor(MIN_TIMED_SECONDS / once))) > loop.dispatch:
        once = loop.block(steps) / steps
    begun = time.perf_counter()
    loop.trainer.evaluate(loop.state.eval_params)
    evaluating = time.perf_counter() - begun
    compiling = max(0.0, built - once - evaluating)
    return Sample(_step_flops(run), once, compiling, evaluating / few)


def _step_flops(run: Run) -> float:
    return accounting.step_flops(run.model, run.batch)


def _interpolate(samples: Sequence[Sample], run: Run) -> Sample | None:
    """The sample of this run's program, interpolated; None too far from what was timed. Below the
    smallest a step takes as long as it, above the largest as much longer as it has more FLOPs."""
    flops = _step_flops(run)
    if not samples:
        return None
    low, high = samples[0].flops / MAX_EXTRAPOLATION, samples[-1].flops * MAX_EXTRAPOLATION
    if not low <= flops <= high:
        return None
    above = max(1.0, flops / samples[-1].flops)
    x = np.log([s.flops for s in samples])

    def between(values: Sequence[float]) -> float:
        return float(np.exp(np.interp(math.log(flops), x, np.log(np.maximum(values, 1e-9)))))

    step, compiling, example = (between([s[i] for s in samples]) for i in (1, 2, 3))
    return Sample(flops, step * above, compiling, example * above)


# Bytes.


def _predict_memory(pairs: Sequence[tuple[Run, Mesh]]) -> dict[tuple, float | None]:
    """Bytes on one device by program; None where the mesh does not divide a parameter, which a
    launch refuses."""
    bytes_by_program: dict[tuple, float | None] = {}
    for same_kind in _group_by_key(pairs).values():
        fixed: dict[tuple, tuple[tuple[Run, Mesh], float]] = {}
        for pair in same_kind:
            try:
                fixed[program_key(*pair)] = pair, sum(resident(*pair))
            except BadInput:
                bytes_by_program[program_key(*pair)] = None
        temporary = _interpolate_temporary([pair for pair, _ in fixed.values()]) if fixed else []
        for (program, (_, always)), within in zip(fixed.items(), temporary, strict=True):
            bytes_by_program[program] = always + within
    return bytes_by_program


def _interpolate_temporary(pairs: Sequence[tuple[Run, Mesh]]) -> np.ndarray:
    """Bytes within a step of runs of one kind: a few are traced, those between interpolated."""
    x = np.log([_step_flops(run) for run, _ in pairs])
    by_flops = np.argsort(x, kind="stable")
    spread = np.linspace(0, len(pairs) - 1, min(TRACED_PROGRAMS, len(pairs)))
    traced = by_flops[spread.round().astype(int)]
    y = [math.log(max(1.0, memory.estimate(*pairs[i]).temporary)) for i in traced]
    return np.exp(np.interp(x, x[traced], y))
